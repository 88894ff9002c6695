//! Sending with patience that ends: what every socket's sending half writes through, in both dialects.

use std::time::Duration;

use futures_util::{Sink, SinkExt};
use tokio_tungstenite::tungstenite::Message;

/// A peer that takes nothing for this long is gone, wherever it hangs.
const WRITE_WITHIN: Duration = Duration::from_secs(30);

/// The largest frame that is sent, in bytes; larger messages leave in fragments, so that a slow socket's buffer holds one.
pub(crate) const FRAGMENT_BYTES: usize = 64 * 1024;

/// Why a socket's sending half ended: it could not write, or was not allowed to go on waiting.
pub(crate) struct Ended;

/// A sink whose every step has its time.
pub(crate) struct Patient<W>(W);

impl<W: Sink<Message> + Unpin> Patient<W> {
    pub(crate) const fn new(sink: W) -> Self {
        Self(sink)
    }

    pub(crate) async fn feed(&mut self, message: Message) -> Result<(), Ended> {
        within(self.0.feed(message)).await
    }

    pub(crate) async fn flush(&mut self) -> Result<(), Ended> {
        within(self.0.flush()).await
    }
}

async fn within<E>(step: impl Future<Output = Result<(), E>>) -> Result<(), Ended> {
    match tokio::time::timeout(WRITE_WITHIN, step).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Ended),
    }
}
