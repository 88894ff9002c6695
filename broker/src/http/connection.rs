//! What the HTTP part of a connection and its websocket share.

use std::net::SocketAddr;

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// One connection, for as long as anything of it lives: its requests, and the websocket that it may become.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    /// Cancelled when the broker stops.
    pub(super) stop: CancellationToken,
    /// Cancelled when the broker does not wait any longer.
    pub(super) abort: CancellationToken,
    /// Where tasks that outlive the HTTP part are started.
    pub(super) tasks: TaskTracker,
    /// Its place among all connections.
    pub(super) _permit: OwnedSemaphorePermit,
}
