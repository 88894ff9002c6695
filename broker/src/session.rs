//! One websocket: frames in become asks of its queue, what the queue says goes out. The native dialect.
//!
//! A session never holds up a queue: the queue puts into the session's bounded line and goes on. A peer that does not read
//! stops being read from (its unanswered commands are bounded), loses records it can get again as a snapshot, and is cut off
//! when something it must have finds no room.

mod definitions;
mod hello;
mod inbound;
mod logs;
mod outbound;
pub(crate) mod patient;
mod wire;

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use protocol::codec::Encoding;
use protocol::id::QueueName;
use protocol::native::FromBroker;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, tungstenite};
use tracing::debug;

use self::hello::{HELLO_WITHIN, read_hello};
use self::wire::{Direct, Wire};
use crate::engine::outbox::Outbox;
use crate::engine::{Ask, Attach, Engine, QueueHandle, SessionId};

/// Bytes that wait in a socket's buffer before they are written without a flush: some dozens of answers. Each socket keeps a
/// buffer of the largest size that it ever had.
const WRITE_BUFFER_BYTES: usize = 4096;

/// How often the server pings: twice within [`SILENT_MAX`] even when one is lost.
const PING_EVERY: Duration = Duration::from_secs(10);

/// A peer that sent nothing, not even a pong, for this long is gone.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// How long a peer is given to take the last words.
const GOODBYE_WITHIN: Duration = Duration::from_secs(1);

/// What a read fails with when the broker has no room for the message that it brings.
pub(crate) const NO_ROOM: std::io::ErrorKind = std::io::ErrorKind::OutOfMemory;

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
    socket: WebSocketStream<S>,
    context: &SessionContext,
    queue: QueueName,
    role: Role,
    encoding: Encoding,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut socket, direct) = wired(socket).await;
    let hello = match Box::pin(read_hello(&mut socket, role, encoding)).await {
        Ok(hello) => hello,
        Err((code, message)) => return Box::pin(refuse(socket, encoding, code, message)).await,
    };
    let queue = context.engine.queue(&queue);
    let session = context.engine.new_session();
    let (outbox, line, broken) = Outbox::new();
    let held = hello.worker.as_ref().map(|worker| worker.holds.iter().copied().collect());
    let attach = Attach { session, outbox: outbox.clone(), hello };
    if let Err(refusal) = queue.send(Ask::Attach(Box::new(attach))).await {
        let (code, message) = (refusal.code, refusal.message.into_owned());
        return Box::pin(refuse(socket, encoding, code, message)).await;
    }
    let _attached = Attached { queue: queue.clone(), session };
    let (sink, stream) = socket.split();
    let shared = outbound::Shared::new(held);
    let sending = outbound::run(sink, direct, line, shared.clone(), encoding, PING_EVERY);
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

/// A socket that nothing was read from yet, with a way past its write buffer, which is kept small.
async fn wired<S>(socket: WebSocketStream<S>) -> (WebSocketStream<Wire<S>>, Direct)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = socket.get_config().write_buffer_size(WRITE_BUFFER_BYTES);
    let (wire, direct) = Wire::new(socket.into_inner());
    (WebSocketStream::from_raw_socket(wire, tungstenite::protocol::Role::Server, Some(config)).await, direct)
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
