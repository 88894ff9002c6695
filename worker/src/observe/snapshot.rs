//! How a worker stands at one moment: plain data, as it crosses the socket. Fields are only ever added, so that a view of
//! another version reads what it knows.

use serde::{Deserialize, Serialize};

/// How a worker stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// The worker's id.
    pub worker: String,
    /// The version of its program.
    pub version: String,
    /// When it started, in milliseconds since 1970.
    pub started_ms: u64,
    /// When this was so.
    pub at_ms: u64,
    /// Whether it takes jobs.
    pub standing: Standing,
    /// Why it takes no new jobs although it works.
    pub obstacle: Option<String>,
    /// What it offers to all jobs together.
    pub offered: Capacity,
    /// What jobs hold of it.
    pub taken: Capacity,
    /// Its GPUs, in order.
    pub gpus: Vec<GpuView>,
    /// Its queues, in the order in which they were given.
    pub queues: Vec<QueueView>,
    /// The container engine.
    pub engine: EngineView,
    /// The runs that are here, the oldest first.
    pub runs: Vec<RunView>,
    /// The last runs that ended here, the newest first.
    pub results: Vec<ResultView>,
    /// What was counted since the start.
    pub counts: Counts,
    /// Results that the broker has not acknowledged; they are on this machine's disk.
    pub unacknowledged: u64,
    /// The data directory's disk, where the system says.
    pub disk: Option<Disk>,
    /// The process.
    pub process: Process,
    /// Where numbers are told over HTTP.
    pub metrics: Option<String>,
    /// What was logged of late, the oldest first.
    pub lines: Vec<Line>,
}

/// Whether a worker takes jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It does.
    #[default]
    Working,
    /// It waits for those that it has, and ends then.
    Draining,
    /// It ends.
    Stopping,
}

/// CPUs and memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capacity {
    /// Thousandths of a CPU.
    pub cpus_milli: u64,
    /// Bytes; `None`: not counted.
    pub memory_bytes: Option<u64>,
}

/// A GPU that the worker offers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuView {
    /// As the engine knows it.
    pub name: String,
    /// The job that has it; one that has just ended may, until its container is gone.
    pub job: Option<String>,
}

/// A queue that the worker serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueView {
    /// The first letters of its name: the whole of it is a secret.
    pub name: String,
    /// What stands for it in logs.
    pub key: String,
    /// Since when it is connected, in milliseconds since 1970; `None`: it is not.
    pub connected_since_ms: Option<u64>,
    /// How broker and worker speak.
    pub dialect: String,
    /// How often it was connected.
    pub connects: u64,
    /// How often the line broke.
    pub losses: u64,
}

/// The container engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineView {
    /// Where it listens.
    pub address: String,
    /// Whether it answered.
    pub is_reachable: bool,
    /// Its version, when it last answered.
    pub version: Option<String>,
    /// What went wrong, if it did not answer.
    pub why: Option<String>,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its image is looked for, and fetched if need be.
    Pulling,
    /// Its image is being built.
    Building,
    /// Its image is there, its inputs are on their way.
    Inputs,
    /// Its container is made and started.
    Starting,
    /// Its container runs.
    Running,
    /// Its outputs are collected.
    Outputs,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 6] =
        [Self::Pulling, Self::Building, Self::Inputs, Self::Starting, Self::Running, Self::Outputs];

    /// In a word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pulling => "pulling",
            Self::Building => "building",
            Self::Inputs => "inputs",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Outputs => "outputs",
        }
    }
}

/// A run that is here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunView {
    /// The job's id.
    pub job: String,
    /// The number of the run.
    pub run: u32,
    /// What stands for the queue in logs.
    pub queue: String,
    /// Where it stands.
    pub phase: Phase,
    /// For how long it stands there.
    pub phase_ms: u64,
    /// For how long it is here.
    pub age_ms: u64,
    /// Whether an earlier process of this worker started it.
    pub is_adopted: bool,
    /// What it holds: thousandths of a CPU.
    pub cpus_milli: u32,
    /// What it holds: bytes of memory; 0 when it stated none.
    pub memory_bytes: u64,
    /// What it holds: GPUs.
    pub gpus: Vec<String>,
    /// Its image, shortened.
    pub image: String,
    /// Its command, shortened. Whoever submitted the job wrote it.
    pub command: String,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its program ended with 0.
    Success,
    /// Its program ended with another code.
    Failed,
    /// It could not be run to its end.
    Error,
    /// It took too long.
    TimedOut,
    /// Somebody wanted it to end.
    Stopped,
    /// It was handed back, for others to run.
    HandedBack,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Success, Self::Failed, Self::Error, Self::TimedOut, Self::Stopped, Self::HandedBack];

    /// In a word, as a label.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Error => "error",
            Self::TimedOut => "timed_out",
            Self::Stopped => "stopped",
            Self::HandedBack => "handed_back",
        }
    }
}

/// A run that ended here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultView {
    /// The job's id.
    pub job: String,
    /// The number of the run.
    pub run: u32,
    /// What stands for the queue in logs.
    pub queue: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Its program's exit code, if it came to that.
    pub exit_code: Option<i64>,
    /// How long it was here.
    pub duration_ms: u64,
    /// What went wrong, shortened.
    pub why: Option<String>,
    /// When it ended, in milliseconds since 1970.
    pub at_ms: u64,
}

/// What was counted since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Runs that ended, in the order of [`Outcome::ALL`].
    pub ended: [u64; Outcome::ALL.len()],
    /// Times that the engine refused or lost something.
    pub engine_errors: u64,
    /// Images fetched, failures included.
    pub pulls: u64,
    /// Images that could not be fetched.
    pub pull_failures: u64,
    /// Images built, failures included.
    pub builds: u64,
    /// Images that could not be built.
    pub build_failures: u64,
    /// Log lines that went because the broker did not take them in time.
    pub log_lines_dropped: u64,
    /// From grant to started container: how many took at most so many microseconds, each with those of the steps before.
    pub start_steps: Vec<(u64, u64)>,
    /// How many were started.
    pub starts: u64,
    /// How long that took together, in microseconds.
    pub start_sum_us: u64,
}

/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Disk {
    /// The folder that was asked for.
    pub path: String,
    /// What a plain user may still write.
    pub free_bytes: u64,
    /// All of it.
    pub total_bytes: u64,
}

/// The process, as far as the system says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its memory, in bytes.
    pub resident_bytes: Option<u64>,
    /// How many files and sockets it has open.
    pub open_files: Option<u64>,
}

/// One line of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Line {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// `ERROR`, `WARN`, `INFO`, …
    pub level: String,
    /// What was said, in one line.
    pub text: String,
}
