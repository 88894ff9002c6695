//! What happens around every route: preflights, origins, websocket upgrades, CORS headers, and no panic getting through.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use hyper::body::Incoming;
use tower::Service;

use super::app::AppState;
use super::connection::Connection;
use super::cors::{Cors, Origin};
use super::error::ApiError;
use super::routes::router;
use super::socket::{self, Sockets};
use crate::session::SessionContext;

/// Answers requests.
pub(super) struct Answerer {
    router: Router,
    sessions: SessionContext,
    cors: Cors,
    sockets: Sockets,
}

impl Answerer {
    pub(super) fn new(app: AppState) -> Self {
        let cors = Cors::new(&app.config);
        let sockets = Sockets::new(app.config.limits.sockets_per_address_max);
        let sessions = SessionContext { engine: app.engine.clone() };
        Self { router: router(app), sessions, cors, sockets }
    }

    /// Answers one request, whatever happens inside.
    pub(super) async fn answer(&self, connection: &Arc<Connection>, request: Request<Incoming>) -> Response {
        let origin = self.cors.origin(request.headers());
        let mut response = guarded(self.route(connection, request, &origin)).await;
        self.cors.allow(&origin, response.headers_mut());
        response
    }

    async fn route(&self, connection: &Arc<Connection>, request: Request<Incoming>, origin: &Origin) -> Response {
        if request.method() == Method::OPTIONS {
            return self.cors.preflight(origin, request.headers());
        }
        if !self.cors.knows_host(connection.peer.ip(), request.headers()) {
            let message =
                "this broker is not known by that host name; use localhost, or name its address in its settings";
            return ApiError::request(StatusCode::MISDIRECTED_REQUEST, "host_not_known", message).into_response();
        }
        let is_upgrade = socket::is_upgrade(request.headers());
        // A page can send some requests without a preflight, and open any socket; only this stops it.
        if origin.is_foreign() && (is_upgrade || !request.method().is_safe()) {
            let message = "pages of this origin may not use this broker; allow the origin in its settings";
            return ApiError::request(StatusCode::FORBIDDEN, "origin_not_allowed", message).into_response();
        }
        if is_upgrade {
            let upgraded = socket::upgrade(&self.sessions, &self.sockets, connection, request);
            return upgraded.unwrap_or_else(IntoResponse::into_response);
        }
        let mut router = self.router.clone();
        match router.call(request.map(Body::new)).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// A panic in a handler is that request's end, not its connection's.
async fn guarded(answering: impl Future<Output = Response>) -> Response {
    AssertUnwindSafe(answering).catch_unwind().await.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without a text");
        ApiError::internal(format!("a handler panicked: {text}")).into_response()
    })
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered_without_its_text() {
        let response = guarded(async { panic!("secret text") }).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        assert!(body.contains("\"code\":\"internal\"") && !body.contains("secret"), "{body}");
    }
}
