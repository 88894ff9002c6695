//! What happens around every route: preflights, origins, websocket upgrades, CORS headers, room for what
//! is not sent yet, and no panic getting through.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::FutureExt;
use hyper::body::{Body as _, Incoming};
use tokio::time::Instant;
use tower::Service;

use super::app::AppState;
use super::client::Client;
use super::connection::Connection;
use super::cors::{Cors, Origin};
use super::error::ApiError;
use super::metrics::Answers;
use super::rates::Rates;
use super::room::{Room, Taken};
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
    /// For messages that come in on sockets.
    room: Room,
    /// For answers that are not sent yet.
    unsent: Room,
    answers: Arc<Answers>,
    config: Arc<Config>,
}

/// Answers up to this size take no room: any connection has as much in its buffers.
const FREE_ANSWER_BYTES: u64 = 64 * 1024;

impl Answerer {
    pub(super) fn new(app: AppState) -> Self {
        let cors = Cors::new(&app.config);
        let sockets = app.sockets.clone();
        let sessions = SessionContext { engine: app.engine.clone() };
        let rates = Rates::new(app.config.limits.requests_per_address_max);
        let (room, unsent) = (app.room.clone(), Room::for_answers(app.config.limits.answers_bytes_max));
        let (answers, config) = (Arc::clone(&app.answers), Arc::clone(&app.config));
        let originals = app.originals.clone();
        Self { originals, router: router(app), sessions, cors, sockets, rates, room, unsent, answers, config }
    }

    /// Answers one request, whatever happens inside.
    pub(super) async fn answer(&self, connection: &Arc<Connection>, request: Request<Incoming>) -> Response {
        let origin = self.cors.origin(request.headers());
        let mut response = guarded(self.route(connection, request, &origin)).await;
        response = self.with_room(response).await;
        // What it is said to be is what it is: no browser is to find a page or a script in it.
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        self.cors.allow(&origin, response.headers_mut());
        self.answers.count(response.status());
        response
    }

    /// The answer, with room for it until it is sent: whoever asks for large ones and does not read them would else fill the
    /// memory. Answers that are made as they are read need none.
    async fn with_room(&self, response: Response) -> Response {
        let Some(bytes) = response.body().size_hint().exact().filter(|bytes| *bytes > FREE_ANSWER_BYTES) else {
            return response;
        };
        let mut taken = Taken::default();
        if let Err(full) = self.unsent.take(&mut taken, bytes) {
            return full.into_response();
        }
        let (head, body) = response.into_parts();
        // All of it is there already.
        match axum::body::to_bytes(body, usize::MAX).await {
            Ok(bytes) => Response::from_parts(head, Body::from(Bytes::from_owner(Unsent { bytes, _taken: taken }))),
            Err(error) => ApiError::internal(error).into_response(),
        }
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
            let upgraded =
                socket::upgrade(&self.sessions, &self.originals, &self.sockets, &self.room, connection, request);
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

/// What is not sent yet, with the room that it takes.
struct Unsent {
    bytes: Bytes,
    _taken: Taken,
}

impl AsRef<[u8]> for Unsent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
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
