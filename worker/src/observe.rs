//! What the worker lets be seen of itself: one snapshot, told as numbers for monitoring (`/metrics`), as an answer for whoever
//! restarts what is broken (`/healthz`), and to people on this machine (the socket in the data directory).
//!
//! Ground floor first: `snapshot` (plain data), `lines` (what was logged of late), `steps` (times), `metrics` and `health`
//! (pure: a snapshot into words); `board` (what the agent and the runs write on as they go: a lock held for microseconds,
//! never over a wait), `observer` (a snapshot out of it, and of what only is looked at when somebody asks), `http` and
//! `socket` (who asks). Nothing here decides anything, and no run waits for it.

mod board;
mod health;
mod http;
mod lines;
mod metrics;
mod observer;
mod snapshot;
mod socket;
mod steps;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::error::WorkerError;

pub(crate) use board::{Board, Finished};
pub(crate) use observer::{Observed, Observer};
pub(crate) use steps::Tally;

pub use lines::Recent;
pub use snapshot::{
    Capacity, Counts, Disk, EngineView, GpuView, Line, Outcome, Phase, Process, QueueView, ResultView, RunView,
    Snapshot, Standing,
};
pub use socket::{SNAPSHOT_BYTES_MAX, read, socket_path};

/// What answers as long as it lives.
pub(crate) struct Observing {
    _tasks: Vec<AbortOnDropHandle<()>>,
}

/// Answers in the data directory's socket, and over HTTP if there is an address for it.
pub(crate) async fn start(observer: Observer, listen: Option<SocketAddr>) -> Result<Observing, WorkerError> {
    let listener = match listen {
        Some(address) => Some(http::listen(address).await?),
        None => None,
    };
    let at = listener.as_ref().and_then(|listener| listener.local_addr().ok());
    let observer = Arc::new(observer.with_metrics(at));
    let mut tasks = Vec::new();
    if let Some(listener) = listener {
        tasks.push(AbortOnDropHandle::new(tokio::spawn(http::serve(listener, Arc::clone(&observer)))));
    }
    match socket::bind(observer.data_directory()) {
        Ok(listener) => tasks.push(AbortOnDropHandle::new(tokio::spawn(socket::serve(listener, observer)))),
        Err(error) => warn!("nobody can look at this worker with `gridsocket top`: no socket in its folder: {error}"),
    }
    Ok(Observing { _tasks: tasks })
}
