//! What can be asked of a queue, why it is refused, and what is to be done when it is not.

use std::sync::Arc;

use protocol::definition::Needs;
use protocol::event::{RunOutcome, Via};
use protocol::id::{Digest, ImageId, JobId, Namespace, RunNumber, UnixMillis, WorkerId};
use protocol::native::{Capacity, HeldRun, StopReason, WorkerHello};

use crate::journal::Archived;

/// A connected socket; never used twice while the broker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Whose wish for a job is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CancelScope {
    /// One namespace's.
    One(Namespace),
    /// Everyone's.
    All,
}

/// An order to a queue.
#[derive(Clone, Debug)]
pub enum Command {
    /// Put a job into the queue, or join the one that is there.
    Submit(Box<Submit>),
    /// Withdraw a wish for a job.
    Cancel {
        /// The job.
        job: JobId,
        /// Whose wish.
        scope: CancelScope,
        /// For whoever asks later; at most [`MESSAGE_BYTES_MAX`] are kept.
        message: Option<String>,
    },
    /// Withdraw a wish and forget the result.
    Delete {
        /// The job.
        job: JobId,
        /// Whose wish.
        scope: CancelScope,
        /// What is kept of the job when it has left the queue.
        archived: Option<Archived>,
    },
    /// A worker's socket opened and said what the worker holds.
    Connect {
        /// The socket.
        session: SessionId,
        /// The worker.
        hello: WorkerHello,
    },
    /// A worker of the original's kind said who it is: it takes jobs by itself. The same again changes nothing.
    Register {
        /// What stands for its sockets.
        session: SessionId,
        /// The worker.
        hello: WorkerHello,
    },
    /// A worker's socket closed.
    Disconnect {
        /// The socket.
        session: SessionId,
    },
    /// A worker says what it has free.
    Claim {
        /// The socket.
        session: SessionId,
        /// What is free.
        free: Capacity,
        /// How many grants it had seen on this socket.
        grants_seen: u64,
    },
    /// A worker of the original's kind says that it has begun to run a job, or reminds of it.
    ClaimJob {
        /// What stands for its sockets.
        session: SessionId,
        /// The job.
        job: JobId,
        /// When it began, by its own clock: with the worker this names the attempt.
        at: UnixMillis,
    },
    /// A worker says which of its runs are alive.
    Renew {
        /// The socket.
        session: SessionId,
        /// The runs.
        runs: Vec<HeldRun>,
    },
    /// A worker reports a run's end.
    Finish {
        /// The socket.
        session: SessionId,
        /// What it reports.
        finish: Finish,
    },
    /// A worker gives a run back unstarted.
    HandBack {
        /// The socket.
        session: SessionId,
        /// The run.
        run: HeldRun,
        /// Whether it only had no room left.
        busy: bool,
    },
    /// The broker itself gives a waiting or running job up, because it cannot be run at all.
    Abandon {
        /// Its newest run; when there is a newer one, nothing is done.
        run: HeldRun,
        /// Why.
        why: String,
    },
    /// Time has passed.
    Tick,
}

/// The most bytes kept of a cancel's message: it becomes part of a record.
pub const MESSAGE_BYTES_MAX: usize = 1024;

/// A job to be queued, its definition already read and stored or about to be stored in the same batch.
#[derive(Clone, Debug)]
pub struct Submit {
    /// The job.
    pub job: JobId,
    /// The blake3 of its definition.
    pub body: Digest,
    /// The definition's text, unless it has been stored before this command.
    pub text: Option<Arc<[u8]>>,
    /// Who wants it.
    pub namespace: Namespace,
    /// What a worker must offer.
    pub needs: Needs,
    /// Higher goes first.
    pub priority: i32,
    /// Whether debug output is wanted.
    pub debug: bool,
    /// Whether a job that has ended without success runs again.
    pub retry: bool,
    /// How it came in.
    pub via: Via,
    /// What is kept of the job when it has left the queue.
    pub archived: Option<Archived>,
}

/// A run's end as reported.
#[derive(Clone, Debug)]
pub struct Finish {
    /// The run.
    pub run: HeldRun,
    /// How it ended.
    pub outcome: RunOutcome,
    /// The blake3 of the result.
    pub result: Digest,
    /// The result's text, unless it has been stored before this command.
    pub text: Option<Arc<[u8]>>,
    /// The container's exit code.
    pub exit_code: Option<i64>,
    /// The image that ran.
    pub image: Option<ImageId>,
    /// From start to exit.
    pub duration_ms: Option<u64>,
}

/// Why a command is refused; nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The run is not the job's newest, or the job is over.
    #[error("run {} of job {} is not this worker's to finish: the job is over, or a newer run was claimed", .0.run, .0.job)]
    StaleRun(HeldRun),
    /// The socket is no worker's, or another socket took the worker's place.
    #[error("this socket is not a connected worker's")]
    NotAWorker,
    /// Too many live jobs.
    #[error("the queue holds {live_max} live jobs, which is the limit; cancel some or use another queue")]
    QueueFull {
        /// The limit.
        live_max: usize,
    },
    /// Too many namespaces on one job.
    #[error("job is wanted by {namespaces_max} namespaces, which is the limit; use one of them, or another queue")]
    NamespacesFull {
        /// The limit.
        namespaces_max: usize,
    },
}

/// What a command came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// Done, or nothing to do.
    #[default]
    Done,
    /// To [`Command::Submit`]: the job waits anew because of it. Otherwise it was there already, or its result is.
    Queued,
    /// To [`Command::Cancel`]: what was found.
    Cancelled(CancelBefore),
    /// To [`Command::Connect`]: of the runs it holds, those that are not its own any more.
    Connected {
        /// Them.
        gone: Vec<HeldRun>,
    },
    /// To [`Command::Claim`]: how many runs the socket was granted so far.
    Claimed {
        /// That many.
        granted: u64,
    },
}

/// What a cancel found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelBefore {
    /// No such job in the queue.
    Unknown,
    /// A job that was over already: nothing was done.
    Ended,
    /// A job that waited or ran.
    Live,
}

/// What is to be done once a command's records are on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Tell a worker that it has a run.
    Grant {
        /// Its socket.
        session: SessionId,
        /// The run.
        run: HeldRun,
        /// The blake3 of the definition.
        body: Digest,
        /// Whether debug output is wanted.
        debug: bool,
    },
    /// Tell a worker to stop a run.
    Stop {
        /// Its socket.
        session: SessionId,
        /// The run.
        run: HeldRun,
        /// Why.
        why: StopReason,
    },
    /// Close a worker's older socket.
    Replace {
        /// It.
        session: SessionId,
    },
    /// A job is over: whoever follows its logs can be told.
    Ended {
        /// The job.
        job: JobId,
    },
    /// A job was deleted: what it printed goes too.
    ForgetLogs {
        /// The job.
        job: JobId,
    },
    /// Who is connected has changed.
    PresenceChanged,
}

/// The run that a worker may be granted next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) job: JobId,
    pub(crate) run: RunNumber,
    pub(crate) worker: WorkerId,
}
