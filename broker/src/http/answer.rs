//! What happens around every route: preflights, origins, websocket upgrades, CORS headers, and no panic getting through.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use hyper::body::Incoming;
use tokio::time::Instant;
use tower::Service;

use super::app::AppState;
use super::client::Client;
use super::connection::Connection;
use super::cors::{Cors, Origin};
use super::error::ApiError;
use super::metrics::Answers;
use super::rates::Rates;
use super::routes::router;
use super::socket::{self, Sockets};
use crate::config::Config;
use crate::original::Originals;
use crate::session::SessionContext;

/// Answers requests.
pub(super) struct Answerer {
    router: Router,
    sessions: SessionContext,
    originals: Originals,
    cors: Cors,
    sockets: Sockets,
    rates: Rates,
    answers: Arc<Answers>,
    config: Arc<Config>,
}

impl Answerer {
    pub(super) fn new(app: AppState) -> Self {
        let cors = Cors::new(&app.config);
        let sockets = app.sockets.clone();
        let sessions = SessionContext { engine: app.engine.clone() };
        let rates = Rates::new(app.config.limits.requests_per_address_max);
        let (answers, config) = (Arc::clone(&app.answers), Arc::clone(&app.config));
        Self { originals: app.originals.clone(), router: router(app), sessions, cors, sockets, rates, answers, config }
    }

    /// Answers one request, whatever happens inside.
    pub(super) async fn answer(&self, connection: &Arc<Connection>, request: Request<Incoming>) -> Response {
        let origin = self.cors.origin(request.headers());
        let mut response = guarded(self.route(connection, request, &origin)).await;
        self.cors.allow(&origin, response.headers_mut());
        self.answers.count(response.status());
        response
    }

    async fn route(&self, connection: &Arc<Connection>, mut request: Request<Incoming>, origin: &Origin) -> Response {
        let client = Client::of(connection.peer.ip(), request.headers(), &self.config.trusted_proxies);
        if let Some(address) = client.counted()
            && let Err(refused) = self.rates.count(address, Instant::now())
        {
            return refused.into_response();
        }
        request.extensions_mut().insert(client);
        if request.method() == Method::OPTIONS {
            return self.cors.preflight(origin, request.headers());
        }
        if !self.cors.knows_host(connection.peer.ip(), request.headers()) {
            let message = "a local broker is not known by that host name; open it as localhost or by its number, \
                           or run `gridsocket serve`, which answers to every name";
            return ApiError::request(StatusCode::MISDIRECTED_REQUEST, "host_not_known", message).into_response();
        }
        let is_upgrade = socket::is_upgrade(request.headers());
        // A page can send some requests without a preflight, and open any socket; only this stops it.
        if origin.is_foreign() && (is_upgrade || !request.method().is_safe()) {
            let message = "pages of this origin may not use a local broker; open the page from this machine, \
                           or run `gridsocket serve`, which takes pages of every origin";
            return ApiError::request(StatusCode::FORBIDDEN, "origin_not_allowed", message).into_response();
        }
        if is_upgrade {
            let upgraded = socket::upgrade(&self.sessions, &self.originals, &self.sockets, connection, request);
            return upgraded.unwrap_or_else(IntoResponse::into_response);
        }
        let mut request = request.map(Body::new);
        // Answers that go on for long end when the broker does.
        request.extensions_mut().insert(connection.stop.clone());
        let mut router = self.router.clone();
        match router.call(request).await {
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
