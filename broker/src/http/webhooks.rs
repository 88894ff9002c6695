//! What became of a queue's webhooks, and another try for dead letters.

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use protocol::id::{JobId, Namespace, QueueKey, UnixMillis};
use serde::Serialize;

use super::app::AppState;
use super::error::ApiError;
use super::params::Params;
use super::reply;
use crate::webhooks::{CallId, Listing, NotACall, Shown};

/// A queue's webhooks, on the wire.
#[derive(Serialize)]
struct Webhooks {
    waiting: usize,
    pending: Vec<Pending>,
    dead: Vec<Dead>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Call {
    id: String,
    event: &'static str,
    job_id: JobId,
    namespace: Namespace,
    url: String,
    tries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pending {
    #[serde(flatten)]
    call: Call,
    next_time: UnixMillis,
}

#[derive(Serialize)]
struct Dead {
    #[serde(flatten)]
    call: Call,
    time: UnixMillis,
}

impl From<Shown> for Call {
    fn from(shown: Shown) -> Self {
        let Shown { id, kind, job, namespace, url, tries, at_ms: _, error } = shown;
        Self { id: id.to_string(), event: kind.name(), job_id: job, namespace, url, tries, error }
    }
}

/// `GET /q/:queue/webhooks.json`
pub(super) async fn list(State(app): State<AppState>, params: Params) -> Result<Response, ApiError> {
    let queue = QueueKey::of(&params.queue()?);
    let listing = match app.engine.webhooks() {
        Some(book) => book.list(queue).await,
        None => Listing::default(),
    };
    let Listing { waiting, pending, dead } = listing;
    let pending = pending.into_iter().map(|shown| Pending { next_time: shown.at_ms, call: shown.into() }).collect();
    let dead = dead.into_iter().map(|shown| Dead { time: shown.at_ms, call: shown.into() }).collect();
    Ok(reply::data(Webhooks { waiting, pending, dead }))
}

/// `POST /q/:queue/webhooks/retry`: all dead letters of the queue, or the one that `id` names.
pub(super) async fn retry(
    State(app): State<AppState>,
    params: Params,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    #[derive(Serialize)]
    struct Retried {
        success: bool,
        retried: usize,
    }
    let queue = QueueKey::of(&params.queue()?);
    let only = query.as_deref().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("id="));
    let only: Option<CallId> = only
        .map(str::parse)
        .transpose()
        .map_err(|error: NotACall| ApiError::bad("bad_webhook_id", error.to_string()))?;
    let retried = match app.engine.webhooks() {
        Some(book) => book.retry(queue, only).await,
        None => 0,
    };
    if only.is_some() && retried == 0 {
        let message = "the queue has no dead letter of that id; webhooks.json lists those that it has";
        return Err(ApiError::request(StatusCode::NOT_FOUND, "no_such_dead_letter", message));
    }
    Ok(reply::json(StatusCode::OK, &Retried { success: true, retried }))
}
