//! The book of webhooks: what is in memory and what is on disk, kept the same. It knows nothing of the engine, which asks it
//! before a submission, tells it what came of that, and tells it what is on disk.

#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::id::{JobId, Namespace, QueueKey, QueueName, Seq, UnixMillis};
use protocol::native::{Callback, Callbacks};
use tokio::sync::{Notify, Semaphore};

use super::address::{Policy, shown};
use super::call::{CallId, HookId, Kind};
use super::fate::Ending;
use super::limits::Limits;
use super::look::{Found, Wanted};
use super::state::{Call, Changed, Full, Hook, Standing, State};
use super::stored::{Folder, Stored, StoredCall};
use crate::clock;
use crate::refusal::{Refusal, RefusalKind};

/// How many webhooks are written at a time: each takes two syncs, and the journal wants its own.
const WRITING_MAX: usize = 4;

/// Locks that keep two changes of one file apart; a webhook's is chosen by its id.
const FILE_LOCKS: usize = 16;

/// About what a file holds besides addresses and payloads, in bytes.
const FILE_BYTES: u64 = 512;

/// How many due calls, and how many dead letters, one listing shows.
const LISTED_MAX: usize = 100;

/// All webhooks of a broker. Cheap to clone.
#[derive(Clone)]
pub struct Book(Arc<Inner>);

struct Inner {
    folder: Folder,
    limits: Limits,
    policy: Policy,
    state: Mutex<State>,
    files: [Mutex<()>; FILE_LOCKS],
    /// How many there are, for those who only want to know whether there are any.
    count: AtomicUsize,
    number: AtomicU64,
    writing: Arc<Semaphore>,
    /// A call may be due earlier than it was.
    due: Notify,
    /// Something is to be looked up.
    looks: Notify,
    counters: Counters,
}

/// Counted since the start.
#[derive(Debug, Default)]
struct Counters {
    delivered: AtomicU64,
    failures: AtomicU64,
    dead: AtomicU64,
}

/// What an operator watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Webhooks kept: those that wait for their job, are being delivered, or are dead letters.
    pub kept: u64,
    /// Dead letters kept.
    pub dead_letters: u64,
    /// Calls delivered since the start.
    pub delivered: u64,
    /// Tries that failed since the start.
    pub failures: u64,
    /// Calls given up since the start.
    pub dead: u64,
}

/// A queue's webhooks, as they are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Calls that wait for what they tell of.
    pub waiting: usize,
    /// Calls to be tried, the next first, not all when there are many.
    pub pending: Vec<Shown>,
    /// Dead letters, the newest first, not all when there are many.
    pub dead: Vec<Shown>,
}

/// A call, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its id, which receivers see.
    pub id: CallId,
    /// What it tells of.
    pub kind: Kind,
    /// The job.
    pub job: JobId,
    /// Who wanted the job.
    pub namespace: Namespace,
    /// Where it goes, without what may be secret in it.
    pub url: String,
    /// How often it was tried.
    pub tries: u32,
    /// When it is tried (again), or was given up.
    pub at_ms: UnixMillis,
    /// What the last try came to.
    pub error: Option<String>,
}

/// A webhook whose submission is under way.
pub(crate) struct Ticket {
    book: Book,
    id: Option<HookId>,
}

/// A call to be tried.
pub(super) struct Delivery {
    pub(super) id: CallId,
    pub(super) ending: Option<Ending>,
    host: Box<str>,
}

impl Book {
    /// Opens the folder and reads what is in it.
    pub(super) fn open(path: &Path, limits: Limits, policy: Policy) -> io::Result<Self> {
        let folder = Folder::open(path)?;
        let (mut state, now) = (State::new(limits.clone()), clock::now());
        for (id, bytes, stored) in folder.all()? {
            state.add(id, Hook::new(&stored, bytes, now, &limits));
            state.look(id);
        }
        let book = Self(Arc::new(Inner {
            folder,
            limits,
            policy,
            count: AtomicUsize::new(state.counts().0),
            state: Mutex::new(state),
            files: Default::default(),
            number: AtomicU64::new(0),
            writing: Arc::new(Semaphore::new(WRITING_MAX)),
            due: Notify::new(),
            looks: Notify::new(),
            counters: Counters::default(),
        }));
        Ok(book)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and wakes whom that concerns.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let value = {
            let mut state = self.state();
            let value = change(&mut state);
            self.0.count.store(state.counts().0, Ordering::Relaxed);
            value
        };
        self.0.due.notify_one();
        self.0.looks.notify_one();
        value
    }

    /// Judges what a submission asks for, as far as that can be done at once.
    pub(crate) fn check(&self, callbacks: &Callbacks) -> Result<(), Refusal> {
        for (kind, callback) in both(callbacks) {
            let Some(callback) = callback else { continue };
            let field = format!("control.callbacks.{}", kind.name());
            if let Err(error) = self.0.policy.read(&callback.url) {
                let text = format!("{field}.url {error}");
                return Err(Refusal::new(RefusalKind::BadRequest, "bad_webhook_url", text));
            }
            let bytes = callback.payload.as_ref().map_or(0, |payload| payload.as_str().len());
            let bytes_max = self.0.limits.payload_bytes_max;
            if bytes > bytes_max {
                let text = format!(
                    "{field}.payload is {bytes} bytes, the limit is {bytes_max}; put data into a blob and name that"
                );
                return Err(Refusal::new(RefusalKind::BadRequest, "webhook_payload_too_large", text));
            }
        }
        Ok(())
    }

    /// Stores a webhook before its submission reaches the queue, which stands at `seen`.
    pub(crate) async fn admit(
        &self,
        queue: &QueueName,
        job: JobId,
        namespace: &Namespace,
        seen: Seq,
        callbacks: Callbacks,
    ) -> Result<Ticket, Refusal> {
        let (key, now) = (QueueKey::of(queue), clock::now());
        let id = HookId::new(key, job, namespace, now, self.0.number.fetch_add(1, Ordering::Relaxed));
        let Callbacks { queued, finished } = callbacks;
        let stored =
            Stored::new(queue.clone(), job, namespace.clone(), seen, now, queued.map(call), finished.map(call));
        let calls = [&stored.queued, &stored.finished];
        let bytes = calls.into_iter().flatten().fold(FILE_BYTES, |bytes, call| bytes + call_bytes(call));
        let hook = Hook::new(&stored, bytes, now, &self.0.limits);
        let made = self.change(|state| {
            let made = state.make_room(key, bytes)?;
            state.add(id, hook);
            Ok(made)
        });
        self.persist_later(made.map_err(|full| self.refuse(&full))?);
        let ticket = Ticket { book: self.clone(), id: Some(id) };
        let Ok(writing) = Arc::clone(&self.0.writing).acquire_owned().await else { return Err(Refusal::stopping()) };
        let inner = Arc::clone(&self.0);
        // The ticket goes along: if the submitter leaves meanwhile, it is dropped when the file is there, and the file goes too.
        let written = tokio::task::spawn_blocking(move || {
            let _writing = writing;
            (inner.folder.add(id, &stored), ticket)
        });
        match written.await {
            Ok((Ok(_), ticket)) => Ok(ticket),
            Ok((Err(error), ticket)) => {
                ticket.refused();
                tracing::error!(%error, "cannot store a webhook: {error}");
                let text = "the broker's disk cannot take the webhook now; nothing was submitted; try again in a while";
                Err(Refusal::new(RefusalKind::Unavailable, "disk_failed", text))
            }
            Err(_) => Err(Refusal::stopping()),
        }
    }

    fn refuse(&self, full: &Full) -> Refusal {
        let text = match full {
            Full::Queue => format!(
                "{} webhooks of this queue wait already, which is the limit; submit without callbacks, or later",
                self.0.limits.per_queue_max
            ),
            Full::Broker => format!(
                "the broker keeps as many webhooks as it allows ({}, {} bytes); submit without callbacks, or later",
                self.0.limits.count_max, self.0.limits.bytes_max
            ),
        };
        Refusal::new(RefusalKind::Busy, "webhooks_full", text)
    }

    /// Whether anything of this queue is to be told to [`Book::hear`].
    pub(crate) fn listens(&self, queue: QueueKey) -> bool {
        self.0.count.load(Ordering::Relaxed) > 0 && self.state().listens(queue)
    }

    /// A queue's task tells which records are on disk now, in their order.
    pub(crate) fn hear<'a>(&self, queue: QueueKey, records: impl Iterator<Item = &'a [u8]>) {
        let now = clock::now();
        let changed = self.change(|state| state.hear(queue, records, now));
        self.persist_later(changed);
    }

    pub(super) fn listen_after(&self, ids: impl Iterator<Item = HookId>, seq: Seq) {
        let mut state = self.state();
        ids.for_each(|id| state.listen_after(id, seq));
    }

    pub(super) fn wanted(&self, ids: &std::collections::BTreeSet<HookId>) -> Vec<Wanted> {
        let state = self.state();
        let wanted = ids.iter().filter_map(|id| {
            let hook = state.hook(*id)?;
            let seen = (!hook.is_sure).then_some(hook.seen);
            Some(Wanted { id: *id, job: hook.job, namespace: hook.namespace.clone(), seen })
        });
        wanted.collect()
    }

    pub(super) fn looked(&self, id: HookId, found: Found) {
        let now = clock::now();
        let changed = self.change(|state| state.looked(id, found, now));
        self.persist_later(changed);
    }

    /// A queue and those of its webhooks that are to be looked up; waits for some.
    pub(super) async fn next_looks(&self) -> (QueueKey, std::collections::BTreeSet<HookId>) {
        loop {
            let taken = self.state().take_looks();
            match taken {
                Some(looks) => return looks,
                None => self.0.looks.notified().await,
            }
        }
    }

    /// Those could not be looked up; they are to be again.
    pub(super) fn look_again(&self, ids: std::collections::BTreeSet<HookId>) {
        self.change(|state| ids.into_iter().for_each(|id| state.look(id)));
    }

    /// The next call to try, if one is due; else when one will be.
    pub(super) fn next(&self) -> Result<Delivery, Option<UnixMillis>> {
        let mut state = self.state();
        match state.next(clock::now()) {
            Some((id, host)) => {
                let ending = state.hook(id.hook).and_then(|hook| hook.ending.clone());
                Ok(Delivery { id, ending, host })
            }
            None => Err(state.next_at()),
        }
    }

    /// Resolves when [`Book::next`] may answer something else.
    pub(super) async fn due(&self) {
        self.0.due.notified().await;
    }

    /// What is stored of a webhook.
    pub(super) async fn stored(&self, id: HookId) -> io::Result<Stored> {
        let inner = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || inner.folder.read(id)).await.map_err(io::Error::other)?
    }

    /// Notes what a try came to, also on disk.
    pub(super) async fn tried(&self, delivery: Delivery, result: Result<(), String>) {
        let counters = &self.0.counters;
        let counter = if result.is_ok() { &counters.delivered } else { &counters.failures };
        counter.fetch_add(1, Ordering::Relaxed);
        let now = clock::now();
        let (is_dead, changed) = self.change(|state| state.tried(delivery.id, &delivery.host, result, now));
        if is_dead {
            counters.dead.fetch_add(1, Ordering::Relaxed);
        }
        self.persist(changed).await;
    }

    /// Forgets dead letters that have lain long enough.
    pub(super) fn sweep(&self) {
        let now = clock::now();
        let changed = self.change(|state| state.sweep(now));
        self.persist_later(changed);
    }

    fn persist_later(&self, changed: Changed) {
        if !changed.is_empty() {
            let book = self.clone();
            tokio::task::spawn_blocking(move || changed.into_iter().for_each(|id| book.persist_one(id)));
        }
    }

    async fn persist(&self, changed: Changed) {
        let book = self.clone();
        let _ = tokio::task::spawn_blocking(move || changed.into_iter().for_each(|id| book.persist_one(id))).await;
    }

    /// Brings a file up to date. What cannot be written is only noted: at worst a call is repeated after a restart.
    fn persist_one(&self, id: HookId) {
        let lock = &self.0.files[usize::try_from(id.salt()).unwrap_or(0) % FILE_LOCKS];
        let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let hook = self.state().hook(id).cloned();
        let folder = &self.0.folder;
        let done = match hook {
            None => folder.remove(id),
            Some(hook) => folder.read(id).and_then(|mut stored| {
                for kind in Kind::ALL {
                    patch(stored.call_mut(kind), hook.call(kind));
                }
                stored.ending.clone_from(&hook.ending);
                folder.write(id, &stored).map(|_| ())
            }),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "cannot bring the webhook {id} up to date: {error}");
        }
    }

    /// What an operator watches.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let (kept, dead_letters) = self.state().counts();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.0.counters;
        Stats {
            kept: kept as u64,
            dead_letters: dead_letters as u64,
            delivered: read(&counters.delivered),
            failures: read(&counters.failures),
            dead: read(&counters.dead),
        }
    }

    /// A queue's webhooks.
    pub async fn list(&self, queue: QueueKey) -> Listing {
        let book = self.clone();
        tokio::task::spawn_blocking(move || book.listing(queue)).await.unwrap_or_default()
    }

    fn listing(&self, queue: QueueKey) -> Listing {
        let (mut pending, mut dead) = (Vec::new(), Vec::new());
        let mut waiting = 0;
        for (id, hook) in self.state().of_queue(queue) {
            for kind in Kind::ALL {
                let call_id = CallId { hook: id, kind };
                match hook.call(kind).map(|call| &call.standing) {
                    Some(Standing::Waiting) => waiting += 1,
                    Some(Standing::UnderWay) => pending.push((UnixMillis(0), call_id)),
                    Some(Standing::Due { next_at }) => pending.push((*next_at, call_id)),
                    Some(Standing::Dead { at }) => dead.push((*at, call_id)),
                    None => {}
                }
            }
        }
        pending.sort_unstable();
        dead.sort_unstable_by(|a, b| b.cmp(a));
        let shown = |calls: Vec<(UnixMillis, CallId)>| {
            calls.into_iter().take(LISTED_MAX).filter_map(|(at_ms, id)| self.shown(id, at_ms)).collect()
        };
        Listing { waiting, pending: shown(pending), dead: shown(dead) }
    }

    /// A call as it is shown; `None` when it has gone since.
    fn shown(&self, id: CallId, at_ms: UnixMillis) -> Option<Shown> {
        let stored = self.0.folder.read(id.hook).ok()?;
        let url = shown(&stored.call(id.kind)?.url);
        let call = self.state().hook(id.hook)?.call(id.kind)?.clone();
        let Call { tries, error, .. } = call;
        let (job, namespace, error) = (stored.job, stored.namespace, error.map(String::from));
        Some(Shown { id, kind: id.kind, job, namespace, url, tries, at_ms, error })
    }

    /// Tries a queue's dead letters again: one, or all. Answers how many.
    pub async fn retry(&self, queue: QueueKey, only: Option<CallId>) -> usize {
        let now = clock::now();
        let changed = self.change(|state| state.revive(queue, only, now));
        let count = changed.len();
        self.persist(changed).await;
        count
    }
}

impl std::fmt::Debug for Book {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Book").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Ticket {
    /// The queue took the submission, which is on disk at `seq`; `is_new`: it made the job wait.
    pub(crate) fn taken(mut self, is_new: bool, seq: Seq) {
        if let Some(id) = self.id.take() {
            let now = clock::now();
            let changed = self.book.change(|state| state.taken(id, is_new, seq, now));
            self.book.persist_later(changed);
        }
    }

    /// The queue refused it.
    pub(crate) fn refused(mut self) {
        if let Some(id) = self.id.take() {
            let changed = self.book.change(|state| state.forget(id));
            self.book.persist_later(changed);
        }
    }
}

/// Nobody said what became of the submission: it is looked up.
impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.book.change(|state| state.look(id));
        }
    }
}

fn both(callbacks: &Callbacks) -> [(Kind, &Option<Callback>); 2] {
    [(Kind::Queued, &callbacks.queued), (Kind::Finished, &callbacks.finished)]
}

fn call(callback: Callback) -> StoredCall {
    let Callback { url, payload } = callback;
    StoredCall { url, payload, tries: 0, next_at_ms: None, dead_at_ms: None, error: None }
}

fn call_bytes(call: &StoredCall) -> u64 {
    let bytes = call.url.len() + call.payload.as_ref().map_or(0, |payload| payload.as_str().len());
    bytes as u64
}

/// Writes where a call stands into what is stored of it.
fn patch(stored: &mut Option<StoredCall>, call: Option<&Call>) {
    let Some(call) = call else {
        *stored = None;
        return;
    };
    let Some(stored) = stored else { return };
    stored.tries = call.tries;
    stored.error = call.error.as_deref().map(str::to_owned);
    (stored.next_at_ms, stored.dead_at_ms) = match call.standing {
        Standing::Waiting => (None, None),
        Standing::Due { next_at } => (Some(next_at), None),
        // Interrupted, it is tried again at once.
        Standing::UnderWay => (Some(UnixMillis(0)), None),
        Standing::Dead { at } => (None, Some(at)),
    };
}
