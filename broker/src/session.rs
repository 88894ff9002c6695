//! One websocket: frames in become asks of its queue, what the queue says goes out. The native dialect.
//!
//! A session never holds up a queue: the queue puts into the session's bounded line and goes on. A peer that does not read
//! stops being read from (its unanswered commands are bounded), loses records it can get again as a snapshot, and is cut off
//! when something it must have finds no room.

mod inbound;
mod logs;
mod outbound;

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use protocol::codec::Encoding;
use protocol::id::QueueName;
use protocol::native::{Hello, ToBroker};
use protocol::{PROTOCOL_VERSION, native::FromBroker};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tracing::debug;

use crate::engine::outbox::Outbox;
use crate::engine::{Ask, Attach, Engine, QueueHandle, SessionId};

/// How long a new socket may take to say hello: longer than any honest peer on a bad line needs.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// The largest hello, in bytes: some thousand runs held fit. It is kept for as long as the worker is known.
const HELLO_BYTES_MAX: usize = 1024 * 1024;

/// The longest version that a worker may state, in bytes: every watcher is told of it whenever anyone comes or goes.
const VERSION_BYTES_MAX: usize = 256;

/// The most bytes of all of a worker's tags, each counted with a few bytes on top.
const TAGS_BYTES_MAX: usize = 4 * 1024;

/// How often the server pings: twice within [`SILENT_MAX`] even when one is lost.
const PING_EVERY: Duration = Duration::from_secs(10);

/// A peer that sent nothing, not even a pong, for this long is gone.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// How long a peer is given to take the last words.
const GOODBYE_WITHIN: Duration = Duration::from_secs(1);

/// What a session needs of the broker.
#[derive(Clone)]
pub struct SessionContext {
    /// The queues.
    pub engine: Engine,
}

/// Which kind of socket it is: the path says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A page, a program or a command line.
    Client,
    /// A worker.
    Worker,
}

/// Serves one socket until either end is done with it.
pub async fn serve<S>(
    socket: WebSocketStream<S>,
    context: SessionContext,
    queue: QueueName,
    role: Role,
    encoding: Encoding,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let counters = context.engine.counters();
    counters.sockets.fetch_add(1, Ordering::Relaxed);
    serve_counted(socket, &context, queue, role, encoding).await;
    counters.sockets.fetch_sub(1, Ordering::Relaxed);
}

async fn serve_counted<S>(
    mut socket: WebSocketStream<S>,
    context: &SessionContext,
    queue: QueueName,
    role: Role,
    encoding: Encoding,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let hello = match read_hello(&mut socket, role, encoding).await {
        Ok(hello) => hello,
        Err((code, message)) => return refuse(socket, encoding, code, message).await,
    };
    let queue = context.engine.queue(&queue);
    let session = context.engine.new_session();
    let (outbox, line, broken) = Outbox::new();
    let held = hello.worker.as_ref().map(|worker| worker.holds.iter().copied().collect());
    let attach = Attach { session, outbox: outbox.clone(), hello };
    if let Err(refusal) = queue.send(Ask::Attach(Box::new(attach))).await {
        return refuse(socket, encoding, refusal.code, refusal.message.into_owned()).await;
    }
    let _attached = Attached { queue: queue.clone(), session };
    let (sink, stream) = socket.split();
    let shared = outbound::Shared::new(held);
    let sending = outbound::run(sink, line, shared.clone(), encoding, PING_EVERY);
    let inbound =
        inbound::Inbound::new(context.engine.clone(), queue.clone(), session, outbox.clone(), shared, encoding);
    let mut sending = std::pin::pin!(sending);
    tokio::select! {
        goodbye = inbound.run(stream, SILENT_MAX) => {
            debug!(queue = %queue.key().short(), "socket closed: {}", goodbye.message);
            outbox.must_out(goodbye.into());
            let _ = tokio::time::timeout(GOODBYE_WITHIN, &mut sending).await;
        }
        () = &mut sending => {}
        () = broken.cancelled() => debug!(queue = %queue.key().short(), "socket cut off: the peer does not read"),
    }
}

/// A session that the queue knows of. However it ends, the queue is told: a worker's leases start to run out then.
struct Attached {
    queue: QueueHandle,
    session: SessionId,
}

impl Drop for Attached {
    fn drop(&mut self) {
        let (queue, session) = (self.queue.clone(), self.session);
        tokio::spawn(async move { queue.send(Ask::Detach(session)).await });
    }
}

/// The first message, which says what the socket is for.
async fn read_hello<S>(
    socket: &mut WebSocketStream<S>,
    role: Role,
    encoding: Encoding,
) -> Result<Hello, (&'static str, String)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let expected =
        || ("hello_expected", format!("the first message must be Hello, within {} s", HELLO_WITHIN.as_secs()));
    let frame = loop {
        match tokio::time::timeout(HELLO_WITHIN, socket.next()).await {
            Ok(Some(Ok(Message::Text(text)))) => break text.into(),
            Ok(Some(Ok(Message::Binary(bytes)))) => break bytes,
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
            Ok(Some(Ok(Message::Close(_) | Message::Frame(_)) | Err(_)) | None) | Err(_) => return Err(expected()),
        }
    };
    if frame.len() > HELLO_BYTES_MAX {
        return Err(("hello_too_large", format!("Hello is {} bytes, the limit is {HELLO_BYTES_MAX}", frame.len())));
    }
    let hello = match encoding.decode::<ToBroker>(&frame) {
        Ok(ToBroker::Hello(hello)) => hello,
        Ok(_) => return Err(expected()),
        Err(error) => return Err(("bad_message", error.to_string())),
    };
    if hello.version != PROTOCOL_VERSION {
        let text =
            format!("version {} is not spoken here, {PROTOCOL_VERSION} is; reload the page or upgrade", hello.version);
        return Err(("version", text));
    }
    check_worker(&hello)?;
    match (role, &hello.worker) {
        (Role::Worker, None) => Err(("worker_expected", "Hello.worker must be there on a worker's socket".to_owned())),
        (Role::Client, Some(_)) => Err(("not_a_worker_socket", "workers connect to /q/<queue>/worker".to_owned())),
        (Role::Worker, Some(_)) | (Role::Client, None) => Ok(hello),
    }
}

/// What a worker says of itself is kept and told to others, so it must be short.
fn check_worker(hello: &Hello) -> Result<(), (&'static str, String)> {
    let Some(worker) = &hello.worker else { return Ok(()) };
    if worker.version.len() > VERSION_BYTES_MAX {
        let text = format!("worker.version is {} bytes, the limit is {VERSION_BYTES_MAX}", worker.version.len());
        return Err(("version_too_long", text));
    }
    let tags_bytes: usize = worker.tags.iter().map(|tag| tag.len() + size_of::<String>()).sum();
    if tags_bytes > TAGS_BYTES_MAX {
        let text = format!("worker.tags are {} texts, more than fit into {TAGS_BYTES_MAX} bytes", worker.tags.len());
        return Err(("tags_too_large", text));
    }
    Ok(())
}

async fn refuse<S>(mut socket: WebSocketStream<S>, encoding: Encoding, code: &str, message: String)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let rejected = FromBroker::Rejected { req: None, code: code.to_owned(), message };
    let goodbye = async {
        let _ = socket.send(outbound::frame(encoding, encoding.encode(&rejected).into())).await;
        let _ = socket.close(Some(CloseFrame { code: CloseCode::Policy, reason: code.to_owned().into() })).await;
    };
    let _ = tokio::time::timeout(HELLO_WITHIN, goodbye).await;
}
