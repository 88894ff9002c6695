//! A job that this worker has something to do with, and what the server's word about it means.

use protocol::definition::Needs;
use protocol::id::{RunNumber, UnixMillis, WorkerId};
use protocol::native::RequestId;
use protocol::original::from_server::{JobSeen, Stand};
use protocol::original::preferred;
use protocol::raw::RawJson;

/// How long it is waited whether the server means it that a run is another's, or that one it has not shown since the line
/// broke is gone: its instances may disagree for a moment. The original's workers wait as long.
pub(super) const GRACE_MS: u64 = 6_000;

/// See the module.
#[derive(Debug)]
pub(super) enum Mine {
    /// Claimed, and not known to be ours.
    Claiming(Claiming),
    /// Ours as the server has it, but there is no run of it: no room, or an earlier process lost it.
    Parked(Parked),
    /// A run that was granted to the worker.
    Live(Live),
    /// The worker was told to stop the run, and has not forgotten it.
    Stopping { run: RunNumber },
    /// The run ended, and the server does not show that it knows.
    Reported(Reported),
}

#[derive(Debug)]
pub(super) struct Claiming {
    /// When, by the clock that the server is told.
    pub(super) at: UnixMillis,
    pub(super) since_ms: u64,
    pub(super) said_ms: u64,
    pub(super) needs: Needs,
    pub(super) text: RawJson,
}

#[derive(Debug)]
pub(super) struct Parked {
    pub(super) at: UnixMillis,
    /// Not granted before.
    pub(super) not_before_ms: u64,
}

#[derive(Debug)]
pub(super) struct Live {
    pub(super) run: RunNumber,
    /// When it was claimed; an earlier process may have done that.
    pub(super) at: Option<UnixMillis>,
    pub(super) said_ms: u64,
    /// Whether the worker is known to have taken it.
    pub(super) is_held: bool,
    pub(super) doubt: Doubt,
}

#[derive(Debug)]
pub(super) struct Reported {
    pub(super) run: RunNumber,
    /// As what the worker reported it.
    pub(super) req: RequestId,
    /// When it was claimed.
    pub(super) at: Option<UnixMillis>,
    pub(super) finished: RawJson,
    pub(super) sent_ms: Option<u64>,
    pub(super) doubt: Doubt,
}

impl Mine {
    /// The number of the run that the worker holds.
    pub(super) const fn run(&self) -> Option<RunNumber> {
        match self {
            Self::Claiming(_) | Self::Parked(_) => None,
            Self::Live(Live { run, .. }) | Self::Stopping { run } | Self::Reported(Reported { run, .. }) => Some(*run),
        }
    }
}

/// Whether it is doubtful that the server still wants a run from us.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Doubt {
    /// Whether the server has shown it on this connection, waiting or running.
    was_shown: bool,
    since_ms: Option<u64>,
}

impl Doubt {
    /// Of a run that the server shows right now.
    pub(super) const NONE: Self = Self { was_shown: true, since_ms: None };

    /// The server has told; says whether it is certain that the run is not ours any more.
    pub(super) fn resolve(&mut self, word: Word, now_ms: u64) -> bool {
        match word {
            Word::Ours(_) | Word::Waits | Word::OursByOrder => {
                *self = Self::NONE;
                false
            }
            Word::Gone | Word::Over if self.was_shown => true,
            Word::Gone | Word::Over | Word::Others => {
                now_ms.saturating_sub(*self.since_ms.get_or_insert(now_ms)) >= GRACE_MS
            }
        }
    }

    /// When it is to be looked at again.
    pub(super) fn due_ms(&self) -> Option<u64> {
        self.since_ms.map(|since| since + GRACE_MS)
    }
}

/// What the server says of a job, to this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// It runs here, since then.
    Ours(UnixMillis),
    Waits,
    /// It runs elsewhere too, but we go before that worker.
    OursByOrder,
    /// It runs elsewhere.
    Others,
    /// It ended.
    Over,
    /// There is no such job.
    Gone,
}

impl Word {
    /// Whether the job is, or may be, this worker's.
    pub(super) const fn is_ours(self) -> bool {
        match self {
            Self::Ours(_) | Self::Waits | Self::OursByOrder => true,
            Self::Others | Self::Over | Self::Gone => false,
        }
    }

    pub(super) fn of(seen: Option<&JobSeen>, me: &WorkerId) -> Self {
        match seen.map(|seen| &seen.stand) {
            None => Self::Gone,
            Some(Stand::Finished) => Self::Over,
            Some(Stand::Queued) => Self::Waits,
            Some(Stand::Running { worker, since }) if worker == me.as_str() => Self::Ours(*since),
            Some(Stand::Running { worker, .. }) if preferred::goes_before(me.as_str(), worker) => Self::OursByOrder,
            Some(Stand::Running { .. }) => Self::Others,
        }
    }
}
