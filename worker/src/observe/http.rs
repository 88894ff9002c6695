//! `/metrics` and `/healthz`, on an address that the worker's owner chose: few connections, each for a short time.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use protocol::exposition;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{info, warn};

use super::health::Health;
use super::observer::Observer;
use crate::error::WorkerError;

/// How many may be connected: a few who scrape and a few who check.
const CONNECTIONS_MAX: usize = 16;
/// The most bytes of a request's line and headers (the least that the server library can be held to).
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// How long a request's headers may take.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// How long a connection may stay: longer than the usual time between two scrapes.
const CONNECTION_TIME: Duration = Duration::from_secs(90);
/// How long to wait after a connection could not be accepted: out of open files, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json; charset=utf-8";

/// Takes the address.
pub(super) async fn listen(address: SocketAddr) -> Result<TcpListener, WorkerError> {
    let listener = TcpListener::bind(address).await.map_err(|source| WorkerError::Listen { address, source })?;
    match listener.local_addr() {
        Ok(at) => info!("numbers at http://{at}/metrics, health at http://{at}/healthz"),
        Err(error) => warn!("cannot tell the address of the metrics: {error}"),
    }
    Ok(listener)
}

/// Answers until it is dropped.
pub(super) async fn serve(listener: TcpListener, observer: Arc<Observer>) {
    let is_local = listener.local_addr().is_ok_and(|at| at.ip().is_loopback());
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_BYTES_MAX);
    // Dropped with this task, so that no connection outlives it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!("a connection for metrics could not be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let observer = Arc::clone(&observer);
        let service = service_fn(move |request| {
            let observer = Arc::clone(&observer);
            async move { Ok::<_, Infallible>(answer(&request, is_local, &observer).await) }
        });
        let connection = http.serve_connection(TokioIo::new(stream), service);
        connections.spawn(async move {
            // Whoever asked has gone or was too slow: nothing of ours is wrong.
            let _ = timeout(CONNECTION_TIME, connection).await;
            drop(permit);
        });
    }
}

async fn answer(request: &Request<Incoming>, is_local: bool, observer: &Observer) -> Response<Full<Bytes>> {
    if is_local && !is_own_host(request.headers().get(HOST)) {
        let why = "this address is for programs on this machine; ask for it as localhost or by its number\n";
        return reply(StatusCode::MISDIRECTED_REQUEST, TEXT, why);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, "there is only something to get here\n");
    }
    match request.uri().path() {
        "/metrics" => {
            let text = super::metrics::text(&observer.snapshot().await);
            reply(StatusCode::OK, exposition::CONTENT_TYPE, text)
        }
        "/healthz" => {
            let snapshot = observer.snapshot().await;
            let health = Health::of(&snapshot);
            let status = if health.is_healthy() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            reply(status, JSON, health.body(&snapshot))
        }
        _ => reply(StatusCode::NOT_FOUND, TEXT, "there is /metrics and /healthz\n"),
    }
}

fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Whether the name that was asked for is this machine's own, so that no page of a stranger whose name was pointed here can read
/// what a browser gets. A request without one comes from no browser.
fn is_own_host(host: Option<&HeaderValue>) -> bool {
    let Some(host) = host else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_others_can_point_here_is_not_ours() {
        let is_own = |host: &str| is_own_host(Some(&HeaderValue::from_str(host).unwrap()));
        for own in ["localhost", "LOCALHOST:9000", "127.0.0.1:9000", "127.0.0.1", "[::1]:9000", "[::1]"] {
            assert!(is_own(own), "{own}");
        }
        for foreign in ["evil.example", "localhost.evil.example:9000", "127.0.0.1.evil.example", "", ":9000", "[x]:1"] {
            assert!(!is_own(foreign), "{foreign}");
        }
        assert!(is_own_host(None));
    }
}
