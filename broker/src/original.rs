//! The original's dialect on the broker's sockets: its pages, command lines and workers, served beside our own.
//!
//! Each queue that has such sockets has one hub: it watches the queue as a native page does, folds the same records, and encodes
//! each message once for all of its sockets, so that what a change costs does not grow with them. A socket's own half reads
//! frames and asks the queue. Nothing here decides anything: rules are in [`crate::rules`], spellings in [`protocol::original`].

mod definitions;
mod hub;
mod inbound;
mod line;
mod members;
mod outbound;
mod results;
mod view;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use protocol::id::{QueueKey, QueueName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tracing::debug;

use self::definitions::Definitions;
use self::hub::{HubAsk, Statuses};
use self::line::{Line, Newest};
use crate::engine::{Engine, SessionId};
use crate::session::Role;

/// How many asks may wait for one hub; more wait in their sockets.
const HUB_ASKS_MAX: usize = 1024;

/// The most bytes that all workers of a broker together may have sent before they say who they are. A worker that comes back has
/// some kilobytes gathered; what finds no room is passed over, as it is when a worker has too much.
const EARLY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Such room is given in pieces of this many bytes.
const EARLY_PIECE_BYTES: usize = 1024;

/// A peer that takes nothing of what it must be told for this long is let go.
const GOODBYE_WITHIN: Duration = Duration::from_secs(1);

/// When the dialect does what time asks for.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How often workers are told something, so that they do not reconnect: they do after 20 s. Default: 10 s, the original's.
    pub heartbeat: Duration,
    /// For how long changes are gathered into one message. Default: 25 ms, which nobody sees.
    pub gather: Duration,
    /// The least time between two whole states that a cancel, a replacement or a deletion makes necessary. Default: 1 s.
    pub whole_every: Duration,
    /// The least time between two whole states of which the only news is that ended jobs left. Default: 10 s.
    pub whole_for_leavers_every: Duration,
    /// A peer that sent nothing, not even a pong, for this long is gone. Default: 30 s.
    pub silent_max: Duration,
    /// How often runs of connected workers have their leases renewed; well under the lease. Default: 10 s.
    pub renew_every: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(10),
            gather: Duration::from_millis(25),
            whole_every: Duration::from_secs(1),
            whole_for_leavers_every: Duration::from_secs(10),
            silent_max: Duration::from_secs(30),
            renew_every: Duration::from_secs(10),
        }
    }
}

/// All hubs of a broker. Cheap to clone.
#[derive(Clone)]
pub struct Originals(Arc<Inner>);

struct Inner {
    engine: Engine,
    times: Times,
    /// Room for what workers send before they say who they are, in pieces of [`EARLY_PIECE_BYTES`].
    early: Arc<Semaphore>,
    hubs: Mutex<HashMap<QueueKey, Hub>>,
}

/// One queue's hub, as its sockets hold it: while one does, the hub lives.
#[derive(Clone)]
struct Hub {
    asks: mpsc::Sender<HubAsk>,
    /// The newest whole state for pages, and for workers.
    newest: [Newest; 2],
    definitions: Definitions,
}

impl Originals {
    /// Over the queues of `engine`.
    #[must_use]
    pub fn new(engine: Engine, times: Times) -> Self {
        let early = Arc::new(Semaphore::new(EARLY_BYTES_MAX / EARLY_PIECE_BYTES));
        Self(Arc::new(Inner { engine, times, early, hubs: Mutex::default() }))
    }

    /// What the workers of a queue that registered here say of themselves: asked for now, waited for 2 s at most. Nothing is
    /// started for it, and nobody waited for when there are none.
    pub(crate) async fn statuses(&self, key: QueueKey) -> Arc<Statuses> {
        let Some(asks) = self.hubs().get(&key).map(|hub| hub.asks.clone()) else { return Arc::default() };
        let (reply, answer) = oneshot::channel();
        let _ = asks.send(HubAsk::Status { reply }).await;
        answer.await.unwrap_or_default()
    }

    fn hubs(&self) -> MutexGuard<'_, HashMap<QueueKey, Hub>> {
        self.0.hubs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hub of a queue, which is started when it is not running.
    fn hub(&self, key: QueueKey) -> Hub {
        let mut hubs = self.hubs();
        if let Some(hub) = hubs.get(&key).filter(|hub| !hub.asks.is_closed()) {
            return hub.clone();
        }
        let (asks, receiver) = mpsc::channel(HUB_ASKS_MAX);
        let hub = Hub { asks, newest: Default::default(), definitions: Definitions::default() };
        hubs.insert(key, hub.clone());
        let (newest, definitions) = (hub.newest.clone(), hub.definitions.clone());
        tokio::spawn(hub::run(self.clone(), key, receiver, newest, definitions));
        hub
    }

    /// Takes a hub off the list when no socket holds it.
    fn put_away(&self, key: QueueKey, asks: &mpsc::Receiver<HubAsk>) -> bool {
        let mut hubs = self.hubs();
        let is_idle = asks.is_empty() && asks.sender_strong_count() <= 1;
        if is_idle {
            hubs.remove(&key);
        }
        is_idle
    }

    /// Takes a hub that has ended off the list; one that has taken its place since stays.
    fn leave(&self, key: QueueKey) {
        let mut hubs = self.hubs();
        if hubs.get(&key).is_some_and(|hub| hub.asks.is_closed()) {
            hubs.remove(&key);
        }
    }
}

/// The place of a role among what is kept for each.
const fn place(role: Role) -> usize {
    match role {
        Role::Client => 0,
        Role::Worker => 1,
    }
}

/// Serves one socket until either end is done with it.
pub async fn serve<S>(socket: WebSocketStream<S>, originals: Originals, queue: QueueName, role: Role)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let sockets = &originals.0.engine.counters().sockets;
    sockets.fetch_add(1, Ordering::Relaxed);
    serve_counted(socket, &originals, queue, role).await;
    sockets.fetch_sub(1, Ordering::Relaxed);
}

async fn serve_counted<S>(socket: WebSocketStream<S>, originals: &Originals, queue: QueueName, role: Role)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Inner { engine, times, .. } = &*originals.0;
    let queue = engine.queue(&queue);
    let member = engine.new_session();
    let hub = originals.hub(queue.key());
    let (line, items) = Line::new();
    // Told before it joins, so that the hub hears of its end however this ends.
    let joined = Joined { asks: hub.asks.clone(), member };
    if hub.asks.send(HubAsk::Join { member, role, line: line.clone() }).await.is_err() {
        return;
    }
    let (sink, stream) = socket.split();
    let sending = outbound::run(sink, items, hub.newest[place(role)].clone());
    let mut sending = std::pin::pin!(sending);
    let early = Arc::clone(&originals.0.early);
    let inbound = inbound::Inbound::new(engine.clone(), queue.clone(), hub, member, role, line.clone(), early);
    // The hub ends when its queue does; the line is then let go by all but this.
    tokio::select! {
        why = inbound.run(stream, times.silent_max) => {
            debug!(queue = %queue.key().short(), "socket closed: {why}");
            drop(joined);
            line.close();
            drop(line);
            let _ = tokio::time::timeout(GOODBYE_WITHIN, &mut sending).await;
        }
        () = &mut sending => {}
    }
}

/// A socket that the hub knows of. However it ends, the hub is told.
struct Joined {
    asks: mpsc::Sender<HubAsk>,
    member: SessionId,
}

impl Drop for Joined {
    fn drop(&mut self) {
        let (asks, member) = (self.asks.clone(), self.member);
        tokio::spawn(async move { asks.send(HubAsk::Leave { member }).await });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the original's worker waits for before it reconnects.
    const WATCHDOG: Duration = Duration::from_secs(20);

    #[test]
    fn an_idle_worker_hears_of_jobs_well_before_its_watchdog_bites() {
        let times = Times::default();
        assert!(times.heartbeat * 2 <= WATCHDOG, "also when it looks at a bad moment");
        // It pings every 5 s: five of them may be lost.
        assert!(times.silent_max >= Duration::from_secs(30));
    }
}
