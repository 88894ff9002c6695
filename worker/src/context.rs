//! What all runs of a worker share.

use std::sync::Arc;

use protocol::id::WorkerId;

use crate::config::Config;
use crate::container::{Engine, Surroundings};
use crate::files::Files;
use crate::images::Images;
use crate::link::Outbox;

/// What all runs share.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) worker: WorkerId,
    pub(crate) engine: Engine,
    pub(crate) surroundings: Surroundings,
    pub(crate) images: Images,
    pub(crate) files: Files,
    pub(crate) outbox: Arc<Outbox>,
}
