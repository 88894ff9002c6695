//! Which handler answers what: the router, made of the table that the documents are made of too.

mod route;
mod table;

use std::sync::LazyLock;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};

use super::address::Address;
use super::app::AppState;
use super::error::ApiError;

pub(super) use self::route::{Content, Query, Route};
pub(super) use self::table::EXAMPLE_JOB;

/// Every route there is. A websocket's address is none of them; see [`super::answer`].
pub(super) static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(table::routes);

/// The router. CORS, websocket upgrades and the catching of panics are around it; see [`super::answer`].
pub(super) fn router(state: AppState) -> Router {
    let served = ROUTES.iter().filter_map(|route| Some((route.path.as_str(), route.serve?)));
    served
        .fold(Router::new(), |router, (path, serve)| router.route(path, serve()))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(state)
}

async fn not_found(request: Request<Body>) -> ApiError {
    if Address::parse(request.uri().path()).is_ok() {
        let message = "this address is a websocket's; connect with the subprotocol gridsocket.v1 or gridsocket.v1.json";
        return ApiError::request(StatusCode::UPGRADE_REQUIRED, "websocket_expected", message);
    }
    ApiError::request(
        StatusCode::NOT_FOUND,
        "no_such_route",
        "there is nothing at this address; /openapi.json says what is where",
    )
}

async fn method_not_allowed() -> ApiError {
    ApiError::request(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this address does not take that method")
}
