//! What all runs of one queue share; what all queues share is behind the same pointers.

use std::sync::Arc;

use protocol::id::{QueueKey, QueueName, WorkerId};
use protocol::native::HeldRun;

use crate::builds::Builds;
use crate::config::Config;
use crate::container::{Engine, Surroundings};
use crate::files::Files;
use crate::gpus::Gpus;
use crate::images::Images;
use crate::link::Outbox;
use crate::observe::{Board, Phase};
use crate::quarantine::Quarantine;

/// What all runs of one queue share.
pub(crate) struct Context {
    pub(crate) config: Arc<Config>,
    pub(crate) worker: WorkerId,
    pub(crate) engine: Engine,
    pub(crate) surroundings: Arc<Surroundings>,
    pub(crate) images: Arc<Images>,
    pub(crate) builds: Arc<Builds>,
    pub(crate) gpus: Arc<Gpus>,
    /// User and group in containers; `None`: whom the image names.
    pub(crate) job_user: Option<(u32, u32)>,
    /// The data directory, as the engine knows the worker's containers by it.
    pub(crate) data: String,
    /// Jobs that crash the worker.
    pub(crate) quarantine: Arc<Quarantine>,
    /// The queue.
    pub(crate) queue: QueueName,
    /// As it is called where its name must not be.
    pub(crate) key: QueueKey,
    /// The volume that the queue's runs share.
    pub(crate) cache: String,
    /// The queue's runs' files; blobs are shared, a blob is known by its hash alone.
    pub(crate) files: Files,
    pub(crate) outbox: Arc<Outbox>,
    /// What is shown of runs as they go.
    pub(crate) board: Arc<Board>,
}

impl Context {
    /// Shows how far a run has come.
    pub(crate) fn show(&self, run: HeldRun, phase: Phase) {
        self.board.phase(self.key, run, phase);
    }
}
