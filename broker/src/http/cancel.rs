//! `POST /q/:queue/j/:job/cancel` and `POST /q/:queue/j/:job/:namespace/cancel`.

use std::borrow::Cow;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use percent_encoding::percent_decode_str;
use protocol::id::{JobId, Namespace};
use serde::Serialize;

use super::app::AppState;
use super::error::ApiError;
use super::params::{Params, query};
use super::reply;
use super::submit::parse_namespace;
use crate::config::Flavour;
use crate::engine::{CancelBefore, CancelScope, QueueHandle};

/// Stands for every namespace.
const ALL: &str = "*";

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

pub(super) async fn cancel(State(app): State<AppState>, params: Params, uri: Uri) -> Result<Response, ApiError> {
    let (queue, job_id) = (app.engine.queue(&params.queue()?), params.job()?);
    let asked = |name: &str| query(&uri, name).filter(|text| !text.is_empty());
    let named = params.get("namespace").map(str::to_owned).or_else(|| asked("namespace"));
    let namespace = meant(&queue, job_id, named.unwrap_or_else(|| Namespace::DEFAULT.to_owned())).await?;
    let scope = if namespace == ALL { CancelScope::All } else { CancelScope::One(parse_namespace(&namespace)?) };
    let message = asked("message").unwrap_or_else(|| "Job cancelled by API".to_owned());
    let cancelled = queue.cancel(job_id, scope, Some(message)).await?;
    let told = match (cancelled.before, app.config.flavour) {
        (CancelBefore::Unknown, _) => Told::Message { message: "Job not found" },
        (CancelBefore::Ended, Flavour::Remote) => Told::Message { message: "Job already Finished" },
        (CancelBefore::Ended, Flavour::Local) => Told::Done { success: true },
        (CancelBefore::Live, _) => Told::Cancelled { success: true, job_id, namespace: &namespace },
    };
    Ok(reply::with_head(reply::json(StatusCode::OK, &told), cancelled.head))
}

/// The namespace that a name means. The original decodes it twice, so some callers encode it twice: a name that the job does not have
/// is read once more.
async fn meant(queue: &QueueHandle, job: JobId, named: String) -> Result<String, ApiError> {
    let again = percent_decode_str(&named).decode_utf8().ok().filter(|again| *again != named);
    let Some(again) = again.map(Cow::into_owned) else { return Ok(named) };
    let held = queue.job(job).await?.map(|record| record.job.namespaces).unwrap_or_default();
    let holds = |name: &str| held.keys().any(|held| held.as_str() == name);
    Ok(if !holds(&named) && (again == ALL || holds(&again)) { again } else { named })
}
