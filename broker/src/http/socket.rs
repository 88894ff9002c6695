//! From an HTTP request to a websocket session: which queue, which end, which dialect.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use axum::response::Response;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use protocol::codec::{Encoding, FRAME_BYTES_MAX, SUBPROTOCOL_JSON, SUBPROTOCOL_MESSAGEPACK};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role as End, WebSocketConfig};
use tokio_util::sync::CancellationToken;

use super::address::Address;
use super::client::Client;
use super::connection::Connection;
use super::error::ApiError;
use super::metered::Metered;
use super::room::Room;
use crate::original::{self, Originals};
use crate::session::{self, SessionContext};

/// What a socket reads at once. Most sockets are idle most of the time, and each holds this much.
const READ_BUFFER_BYTES: usize = 4096;

/// The most bytes that wait to be written on one socket: the snapshot of the longest queue fits as one message.
const WRITE_BUFFER_BYTES_MAX: usize = 4 * FRAME_BYTES_MAX;

/// How long a socket has to say goodbye when the broker stops.
const GOODBYE_TIME: Duration = Duration::from_secs(1);

/// How a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// Ours, in one of its encodings.
    Native(Encoding),
    /// That of the original's pages and workers, who ask for no subprotocol.
    Original,
}

/// Whether a request wants to become a websocket.
pub(super) fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The first offered subprotocol that is ours; none offered means the original's dialect.
fn dialect(headers: &HeaderMap) -> Result<Dialect, ApiError> {
    let mut offered = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .flat_map(|value| value.to_str().unwrap_or_default().split(','))
        .map(str::trim)
        .peekable();
    if offered.peek().is_none() {
        return Ok(Dialect::Original);
    }
    offered.find_map(Encoding::of_subprotocol).map(Dialect::Native).ok_or_else(|| {
        let message =
            format!("no offered subprotocol is spoken here; {SUBPROTOCOL_MESSAGEPACK} and {SUBPROTOCOL_JSON} are");
        ApiError::bad("no_such_subprotocol", message)
    })
}

/// Answers the handshake and starts the session.
pub(super) fn upgrade(
    sessions: &SessionContext,
    originals: &Originals,
    sockets: &Sockets,
    room: &Room,
    connection: &Arc<Connection>,
    mut request: Request<Incoming>,
) -> Result<Response, ApiError> {
    let address = Address::parse(request.uri().path())?;
    let headers = request.headers();
    let dialect = dialect(headers)?;
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
        return Err(ApiError::bad("bad_handshake", "a websocket handshake has a Sec-WebSocket-Key"));
    };
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(ApiError::bad("bad_handshake", "this broker speaks websocket version 13"));
    }
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(ApiError::internal)?;
    let client = request.extensions().get::<Client>().and_then(Client::counted);
    let counted = sockets.count(client)?;

    let (context, originals, room) = (sessions.clone(), originals.clone(), room.clone());
    // Holds the connection's place among all connections for as long as the socket lives.
    let connection_held = Arc::clone(connection);
    let stop = connection.stop.clone();
    let upgrade = hyper::upgrade::on(&mut request);
    connection.tasks.spawn(async move {
        let _held = (connection_held, counted);
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => return tracing::debug!(%error, "a websocket handshake was not finished"),
        };
        let stream = Metered::new(TokioIo::new(upgraded), room);
        let socket = WebSocketStream::from_raw_socket(stream, End::Server, Some(socket_config())).await;
        let served = async {
            match dialect {
                Dialect::Native(encoding) => {
                    session::serve(socket, context, address.queue, address.role, encoding).await;
                }
                Dialect::Original => original::serve(socket, originals, address.queue, address.role).await,
            }
        };
        tokio::select! {
            () = served => {}
            () = overtime(stop) => {}
        }
    });

    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Dialect::Native(encoding) = dialect {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(encoding.subprotocol()));
    }
    Ok(response)
}

/// Resolves some time after the broker was told to stop. Sessions end by themselves when their queues do; one that has not
/// said which it belongs to would wait for its hello.
async fn overtime(stop: CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(GOODBYE_TIME).await;
}

fn socket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX))
}

/// How many sockets each address has; event streams are counted with them, for each holds a connection for as long as its
/// reader likes. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Sockets {
    by_address: Arc<Mutex<HashMap<IpAddr, u32>>>,
    per_address_max: u32,
}

/// One socket's place in the count, given back when dropped.
#[derive(Debug)]
pub(super) struct Counted {
    address: IpAddr,
    by_address: Arc<Mutex<HashMap<IpAddr, u32>>>,
}

impl Sockets {
    pub(super) fn new(per_address_max: u32) -> Self {
        Self { by_address: Arc::default(), per_address_max }
    }

    /// Counts one more socket of that address; this machine, which has none here, is not limited.
    ///
    /// # Errors
    ///
    /// 429 when the address has as many as it may.
    pub(super) fn count(&self, address: Option<IpAddr>) -> Result<Option<Counted>, ApiError> {
        let Some(address) = address else { return Ok(None) };
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_address.entry(address).or_default();
        if *count >= self.per_address_max {
            let message = format!(
                "this address has {count} sockets and event streams, which is the limit; close some, and behind a proxy see --trusted-proxy"
            );
            return Err(ApiError::request(StatusCode::TOO_MANY_REQUESTS, "too_many_sockets", message));
        }
        *count += 1;
        Ok(Some(Counted { address, by_address: Arc::clone(&self.by_address) }))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_subprotocol_that_is_spoken_is_chosen() {
        let of = |offered: &[&'static str]| {
            let pairs = offered.iter().map(|value| (header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(value)));
            dialect(&pairs.collect()).ok()
        };
        assert_eq!(of(&[]), Some(Dialect::Original));
        assert_eq!(of(&["gridsocket.v1"]), Some(Dialect::Native(Encoding::MessagePack)));
        assert_eq!(of(&["other, gridsocket.v1.json"]), Some(Dialect::Native(Encoding::Json)));
        assert_eq!(of(&["other", "gridsocket.v1.json, gridsocket.v1"]), Some(Dialect::Native(Encoding::Json)));
        assert_eq!(of(&["other"]), None);
    }

    #[test]
    fn an_address_over_its_limit_is_refused_until_a_socket_of_it_ends() {
        let sockets = Sockets::new(2);
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let one = sockets.count(Some(address)).unwrap();
        let _two = sockets.count(Some(address)).unwrap();
        assert!(sockets.count(Some(address)).is_err());
        assert!(sockets.count("192.0.2.2".parse().ok()).is_ok());
        drop(one);
        assert!(sockets.count(Some(address)).is_ok());
        for _ in 0..9 {
            assert!(sockets.count(None).unwrap().is_none());
        }
    }
}
