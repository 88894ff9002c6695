//! The state as a message: one for all who come together, and few in memory at a time.

use std::sync::{Arc, Weak};
use std::time::Duration;

use protocol::id::Head;
use protocol::native::FromBroker;
use protocol::queue::QueueState;
use protocol::raw::StateBytes;
use tokio::time::Instant;

use crate::engine::outbox::Shared;

/// How much longer than it takes to make a snapshot the next is not made: making them takes at most a tenth of a queue's time,
/// however many pages come while the state changes.
const REST_FACTOR: u32 = 9;

/// One that takes less to make is made whenever it is wanted.
const MADE_QUICKLY: Duration = Duration::from_micros(500);

/// Snapshots that may be under way to slow readers at a time. Each is of another moment; whoever has the oldest is cut off when one
/// more is needed.
pub(super) const UNDER_WAY_MAX: usize = 6;

/// From so many on the next has to wait, for slow readers to be done with theirs.
const UNDER_WAY_MANY: usize = 4;

/// How long it waits then, for each that is too many.
const WAIT_FOR_SLOW: Duration = Duration::from_secs(3);

/// Snapshots that were made.
#[derive(Default)]
pub(super) struct Snapshots {
    newest: Option<(Head, Arc<Shared>)>,
    /// Older ones that someone is still sent, oldest first.
    under_way: Vec<Weak<Shared>>,
    /// When the newest was made, and how long it took.
    made: Option<(Instant, Duration)>,
}

impl Snapshots {
    /// The state as a message; `None` when none may be made yet.
    pub(super) fn of(&mut self, state: &QueueState, now: Instant) -> Option<Arc<Shared>> {
        let head = state.head();
        if let Some((of, snapshot)) = &self.newest
            && *of == head
        {
            return Some(Arc::clone(snapshot));
        }
        if self.may_be_made_at().is_some_and(|at| at > now) {
            return None;
        }
        self.forget_newest();
        let begun = Instant::now();
        let state = StateBytes(state.encode().into());
        let snapshot = Shared::new(&FromBroker::Snapshot { head, state });
        let took = begun.elapsed();
        self.made = Some((now + took, took));
        self.newest = Some((head, Arc::clone(&snapshot)));
        Some(snapshot)
    }

    /// The state has changed: the newest is kept only for those who are being sent it.
    pub(super) fn forget_newest(&mut self) {
        if let Some((_, snapshot)) = self.newest.take() {
            self.under_way.push(Arc::downgrade(&snapshot));
        }
        self.under_way.retain(|snapshot| snapshot.strong_count() > 0);
    }

    /// The oldest that is under way, when there are too many.
    pub(super) fn one_too_many(&self) -> Option<Weak<Shared>> {
        (self.under_way.len() > UNDER_WAY_MAX).then(|| self.under_way[0].clone())
    }

    fn may_be_made_at(&self) -> Option<Instant> {
        let (made_at, took) = self.made?;
        let under_way = self.under_way.iter().filter(|snapshot| snapshot.strong_count() > 0).count();
        let too_many = u32::try_from(under_way.saturating_sub(UNDER_WAY_MANY - 1)).unwrap_or(u32::MAX);
        let rest = if took < MADE_QUICKLY { Duration::ZERO } else { took * REST_FACTOR };
        Some(made_at + rest.max(WAIT_FOR_SLOW.saturating_mul(too_many)))
    }
}

#[cfg(test)]
mod tests {
    use protocol::event::Event;
    use protocol::id::{QueueKey, UnixMillis};
    use protocol::record::{RECORD_VERSION, Record};

    use super::*;

    fn change(state: &mut QueueState) {
        let (v, seq) = (RECORD_VERSION, state.head().seq + 1);
        state.apply_bytes(&Record { v, seq, at_ms: UnixMillis(seq), event: Event::PresenceReset {} }.encode()).unwrap();
    }

    #[test]
    fn slow_readers_of_ever_new_states_hold_few_snapshots() {
        let (mut snapshots, mut state) = (Snapshots::default(), QueueState::new(QueueKey::from_bytes([1; 16])));
        let (mut held, mut now) = (Vec::new(), Instant::now());
        for _ in 0..1_000 {
            if let Some(snapshot) = snapshots.of(&state, now) {
                held.push(snapshot);
            }
            change(&mut state);
            snapshots.forget_newest();
            if let Some(oldest) = snapshots.one_too_many() {
                held.retain(|snapshot| !std::ptr::eq(Arc::as_ptr(snapshot), oldest.as_ptr()));
            }
            held.dedup_by(|one, other| Arc::ptr_eq(one, other));
            assert!(held.len() <= UNDER_WAY_MAX + 1, "{}", held.len());
            now += Duration::from_millis(100);
        }
        assert!(held.len() > UNDER_WAY_MANY, "they are still made, however slowly: {}", held.len());
    }

    #[test]
    fn who_comes_before_the_next_change_gets_the_same_one() {
        let (mut snapshots, mut state) = (Snapshots::default(), QueueState::new(QueueKey::from_bytes([1; 16])));
        let now = Instant::now();
        let first = snapshots.of(&state, now).unwrap();
        assert!(Arc::ptr_eq(&first, &snapshots.of(&state, now).unwrap()));
        change(&mut state);
        snapshots.forget_newest();
        let later = now + Duration::from_secs(60);
        assert!(!Arc::ptr_eq(&first, &snapshots.of(&state, later).unwrap()));
    }
}
