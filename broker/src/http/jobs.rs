//! Reading jobs: a queue's list, one job, its definition, its result, its namespaces.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use protocol::id::{JobId, Namespace, RunNumber};
use protocol::queue::{Job, Status};
use serde::Serialize;
use serde_json::value::RawValue;

use super::app::AppState;
use super::error::ApiError;
use super::find::{Scope, raw};
use super::params::{Params, job};
use super::reply;
use super::shape::{JobEntry, Sendable, finished_reason, state};

/// From this many jobs on a list is written on a thread of its own.
const LARGE_LIST: usize = 1_000;

/// `GET /q/:queue[/j]`
pub(super) async fn list(State(app): State<AppState>, params: Params) -> Result<Response, ApiError> {
    let jobs = app.engine.queue(&params.queue()?).jobs().await?;
    if jobs.len() < LARGE_LIST {
        return Ok(write_list(&jobs));
    }
    tokio::task::spawn_blocking(move || write_list(&jobs)).await.map_err(ApiError::internal)
}

fn write_list(jobs: &[(JobId, Job)]) -> Response {
    reply::data(Sendable(jobs, JobEntry::new))
}

/// `GET /q/:queue/j/:job`
pub(super) async fn single(State(app): State<AppState>, params: Params) -> Result<Response, ApiError> {
    let (scope, id) = (app.scope(&params)?, params.job()?);
    answer_single(&app, &scope, id).await
}

/// `GET /j/:job.json`
pub(super) async fn single_anywhere(State(app): State<AppState>, id: &str) -> Result<Response, ApiError> {
    answer_single(&app, &app.anywhere()?, job(id)?).await
}

#[derive(Serialize)]
struct Single<'a> {
    definition: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    results: Option<JobEntry<'a>>,
    /// Says what becomes of jobs that end without a result, which the original's shape cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Standing<'a>>,
}

/// Where a job stands in its queue.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Standing<'a> {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_reason: Option<&'static str>,
    run: RunNumber,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced_by: Option<JobId>,
}

impl<'a> Standing<'a> {
    fn of(job: &'a Job) -> Self {
        let (mut exit_code, mut message, mut replaced_by) = (None, None, None);
        match &job.status {
            Status::Queued { .. } | Status::Running {} | Status::Deleted {} => {}
            Status::Finished { exit_code: code, .. } => exit_code = *code,
            Status::Cancelled { message: said } => message = said.as_deref(),
            Status::Replaced { by } => replaced_by = Some(*by),
        }
        Self {
            state: state(&job.status),
            finished_reason: finished_reason(&job.status),
            run: job.run,
            exit_code,
            message,
            replaced_by,
        }
    }
}

async fn answer_single(app: &AppState, scope: &Scope, id: JobId) -> Result<Response, ApiError> {
    let Some(definition) = app.definition(scope, id).await? else {
        return Err(ApiError::request(StatusCode::NOT_FOUND, "no_such_job", "Job not found"));
    };
    let finished = app.finished(scope, id).await?;
    let results = match &finished {
        Some(finished) => Some(JobEntry::new(&finished.job).with_finished(finished.finished()?)),
        None => None,
    };
    let known = app.one(scope, id).await?;
    let status = known.as_ref().map(|(_, record)| Standing::of(&record.job));
    Ok(reply::data(Single { definition: raw(&definition)?, results, status }))
}

/// `GET [/q/:queue]/j/:job/definition.json`
pub(super) async fn definition(State(app): State<AppState>, params: Params) -> Result<Response, ApiError> {
    let definition = app.definition(&app.scope(&params)?, params.job()?).await?;
    Ok(reply::data(definition.as_ref().map(raw).transpose()?))
}

/// `GET [/q/:queue]/j/:job/result[s].json`
pub(super) async fn result(State(app): State<AppState>, params: Params) -> Result<Response, ApiError> {
    let Some(finished) = app.finished(&app.scope(&params)?, params.job()?).await? else {
        return Ok(reply::data(None::<()>));
    };
    Ok(reply::data(JobEntry::new(&finished.job).with_finished(finished.finished()?)))
}

/// `GET /q/:queue/j/:job/namespaces.json`
pub(super) async fn namespaces(State(app): State<AppState>, params: Params) -> Result<Response, ApiError> {
    let record = app.engine.queue(&params.queue()?).job(params.job()?).await?;
    let namespaces: Vec<Namespace> =
        record.map(|record| record.job.namespaces.into_keys().collect()).unwrap_or_default();
    Ok(reply::data(namespaces))
}
