//! Putting jobs into queues: submit and copy.

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use protocol::array::{ArrayError, Indices};
use protocol::event::Via;
use protocol::id::{JobId, Namespace};
use protocol::json::{self, Value};
use protocol::native::Callbacks;
use protocol::raw::RawJson;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::app::AppState;
use super::error::ApiError;
use super::find::Scope;
use super::params::{self, Params, Whole};
use super::reply;
use crate::config::Flavour;
use crate::engine::SubmitJob;
use crate::webhooks::read_callbacks;

/// The longest line that may be an array's template: its definition is taken apart, which takes many times the memory of its
/// text, and is written anew for each number.
const TEMPLATE_BYTES_MAX: usize = 1024 * 1024;

/// What a submission looks like, for those who sent something else.
const EXAMPLE: &str = "{\"definition\": {\"image\": \"…\", \"command\": \"…\"}}";

/// The body of a submission. Only the definition must be there; it is kept as it came.
#[derive(Deserialize)]
struct Submission<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    definition: Option<&'a RawValue>,
    #[serde(borrow, default)]
    control: Option<&'a RawValue>,
    #[serde(borrow, default)]
    debug: Option<&'a RawValue>,
    #[serde(borrow, default)]
    array: Option<&'a RawValue>,
}

/// What a submission asks for: a job, or in a line with `array` as many as there are numbers.
pub(super) struct Asked {
    pub(super) job: SubmitJob,
    pub(super) array: Option<Indices>,
}

/// What a text is called in errors.
#[derive(Clone, Copy)]
pub(super) enum Unit {
    /// A request's whole body.
    Body,
    /// One line of it.
    Line,
}

impl Unit {
    const fn name(self) -> &'static str {
        match self {
            Self::Body => "body",
            Self::Line => "line",
        }
    }
}

/// The body of a copy.
#[derive(Deserialize)]
struct Copy<'a> {
    #[serde(borrow, default)]
    queue: Option<&'a RawValue>,
    #[serde(borrow, default)]
    control: Option<&'a RawValue>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Submitted {
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_id: Option<JobId>,
}

/// `POST /q/:queue[/j]`
pub(super) async fn submit(
    State(app): State<AppState>,
    params: Params,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let queue = app.engine.queue(&params.queue()?);
    let retry = asks_for_retry(request.uri().query().unwrap_or_default());
    let body = body(&app, request).await?;
    let Asked { mut job, .. } = read_submission(&body, Unit::Body)?;
    job.retry |= retry;
    let done = queue.submit(job).await?;
    let answer = Submitted { success: true, job_id: Some(done.job) };
    Ok(reply::with_head(reply::json(StatusCode::OK, &answer), done.head))
}

/// `POST /j/:job/copy`
pub(super) async fn copy(
    State(app): State<AppState>,
    params: Params,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    #[derive(Serialize)]
    struct OneQueue {
        message: &'static str,
    }
    if app.config.flavour == Flavour::Local {
        let message = "a local broker has one queue, so there is nowhere to copy to";
        return Ok(reply::json(StatusCode::BAD_REQUEST, &OneQueue { message }));
    }
    let id = params.job()?;
    let body = body(&app, request).await?;
    let copy: Copy<'_> = object(&body, Unit::Body)?;
    let target = copy.queue.map(RawValue::get).map(parse).transpose()?;
    let target = target
        .as_ref()
        .and_then(Value::as_str)
        .ok_or_else(|| ApiError::bad("queue_missing", "the body must name the queue to copy to: {\"queue\": \"…\"}"))?;
    let queue = app.engine.queue(&params::queue(target)?);
    let Control { namespace, callbacks, .. } = control(copy.control)?;
    let Some(definition) = app.definition(&Scope::Everywhere, id).await? else {
        return Err(ApiError::request(StatusCode::NOT_FOUND, "no_such_job", "Job definition not found"));
    };
    let definition = RawJson::new(utf8(&definition, Unit::Body)?);
    let submit = SubmitJob {
        id: Some(id),
        definition,
        namespace,
        priority: 0,
        debug: false,
        retry: false,
        callbacks,
        via: Via::Copy,
    };
    let done = queue.submit(submit).await?;
    let answer = Submitted { success: true, job_id: None };
    Ok(reply::with_head(reply::json(StatusCode::OK, &answer), done.head))
}

async fn body(app: &AppState, request: Request<Body>) -> Result<Whole, ApiError> {
    let limits = &app.config.limits;
    let (head, body) = request.into_parts();
    params::body(&head.headers, body, limits.body_bytes_max, limits.body_idle_timeout, &app.room).await
}

/// Reads a submission: a whole body, or a line of a bulk.
pub(super) fn read_submission(text: &[u8], unit: Unit) -> Result<Asked, ApiError> {
    let submission: Submission<'_> = object(text, unit)?;
    let id = submission.id.map(|id| parse(id.get())).transpose()?.filter(is_truthy);
    let id = id
        .map(|id| id.as_str().map(params::job).ok_or_else(|| ApiError::bad("bad_job_id", "id must be text")))
        .transpose()?
        .transpose()?;
    let Some(definition) = submission.definition else {
        let message = format!("the {} has no definition; send {EXAMPLE}", unit.name());
        return Err(ApiError::bad("no_definition", message));
    };
    let debug = submission.debug.map(|debug| parse(debug.get())).transpose()?.is_some_and(|debug| is_truthy(&debug));
    // Judged before it is taken apart.
    let array = match submission.array.map(RawValue::get).filter(|array| *array != "null") {
        None => None,
        Some(_) if matches!(unit, Unit::Body) => {
            let message = "one submission is one job; send arrays to /q/<queue>/bulk, which answers each of their jobs";
            return Err(ApiError::bad("array_not_here", message));
        }
        Some(_) if text.len() > TEMPLATE_BYTES_MAX => {
            let message = format!(
                "a line with an array may have {TEMPLATE_BYTES_MAX} bytes, this one has {}; put large inputs into blobs",
                text.len()
            );
            return Err(ApiError::request(StatusCode::PAYLOAD_TOO_LARGE, "template_too_large", message));
        }
        Some(_) if id.is_some() => {
            return Err(ApiError::bad("bad_array", "an array makes jobs of many ids, so it takes no id"));
        }
        Some(array) => Some(Indices::read(&parse(array)?).map_err(|error| bad_array(&error))?),
    };
    let Control { namespace, retry, callbacks } = control(submission.control)?;
    let job = SubmitJob {
        id,
        definition: RawJson::new(definition.get()),
        namespace,
        priority: 0,
        debug,
        retry,
        callbacks,
        via: Via::Http,
    };
    Ok(Asked { job, array })
}

pub(super) fn bad_array(error: &ArrayError) -> ApiError {
    ApiError::bad("bad_array", error.to_string())
}

/// Reads a text that must be a JSON object.
fn object<'a, T: Deserialize<'a>>(text: &'a [u8], unit: Unit) -> Result<T, ApiError> {
    let text = utf8(text, unit)?;
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|error| not_json(&error, unit));
    }
    match serde_json::from_str::<&RawValue>(text) {
        // The original's text.
        Ok(value) if value.get() == "null" && matches!(unit, Unit::Body) => {
            Err(ApiError::bad("not_an_object", "No job provided"))
        }
        Ok(_) => Err(ApiError::bad("not_an_object", format!("the {} must be a JSON object", unit.name()))),
        Err(error) => Err(not_json(&error, unit)),
    }
}

fn not_json(error: &serde_json::Error, unit: Unit) -> ApiError {
    let code = if error.is_data() { "bad_body" } else { "not_json" };
    let what = match unit {
        Unit::Body => error.to_string(),
        // A line has its own number; one counted within it would be taken for that.
        Unit::Line => error.to_string().replace(&format!(" at line {} column", error.line()), " at column"),
    };
    ApiError::bad(code, format!("the {} is not what is expected here: {what}", unit.name()))
}

fn utf8(bytes: &[u8], unit: Unit) -> Result<&str, ApiError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let (name, at) = (unit.name(), error.valid_up_to());
        ApiError::bad("not_utf8", format!("the {name} is not UTF-8: byte {at} starts no character"))
    })
}

fn parse(text: &str) -> Result<Value, ApiError> {
    json::parse(text.as_bytes()).map_err(|error| ApiError::bad("not_json", error.to_string()))
}

/// `retry=1` in the address, or anything that does not say no.
pub(super) fn asks_for_retry(query: &str) -> bool {
    let mut values = query.split('&').filter_map(|pair| match pair.split_once('=') {
        Some((name, value)) => (name == "retry").then_some(value),
        None => (pair == "retry").then_some("1"),
    });
    values.next_back().is_some_and(|value| !matches!(value, "" | "0" | "false"))
}

/// What the broker reads of `control`.
#[derive(Default)]
struct Control {
    namespace: Option<Namespace>,
    retry: bool,
    callbacks: Callbacks,
}

/// The part of `control` that is kept as it stands.
#[derive(Default, Deserialize)]
struct Verbatim<'a> {
    #[serde(borrow, default)]
    callbacks: Option<&'a RawValue>,
}

/// Reads `control`; JavaScript's false values count as nothing said.
fn control(control: Option<&RawValue>) -> Result<Control, ApiError> {
    let Some(raw) = control else { return Ok(Control::default()) };
    let control = parse(raw.get())?;
    if control.as_object().is_none() && !control.is_null() {
        return Err(ApiError::bad("bad_control", format!("control must be an object, not {}", control.kind())));
    }
    let retry = control.get("retry").is_some_and(is_truthy);
    let verbatim = if control.is_null() { Ok(Verbatim::default()) } else { serde_json::from_str(raw.get()) };
    let Verbatim { callbacks } = verbatim.map_err(|error| ApiError::bad("bad_control", format!("control: {error}")))?;
    let callbacks = read_callbacks(callbacks)?;
    let Some(named) = control.get("namespace").filter(|named| is_truthy(named)) else {
        return Ok(Control { namespace: None, retry, callbacks });
    };
    let text = named.as_str().ok_or_else(|| ApiError::bad("bad_namespace", "control.namespace must be text"))?;
    Ok(Control { namespace: Some(parse_namespace(text)?), retry, callbacks })
}

pub(super) fn parse_namespace(text: &str) -> Result<Namespace, ApiError> {
    text.parse().map_err(|error: protocol::id::IdError| ApiError::bad("bad_namespace", error.to_string()))
}

fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(number) => *number != 0.0 && !number.is_nan(),
        Value::String(text) => !text.is_empty(),
        Value::Bool(true) | Value::Array(_) | Value::Object(_) => true,
    }
}
