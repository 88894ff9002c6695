//! The working event log: what the broker reads. The only file that names sled.
//!
//! It is filled from the segments and can always be made again from them, so nothing here is ever the only copy of anything.
//! sled's own flush is no fsync and a damaged file makes it panic; hence every call is guarded, a store that failed once is not
//! asked again, and values stay small (bigger ones would go to files that sled never syncs).

mod rows;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use protocol::id::{Digest, Head, JobId, QueueKey, Seq, UnixMillis};
use protocol::queue::QueueState;
use protocol::record::chain;

pub(crate) use self::rows::Rows;
use self::rows::{body_key, by_job_key, due_key, event_key, job_key, joined};
use super::archive::Archived;
use super::pack::{self, Packed};

/// The longest value: above about 8 KiB sled writes values to files that it never syncs; asserted well below.
const VALUE_BYTES_MAX: usize = 4096;
/// What sled may keep in memory, in bytes: the rows of a queue with a hundred thousand jobs, whose rows by hash are all over the store.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// How long opening may take: a million rows take under a second; a damaged file may make sled wait for ever.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// The version of the rows' layout; a store of another one is made again.
const STORE_VERSION: &[u8] = b"2";
/// Rows are written in pieces of this many when a store is filled from the segments.
pub(crate) const FILL_ROWS: usize = 4096;

const VERSION_KEY: &[u8] = b"version";
const PROGRESS_KEY: &[u8] = b"progress";

/// The store did something a whole store does not do.
#[derive(Debug, thiserror::Error)]
#[error("the event store is broken: {0}")]
pub(crate) struct StoreError(pub(crate) String);

/// How far the store has been filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The position in the segments up to which everything is here.
    pub(crate) position: u64,
    /// How many records that is; equal to the sum of all heads.
    pub(crate) records: u64,
}

/// Where a body is in the segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The position of its frame in the whole log.
    pub(crate) position: u64,
    /// The frame's length.
    pub(crate) frame_bytes: u32,
}

/// A record of the event tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The position in the queue.
    pub(crate) seq: Seq,
    /// The chain hash up to and including the record.
    pub(crate) hash: Digest,
    /// The record's bytes.
    pub(crate) bytes: Vec<u8>,
}

/// What a store of a queue's past says.
#[derive(Debug)]
pub(crate) enum Folded {
    /// The state at the head, and how much was folded after the start: events and bytes.
    State { state: Box<QueueState>, events: u64, bytes: u64 },
    /// The rows do not verify.
    Unverified(String),
}

/// The store, open.
pub(crate) struct Store {
    path: PathBuf,
    db: sled::Db,
    events: sled::Tree,
    heads: sled::Tree,
    bodies: sled::Tree,
    archive: sled::Tree,
    by_job: sled::Tree,
    due: sled::Tree,
    due_of: sled::Tree,
    meta: sled::Tree,
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

fn read_digest(bytes: &[u8], at: usize) -> Option<Digest> {
    bytes.get(at..)?.first_chunk().map(|bytes| Digest::from_bytes(*bytes))
}

fn read_queue(bytes: &[u8], at: usize) -> Option<QueueKey> {
    bytes.get(at..)?.first_chunk().map(|bytes| QueueKey::from_bytes(*bytes))
}

fn read_head(bytes: &[u8]) -> Option<Head> {
    Some(Head { seq: read_u64(bytes, 0)?, hash: read_digest(bytes, 8)? })
}

/// The records of a row of the event tree, each with its seq.
fn read_pack<'a>(key: &[u8], value: &'a [u8]) -> Option<impl Iterator<Item = (Seq, Packed<'a>)>> {
    let records = pack::records(value)?;
    let first = read_u64(key, 16)?.checked_sub(records.len() as u64)? + 1;
    Some((first..).zip(records))
}

fn malformed(what: &str) -> StoreError {
    StoreError(format!("a row of {what} is not what was written"))
}

/// Calls into sled: a panic in it is an error like any other.
fn guard<T>(call: impl FnOnce() -> Result<T, sled::Error>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(StoreError(error.to_string())),
        Err(panic) => Err(StoreError(panic_text(panic.as_ref()))),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic in it").chars().take(200).collect()
}

impl Store {
    /// Opens or makes the store in the folder `path`. Damage makes sled panic or wait, so this happens on a thread of its own.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let (reply, answer) = mpsc::sync_channel(1);
        let path = path.to_owned();
        let opener = std::thread::Builder::new().name("journal-open".to_owned());
        let opening = opener.spawn(move || {
            // Nobody listens any more when it took too long; the store is then dropped here.
            let _ = reply.send(Self::open_here(path));
        });
        opening.map_err(|error| StoreError(error.to_string()))?;
        match answer.recv_timeout(OPEN_TIMEOUT) {
            Ok(store) => store,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(StoreError("it does not open in time".to_owned())),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(StoreError("it does not open".to_owned())),
        }
    }

    fn open_here(path: PathBuf) -> Result<Self, StoreError> {
        let store = guard(|| {
            // No flush on a timer: the segments are the truth, and an idle broker writes nothing.
            let db = sled::Config::new().path(&path).cache_capacity(CACHE_BYTES).flush_every_ms(None).open()?;
            Ok(Self {
                events: db.open_tree("events")?,
                heads: db.open_tree("heads")?,
                bodies: db.open_tree("bodies")?,
                archive: db.open_tree("archive")?,
                by_job: db.open_tree("by_job")?,
                due: db.open_tree("due")?,
                due_of: db.open_tree("due_of")?,
                meta: db.open_tree("meta")?,
                db,
                path,
            })
        })?;
        match guard(|| store.meta.get(VERSION_KEY))? {
            Some(version) if version == STORE_VERSION => {}
            None if guard(|| Ok(store.heads.is_empty() && store.meta.is_empty()))? => {
                guard(|| store.meta.insert(VERSION_KEY, STORE_VERSION))?;
            }
            Some(_) | None => return Err(StoreError("its rows are of another version".to_owned())),
        }
        Ok(store)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How far it has been filled.
    pub(crate) fn progress(&self) -> Result<Progress, StoreError> {
        let Some(value) = guard(|| self.meta.get(PROGRESS_KEY))? else { return Ok(Progress::default()) };
        match (read_u64(&value, 0), read_u64(&value, 8)) {
            (Some(position), Some(records)) => Ok(Progress { position, records }),
            _ => Err(malformed("progress")),
        }
    }

    /// Puts rows in.
    pub(crate) fn apply(&self, rows: Rows) -> Result<(), StoreError> {
        let Rows { events, open: _, heads, bodies, archive, by_job, due, count: _ } = rows;
        let events = events.into_iter().map(|pack| (event_key(pack.queue, pack.last).to_vec(), pack.row)).collect();
        let trees = [(&self.events, events), (&self.bodies, bodies), (&self.archive, archive), (&self.by_job, by_job)];
        guard(move || {
            // Not as batches: a batch keeps everybody from asking the store for as long as it takes, and writes buffers out.
            for (tree, rows) in trees {
                for (key, value) in rows {
                    tree.insert(key, value)?;
                }
            }
            if heads.is_empty() {
                return Ok(());
            }
            let mut batch = sled::Batch::default();
            for (queue, head) in heads {
                batch.insert(queue, head);
            }
            self.heads.apply_batch(batch)
        })?;
        due.into_iter().try_for_each(|(queue, at)| self.set_due(queue, at))
    }

    /// Says how far it has been filled; comes after the rows.
    pub(crate) fn reached(&self, progress: Progress) -> Result<(), StoreError> {
        let value: [u8; 16] = joined(&[&progress.position.to_be_bytes(), &progress.records.to_be_bytes()]);
        guard(|| self.meta.insert(PROGRESS_KEY, &value[..])).map(drop)
    }

    fn set_due(&self, queue: QueueKey, at: Option<UnixMillis>) -> Result<(), StoreError> {
        guard(|| {
            if let Some(old) = self.due_of.get(queue.as_bytes())?
                && let Some(old) = read_u64(&old, 0)
            {
                if at == Some(UnixMillis(old)) {
                    return Ok(());
                }
                self.due.remove(due_key(UnixMillis(old), queue))?;
            }
            match at {
                Some(at) => {
                    self.due.insert(due_key(at, queue), b"")?;
                    self.due_of.insert(queue.as_bytes(), &at.0.to_be_bytes())?;
                }
                None => {
                    self.due_of.remove(queue.as_bytes())?;
                }
            }
            Ok(())
        })
    }

    /// Queues that are `wanted` and to be looked at until `until`, the first first.
    pub(crate) fn due(
        &self,
        until: UnixMillis,
        count_max: usize,
        wanted: impl Fn(QueueKey) -> bool,
    ) -> Result<Vec<(QueueKey, UnixMillis)>, StoreError> {
        guard(|| {
            let mut found = Vec::new();
            for key in self.due.iter().keys() {
                let key = key?;
                let (Some(at), Some(queue)) = (read_u64(&key, 0), read_queue(&key, 8)) else { continue };
                if at > until.0 || found.len() == count_max {
                    break;
                }
                if wanted(queue) {
                    found.push((queue, UnixMillis(at)));
                }
            }
            Ok(found)
        })
    }

    /// A queue's last record; `None` when it has none.
    pub(crate) fn head(&self, queue: QueueKey) -> Result<Option<Head>, StoreError> {
        let value = guard(|| self.heads.get(queue.as_bytes()))?;
        value.map(|value| read_head(&value).ok_or_else(|| malformed("heads"))).transpose()
    }

    /// All queues.
    pub(crate) fn heads(&self) -> Result<Vec<(QueueKey, Head)>, StoreError> {
        let rows = guard(|| self.heads.iter().collect::<Result<Vec<_>, _>>())?;
        let read = |(key, value): (sled::IVec, sled::IVec)| Some((read_queue(&key, 0)?, read_head(&value)?));
        rows.into_iter().map(|row| read(row).ok_or_else(|| malformed("heads"))).collect()
    }

    /// The chain hash after `seq`.
    pub(crate) fn hash_at(&self, queue: QueueKey, seq: Seq) -> Result<Option<Digest>, StoreError> {
        if seq == 0 {
            return Ok(Some(queue.genesis()));
        }
        Ok(self.row(queue, seq)?.map(|row| row.hash))
    }

    /// One record.
    pub(crate) fn row(&self, queue: QueueKey, seq: Seq) -> Result<Option<Row>, StoreError> {
        let mut found = None;
        self.rows(queue, seq, |row| {
            found = (row.seq == seq).then_some(row);
            false
        })?;
        Ok(found)
    }

    /// Records from `from` on, until `visit` has had enough.
    pub(crate) fn rows(
        &self,
        queue: QueueKey,
        from: Seq,
        mut visit: impl FnMut(Row) -> bool,
    ) -> Result<(), StoreError> {
        let mut rows = self.events.range(event_key(queue, from)..=event_key(queue, Seq::MAX));
        while let Some((key, value)) = guard(|| rows.next().transpose())? {
            let records = read_pack(&key, &value).ok_or_else(|| malformed("events"))?;
            for (seq, Packed { hash, bytes }) in records.skip_while(|(seq, _)| *seq < from) {
                if !visit(Row { seq, hash, bytes: bytes.to_vec() }) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Takes out a queue's records after `head`: a crash left them, and they are to be put in again, packed otherwise.
    pub(crate) fn forget_after(&self, queue: QueueKey, head: Seq) -> Result<(), StoreError> {
        guard(|| {
            let after = event_key(queue, head.saturating_add(1))..=event_key(queue, Seq::MAX);
            for key in self.events.range(after).keys() {
                self.events.remove(key?)?;
            }
            Ok(())
        })
    }

    /// Folds what comes after `start` up to the queue's head, the chain checked; `seen` is shown each state just before a record.
    pub(crate) fn fold(
        &self,
        start: QueueState,
        mut seen: impl FnMut(&QueueState, &Row),
    ) -> Result<Folded, StoreError> {
        let queue = start.queue();
        let head = self.head(queue)?.unwrap_or(Head { seq: 0, hash: queue.genesis() });
        let mut state = Box::new(start);
        let (mut events, mut bytes, mut bad) = (0, 0, None);
        self.rows(queue, state.head().seq + 1, |row| {
            if row.seq > head.seq {
                return false;
            }
            seen(&state, &row);
            events += 1;
            bytes += row.bytes.len() as u64;
            bad = match state.apply_bytes(&row.bytes) {
                Ok(_) if state.head().hash == row.hash => None,
                Ok(_) => Some(format!("record {} does not continue the chain", row.seq)),
                Err(error) => Some(format!("record {}: {error}", row.seq)),
            };
            bad.is_none()
        })?;
        Ok(match bad {
            Some(text) => Folded::Unverified(text),
            None if state.head() == head => Folded::State { state, events, bytes },
            None => Folded::Unverified(format!("records end at {}, expected {}", state.head().seq, head.seq)),
        })
    }

    /// Whether `rows`, consecutive records of a queue, hang together and continue the one before them.
    pub(crate) fn chained(&self, queue: QueueKey, rows: &[Row]) -> Result<bool, StoreError> {
        let Some(first) = rows.first() else { return Ok(true) };
        let Some(mut previous) = self.hash_at(queue, first.seq.saturating_sub(1))? else { return Ok(false) };
        for (row, seq) in rows.iter().zip(first.seq..) {
            previous = chain(&previous, &row.bytes);
            if row.seq != seq || previous != row.hash {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where a body is.
    pub(crate) fn body(&self, queue: QueueKey, digest: Digest) -> Result<Option<Place>, StoreError> {
        let Some(value) = guard(|| self.bodies.get(body_key(queue, digest)))? else { return Ok(None) };
        let length = value.get(8..12).and_then(|bytes| bytes.first_chunk()).map(|bytes| u32::from_be_bytes(*bytes));
        match (read_u64(&value, 0), length) {
            (Some(position), Some(frame_bytes)) => Ok(Some(Place { position, frame_bytes })),
            _ => Err(malformed("bodies")),
        }
    }

    /// What stays of a job.
    pub(crate) fn archived(&self, queue: QueueKey, job: JobId) -> Result<Option<Archived>, StoreError> {
        let value = guard(|| self.archive.get(job_key(queue, job)))?;
        value.map(|value| Archived::decode(&value).ok_or_else(|| malformed("archive"))).transpose()
    }

    /// What stays of jobs, of one queue or of all, after `after`: at most `rows_max` rows.
    pub(crate) fn archive_page(
        &self,
        queue: Option<QueueKey>,
        after: Option<(QueueKey, JobId)>,
        rows_max: usize,
    ) -> Result<Vec<(QueueKey, JobId, Archived)>, StoreError> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let (first, last) = (JobId::from_bytes([0; 32]), JobId::from_bytes([u8::MAX; 32]));
        let from = match (after, queue) {
            (Some((queue, job)), _) => Excluded(job_key(queue, job)),
            (None, Some(queue)) => Included(job_key(queue, first)),
            (None, None) => Unbounded,
        };
        let to = queue.map_or(Unbounded, |queue| Included(job_key(queue, last)));
        let rows = guard(|| self.archive.range((from, to)).take(rows_max).collect::<Result<Vec<_>, _>>())?;
        let read = |(key, value): (sled::IVec, sled::IVec)| {
            let job = JobId::from_bytes(*key.get(16..)?.first_chunk()?);
            Some((read_queue(&key, 0)?, job, Archived::decode(&value)?))
        };
        rows.into_iter().map(|row| read(row).ok_or_else(|| malformed("archive"))).collect()
    }

    /// Takes out what stays of a job.
    pub(crate) fn remove_archived(&self, queue: QueueKey, job: JobId) -> Result<(), StoreError> {
        guard(|| self.archive.remove(job_key(queue, job)).map(drop))
    }

    /// Takes out that a queue knows a job.
    pub(crate) fn remove_job(&self, job: JobId, queue: QueueKey) -> Result<(), StoreError> {
        guard(|| self.by_job.remove(by_job_key(job, queue)).map(drop))
    }

    /// Takes out where a body is.
    pub(crate) fn remove_body(&self, queue: QueueKey, digest: Digest) -> Result<(), StoreError> {
        guard(|| self.bodies.remove(body_key(queue, digest)).map(drop))
    }

    /// The queues that know a job.
    pub(crate) fn queues_of(&self, job: JobId) -> Result<Vec<QueueKey>, StoreError> {
        guard(|| {
            let keys = self.by_job.scan_prefix(job.as_bytes()).keys();
            keys.map(|key| key.map(|key| read_queue(&key, 32))).filter_map(Result::transpose).collect()
        })
    }

    /// Takes out all that is known of a queue, to be filled in again.
    pub(crate) fn forget(&self, queue: QueueKey) -> Result<(), StoreError> {
        guard(|| {
            for tree in [&self.events, &self.bodies, &self.archive] {
                let mut batch = sled::Batch::default();
                let mut count = 0;
                for key in tree.scan_prefix(queue.as_bytes()).keys() {
                    batch.remove(key?);
                    count += 1;
                    if count == FILL_ROWS {
                        tree.apply_batch(std::mem::take(&mut batch))?;
                        count = 0;
                    }
                }
                tree.apply_batch(batch)?;
            }
            self.heads.remove(queue.as_bytes()).map(drop)
        })
    }

    /// Puts everything on disk; for a clean end, so that the next start is quick.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        guard(|| self.db.flush())?;
        // sled's flush is no fsync. What it has not written is filled in again at the next start.
        let file = std::fs::File::open(self.path.join("db")).and_then(|file| file.sync_all());
        file.map_err(|error| StoreError(error.to_string()))
    }

    /// Lets go of it on a thread of its own, because a broken store may panic or wait while it is dropped.
    pub(crate) fn abandon(self) {
        let dropping = std::thread::Builder::new().name("journal-drop".to_owned());
        // Without a thread it is dropped in the spawn's error, here; there is nothing better to do then.
        let _ = dropping.spawn(move || {
            let _ = catch_unwind(AssertUnwindSafe(move || drop(self)));
        });
    }
}
