//! Putting jobs into queues: submit and copy.

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use protocol::event::Via;
use protocol::id::{JobId, Namespace};
use protocol::json::{self, Value};
use protocol::raw::RawJson;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::app::AppState;
use super::error::ApiError;
use super::find::Scope;
use super::params::{self, Params};
use super::reply;
use crate::config::Flavour;
use crate::engine::SubmitJob;

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
    let body = body(&app, request).await?;
    let done = queue.submit(read_submission(&body)?).await?;
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
    let copy: Copy<'_> = object(&body)?;
    let target = copy.queue.map(RawValue::get).map(parse).transpose()?;
    let target = target
        .as_ref()
        .and_then(Value::as_str)
        .ok_or_else(|| ApiError::bad("queue_missing", "the body must name the queue to copy to: {\"queue\": \"…\"}"))?;
    let queue = app.engine.queue(&params::queue(target)?);
    let namespace = namespace(copy.control)?;
    let Some(definition) = app.definition(&Scope::Everywhere, id).await? else {
        return Err(ApiError::request(StatusCode::NOT_FOUND, "no_such_job", "Job definition not found"));
    };
    let definition = RawJson::new(utf8(&definition)?);
    let submit = SubmitJob { id: Some(id), definition, namespace, priority: 0, debug: false, via: Via::Copy };
    let done = queue.submit(submit).await?;
    let answer = Submitted { success: true, job_id: None };
    Ok(reply::with_head(reply::json(StatusCode::OK, &answer), done.head))
}

async fn body(app: &AppState, request: Request<Body>) -> Result<Bytes, ApiError> {
    let limits = &app.config.limits;
    let (head, body) = request.into_parts();
    params::body(&head.headers, body, limits.body_bytes_max, limits.body_idle_timeout).await
}

fn read_submission(body: &Bytes) -> Result<SubmitJob, ApiError> {
    let submission: Submission<'_> = object(body)?;
    let id = submission.id.map(|id| parse(id.get())).transpose()?.filter(is_truthy);
    let id = id
        .map(|id| id.as_str().map(params::job).ok_or_else(|| ApiError::bad("bad_job_id", "id must be text")))
        .transpose()?
        .transpose()?;
    let Some(definition) = submission.definition else {
        let message = "the body has no definition; send {\"definition\": {\"image\": \"…\", \"command\": \"…\"}}";
        return Err(ApiError::bad("no_definition", message));
    };
    let debug = submission.debug.map(|debug| parse(debug.get())).transpose()?.is_some_and(|debug| is_truthy(&debug));
    Ok(SubmitJob {
        id,
        definition: RawJson::new(definition.get()),
        namespace: namespace(submission.control)?,
        priority: 0,
        debug,
        via: Via::Http,
    })
}

/// Reads a body that must be a JSON object.
fn object<'a, T: Deserialize<'a>>(body: &'a Bytes) -> Result<T, ApiError> {
    let text = utf8(body)?;
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|error| not_json(&error));
    }
    match serde_json::from_str::<&RawValue>(text) {
        Ok(_) => Err(ApiError::bad("not_an_object", "the body must be a JSON object")),
        Err(error) => Err(not_json(&error)),
    }
}

fn not_json(error: &serde_json::Error) -> ApiError {
    let code = if error.is_data() { "bad_body" } else { "not_json" };
    ApiError::bad(code, format!("the body is not what is expected here: {error}"))
}

fn utf8(bytes: &Bytes) -> Result<&str, ApiError> {
    std::str::from_utf8(bytes).map_err(|error| {
        ApiError::bad("not_utf8", format!("the body is not UTF-8: byte {} starts no character", error.valid_up_to()))
    })
}

fn parse(text: &str) -> Result<Value, ApiError> {
    json::parse(text.as_bytes()).map_err(|error| ApiError::bad("not_json", error.to_string()))
}

/// The namespace in `control`; JavaScript's false values count as none.
fn namespace(control: Option<&RawValue>) -> Result<Option<Namespace>, ApiError> {
    let Some(control) = control.map(|control| parse(control.get())).transpose()? else { return Ok(None) };
    if control.as_object().is_none() && !control.is_null() {
        return Err(ApiError::bad("bad_control", format!("control must be an object, not {}", control.kind())));
    }
    let Some(named) = control.get("namespace").filter(|named| is_truthy(named)) else { return Ok(None) };
    let text = named.as_str().ok_or_else(|| ApiError::bad("bad_namespace", "control.namespace must be text"))?;
    parse_namespace(text).map(Some)
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
