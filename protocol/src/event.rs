//! The facts we store. Every later question about a queue is answered by folding these.
//!
//! A stored event lives longer than every binary: add variants and defaulted fields, never rename, retype or reuse one
//! (old shapes that must change meaning go through `record::upcast`).

use serde::{Deserialize, Serialize};

use crate::definition::Needs;
use crate::id::{Digest, ImageId, JobId, Namespace, RunNumber, Seq, UnixMillis, WorkerId};

/// How a submission came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Via {
    /// Over HTTP.
    Http,
    /// Over a websocket.
    Socket,
    /// Copied from another queue.
    Copy,
}

/// How a run ended, as its worker reports it. A non-zero exit code is a `Success`: the container ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RunOutcome {
    /// The container ran to its end, whatever its exit code.
    Success,
    /// The container could not be made, started or collected from.
    Error,
    /// The run was stopped at its time limit.
    TimedOut,
}

/// Why a run was given up without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LostReason {
    /// Its worker was silent for longer than the lease.
    LeaseExpired,
    /// Its worker handed it back unstarted: not counted as an attempt.
    HandedBack,
    /// Its worker came back without it.
    Forgotten,
}

/// One fact about one job, or about the queue itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A job came into the queue to be run.
    JobQueued {
        /// The job.
        job: JobId,
        /// The blake3 of its definition, as received.
        body: Digest,
        /// The namespace it was submitted under.
        #[serde(default, skip_serializing_if = "Namespace::is_default")]
        namespace: Namespace,
        /// How it came in.
        via: Via,
        /// What a worker must offer to run it.
        #[serde(default, skip_serializing_if = "Needs::is_empty")]
        needs: Needs,
        /// Higher goes first; 0 is usual.
        #[serde(default, skip_serializing_if = "is_zero")]
        priority: i32,
        /// Whether the submitter asked for debug output.
        #[serde(default, skip_serializing_if = "is_false")]
        debug: bool,
        /// The number of its newest run in an earlier life in this queue, so that no run number is used twice.
        #[serde(default, skip_serializing_if = "is_none_before")]
        runs_before: RunNumber,
    },
    /// A finished job that had left the queue was asked for again and is answered from what is kept of it.
    JobRecalled {
        /// The job.
        job: JobId,
        /// The blake3 of its definition.
        body: Digest,
        /// The namespace it was asked for under.
        namespace: Namespace,
        /// When it was first queued in that earlier life.
        queued_at_ms: UnixMillis,
        /// When it finished.
        finished_at_ms: UnixMillis,
        /// The run that finished it.
        run: RunNumber,
        /// The worker of that run; absent when the job was abandoned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        worker: Option<WorkerId>,
        /// How it ended.
        outcome: RunOutcome,
        /// The blake3 of its result.
        result: Digest,
        /// The container's exit code, when one ran.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i64>,
    },
    /// The job was submitted (again) under this namespace.
    NamespaceJoined {
        /// The job.
        job: JobId,
        /// The namespace.
        namespace: Namespace,
    },
    /// The job no longer belongs to this namespace.
    NamespaceLeft {
        /// The job.
        job: JobId,
        /// The namespace.
        namespace: Namespace,
    },
    /// A worker was given the job. Starts a new run.
    RunClaimed {
        /// The job.
        job: JobId,
        /// The run's number.
        run: RunNumber,
        /// Who runs it.
        worker: WorkerId,
    },
    /// The run's worker reported its end, with a result.
    RunFinished {
        /// The job.
        job: JobId,
        /// The run.
        run: RunNumber,
        /// How it ended.
        outcome: RunOutcome,
        /// The blake3 of the result's JSON text.
        result: Digest,
        /// The container's exit code, when one ran.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i64>,
        /// The image that really ran.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<ImageId>,
        /// From container start to exit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        duration_ms: Option<u64>,
    },
    /// The run is given up. Its worker may still finish it until a newer run is claimed.
    RunLost {
        /// The job.
        job: JobId,
        /// The run.
        run: RunNumber,
        /// Why.
        why: LostReason,
    },
    /// A lost run's worker came back with it: the run goes on.
    RunResumed {
        /// The job.
        job: JobId,
        /// The run.
        run: RunNumber,
    },
    /// The job waits again, at the front.
    JobRequeued {
        /// The job.
        job: JobId,
    },
    /// Too many runs were lost; the job is given up.
    JobAbandoned {
        /// The job.
        job: JobId,
        /// The blake3 of a result that says why.
        result: Digest,
    },
    /// The last namespace that wanted the job cancelled it.
    JobCancelled {
        /// The job.
        job: JobId,
        /// What the canceller said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// A newer job took the last namespace that wanted this one.
    JobReplaced {
        /// The job.
        job: JobId,
        /// The job that took its place.
        by: JobId,
    },
    /// The job and its result were deleted on request.
    JobDeleted {
        /// The job.
        job: JobId,
    },
    /// A finished job left the live queue; its result stays readable until retention ends.
    JobRemoved {
        /// The job.
        job: JobId,
    },
    /// A worker connected.
    WorkerJoined {
        /// The worker.
        worker: WorkerId,
        /// Its software's version.
        version: String,
    },
    /// A worker is gone for longer than its lease.
    WorkerLeft {
        /// The worker.
        worker: WorkerId,
    },
    /// The broker restarted: who was connected before is not known to be any more.
    PresenceReset {},
    /// Everything up to `through_seq` folds to the state of this hash; records before it may be pruned.
    Checkpoint {
        /// The last event that the state holds.
        through_seq: Seq,
        /// The chain hash there.
        head: Digest,
        /// The canonical hash of the state there.
        state_hash: Digest,
    },
}

impl Event {
    /// The job this is about, if it is about one.
    #[must_use]
    pub const fn job(&self) -> Option<JobId> {
        match self {
            Self::JobQueued { job, .. }
            | Self::JobRecalled { job, .. }
            | Self::NamespaceJoined { job, .. }
            | Self::NamespaceLeft { job, .. }
            | Self::RunClaimed { job, .. }
            | Self::RunFinished { job, .. }
            | Self::RunLost { job, .. }
            | Self::RunResumed { job, .. }
            | Self::JobRequeued { job }
            | Self::JobAbandoned { job, .. }
            | Self::JobCancelled { job, .. }
            | Self::JobReplaced { job, .. }
            | Self::JobDeleted { job }
            | Self::JobRemoved { job } => Some(*job),
            Self::WorkerJoined { .. } | Self::WorkerLeft { .. } | Self::PresenceReset {} | Self::Checkpoint { .. } => {
                None
            }
        }
    }

    /// The bodies this event vouches for: with its digests the journal proves definitions and results, not only ids.
    #[must_use]
    pub const fn body(&self) -> Option<Digest> {
        match self {
            Self::JobQueued { body, .. } => Some(*body),
            Self::RunFinished { result, .. } | Self::JobAbandoned { result, .. } => Some(*result),
            Self::JobRecalled { .. }
            | Self::NamespaceJoined { .. }
            | Self::NamespaceLeft { .. }
            | Self::RunClaimed { .. }
            | Self::RunLost { .. }
            | Self::RunResumed { .. }
            | Self::JobRequeued { .. }
            | Self::JobCancelled { .. }
            | Self::JobReplaced { .. }
            | Self::JobDeleted { .. }
            | Self::JobRemoved { .. }
            | Self::WorkerJoined { .. }
            | Self::WorkerLeft { .. }
            | Self::PresenceReset {}
            | Self::Checkpoint { .. } => None,
        }
    }

    /// The event's name, as it is stored.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::JobQueued { .. } => "JobQueued",
            Self::JobRecalled { .. } => "JobRecalled",
            Self::NamespaceJoined { .. } => "NamespaceJoined",
            Self::NamespaceLeft { .. } => "NamespaceLeft",
            Self::RunClaimed { .. } => "RunClaimed",
            Self::RunFinished { .. } => "RunFinished",
            Self::RunLost { .. } => "RunLost",
            Self::RunResumed { .. } => "RunResumed",
            Self::JobRequeued { .. } => "JobRequeued",
            Self::JobAbandoned { .. } => "JobAbandoned",
            Self::JobCancelled { .. } => "JobCancelled",
            Self::JobReplaced { .. } => "JobReplaced",
            Self::JobDeleted { .. } => "JobDeleted",
            Self::JobRemoved { .. } => "JobRemoved",
            Self::WorkerJoined { .. } => "WorkerJoined",
            Self::WorkerLeft { .. } => "WorkerLeft",
            Self::PresenceReset {} => "PresenceReset",
            Self::Checkpoint { .. } => "Checkpoint",
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
const fn is_zero(value: &i32) -> bool {
    *value == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
const fn is_none_before(value: &RunNumber) -> bool {
    *value == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
const fn is_false(value: &bool) -> bool {
    !*value
}
