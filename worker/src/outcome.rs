//! How a run's end is told: the original's `finished` object, and the native summary around it. Pure.

use bollard::errors::Error as EngineError;
use protocol::event::RunOutcome;
use protocol::id::{ImageId, UnixMillis, WorkerId};
use protocol::native::{FinishedRun, HeldRun, LogLine};
use protocol::raw::RawJson;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::container::is_away;

/// Outputs by their path below `/outputs`, as data refs.
pub(crate) type Outputs = Map<String, Value>;

/// The exit code of a process that was killed.
const KILLED_CODE: i64 = 137;

/// The original's result object.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct RunResult {
    #[serde(rename = "StatusCode", skip_serializing_if = "Option::is_none")]
    pub(crate) status_code: Option<i64>,
    #[serde(rename = "isTimedOut", skip_serializing_if = "Option::is_none")]
    pub(crate) is_timed_out: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) duration: Option<u64>,
    pub(crate) logs: Vec<LogLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) outputs: Option<Outputs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<Value>,
}

/// A run's end before it is put into words.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ending {
    pub(crate) outcome: RunOutcome,
    pub(crate) image: Option<String>,
    pub(crate) result: RunResult,
    /// Whether only the engine's absence ended it: it says nothing about the job.
    pub(crate) is_engine_away: bool,
}

impl Ending {
    /// The container ran to its end and its outputs were collected.
    pub(crate) fn success(code: i64, duration_ms: u64, logs: Vec<LogLine>, outputs: Outputs) -> Self {
        let result = RunResult {
            status_code: Some(code),
            is_timed_out: Some(false),
            duration: Some(duration_ms),
            logs,
            outputs: Some(outputs),
            error: None,
        };
        Self { outcome: RunOutcome::Success, image: None, result, is_engine_away: false }
    }

    /// The container ran to its end but its outputs could not be collected.
    pub(crate) fn outputs_failed(code: i64, duration_ms: u64, logs: Vec<LogLine>, why: String) -> Self {
        let mut ending = Self::success(code, duration_ms, logs, Map::new());
        ending.outcome = RunOutcome::Error;
        ending.result.error = Some(Value::String(why));
        ending
    }

    /// The container was stopped at its time limit.
    pub(crate) fn timed_out(duration_ms: u64, logs: Vec<LogLine>) -> Self {
        let mut ending = Self::success(KILLED_CODE, duration_ms, logs, Map::new());
        ending.outcome = RunOutcome::TimedOut;
        ending.result.is_timed_out = Some(true);
        ending
    }

    /// The container was stopped at a limit other than its time.
    pub(crate) fn over_limit(duration_ms: u64, logs: Vec<LogLine>, why: String) -> Self {
        Self::outputs_failed(KILLED_CODE, duration_ms, logs, why)
    }

    /// The inputs, or the definition itself, could not be used.
    pub(crate) fn bad_input(why: impl Into<String>, at_ms: UnixMillis) -> Self {
        let why = why.into();
        let logs = vec![line(&why, at_ms)];
        let result = RunResult { logs, error: Some(Value::String(why)), ..RunResult::default() };
        Self { outcome: RunOutcome::Error, image: None, result, is_engine_away: false }
    }

    /// There is no image: it could not be pulled, or none was named.
    pub(crate) fn no_image(why: &str, at_ms: UnixMillis) -> Self {
        let result = RunResult {
            is_timed_out: Some(false),
            logs: vec![line(why, at_ms)],
            outputs: Some(Map::new()),
            error: Some(Value::String("Error".to_owned())),
            ..RunResult::default()
        };
        Self { outcome: RunOutcome::Error, image: None, result, is_engine_away: false }
    }

    /// The image could not be built; `logs` are all that the build said.
    pub(crate) fn not_built(logs: Vec<LogLine>) -> Self {
        let result = RunResult {
            is_timed_out: Some(false),
            logs,
            outputs: Some(Map::new()),
            error: Some(Value::String("Error".to_owned())),
            ..RunResult::default()
        };
        Self { outcome: RunOutcome::Error, image: None, result, is_engine_away: false }
    }

    /// The engine refused, lost or could not follow the container.
    pub(crate) fn engine(what: &str, error: &EngineError, at_ms: UnixMillis) -> Self {
        let (status_code, message) = engine_words(error);
        let reason = reason_words(status_code);
        let logs = vec![line(&format!("{what}: {reason}"), at_ms), line(&message, at_ms)];
        let away = is_away(error);
        let error = json!({ "statusCode": status_code, "json": { "message": message }, "reason": reason });
        let result = RunResult { logs, error: Some(error), ..RunResult::default() };
        Self { outcome: RunOutcome::Error, image: None, result, is_engine_away: away }
    }

    /// Says what went wrong, where the outcome is the program's own.
    pub(crate) fn with_error(mut self, why: String) -> Self {
        self.result.error = Some(Value::String(why));
        self
    }

    /// With the outputs that could be had, whatever became of the rest.
    pub(crate) fn with_outputs(mut self, outputs: Outputs) -> Self {
        self.result.outputs = Some(outputs);
        self
    }

    /// Names the image that ran.
    pub(crate) fn with_image(self, image: Option<String>) -> Self {
        Self { image, ..self }
    }

    /// The words for the broker.
    pub(crate) fn report(self, run: HeldRun, worker: &WorkerId, at_ms: UnixMillis) -> FinishedRun {
        #[derive(Serialize)]
        struct Finished<'a> {
            #[serde(rename = "type")]
            kind: &'static str,
            reason: &'static str,
            worker: &'a str,
            time: UnixMillis,
            result: &'a RunResult,
        }
        let reason = match self.outcome {
            RunOutcome::Success => "Success",
            RunOutcome::Error => "Error",
            RunOutcome::TimedOut => "TimedOut",
        };
        let finished =
            Finished { kind: "Finished", reason, worker: worker.as_str(), time: at_ms, result: &self.result };
        let text = serde_json::to_string(&finished).expect("invariant: plain data with text keys");
        FinishedRun {
            job: run.job,
            run: run.run,
            outcome: self.outcome,
            exit_code: self.result.status_code,
            image: self.image.as_deref().and_then(ImageId::of_engine),
            duration_ms: self.result.duration,
            finished: RawJson::new(text),
        }
    }
}

/// Two lines for an exit code that is not 0.
/// `out_of_memory`: what it was allowed, if it was killed for want of more.
pub(crate) fn exit_code_lines(code: i64, container: &str, duration_ms: u64, out_of_memory: Option<u64>) -> Vec<String> {
    let mut lines = vec![format!("the container exited with code {code}")];
    lines.push(match (code, out_of_memory) {
        (_, Some(limit)) => {
            format!("container {} after {} s: {}", short(container), duration_ms / 1000, out_of_memory_words(limit))
        }
        (KILLED_CODE, None) => format!(
            "exit code 137: container {} was killed after {} s, often because it ran out of memory",
            short(container),
            duration_ms / 1000
        ),
        (_, None) => format!("exit code {code}: the program in the container reported an error"),
    });
    lines
}

/// Why a process in a container was killed that was allowed `limit` bytes of memory; 0: all that the machine had.
pub(crate) fn out_of_memory_words(limit: u64) -> String {
    if limit == 0 {
        return "the job ran out of memory: the machine had no more".to_owned();
    }
    format!("the job ran out of memory: it was allowed {}; ask for more with requirements.memory", in_units(limit))
}

/// Bytes as people write them.
pub(crate) fn in_units(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        // One digit after the point, and none where it says nothing.
        Some((name, unit)) if bytes % unit * 10 / unit == 0 => format!("{} {name}", bytes / unit),
        Some((name, unit)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} bytes"),
    }
}

fn short(container: &str) -> &str {
    container.get(..12).unwrap_or(container)
}

fn line(text: &str, at_ms: UnixMillis) -> LogLine {
    LogLine { text: format!("{text}\n"), at_ms, stderr: true }
}

/// Status code and message of an engine's refusal. 503 stands for an engine that could not be asked.
fn engine_words(error: &EngineError) -> (u16, String) {
    const UNREACHABLE: u16 = 503;
    if let EngineError::DockerResponseServerError { status_code, message } = error {
        (*status_code, message.trim_end().to_owned())
    } else {
        (UNREACHABLE, format!("the container engine could not be asked: {}", with_sources(error)))
    }
}

/// An error and what caused it, in one line.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

const fn reason_words(status_code: u16) -> &'static str {
    match status_code {
        400 => "bad parameter",
        404 => "no such image, container or network",
        409 => "conflict",
        500 => "server error",
        503 => "no answer",
        _ => "unexpected answer",
    }
}

#[cfg(test)]
mod tests {
    use protocol::id::JobId;

    use super::*;

    fn told(ending: Ending) -> Value {
        let run = HeldRun { job: JobId::from_bytes([0; 32]), run: 1 };
        let report = ending.report(run, &"w1".parse().unwrap(), UnixMillis(9));
        serde_json::from_str(report.finished.as_str()).unwrap()
    }

    #[test]
    fn a_success_is_told_as_the_original_tells_it() {
        let logs = vec![LogLine { text: "hello\n".to_owned(), at_ms: UnixMillis(3), stderr: false }];
        let mut outputs = Outputs::new();
        outputs.insert("n.txt".to_owned(), json!({"type": "base64", "value": "NDIK"}));
        assert_eq!(
            told(Ending::success(0, 6512, logs, outputs)),
            json!({"type": "Finished", "reason": "Success", "worker": "w1", "time": 9, "result": {
                "StatusCode": 0, "isTimedOut": false, "duration": 6512, "logs": [["hello\n", 3]],
                "outputs": {"n.txt": {"type": "base64", "value": "NDIK"}}}})
        );
    }

    #[test]
    fn an_engines_refusal_keeps_the_shape_that_pages_show() {
        let refusal = EngineError::DockerResponseServerError { status_code: 400, message: "no such file\n".to_owned() };
        let result = &told(Ending::engine("cannot start the container", &refusal, UnixMillis(1)))["result"];
        assert_eq!(
            result["error"],
            json!({"statusCode": 400, "json": {"message": "no such file"}, "reason": "bad parameter"})
        );
        assert_eq!(result["logs"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn unusable_input_is_an_error_text_and_one_line() {
        assert_eq!(
            told(Ending::bad_input("no", UnixMillis(1)))["result"],
            json!({"logs": [["no\n", 1, true]], "error": "no"})
        );
    }

    #[test]
    fn a_job_that_ran_out_of_memory_is_told_what_it_was_allowed() {
        assert!(out_of_memory_words(64 << 20).contains("allowed 64 MiB"));
        assert!(out_of_memory_words(0).contains("the machine had no more"));
        assert_eq!(in_units(3 << 29), "1.5 GiB");
        assert_eq!((in_units(1000), in_units(1024)), ("1000 bytes".to_owned(), "1 KiB".to_owned()));
        let lines = exit_code_lines(137, "0123456789abcdef", 2000, Some(6 << 20));
        assert!(lines[1].contains("0123456789ab after 2 s") && lines[1].contains("6 MiB"), "{lines:?}");
    }

    #[test]
    fn a_timeout_says_so() {
        let told = told(Ending::timed_out(1000, Vec::new()));
        assert_eq!(told["reason"], "TimedOut");
        assert_eq!(
            told["result"],
            json!({"StatusCode": 137, "isTimedOut": true, "duration": 1000, "logs": [], "outputs": {}})
        );
    }
}
