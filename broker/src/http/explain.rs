//! Why a job stands where it stands.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use protocol::explain::Standing;

use super::app::AppState;
use super::error::ApiError;
use super::params::Params;
use super::reply;

/// `GET /q/:queue/j/:job/explain`: [`protocol::explain::Explanation`].
///
/// # Errors
///
/// 404 when the queue neither has nor keeps the job.
pub(super) async fn explain(State(app): State<AppState>, params: Params) -> Result<Response, ApiError> {
    let explanation = app.engine.queue(&params.queue()?).explain(params.job()?).await?;
    if explanation.standing == Standing::Unknown {
        return Err(ApiError::request(StatusCode::NOT_FOUND, "no_such_job", explanation.reason));
    }
    Ok(reply::json(StatusCode::OK, &explanation))
}
