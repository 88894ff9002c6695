//! What the original's workers send: the other end of [`super::from_peer`], for workers.

use serde::Serialize;

use super::envelope::{self, message};
use crate::id::{JobId, UnixMillis, WorkerId};
use crate::native::{LogLine, LogStep, WorkerHello};
use crate::raw::RawJson;

/// Says who the worker is.
#[must_use]
pub fn registration(worker: &WorkerHello, now: UnixMillis) -> String {
    message("WorkerRegistration", Who::new(worker, now))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Who<'a> {
    time: UnixMillis,
    version: &'a str,
    id: &'a WorkerId,
    cpus: u32,
    gpus: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_job_duration: Option<String>,
}

impl<'a> Who<'a> {
    fn new(worker: &'a WorkerHello, now: UnixMillis) -> Self {
        Self {
            time: now,
            version: &worker.version,
            id: &worker.id,
            cpus: worker.total.cpus_milli / 1000,
            gpus: worker.total.gpus,
            max_job_duration: worker.max_duration_ms.map(|ms| format!("{ms}ms")),
        }
    }
}

#[derive(Serialize)]
struct Change<'a, V> {
    job: JobId,
    tag: &'a WorkerId,
    state: &'static str,
    value: V,
}

/// Claims a job, or reminds of an earlier claim: `since` is when it was made.
#[must_use]
pub fn running(job: JobId, worker: &WorkerId, since: UnixMillis) -> String {
    #[derive(Serialize)]
    struct Running<'a> {
        #[serde(rename = "type")]
        kind: &'static str,
        worker: &'a WorkerId,
        time: UnixMillis,
    }
    let value = Running { kind: "Running", worker, time: since };
    message("StateChange", Change { job, tag: worker, state: "Running", value })
}

/// A run's end; `finished` is the whole of it, `{type, reason, worker, time, result}`.
#[must_use]
pub fn finished(job: JobId, worker: &WorkerId, finished: &RawJson) -> String {
    message("StateChange", Change { job, tag: worker, state: "Finished", value: finished })
}

/// Gives a job back: what the server itself says of a worker that is gone. It is queued again.
#[must_use]
pub fn worker_lost(job: JobId, worker: &WorkerId, now: UnixMillis) -> String {
    #[derive(Serialize)]
    struct Lost<'a> {
        #[serde(rename = "type")]
        kind: &'static str,
        reason: &'static str,
        worker: &'a WorkerId,
        time: UnixMillis,
    }
    let value = Lost { kind: "Finished", reason: "WorkerLost", worker, time: now };
    message("StateChange", Change { job, tag: worker, state: "Finished", value })
}

/// Lines of a run.
#[must_use]
pub fn logs(job: JobId, step: LogStep, logs: &[LogLine]) -> String {
    envelope::logs("JobStatusLogs", job, step, logs)
}

/// Asks for definitions.
#[must_use]
pub fn request_definitions(jobs: &[JobId]) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Wanted<'a> {
        job_ids: &'a [JobId],
    }
    message("RequestJobDefinitions", Wanted { job_ids: jobs })
}

/// What the worker does: its jobs, and whether the handling of their containers has begun.
#[must_use]
pub fn status(worker: &WorkerHello, jobs: &[(JobId, bool)], now: UnixMillis) -> String {
    #[derive(Serialize)]
    struct Status<'a> {
        #[serde(flatten)]
        who: Who<'a>,
        queue: std::collections::BTreeMap<String, Held>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Held {
        job_id: JobId,
        finished: bool,
    }
    let held = |(job, finished): &(JobId, bool)| (job.to_string(), Held { job_id: *job, finished: *finished });
    message("WorkerStatusResponse", Status { who: Who::new(worker, now), queue: jobs.iter().map(held).collect() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::event::RunOutcome;
    use crate::native::Capacity;
    use crate::original::from_peer::FromPeer;

    const JOB: JobId = JobId::from_bytes([0xa1; 32]);

    fn read(frame: &str) -> FromPeer<'_> {
        FromPeer::read(frame).unwrap_or_else(|error| panic!("{frame}: {error}"))
    }

    #[test]
    fn what_a_worker_says_is_understood_at_the_other_end() {
        let id: WorkerId = "w1".parse().unwrap();
        let hello = WorkerHello {
            id: id.clone(),
            version: "1.2".to_owned(),
            total: Capacity { cpus_milli: 4000, memory_bytes: None, gpus: 2 },
            tags: Vec::new(),
            max_duration_ms: Some(1_200_000),
            holds: Vec::new(),
        };
        let frame = registration(&hello, UnixMillis(5));
        let FromPeer::Registration(told) = read(&frame) else { panic!() };
        assert_eq!((told.id, told.cpus, told.gpus), (id.clone(), 4, 2));
        let limit = told.max_job_duration.as_deref().and_then(crate::duration::limit_ms);
        assert_eq!(limit, hello.max_duration_ms);

        let frame = running(JOB, &id, UnixMillis(7));
        let FromPeer::Running { job, worker, at } = read(&frame) else { panic!() };
        assert_eq!((job, worker.as_deref(), at), (JOB, Some("w1"), UnixMillis(7)));

        let text = r#"{"type":"Finished","reason":"Error","worker":"w1","time":9,"result":{"error":"no","x": 1.50}}"#;
        let frame = finished(JOB, &id, &RawJson::new(text));
        let FromPeer::Ended(ended) = read(&frame) else { panic!() };
        assert_eq!((ended.job, ended.outcome, ended.finished.get()), (JOB, RunOutcome::Error, text));

        let lines = vec![LogLine { text: "a\n".to_owned(), at_ms: UnixMillis(3), stderr: true }];
        let frame = logs(JOB, LogStep::Build, &lines);
        let FromPeer::Logs { job, step, lines: told } = read(&frame) else { panic!() };
        assert_eq!((job, step, told), (JOB, LogStep::Build, lines));

        let frame = request_definitions(&[JOB]);
        let FromPeer::RequestDefinitions { jobs } = read(&frame) else { panic!() };
        assert_eq!(jobs, [JOB]);

        let frame = status(&hello, &[(JOB, true)], UnixMillis(5));
        let FromPeer::Status { status } = read(&frame) else { panic!() };
        let told: Value = serde_json::from_str(status.get()).unwrap();
        assert_eq!((&told["id"], &told["time"], &told["cpus"]), (&json!("w1"), &json!(5), &json!(4)));
        assert_eq!(told["queue"][JOB.to_string()], json!({"jobId": JOB.to_string(), "finished": true}));

        let told: Value = serde_json::from_str(&worker_lost(JOB, &id, UnixMillis(8))).unwrap();
        assert_eq!(told["payload"]["value"]["reason"], "WorkerLost");
    }
}
