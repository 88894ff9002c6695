//! What the original's pages, command lines and workers send.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::envelope::Envelope;
use crate::event::RunOutcome;
use crate::id::{JobId, UnixMillis, WorkerId};
use crate::native::{LogLine, LogStep};

/// The text of a heartbeat.
pub const PING: &str = "PING";

/// One frame.
#[derive(Debug)]
pub enum FromPeer<'a> {
    /// A heartbeat.
    Ping,
    /// A job to be queued.
    Queued(Queued<'a>),
    /// A worker says that it runs a job: a claim, or a reminder of one.
    Running {
        /// The job.
        job: JobId,
        /// The worker.
        worker: Option<Cow<'a, str>>,
        /// When it claimed the job, by its own clock; with the worker this names the attempt.
        at: UnixMillis,
    },
    /// A run ended.
    Ended(Ended<'a>),
    /// A wish for a job is withdrawn.
    Withdrawn {
        /// The job.
        job: JobId,
        /// Whose wish; nobody said: absent.
        namespace: Option<Cow<'a, str>>,
        /// Whether the result is to be forgotten too.
        is_delete: bool,
        /// Why.
        message: Option<Cow<'a, str>>,
    },
    /// Asks for one job.
    QueryJob {
        /// The job.
        job: JobId,
    },
    /// Asks for all jobs.
    QueryJobStates,
    /// A worker says who it is.
    Registration(Registration<'a>),
    /// Lines of a run.
    Logs {
        /// The job.
        job: JobId,
        /// What they come from.
        step: LogStep,
        /// The lines.
        lines: Vec<LogLine>,
    },
    /// A worker asks for definitions.
    RequestDefinitions {
        /// The jobs.
        jobs: Vec<JobId>,
    },
    /// What a worker does, asked for with `StatusRequest`.
    Status {
        /// The answer, verbatim.
        status: &'a RawValue,
    },
}

/// A job to be queued.
#[derive(Debug)]
pub struct Queued<'a> {
    /// The id that the submitter computed, as it wrote it; it waits until it sees that id.
    pub id: Option<Cow<'a, str>>,
    /// The definition, verbatim; absent: nothing to do.
    pub definition: Option<&'a RawValue>,
    /// Who wants it.
    pub namespace: Option<Cow<'a, str>>,
    /// Whether debug output is wanted.
    pub debug: bool,
    /// Whether a job that has ended without success runs again.
    pub retry: bool,
    /// Addresses to call, verbatim.
    pub callbacks: Option<&'a RawValue>,
}

/// A run's end.
#[derive(Debug)]
pub struct Ended<'a> {
    /// The job.
    pub job: JobId,
    /// The worker.
    pub worker: Option<Cow<'a, str>>,
    /// How it ended.
    pub outcome: RunOutcome,
    /// The container's exit code.
    pub exit_code: Option<i64>,
    /// From container start to exit.
    pub duration_ms: Option<u64>,
    /// The whole of it, verbatim: what is stored and served as the result.
    pub finished: &'a RawValue,
}

/// Who a worker is.
#[derive(Debug)]
pub struct Registration<'a> {
    /// Its id.
    pub id: WorkerId,
    /// Its software's version.
    pub version: String,
    /// How many jobs it runs at once.
    pub cpus: u32,
    /// Its GPUs.
    pub gpus: u32,
    /// The longest it lets a job run, as it was typed.
    pub max_job_duration: Option<String>,
    /// All of it, verbatim: what others are told.
    pub registration: &'a RawValue,
}

/// Why a frame says nothing: the peer hears nothing of it either.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Neither a heartbeat nor a JSON object.
    #[error("neither PING nor a JSON object")]
    NotAMessage,
    /// Not JSON, or not of the shape that its type asks for.
    #[error("not a message of this dialect: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A type that is not known, or a change that means nothing here.
    #[error("unknown {what} {name:?}")]
    Unknown {
        /// What is unknown.
        what: &'static str,
        /// Its name, cut short.
        name: String,
    },
}

fn unknown(what: &'static str, name: &str) -> ReadError {
    ReadError::Unknown { what, name: name.chars().take(40).collect() }
}

#[derive(Deserialize)]
struct Change<'a> {
    #[serde(borrow, default)]
    job: Option<Cow<'a, str>>,
    #[serde(borrow)]
    state: Cow<'a, str>,
    #[serde(borrow)]
    value: &'a RawValue,
}

#[derive(Deserialize)]
struct QueuedValue<'a> {
    #[serde(borrow)]
    enqueued: Enqueued<'a>,
}

#[derive(Deserialize)]
struct Enqueued<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    definition: Option<&'a RawValue>,
    #[serde(borrow, default)]
    control: Option<Control<'a>>,
    #[serde(default)]
    debug: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Control<'a> {
    #[serde(borrow, default)]
    namespace: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    retry: Option<&'a RawValue>,
    #[serde(borrow, default)]
    callbacks: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RunningValue<'a> {
    #[serde(borrow, default)]
    worker: Option<Cow<'a, str>>,
    #[serde(default)]
    time: Option<f64>,
}

#[derive(Deserialize)]
struct FinishedValue<'a> {
    #[serde(borrow)]
    reason: Cow<'a, str>,
    #[serde(borrow, default)]
    worker: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    namespace: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    message: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
}

/// The parts of a result that become part of the record.
#[derive(Default, Deserialize)]
struct ResultParts {
    #[serde(rename = "StatusCode", default)]
    status_code: Option<f64>,
    #[serde(default)]
    duration: Option<f64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RegistrationParts {
    id: WorkerId,
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    cpus: Option<f64>,
    #[serde(default)]
    gpus: Option<f64>,
    #[serde(default)]
    max_job_duration: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogsParts<'a> {
    job_id: JobId,
    #[serde(borrow)]
    step: Cow<'a, str>,
    logs: Vec<LogLine>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OneJob {
    job_id: JobId,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SomeJobs<'a> {
    #[serde(borrow)]
    job_ids: Vec<Cow<'a, str>>,
}

impl<'a> FromPeer<'a> {
    /// Reads one frame.
    ///
    /// # Errors
    ///
    /// [`ReadError`] when it says nothing.
    pub fn read(frame: &'a str) -> Result<Self, ReadError> {
        if frame == PING {
            return Ok(Self::Ping);
        }
        if !frame.starts_with('{') {
            return Err(ReadError::NotAMessage);
        }
        let Envelope { kind, payload } = serde_json::from_str(frame)?;
        let payload = payload.map_or("null", RawValue::get);
        match kind.as_ref() {
            "StateChange" => change(payload),
            "QueryJob" => {
                let OneJob { job_id } = serde_json::from_str(payload)?;
                Ok(Self::QueryJob { job: job_id })
            }
            "QueryJobStates" => Ok(Self::QueryJobStates),
            "WorkerRegistration" => registration(serde_json::from_str(payload)?),
            "JobStatusLogs" => {
                let LogsParts { job_id, step, logs } = serde_json::from_str(payload)?;
                Ok(Self::Logs { job: job_id, step: log_step(&step), lines: logs })
            }
            "RequestJobDefinitions" => {
                let SomeJobs { job_ids } = serde_json::from_str(payload)?;
                // What is no id is unknown like any other, and simply missing from the answer.
                Ok(Self::RequestDefinitions { jobs: job_ids.iter().filter_map(|id| id.parse().ok()).collect() })
            }
            "WorkerStatusResponse" => Ok(Self::Status { status: serde_json::from_str(payload)? }),
            other => Err(unknown("message", other)),
        }
    }
}

fn change(payload: &str) -> Result<FromPeer<'_>, ReadError> {
    let Change { job, state, value } = serde_json::from_str(payload)?;
    let job_id = || -> Result<JobId, ReadError> {
        let text = job.as_deref().unwrap_or_default();
        text.parse().map_err(|_| unknown("job", text))
    };
    match state.as_ref() {
        "Queued" => {
            let QueuedValue { enqueued } = serde_json::from_str(value.get())?;
            let Enqueued { id, definition, control, debug } = enqueued;
            let (namespace, retry, callbacks) =
                control.map_or((None, None, None), |control| (control.namespace, control.retry, control.callbacks));
            Ok(FromPeer::Queued(Queued {
                id: present(id),
                definition,
                namespace: present(namespace),
                debug: debug.is_some_and(|debug| debug == serde_json::Value::Bool(true)),
                retry: retry.is_some_and(|retry| is_truthy(retry.get())),
                callbacks,
            }))
        }
        "Running" => {
            let RunningValue { worker, time } = serde_json::from_str(value.get())?;
            Ok(FromPeer::Running { job: job_id()?, worker: present(worker), at: UnixMillis(whole(time).unwrap_or(0)) })
        }
        "Finished" => finished(job_id()?, value),
        other => Err(unknown("state", other)),
    }
}

fn finished(job: JobId, value: &RawValue) -> Result<FromPeer<'_>, ReadError> {
    let FinishedValue { reason, worker, namespace, message, result } = serde_json::from_str(value.get())?;
    let outcome = match reason.as_ref() {
        "Success" => RunOutcome::Success,
        "Error" => RunOutcome::Error,
        "TimedOut" => RunOutcome::TimedOut,
        "Cancelled" | "Deleted" => {
            let is_delete = reason == "Deleted";
            return Ok(FromPeer::Withdrawn {
                job,
                namespace: present(namespace),
                is_delete,
                message: present(message),
            });
        }
        other => return Err(unknown("reason", other)),
    };
    let parts: ResultParts = result.and_then(|result| serde_json::from_str(result.get()).ok()).unwrap_or_default();
    Ok(FromPeer::Ended(Ended {
        job,
        worker: present(worker),
        outcome,
        exit_code: parts.status_code.and_then(exit_code),
        duration_ms: whole(parts.duration),
        finished: value,
    }))
}

fn registration(raw: &RawValue) -> Result<FromPeer<'_>, ReadError> {
    let RegistrationParts { id, version, cpus, gpus, max_job_duration } = serde_json::from_str(raw.get())?;
    let count = |number: Option<f64>| whole(number).and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
    let (cpus, gpus) = (count(cpus), count(gpus));
    let version = version.unwrap_or_default();
    Ok(FromPeer::Registration(Registration { id, version, cpus, gpus, max_job_duration, registration: raw }))
}

/// Whether JavaScript takes the value of a JSON text for a yes.
fn is_truthy(json: &str) -> bool {
    let is_zero = || json.parse().is_ok_and(|number: f64| number == 0.0);
    !matches!(json, "null" | "false" | "\"\"") && !is_zero()
}

/// JavaScript's empty text counts as none.
fn present(text: Option<Cow<'_, str>>) -> Option<Cow<'_, str>> {
    text.filter(|text| !text.is_empty())
}

/// The five steps that there are; an unknown one is the run's.
fn log_step(text: &str) -> LogStep {
    match text {
        "docker image pull" => LogStep::Pull,
        "cloning repo" => LogStep::Clone,
        "docker build" => LogStep::Build,
        "docker image push" => LogStep::Push,
        _ => LogStep::Run,
    }
}

/// A JavaScript number as a whole one, if it is that large and no larger than JavaScript counts exactly.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
pub(super) fn whole(number: Option<f64>) -> Option<u64> {
    number.filter(|number| (0.0..=9_007_199_254_740_991.0).contains(number)).map(|number| number as u64)
}

#[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
fn exit_code(number: f64) -> Option<i64> {
    (number.abs() <= 9_007_199_254_740_991.0).then_some(number as i64)
}
