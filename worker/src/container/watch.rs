//! Waits for a container's end and does, on the way, what the rules of `state_machine::run` say.

use std::time::Duration;

use bollard::errors::Error;
use protocol::native::StopReason;
use tokio::sync::watch::Receiver;
use tokio::time::Instant;
use tracing::warn;

use super::disk::DiskLimit;
use super::engine::Engine;
use crate::state_machine::run::{End, Happened, Running, Signal, TERM_GRACE_MS, Then};

/// How long a killed container may take to be gone: beyond it something holds it in the kernel, and it is left to the engine.
const KILLED: Duration = Duration::from_secs(60);
/// The exit code of a process that was killed.
const KILLED_CODE: i64 = 137;

/// When a container's time is up. It is told once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(pub(crate) Option<Instant>);

/// Waits until the container ended, whoever ends it. `running` keeps what was decided, should the engine go away and the
/// wait be taken up again.
pub(crate) async fn watch(
    engine: &Engine,
    container: &str,
    running: &mut Running,
    deadline: &mut Deadline,
    disk: Option<DiskLimit>,
    stop: &mut Receiver<Option<StopReason>>,
) -> Result<End, Error> {
    let mut exit = engine.wait(container);
    let mut overfull = std::pin::pin!(async {
        match disk {
            Some(limit) => limit.exceeded(engine.clone(), container.to_owned()).await,
            None => std::future::pending().await,
        }
    });
    let mut is_overfull = false;
    let mut grace: Option<Instant> = None;
    let mut killed: Option<Instant> = None;
    loop {
        let happened = tokio::select! {
            biased;
            code = &mut exit => Happened::Exited(code?),
            reason = stop_asked(stop) => Happened::StopAsked(reason),
            () = at(grace) => {
                grace = None;
                Happened::GraceOver
            }
            () = at(deadline.0) => {
                deadline.0 = None;
                Happened::DeadlineReached
            }
            () = &mut overfull, if !is_overfull => {
                is_overfull = true;
                Happened::DiskExceeded
            }
            () = at(killed) => {
                warn!(container.id = container, "container {container} is not gone a minute after it was killed");
                Happened::Exited(KILLED_CODE)
            }
        };
        match running.on(happened) {
            Then::Wait => {}
            Then::End(end) => return Ok(end),
            Then::Send(signal) => {
                engine.signal(container, signal).await?;
                killed = Some(Instant::now() + KILLED);
            }
            Then::SendThenGrace => {
                // Counted from the order, not from the engine's answer.
                grace = Some(Instant::now() + Duration::from_millis(TERM_GRACE_MS));
                engine.signal(container, Signal::Term).await?;
            }
        }
    }
}

/// Waits for the next order to stop; for ever when none can come.
pub(crate) async fn stop_asked(stop: &mut Receiver<Option<StopReason>>) -> StopReason {
    loop {
        if stop.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        if let Some(reason) = *stop.borrow_and_update() {
            return reason;
        }
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
