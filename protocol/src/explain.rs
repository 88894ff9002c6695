//! Why a job stands where it stands: the answer to `explain`, the same over REST, socket and command line.

use serde::{Deserialize, Serialize};

use crate::definition::Needs;
use crate::id::{JobId, Namespace, RunNumber, UnixMillis, WorkerId};

/// How many workers an explanation names at most; [`Explanation::workers_total`] says how many there are.
pub const WORKERS_NAMED_MAX: usize = 100;

/// How far ahead is counted at most: far enough to know that it will take long, and quickly done.
pub const AHEAD_COUNTED_MAX: u64 = 1_000;

/// Where a job stands and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The job.
    pub job: JobId,
    /// Where it stands.
    pub standing: Standing,
    /// One sentence for people: what it waits for, or what became of it.
    pub reason: String,
    /// Since when it stands there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<UnixMillis>,
    /// The number of its newest run; 0 before the first.
    #[serde(default)]
    pub run: RunNumber,
    /// The worker of its newest run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    /// Runs lost since it was queued, those handed back not counted.
    #[serde(default)]
    pub lost: u32,
    /// Its place among those that wait, while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<Line>,
    /// The workers looked at, while it waits; those that could run it first. At most [`WORKERS_NAMED_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workers: Vec<WorkerFit>,
    /// How many workers there are.
    #[serde(default)]
    pub workers_total: u32,
    /// When it may start, while it waits; absent when no worker could run it or nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Not in this queue, and nothing is kept of it.
    Unknown,
    /// Waits for a worker.
    Waiting,
    /// Has a live run.
    Running,
    /// Ended with a result.
    Finished,
    /// Given up after too many lost runs.
    Abandoned,
    /// Cancelled.
    Cancelled,
    /// Replaced by a newer job in its namespace.
    Replaced,
    /// Deleted on request.
    Deleted,
}

/// A place among those that wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Jobs that come before it by priority and age, whatever they need; at most [`AHEAD_COUNTED_MAX`] are counted.
    pub ahead: u64,
    /// Those of them that are wanted by its namespace: between namespaces turns are taken.
    pub ahead_in_namespace: u64,
    /// The namespace whose turns it takes: the one that has wanted it longest.
    pub namespace: Namespace,
    /// How many jobs wait.
    pub waiting: u64,
    /// Higher goes first.
    pub priority: i32,
    /// What a worker must offer; a job that states no CPUs takes one.
    pub needs: Needs,
}

/// How a worker and a job fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerFit {
    /// The worker.
    pub id: WorkerId,
    /// Whether it could run it.
    pub fit: Fit,
    /// What is lacking, thing by thing: now, or (when [`Fit::Never`]) at all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<Lack>,
}

/// Whether a worker could run a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// Now: it is about to be granted, or others go first.
    Now,
    /// It is kept free for this job and its like, which were passed by for long.
    Held,
    /// Once runs have ended there.
    Later,
    /// It is kept free for jobs that were passed by for long.
    HeldForOthers,
    /// It handed the job back and is not offered it for a while.
    HandedBack,
    /// It is silent; it may come back.
    Silent,
    /// Never: it has too little of something, or its tags do not match.
    Never,
}

/// What a worker lacks for a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// What.
    pub what: Resource,
    /// How much of it the job needs.
    pub needs: u64,
    /// How much is free.
    pub free: u64,
    /// How much the worker has in all.
    pub total: u64,
}

/// What jobs need of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Thousandths of a CPU.
    CpusMilli,
    /// Bytes of memory.
    MemoryBytes,
    /// GPUs.
    Gpus,
    /// A tag in common; the numbers are counts of tags.
    Tags,
}

/// A guess from what ran lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    /// In how many milliseconds it may start.
    pub starts_in_ms: u64,
    /// The median time from claim to end of the runs looked at, in milliseconds.
    pub median_run_ms: u64,
    /// How many runs that is a median of.
    pub runs: u32,
    /// How many such jobs the workers can run at once.
    pub slots: u32,
}
