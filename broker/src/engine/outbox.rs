//! What a queue sends to one socket: a bounded line, never waited for.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use protocol::codec::Encoding;
use protocol::native::FromBroker;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// How many frames may wait for one socket. A page that is this far behind is better served with a fresh snapshot.
pub const OUTBOX_FRAMES_MAX: usize = 1024;

/// How many commands of one socket may be unanswered: more are left in the socket. Their answers always have room.
pub const UNANSWERED_MAX: usize = 1024;

/// How many messages made for one socket alone from what is on disk (definitions, old records, log lines) may wait for it at a
/// time: each may be a few hundred kilobytes, a definition megabytes.
const LARGE_MAX: usize = 4;

/// A message that goes to many sockets: encoded once per encoding. The usual encoding is made at once and the message itself is
/// not kept, so that a snapshot that waits for many slow pages is in memory once.
#[derive(Debug)]
pub struct Shared {
    messagepack: Bytes,
    json: OnceLock<Bytes>,
}

impl Shared {
    pub(crate) fn new(message: &FromBroker) -> Arc<Self> {
        // What the vector has too much would be held as long as the message.
        let messagepack = Encoding::MessagePack.encode(message).into_boxed_slice().into();
        Arc::new(Self { messagepack, json: OnceLock::new() })
    }

    /// The frame's payload.
    pub fn encoded(&self, encoding: Encoding) -> Bytes {
        match encoding {
            Encoding::MessagePack => self.messagepack.clone(),
            Encoding::Json => self.json.get_or_init(|| Encoding::Json.encode(&self.message()).into()).clone(),
        }
    }

    /// The message itself, for whoever reads a line inside the broker.
    ///
    /// # Panics
    ///
    /// Never: it reads what `new` wrote.
    #[must_use]
    pub fn message(&self) -> FromBroker {
        Encoding::MessagePack.decode(&self.messagepack).expect("what was encoded can be decoded")
    }

    /// The bytes that each socket is sent.
    pub(crate) fn len(&self) -> usize {
        self.messagepack.len()
    }
}

/// One thing to send.
#[derive(Debug)]
pub enum Outgoing {
    /// A message for this socket alone.
    Message(Box<FromBroker>),
    /// The same, with the room that it takes until it is sent.
    Large(Box<FromBroker>, Arc<OwnedSemaphorePermit>),
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
    rooms: Arc<Semaphore>,
}

impl Outbox {
    /// A line; `broken` is cancelled when something that must not be lost found no room: the socket is then to be closed.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Outgoing>, CancellationToken) {
        let (line, receiver) = mpsc::channel(OUTBOX_FRAMES_MAX + UNANSWERED_MAX);
        let broken = CancellationToken::new();
        let rooms = Arc::new(Semaphore::new(LARGE_MAX));
        (Self { line, broken: broken.clone(), rooms }, receiver, broken)
    }

    /// Sends what must arrive: answers, grants, orders to stop. There is room unless the peer has stopped reading.
    pub(crate) fn must(&self, message: FromBroker) {
        self.must_out(Outgoing::Message(Box::new(message)));
    }

    pub(crate) fn must_out(&self, outgoing: Outgoing) {
        if let Err(TrySendError::Full(_)) = self.line.try_send(outgoing) {
            self.cut_off();
        }
    }

    /// Ends a socket whose peer does not read.
    pub(crate) fn cut_off(&self) {
        self.broken.cancel();
    }

    /// Waits until something large may be read for this socket; `None` when the socket is gone.
    pub(crate) async fn room(&self) -> Option<Arc<OwnedSemaphorePermit>> {
        let room = Arc::clone(&self.rooms).acquire_owned().await.ok()?;
        (!self.line.is_closed()).then(|| Arc::new(room))
    }

    /// Sends what was read for this socket; the room is given back once it is sent.
    pub(crate) fn large(&self, message: FromBroker, room: &Arc<OwnedSemaphorePermit>) {
        self.must_out(Outgoing::Large(Box::new(message), Arc::clone(room)));
    }

    /// Sends what can be made good later; says whether it went. A socket that is gone misses nothing.
    pub(crate) fn may(&self, shared: &Arc<Shared>) -> bool {
        let full = || matches!(self.line.try_send(Outgoing::Shared(shared.clone())), Err(TrySendError::Full(_)));
        self.line.is_closed() || self.has_room() && !full()
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
