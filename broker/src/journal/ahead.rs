//! States that are read before anyone asks for them.
//!
//! A start opens the event store on one thread and has nothing else to do; the largest snapshots are read meanwhile, and what
//! filling the store had to fold is kept, so that the first look at a long queue does not do both again. All of it is let go
//! of a moment later. A state from here is checked against the records like one from disk.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::id::QueueKey;
use tokio::time::Instant;
use tracing::warn;

use super::snapshot::{Snapshots, Start};

/// Snapshots below this many bytes are read in a few milliseconds, when they are asked for.
const READ_BYTES_MIN: u64 = 1024 * 1024;
/// How many bytes of snapshots are read ahead; in memory a state takes about three times as many.
const READ_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// In how many queues' folders the largest snapshots are looked for: some milliseconds.
const LOOKED_AT_MAX: usize = 1024;
/// How many states that were folded are kept: a start after a crash touches a few busy queues.
const KEPT_MAX: usize = 16;
/// How long states wait to be asked for: queues that are due are loaded in the first seconds.
const KEPT: Duration = Duration::from_secs(30);

#[derive(Default)]
struct States {
    /// Whether anything is taken; not before the reading begins, nor after it is over.
    open: bool,
    /// The queue that is being read.
    reading: Option<QueueKey>,
    ready: HashMap<QueueKey, Start>,
    /// Asked for before they were read.
    passed: HashSet<QueueKey>,
}

/// States that are ready before anyone asks for them.
#[derive(Default)]
pub(crate) struct Ahead {
    states: Mutex<States>,
    changed: Condvar,
}

/// Frees those that wait for the state that is being read, however that ends.
struct Read<'a>(&'a Ahead);

impl Drop for Read<'_> {
    fn drop(&mut self) {
        self.0.states().reading = None;
        self.0.changed.notify_all();
    }
}

impl Ahead {
    fn states(&self) -> MutexGuard<'_, States> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to read, on a thread of its own that ends by itself.
    pub(crate) fn begin(self: &Arc<Self>, snapshots: &Arc<Snapshots>) {
        self.states().open = true;
        let (ahead, snapshots) = (Arc::clone(self), Arc::clone(snapshots));
        let thread = std::thread::Builder::new().name("journal-ahead".to_owned()).spawn(move || ahead.run(&snapshots));
        if let Err(error) = thread {
            warn!("nothing is read ahead: {error}");
            self.end();
        }
    }

    fn run(&self, snapshots: &Snapshots) {
        self.read(snapshots, READ_BYTES_MIN);
        let until = Instant::now() + KEPT;
        let mut states = self.states();
        while states.open {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            states = self.changed.wait_timeout(states, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(states);
        self.end();
    }

    fn read(&self, snapshots: &Snapshots, bytes_min: u64) {
        let mut left = READ_BYTES_MAX;
        for (queue, bytes) in snapshots.large(bytes_min, LOOKED_AT_MAX) {
            if bytes > left {
                continue;
            }
            left -= bytes;
            {
                let mut states = self.states();
                if !states.open {
                    return;
                }
                if states.passed.contains(&queue) || states.ready.contains_key(&queue) {
                    continue;
                }
                states.reading = Some(queue);
            }
            let done = Read(self);
            let start = snapshots.load(queue).next();
            let mut states = self.states();
            if let (true, Some(start)) = (states.open, start) {
                states.ready.insert(queue, start);
            }
            drop(states);
            drop(done);
        }
    }

    /// The state that is ready of `queue`, or being read; it is handed out once.
    pub(crate) fn take(&self, queue: QueueKey) -> Option<Start> {
        let mut states = self.states();
        while states.reading == Some(queue) {
            states = self.changed.wait(states).unwrap_or_else(PoisonError::into_inner);
        }
        let ready = states.ready.remove(&queue);
        if states.open {
            states.passed.insert(queue);
        }
        ready
    }

    /// Keeps a state that was folded for another purpose.
    pub(crate) fn keep(&self, start: Start) {
        let mut states = self.states();
        if states.open && states.ready.len() < KEPT_MAX {
            states.ready.insert(start.state.queue(), start);
        }
    }

    /// Lets go of everything; nothing is read or kept any more.
    pub(crate) fn end(&self) {
        let mut states = self.states();
        let gone = std::mem::take(&mut *states);
        states.reading = gone.reading;
        drop(states);
        drop(gone.ready);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use protocol::event::Event;
    use protocol::id::UnixMillis;
    use protocol::queue::QueueState;
    use protocol::record::{RECORD_VERSION, Record};

    use super::super::snapshot::Tail;
    use super::*;

    fn saved(snapshots: &Snapshots, queue: u8, events: u64) -> QueueState {
        let mut state = QueueState::new(QueueKey::from_bytes([queue; 16]));
        for seq in 1..=events {
            let event =
                Event::WorkerJoined { worker: format!("worker-{seq}").parse().unwrap(), version: String::new() };
            state.apply_bytes(&Record { v: RECORD_VERSION, seq, at_ms: UnixMillis(seq), event }.encode()).unwrap();
        }
        snapshots.save(&state).unwrap();
        state
    }

    fn ready() -> Ahead {
        Ahead { states: Mutex::new(States { open: true, ..States::default() }), changed: Condvar::new() }
    }

    #[test]
    fn large_snapshots_are_there_once_and_small_ones_are_left() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(super::super::snapshot::SNAPSHOTS)).unwrap();
        let snapshots = Snapshots::new(dir.path());
        let (large, small, passed) = (saved(&snapshots, 1, 99), saved(&snapshots, 2, 1), saved(&snapshots, 3, 98));
        let ahead = ready();
        assert!(ahead.take(passed.queue()).is_none(), "asked for too early");
        ahead.read(&snapshots, 1_000);
        let start = ahead.take(large.queue()).unwrap();
        assert_eq!(start.tail, Tail { events: 0, bytes: 0, snapshot_bytes: large.encode().len() as u64 });
        assert_eq!(start.state, large);
        for queue in [&large, &small, &passed] {
            assert!(ahead.take(queue.queue()).is_none());
        }
    }

    #[test]
    fn what_was_folded_is_kept_until_the_end() {
        let start = |queue| Start { state: QueueState::new(QueueKey::from_bytes([queue; 16])), tail: Tail::default() };
        let (ahead, queue) = (ready(), QueueKey::from_bytes([1; 16]));
        ahead.keep(start(1));
        assert!(ahead.take(queue).is_some());
        ahead.keep(start(1));
        ahead.end();
        ahead.keep(start(1));
        assert!(ahead.take(queue).is_none());
        assert!(ahead.states().ready.is_empty() && ahead.states().passed.is_empty());
        let never_begun = Ahead::default();
        never_begun.keep(start(1));
        assert!(never_begun.take(queue).is_none());
    }

    #[test]
    fn whoever_asks_for_the_state_that_is_being_read_gets_it() {
        let (ahead, queue) = (Arc::new(ready()), QueueKey::from_bytes([1; 16]));
        ahead.states().reading = Some(queue);
        let asking = std::thread::spawn({
            let ahead = Arc::clone(&ahead);
            move || ahead.take(queue)
        });
        let read = Read(&ahead);
        ahead.states().ready.insert(queue, Start { state: QueueState::new(queue), tail: Tail::default() });
        drop(read);
        assert!(asking.join().unwrap().is_some());
        assert!(ahead.take(queue).is_none());
    }
}
