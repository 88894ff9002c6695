//! What handlers reach.

use std::sync::Arc;

use crate::blobs::Blobs;
use crate::config::Config;
use crate::engine::Engine;
use crate::logs::LogStore;

/// What handlers reach. Clones share it.
#[derive(Clone)]
pub struct AppState {
    pub(super) engine: Engine,
    pub(super) blobs: Blobs,
    pub(super) logs: LogStore,
    pub(super) config: Arc<Config>,
}

impl AppState {
    /// Over the parts of an open broker.
    #[must_use]
    pub fn new(engine: Engine, blobs: Blobs, config: Config) -> Self {
        Self { logs: engine.logs().clone(), engine, blobs, config: Arc::new(config) }
    }
}

impl std::fmt::Debug for AppState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppState").field("config", &self.config).finish_non_exhaustive()
    }
}
