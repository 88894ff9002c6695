//! What handlers reach.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::metrics::Answers;
use super::room::Room;
use super::socket::Sockets;
use crate::blobs::Blobs;
use crate::config::Config;
use crate::engine::Engine;
use crate::logs::LogStore;
use crate::original::{Originals, Times};
use crate::retention::Retention;

/// What handlers reach. Clones share it.
#[derive(Clone)]
pub struct AppState {
    pub(super) engine: Engine,
    pub(super) blobs: Blobs,
    pub(super) logs: LogStore,
    pub(super) retention: Retention,
    pub(super) originals: Originals,
    pub(super) config: Arc<Config>,
    /// What all requests together may hold in memory of their bodies.
    pub(super) room: Room,
    /// The websockets and event streams of each address.
    pub(super) sockets: Sockets,
    /// How many may walk through journals at once: it takes a core and a disk.
    pub(super) walks: Arc<Semaphore>,
    /// Answers by their kind.
    pub(super) answers: Arc<Answers>,
}

/// Leaves the other threads for what must not wait.
const WALKS_MAX: usize = 2;

impl AppState {
    /// Over the parts of an open broker.
    #[must_use]
    pub fn new(engine: Engine, blobs: Blobs, config: Config) -> Self {
        // Three times within a lease, so that one that is late does no harm.
        let renew_every = config.original.renew_every.min(Duration::from_millis(config.limits.queue.lease_ms / 3));
        let originals = Originals::new(engine.clone(), Times { renew_every, ..config.original });
        Self {
            logs: engine.logs().clone(),
            retention: Retention::new(engine.clone(), blobs.clone(), config.limits.keep),
            originals,
            engine,
            blobs,
            room: Room::new(config.limits.bodies_bytes_max),
            sockets: Sockets::new(config.limits.sockets_per_address_max),
            walks: Arc::new(Semaphore::new(WALKS_MAX)),
            answers: Arc::new(Answers::new()),
            config: Arc::new(config),
        }
    }
}

impl AppState {
    /// What removes what is kept no longer, when it is told to run.
    #[must_use]
    pub const fn retention(&self) -> &Retention {
        &self.retention
    }
}

impl std::fmt::Debug for AppState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppState").field("config", &self.config).finish_non_exhaustive()
    }
}
