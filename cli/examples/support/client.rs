//! A small client of the native dialect: one socket, opened with its `Hello`, split into a sending and a receiving half.
//!
//! What is pipelined, when to flush and what to do about a lost connection is the caller's business.
#![allow(dead_code, reason = "each example uses its part")]

use anyhow::{Context, bail};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use protocol::PROTOCOL_VERSION;
use protocol::codec::Encoding;
use protocol::id::{Head, QueueKey, WorkerId};
use protocol::native::{Capacity, FromBroker, HeldRun, Hello, ToBroker, WorkerHello};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// The largest message taken: a snapshot of a full queue (100,000 jobs) is about 50 MB.
const MESSAGE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// What a socket reads at once: there may be a thousand of them.
const READ_BUFFER_BYTES: usize = 16 * 1024;

/// The sending half.
pub(crate) struct Sender {
    sink: SplitSink<WebSocketStream<TcpStream>, Message>,
    encoding: Encoding,
}

/// The receiving half.
pub(crate) struct Receiver {
    stream: SplitStream<WebSocketStream<TcpStream>>,
    encoding: Encoding,
}

/// The broker's answer to `Hello`.
#[derive(Debug)]
pub(crate) struct Welcome {
    /// The queue, as the journal names it.
    pub(crate) queue: QueueKey,
    /// Where its chain stands.
    pub(crate) head: Head,
    /// How long a silent worker keeps its runs.
    pub(crate) lease_ms: u64,
    /// Of a worker's runs, those that are not its own any more.
    pub(crate) gone: Vec<HeldRun>,
}

/// The `Hello` of a page or a program.
pub(crate) const fn client_hello(watch: bool) -> Hello {
    Hello { version: PROTOCOL_VERSION, version_min: None, watch, resume: None, worker: None }
}

/// The `Hello` of a worker that runs `slots` jobs at once.
pub(crate) fn worker_hello(id: WorkerId, slots: u32, holds: Vec<HeldRun>) -> Hello {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let worker = WorkerHello { id, version, total: capacity(slots), tags: Vec::new(), max_duration_ms: None, holds };
    Hello { version: PROTOCOL_VERSION, version_min: None, watch: false, resume: None, worker: Some(worker) }
}

/// Room for that many jobs that state no needs.
pub(crate) const fn capacity(slots: u32) -> Capacity {
    Capacity { cpus_milli: slots.saturating_mul(1000), memory_bytes: None, gpus: 0 }
}

/// Connects to the broker at `address` (`host:port`) and says hello; on the worker's path when the hello is a worker's.
/// `queue` is a name that may stand in a path as it is.
pub(crate) async fn connect(address: &str, queue: &str, hello: Hello) -> anyhow::Result<(Sender, Receiver, Welcome)> {
    connect_with(address, queue, hello, Encoding::MessagePack).await
}

/// As [`connect`], in either encoding.
pub(crate) async fn connect_with(
    address: &str,
    queue: &str,
    hello: Hello,
    encoding: Encoding,
) -> anyhow::Result<(Sender, Receiver, Welcome)> {
    let role = if hello.worker.is_some() { "worker" } else { "client" };
    let mut request = format!("ws://{address}/q/{queue}/{role}").into_client_request()?;
    request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(encoding.subprotocol()));
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let config =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
    let config = config.read_buffer_size(READ_BUFFER_BYTES);
    let (socket, _) = tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await?;
    let (sink, stream) = socket.split();
    let (mut sender, mut receiver) = (Sender { sink, encoding }, Receiver { stream, encoding });
    sender.send(&ToBroker::Hello(hello)).await?;
    match receiver.next().await? {
        FromBroker::Welcome { queue, head, lease_ms, gone, version: _ } => {
            Ok((sender, receiver, Welcome { queue, head, lease_ms, gone }))
        }
        other @ (FromBroker::Snapshot { .. }
        | FromBroker::Events { .. }
        | FromBroker::Presence { .. }
        | FromBroker::Ok { .. }
        | FromBroker::Rejected { .. }
        | FromBroker::Granted { .. }
        | FromBroker::Stop { .. }
        | FromBroker::Claimed { .. }
        | FromBroker::Definitions { .. }
        | FromBroker::Explained { .. }
        | FromBroker::Logs { .. }) => bail!("expected a welcome, got {other:?}"),
    }
}

impl Sender {
    /// Sends a message now.
    pub(crate) async fn send(&mut self, message: &ToBroker) -> anyhow::Result<()> {
        self.feed(message).await?;
        self.flush().await
    }

    /// Puts a message in line; it leaves with the next flush at the latest.
    pub(crate) async fn feed(&mut self, message: &ToBroker) -> anyhow::Result<()> {
        let payload = self.encoding.encode(message);
        let frame = match self.encoding {
            Encoding::MessagePack => Message::Binary(payload.into()),
            Encoding::Json => Message::Text(String::from_utf8(payload).context("JSON is text")?.into()),
        };
        Ok(self.sink.feed(frame).await?)
    }

    /// Sends what is in line.
    pub(crate) async fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.sink.flush().await?)
    }
}

impl Receiver {
    /// The next message; an error when the connection is over. May be dropped while it waits.
    pub(crate) async fn next(&mut self) -> anyhow::Result<FromBroker> {
        Ok(self.next_counted().await?.0)
    }

    /// The same, and how many bytes it took on the wire in one frame.
    pub(crate) async fn next_counted(&mut self) -> anyhow::Result<(FromBroker, u64)> {
        loop {
            let bytes = match self.stream.next().await.context("the connection was closed")?? {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Close(_) => bail!("the broker closed the connection"),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            };
            let header = match bytes.len() {
                0..=125 => 2,
                126..=0xffff => 4,
                _ => 10,
            };
            return Ok((self.encoding.decode(&bytes)?, bytes.len() as u64 + header));
        }
    }
}
