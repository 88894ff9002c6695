//! Log lines on their way: waiting to be sent, or sent and not known to have arrived. In order and bounded: the oldest go
//! first, with a line that says so. Pure.

use std::collections::{BTreeMap, VecDeque};

use protocol::native::{HeldRun, LogKind, LogLine, LogStep, ToBroker};

/// The most log bytes that wait, sent but not known to have arrived included.
pub(super) const LOG_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a line costs beside its text.
const LINE_BYTES: usize = 32;

/// Lines of one run that came together.
#[derive(Debug)]
pub(super) struct Batch {
    run: HeldRun,
    step: LogStep,
    first: u64,
    lines: Vec<LogLine>,
    bytes: usize,
    /// Counts the batches; given when it is put in line.
    number: u64,
}

impl Batch {
    /// `first` is the number of the first line.
    pub(super) fn new(run: HeldRun, step: LogStep, first: u64, lines: Vec<LogLine>) -> Self {
        let bytes = lines.iter().map(|line| line.text.len() + LINE_BYTES).sum();
        Self { run, step, first, lines, bytes, number: 0 }
    }

    fn key(&self) -> (HeldRun, LogKind) {
        (self.run, self.step.kind())
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    waiting: VecDeque<Batch>,
    /// Sent, each with the ping whose answer says that it arrived.
    in_flight: VecDeque<(u64, Batch)>,
    bytes: usize,
    /// Bytes sent since the newest ping.
    unpinged_bytes: usize,
    next_ping: u64,
    next_number: u64,
    dropped: BTreeMap<(HeldRun, LogKind), u64>,
    /// How many lines were dropped since the start.
    dropped_ever: u64,
}

impl Backlog {
    /// Whether `batch` can be added without anything being dropped.
    pub(super) fn has_room_for(&self, batch: &Batch) -> bool {
        self.bytes + batch.bytes <= LOG_BYTES_MAX
    }

    /// Adds lines, and drops the oldest when there are too many.
    pub(super) fn push(&mut self, mut batch: Batch) {
        batch.number = self.next_number;
        self.next_number += 1;
        self.bytes += batch.bytes;
        self.waiting.push_back(batch);
        while self.bytes > LOG_BYTES_MAX {
            // What was sent has probably arrived; it goes first, and without a word.
            if let Some((_, batch)) = self.in_flight.pop_front() {
                self.bytes -= batch.bytes;
            } else if !self.drop_oldest() {
                break;
            }
        }
    }

    /// Drops the oldest lines that wait. The last batch of a log stays in line without its lines, to say that they are lost.
    fn drop_oldest(&mut self) -> bool {
        let Some(at) = self.waiting.iter().position(|batch| !batch.lines.is_empty()) else { return false };
        let key = self.waiting[at].key();
        let batch = &mut self.waiting[at];
        let lines = std::mem::take(&mut batch.lines).len() as u64;
        self.bytes -= std::mem::take(&mut batch.bytes);
        batch.first += lines;
        *self.dropped.entry(key).or_default() += lines;
        self.dropped_ever += lines;
        let newest = self.waiting.iter().rposition(|batch| batch.key() == key);
        let mut place = 0;
        // Those before are without lines.
        self.waiting.retain(|batch| {
            let stays = batch.key() != key || !batch.lines.is_empty() || Some(place) == newest;
            place += 1;
            stays
        });
        true
    }

    /// How many lines were dropped since the start.
    pub(super) const fn dropped_ever(&self) -> u64 {
        self.dropped_ever
    }

    /// Where the line ends now; see [`Self::is_sent_up_to`].
    pub(super) const fn end(&self) -> u64 {
        self.next_number
    }

    /// Whether all that was in line when it ended at `end` is sent (or dropped).
    pub(super) fn is_sent_up_to(&self, end: u64) -> bool {
        self.waiting.front().is_none_or(|batch| batch.number >= end)
    }

    /// The next lines to be sent.
    pub(super) fn next(&mut self) -> Option<ToBroker> {
        let mut batch = self.waiting.pop_front()?;
        if let Some(dropped) = self.dropped.remove(&batch.key()) {
            // The line takes the number of the last one lost, so that those after it keep theirs.
            let at_ms = batch.lines.first().map(|line| line.at_ms).unwrap_or_default();
            let text = format!("[{dropped} lines were lost while the broker could not be reached]\n");
            batch.lines.insert(0, LogLine { text, at_ms, stderr: true });
            batch.first = batch.first.saturating_sub(1);
        }
        let message =
            ToBroker::RunLogs { run: batch.run, step: batch.step, first: batch.first, lines: batch.lines.clone() };
        self.unpinged_bytes += batch.bytes;
        self.in_flight.push_back((self.next_ping, batch));
        Some(message)
    }

    /// There is a new connection: what is not known to have arrived is to be sent again.
    pub(super) fn resend(&mut self) {
        self.unpinged_bytes = 0;
        while let Some((_, batch)) = self.in_flight.pop_back() {
            self.waiting.push_front(batch);
        }
    }

    /// Forgets a run's lines; says whether there is more room now.
    pub(super) fn forget(&mut self, run: HeldRun) -> bool {
        let before = self.bytes;
        self.waiting.retain(|batch| batch.run != run);
        self.in_flight.retain(|(_, batch)| batch.run != run);
        self.dropped.retain(|(dropped, _), _| *dropped != run);
        self.bytes = self.waiting.iter().chain(self.in_flight.iter().map(|(_, batch)| batch)).map(|b| b.bytes).sum();
        self.bytes < before
    }

    /// The number of a ping to send when lines of at least `bytes_min` were sent since the last one.
    pub(super) fn next_ping(&mut self, bytes_min: usize) -> Option<u64> {
        if self.unpinged_bytes < bytes_min {
            return None;
        }
        self.unpinged_bytes = 0;
        let ping = self.next_ping;
        self.next_ping += 1;
        Some(ping)
    }

    /// A ping was answered: whatever was sent before it has arrived.
    pub(super) fn on_pong(&mut self, ping: u64) {
        while let Some((_, batch)) = self.in_flight.pop_front_if(|(after, _)| *after <= ping) {
            self.bytes -= batch.bytes;
        }
    }

    #[cfg(test)]
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use protocol::id::{JobId, UnixMillis};

    use super::*;

    fn batch(run: u32, first: u64, lines: usize, bytes: usize) -> Batch {
        let line = LogLine { text: "x".repeat(bytes), at_ms: UnixMillis(1), stderr: false };
        let run = HeldRun { job: JobId::from_bytes([1; 32]), run };
        Batch::new(run, LogStep::Run, first, vec![line; lines])
    }

    fn sent(backlog: &mut Backlog) -> Vec<(u32, u64, Vec<String>)> {
        let texts = |lines: Vec<LogLine>| lines.into_iter().map(|line| line.text.chars().take(20).collect()).collect();
        std::iter::from_fn(|| backlog.next())
            .map(|message| {
                let ToBroker::RunLogs { run, first, lines, .. } = message else { panic!("{message:?}") };
                (run.run, first, texts(lines))
            })
            .collect()
    }

    #[test]
    fn a_run_whose_last_lines_were_pushed_out_by_another_says_so() {
        let mut backlog = Backlog::default();
        backlog.push(batch(1, 0, 3, 10));
        backlog.push(batch(1, 3, 2, 10));
        let end = backlog.end();
        for number in 0..20 {
            backlog.push(batch(2, number, 1, LOG_BYTES_MAX / 10));
        }
        assert!(backlog.bytes() <= LOG_BYTES_MAX);
        assert!(!backlog.is_sent_up_to(end), "the word about them is yet to be sent");
        let told = sent(&mut backlog);
        // It takes the number of the last line that was lost.
        assert_eq!((told[0].0, told[0].1), (1, 4));
        assert_eq!(told[0].2, ["[5 lines were lost w"]);
        assert_eq!(told[1].0, 2);
        assert!(told[1].2[0].starts_with("[1"), "{:?}", told[1].2);
        let numbers: Vec<u64> = told[2..].iter().map(|(_, first, _)| *first).collect();
        assert!(numbers.iter().copied().eq(told[1].1 + 2..20), "none is lost after the gap: {numbers:?}");
        assert!(backlog.is_sent_up_to(end));
    }

    #[test]
    fn runs_that_are_pushed_out_again_and_again_take_one_place_each() {
        let mut backlog = Backlog::default();
        for number in 0..1000 {
            backlog.push(batch(1, number, 1, 10));
            backlog.push(batch(2, number, 1, LOG_BYTES_MAX / 2));
            assert!(backlog.waiting.len() <= 4, "{}", backlog.waiting.len());
        }
        let told = sent(&mut backlog);
        let end = |run| {
            let of_run = told.iter().filter(|(of, ..)| *of == run);
            of_run.map(|(_, first, lines)| first + lines.len() as u64).max()
        };
        assert_eq!((end(1), end(2)), (Some(1000), Some(1000)));
    }
}
