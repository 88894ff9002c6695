//! Jobs as the original's clients know them.

use protocol::definition::Needs;
use protocol::event::RunOutcome;
use protocol::id::{JobId, Namespace, UnixMillis};
use protocol::queue::{Job, Status};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::value::RawValue;

/// A job's state, as lists, results and sockets show it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InMemoryJob<'a> {
    queued_time: UnixMillis,
    state: &'static str,
    time: UnixMillis,
    worker: &'a str,
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

impl<'a> InMemoryJob<'a> {
    pub(super) fn new(job: &'a Job) -> Self {
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
            worker: worker.map_or("", |worker| worker.as_str()),
            namespaces: job.namespaces.keys().collect(),
            debug: job.debug,
            tags: &job.needs.tags,
            requirements: Requirements::of(&job.needs),
            finished_reason: finished_reason(&job.status),
            finished: None,
        }
    }

    pub(super) fn with_finished(job: &'a Job, finished: &'a RawValue) -> Self {
        Self { finished: Some(finished), ..Self::new(job) }
    }
}

/// Thousandths of a CPU, written as the number of CPUs and as JavaScript writes it: whole ones without a fraction.
pub(super) struct Cpus(pub(super) u32);

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
#[derive(Serialize)]
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

pub(super) const fn state(status: &Status) -> &'static str {
    match status {
        Status::Queued { .. } => "Queued",
        Status::Running {} => "Running",
        Status::Finished { .. } | Status::Cancelled { .. } | Status::Replaced { .. } | Status::Deleted {} => "Finished",
    }
}

pub(super) const fn finished_reason(status: &Status) -> Option<&'static str> {
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

/// Whether the original's clients are shown the job: waiting, running, or ended with a result.
const fn is_sendable(status: &Status) -> bool {
    match status {
        Status::Queued { .. } | Status::Running {} | Status::Finished { .. } => true,
        Status::Cancelled { .. } | Status::Replaced { .. } | Status::Deleted {} => false,
    }
}

/// The sendable ones of a queue's jobs, by id, each written by `shape`.
pub(super) struct Sendable<'a, F>(pub(super) &'a [(JobId, Job)], pub(super) F);

impl<'a, F, T> Serialize for Sendable<'a, F>
where
    F: Fn(&'a Job) -> T,
    T: Serialize,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (id, job) in self.0.iter().filter(|(_, job)| is_sendable(&job.status)) {
            map.serialize_entry(id, &(self.1)(job))?;
        }
        map.end()
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
