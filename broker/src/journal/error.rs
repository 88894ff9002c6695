//! What can go wrong, as far as a caller can act on it.

use std::io;
use std::sync::Arc;

/// Why the journal did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has the folder open.
    #[error("the data folder {dir} is in use by another broker (process {holder}); stop it, or choose another folder")]
    InUse {
        /// The folder.
        dir: String,
        /// The process that has it, as far as it is known.
        holder: String,
    },
    /// Reading or writing failed; what was asked was not done.
    #[error("{what} failed: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// How it failed.
        source: Arc<io::Error>,
    },
    /// A write failed earlier: nothing is taken any more, and what waits is not acknowledged. Only a new start helps.
    #[error("the journal has stopped: {why}")]
    Failed {
        /// Why.
        why: Arc<str>,
    },
    /// The journal is closed.
    #[error("the journal is closed")]
    Closed,
    /// More waits to be written than may; see `Journal::room`.
    #[error("too much waits to be written")]
    Busy,
    /// Damage touches this queue. Its files are left as they are.
    #[error("queue {queue} is quarantined: {text}")]
    Quarantined {
        /// The queue, shortened.
        queue: String,
        /// What is wrong.
        text: String,
    },
    /// The caller broke a rule.
    #[error("{what}")]
    Invalid {
        /// Which.
        what: &'static str,
    },
    /// The event store can neither be read nor made again.
    #[error("the event store cannot be used: {text}")]
    Store {
        /// Why.
        text: String,
    },
    /// A segment was written by a newer build.
    #[error("{path} has format version {version}, which this build cannot read")]
    Newer {
        /// The file.
        path: String,
        /// Its version.
        version: u32,
    },
}

impl JournalError {
    /// `what` was being done.
    pub(crate) fn io(what: &'static str, source: io::Error) -> Self {
        Self::Io { what, source: Arc::new(source) }
    }

    /// A write or a sync that failed.
    pub(crate) fn failed(error: &io::Error) -> Self {
        Self::Failed { why: error.to_string().into() }
    }
}
