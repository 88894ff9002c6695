//! The numbers that the rules go by.

/// The numbers that the rules go by.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a silent worker keeps a run, in milliseconds.
    pub lease_ms: u64,
    /// After how many lost runs a job is abandoned.
    pub lost_runs_max: u32,
    /// How long a waiting job may be passed by before a worker is kept free for it, in milliseconds.
    pub overtaken_ms: u64,
    /// How many jobs may wait and run in one queue.
    pub live_jobs_max: usize,
    /// How many namespaces may want one job.
    pub namespaces_max: usize,
    /// How long a success (or a cancelled or deleted job) stays in the queue, in milliseconds.
    pub success_stays_ms: u64,
    /// How long a failure stays in the queue, in milliseconds.
    pub failure_stays_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // A worker on a lossy link, or a laptop that changes its network, is back well within this; a lost machine's jobs
            // do not wait long.
            lease_ms: 30_000,
            // A job that takes three workers down is the job's fault.
            lost_runs_max: 3,
            // Most jobs take less: usually room comes by itself before a worker has to be kept idle.
            overtaken_ms: 60_000,
            // About 50 MB of state.
            live_jobs_max: 100_000,
            namespaces_max: 64,
            // The original's number: its clients expect to see a success for that long.
            success_stays_ms: 60_000,
            // The original keeps failures until it restarts; a day lets everyone see them.
            failure_stays_ms: 24 * 60 * 60 * 1000,
        }
    }
}
