//! `GET /q/:queue/j/:job/history.json`: what happened to a job, from the journal.

use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use protocol::id::{Digest, Seq};
use protocol::record::Record;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::app::AppState;
use super::error::ApiError;
use super::params::Params;
use super::reply;

/// How long a request waits for its turn: a few walks of a usual length, and less than a page or a proxy waits.
const TURN_TIME: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
pub(super) struct Asked {
    before: Option<Seq>,
}

/// Records as they are stored, so that whoever has them all can check the chain.
#[derive(Serialize)]
struct Stored {
    #[serde(flatten)]
    record: Record,
    hash: Digest,
}

#[derive(Serialize)]
struct Told {
    data: Vec<Stored>,
    /// Where to ask on for what was before; null when there is nothing.
    before: Option<Seq>,
}

pub(super) async fn history(
    State(app): State<AppState>,
    params: Params,
    query: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, ApiError> {
    let (queue, job) = (app.engine.queue(&params.queue()?), params.job()?);
    let Query(asked) = query.map_err(|_| ApiError::bad("bad_before", "`before` must be a whole number"))?;
    // A queue that never heard of the job is not walked through.
    if queue.job(job).await?.is_none() {
        return Ok(reply::json(StatusCode::OK, &Told { data: Vec::new(), before: None }));
    }
    let _turn = turn(&app.walks).await?;
    let history = queue.history(job, asked.before).await?;
    let data = history.records.into_iter().map(|(record, hash)| Stored { record, hash }).collect();
    Ok(reply::json(StatusCode::OK, &Told { data, before: history.before }))
}

/// Waits for one of the walks that may go on at once.
async fn turn(walks: &Semaphore) -> Result<SemaphorePermit<'_>, ApiError> {
    let Ok(turn) = tokio::time::timeout(TURN_TIME, walks.acquire()).await else {
        let message = "the broker is busy reading other jobs' histories; try again in a moment";
        return Err(ApiError::request(StatusCode::SERVICE_UNAVAILABLE, "busy", message));
    };
    turn.map_err(ApiError::internal)
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_gets_no_turn_is_told_to_come_back() {
        let walks = Semaphore::new(1);
        let held = turn(&walks).await.unwrap();
        let refused = tokio::time::timeout(TURN_TIME * 2, turn(&walks)).await.unwrap().unwrap_err();
        assert_eq!(refused.code(), Some("busy"));
        let refused = refused.into_response();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.headers().contains_key("retry-after"));
        drop(held);
        assert!(turn(&walks).await.is_ok());
    }
}
