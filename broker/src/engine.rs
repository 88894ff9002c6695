//! The engine: one task per live queue, and handles to ask it things.
//!
//! A queue's task is the only one that touches its state. It decides against everything decided so far, hands batches to the
//! journal, and lets nothing out (answers, records, grants, reads) before what it rests on is on disk.

mod ask;
mod definitions;
mod explain;
mod handle;
mod history;
pub mod outbox;
mod queue;
mod stats;
#[cfg(test)]
mod tests;
mod view;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protocol::id::{Head, JobId, QueueKey, QueueName};
use protocol::native::WorkerView;
use protocol::queue::Job;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

pub use self::handle::{QueueHandle, scope_of};
pub use self::history::History;
pub use self::stats::Stats;
pub use crate::rules::command::{CancelBefore, CancelScope, SessionId};
pub use crate::submission::SubmitJob;

pub(crate) use self::ask::{Ask, Attach, Done, ReplyTo, rejected};
pub(crate) use self::definitions::Definitions;
pub(crate) use self::stats::Counters;
pub(crate) use self::view::{Standing, View};
use crate::blob_uses::BlobUses;
use crate::clock;
use crate::journal::{Journal, JournalError};
use crate::logs::LogStore;
use crate::refusal::{Refusal, RefusalKind};
use crate::rules::limits::Limits;
use crate::webhooks::Book;

/// How many asks may wait for one queue; more wait in their sockets.
const MAILBOX_MAX: usize = 4096;

/// Bodies up to this many bytes travel in the batch that names them; larger ones are files, written before it.
pub const INLINE_BODY_BYTES_MAX: usize = 64 * 1024;

/// How often the engine looks for queues that time alone must change, in milliseconds.
const DUE_EVERY: Duration = Duration::from_secs(1);

/// How much later a live queue is looked at again, in milliseconds.
const LIVE_DUE_MS: u64 = 60_000;

/// How many queues are woken at once: a start after a long pause must not load everything at the same time.
const DUE_MAX: usize = 256;

/// How many sockets' old records or definitions are read at a time: a thousand pages that come back at once must not mean a
/// thousand threads.
const READING_MAX: usize = 8;

/// What the engine is started with.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// The numbers that the rules go by.
    pub limits: Limits,
    /// Told of the blobs that submissions name.
    pub blob_uses: BlobUses,
    /// The book of webhooks; without one, nobody is called.
    pub webhooks: Option<Book>,
}

/// All queues. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    journal: Journal,
    logs: LogStore,
    config: EngineConfig,
    live: Mutex<HashMap<QueueKey, mpsc::Sender<Ask>>>,
    sessions: AtomicU64,
    counters: Counters,
    /// Permits to read old records and definitions for sockets.
    reading: Semaphore,
    /// Cancelled to stop all tasks.
    stop: CancellationToken,
    /// Cancelled by the first failure to write: the broker must then stop and start clean.
    failed: CancellationToken,
}

/// A job, in the queue or as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRecord {
    /// The job. What is kept of one that left has no namespaces.
    pub job: Job,
    /// Whether it is in the queue's state; if not, it left some time ago.
    pub live: bool,
}

/// How much there is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Jobs that wait.
    pub waiting: u64,
    /// Jobs that run.
    pub running: u64,
    /// How long the oldest waiting job has waited, in milliseconds.
    pub oldest_waiting_ms: Option<u64>,
}

/// Who is connected.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PresenceView {
    /// Workers, silent ones within their lease included.
    pub workers: Vec<WorkerView>,
    /// Sockets that watch and are no worker's.
    pub clients: u32,
}

/// What a cancel found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled {
    /// The chain afterwards.
    pub head: Head,
    /// What was found.
    pub before: CancelBefore,
}

impl Engine {
    /// Starts the engine on an open journal.
    #[must_use]
    pub fn start(journal: Journal, logs: LogStore, config: EngineConfig) -> Self {
        let engine = Self(Arc::new(Inner {
            journal,
            logs,
            config,
            live: Mutex::default(),
            sessions: AtomicU64::new(1),
            counters: Counters::default(),
            reading: Semaphore::new(READING_MAX),
            stop: CancellationToken::new(),
            failed: CancellationToken::new(),
        }));
        tokio::spawn(engine.clone().wake_due_queues());
        tokio::spawn(engine.clone().watch_for_failure());
        engine
    }

    /// The queue of that name; nothing is read or made before something is asked of it.
    #[must_use]
    pub fn queue(&self, name: &QueueName) -> QueueHandle {
        QueueHandle { name: Some(Arc::new(name.clone())), ..self.queue_by_key(QueueKey::of(name)) }
    }

    /// The queue of that key.
    #[must_use]
    pub fn queue_by_key(&self, key: QueueKey) -> QueueHandle {
        QueueHandle { engine: self.clone(), key, name: None }
    }

    /// The queues that hold or keep a job of that id.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the journal cannot be read.
    pub async fn unscoped(&self, job: JobId) -> Result<Vec<QueueKey>, Refusal> {
        let journal = self.0.journal.clone();
        blocking(move || journal.retained(job)).await
    }

    /// What an operator watches.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let live = self.live().len();
        self.0.counters.stats(live, self.0.journal.stats())
    }

    /// The book of webhooks.
    #[must_use]
    pub fn webhooks(&self) -> Option<&Book> {
        self.0.config.webhooks.as_ref()
    }

    /// The logs.
    #[must_use]
    pub fn logs(&self) -> &LogStore {
        &self.0.logs
    }

    /// The journal.
    pub(crate) fn journal(&self) -> &Journal {
        &self.0.journal
    }

    /// Resolves when the engine begins to stop, or a write has failed.
    pub(crate) async fn ends(&self) {
        tokio::select! {
            () = self.0.stop.cancelled() => {}
            () = self.0.failed.cancelled() => {}
        }
    }

    /// Resolves when a write has failed: nothing is acknowledged any more, and the process must start again.
    pub async fn failed(&self) {
        self.0.failed.cancelled().await;
    }

    /// Stops all queues after what they have begun is on disk, and closes the journal.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        while !self.live().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let journal = self.0.journal.clone();
        let _ = tokio::task::spawn_blocking(move || journal.close()).await;
    }

    pub(crate) fn new_session(&self) -> SessionId {
        SessionId(self.0.sessions.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    fn live(&self) -> std::sync::MutexGuard<'_, HashMap<QueueKey, mpsc::Sender<Ask>>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mailbox of a queue's task, which is started when it is not running.
    fn mailbox(&self, key: QueueKey) -> Result<mpsc::Sender<Ask>, Refusal> {
        if self.0.stop.is_cancelled() || self.0.failed.is_cancelled() {
            return Err(Refusal::stopping());
        }
        let mut live = self.live();
        if let Some(mailbox) = live.get(&key).filter(|mailbox| !mailbox.is_closed()) {
            return Ok(mailbox.clone());
        }
        let (mailbox, asks) = mpsc::channel(MAILBOX_MAX);
        live.insert(key, mailbox.clone());
        tokio::spawn(queue::run(self.clone(), key, asks));
        Ok(mailbox)
    }

    /// Takes a queue's task off the list, unless someone is about to ask it something.
    fn put_away(&self, key: QueueKey, asks: &mpsc::Receiver<Ask>) -> bool {
        let mut live = self.live();
        let idle = asks.is_empty() && asks.sender_strong_count() <= 1;
        if idle {
            live.remove(&key);
        }
        idle
    }

    /// A journal that cannot write stops everything, also while nobody asks for anything.
    async fn watch_for_failure(self) {
        tokio::select! {
            why = self.0.journal.failure() => {
                tracing::error!("the journal has stopped: {why}");
                self.0.failed.cancel();
            }
            () = self.0.stop.cancelled() => {}
        }
    }

    async fn wake_due_queues(self) {
        let mut ticks = tokio::time::interval(DUE_EVERY);
        loop {
            tokio::select! {
                () = self.0.stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let journal = self.0.journal.clone();
            let due = tokio::task::spawn_blocking(move || journal.due_queues(clock::now(), DUE_MAX)).await;
            for (key, _) in due.unwrap_or_default() {
                if self.live().contains_key(&key) {
                    // It keeps its own time; what is noted for a restart must not stand before those that are put away.
                    let _ = self.0.journal.set_due(key, Some(clock::now().plus(LIVE_DUE_MS)));
                } else if let Ok(mailbox) = self.mailbox(key) {
                    let _ = mailbox.send(Ask::Wake).await;
                }
            }
        }
    }
}

/// Runs a journal call that may touch the disk.
pub(crate) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result.map_err(|error| refuse(&error)),
        Err(_) => Err(Refusal::stopping()),
    }
}

/// What a caller is told about a journal that cannot be used.
fn refuse(error: &JournalError) -> Refusal {
    if matches!(error, JournalError::Quarantined { .. }) {
        let text = "this queue's journal is damaged; its data is left as it is, other queues go on; ask the operator for `audit salvage`";
        Refusal::new(RefusalKind::Unavailable, "quarantined", text)
    } else if matches!(error, JournalError::Busy) {
        Refusal::new(
            RefusalKind::Busy,
            "disk_busy",
            "more waits to be written than the disk takes; try again in a moment",
        )
    } else if matches!(error, JournalError::Io { .. }) {
        // Not a part of the journal itself, which would have stopped: a large body's own file.
        tracing::error!(%error, "the disk refused: {error}");
        let text = "the broker's disk cannot take or give this now; nothing was stored; try again in a while";
        Refusal::new(RefusalKind::Unavailable, "disk_failed", text)
    } else {
        Refusal::stopping()
    }
}
