//! `POST /q/:queue/j/:job/cancel` and `POST /q/:queue/j/:job/:namespace/cancel`.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use protocol::id::{JobId, Namespace};
use serde::{Deserialize, Serialize};

use super::app::AppState;
use super::error::ApiError;
use super::params::Params;
use super::reply;
use super::submit::parse_namespace;
use crate::config::Flavour;
use crate::engine::{CancelBefore, CancelScope};

/// Stands for every namespace.
const ALL: &str = "*";

#[derive(Deserialize)]
pub(super) struct Asked {
    namespace: Option<String>,
    message: Option<String>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Told<'a> {
    Message {
        message: &'static str,
    },
    Done {
        success: bool,
    },
    Cancelled {
        success: bool,
        #[serde(rename = "jobId")]
        job_id: JobId,
        namespace: &'a str,
    },
}

pub(super) async fn cancel(
    State(app): State<AppState>,
    params: Params,
    query: Result<Query<Asked>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    let (queue, job_id) = (app.engine.queue(&params.queue()?), params.job()?);
    let Query(asked) = query.map_err(|_| ApiError::bad("bad_query", "the query cannot be read"))?;
    let named = params.get("namespace").or(asked.namespace.as_deref()).filter(|named| !named.is_empty());
    let namespace = named.unwrap_or(Namespace::DEFAULT);
    let scope = if namespace == ALL { CancelScope::All } else { CancelScope::One(parse_namespace(namespace)?) };
    let message = asked.message.filter(|message| !message.is_empty());
    let message = message.unwrap_or_else(|| "Job cancelled by API".to_owned());
    let cancelled = queue.cancel(job_id, scope, Some(message)).await?;
    let told = match (cancelled.before, app.config.flavour) {
        (CancelBefore::Unknown, _) => Told::Message { message: "Job not found" },
        (CancelBefore::Ended, Flavour::Remote) => Told::Message { message: "Job already Finished" },
        (CancelBefore::Ended, Flavour::Local) => Told::Done { success: true },
        (CancelBefore::Live, _) => Told::Cancelled { success: true, job_id, namespace },
    };
    Ok(reply::with_head(reply::json(StatusCode::OK, &told), cancelled.head))
}
