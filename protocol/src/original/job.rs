//! A job as the original's peers know it.

use std::borrow::Cow;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::definition::Needs;
use crate::event::RunOutcome;
use crate::id::{Namespace, UnixMillis};
use crate::queue::{Job, Status};

/// A job's state, as lists, results and sockets show it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobEntry<'a> {
    queued_time: UnixMillis,
    state: &'static str,
    time: UnixMillis,
    worker: Cow<'a, str>,
    namespaces: Vec<&'a Namespace>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    debug: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tags: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    requirements: Option<Requirements>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished: Option<&'a RawValue>,
}

impl<'a> JobEntry<'a> {
    /// The job without its result.
    #[must_use]
    pub fn new(job: &'a Job) -> Self {
        let worker = match job.status {
            Status::Queued { .. } => None,
            Status::Running {}
            | Status::Finished { .. }
            | Status::Cancelled { .. }
            | Status::Replaced { .. }
            | Status::Deleted {} => job.worker.as_ref(),
        };
        Self {
            queued_time: job.queued_at_ms,
            state: state(&job.status),
            time: job.changed_at_ms,
            worker: Cow::Borrowed(worker.map_or("", |worker| worker.as_str())),
            namespaces: job.namespaces.keys().collect(),
            debug: job.debug,
            tags: &job.needs.tags,
            requirements: Requirements::of(&job.needs),
            finished_reason: finished_reason(&job.status),
            finished: None,
        }
    }

    /// The same with what its worker sent when the run ended.
    #[must_use]
    pub const fn with_finished(mut self, finished: &'a RawValue) -> Self {
        self.finished = Some(finished);
        self
    }

    /// The same, shown as another worker's.
    #[must_use]
    pub fn shown_as(mut self, worker: String) -> Self {
        self.worker = Cow::Owned(worker);
        self
    }
}

/// Thousandths of a CPU, written as the number of CPUs and as JavaScript writes it: whole ones without a fraction.
#[derive(Clone, Copy, Debug)]
pub struct Cpus(pub u32);

impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(1000) {
            serializer.serialize_u32(self.0 / 1000)
        } else {
            serializer.serialize_f64(f64::from(self.0) / 1000.0)
        }
    }
}

/// What the definition asks for, as far as the broker took it in. Sizes are texts, as definitions write them.
#[derive(Clone, Debug, Serialize)]
struct Requirements {
    #[serde(skip_serializing_if = "Option::is_none")]
    cpus: Option<Cpus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpus: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<String>,
}

impl Requirements {
    fn of(needs: &Needs) -> Option<Self> {
        let asks = needs.cpus_milli.is_some() || needs.memory_bytes.is_some() || needs.gpus > 0;
        asks.then(|| Self {
            cpus: needs.cpus_milli.map(Cpus),
            gpus: (needs.gpus > 0).then_some(needs.gpus),
            memory: needs.memory_bytes.map(|bytes| bytes.to_string()),
        })
    }
}

/// The word for where a job stands.
#[must_use]
pub const fn state(status: &Status) -> &'static str {
    match status {
        Status::Queued { .. } => "Queued",
        Status::Running {} => "Running",
        Status::Finished { .. } | Status::Cancelled { .. } | Status::Replaced { .. } | Status::Deleted {} => "Finished",
    }
}

/// The word for how a job ended.
#[must_use]
pub const fn finished_reason(status: &Status) -> Option<&'static str> {
    match status {
        Status::Queued { .. } | Status::Running {} => None,
        Status::Finished { outcome: RunOutcome::Success, .. } => Some("Success"),
        Status::Finished { outcome: RunOutcome::Error, .. } => Some("Error"),
        Status::Finished { outcome: RunOutcome::TimedOut, .. } => Some("TimedOut"),
        Status::Cancelled { .. } => Some("Cancelled"),
        Status::Replaced { .. } => Some("JobReplacedByClient"),
        Status::Deleted {} => Some("Deleted"),
    }
}

/// Whether peers are shown the job: waiting, running, or ended with a result.
#[must_use]
pub const fn is_shown(status: &Status) -> bool {
    match status {
        Status::Queued { .. } | Status::Running {} | Status::Finished { .. } => true,
        Status::Cancelled { .. } | Status::Replaced { .. } | Status::Deleted {} => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_written_as_javascript_writes_numbers() {
        for (milli, text) in [(0, "0"), (2000, "2"), (2500, "2.5"), (1, "0.001"), (u32::MAX, "4294967.295")] {
            assert_eq!(serde_json::to_string(&Cpus(milli)).unwrap(), text);
        }
    }
}
