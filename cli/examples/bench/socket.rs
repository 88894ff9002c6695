//! A lean native client: many frames fed, one flush, and every byte counted.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use protocol::PROTOCOL_VERSION;
use protocol::codec::{CodecError, Encoding, SUBPROTOCOL_MESSAGEPACK};
use protocol::native::{Capacity, FromBroker, Hello, ToBroker, WorkerHello};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use crate::definitions::{self, Fit};

/// Commands that one socket may have unanswered; the broker reads no further than that.
pub(crate) const UNANSWERED_MAX: u64 = 1_024;

/// Frames fed before a flush.
pub(crate) const FRAMES_PER_FLUSH: u64 = 256;

const CODEC: Encoding = Encoding::MessagePack;

/// A stream that counts what it reads.
pub(crate) struct Counted {
    stream: TcpStream,
    read: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.read.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

pub(crate) type Sink = SplitSink<WebSocketStream<Counted>, Message>;
pub(crate) type Stream = SplitStream<WebSocketStream<Counted>>;

/// An open socket.
pub(crate) struct Native {
    pub(crate) sink: Sink,
    pub(crate) stream: Stream,
    pub(crate) read: Arc<AtomicU64>,
}

pub(crate) fn frame(message: &ToBroker) -> Message {
    Message::binary(CODEC.encode(message))
}

pub(crate) fn decode(bytes: &[u8]) -> Result<FromBroker, CodecError> {
    CODEC.decode(bytes)
}

async fn open(url: &str, subprotocol: bool) -> anyhow::Result<Native> {
    let mut request = url.into_client_request()?;
    if subprotocol {
        let name = HeaderValue::from_static(SUBPROTOCOL_MESSAGEPACK);
        request.headers_mut().insert("Sec-WebSocket-Protocol", name);
    }
    let port = request.uri().port_u16().context("no port")?;
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let read = Arc::new(AtomicU64::new(0));
    let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    let counted = Counted { stream, read: read.clone() };
    let (socket, _) = tokio_tungstenite::client_async_with_config(request, counted, Some(config)).await?;
    let (sink, stream) = socket.split();
    Ok(Native { sink, stream, read })
}

impl Native {
    /// A client's socket.
    pub(crate) async fn client(port: u16, queue: &str, watch: bool) -> anyhow::Result<Self> {
        let hello = Hello { version: PROTOCOL_VERSION, version_min: None, watch, resume: None, worker: None };
        Self::hello(&format!("ws://127.0.0.1:{port}/q/{queue}/client"), hello).await
    }

    /// A simulated worker's socket, with nothing free yet.
    pub(crate) async fn worker(port: u16, queue: &str, number: u32, cpus: u32) -> anyhow::Result<Self> {
        let worker = WorkerHello {
            // As long as the ids that real workers give themselves.
            id: format!("00000000-0000-4000-8000-{number:012}").parse()?,
            version: "bench".to_owned(),
            total: capacity(cpus),
            tags: Vec::new(),
            max_duration_ms: None,
            holds: Vec::new(),
        };
        let hello =
            Hello { version: PROTOCOL_VERSION, version_min: None, watch: false, resume: None, worker: Some(worker) };
        Self::hello(&format!("ws://127.0.0.1:{port}/q/{queue}/worker"), hello).await
    }

    async fn hello(url: &str, hello: Hello) -> anyhow::Result<Self> {
        let mut native = open(url, true).await?;
        native.send(&ToBroker::Hello(hello)).await?;
        match native.next().await?.0 {
            FromBroker::Welcome { .. } => Ok(native),
            other => bail!("not welcome: {other:?}"),
        }
    }

    pub(crate) async fn send(&mut self, message: &ToBroker) -> anyhow::Result<()> {
        Ok(self.sink.send(frame(message)).await?)
    }

    /// Waits for one answer, which must say that the command was done.
    pub(crate) async fn accepted(&mut self) -> anyhow::Result<()> {
        match self.next().await?.0 {
            FromBroker::Ok { .. } => Ok(()),
            other => bail!("not accepted: {other:?}"),
        }
    }

    /// The next message, and how many bytes it took on the wire.
    pub(crate) async fn next(&mut self) -> anyhow::Result<(FromBroker, u64)> {
        loop {
            if let Some(bytes) = binary(self.stream.next().await)? {
                let header = match bytes.len() {
                    0..=125 => 2,
                    126..=0xffff => 4,
                    _ => 10,
                };
                return Ok((decode(&bytes)?, bytes.len() as u64 + header));
            }
        }
    }
}

/// The payload of a binary frame; nothing for pings and the like.
pub(crate) fn binary(
    frame: Option<Result<Message, tokio_tungstenite::tungstenite::Error>>,
) -> anyhow::Result<Option<Bytes>> {
    match frame.context("the socket was closed")?? {
        Message::Binary(bytes) => Ok(Some(bytes)),
        Message::Close(close) => bail!("the broker closed the socket: {close:?}"),
        Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(None),
    }
}

pub(crate) const fn capacity(cpus: u32) -> Capacity {
    Capacity { cpus_milli: cpus.saturating_mul(1_000), memory_bytes: None, gpus: 0 }
}

/// Submits `count` jobs over one socket, as fast as the answers allow. Returns how long that took.
pub(crate) async fn fill(port: u16, queue: &str, series: &str, count: u64, fit: Fit) -> anyhow::Result<Duration> {
    if count == 0 {
        return Ok(Duration::ZERO);
    }
    // Encoded before, so that the clock is the broker's alone.
    let frames: Vec<Message> =
        (0..count).map(|number| frame(&definitions::submit(number, series, number, fit))).collect();
    let native = Native::client(port, queue, false).await?;
    pipelined(native, frames, |bytes| match decode(bytes)? {
        FromBroker::Ok { .. } => Ok(()),
        other => bail!("not accepted: {other:?}"),
    })
    .await
}

/// The same with frames that the floors' server sends back. Per second.
pub(crate) async fn echo(port: u16, count: u32) -> anyhow::Result<f64> {
    let frames: Vec<Message> =
        (0..count.into()).map(|number| frame(&definitions::submit(number, "echo", number, Fit::Plain))).collect();
    let native = open(&format!("ws://127.0.0.1:{port}/"), false).await?;
    let took = pipelined(native, frames, |_| Ok(())).await?;
    Ok(f64::from(count) / took.as_secs_f64())
}

/// Sends all frames, with at most [`UNANSWERED_MAX`] unanswered.
async fn pipelined(
    native: Native,
    frames: Vec<Message>,
    mut answer: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<Duration> {
    let Native { mut sink, mut stream, .. } = native;
    let count = frames.len() as u64;
    let (answered, news) = (Cell::new(0), Notify::new());
    let started = Instant::now();
    let send = async {
        let (mut sent, mut frames) = (0, frames.into_iter());
        while sent < count {
            let until = (answered.get() + UNANSWERED_MAX).min(sent + FRAMES_PER_FLUSH).min(count);
            if until == sent {
                news.notified().await;
                continue;
            }
            while sent < until
                && let Some(frame) = frames.next()
            {
                sink.feed(frame).await?;
                sent += 1;
            }
            sink.flush().await?;
        }
        anyhow::Ok(())
    };
    let receive = async {
        while answered.get() < count {
            if let Some(bytes) = binary(stream.next().await)? {
                answer(&bytes)?;
                answered.set(answered.get() + 1);
                news.notify_one();
            }
        }
        Ok(())
    };
    tokio::try_join!(send, receive)?;
    Ok(started.elapsed())
}
