//! What the link is told at start, and what it tells the agent.

use std::sync::Arc;

use protocol::id::QueueName;
use protocol::native::{HeldRun, StopReason, WorkerHello};
use protocol::raw::RawJson;
use tokio::sync::mpsc;

use crate::config::{ApiAddress, Dialect};
use crate::state_machine::QueueIndex;
use crate::state_machine::offers::AskNumber;

/// A number for each connection, so that what belongs to an older one is not sent on a newer one.
pub(crate) type Epoch = u64;

/// What the agent hears from the broker.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// A connection stands and the broker knows us.
    Welcomed { epoch: Epoch, gone: Vec<HeldRun>, dialect: &'static str },
    /// A run is ours.
    Granted { epoch: Epoch, run: HeldRun, definition: RawJson },
    /// The broker has decided on the claim that asked; it has granted so many runs on this connection.
    Claimed { epoch: Epoch, ask: AskNumber, granted: u64 },
    /// The connection broke.
    Lost { epoch: Epoch },
    /// A run is to be stopped and forgotten.
    Stop { run: HeldRun, why: StopReason },
    /// A run's end or return is on the broker's disk, or it does not want it.
    Settled { run: HeldRun },
    /// A run's result cannot be taken as it is.
    ResultRefused { run: HeldRun, why: String },
}

/// The way to the agent, with the name of the queue on all that goes over it.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    queue: QueueIndex,
    sender: mpsc::Sender<(QueueIndex, LinkEvent)>,
}

impl Events {
    pub(super) fn new(queue: QueueIndex, sender: mpsc::Sender<(QueueIndex, LinkEvent)>) -> Self {
        Self { queue, sender }
    }

    /// Waits until the agent has room for it; `false` when it is gone.
    pub(super) async fn tell(&self, event: LinkEvent) -> bool {
        self.sender.send((self.queue, event)).await.is_ok()
    }

    /// Waits until the agent has room for one event. Whoever notes down what it then tells can be cut off only before both.
    pub(super) async fn room(&self) -> Option<Room<'_>> {
        Some(Room { queue: self.queue, permit: self.sender.reserve().await.ok()? })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// Room for one event.
pub(super) struct Room<'a> {
    queue: QueueIndex,
    permit: mpsc::Permit<'a, (QueueIndex, LinkEvent)>,
}

impl Room<'_> {
    pub(super) fn tell(self, event: LinkEvent) {
        self.permit.send((self.queue, event));
    }
}

/// What the link has to know.
#[derive(Clone)]
pub(crate) struct LinkConfig {
    pub(crate) api: ApiAddress,
    pub(crate) dialect: Dialect,
    pub(crate) queue: QueueName,
    /// The queue's place among the worker's.
    pub(crate) index: QueueIndex,
    /// Who the worker is; what it holds is in the outbox.
    pub(crate) worker: WorkerHello,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    /// Counts the milliseconds that the machine has slept.
    pub(crate) asleep_ms: fn() -> u64,
}
