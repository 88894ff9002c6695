//! The sending half of a socket: takes from the line, encodes, feeds many frames and flushes once.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Sink;
use protocol::codec::Encoding;
use protocol::native::{FromBroker, HeldRun, StopReason};
use tokio::sync::{Semaphore, mpsc};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;

use super::patient::{Ended, FRAGMENT_BYTES, Patient};
use super::wire::Direct;
use crate::engine::outbox::{Outgoing, UNANSWERED_MAX};

/// Frames fed before a flush: bounds how long the first waits for the last.
const FRAMES_PER_FLUSH: usize = 256;

/// How many orders to stop are remembered for grants that they overtook: more than grants that can be unseen.
const EARLY_STOPS_MAX: usize = 1024;

/// Payloads up to this many bytes go through the socket's buffer; larger ones go past it.
const BUFFERED_BYTES_MAX: usize = 4096;

/// What the two halves of a socket share.
#[derive(Clone)]
pub(super) struct Shared(Arc<Inner>);

struct Inner {
    /// One permit per command that may be unanswered.
    unanswered: Semaphore,
    /// A worker's runs, as this socket told it: log lines of others are refused.
    held: Option<Mutex<HashSet<HeldRun>>>,
    /// Orders to stop that went out before the grant that they are about, whose definition was still on its way from disk.
    early_stops: Mutex<HashMap<HeldRun, StopReason>>,
    /// Cancelled when the welcome goes out: only then is it known which of the runs it claims to hold are its own.
    welcomed: CancellationToken,
}

impl Shared {
    pub(super) fn new(held: Option<HashSet<HeldRun>>) -> Self {
        let unanswered = Semaphore::new(UNANSWERED_MAX);
        let (held, early_stops) = (held.map(Mutex::new), Mutex::default());
        Self(Arc::new(Inner { unanswered, held, early_stops, welcomed: CancellationToken::new() }))
    }

    /// Waits until one more command may be taken; the answer, when it is sent, makes room again.
    pub(super) async fn begin(&self) {
        if let Ok(permit) = self.0.unanswered.acquire().await {
            permit.forget();
        }
    }

    /// Whether this socket's worker has the run. Waits until the worker is welcomed.
    pub(super) async fn holds(&self, run: HeldRun) -> bool {
        self.0.welcomed.cancelled().await;
        self.with_held(|held| held.contains(&run)).unwrap_or(false)
    }

    /// Whether this is a worker's socket.
    pub(super) fn is_worker(&self) -> bool {
        self.0.held.is_some()
    }

    /// The worker has reported the run's end: no more of its lines come.
    pub(super) fn ended(&self, run: HeldRun) {
        self.with_held(|held| held.remove(&run));
    }

    fn with_held<T>(&self, act: impl FnOnce(&mut HashSet<HeldRun>) -> T) -> Option<T> {
        self.0.held.as_ref().map(|held| act(&mut held.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Notes what a message means for this socket, just before it is sent; gives what must be said right after it.
    fn note(&self, message: &FromBroker) -> Option<FromBroker> {
        match message {
            FromBroker::Granted { run, .. } => {
                let stop = self.early_stops().remove(run).map(|why| FromBroker::Stop { run: *run, why });
                if stop.is_none() {
                    self.with_held(|held| held.insert(*run));
                }
                return stop;
            }
            FromBroker::Stop { run, why } => {
                if self.with_held(|held| held.remove(run)) == Some(false) {
                    let mut early = self.early_stops();
                    // Most are of runs that have just ended; no grant comes for those.
                    if early.len() >= EARLY_STOPS_MAX {
                        early.clear();
                    }
                    early.insert(*run, *why);
                }
            }
            FromBroker::Welcome { gone, .. } => {
                self.with_held(|held| {
                    gone.iter().for_each(|run| {
                        held.remove(run);
                    })
                });
                self.0.welcomed.cancel();
            }
            FromBroker::Ok { .. }
            | FromBroker::Rejected { req: Some(_), .. }
            | FromBroker::Claimed { .. }
            | FromBroker::Explained { .. }
            | FromBroker::Definitions { is_final: true, .. } => self.0.unanswered.add_permits(1),
            FromBroker::Rejected { req: None, .. }
            | FromBroker::Definitions { is_final: false, .. }
            | FromBroker::Snapshot { .. }
            | FromBroker::Events { .. }
            | FromBroker::Presence { .. }
            | FromBroker::Logs { .. } => {}
        }
        None
    }

    fn early_stops(&self) -> MutexGuard<'_, HashMap<HeldRun, StopReason>> {
        self.0.early_stops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One message as a frame of the encoding.
pub(super) fn frame(encoding: Encoding, payload: Bytes) -> Message {
    match encoding {
        Encoding::MessagePack => Message::Binary(payload),
        // Our own JSON is text; the check costs little beside writing it.
        Encoding::Json => Message::Text(Utf8Bytes::try_from(payload).unwrap_or_default()),
    }
}

/// The sending half of a socket; each step is given [`WRITE_WITHIN`].
struct Sending<W> {
    sink: Patient<W>,
    direct: Direct,
    shared: Shared,
    encoding: Encoding,
}

/// Sends until the line ends, the peer stops taking, or a close was sent.
pub(super) async fn run<W>(
    sink: W,
    direct: Direct,
    mut line: mpsc::Receiver<Outgoing>,
    shared: Shared,
    encoding: Encoding,
    ping_every: Duration,
) where
    W: Sink<Message> + Unpin,
{
    let mut sending = Sending { sink: Patient::new(sink), direct, shared, encoding };
    let mut pings = tokio::time::interval_at(tokio::time::Instant::now() + ping_every, ping_every);
    loop {
        let sent = tokio::select! {
            outgoing = line.recv() => match outgoing {
                Some(first) => sending.round(first, &mut line).await,
                None => return,
            },
            _ = pings.tick() => match sending.sink.feed(Message::Ping(Bytes::new())).await {
                Ok(()) => sending.sink.flush().await,
                ended => ended,
            },
        };
        if sent.is_err() {
            return;
        }
    }
}

impl<W: Sink<Message> + Unpin> Sending<W> {
    /// Feeds what waits and flushes once.
    async fn round(&mut self, first: Outgoing, line: &mut mpsc::Receiver<Outgoing>) -> Result<(), Ended> {
        let mut outgoing = first;
        for fed in 1.. {
            match outgoing {
                Outgoing::Message(message) => self.message(&message).await?,
                // The room is given back once it is sent.
                Outgoing::Large(message, _room) => self.message(&message).await?,
                Outgoing::Shared(message) => self.payload(message.encoded(self.encoding)).await?,
                Outgoing::Close { code, message } => {
                    let (code, message) = (code.to_owned(), message.to_owned());
                    let close = CloseFrame { code: CloseCode::Away, reason: code.clone().into() };
                    let rejected = FromBroker::Rejected { req: None, code, message };
                    self.payload(self.encoding.encode(&rejected).into()).await?;
                    self.sink.feed(Message::Close(Some(close))).await?;
                    self.sink.flush().await?;
                    return Err(Ended);
                }
            }
            if fed == FRAMES_PER_FLUSH {
                break;
            }
            let Ok(next) = line.try_recv() else { break };
            outgoing = next;
        }
        self.sink.flush().await
    }

    async fn message(&mut self, message: &FromBroker) -> Result<(), Ended> {
        let stop = self.shared.note(message);
        self.payload(self.encoding.encode(message).into()).await?;
        match stop {
            Some(stop) => self.payload(self.encoding.encode(&stop).into()).await,
            None => Ok(()),
        }
    }

    /// One message: as one frame, or when it is big as fragments that leave one by one, straight from where the message is, so
    /// that a snapshot that many sockets wait for is not copied for each.
    async fn payload(&mut self, mut payload: Bytes) -> Result<(), Ended> {
        if payload.len() <= BUFFERED_BYTES_MAX {
            return self.sink.feed(frame(self.encoding, payload)).await;
        }
        // What was fed before goes first.
        self.sink.flush().await?;
        let mut kind = match self.encoding {
            Encoding::MessagePack => Data::Binary,
            Encoding::Json => Data::Text,
        };
        while !payload.is_empty() {
            let fragment = payload.split_to(FRAGMENT_BYTES.min(payload.len()));
            self.direct.put(OpCode::Data(kind), payload.is_empty(), fragment);
            self.sink.flush().await?;
            kind = Data::Continue;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use protocol::id::JobId;
    use protocol::raw::RawJson;

    use super::*;

    fn granted(run: HeldRun) -> FromBroker {
        FromBroker::Granted { run, definition: RawJson::new("{}"), lease_ms: 1, debug: false }
    }

    #[tokio::test]
    async fn an_order_to_stop_that_overtook_its_grant_is_said_again_after_it() {
        let shared = Shared::new(Some(HashSet::new()));
        let [one, two] = [1, 2].map(|run| HeldRun { job: JobId::from_bytes([1; 32]), run });
        let stop = FromBroker::Stop { run: one, why: StopReason::Cancelled };
        assert_eq!(shared.note(&stop), None);
        assert_eq!(shared.note(&granted(two)), None);
        assert_eq!(shared.note(&granted(one)), Some(stop));
        shared.0.welcomed.cancel();
        assert!(!shared.holds(one).await && shared.holds(two).await);
        assert_eq!(shared.note(&granted(one)), None, "said once");
    }

    #[tokio::test]
    async fn what_a_worker_says_it_holds_counts_once_it_is_welcomed() {
        let [own, strange] = [1, 2].map(|run| HeldRun { job: JobId::from_bytes([1; 32]), run });
        let shared = Shared::new(Some([own, strange].into()));
        assert!(futures_util::poll!(std::pin::pin!(shared.holds(own))).is_pending());
        let (queue, hash) = (protocol::id::QueueKey::from_bytes([0; 16]), protocol::id::Digest::of(b""));
        let head = protocol::id::Head { seq: 0, hash };
        shared.note(&FromBroker::Welcome { version: 1, queue, head, lease_ms: 1, gone: vec![strange] });
        assert!(shared.holds(own).await && !shared.holds(strange).await);
        shared.ended(own);
        assert!(!shared.holds(own).await, "so that a worker of many runs does not fill the memory");
    }
}
