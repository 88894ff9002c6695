//! One connection, from the handshake to its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use protocol::PROTOCOL_VERSION;
use protocol::codec::{Encoding, FRAME_BYTES_MAX};
use protocol::id::QueueKey;
use protocol::native::{FromBroker, HeldRun, Hello, ToBroker, WorkerHello};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::{Error as SocketError, ProtocolError, SubProtocolError};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream};
use tracing::{debug, info, warn};

use super::event::{Epoch, Events, LinkConfig, LinkEvent};
use super::outbox::Outbox;

pub(super) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// From the first packet to the broker's welcome: it may have to load the queue first.
pub(super) const CONNECT: Duration = Duration::from_secs(20);
/// How often the line is tried when nothing else crosses it; a dead one is found within [`SILENCE`].
const PING_EVERY: Duration = Duration::from_secs(10);
/// A broker that says nothing for so long, pings unanswered, is gone.
pub(super) const SILENCE: Duration = Duration::from_secs(25);
/// A frame that cannot be written for so long means the same.
const WRITE: Duration = Duration::from_secs(25);
/// How often the clock is looked at: for pings, and reports to be sent again.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// After so many log bytes the broker is asked at once whether they arrived, so that there is room for more.
pub(super) const PING_BYTES: usize = 512 * 1024;
/// What is written together before it is flushed: many small messages, one system call.
pub(super) const FLUSH_BYTES: usize = 128 * 1024;
/// Frames read ahead take this much per socket; the default of 128 KiB is for servers of large messages.
const READ_BUFFER_BYTES: usize = 16 * 1024;
/// The most bytes that wait for the kernel; a single frame may be as large as the broker takes.
const WRITE_BUFFER_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;
/// The lease is renewed so often within its time.
const RENEWS_PER_LEASE: u64 = 3;
/// The shortest time between renewals, whatever the broker says.
const RENEW_MS_MIN: u64 = 100;

/// How a connection ended.
pub(super) struct Ended {
    pub(super) was_welcomed: bool,
    /// Whether there was none because the server does not take our subprotocol: it may be one of the original's kind.
    pub(super) is_foreign: bool,
    pub(super) why: String,
}

impl Ended {
    pub(super) const fn not_welcomed(why: String) -> Self {
        Self { was_welcomed: false, is_foreign: false, why }
    }
}

/// Why there is no socket.
pub(super) enum NotOpen {
    /// The server took the upgrade, but not the subprotocol.
    Foreign,
    Refused(String),
}

impl From<String> for NotOpen {
    fn from(why: String) -> Self {
        Self::Refused(why)
    }
}

/// Connects and stays until the line breaks or the outbox is closed and empty.
pub(super) async fn serve(config: &LinkConfig, outbox: &Arc<Outbox>, events: &Events, epoch: Epoch) -> Ended {
    let not_welcomed = Ended::not_welcomed;
    let (socket, welcome) = match timeout(CONNECT, connect(config, outbox)).await {
        Ok(Ok(connected)) => connected,
        Ok(Err(NotOpen::Foreign)) => return Ended { is_foreign: true, ..not_welcomed(foreign_words()) },
        Ok(Err(NotOpen::Refused(why))) => return not_welcomed(why),
        Err(_) => return not_welcomed(format!("no welcome within {} s", CONNECT.as_secs())),
    };
    let Welcome { lease_ms, gone, queue } = welcome;
    info!(queue.key = queue.short(), "connected to the broker at {}", config.api);
    outbox.connected(epoch);
    if !events.tell(LinkEvent::Welcomed { epoch, gone, dialect: Encoding::MessagePack.subprotocol() }).await {
        return not_welcomed("the worker stops".to_owned());
    }
    let (sink, stream) = socket.split();
    // The newest lease goes from the reading to the writing half.
    let (leases, lease_changes) = watch::channel(renew_every(lease_ms));
    let why = tokio::select! {
        why = read(stream, outbox, events, epoch, &leases) => why,
        why = write(sink, outbox, lease_changes) => why,
    };
    Ended { was_welcomed: true, is_foreign: false, why }
}

/// What the broker says first.
struct Welcome {
    lease_ms: u64,
    gone: Vec<HeldRun>,
    queue: QueueKey,
}

pub(super) fn renew_every(lease_ms: u64) -> Duration {
    Duration::from_millis((lease_ms / RENEWS_PER_LEASE).max(RENEW_MS_MIN))
}

/// Opens a socket that takes frames of so many bytes.
pub(super) async fn open(
    config: &LinkConfig,
    subprotocol: Option<&'static str>,
    frame_bytes_max: usize,
) -> Result<Socket, NotOpen> {
    let mut request =
        config.api.worker_socket(&config.queue).into_client_request().map_err(|error| error.to_string())?;
    if let Some(subprotocol) = subprotocol {
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol));
    }
    let limits = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
        .max_message_size(Some(frame_bytes_max))
        .max_frame_size(Some(frame_bytes_max));
    let connector = Connector::Rustls(Arc::clone(&config.tls));
    match tokio_tungstenite::connect_async_tls_with_config(request, Some(limits), true, Some(connector)).await {
        Ok((socket, _)) => Ok(socket),
        Err(SocketError::Protocol(ProtocolError::SecWebSocketSubProtocolError(SubProtocolError::NoSubProtocol))) => {
            Err(NotOpen::Foreign)
        }
        Err(error) => Err(NotOpen::Refused(handshake_words(&error))),
    }
}

/// Opens the socket and exchanges hello and welcome.
async fn connect(config: &LinkConfig, outbox: &Outbox) -> Result<(Socket, Welcome), NotOpen> {
    let mut socket = open(config, Some(Encoding::MessagePack.subprotocol()), FRAME_BYTES_MAX).await?;
    let worker = WorkerHello { holds: outbox.holds(), ..config.worker.clone() };
    let hello =
        Hello { version: PROTOCOL_VERSION, version_min: None, watch: false, resume: None, worker: Some(worker) };
    socket.send(frame(&ToBroker::Hello(hello))).await.map_err(|error| error.to_string())?;
    loop {
        match socket.next().await {
            None => return Err("the broker closed the line at once".to_owned().into()),
            Some(Err(error)) => return Err(error.to_string().into()),
            Some(Ok(Message::Close(close))) => {
                return Err(close_words(close.map(|close| close.reason.to_string())).into());
            }
            Some(Ok(message)) => match decode(&message)? {
                Some(FromBroker::Welcome { lease_ms, gone, queue, .. }) => {
                    return Ok((socket, Welcome { lease_ms, gone, queue }));
                }
                Some(FromBroker::Rejected { code, message, .. }) => {
                    return Err(format!("it says {code}: {message}").into());
                }
                Some(_) | None => {}
            },
        }
    }
}

fn foreign_words() -> String {
    format!("it does not speak {}", Encoding::MessagePack.subprotocol())
}

fn handshake_words(error: &SocketError) -> String {
    if let SocketError::Http(response) = error {
        const SHOWN_CHARS: usize = 200;
        let body = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        let shown: String = body.chars().take(SHOWN_CHARS).collect();
        return format!("it answered {} {}", response.status(), shown.trim());
    }
    crate::outcome::with_sources(error)
}

pub(super) fn close_words(reason: Option<String>) -> String {
    match reason {
        Some(reason) if !reason.is_empty() => format!("it closed the line: {reason}"),
        Some(_) | None => "it closed the line".to_owned(),
    }
}

fn frame(message: &ToBroker) -> Message {
    Message::Binary(Encoding::MessagePack.encode(message).into())
}

fn decode(message: &Message) -> Result<Option<FromBroker>, String> {
    match message {
        Message::Binary(bytes) => {
            Encoding::MessagePack.decode(bytes).map(Some).map_err(|error| format!("it sent what is {error}"))
        }
        Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => Ok(None),
    }
}

/// Reads until the line ends; says why.
async fn read(
    mut stream: SplitStream<Socket>,
    outbox: &Outbox,
    events: &Events,
    epoch: Epoch,
    leases: &watch::Sender<Duration>,
) -> String {
    loop {
        let message = match timeout(SILENCE, stream.next()).await {
            Err(_) => return format!("it said nothing for {} s", SILENCE.as_secs()),
            Ok(None) => return close_words(None),
            Ok(Some(Err(error))) => return error.to_string(),
            Ok(Some(Ok(Message::Close(close)))) => return close_words(close.map(|close| close.reason.to_string())),
            Ok(Some(Ok(Message::Pong(payload)))) => {
                if let Ok(ping) = <[u8; 8]>::try_from(&payload[..]) {
                    outbox.on_pong(u64::from_be_bytes(ping));
                }
                continue;
            }
            Ok(Some(Ok(message))) => message,
        };
        // First the room: a run that is noted as held, but never told of, would be held for ever.
        let Some(room) = events.room().await else { return "the worker stops".to_owned() };
        let event = match decode(&message) {
            Ok(Some(message)) => on_message(message, outbox, epoch, leases),
            Ok(None) => None,
            Err(why) => return why,
        };
        if let Some(event) = event {
            room.tell(event);
        }
    }
}

pub(super) fn on_message(
    message: FromBroker,
    outbox: &Outbox,
    epoch: Epoch,
    leases: &watch::Sender<Duration>,
) -> Option<LinkEvent> {
    match message {
        FromBroker::Granted { run, definition, lease_ms, debug: _ } => {
            leases.send_replace(renew_every(lease_ms));
            // Held from here on, so that a reconnection in this moment does not forget it.
            outbox.hold(run);
            Some(LinkEvent::Granted { epoch, run, definition })
        }
        FromBroker::Stop { run, why } => Some(LinkEvent::Stop { run, why }),
        FromBroker::Ok { req, .. } => outbox.run_of(req).map(|run| LinkEvent::Settled { run }),
        FromBroker::Rejected { req: Some(req), code, message } => {
            let run = outbox.run_of(req)?;
            match Refused::of(&code) {
                Refused::Run => {
                    warn!(job.id = %run.job, "run {} of job {} is not ours any more: {message}", run.run, run.job);
                    Some(LinkEvent::Settled { run })
                }
                Refused::Result => {
                    warn!(job.id = %run.job, "the broker refused the result of run {} of job {}: {code}: {message}", run.run, run.job);
                    Some(LinkEvent::ResultRefused { run, why: message })
                }
                Refused::ForNow => {
                    debug!(
                        "the broker will take the end of run {} of job {} later: {code}: {message}",
                        run.run, run.job
                    );
                    outbox.retry_later(run, Instant::now());
                    None
                }
            }
        }
        FromBroker::Rejected { req: None, code, message } => {
            warn!("the broker refused a message: {code}: {message}");
            None
        }
        FromBroker::Claimed { req, granted } => {
            outbox.ask_of(req).map(|ask| LinkEvent::Claimed { epoch, ask, granted })
        }
        FromBroker::Welcome { .. }
        | FromBroker::Definitions { .. }
        | FromBroker::Explained { .. }
        | FromBroker::Snapshot { .. }
        | FromBroker::Events { .. }
        | FromBroker::Presence { .. }
        | FromBroker::Logs { .. } => None,
    }
}

/// What a refused report means.
enum Refused {
    /// Nobody waits for the run's end.
    Run,
    /// The run is ours, but its result cannot be taken.
    Result,
    /// Later it may be taken. Unknown refusals too: a result is not thrown away for a word that this version does not know.
    ForNow,
}

impl Refused {
    fn of(code: &str) -> Self {
        match code {
            "stale_run" | "unknown_job" | "not_found" => Self::Run,
            "result_too_large" | "bad_result" => Self::Result,
            _ => Self::ForNow,
        }
    }
}

/// Writes until the line breaks, or the outbox is closed and all is sent; says why.
async fn write(mut sink: SplitSink<Socket, Message>, outbox: &Outbox, mut leases: watch::Receiver<Duration>) -> String {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last_ping = Instant::now();
    let mut last_renewal = Instant::now();
    loop {
        let is_all_sent = match drain(&mut sink, outbox).await {
            Ok(is_all_sent) => is_all_sent,
            Err(why) => return why,
        };
        if outbox.is_closed() && is_all_sent {
            let _ = timeout(TICK, sink.close()).await;
            return "the worker stops".to_owned();
        }
        let renew_every = *leases.borrow_and_update();
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(last_renewal + renew_every) => {
                last_renewal = Instant::now();
                let runs = outbox.holds();
                if !runs.is_empty()
                    && let Err(why) = write_one(&mut sink, frame(&ToBroker::Renew { runs })).await
                {
                    return why;
                }
            }
            _ = tick.tick() => {
                let bytes_min = if last_ping.elapsed() >= PING_EVERY { 0 } else { 1 };
                if let Some(ping) = outbox.next_ping(bytes_min) {
                    last_ping = Instant::now();
                    if let Err(why) = write_one(&mut sink, ping_frame(ping)).await {
                        return why;
                    }
                }
            }
            _ = leases.changed() => {}
            () = outbox.wake() => {}
            () = std::future::ready(()), if !is_all_sent => {}
        }
    }
}

fn ping_frame(ping: u64) -> Message {
    Message::Ping(Bytes::copy_from_slice(&ping.to_be_bytes()))
}

/// Sends what waits and says whether that was all. It comes back within about a [`TICK`] however much there is: leases must
/// be renewed while a run prints without end.
async fn drain(sink: &mut SplitSink<Socket, Message>, outbox: &Outbox) -> Result<bool, String> {
    let until = Instant::now() + TICK;
    let mut unflushed_bytes = 0;
    let mut is_dirty = false;
    let mut is_all_sent = true;
    while let Some(message) = outbox.next_message(Instant::now()) {
        let message = frame(&message);
        is_dirty = true;
        unflushed_bytes += message.len();
        bounded(sink.feed(message)).await?;
        if let Some(ping) = outbox.next_ping(PING_BYTES) {
            bounded(sink.feed(ping_frame(ping))).await?;
        }
        if unflushed_bytes >= FLUSH_BYTES {
            unflushed_bytes = 0;
            bounded(sink.flush()).await?;
        }
        if Instant::now() >= until {
            is_all_sent = false;
            break;
        }
    }
    if is_dirty {
        bounded(sink.flush()).await?;
    }
    Ok(is_all_sent)
}

async fn write_one(sink: &mut SplitSink<Socket, Message>, message: Message) -> Result<(), String> {
    bounded(sink.send(message)).await
}

pub(super) async fn bounded(write: impl Future<Output = Result<(), SocketError>>) -> Result<(), String> {
    match timeout(WRITE, write).await {
        Ok(written) => written.map_err(|error| error.to_string()),
        Err(_) => Err(format!("it took nothing for {} s", WRITE.as_secs())),
    }
}
