//! A queue's state, folded from what the broker sends with the same code as the broker's. No IO, no clock.

use protocol::PROTOCOL_VERSION;
use protocol::event::Event;
use protocol::id::{Head, QueueKey, Seq};
use protocol::native::{Hello, ToBroker};
use protocol::queue::{ApplyError, QueueState, StateError};
use protocol::raw::{RecordBytes, StateBytes};

/// Why following cannot go on as it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    /// Another version of the dialect.
    #[error(
        "the broker speaks version {0} of the dialect, this program version {PROTOCOL_VERSION}: update the older one"
    )]
    Version(u16),
    /// The broker has fewer records than it has shown before.
    #[error("the broker's log went back from {seen} to {now}: it has lost records that it had confirmed")]
    WentBack {
        /// What it has shown.
        seen: Seq,
        /// What it has.
        now: Seq,
    },
    /// The broker refuses the conversation.
    #[error("the broker refuses: {message} ({code})")]
    Rejected {
        /// Its word for programs.
        code: String,
        /// Its sentence for people.
        message: String,
    },
    /// The state that was sent cannot be read.
    #[error("the broker sent a state that cannot be read: {0}")]
    State(#[from] StateError),
    /// A record does not continue the state: start again from a snapshot.
    #[error("the broker sent a record that does not continue its log: {0}")]
    Record(#[from] ApplyError),
    /// Records came before any state.
    #[error("the broker sent records before a state")]
    NoState,
}

/// Refusals that pass: the broker is on its way down and comes back, or lost us for a moment.
const PASSING: [&str; 3] = ["stopping", "busy", "silent"];

impl FollowError {
    /// Whether a new socket may do better.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Rejected { code, .. } => PASSING.contains(&code.as_str()),
            Self::State(_) | Self::Record(_) | Self::NoState => true,
            Self::Version(_) | Self::WentBack { .. } => false,
        }
    }

    /// Whether it has to start from a fresh snapshot.
    pub(crate) const fn needs_snapshot(&self) -> bool {
        matches!(self, Self::State(_) | Self::Record(_) | Self::NoState)
    }
}

/// A queue as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Fold {
    state: Option<QueueState>,
    queue: Option<QueueKey>,
}

impl Fold {
    /// What to say first on a new socket.
    pub(super) fn hello(&self) -> ToBroker {
        let resume = self.state.as_ref().map(QueueState::head);
        ToBroker::Hello(Hello { version: PROTOCOL_VERSION, version_min: None, watch: true, resume, worker: None })
    }

    /// The state; none before the first snapshot.
    pub(super) const fn state(&self) -> Option<&QueueState> {
        self.state.as_ref()
    }

    /// Forgets the state, so that the next socket starts from a snapshot.
    pub(super) fn forget(&mut self) {
        self.state = None;
    }

    /// Takes in a welcome.
    pub(super) fn welcomed(&mut self, version: u16, queue: QueueKey, head: Head) -> Result<(), FollowError> {
        if version != PROTOCOL_VERSION {
            return Err(FollowError::Version(version));
        }
        // Of another queue (a broker with other data at the same address): nothing that was folded holds.
        if self.queue.replace(queue).is_some_and(|known| known != queue) {
            self.state = None;
        }
        match &self.state {
            Some(state) if state.head().seq > head.seq => {
                Err(FollowError::WentBack { seen: state.head().seq, now: head.seq })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Takes in a snapshot.
    pub(super) fn snapshot(&mut self, state: &StateBytes) -> Result<(), FollowError> {
        self.state = Some(QueueState::decode(&state.0)?);
        Ok(())
    }

    /// Takes in a record; answers what happened, unless that was known.
    pub(super) fn record(&mut self, seq: Seq, record: &RecordBytes) -> Result<Option<Event>, FollowError> {
        let state = self.state.as_mut().ok_or(FollowError::NoState)?;
        if seq <= state.head().seq {
            return Ok(None);
        }
        Ok(Some(state.apply_bytes(&record.0)?.event))
    }
}
