//! Which handler answers what; and what needs no handler of its own: the page, health, addresses where nothing is.

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};

use super::address::Address;
use super::app::AppState;
use super::error::ApiError;
use super::{blobs, cancel, files, jobs, logs, status, submit};

/// All routes. CORS, websocket upgrades and the catching of panics are around it; see [`super::answer`].
pub(super) fn router(state: AppState) -> Router {
    let scoped = Router::new()
        .route("/definition.json", get(jobs::definition))
        .route("/result.json", get(jobs::result))
        .route("/results.json", get(jobs::result))
        .route("/inputs/", get(files::missing_name))
        .route("/inputs/{*name}", get(files::input))
        .route("/outputs/", get(files::missing_name))
        .route("/outputs/{*name}", get(files::output))
        .route("/build-logs.json", get(logs::build))
        .route("/run-logs.json", get(logs::run));
    let in_queue = scoped
        .clone()
        .route("/namespaces.json", get(jobs::namespaces))
        .route("/cancel", post(cancel::cancel))
        .route("/{namespace}/cancel", post(cancel::cancel));
    Router::new()
        .route("/", get(page))
        .route("/healthz", get(healthy))
        .route("/health", get(healthy))
        .route("/metrics", get(status::broker_metrics))
        .route("/f/{key}", get(blobs::get).put(blobs::put))
        .route("/f/{key}/exists", get(blobs::exists))
        .route("/q/{queue}", get(jobs::list).post(submit::submit))
        .route("/q/{queue}/j", get(jobs::list).post(submit::submit))
        .route("/q/{queue}/j/{job}", get(jobs::single))
        .nest("/q/{queue}/j/{job}", in_queue)
        .route("/q/{queue}/status", get(status::status))
        .route("/q/{queue}/metrics", get(status::queue_metrics))
        .route("/{queue}/status", get(status::status))
        .route("/{queue}/metrics", get(status::queue_metrics))
        .route("/{queue}/j/{job}/result.json", get(jobs::result))
        .route("/j/{job}", get(jobs::single_anywhere))
        .nest("/j/{job}", scoped)
        .route("/j/{job}/copy", post(submit::copy))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(state)
}

async fn not_found(request: Request<Body>) -> ApiError {
    if Address::parse(request.uri().path()).is_ok() {
        let message = "this address is a websocket's; connect with the subprotocol gridsocket.v1 or gridsocket.v1.json";
        return ApiError::request(StatusCode::UPGRADE_REQUIRED, "websocket_expected", message);
    }
    ApiError::request(StatusCode::NOT_FOUND, "no_such_route", "there is nothing at this address")
}

async fn method_not_allowed() -> ApiError {
    ApiError::request(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this address does not take that method")
}

async fn healthy() -> &'static str {
    "OK"
}

/// Everything the page is, in one file: no build step and nothing fetched from elsewhere.
const PAGE: &str = include_str!("../page/index.html");

/// The page shows text that strangers wrote; should any of it ever be taken for markup, it can load and reach nothing.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
                           connect-src 'self'; base-uri 'none'; form-action 'none'";

async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // The address's fragment holds a queue's name.
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, PAGE)
}
