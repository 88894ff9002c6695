//! What the original's pages and workers are sent: whole frames, as text.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::envelope::{self, message};
use super::job::{Cpus, JobEntry};
use crate::id::{JobId, Namespace, UnixMillis, WorkerId};
use crate::native::{LogLine, LogStep, WorkerView};

/// The answer to a page's `PING`.
pub const PONG: &str = "PONG";

/// What stands for the id in the answer to the `PING` of a worker that has not registered on this socket.
pub const UNKNOWN_WORKER: &str = "unknown";

/// Asks workers what they do.
pub const STATUS_REQUEST: &str = r#"{"type":"StatusRequest"}"#;

/// Tells nothing, and so that the broker is there: workers reconnect when they hear of no jobs for 20 s.
pub const HEARTBEAT: &str = r#"{"type":"JobStateUpdates","payload":{"state":{"jobs":{}},"isSubset":true}}"#;

#[derive(Serialize)]
struct States<J> {
    state: Jobs<J>,
    #[serde(rename = "isSubset")]
    is_subset: bool,
}

#[derive(Serialize)]
struct Jobs<J> {
    jobs: J,
}

/// Writes pairs as an object.
struct Pairs<I>(std::cell::Cell<Option<I>>);

impl<I> Pairs<I> {
    const fn new(pairs: I) -> Self {
        Self(std::cell::Cell::new(Some(pairs)))
    }
}

impl<K: Serialize, V: Serialize, I: Iterator<Item = (K, V)>> Serialize for Pairs<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in self.0.take().into_iter().flatten() {
            map.serialize_entry(&key, &value)?;
        }
        map.end()
    }
}

/// All jobs that peers are shown: what is absent is gone.
pub fn job_states<'a>(jobs: impl Iterator<Item = (JobId, JobEntry<'a>)>) -> String {
    message("JobStates", States { state: Jobs { jobs: Pairs::new(jobs) }, is_subset: false })
}

/// Jobs that changed.
pub fn job_state_updates<'a>(jobs: impl Iterator<Item = (JobId, JobEntry<'a>)>) -> String {
    message("JobStateUpdates", States { state: Jobs { jobs: Pairs::new(jobs) }, is_subset: true })
}

/// A submission that was refused, as a job that ended with an error: there is no other word for it. `job` is the id that the
/// submitter waits for, as it wrote it.
#[must_use]
pub fn refused(job: &str, why: &str, at: UnixMillis) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Refused<'a> {
        queued_time: UnixMillis,
        state: &'static str,
        time: UnixMillis,
        worker: &'static str,
        namespaces: [&'static str; 1],
        finished_reason: &'static str,
        finished: Finished<'a>,
    }
    #[derive(Serialize)]
    struct Finished<'a> {
        #[serde(rename = "type")]
        kind: &'static str,
        reason: &'static str,
        worker: &'static str,
        time: UnixMillis,
        message: &'a str,
        result: Outcome<'a>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Outcome<'a> {
        error: &'a str,
        is_timed_out: bool,
        duration: u64,
        logs: [(String, UnixMillis, bool); 1],
        outputs: Nothing,
    }
    #[derive(Serialize)]
    struct Nothing {}

    let result = Outcome {
        error: why,
        is_timed_out: false,
        duration: 0,
        logs: [(format!("{why}\n"), at, true)],
        outputs: Nothing {},
    };
    let finished = Finished { kind: "Finished", reason: "Error", worker: "", time: at, message: why, result };
    let entry = Refused {
        queued_time: at,
        state: "Finished",
        time: at,
        worker: "",
        namespaces: [Namespace::DEFAULT],
        finished_reason: "Error",
        finished,
    };
    let jobs = Pairs::new(std::iter::once((job, entry)));
    message("JobStateUpdates", States { state: Jobs { jobs }, is_subset: true })
}

/// A worker in the list of workers: as it registered itself, or one of ours in the same shape.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum WorkerEntry<'a> {
    /// What it sent, verbatim.
    Registered(&'a RawValue),
    /// One that speaks the native dialect.
    Native {
        /// When it was last heard of.
        time: UnixMillis,
        /// Its software's version.
        version: &'a str,
        /// Its id.
        id: &'a WorkerId,
        /// All its CPUs.
        cpus: Cpus,
        /// All its GPUs.
        gpus: u32,
    },
}

impl<'a> WorkerEntry<'a> {
    /// A worker that speaks the native dialect.
    #[must_use]
    pub const fn native(worker: &'a WorkerView, now: UnixMillis) -> Self {
        let time = match worker.silent_since_ms {
            Some(since) => since,
            None => now,
        };
        let cpus = Cpus(worker.total.cpus_milli);
        Self::Native { time, version: worker.version.as_str(), id: &worker.id, cpus, gpus: worker.total.gpus }
    }
}

/// Who is there.
#[must_use]
pub fn workers(workers: &[WorkerEntry<'_>]) -> String {
    #[derive(Serialize)]
    struct Workers<'a> {
        workers: &'a [WorkerEntry<'a>],
    }
    message("Workers", Workers { workers })
}

/// Lines of a running job.
#[must_use]
pub fn job_logs(job: JobId, step: LogStep, logs: &[LogLine]) -> String {
    envelope::logs("JobStatusPayload", job, step, logs)
}

/// Tells workers to wipe what they have of a deleted job.
#[must_use]
pub fn clear_job_cache(job: JobId, namespace: &str) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Clear<'a> {
        job_id: JobId,
        namespace: &'a str,
    }
    message("ClearJobCache", Clear { job_id: job, namespace })
}

/// Definitions, as they were received.
pub fn definitions<'a>(definitions: impl Iterator<Item = (JobId, &'a RawValue)>) -> String {
    #[derive(Serialize)]
    struct Definitions<D> {
        definitions: D,
    }
    message("BroadcastJobDefinitions", Definitions { definitions: Pairs::new(definitions) })
}

/// The answer to a worker's `PING`.
#[must_use]
pub fn worker_pong(registered: Option<&WorkerId>) -> String {
    format!("{PONG} {}", registered.map_or(UNKNOWN_WORKER, WorkerId::as_str))
}
