//! How long to go on trying when sockets break.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::fold::FollowError;
use crate::socket::SocketError;

/// The first pause after a socket broke.
const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// The longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long a broker may be away: it restarts in seconds, a machine in a minute or two.
const AWAY_MAX: Duration = Duration::from_secs(180);
/// How often a state that does not add up is thrown away for a fresh one: once may be a slip, this often is a fault.
const FRESH_STARTS_MAX: u32 = 3;

/// Whether to start from a snapshot again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// From where it was.
    Resume,
    /// From a snapshot.
    Afresh,
}

/// What is left of the patience with a broker.
#[derive(Debug)]
pub(super) struct Patience {
    backoff: Duration,
    fresh_starts: u32,
    /// When it was last heard of.
    last_good: Option<Instant>,
}

impl Patience {
    pub(super) const fn new() -> Self {
        Self { backoff: BACKOFF_MIN, fresh_starts: 0, last_good: None }
    }

    /// It was heard of.
    pub(super) fn renew(&mut self) {
        self.last_good = Some(Instant::now());
    }

    /// Waits until the next try, or gives the error back: it will not do better, or there were tries enough.
    pub(super) async fn after(&mut self, error: anyhow::Error, note: impl FnOnce(&str)) -> anyhow::Result<Again> {
        let is_transient = error.downcast_ref().is_some_and(SocketError::is_transient)
            || error.downcast_ref().is_some_and(FollowError::is_transient);
        let again = match error.downcast_ref().is_some_and(FollowError::needs_snapshot) {
            true => Again::Afresh,
            false => Again::Resume,
        };
        self.fresh_starts += u32::from(again == Again::Afresh);
        // When nobody was ever there: that is for the user to look at, now.
        let Some(last_good) = self.last_good else { return Err(error) };
        if !is_transient || self.fresh_starts > FRESH_STARTS_MAX {
            return Err(error);
        }
        let away = Instant::now().duration_since(last_good);
        if away > AWAY_MAX {
            let text = format!("gave up after {} s; what was submitted goes on without us", AWAY_MAX.as_secs());
            return Err(error.context(text));
        }
        if away < BACKOFF_MAX {
            self.backoff = BACKOFF_MIN;
            note(&format!("{error}; trying again"));
        }
        sleep(self.backoff).await;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        Ok(again)
    }
}
