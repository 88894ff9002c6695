//! What the journal's threads share, and how the store is kept whole while it is in use.
//!
//! Order of locks: the index's, the gate, the store's. Whoever asks the store lets go of it before having it made again.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

use protocol::id::{Digest, Head, JobId, QueueKey};
use tracing::{error, warn};

use super::ahead::Ahead;
use super::archive::Archived;
use super::config::JournalConfig;
use super::damage::{Quarantine, Quarantined};
use super::error::JournalError;
use super::events::{Progress, Store, StoreError};
use super::fill::{self, FillError, Scope, Starts, fill};
use super::forgotten::Forgotten;
use super::inbox::Inbox;
use super::open;
use super::segment::Segment;
use super::snapshot::Snapshots;
use super::sweep::Returned;
use crate::histogram::Histogram;

/// How often a broken store is made again in one life of the process; more means that the disk is no good.
const HEALS_MAX: u32 = 3;

/// Counted since the journal was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) groups: AtomicU64,
    pub(crate) records: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) sync_times: Histogram,
    pub(crate) rebuilds: AtomicU64,
    pub(crate) repairs: AtomicU64,
    pub(crate) scrubbed: AtomicBool,
}

/// Something, and the ticket that it came with.
type Ticketed<T> = (u64, T);

/// What was handed to the journal and is not in the store yet.
#[derive(Default)]
pub(crate) struct Overlay {
    pub(crate) bodies: HashMap<(QueueKey, Digest), Ticketed<Arc<[u8]>>>,
    pub(crate) archived: HashMap<(QueueKey, JobId), Ticketed<Archived>>,
}

/// The store, and which one it is.
pub(crate) struct Current {
    /// `None` once the journal is closed.
    pub(crate) store: Option<Store>,
    /// Counts the stores made in this life of the process.
    pub(crate) generation: u32,
}

/// How far the index has come.
#[derive(Default)]
struct Mark {
    ticket: u64,
    ended: bool,
}

/// What opening a journal gives.
pub(crate) struct Opened {
    pub(crate) segments: Vec<Segment>,
    pub(crate) written: u64,
    pub(crate) store: Store,
    pub(crate) progress: Progress,
    pub(crate) quarantine: Quarantine,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) ahead: Arc<Ahead>,
}

/// What all parts of an open journal share.
pub(crate) struct Shared {
    pub(crate) config: JournalConfig,
    pub(crate) inbox: Inbox,
    pub(crate) overlay: Mutex<Overlay>,
    pub(crate) quarantine: Quarantine,
    pub(crate) counters: Counters,
    /// The position up to which groups are whole in the segments.
    pub(crate) written: AtomicU64,
    /// The position up to which everything is in the store; for watching only.
    pub(crate) indexed_to: AtomicU64,
    /// Set when the journal is being closed.
    pub(crate) closing: AtomicBool,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) ahead: Arc<Ahead>,
    /// What is forgotten.
    pub(crate) forgotten: Forgotten,
    /// Held while the file of a large body is looked at to be used again, or removed.
    pub(crate) bodies: Mutex<()>,
    /// Jobs that were queued since a sweep has begun in their queue; none while there is no sweep.
    returned: Mutex<Option<Returned>>,
    segments: RwLock<Arc<[Segment]>>,
    current: RwLock<Current>,
    /// Held by whoever asks the store, and alone while it knows only some of a queue.
    gate: RwLock<()>,
    /// Held while rows go into the store, with how far it is filled.
    index: Mutex<Progress>,
    mark: Mutex<Mark>,
    marked: Condvar,
    failure: tokio::sync::watch::Sender<Option<Arc<str>>>,
}

impl Shared {
    /// What all parts of a journal that was just opened share.
    pub(crate) fn new(config: JournalConfig, opened: Opened) -> Self {
        let Opened { segments, written, store, progress, quarantine, snapshots, ahead } = opened;
        Self {
            forgotten: Forgotten::of(&config.dir),
            bodies: Mutex::default(),
            returned: Mutex::default(),
            config,
            inbox: Inbox::default(),
            overlay: Mutex::default(),
            quarantine,
            counters: Counters::default(),
            written: AtomicU64::new(written),
            indexed_to: AtomicU64::new(progress.position),
            closing: AtomicBool::new(false),
            snapshots,
            ahead,
            segments: RwLock::new(segments.into()),
            current: RwLock::new(Current { store: Some(store), generation: 0 }),
            gate: RwLock::default(),
            index: Mutex::new(progress),
            mark: Mutex::default(),
            marked: Condvar::new(),
            failure: tokio::sync::watch::Sender::new(None),
        }
    }

    pub(crate) fn data(&self) -> &Path {
        &self.config.dir
    }

    /// Where folds start from.
    pub(crate) fn starts(&self) -> Starts<'_> {
        Starts { snapshots: &self.snapshots, ahead: &self.ahead }
    }

    /// Nothing is taken or answered any more; told once.
    pub(crate) fn fail(&self, text: &str) {
        if self.failure.borrow().is_none() {
            error!("the journal stops: {text}");
            self.failure.send_replace(Some(text.into()));
        }
        self.inbox.end(JournalError::Failed { why: text.into() }, true);
        self.end_marks();
    }

    /// Why nothing is taken any more.
    pub(crate) fn check(&self) -> Result<(), JournalError> {
        self.inbox.ended().map_or(Ok(()), Err)
    }

    /// Tells of the failure.
    pub(crate) fn watch_failure(&self) -> tokio::sync::watch::Receiver<Option<Arc<str>>> {
        self.failure.subscribe()
    }

    pub(crate) fn overlay(&self) -> MutexGuard<'_, Overlay> {
        self.overlay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Comes after the index in the order of locks.
    pub(crate) fn returned(&self) -> MutexGuard<'_, Option<Returned>> {
        self.returned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn segments(&self) -> Arc<[Segment]> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn add_segment(&self, segment: Segment) {
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        *segments = segments.iter().cloned().chain([segment]).collect();
    }

    /// The segment that holds `position`.
    pub(crate) fn segment_of(&self, position: u64) -> Option<Segment> {
        let segments = self.segments();
        let after = segments.partition_point(|segment| segment.base <= position);
        segments.get(after.checked_sub(1)?).cloned()
    }

    /// Everything up to `ticket` is in the store.
    pub(crate) fn indexed(&self, ticket: u64) {
        let mut mark = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        mark.ticket = mark.ticket.max(ticket);
        drop(mark);
        self.marked.notify_all();
    }

    /// The index will not come any further.
    pub(crate) fn end_marks(&self) {
        self.mark.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.marked.notify_all();
    }

    /// Waits until everything that was handed in before this call is in the store.
    pub(crate) fn wait_indexed(&self) -> Result<(), JournalError> {
        let ticket = self.inbox.tickets();
        let mut mark = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        while mark.ticket < ticket {
            if mark.ended {
                drop(mark);
                self.check()?;
                return Err(JournalError::Closed);
            }
            mark = self.marked.wait(mark).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    pub(crate) fn lock_index(&self) -> MutexGuard<'_, Progress> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the store; one that breaks is made again, and asked again.
    pub(crate) fn ask<T>(&self, call: impl Fn(&Store) -> Result<T, StoreError>) -> Result<T, JournalError> {
        loop {
            let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            let asked = self.try_ask(&call)?;
            drop(gate);
            let (generation, broken) = match asked {
                Ok(value) => return Ok(value),
                Err(broken) => broken,
            };
            let mut progress = self.lock_index();
            self.heal(&mut progress, generation, &broken)?;
        }
    }

    /// Asks the store of a queue, which must not be quarantined before nor after.
    pub(crate) fn ask_of<T>(
        &self,
        queue: QueueKey,
        call: impl Fn(&Store) -> Result<T, StoreError>,
    ) -> Result<T, JournalError> {
        self.check_queue(queue)?;
        let answer = self.ask(call)?;
        self.check_queue(queue)?;
        Ok(answer)
    }

    /// Asks the store once.
    fn try_ask<T>(
        &self,
        call: impl FnOnce(&Store) -> Result<T, StoreError>,
    ) -> Result<Result<T, (u32, StoreError)>, JournalError> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let store = current.store.as_ref().ok_or(JournalError::Closed)?;
        Ok(call(store).map_err(|error| (current.generation, error)))
    }

    /// Changes the store while the index is held; one that breaks is made again, which holds the change already or is tried again.
    pub(crate) fn change<T>(
        &self,
        progress: &mut Progress,
        call: impl Fn(&Store, &Progress) -> Result<T, StoreError>,
    ) -> Result<T, JournalError> {
        loop {
            match self.try_ask(|store| call(store, progress))? {
                Ok(value) => return Ok(value),
                Err((generation, broken)) => self.heal(progress, generation, &broken)?,
            }
        }
    }

    /// Makes the store again from the segments, unless someone else has since `generation`.
    fn heal(&self, progress: &mut Progress, generation: u32, broken: &StoreError) -> Result<(), JournalError> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.generation != generation {
            return Ok(());
        }
        warn!("{broken}; making it again from the segments");
        if generation >= HEALS_MAX {
            let text = format!("{broken}, again and again: the disk or the memory of this machine is no good");
            self.fail(&text);
            return Err(JournalError::Failed { why: text.into() });
        }
        let path = current.store.as_ref().map(|store| store.path().to_owned()).ok_or(JournalError::Closed)?;
        let skip = |queue| self.quarantine.of(queue).is_some();
        let until = self.written.load(Ordering::Acquire);
        let made = open::make_store_after(&path).map_err(FillError::Store);
        let made = made.and_then(|store| {
            fill(self.starts(), &store, &self.segments(), until, Scope::Rest, &skip).map(|filled| (store, filled))
        });
        let (store, filled) = made.map_err(|error| {
            let text = format!("the event store cannot be made again: {error}");
            self.fail(&text);
            JournalError::Failed { why: text.into() }
        })?;
        *progress = filled.progress;
        current.generation += 1;
        if let Some(old) = current.store.replace(store) {
            old.abandon();
        }
        self.counters.rebuilds.fetch_add(1, Ordering::Relaxed);
        self.quarantine(filled.broken.into_values().collect());
        Ok(())
    }

    /// Lets go of the store, for the end.
    pub(crate) fn take_store(&self) -> Option<Store> {
        self.current.write().unwrap_or_else(PoisonError::into_inner).store.take()
    }

    /// Keeps queues from being served, from now on and over restarts.
    pub(crate) fn quarantine(&self, found: Vec<Quarantined>) {
        let new = self.quarantine.add(found);
        for one in &new {
            error!(queue = %one.queue.short(), "queue {} is quarantined: {}", one.queue.short(), one.text);
        }
        if !new.is_empty()
            && let Err(error) = self.quarantine.remember(self.data())
        {
            warn!("cannot note the quarantined queues: {error}; the next start has to find them again");
        }
    }

    /// Refuses a quarantined queue.
    pub(crate) fn check_queue(&self, queue: QueueKey) -> Result<(), JournalError> {
        match self.quarantine.of(queue) {
            None => Ok(()),
            Some(one) => Err(JournalError::Quarantined { queue: queue.short(), text: one.text }),
        }
    }

    /// Makes all that the store knows of a queue again from the segments; the queue is quarantined when they are damaged.
    pub(crate) fn repair(&self, queue: QueueKey, why: &str) -> Result<(), JournalError> {
        let mut progress = self.lock_index();
        warn!(queue = %queue.short(), "queue {} is read again from the segments: {why}", queue.short());
        self.counters.repairs.fetch_add(1, Ordering::Relaxed);
        let segments = self.segments();
        let gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let filled = self.change(&mut progress, |store, progress| {
            let known = store.head(queue).ok().flatten();
            store.forget(queue)?;
            let filled = fill(self.starts(), store, &segments, progress.position, Scope::Queue(queue), &|_| false);
            let filled = filled.map_err(|error| StoreError(error.to_string()))?;
            let records = filled.progress.records.saturating_sub(known.map_or(0, |head| head.seq));
            let progress = Progress { position: progress.position, records };
            store.reached(progress)?;
            Ok((filled.broken, progress, known))
        })?;
        let (mut broken, now, known) = filled;
        *progress = now;
        let head = self.change(&mut progress, |store, _| store.head(queue))?;
        if let Some(known) = known
            && head.is_none_or(|head| head.seq < known.seq)
        {
            let seq = head.map_or(0, |head: Head| head.seq) + 1;
            broken.entry(queue).or_insert_with(|| Quarantined::absent(queue, seq, known.seq));
        }
        self.quarantine(broken.into_values().collect());
        drop(gate);
        drop(progress);
        self.check_queue(queue)
    }

    /// Finds the queues whose records are not all there, when damage cannot tell whom it touches.
    pub(crate) fn find_absent(&self) -> Result<(), JournalError> {
        let (until, heads) = {
            let progress = self.lock_index();
            let until = progress.position;
            drop(progress);
            (until, self.ask(Store::heads)?)
        };
        let until = until.max(self.written.load(Ordering::Acquire));
        let found = fill::absent(&self.segments(), until, &heads)
            .map_err(|error| JournalError::io("reading segments", error))?;
        self.quarantine(found);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use protocol::event::Event;
    use protocol::id::UnixMillis;
    use protocol::queue::QueueState;
    use protocol::record::{RECORD_VERSION, Record};

    use super::super::{Batch, EncodedRecord, Journal, JournalConfig};
    use super::*;

    fn journal_of_one(dir: &Path) -> (Journal, QueueState) {
        let (journal, _) = Journal::open(JournalConfig { scrub: false, ..JournalConfig::new(dir) }).unwrap();
        let queue = QueueKey::from_bytes([7; 16]);
        let mut state = QueueState::new(queue);
        let event = Event::WorkerJoined { worker: "w".parse().unwrap(), version: "1".to_owned() };
        let bytes = Record { v: RECORD_VERSION, seq: 1, at_ms: UnixMillis(1), event }.encode();
        state.apply_bytes(&bytes).unwrap();
        let records = vec![EncodedRecord { seq: 1, hash: state.head().hash, bytes: bytes.into() }];
        let batch = Batch { queue, records, bodies: vec![], archives: vec![], due: None };
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(journal.append(batch)).unwrap();
        (journal, state)
    }

    #[test]
    fn a_store_that_breaks_in_use_is_made_again_and_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, state) = journal_of_one(dir.path());
        let shared = journal.shared();
        shared.wait_indexed().unwrap();
        let failures = Cell::new(2);
        let head = shared.ask(|store| match failures.get() {
            0 => store.head(state.queue()),
            left => {
                failures.set(left - 1);
                Err(StoreError("it was told to".to_owned()))
            }
        });
        assert_eq!(head.unwrap(), Some(state.head()));
        assert_eq!(journal.stats().rebuilds, 2);
        assert_eq!(journal.load(state.queue()).unwrap(), state);
    }

    #[test]
    fn a_store_that_breaks_again_and_again_stops_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, state) = journal_of_one(dir.path());
        let failed = journal.shared().ask::<()>(|_| Err(StoreError("it was told to".to_owned())));
        assert!(matches!(failed, Err(JournalError::Failed { .. })));
        assert!(matches!(journal.set_due(state.queue(), None), Err(JournalError::Failed { .. })));
        drop(journal);
        let (journal, _) = Journal::open(JournalConfig::new(dir.path())).unwrap();
        assert_eq!(journal.load(state.queue()).unwrap(), state);
    }
}
