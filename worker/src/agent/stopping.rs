//! How the worker comes to its end.

use std::time::Duration;

use protocol::native::StopReason;
use tokio::time::Instant;
use tracing::info;

use super::lane::Links;
use super::{Agent, ExitSummary};
use crate::observe::Standing;
use crate::shutdown::ShutdownMode;

/// How long a leaving worker waits for acknowledgements: they are on disk anyway.
const LEAVE: Duration = Duration::from_secs(3);
/// How long killing and handing back may take.
const KILL: Duration = Duration::from_secs(20);
/// How long the sockets may take to close.
const CLOSE: Duration = Duration::from_secs(2);

/// Where the worker stands between work and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Working,
    /// Takes nothing new, until the time is up.
    Draining(Instant),
    /// Its runs are being killed and handed back.
    Killing(Instant),
    /// Its runs are left.
    Leaving(Instant),
}

impl Mode {
    pub(super) const fn standing(self) -> Standing {
        match self {
            Self::Working => Standing::Working,
            Self::Draining(_) => Standing::Draining,
            Self::Killing(_) | Self::Leaving(_) => Standing::Stopping,
        }
    }

    /// Waits for the end of the mode's time.
    pub(super) async fn deadline(self) {
        match self {
            Self::Working => std::future::pending().await,
            Self::Draining(until) | Self::Killing(until) | Self::Leaving(until) => {
                tokio::time::sleep_until(until).await
            }
        }
    }
}

impl Agent {
    pub(super) fn on_shutdown(&mut self, mode: ShutdownMode) {
        info!("stopping ({mode:?}) with {} runs", self.live.len());
        match mode {
            ShutdownMode::Leave => self.leave(),
            ShutdownMode::Drain { limit } => self.mode = Mode::Draining(Instant::now() + limit),
            ShutdownMode::Kill => {
                self.mode = Mode::Killing(Instant::now() + KILL);
                for live in self.live.values_mut() {
                    live.is_to_return = true;
                    live.stop.send_replace(Some(StopReason::Superseded));
                }
            }
        }
        self.claim();
    }

    pub(super) fn on_deadline(&mut self) {
        match self.mode {
            Mode::Draining(_) => self.leave(),
            Mode::Killing(_) | Mode::Leaving(_) => {
                self.clearing.give_up();
                self.live.clear();
                self.is_over = true;
            }
            Mode::Working => {}
        }
    }

    /// Leaves what runs to the next start.
    pub(super) fn leave(&mut self) {
        self.mode = Mode::Leaving(Instant::now() + LEAVE);
        self.let_go(|_| true);
    }

    pub(super) fn is_done(&self) -> bool {
        let is_idle = self.live.is_empty() && self.unsettled() == 0 && self.clearing.is_empty();
        self.is_over || (!matches!(self.mode, Mode::Working) && is_idle)
    }

    /// Closes the lines and says how it was.
    pub(super) async fn close(mut self, links: Links) -> ExitSummary {
        self.tasks.shutdown().await;
        self.summary.unacknowledged = self.lanes.iter().map(|lane| lane.context.outbox.unsettled()).sum();
        self.lanes.iter().for_each(|lane| lane.context.outbox.close());
        links.close(CLOSE).await;
        for lane in &self.lanes {
            lane.store.flush().await;
        }
        self.summary
    }
}
