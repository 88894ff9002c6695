//! The journal: what is on disk, and the only way to it.
//!
//! Two layers, one truth. Append-only segment files hold the records and bodies of all queues in the order of their commits;
//! one thread writes them, everything that waits in one write and one sync ([`Journal::enqueue`]). An event store is filled
//! from what was written and serves all reads; it is made again from the segments whenever it is broken, and never the only
//! copy of anything. Damage in the segments keeps the queues that it touches from being served, and no others.
//!
//! Calls that are not `async` may touch the disk and wait for the index: they are for threads that may block.

mod ahead;
mod archive;
mod batch;
pub(crate) mod bodies;
mod config;
mod content;
pub(crate) mod damage;
mod error;
mod events;
mod fetch;
mod fill;
pub(crate) mod forgotten;
pub(crate) mod frame;
pub(crate) mod head;
mod inbox;
mod index;
pub(crate) mod layout;
mod open;
mod pack;
mod report;
mod running;
pub(crate) mod scan;
mod scrub;
pub(crate) mod segment;
mod shared;
mod snapshot;
mod sweep;
mod writer;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use protocol::id::{Digest, Head, JobId, QueueKey, Seq, UnixMillis};
use protocol::queue::QueueState;
use tokio::sync::oneshot;

pub use self::archive::Archived;
pub(crate) use self::archive::result_of;
pub use self::batch::{BATCH_RECORDS_MAX, Batch, Body, EncodedRecord, INLINE_BODY_BYTES_MAX};
pub use self::config::{Durability, JournalConfig};
pub use self::damage::Quarantined;
pub use self::error::JournalError;
pub use self::report::{JournalStats, OpenReport};
pub use self::scan::{Loss, Touched};
pub use self::scrub::ScrubReport;
pub use self::snapshot::Tail;
pub(crate) use self::sweep::Gone;

use self::ahead::Ahead;
use self::events::{Folded, Store};
use self::fetch::Wanted;
use self::inbox::What;
use self::running::Running;
use self::segment::Segment;
use self::shared::{Opened, Shared};
use self::snapshot::{Snapshots, Start};

/// Resolves when a batch is on disk, or will not be.
#[derive(Debug)]
#[must_use = "nothing may be told of a batch before it is on disk"]
pub struct Committed(Result<oneshot::Receiver<Result<(), JournalError>>, JournalError>);

impl Future for Committed {
    type Output = Result<(), JournalError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Err(error) => Poll::Ready(Err(error.clone())),
            Ok(answer) => Pin::new(answer).poll(context).map(|answer| answer.unwrap_or(Err(JournalError::Closed))),
        }
    }
}

/// An open journal. Cheap to clone; the last clone that goes closes it.
#[derive(Clone)]
pub struct Journal(Arc<Running>);

impl Journal {
    /// Opens the journal in a folder, or makes one; mends what a crash left behind.
    ///
    /// # Errors
    ///
    /// [`JournalError::InUse`], [`JournalError::Newer`], or what reading and writing gave. Damage is no error: it is in the report.
    pub fn open(config: JournalConfig) -> Result<(Self, OpenReport), JournalError> {
        let (snapshots, ahead) = (Arc::new(Snapshots::new(&config.dir)), Arc::new(Ahead::default()));
        let recovered = open::recover(&config, &snapshots, &ahead).inspect_err(|_| ahead.end());
        let open::Recovered { lock, appender, segments, store, progress, quarantine, mut report } = recovered?;
        let written = appender.end();
        let opened = Opened { segments, written, store, progress, quarantine, snapshots, ahead };
        let shared = Arc::new(Shared::new(config, opened));
        for queue in &report.cleared {
            match shared.repair(*queue, "its segments are whole again") {
                Ok(()) | Err(JournalError::Quarantined { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        report.quarantined = shared.quarantine.all();
        report.cleared.retain(|queue| shared.quarantine.of(*queue).is_none());
        Ok((Self(Arc::new(Running::start(shared, lock, appender)?)), report))
    }

    fn shared(&self) -> &Arc<Shared> {
        self.0.shared()
    }

    /// Puts a batch in line, at the time of the call. Resolves when it is on disk.
    pub fn enqueue(&self, batch: Batch) -> Committed {
        let (reply, answer) = oneshot::channel();
        let shared = self.shared();
        let put = batch.check().and_then(|()| shared.check_queue(batch.queue)).and_then(|()| {
            shared.inbox.put(What::Batch(batch, reply), |what, ticket| {
                let What::Batch(batch, _) = what else { return };
                if batch.bodies.is_empty() && batch.archives.is_empty() {
                    return;
                }
                let mut overlay = shared.overlay();
                for body in &batch.bodies {
                    overlay.bodies.insert((batch.queue, body.digest), (ticket, body.bytes.clone()));
                }
                for (job, archived) in &batch.archives {
                    overlay.archived.insert((batch.queue, *job), (ticket, archived.clone()));
                }
            })
        });
        Committed(put.map(|_| answer))
    }

    /// Waits for room, then does what [`Journal::enqueue`] does.
    ///
    /// # Errors
    ///
    /// [`JournalError`] when the batch is not on disk.
    pub async fn append(&self, batch: Batch) -> Result<(), JournalError> {
        self.room().await;
        self.enqueue(batch).await
    }

    /// Waits until little enough waits to be written. Those that don't ask are refused only far above that.
    pub async fn room(&self) {
        self.shared().inbox.room().await;
    }

    /// Keeps a body that is too large for a batch; it is on disk when this returns.
    ///
    /// # Errors
    ///
    /// [`JournalError`] when it is not.
    pub fn store_large_body(&self, queue: QueueKey, digest: Digest, bytes: &[u8]) -> Result<(), JournalError> {
        let shared = self.shared();
        shared.check()?;
        shared.check_queue(queue)?;
        bodies::store(shared.data(), &shared.bodies, queue, digest, bytes)
            .map_err(|error| JournalError::io("storing a body", error))
    }

    /// Reads a body; `None` when the queue has none of that digest.
    ///
    /// # Errors
    ///
    /// [`JournalError`] when it is damaged or cannot be read.
    pub fn body(&self, queue: QueueKey, digest: Digest) -> Result<Option<Vec<u8>>, JournalError> {
        Ok(self.bodies(queue, &[digest], usize::MAX)?.pop().flatten())
    }

    /// Reads bodies in the order of `digests`, as many as have about `bytes_max` together (one at least, if any is asked for);
    /// `None` for one that the queue has not. Those that were written together take one read.
    ///
    /// # Errors
    ///
    /// [`JournalError`] when one of them is damaged or cannot be read.
    pub fn bodies(
        &self,
        queue: QueueKey,
        digests: &[Digest],
        bytes_max: usize,
    ) -> Result<Vec<Option<Vec<u8>>>, JournalError> {
        let shared = self.shared();
        shared.check_queue(queue)?;
        let failed = |error| JournalError::io("reading a body", error);
        let waiting: Vec<Option<Arc<[u8]>>> = {
            let overlay = shared.overlay();
            let of = |digest: &Digest| overlay.bodies.get(&(queue, *digest)).map(|(_, bytes)| Arc::clone(bytes));
            digests.iter().map(of).collect()
        };
        let (mut found, mut places, mut bytes) = (Vec::new(), Vec::new(), 0_usize);
        for (index, (digest, waiting)) in digests.iter().zip(waiting).enumerate() {
            let place = match &waiting {
                Some(_) => None,
                None => shared.ask_of(queue, |store| store.body(queue, *digest))?,
            };
            let body = match (waiting, place) {
                (Some(waiting), _) => Some(waiting.to_vec()),
                (None, Some(_)) => None,
                (None, None) => bodies::read(shared.data(), queue, *digest).map_err(failed)?,
            };
            let place_bytes = place.map_or(0, |place| usize::try_from(place.frame_bytes).unwrap_or(usize::MAX));
            bytes = bytes.saturating_add(place_bytes.max(body.as_ref().map_or(0, Vec::len)));
            if bytes > bytes_max && index > 0 {
                break;
            }
            found.push(body);
            places.extend(place.map(|place| Wanted { index, digest: *digest, place }));
        }
        let mut wanted = BTreeMap::<u64, (Segment, Vec<Wanted>)>::new();
        for one in &places {
            if let Some(segment) = shared.segment_of(one.place.position) {
                wanted.entry(segment.number).or_insert_with(|| (segment, Vec::new())).1.push(*one);
            }
        }
        for (segment, wanted) in wanted.into_values() {
            fetch::bodies(&segment, queue, wanted, |index, bytes| found[index] = Some(bytes)).map_err(failed)?;
        }
        let Some(lost) = places.iter().find(|one| found[one.index].is_none()) else { return Ok(found) };
        // Either the store's row is wrong, or the segment: this finds out which.
        shared.repair(queue, "a body is not where it should be")?;
        let text = format!("the body {} cannot be read", lost.digest);
        Err(JournalError::Quarantined { queue: queue.short(), text })
    }

    /// A queue's state, with everything that was handed in before this call.
    ///
    /// # Errors
    ///
    /// [`JournalError::Quarantined`] when damage touches the queue.
    pub fn load(&self, queue: QueueKey) -> Result<QueueState, JournalError> {
        self.load_with_tail(queue).map(|(state, _)| state)
    }

    /// A queue's state, and how much of it came after the newest snapshot.
    ///
    /// # Errors
    ///
    /// As [`Journal::load`].
    pub fn load_with_tail(&self, queue: QueueKey) -> Result<(QueueState, Tail), JournalError> {
        let shared = self.shared();
        shared.check_queue(queue)?;
        shared.wait_indexed()?;
        let fold = |store: &Store| {
            let head = store.head(queue)?.map_or(0, |head| head.seq);
            let Start { state, tail } = shared.starts().of(store, queue, head)?;
            store.fold(state, |_, _| {}).map(|folded| (folded, tail))
        };
        let mut folded = shared.ask_of(queue, fold)?;
        if let (Folded::Unverified(text), _) = &folded {
            shared.repair(queue, text)?;
            folded = shared.ask_of(queue, fold)?;
        }
        match folded {
            (Folded::State { state, events, bytes }, tail) => {
                shared.inbox.note_tip(queue, state.head());
                Ok((*state, tail.after(events, bytes)))
            }
            (Folded::Unverified(text), _) => {
                let seq = None;
                shared.quarantine(vec![Quarantined { queue, segment: 0, offset: 0, seq, text: text.clone() }]);
                Err(JournalError::Quarantined { queue: queue.short(), text })
            }
        }
    }

    /// Records from `from_seq` on, as many as both bounds allow (one at least), the chain between them checked.
    ///
    /// # Errors
    ///
    /// [`JournalError`] when they cannot be read.
    pub fn records(
        &self,
        queue: QueueKey,
        from_seq: Seq,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<EncodedRecord>, JournalError> {
        let shared = self.shared();
        shared.check_queue(queue)?;
        shared.wait_indexed()?;
        let read = |store: &Store| {
            let (mut rows, mut bytes) = (Vec::new(), 0);
            store.rows(queue, from_seq.max(1), |row| {
                bytes += row.bytes.len();
                let fits = rows.is_empty() || (rows.len() < records_max && bytes <= bytes_max);
                if fits {
                    rows.push(row);
                }
                fits
            })?;
            let good = rows.first().is_none_or(|row| row.seq == from_seq.max(1)) && store.chained(queue, &rows)?;
            Ok((rows, good))
        };
        let (mut rows, good) = shared.ask_of(queue, read)?;
        if !good {
            shared.repair(queue, "records do not hang together")?;
            rows = shared.ask_of(queue, read)?.0;
        }
        let encoded = |row: events::Row| EncodedRecord { seq: row.seq, hash: row.hash, bytes: row.bytes.into() };
        Ok(rows.into_iter().map(encoded).collect())
    }

    /// What stays of a job that left the queue, unless it is forgotten. Does not wait for the index.
    ///
    /// # Errors
    ///
    /// [`JournalError`] when it cannot be read.
    pub fn archived(&self, queue: QueueKey, job: JobId) -> Result<Option<Archived>, JournalError> {
        let shared = self.shared();
        shared.check_queue(queue)?;
        let waiting = shared.overlay().archived.get(&(queue, job)).map(|(_, archived)| archived.clone());
        let kept = match waiting {
            Some(archived) => Some(archived),
            None => shared.ask_of(queue, |store| store.archived(queue, job))?,
        };
        Ok(kept.filter(|kept| !self.is_forgotten(kept)))
    }

    /// The queues that know a job: live, or as what stays of it. Quarantined ones are left out.
    ///
    /// # Errors
    ///
    /// [`JournalError`] when they cannot be read.
    pub fn retained(&self, job: JobId) -> Result<Vec<QueueKey>, JournalError> {
        let shared = self.shared();
        shared.wait_indexed()?;
        let mut queues = shared.ask(|store| store.queues_of(job))?;
        queues.retain(|queue| shared.quarantine.of(*queue).is_none());
        Ok(queues)
    }

    /// Keeps a state, which must be on disk as records, so that loading it replays less. Older snapshots are removed.
    ///
    /// # Errors
    ///
    /// [`JournalError`] when it was not kept; nothing is lost then.
    pub fn save_snapshot(&self, state: &QueueState) -> Result<u64, JournalError> {
        let shared = self.shared();
        shared.check()?;
        shared.snapshots.save(state).map_err(|error| JournalError::io("storing a snapshot", error))
    }

    /// Whether a snapshot is worth its bytes after that many events and bytes since the last one.
    #[must_use]
    pub const fn wants_snapshot(&self, tail_events: u64, tail_bytes: u64, last_snapshot_bytes: u64) -> bool {
        Tail { events: tail_events, bytes: tail_bytes, snapshot_bytes: last_snapshot_bytes }.wants_snapshot()
    }

    /// Queues whose due time is not after `until`, the first first. Quarantined ones are left out.
    #[must_use]
    pub fn due_queues(&self, until: UnixMillis, count_max: usize) -> Vec<(QueueKey, UnixMillis)> {
        let shared = self.shared();
        let served = |queue| shared.quarantine.of(queue).is_none();
        // An error was told when the journal stopped because of it; then nothing is to be woken any more.
        shared.ask(|store| store.due(until, count_max, served)).unwrap_or_default()
    }

    /// Says when a queue is to be looked at though nobody touches it, after the batches that were handed in before.
    ///
    /// # Errors
    ///
    /// [`JournalError`] when nothing is taken any more.
    pub fn set_due(&self, queue: QueueKey, due: Option<UnixMillis>) -> Result<(), JournalError> {
        self.shared().inbox.put(What::Due(queue, due), |_, _| {}).map(drop)
    }

    /// All queues with where they stand.
    ///
    /// # Errors
    ///
    /// [`JournalError`] when they cannot be read.
    pub fn queues(&self) -> Result<Vec<(QueueKey, Head)>, JournalError> {
        self.shared().wait_indexed()?;
        self.shared().ask(Store::heads)
    }

    /// The queues that are not served because of damage.
    #[must_use]
    pub fn quarantined(&self) -> Vec<Quarantined> {
        self.shared().quarantine.all()
    }

    /// Reads all segments through and compares the event store with them, as fast as it goes.
    ///
    /// # Errors
    ///
    /// [`JournalError`] when they cannot be read. Damage is no error: it is in the report.
    pub fn scrub(&self) -> Result<ScrubReport, JournalError> {
        scrub::run(self.shared(), false)
    }

    /// Resolves when the journal has stopped because of a failure, with the reason. Never before.
    pub async fn failure(&self) -> Arc<str> {
        let mut failure = self.shared().watch_failure();
        loop {
            if let Some(why) = failure.borrow_and_update().clone() {
                return why;
            }
            if failure.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Numbers for operators.
    #[must_use]
    pub fn stats(&self) -> JournalStats {
        let shared = self.shared();
        let counters = &shared.counters;
        let bytes = shared.written.load(Ordering::Acquire);
        JournalStats {
            bytes,
            segments: shared.segments().len() as u64,
            groups: counters.groups.load(Ordering::Relaxed),
            records: counters.records.load(Ordering::Relaxed),
            syncs: counters.syncs.load(Ordering::Relaxed),
            sync_times: counters.sync_times.times(),
            waiting_bytes: shared.inbox.bytes() as u64,
            index_lag_bytes: bytes.saturating_sub(shared.indexed_to.load(Ordering::Relaxed)),
            rebuilds: counters.rebuilds.load(Ordering::Relaxed),
            repairs: counters.repairs.load(Ordering::Relaxed),
            quarantined: shared.quarantine.len() as u64,
            scrubbed: counters.scrubbed.load(Ordering::Relaxed),
        }
    }

    /// Writes what waits, puts the event store on disk and lets go of the folder. All clones answer [`JournalError::Closed`] then.
    pub fn close(self) {
        self.0.close();
    }
}
