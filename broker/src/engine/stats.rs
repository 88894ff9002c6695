//! Counters for operators; none of them names a queue.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use protocol::id::{QueueKey, UnixMillis};

use crate::clock;
use crate::journal::JournalStats;
use crate::rules::core::Core;

/// Counted since the broker started.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) submits: AtomicU64,
    pub(crate) claims: AtomicU64,
    pub(crate) finishes: AtomicU64,
    pub(crate) sockets: AtomicU64,
    pub(crate) snapshots_for_lag: AtomicU64,
    pub(crate) outbox_drops: AtomicU64,
    /// What there is to do in each queue that has something to do, also while it is put away; bounded by the queues on disk.
    busy: Mutex<HashMap<QueueKey, Busy>>,
}

/// What there is to do in one queue.
#[derive(Clone, Copy, Debug)]
struct Busy {
    waiting: u64,
    running: u64,
    /// When the job that is first in line was queued.
    first_queued_at_ms: Option<UnixMillis>,
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
    /// Times a page's line was full and it missed something, for which it gets a fresh snapshot.
    pub outbox_drops: u64,
    /// Jobs that wait, in all queues that were used since the start.
    pub waiting: u64,
    /// Jobs that run, in the same.
    pub running: u64,
    /// How long the jobs that are first in their lines have waited: the longest of them, in milliseconds.
    pub first_waiting_ms: Option<u64>,
    /// The journal's own.
    pub journal: JournalStats,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes what there is to do in a queue.
    pub(crate) fn note(&self, core: &Core) {
        let state = core.state();
        let (waiting, running) = (state.waiting_count() as u64, state.running_count() as u64);
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting + running == 0 {
            busy.remove(&core.queue());
        } else {
            let first_queued_at_ms = state.waiting().next().map(|(_, job)| job.queued_at_ms);
            busy.insert(core.queue(), Busy { waiting, running, first_queued_at_ms });
        }
    }

    pub(crate) fn stats(&self, live_queues: usize, journal: JournalStats) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let now = clock::now();
        let (mut waiting, mut running, mut first_waiting_ms) = (0, 0, None);
        for busy in self.busy.lock().unwrap_or_else(PoisonError::into_inner).values() {
            waiting += busy.waiting;
            running += busy.running;
            first_waiting_ms = first_waiting_ms.max(busy.first_queued_at_ms.map(|queued| now.since(queued)));
        }
        Stats {
            live_queues: live_queues as u64,
            submits: read(&self.submits),
            claims: read(&self.claims),
            finishes: read(&self.finishes),
            sockets: read(&self.sockets),
            snapshots_for_lag: read(&self.snapshots_for_lag),
            outbox_drops: read(&self.outbox_drops),
            waiting,
            running,
            first_waiting_ms,
            journal,
        }
    }
}
