//! What happened to one job: its records, found by walking the queue's journal back.

use protocol::event::Event;
use protocol::id::{Digest, JobId, Seq};
use protocol::record::Record;

use super::{QueueHandle, blocking};
use crate::journal::{EncodedRecord, JournalError};
use crate::refusal::Refusal;

/// How many records are read at once.
const WINDOW: u64 = 4096;
/// How many bytes of them.
const WINDOW_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How far one call goes back: about a tenth of a second of work. Who wants more asks again from where it ended.
const SCANNED_MAX: u64 = 65_536;
/// The most records that one call answers.
const FOUND_MAX: usize = 1000;

/// A part of a job's history.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Its records with their hashes, the oldest first.
    pub records: Vec<(Record, Digest)>,
    /// There may be older ones before this position; none when the beginning of the journal was reached.
    pub before: Option<Seq>,
}

impl QueueHandle {
    /// What happened to a job before a position, or until now: its newest life in the queue at most, and only as far back as
    /// is looked at in one go.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the queue cannot be used.
    pub async fn history(&self, job: JobId, before: Option<Seq>) -> Result<History, Refusal> {
        let end = self.head().await?.seq.saturating_add(1);
        let end = before.map_or(end, |before| before.min(end)).max(1);
        let (journal, key) = (self.engine.0.journal.clone(), self.key);
        blocking(move || {
            walk(job, end, |from, count| {
                journal.records(key, from, usize::try_from(count).unwrap_or(usize::MAX), WINDOW_BYTES_MAX)
            })
        })
        .await
    }
}

impl QueueHandle {
    /// The records after a position, up to and with another, as many as are read at once; none when they are not there.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the journal cannot be read.
    pub(crate) async fn records_after(&self, after: Seq, through: Seq) -> Result<Vec<EncodedRecord>, Refusal> {
        let count = usize::try_from(through.saturating_sub(after).min(WINDOW)).unwrap_or(usize::MAX);
        let (journal, key) = (self.engine.0.journal.clone(), self.key);
        blocking(move || journal.records(key, after.saturating_add(1), count, WINDOW_BYTES_MAX)).await
    }
}

/// Walks back from `end`. `read` gives records from a position on, at least one, at most as many as asked for.
fn walk(
    job: JobId,
    mut end: Seq,
    mut read: impl FnMut(Seq, u64) -> Result<Vec<EncodedRecord>, JournalError>,
) -> Result<History, JournalError> {
    let mut found = Vec::new();
    let mut scanned = 0;
    while end > 1 && scanned < SCANNED_MAX {
        let from = end.saturating_sub(WINDOW).max(1);
        let mut window = Vec::new();
        let mut next = from;
        while next < end {
            let records = read(next, end - next)?;
            // A journal that was cut off while it was read; what was found stands.
            let Some(last) = records.last() else { break };
            next = last.seq + 1;
            window.extend(records.iter().filter_map(|record| of_job(job, record)));
        }
        scanned += end - from;
        end = from;
        let begun = window.iter().rposition(|(record, _)| begins(&record.event));
        if let Some(begun) = begun {
            window.drain(..begun);
            end = window.first().map_or(end, |(record, _)| record.seq);
        }
        // Gathered backwards, so that the windows need no moving.
        found.extend(window.into_iter().rev());
        if found.len() > FOUND_MAX {
            found.truncate(FOUND_MAX);
            end = found.last().map_or(end, |(record, _): &(Record, Digest)| record.seq);
            break;
        }
        if begun.is_some() {
            break;
        }
    }
    found.reverse();
    Ok(History { records: found, before: (end > 1).then_some(end) })
}

/// The record, if it is about the job. Most are not, and are not decoded: an id stands in them as its bytes.
fn of_job(job: JobId, encoded: &EncodedRecord) -> Option<(Record, Digest)> {
    if !encoded.bytes.windows(32).any(|bytes| bytes == job.as_bytes()) {
        return None;
    }
    let record = Record::decode(&encoded.bytes).ok()?;
    (record.event.job() == Some(job)).then_some((record, encoded.hash))
}

/// Whether a job's life in the queue begins here.
const fn begins(event: &Event) -> bool {
    matches!(event, Event::JobQueued { .. } | Event::JobRecalled { .. })
}

#[cfg(test)]
mod tests {
    use protocol::event::Via;
    use protocol::id::{Namespace, UnixMillis};
    use protocol::record::RECORD_VERSION;

    use super::*;

    const JOB: JobId = JobId::from_bytes([1; 32]);
    const OTHER: JobId = JobId::from_bytes([2; 32]);

    fn queued(job: JobId) -> Event {
        Event::JobQueued {
            job,
            body: Digest::of(b"x"),
            namespace: Namespace::default(),
            via: Via::Http,
            needs: protocol::definition::Needs::default(),
            priority: 0,
            debug: false,
            runs_before: 0,
        }
    }

    /// The history found in a journal in which `event` says what stands where; `None`: something of another job.
    fn found(length: Seq, before: Seq, event: impl Fn(Seq) -> Option<Event>) -> (Vec<Seq>, Option<Seq>) {
        let read = |from: Seq, count: u64| {
            // Fewer than asked for, as the bound on bytes does it.
            let records = (from..(from + count.min(1000)).min(length + 1)).map(|seq| {
                let event = event(seq).unwrap_or(Event::JobRemoved { job: OTHER });
                let record = Record { v: RECORD_VERSION, seq, at_ms: UnixMillis(seq), event };
                EncodedRecord { seq, hash: Digest::of(&seq.to_le_bytes()), bytes: record.encode().into() }
            });
            Ok(records.collect())
        };
        let history = walk(JOB, before, read).unwrap();
        (history.records.iter().map(|(record, _)| record.seq).collect(), history.before)
    }

    #[test]
    fn a_history_is_of_the_jobs_newest_life_and_of_nothing_else() {
        let event = |seq| match seq {
            3 | 9000 => Some(queued(JOB)),
            4 | 9500 => Some(Event::JobDeleted { job: JOB }),
            5 | 9001 => Some(queued(OTHER)),
            _ => None,
        };
        assert_eq!(found(10_000, 10_001, event), (vec![9000, 9500], Some(9000)));
        assert_eq!(found(10_000, 9000, event), (vec![3, 4], Some(3)));
        assert_eq!(found(10_000, 3, event), (vec![], None));
    }

    #[test]
    fn one_call_goes_back_only_so_far_and_says_where_to_go_on() {
        let length = 3 * SCANNED_MAX;
        let event = |seq| (seq == 1).then(|| queued(JOB));
        let (records, before) = found(length, length + 1, event);
        assert_eq!((records, before), (vec![], Some(length + 1 - SCANNED_MAX)));
        assert_eq!(found(length, 5000, event), (vec![1], None));
    }

    #[test]
    fn a_job_that_much_happened_to_is_answered_in_parts() {
        let event = |seq| Some(if seq == 1 { queued(JOB) } else { Event::JobRequeued { job: JOB } });
        let (records, before) = found(2500, 2501, event);
        assert_eq!((records.len(), records[0], before), (1000, 1501, Some(1501)));
        let (records, before) = found(2500, 501, event);
        assert_eq!((records.len(), before), (500, None));
    }
}
