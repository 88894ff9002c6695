//! What waits to be sent to one socket: a bounded line that the hub never waits for.
//!
//! A whole state is not put into the line but called for: the socket takes the newest when it gets there, so that a slow one
//! holds at most one, and news that the whole already has are passed over.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Utf8Bytes;

/// How many messages may wait for one socket. A page that is this far behind is better served with a whole state.
const LINE_MAX: usize = 256;

/// How many bytes may wait for one socket; one message larger than that waits alone.
const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How much of a line log lines leave free, so that they do not push out what the queue says.
const FREE_OF_LOGS: usize = LINE_MAX / 4;

/// One thing to send.
#[derive(Debug)]
pub(super) enum Item {
    /// News, and how new they are.
    News {
        /// The view's version that they were made at.
        version: u64,
        /// The frame.
        text: Utf8Bytes,
    },
    /// The whole state, the newest that there is when its turn comes.
    Whole {
        /// Whether it was asked for: then it is sent although nothing has changed since the last.
        is_wanted: bool,
    },
    /// What stands for itself.
    Text(Utf8Bytes),
    /// The end.
    Close,
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::News { text, .. } | Self::Text(text) => text.len(),
            Self::Whole { .. } | Self::Close => 0,
        }
    }
}

/// The sending end of a socket's line.
#[derive(Clone, Debug)]
pub(super) struct Line {
    items: mpsc::Sender<Item>,
    /// What waits in it.
    bytes: Arc<AtomicUsize>,
}

/// The receiving end.
#[derive(Debug)]
pub(super) struct Items {
    items: mpsc::Receiver<Item>,
    bytes: Arc<AtomicUsize>,
}

impl Items {
    pub(super) async fn next(&mut self) -> Option<Item> {
        let item = self.items.recv().await?;
        Some(self.taken(item))
    }

    pub(super) fn next_if_any(&mut self) -> Option<Item> {
        let item = self.items.try_recv().ok()?;
        Some(self.taken(item))
    }

    fn taken(&self, item: Item) -> Item {
        self.bytes.fetch_sub(item.bytes(), Ordering::Relaxed);
        item
    }
}

impl Line {
    pub(super) fn new() -> (Self, Items) {
        let (sender, receiver) = mpsc::channel(LINE_MAX);
        let bytes = Arc::new(AtomicUsize::new(0));
        (Self { items: sender, bytes: bytes.clone() }, Items { items: receiver, bytes })
    }

    /// Puts something into the line; says whether there was room.
    pub(super) fn put(&self, item: Item) -> bool {
        let bytes = item.bytes();
        let waiting = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let has_room = bytes == 0 || waiting == 0 || waiting + bytes <= LINE_BYTES_MAX;
        let is_put = has_room && self.items.try_send(item).is_ok();
        if !is_put {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        is_put
    }

    /// An answer for this socket alone. Lost when the peer does not read: it asks again, or it is gone.
    pub(super) fn tell(&self, text: impl Into<Utf8Bytes>) {
        self.put(Item::Text(text.into()));
    }

    /// As [`Line::tell`], waiting for room: for the socket's own half, which is then not read from.
    pub(super) async fn tell_when_room(&self, text: Utf8Bytes) {
        if let Ok(room) = self.items.reserve().await {
            self.bytes.fetch_add(text.len(), Ordering::Relaxed);
            room.send(Item::Text(text));
        }
    }

    /// Lines of logs, which can be had again when the run is over.
    pub(super) fn tell_logs(&self, text: &Utf8Bytes) {
        if self.items.capacity() > FREE_OF_LOGS {
            self.put(Item::Text(text.clone()));
        }
    }

    pub(super) fn close(&self) {
        self.put(Item::Close);
    }

    /// Whether the line is mostly empty again.
    pub(super) fn has_drained(&self) -> bool {
        self.items.capacity() > LINE_MAX / 2 && self.bytes.load(Ordering::Relaxed) <= LINE_BYTES_MAX / 2
    }
}

/// The newest whole state for sockets of one role.
#[derive(Clone, Debug, Default)]
pub(super) struct Newest(Arc<Mutex<Option<Whole>>>);

/// A whole state and the version of the view that it shows.
#[derive(Clone, Debug)]
pub(super) struct Whole {
    pub(super) version: u64,
    pub(super) text: Utf8Bytes,
}

impl Newest {
    pub(super) fn get(&self) -> Option<Whole> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, whole: Whole) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(whole);
    }

    /// Whether it shows that version.
    pub(super) fn is_at(&self, version: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|whole| whole.version == version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: usize) -> Item {
        Item::Text("x".repeat(bytes).into())
    }

    #[tokio::test]
    async fn a_line_is_bounded_in_messages_and_in_bytes() {
        let (line, mut items) = Line::new();
        assert!(line.put(text(LINE_BYTES_MAX + 1)), "alone");
        assert!(!line.put(text(1)) && line.put(Item::Whole { is_wanted: false }), "which is only called for");
        assert!(!line.has_drained());
        items.next().await;
        items.next_if_any();
        assert!(line.has_drained());
        assert_eq!((0..=LINE_MAX).filter(|_| line.put(text(1))).count(), LINE_MAX);
    }
}
