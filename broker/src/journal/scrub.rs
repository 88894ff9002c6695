//! The scrub: reads all segments once after the start, slowly, and compares the store with them.
//!
//! It begins when those who came back after the start have been served, and makes room for whoever writes meanwhile.
//! A start reads only what the store lacks. What broke in older segments, or was silently lost in the store, is found here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::park_timeout;
use std::time::Duration;

use protocol::id::{Digest, QueueKey};
use protocol::record::Record;
use tokio::time::Instant;

use super::damage::Quarantined;
use super::error::JournalError;
use super::events::{Store, StoreError};
use super::fill::{Index, event_index};
use super::scan::{Loss, Step, Touched, Walk};
use super::segment::{SEGMENT_HEADER_BYTES, Segment};
use super::shared::Shared;

/// How many steps are taken between pauses: a fraction of a millisecond of work.
const STEPS_PER_PAUSE: u32 = 256;
/// The pause: leaves three quarters of a core to the broker; a million records take about half a minute.
const PAUSE: Duration = Duration::from_millis(4);

/// The pause while others write: most of a core is theirs; a million records take about two minutes.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// Nothing is read before this: a start is when queues are loaded and everybody comes back at once.
const BEGINS_AFTER: Duration = Duration::from_secs(15);
/// How long nothing must be written before it begins,
const QUIET: Duration = Duration::from_secs(1);
/// and when it begins however busy the broker is.
const BEGINS_ANYWAY_AFTER: Duration = Duration::from_secs(300);

/// What a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Records read.
    pub records: u64,
    /// Bodies read.
    pub bodies: u64,
    /// What is wrong with the segments.
    pub losses: Vec<Loss>,
    /// Queues that were read again, because the store had not what the segments have.
    pub repaired: Vec<QueueKey>,
}

/// Reads everything up to where the log ends now.
pub(crate) fn run(shared: &Arc<Shared>, gently: bool) -> Result<ScrubReport, JournalError> {
    if gently {
        wait_for_quiet(shared)?;
    }
    shared.wait_indexed()?;
    let mut report = ScrubReport::default();
    let mut stale = BTreeSet::new();
    let until = shared.lock_index().position;
    let segments = shared.segments();
    for (index, segment) in segments.iter().enumerate() {
        let end = segments.get(index + 1).map_or(until, |next| next.base);
        walk(shared, segment, end.saturating_sub(segment.base), gently, &mut report, &mut stale)?;
    }
    shared.quarantine(report.losses.iter().flat_map(Quarantined::of_loss).collect());
    if report.losses.iter().any(|loss| loss.touched == Touched::Unknown) {
        shared.find_absent()?;
    }
    for queue in stale {
        if shared.quarantine.of(queue).is_some() {
            continue;
        }
        match shared.repair(queue, "the event store lacks some of it") {
            Ok(()) | Err(JournalError::Quarantined { .. }) => report.repaired.push(queue),
            Err(error) => return Err(error),
        }
    }
    shared.counters.scrubbed.store(true, Ordering::Relaxed);
    Ok(report)
}

/// Pauses for as long, or until the journal is closed, which is an error.
fn pause(shared: &Shared, pause: Duration) -> Result<(), JournalError> {
    let until = Instant::now() + pause;
    loop {
        if shared.closing.load(Ordering::Relaxed) {
            return Err(JournalError::Closed);
        }
        shared.check()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        // Closing wakes this thread.
        park_timeout(left);
    }
}

fn wait_for_quiet(shared: &Shared) -> Result<(), JournalError> {
    let started = Instant::now();
    pause(shared, BEGINS_AFTER)?;
    loop {
        let before = shared.counters.groups.load(Ordering::Relaxed);
        pause(shared, QUIET)?;
        let quiet = shared.counters.groups.load(Ordering::Relaxed) == before;
        if quiet || started.elapsed() >= BEGINS_ANYWAY_AFTER {
            return Ok(());
        }
    }
}

fn walk(
    shared: &Arc<Shared>,
    segment: &Segment,
    until: u64,
    gently: bool,
    report: &mut ScrubReport,
    stale: &mut BTreeSet<QueueKey>,
) -> Result<(), JournalError> {
    let io = |error| JournalError::io("reading a segment", error);
    let mut walk = Walk::new(segment, SEGMENT_HEADER_BYTES, until).map_err(io)?;
    let (mut steps, mut groups) = (0, 0);
    // Bodies of the group at hand that the store has not; the record that names them says whether it should.
    let mut lacking = BTreeSet::new();
    while let Some(step) = walk.step().map_err(io)? {
        steps += 1;
        if steps % STEPS_PER_PAUSE == 0 {
            let before = std::mem::replace(&mut groups, shared.counters.groups.load(Ordering::Relaxed));
            let idle_pause = if gently { PAUSE } else { Duration::ZERO };
            pause(shared, if gently && groups != before { BUSY_PAUSE } else { idle_pause })?;
        }
        match step {
            Step::Record { offset, queue, seq, hash, bytes } => {
                report.records += 1;
                if stale.contains(&queue) || shared.quarantine.of(queue).is_some() {
                    continue;
                }
                let Ok(record) = Record::decode(&bytes) else {
                    let text = format!("record {seq} at byte {offset} of segment {} cannot be read", segment.number);
                    shared.quarantine(vec![Quarantined {
                        queue,
                        segment: segment.number,
                        offset,
                        seq: Some(seq),
                        text,
                    }]);
                    continue;
                };
                let is_lacking = record.event.body().is_some_and(|digest| lacking.contains(&(queue, digest)));
                let may_be_forgotten = record.at_ms < shared.forgotten.left_before();
                if (is_lacking && !may_be_forgotten)
                    || !shared.ask(|store| holds(store, queue, &record, hash, &bytes, may_be_forgotten))?
                {
                    stale.insert(queue);
                }
            }
            Step::Body { offset, queue, digest, bytes, .. } => {
                report.bodies += 1;
                if shared.quarantine.of(queue).is_some() {
                    continue;
                }
                if Digest::of(&bytes) != digest {
                    let text = format!("the body at byte {offset} of segment {} is not of its digest", segment.number);
                    shared.quarantine(vec![Quarantined { queue, segment: segment.number, offset, seq: None, text }]);
                } else if !stale.contains(&queue) && shared.ask(|store| store.body(queue, digest))?.is_none() {
                    lacking.insert((queue, digest));
                }
            }
            Step::Loss(loss) => report.losses.push(loss),
            Step::GroupEnd { .. } => lacking.clear(),
            Step::GroupStart { .. } | Step::Sealed { .. } => {}
        }
    }
    Ok(())
}

/// Whether the store has that record, and what follows from it. What is told of jobs that may be forgotten may be gone.
fn holds(
    store: &Store,
    queue: QueueKey,
    record: &Record,
    hash: Digest,
    bytes: &[u8],
    may_be_forgotten: bool,
) -> Result<bool, StoreError> {
    if store.row(queue, record.seq)?.is_none_or(|row| row.hash != hash || row.bytes != bytes) {
        return Ok(false);
    }
    Ok(match event_index(&record.event) {
        Some(_) if may_be_forgotten => true,
        Some(Index::Job(job)) => store.queues_of(job)?.contains(&queue),
        Some(Index::Removed(job)) => store.archived(queue, job)?.is_some(),
        None => true,
    })
}
