//! The sockets of a hub, and the workers that registered on them.

use std::collections::{BTreeMap, BTreeSet};

use protocol::id::{UnixMillis, WorkerId};
use protocol::native::{WorkerHello, WorkerView};
use protocol::original::to_peer::{self, WorkerEntry};
use serde_json::value::RawValue;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::line::{Item, Line};
use crate::engine::SessionId;
use crate::session::Role;

/// A socket.
pub(super) struct Member {
    pub(super) role: Role,
    pub(super) line: Line,
    /// Its line was full: it has missed news and needs a whole state.
    pub(super) behind: bool,
    /// Who registered on it; it stays so.
    pub(super) worker: Option<WorkerId>,
}

impl Member {
    /// Sends something that a whole state can make good; says whether the socket is behind now.
    pub(super) fn put(&mut self, item: Item) -> bool {
        self.behind = !self.line.put(item);
        self.behind
    }
}

/// A worker as it says it is.
#[derive(Debug)]
pub(super) struct NewWorker {
    pub(super) hello: WorkerHello,
    /// Verbatim: what others are told.
    pub(super) registration: Box<RawValue>,
}

/// A worker that registered, on one socket or (while the broker has not seen the end of an older one) on several.
struct Registered {
    /// What stands for it in the queue.
    session: SessionId,
    sockets: BTreeSet<SessionId>,
    worker: NewWorker,
}

/// Who is there: workers that registered here, and those of our own kind.
#[derive(Default)]
pub(super) struct Workers {
    registered: BTreeMap<WorkerId, Registered>,
    /// Those of our own kind that are connected.
    connected: Vec<WorkerView>,
    native: BTreeSet<WorkerId>,
}

/// What a registration came to.
pub(super) struct Placed {
    /// What stands for the worker in the queue.
    pub(super) session: SessionId,
    /// Whether others have to be told.
    pub(super) is_news: bool,
}

impl Workers {
    /// A worker registered on a socket. One that is known keeps its session, so that none of its runs is touched.
    pub(super) fn register(
        &mut self,
        socket: SessionId,
        worker: NewWorker,
        new_session: impl FnOnce() -> SessionId,
    ) -> Placed {
        let id = worker.hello.id.clone();
        match self.registered.get_mut(&id) {
            Some(known) => {
                let is_news = known.worker.hello != worker.hello;
                known.worker = worker;
                known.sockets.insert(socket);
                Placed { session: known.session, is_news }
            }
            None => {
                let session = new_session();
                self.registered.insert(id, Registered { session, sockets: BTreeSet::from([socket]), worker });
                Placed { session, is_news: true }
            }
        }
    }

    /// A socket of a worker closed; gives the session that ends with it, if that was the last.
    pub(super) fn leave(&mut self, socket: SessionId, worker: &WorkerId) -> Option<SessionId> {
        let known = self.registered.get_mut(worker)?;
        known.sockets.remove(&socket);
        if !known.sockets.is_empty() {
            return None;
        }
        self.registered.remove(worker).map(|left| left.session)
    }

    /// Those that registered, with their sessions.
    pub(super) fn sessions(&self) -> impl Iterator<Item = (&WorkerId, SessionId)> {
        self.registered.iter().map(|(id, known)| (id, known.session))
    }

    /// Takes note of everyone who is known to the queue; says whether others have to be told.
    pub(super) fn set_connected(&mut self, known: Vec<WorkerView>) -> bool {
        let others = known.into_iter().filter(|worker| !self.registered.contains_key(&worker.id));
        let (connected, silent): (Vec<_>, Vec<_>) = others.partition(|worker| worker.silent_since_ms.is_none());
        // One that went silent may have been of either kind: it stays what it was.
        let still = silent.into_iter().map(|worker| worker.id).filter(|id| self.native.contains(id));
        let native = connected.iter().map(|worker| worker.id.clone()).chain(still).collect();
        let looks = |workers: &[WorkerView]| -> Vec<_> {
            workers.iter().map(|worker| (worker.id.clone(), worker.version.clone(), worker.total)).collect()
        };
        let is_news = looks(&connected) != looks(&self.connected) || native != self.native;
        (self.connected, self.native) = (connected, native);
        is_news
    }

    /// The ids of those of our own kind, also of ones that went silent a moment ago.
    pub(super) const fn native(&self) -> &BTreeSet<WorkerId> {
        &self.native
    }

    /// The message that says who is there.
    pub(super) fn message(&self, now: UnixMillis) -> Utf8Bytes {
        let registered = self.registered.values().map(|known| WorkerEntry::Registered(&known.worker.registration));
        let others = self.connected.iter().filter(|worker| !self.registered.contains_key(&worker.id));
        let native = others.map(|worker| WorkerEntry::native(worker, now));
        to_peer::workers(&registered.chain(native).collect::<Vec<_>>()).into()
    }
}
