//! The native dialect: what crosses a socket that asked for `gridsocket.v1` (MessagePack) or `gridsocket.v1.json`.
//!
//! Both ends of both kinds of socket (`/q/<queue>/client`, `/q/<queue>/worker`) use the same messages. Each command carries a
//! request number of the sender's choice and is answered by exactly one [`FromBroker::Ok`] (or the answer of its own kind) or
//! [`FromBroker::Rejected`] with that number, after what it did is on disk.

mod log;

use serde::{Deserialize, Serialize};

use crate::event::RunOutcome;
use crate::explain::Explanation;
use crate::id::{Head, ImageId, JobId, Namespace, QueueKey, RunNumber, Seq, UnixMillis, WorkerId};
use crate::raw::{RawJson, RecordBytes, StateBytes};

pub use self::log::{LogKind, LogLine, LogStep};

/// The number that ties an answer to its command; chosen by the sender, best counting up.
pub type RequestId = u64;

/// From a page, a program or a worker to the broker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToBroker {
    /// The first message on a socket.
    Hello(Hello),
    /// Puts a job into the queue. Submitting twice is the same as once.
    Submit {
        /// Request number.
        req: RequestId,
        /// The job.
        job: Submission,
    },
    /// Withdraws one namespace's wish for a job; the last one ends it.
    Cancel {
        /// Request number.
        req: RequestId,
        /// The job.
        job: JobId,
        /// Whose wish; absent: the default namespace; `*`: everyone's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<Namespace>,
        /// For whoever asks later.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// As cancel, and forgets the result too.
    Delete {
        /// Request number.
        req: RequestId,
        /// The job.
        job: JobId,
        /// As in [`ToBroker::Cancel`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<Namespace>,
    },
    /// Sends a job's log lines from a position on, those written and those to come.
    FollowLogs {
        /// Request number.
        req: RequestId,
        /// The job.
        job: JobId,
        /// Build or run lines.
        kind: LogKind,
        /// The first line wanted, counted from 0.
        #[serde(default)]
        since: u64,
    },
    /// Ends following.
    UnfollowLogs {
        /// Request number.
        req: RequestId,
        /// The job.
        job: JobId,
        /// Build or run lines.
        kind: LogKind,
    },
    /// Asks for definitions, so that a page can show what is in view without a request for each job.
    GetDefinitions {
        /// Request number.
        req: RequestId,
        /// The jobs, at most [`DEFINITIONS_ASKED_MAX`].
        jobs: Vec<JobId>,
    },
    /// Asks why a job stands where it stands.
    Explain {
        /// Request number.
        req: RequestId,
        /// The job.
        job: JobId,
    },
    /// A worker asks for work: its free capacity as it knows it. Replaces its earlier claim.
    Claim {
        /// What is free.
        free: Capacity,
        /// How many grants it has received on this socket, so that grants under way are not counted twice.
        grants_seen: u64,
        /// When present, the claim is answered by [`FromBroker::Claimed`] once everything that it led to is on disk: a worker
        /// that serves several queues knows then that this one has nothing more for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        req: Option<RequestId>,
    },
    /// A worker says that these runs are alive; the broker answers nothing and renews their leases.
    Renew {
        /// The runs.
        runs: Vec<HeldRun>,
    },
    /// A worker reports a run's end.
    Finish {
        /// Request number.
        req: RequestId,
        /// How it ended.
        run: FinishedRun,
    },
    /// A worker gives a run back that it could not start; not counted as an attempt.
    HandBack {
        /// Request number.
        req: RequestId,
        /// The run.
        run: HeldRun,
        /// Why, for the log.
        why: String,
        /// Whether the worker only had no room left, as another queue was faster: it may be offered the job again as soon as
        /// it claims again. Otherwise it is not offered the job for a while.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        busy: bool,
    },
    /// Log lines of a run. Not answered: what is acknowledged is the run's end.
    RunLogs {
        /// The run.
        run: HeldRun,
        /// What the lines are from.
        step: LogStep,
        /// The number of the first line among the run's lines of this step's kind, so that a repeat is seen.
        first: u64,
        /// The lines.
        lines: Vec<LogLine>,
    },
}

/// How many definitions one [`ToBroker::GetDefinitions`] may ask for: more than a screen shows.
pub const DEFINITIONS_ASKED_MAX: usize = 256;

/// The opening of a socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The highest version of the dialect that the sender speaks, [`crate::PROTOCOL_VERSION`].
    pub version: u16,
    /// The lowest that it speaks; absent: only [`Hello::version`]. [`FromBroker::Welcome`] says which one both will use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_min: Option<u16>,
    /// Whether snapshots, events and presence are wanted. Workers may watch too.
    pub watch: bool,
    /// Where an earlier socket left off: events only, if the broker still has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Head>,
    /// Present on a worker's socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerHello>,
}

/// Who a worker is, and what it still runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerHello {
    /// Its id.
    pub id: WorkerId,
    /// Its software's version.
    pub version: String,
    /// All it has to give.
    pub total: Capacity,
    /// Jobs must match one of these when there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The longest it lets a job run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_duration_ms: Option<u64>,
    /// Runs it holds from earlier sockets: alive, or ended and not yet acknowledged.
    #[serde(default)]
    pub holds: Vec<HeldRun>,
}

/// An amount of what jobs need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Thousandths of a CPU. A job that states none takes one CPU, so this also bounds how many run at once.
    pub cpus_milli: u32,
    /// Bytes of memory; absent when the worker does not count it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// GPUs.
    #[serde(default)]
    pub gpus: u32,
}

/// A run, as a worker names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HeldRun {
    /// The job.
    pub job: JobId,
    /// The run's number.
    pub run: RunNumber,
}

/// A job to be queued.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Submission {
    /// What the submitter believes the id to be; refused when it is not the definition's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<JobId>,
    /// The definition, stored as it is.
    pub definition: RawJson,
    /// Who wants it; absent: the default namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// Higher goes first.
    #[serde(default)]
    pub priority: i32,
    /// Whether debug output is wanted.
    #[serde(default)]
    pub debug: bool,
    /// Whether a job that has ended without success runs again, instead of being answered with how it ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retry: bool,
    /// Addresses to call.
    #[serde(default, skip_serializing_if = "Callbacks::is_empty")]
    pub callbacks: Callbacks,
}

/// Addresses to call when something becomes of a submission.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callbacks {
    /// When it made a job wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued: Option<Callback>,
    /// When the job is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Callback>,
}

impl Callbacks {
    /// Whether nobody is to be called.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.queued.is_none() && self.finished.is_none()
    }
}

/// An address to call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callback {
    /// Where to.
    pub url: String,
    /// What to send along, as it is; absent: an empty object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<RawJson>,
}

/// A run's end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinishedRun {
    /// The job.
    pub job: JobId,
    /// The run's number.
    pub run: RunNumber,
    /// How it ended.
    pub outcome: RunOutcome,
    /// The container's exit code, when one ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// The image that really ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageId>,
    /// From container start to exit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// The original's `finished` object (`{type, reason, worker, time, result}`), stored and served as it is.
    pub finished: RawJson,
}

/// From the broker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromBroker {
    /// The answer to [`ToBroker::Hello`].
    Welcome {
        /// The dialect's version.
        version: u16,
        /// The queue, as the journal names it; genesis of its chain.
        queue: QueueKey,
        /// Where the chain stands.
        head: Head,
        /// How long a silent worker keeps its runs.
        lease_ms: u64,
        /// Of the runs a worker said it holds, those that are not its own any more: to be stopped and forgotten.
        gone: Vec<HeldRun>,
    },
    /// The whole state at a position; events go on from there.
    Snapshot {
        /// Position and chain hash of the state.
        head: Head,
        /// The state.
        state: StateBytes,
    },
    /// The records that follow what was sent before, without a gap.
    Events {
        /// The first one's position.
        from_seq: Seq,
        /// The records.
        records: Vec<RecordBytes>,
    },
    /// Who is connected now.
    Presence {
        /// The workers.
        workers: Vec<WorkerView>,
        /// How many pages and programs watch.
        clients: u32,
    },
    /// A command is done and on disk.
    Ok {
        /// The command's request number.
        req: RequestId,
        /// The chain at that moment: whoever keeps it can hold the broker to it.
        head: Head,
        /// The job that the command was about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<JobId>,
    },
    /// A command is refused and did nothing.
    Rejected {
        /// The command's request number; absent when the message could not be read that far.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        req: Option<RequestId>,
        /// A word for programs.
        code: String,
        /// A sentence for people: the field, the limit, what to do.
        message: String,
    },
    /// A worker is given a run.
    Granted {
        /// The run.
        run: HeldRun,
        /// The definition.
        definition: RawJson,
        /// How long the worker may be silent.
        lease_ms: u64,
        /// Whether debug output is wanted.
        debug: bool,
    },
    /// The answer to a [`ToBroker::Claim`] with a request number.
    Claimed {
        /// The claim's request number.
        req: RequestId,
        /// How many runs this socket has been granted so far: as soon as the worker has seen that many [`FromBroker::Granted`],
        /// the queue has nothing more that fits what it offers.
        granted: u64,
    },
    /// A part of the answer to [`ToBroker::GetDefinitions`]; large ones come in several messages.
    Definitions {
        /// The request number.
        req: RequestId,
        /// Definitions, by job. Jobs that the queue does not know are left out.
        definitions: Vec<JobDefinition>,
        /// Whether this is the last part, and so the answer.
        is_final: bool,
    },
    /// The answer to [`ToBroker::Explain`].
    Explained {
        /// The request number.
        req: RequestId,
        /// The explanation.
        explanation: Box<Explanation>,
    },
    /// A worker must stop a run and forget it.
    Stop {
        /// The run.
        run: HeldRun,
        /// Why.
        why: StopReason,
    },
    /// Log lines that were asked for with [`ToBroker::FollowLogs`].
    Logs {
        /// The job.
        job: JobId,
        /// Build or run lines.
        kind: LogKind,
        /// The number of the first line here; a gap means that lines before it are not kept any more.
        from: u64,
        /// The lines.
        lines: Vec<LogLine>,
        /// Whether the job is over and no line follows.
        is_final: bool,
    },
}

/// A job and its definition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobDefinition {
    /// The job.
    pub job: JobId,
    /// Its definition as it was received.
    pub definition: RawJson,
}

/// Why a worker must stop a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// Nobody wants it any more.
    Cancelled,
    /// A newer job took its namespace.
    Replaced,
    /// Deleted; local copies of its data go too.
    Deleted,
    /// The run is not this worker's any more.
    Superseded,
}

/// A connected worker, as watchers see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerView {
    /// Its id.
    pub id: WorkerId,
    /// Its software's version.
    pub version: String,
    /// All it has to give.
    pub total: Capacity,
    /// How many runs it holds.
    pub running: u32,
    /// Since when it is silent; absent while it is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_since_ms: Option<UnixMillis>,
}
