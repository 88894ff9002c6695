//! Telling followers that a log has grown.
//!
//! There is one entry per followed log, and it goes with its last follower, so the map is bounded by those who follow.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use protocol::native::LogKind;
use tokio::sync::watch;

use super::{Place, lock};

type Key = (Place, LogKind);

#[derive(Debug, Default)]
pub(super) struct Watches {
    followed: Mutex<HashMap<Key, watch::Sender<()>>>,
}

impl Watches {
    pub(super) fn watch(watches: &Arc<Self>, place: Place, kind: LogKind) -> LogWatch {
        let mut followed = lock(&watches.followed);
        let sender = followed.entry((place, kind)).or_insert_with(|| watch::Sender::new(()));
        LogWatch { grown: sender.subscribe(), key: (place, kind), watches: Arc::clone(watches) }
    }

    pub(super) fn tell(&self, place: Place, kind: LogKind) {
        if let Some(sender) = lock(&self.followed).get(&(place, kind)) {
            sender.send_replace(());
        }
    }
}

/// One follower's ear on one log.
#[derive(Debug)]
pub struct LogWatch {
    grown: watch::Receiver<()>,
    key: Key,
    watches: Arc<Watches>,
}

impl LogWatch {
    /// Resolves when lines may have come since this was made or last resolved. Safe to drop half-way.
    pub async fn changed(&mut self) {
        // The sender lives as long as this does; see `drop`.
        if self.grown.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for LogWatch {
    fn drop(&mut self) {
        let mut followed = lock(&self.watches.followed);
        // This one still counts here.
        if followed.get(&self.key).is_some_and(|sender| sender.receiver_count() <= 1) {
            followed.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::id::{JobId, QueueKey};

    use super::*;

    fn place() -> Place {
        Place { queue: QueueKey::from_bytes([1; 16]), job: JobId::from_bytes([2; 32]) }
    }

    #[tokio::test]
    async fn a_follower_hears_of_lines_that_came_after_it_began() {
        let watches = Arc::new(Watches::default());
        watches.tell(place(), LogKind::Run);
        let mut run = Watches::watch(&watches, place(), LogKind::Run);
        let mut build = Watches::watch(&watches, place(), LogKind::Build);
        watches.tell(place(), LogKind::Run);
        run.changed().await;
        tokio::select! {
            biased;
            () = run.changed() => panic!("told twice of one change"),
            () = build.changed() => panic!("told of another log"),
            () = std::future::ready(()) => {}
        }
    }

    #[test]
    fn the_last_follower_takes_the_entry_with_it() {
        let watches = Arc::new(Watches::default());
        let one = Watches::watch(&watches, place(), LogKind::Run);
        let two = Watches::watch(&watches, place(), LogKind::Run);
        drop(one);
        assert_eq!(lock(&watches.followed).len(), 1);
        drop(two);
        assert_eq!(lock(&watches.followed).len(), 0);
    }
}
