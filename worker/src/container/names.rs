//! What things are called at the engine; the same as the original's, so that its tools find them.

use protocol::id::QueueKey;

/// Marks everything that workers make.
pub(super) const LABEL: &str = "container.mtfm.io";
/// The worker.
pub(crate) const LABEL_WORKER: &str = "container.mtfm.io/worker";
/// The queue that it works for.
pub(crate) const LABEL_QUEUE: &str = "container.mtfm.io/queue";
/// The job.
pub(crate) const LABEL_ID: &str = "container.mtfm.io/id";
/// The run's number; with it a restarted worker knows what it adopts.
pub(crate) const LABEL_RUN: &str = "container.mtfm.io/run";
/// The data directory, which on one engine is one worker's at a time, whatever its id and queues.
pub(crate) const LABEL_DATA: &str = "container.mtfm.io/data";
/// The GPUs it was given, by comma.
pub(crate) const LABEL_GPUS: &str = "container.mtfm.io/gpus";

/// The workers' bridge: out to the internet, not to each other.
pub(crate) const NETWORK: &str = "metaframe-container-worker-network";
/// The bridge from which nothing but the internet is to be had.
pub(super) const NETWORK_INTERNET: &str = "gridsocket-internet-only";
/// What the volume begins with that a queue's jobs on an engine share below `/job-cache`.
const CACHE_VOLUME: &str = "metaframe-container-worker-cache";

/// What that network's device is called on the machine of an engine: two engines of one machine each have theirs. The kernel
/// takes 15 bytes.
pub(super) fn internet_bridge(engine: &str) -> String {
    use sha2::Digest as _;
    let hash = sha2::Sha256::digest(engine.as_bytes());
    hash.iter().take(4).fold(String::from("gsi"), |name, byte| name + &format!("{byte:02x}"))
}

/// The volume of a queue's jobs. The original has one for all, and with it lets each job read and replace what those of
/// other queues keep there; a queue is a trust domain.
pub(crate) fn cache_volume(queue: &QueueKey) -> String {
    format!("{CACHE_VOLUME}-{queue}")
}
