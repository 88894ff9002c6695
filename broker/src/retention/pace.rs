//! How fast a sweep goes: never so fast that anyone else waits for it.

use std::time::Duration;

use super::SweepError;
use crate::engine::Engine;
use crate::journal::{Journal, JournalError};
use crate::refusal::Refusal;

/// The pause after each piece of work, which takes about as long: half a core at most, and less where the disk is slow.
const PAUSE: Duration = Duration::from_millis(4);

/// Comes after each piece of work.
pub(super) async fn pause() {
    tokio::time::sleep(PAUSE).await;
}

/// Asks the journal, on a thread that may block.
pub(super) async fn ask<T: Send + 'static>(
    engine: &Engine,
    call: impl FnOnce(&Journal) -> Result<T, JournalError> + Send + 'static,
) -> Result<T, SweepError> {
    let journal = engine.journal().clone();
    match tokio::task::spawn_blocking(move || call(&journal)).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(SweepError::Stopping),
    }
}

/// What concerns one queue; one that is quarantined is left as it is.
pub(super) fn unless_quarantined(done: Result<(), SweepError>) -> Result<(), SweepError> {
    match done {
        Err(SweepError::Journal(JournalError::Quarantined { .. })) => Ok(()),
        Err(SweepError::Queue(Refusal { code: "quarantined", .. })) => Ok(()),
        done => done,
    }
}
