//! How a job ended, in a sentence and an exit code: pure.

use protocol::event::RunOutcome;
use protocol::json::Value;
use protocol::queue::Status;

use super::follow::View;
use crate::exit;
use crate::progress::one_line;

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The exit code of a command that waited for it.
    pub(crate) code: u8,
    /// The sentence.
    pub(crate) text: String,
    /// The names of its result files.
    pub(crate) outputs: Vec<String>,
}

/// The longest error text that is quoted.
const ERROR_CHARS_MAX: usize = 2000;

impl Verdict {
    fn failed(text: impl Into<String>) -> Self {
        Self { code: exit::FAILED, text: text.into(), outputs: Vec::new() }
    }

    /// The verdict on a job whose result document is here.
    pub(crate) fn of_result(document: &Value) -> Self {
        let finished = document.get("finished");
        let result = finished.and_then(|finished| finished.get("result"));
        let reason = document.get("finishedReason").or_else(|| finished?.get("reason")).and_then(Value::as_str);
        let outputs = result.and_then(|result| result.get("outputs")).and_then(Value::as_object);
        let outputs = outputs.map(|files| files.iter().map(|(name, _)| name.to_string_lossy().into_owned()).collect());
        let error = result.and_then(|result| result.get("error")).and_then(error_text);
        // For many failures the field says only `Error`; why is then the last line of the log.
        let is_told = error.as_deref().is_some_and(|error| error != "Error");
        let error = if is_told { error } else { result.and_then(last_line).or(error) };
        let because = error.map_or_else(String::new, |error| format!(": {error}"));
        let (code, text) = match reason {
            Some("Success") => success(result),
            Some("TimedOut") => (exit::FAILED, "the job ran into its time limit and was stopped".to_owned()),
            Some("Error") => (exit::FAILED, format!("the job could not be run{because}")),
            Some(other) => (exit::FAILED, format!("the job ended: {}{because}", one_line(other))),
            None => (exit::FAILED, "the job ended, and its result does not say how".to_owned()),
        };
        Self { code, text, outputs: outputs.unwrap_or_default() }
    }

    /// The verdict on a job that ended without a result; `None` when it should have one.
    pub(crate) fn of_view(view: &View) -> Option<Self> {
        match &view.status {
            Status::Cancelled { message: Some(message) } => {
                Some(Self::failed(format!("the job was cancelled: {}", one_line(message))))
            }
            Status::Cancelled { message: None } => Some(Self::failed("the job was cancelled")),
            Status::Replaced { by } => Some(Self::failed(format!("the job was replaced in its namespace by {by}"))),
            Status::Deleted {} => Some(Self::failed("the job was deleted")),
            Status::Finished { outcome: RunOutcome::Success | RunOutcome::Error | RunOutcome::TimedOut, .. }
            | Status::Queued { .. }
            | Status::Running {} => None,
        }
    }

    /// The verdict on a job that the queue does not hold and that has no result.
    pub(crate) fn of_absence(is_known: bool) -> Self {
        Self::failed(if is_known {
            "the job ended without a result: it was cancelled, replaced or deleted"
        } else {
            "the queue has no job of that id"
        })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a whole number, and casts saturate")]
fn success(result: Option<&Value>) -> (u8, String) {
    let field = |name| result.and_then(|result| result.get(name)).and_then(Value::as_f64);
    let code = field("StatusCode").filter(|code| code.fract() == 0.0).map_or(0, |code| code as i64);
    let took =
        field("duration").filter(|ms| *ms >= 0.0).map_or_else(String::new, |ms| format!(" after {:.1} s", ms / 1000.0));
    (exit::of_container(code), format!("finished with exit code {code}{took}"))
}

/// The error as text: a string, or the engine's object with a message inside.
fn error_text(error: &Value) -> Option<String> {
    let message = error.get("json").and_then(|json| json.get("message")).or_else(|| error.get("message"));
    let text = error.as_str().or_else(|| message.and_then(Value::as_str));
    let text = text.map_or_else(|| protocol::json::to_json(error), str::to_owned);
    let text: String = one_line(text.trim()).chars().take(ERROR_CHARS_MAX).collect();
    (!text.is_empty() && !error.is_null()).then_some(text)
}

fn last_line(result: &Value) -> Option<String> {
    let lines = result.get("logs").and_then(Value::as_array)?;
    let text = lines.last()?.as_array()?.first()?.as_js_string()?.to_string_lossy();
    let text: String = one_line(text.trim()).chars().take(ERROR_CHARS_MAX).collect();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(json: &str) -> Verdict {
        Verdict::of_result(&protocol::json::parse(json.as_bytes()).unwrap())
    }

    #[test]
    fn a_containers_exit_code_is_the_verdict() {
        let ended = verdict(
            r#"{"finishedReason":"Success","finished":{"reason":"Success","result":
            {"StatusCode":3,"duration":1250,"outputs":{"a.txt":{},"b/c":{}}}}}"#,
        );
        let outputs = vec!["a.txt".to_owned(), "b/c".to_owned()];
        assert_eq!(ended, Verdict { code: 3, text: "finished with exit code 3 after 1.2 s".into(), outputs });
        assert_eq!(verdict(r#"{"finished":{"reason":"Success","result":{"StatusCode":0}}}"#).code, 0);
        assert_eq!(verdict(r#"{"finished":{"reason":"Success","result":{"StatusCode":1000}}}"#).code, 1);
    }

    #[test]
    fn anything_but_success_is_one_with_a_sentence() {
        let error = verdict(r#"{"finishedReason":"Error","finished":{"result":{"error":"no such image"}}}"#);
        assert_eq!((error.code, error.text.as_str()), (1, "the job could not be run: no such image"));
        let engine =
            verdict(r#"{"finishedReason":"Error","finished":{"result":{"error":{"json":{"message":"bad\nname"}}}}}"#);
        assert_eq!(engine.text, "the job could not be run: bad\u{fffd}name");
        let pull = verdict(
            r#"{"finishedReason":"Error","finished":{"result":{"error":"Error","logs":[["a\n",1],["no route\n",2]]}}}"#,
        );
        assert_eq!(pull.text, "the job could not be run: no route");
        let late = verdict(r#"{"finishedReason":"TimedOut","finished":{"result":{"StatusCode":137}}}"#);
        assert_eq!(late.code, 1);
        assert_eq!(verdict("{}").code, 1);
    }

    #[test]
    fn an_end_without_a_result_is_one_with_a_sentence() {
        let of = |status| Verdict::of_view(&View { status, run: 1, worker: None });
        let cancelled = of(Status::Cancelled { message: Some("enough".into()) }).unwrap();
        assert_eq!((cancelled.code, cancelled.text.as_str()), (1, "the job was cancelled: enough"));
        assert_eq!(of(Status::Deleted {}).unwrap().code, 1);
        assert_eq!(of(Status::Running {}), None);
        assert_eq!(Verdict::of_absence(false).code, 1);
    }
}
