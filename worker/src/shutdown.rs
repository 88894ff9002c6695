//! How whoever started the worker asks it to stop.

use std::time::Duration;

use tokio::sync::watch;

/// What happens to runs when the worker stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownMode {
    /// Containers stay as they are; a worker started later with the same id and data directory takes them over.
    Leave,
    /// No new runs; those held are waited for, at most so long, and then left as with [`Self::Leave`].
    Drain {
        /// The longest wait.
        limit: Duration,
    },
    /// Containers are killed and their runs handed back, so that another worker can take them at once.
    Kill,
}

/// The asking end. It may ask again: a later mode replaces an earlier one.
#[derive(Debug)]
pub struct ShutdownHandle(watch::Sender<Option<ShutdownMode>>);

/// The asked end, given to [`crate::run`].
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<Option<ShutdownMode>>);

/// Makes both ends.
#[must_use]
pub fn shutdown_pair() -> (ShutdownHandle, Shutdown) {
    let (sender, receiver) = watch::channel(None);
    (ShutdownHandle(sender), Shutdown(receiver))
}

impl ShutdownHandle {
    /// Asks the worker to stop.
    pub fn request(&self, mode: ShutdownMode) {
        self.0.send_replace(Some(mode));
    }
}

impl Shutdown {
    /// Waits for the next request. Without a handle left there is none, ever.
    pub(crate) async fn requested(&mut self) -> ShutdownMode {
        loop {
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if let Some(mode) = *self.0.borrow_and_update() {
                return mode;
            }
        }
    }
}
