//! What the broker has told its peers, as lines that can be kept: each of them must be found in the journal afterwards.
#![allow(dead_code, reason = "each example uses its part")]

use protocol::id::{Digest, Head, JobId, QueueKey, WorkerId};
use protocol::native::HeldRun;
use serde::{Deserialize, Serialize};

/// Something that the broker told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// The queue.
    pub(crate) queue: QueueKey,
    /// What.
    pub(crate) fact: Fact,
}

/// What was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fact {
    /// A submission was acknowledged.
    Queued {
        /// The head in the acknowledgement.
        at: Head,
        /// The job.
        job: JobId,
        /// The blake3 of the definition that was sent.
        body: Digest,
    },
    /// A cancel was acknowledged.
    Cancelled {
        /// The head in the acknowledgement.
        at: Head,
        /// The job.
        job: JobId,
    },
    /// A run was granted.
    Claimed {
        /// The run.
        run: HeldRun,
        /// To whom.
        worker: WorkerId,
    },
    /// A run's end was acknowledged.
    Finished {
        /// The head in the acknowledgement.
        at: Head,
        /// The run.
        run: HeldRun,
        /// Whose it was.
        worker: WorkerId,
        /// The blake3 of the result that was sent.
        result: Digest,
    },
    /// A worker came back with a run and was told to go on.
    Resumed {
        /// The run.
        run: HeldRun,
        /// Whose it is.
        worker: WorkerId,
    },
    /// A worker was told that a run is not its own any more.
    Gone {
        /// The run.
        run: HeldRun,
        /// Whose it was.
        worker: WorkerId,
    },
    /// An upload was acknowledged.
    Stored {
        /// The blob's key, the sha256 of its bytes.
        key: String,
        /// How many bytes it has.
        bytes: u64,
    },
    /// A watcher was shown the queue up to here.
    Shown {
        /// The head.
        at: Head,
    },
}

impl Told {
    /// Whether it answers a command (or grants a run), which is what is counted.
    pub(crate) const fn is_acknowledgement(&self) -> bool {
        match self.fact {
            Fact::Queued { .. }
            | Fact::Cancelled { .. }
            | Fact::Claimed { .. }
            | Fact::Finished { .. }
            | Fact::Stored { .. } => true,
            Fact::Resumed { .. } | Fact::Gone { .. } | Fact::Shown { .. } => false,
        }
    }

    /// As one line of text, which starts with `{`.
    pub(crate) fn line(&self) -> String {
        serde_json::to_string(self).expect("it is plain data")
    }

    /// Reads [`Told::line`].
    pub(crate) fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }
}

/// The runs that were granted to a worker in a queue and are, as far as was told, still its own.
pub(crate) fn held_by(told: &[Told], queue: QueueKey, worker: &WorkerId) -> Vec<HeldRun> {
    let mut held = Vec::new();
    for one in told.iter().filter(|one| one.queue == queue) {
        match &one.fact {
            Fact::Claimed { run, worker: by } if by == worker => held.push(*run),
            Fact::Finished { run, worker: by, .. } | Fact::Gone { run, worker: by } if by == worker => {
                held.retain(|other| other != run);
            }
            Fact::Claimed { .. }
            | Fact::Finished { .. }
            | Fact::Gone { .. }
            | Fact::Queued { .. }
            | Fact::Cancelled { .. }
            | Fact::Resumed { .. }
            | Fact::Stored { .. }
            | Fact::Shown { .. } => {}
        }
    }
    held
}
