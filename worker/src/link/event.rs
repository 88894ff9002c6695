//! What the link is told at start, and what it tells the agent.

use std::sync::Arc;

use protocol::id::QueueName;
use protocol::native::{Capacity, HeldRun, StopReason, WorkerHello};
use protocol::raw::RawJson;

use crate::config::ApiAddress;

/// A number for each connection, so that what belongs to an older one is not sent on a newer one.
pub(crate) type Epoch = u64;

/// What the agent hears from the broker.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// A connection stands and the broker knows us.
    Welcomed { epoch: Epoch, gone: Vec<HeldRun> },
    /// A run is ours.
    Granted { epoch: Epoch, run: HeldRun, definition: RawJson },
    /// A run is to be stopped and forgotten.
    Stop { run: HeldRun, why: StopReason },
    /// A run's end or return is on the broker's disk, or it does not want it.
    Settled { run: HeldRun },
    /// A run's result cannot be taken as it is.
    ResultRefused { run: HeldRun, why: String },
}

/// What the link has to know.
pub(crate) struct LinkConfig {
    pub(crate) api: ApiAddress,
    pub(crate) queue: QueueName,
    /// Who the worker is; what it holds is in the outbox.
    pub(crate) worker: WorkerHello,
    pub(crate) tls: Arc<rustls::ClientConfig>,
}

/// Nothing on offer: what a worker claims that takes no more runs.
pub(crate) const NOTHING: Capacity = Capacity { cpus_milli: 0, memory_bytes: Some(0), gpus: 0 };
