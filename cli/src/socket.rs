//! A native socket to a broker: connects, sends, receives, and gives up on a silent peer. Knows no message's meaning.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use protocol::codec::{CodecError, Encoding, FRAME_BYTES_MAX, MESSAGE_BYTES_MAX};
use protocol::native::{FromBroker, ToBroker};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message, http};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use crate::job::api::{Api, ApiError, message_in};

/// How long a connection may take to come about, TLS and upgrade included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the broker may be silent: it pings well within half of this.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a message of ours may take to leave.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// What is held back for writing: our messages are small.
const WRITE_BUFFER_BYTES_MAX: usize = 1024 * 1024;
const ENCODING: Encoding = Encoding::MessagePack;

/// Why a socket came to its end, or to no beginning.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ApiError),
    /// It broke: worth another try.
    #[error("the connection to the broker broke: {0}")]
    Broken(String),
    /// The peer does not speak the dialect: not worth another try.
    #[error("the broker sent what is no message: {0}")]
    Codec(#[from] CodecError),
}

impl SocketError {
    /// Whether a new socket may do better.
    pub(crate) const fn is_transient(&self) -> bool {
        match self {
            Self::Connect(ApiError::NoBroker { .. } | ApiError::Unreachable { .. }) | Self::Broken(_) => true,
            // A proxy in front of a broker that restarts answers 502 or 503 for a while.
            Self::Connect(ApiError::Refused { status, .. }) => status.as_u16() >= 500,
            Self::Connect(ApiError::NotABroker { .. } | ApiError::File { .. }) | Self::Codec(_) => false,
        }
    }
}

/// An open socket.
pub(crate) struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    /// Opens the socket at `url` in the native dialect.
    pub(crate) async fn open(api: &Api, url: &str) -> Result<Self, SocketError> {
        let mut request = url.into_client_request().map_err(|error| failed(api, &error))?;
        let name = http::HeaderValue::from_static(ENCODING.subprotocol());
        request.headers_mut().insert(http::header::SEC_WEBSOCKET_PROTOCOL, name);
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(FRAME_BYTES_MAX))
            .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX);
        let connecting = connect_async_with_config(request, Some(config), true);
        let late = || ApiError::Unreachable { base: api.base().to_owned(), cause: "it took too long".to_owned() };
        let (socket, _) =
            timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| late())?.map_err(|error| failed(api, &error))?;
        Ok(Self(socket))
    }

    /// Sends messages together.
    pub(crate) async fn send(&mut self, messages: &[ToBroker]) -> Result<(), SocketError> {
        let sending = async {
            for message in messages {
                self.0.feed(Message::Binary(ENCODING.encode(message).into())).await?;
            }
            self.0.flush().await
        };
        timeout(SEND_TIMEOUT, sending)
            .await
            .map_err(|_| SocketError::Broken("it takes nothing".into()))?
            .map_err(broken)
    }

    /// Receives the next message.
    pub(crate) async fn receive(&mut self) -> Result<FromBroker, SocketError> {
        loop {
            let next =
                timeout(SILENCE_MAX, self.0.next()).await.map_err(|_| SocketError::Broken("it is silent".into()))?;
            match next {
                Some(Ok(Message::Binary(frame))) => return Ok(ENCODING.decode(&frame)?),
                Some(Ok(Message::Close(_))) | None => return Err(SocketError::Broken("it was closed".into())),
                // A pong leaves with the next read.
                Some(Ok(Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Err(broken(error)),
            }
        }
    }

    /// Says goodbye, without waiting for an answer.
    pub(crate) async fn close(mut self) {
        let _ = timeout(SEND_TIMEOUT, self.0.close(None)).await;
    }
}

fn broken(error: tungstenite::Error) -> SocketError {
    SocketError::Broken(error.to_string())
}

fn failed(api: &Api, error: &tungstenite::Error) -> ApiError {
    if let tungstenite::Error::Io(cause) = error {
        return api.no_connection(cause, true);
    }
    let tungstenite::Error::Http(answer) = error else {
        return api.not_a_broker(format!("its websocket cannot be used ({error})"));
    };
    match reqwest::StatusCode::from_u16(answer.status().as_u16()) {
        Ok(status) if status.is_client_error() || status.is_server_error() => {
            let body = answer.body().as_deref().unwrap_or_default();
            ApiError::Refused { status, message: message_in(body) }
        }
        Ok(_) | Err(_) => api.not_a_broker("it offers no websocket for the queue"),
    }
}
