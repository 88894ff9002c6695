//! Counters for operators; none of them names a queue.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::journal::JournalStats;

/// Counted since the broker started.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) submits: AtomicU64,
    pub(crate) claims: AtomicU64,
    pub(crate) finishes: AtomicU64,
    pub(crate) sockets: AtomicU64,
    pub(crate) snapshots_for_lag: AtomicU64,
}

/// What an operator watches.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Queues with a running task.
    pub live_queues: u64,
    /// Submissions accepted.
    pub submits: u64,
    /// Runs granted.
    pub claims: u64,
    /// Runs finished.
    pub finishes: u64,
    /// Open sockets.
    pub sockets: u64,
    /// Times a page fell behind and was given a fresh snapshot.
    pub snapshots_for_lag: u64,
    /// The journal's own.
    pub journal: JournalStats,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self, live_queues: usize, journal: JournalStats) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            live_queues: live_queues as u64,
            submits: read(&self.submits),
            claims: read(&self.claims),
            finishes: read(&self.finishes),
            sockets: read(&self.sockets),
            snapshots_for_lag: read(&self.snapshots_for_lag),
            journal,
        }
    }
}
