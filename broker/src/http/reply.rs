//! Answers: JSON, text, and the headers they carry.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use protocol::id::Head;
use serde::Serialize;

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=UTF-8");
const LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain;charset=UTF-8");

/// The header that says where the queue's chain stands after a command: whoever keeps it can hold the broker to it.
pub(super) const HEAD_NAME: &str = "gridsocket-head";
const HEAD: header::HeaderName = header::HeaderName::from_static(HEAD_NAME);

fn response(status: StatusCode, content_type: HeaderValue, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

pub(super) fn text(status: StatusCode, text: impl Into<Body>) -> Response {
    let mut response = response(status, TEXT, text);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// JSON that is text already.
pub(super) fn raw_json(status: StatusCode, json: impl Into<Body>) -> Response {
    response(status, JSON, json)
}

/// JSON, one value a line, as it comes.
pub(super) fn json_lines(lines: Body) -> Response {
    response(StatusCode::OK, LINES, lines)
}

pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(json) => raw_json(status, json),
        // Only a stored body that is not JSON can do this, and those are read before.
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            text(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
        }
    }
}

/// `{"data": …}`.
pub(super) fn data<T: Serialize>(data: T) -> Response {
    #[derive(Serialize)]
    struct Data<T> {
        data: T,
    }
    json(StatusCode::OK, &Data { data })
}

/// Adds the head that a command left its queue at.
pub(super) fn with_head(mut response: Response, head: Head) -> Response {
    if let Ok(value) = HeaderValue::from_str(&format!("{} {}", head.seq, head.hash)) {
        response.headers_mut().insert(HEAD, value);
    }
    response
}
