//! What a queue sends to one socket: a bounded line, never waited for.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use protocol::codec::Encoding;
use protocol::native::FromBroker;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// How many frames may wait for one socket. A page that is this far behind is better served with a fresh snapshot.
pub const OUTBOX_FRAMES_MAX: usize = 1024;

/// How many commands of one socket may be unanswered: more are left in the socket. Their answers always have room.
pub const UNANSWERED_MAX: usize = 1024;

/// How many definitions that were read from disk may wait for one worker: each may be megabytes.
const DEFINITIONS_MAX: usize = 4;

/// A message that goes to many sockets: encoded once per encoding, by whoever needs it first.
#[derive(Debug)]
pub struct Shared {
    message: FromBroker,
    messagepack: OnceLock<Bytes>,
    json: OnceLock<Bytes>,
}

impl Shared {
    pub(super) fn new(message: FromBroker) -> Arc<Self> {
        Arc::new(Self { message, messagepack: OnceLock::new(), json: OnceLock::new() })
    }

    /// The frame's payload.
    pub fn encoded(&self, encoding: Encoding) -> Bytes {
        let cell = match encoding {
            Encoding::MessagePack => &self.messagepack,
            Encoding::Json => &self.json,
        };
        cell.get_or_init(|| encoding.encode(&self.message).into()).clone()
    }
}

/// One thing to send.
#[derive(Debug)]
pub enum Outgoing {
    /// A message for this socket alone.
    Message(Box<FromBroker>),
    /// The same, with the room that it takes until it is sent.
    Definition(Box<FromBroker>, OwnedSemaphorePermit),
    /// A message for many.
    Shared(Arc<Shared>),
    /// Say why and close.
    Close {
        /// A word for programs.
        code: &'static str,
        /// A sentence for people.
        message: &'static str,
    },
}

/// The sending end of a socket's line.
#[derive(Clone, Debug)]
pub struct Outbox {
    line: mpsc::Sender<Outgoing>,
    broken: CancellationToken,
    definitions: Arc<Semaphore>,
}

impl Outbox {
    /// A line; `broken` is cancelled when something that must not be lost found no room: the socket is then to be closed.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Outgoing>, CancellationToken) {
        let (line, receiver) = mpsc::channel(OUTBOX_FRAMES_MAX + UNANSWERED_MAX);
        let broken = CancellationToken::new();
        let definitions = Arc::new(Semaphore::new(DEFINITIONS_MAX));
        (Self { line, broken: broken.clone(), definitions }, receiver, broken)
    }

    /// Sends what must arrive: answers, grants, orders to stop. There is room unless the peer has stopped reading.
    pub(crate) fn must(&self, message: FromBroker) {
        self.must_out(Outgoing::Message(Box::new(message)));
    }

    pub(crate) fn must_out(&self, outgoing: Outgoing) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.line.try_send(outgoing) {
            self.broken.cancel();
        }
    }

    /// Waits until a definition may be read from disk for this socket; `None` when the socket is gone.
    pub(crate) async fn definition_room(&self) -> Option<OwnedSemaphorePermit> {
        let room = Arc::clone(&self.definitions).acquire_owned().await.ok()?;
        (!self.line.is_closed()).then_some(room)
    }

    /// Waits for room; for a task of the socket's own.
    pub(crate) async fn wait(&self, message: FromBroker) -> Result<(), Gone> {
        self.line.send(Outgoing::Message(Box::new(message))).await.map_err(|_| Gone)
    }

    /// Sends what can be made good later; says whether it went.
    pub(crate) fn may(&self, shared: &Arc<Shared>) -> bool {
        self.has_room() && self.line.try_send(Outgoing::Shared(shared.clone())).is_ok()
    }

    /// Whether droppable messages are taken: the rest of the line is kept for those that must arrive.
    pub(crate) fn has_room(&self) -> bool {
        self.line.capacity() > UNANSWERED_MAX
    }

    /// Whether the line is mostly empty again.
    pub(crate) fn has_drained(&self) -> bool {
        self.line.capacity() > UNANSWERED_MAX + OUTBOX_FRAMES_MAX / 2
    }
}

/// The socket is gone.
#[derive(Debug)]
pub(crate) struct Gone;
