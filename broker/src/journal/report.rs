//! What opening found, and what running counts.

use protocol::id::QueueKey;

use super::damage::Quarantined;
use super::scan::Loss;
use crate::histogram::Times;

/// What opening a journal found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Records in the event store.
    pub records: u64,
    /// Records that the store lacked and that were filled in from the segments.
    pub filled: u64,
    /// Where the log ends.
    pub position: u64,
    /// Bytes of writes that were never acknowledged, and were cut off the end.
    pub torn_bytes: u64,
    /// Why the event store was made again, if it was.
    pub rebuilt: Option<String>,
    /// What is wrong with the segments.
    pub losses: Vec<Loss>,
    /// The queues that are not served because of it.
    pub quarantined: Vec<Quarantined>,
    /// Queues that were quarantined and are whole again.
    pub cleared: Vec<QueueKey>,
}

impl OpenReport {
    /// What people should know of it, a line each; none when all was well.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.torn_bytes > 0 {
            lines.push(format!("cut {} bytes of a write that was never acknowledged off the journal", self.torn_bytes));
        }
        if let Some(why) = &self.rebuilt {
            lines.push(format!("made the event store again from the segments ({} records): {why}", self.records));
        }
        for loss in &self.losses {
            lines.push(format!("segment {}, byte {}: {}", loss.segment, loss.offset, loss.what));
        }
        for one in &self.quarantined {
            lines.push(format!("queue {} is quarantined: {}", one.queue.short(), one.text));
        }
        for queue in &self.cleared {
            lines.push(format!("queue {} is whole again", queue.short()));
        }
        lines
    }
}

/// What an operator watches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalStats {
    /// Bytes of log.
    pub bytes: u64,
    /// Segment files.
    pub segments: u64,
    /// Writes since the start, each with everything that waited.
    pub groups: u64,
    /// Records written since the start.
    pub records: u64,
    /// Syncs since the start.
    pub syncs: u64,
    /// How long they took.
    pub sync_times: Times,
    /// Bytes that wait to be written.
    pub waiting_bytes: u64,
    /// Bytes of log that are not in the event store yet.
    pub index_lag_bytes: u64,
    /// Times the event store was made again since the start.
    pub rebuilds: u64,
    /// Times one queue was read again from the segments since the start.
    pub repairs: u64,
    /// Queues that are not served because of damage.
    pub quarantined: u64,
    /// Whether all segments have been read through since the start.
    pub scrubbed: bool,
}
