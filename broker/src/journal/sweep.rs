//! Taking out what is forgotten: rows of the event store, and the files of large bodies.
//!
//! The order is: the horizon on disk, then rows, then files. From the moment that the horizon has moved nobody is told of what
//! it covers any more, so a crash after it leaves nothing but work for the next sweep. The segments stay as they are.
//!
//! A job may come back at any time, with new rows under the same keys. Rows are therefore only taken out while the index is
//! held, and only if they are those that were looked at before: a job's archive row by its content, a body's place by where it
//! is. That a queue knows a job has no content; so jobs that are queued while a sweep is at their queue are noted by the index
//! ([`Returned`]) and left alone.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use protocol::id::{Digest, JobId, QueueKey, UnixMillis};

use super::archive::Archived;
use super::error::JournalError;
use super::events::{Place, Store, StoreError};
use super::shared::Shared;
use super::{Journal, bodies};

/// How many rows are taken out while the index waits: well below a millisecond.
const REMOVED_AT_ONCE: usize = 64;
/// The pause after that. A lock is no line: whoever takes it again at once hardly lets the index have its turn, and the writer
/// waits for an index that is far behind.
const PAUSE: Duration = Duration::from_millis(4);
/// The most jobs noted as queued during one sweep of a queue; with more it is left for the next time.
const RETURNED_MAX: usize = 262_144;
/// A large body's file goes only this long after the horizon has passed it, in milliseconds: the record that names a file is
/// written some time after the file, and an audit takes a missing file for a forgotten one by that record's time.
const FILE_GRACE_MS: u64 = 24 * 60 * 60 * 1000;

/// A page of what is kept of jobs that left, in the order of queues and jobs.
#[derive(Debug, Default)]
pub(crate) struct KeptPage {
    /// The jobs, forgotten ones too.
    pub(crate) rows: Vec<(QueueKey, JobId, Archived)>,
    /// Where to read on; none at the end.
    pub(crate) next: Option<(QueueKey, JobId)>,
}

/// Jobs that were queued since a sweep has begun in their queue.
#[derive(Debug)]
pub(crate) struct Returned {
    queue: QueueKey,
    jobs: HashSet<JobId>,
    /// How often the store had been made again: a new one also holds what the index has not come to.
    rebuilds: u64,
}

impl Returned {
    /// Notes a job, if it is of that queue.
    pub(crate) fn note(&mut self, queue: QueueKey, job: JobId) {
        if queue == self.queue && self.jobs.len() <= RETURNED_MAX {
            self.jobs.insert(job);
        }
    }

    fn is_whole(&self, rebuilds: u64) -> bool {
        self.jobs.len() <= RETURNED_MAX && self.rebuilds == rebuilds
    }
}

/// A sweep of one queue, under way; what is found out before it begins says nothing.
pub(crate) struct Forgetting {
    journal: Journal,
    queue: QueueKey,
}

impl Drop for Forgetting {
    fn drop(&mut self) {
        *self.journal.shared().returned() = None;
    }
}

/// A forgotten job.
#[derive(Debug)]
pub(crate) struct Gone {
    /// The job.
    pub(crate) job: JobId,
    /// What was kept of it.
    pub(crate) kept: Archived,
    /// Whether it is in its queue again, in a new life; what was kept of the old one goes all the same.
    pub(crate) is_back: bool,
}

impl Journal {
    /// Jobs that left their queue before this are forgotten.
    #[must_use]
    pub fn forgotten_before(&self) -> UnixMillis {
        self.shared().forgotten.left_before()
    }

    /// Forgets jobs that left their queue before `left_before`, for ever: it is on disk when this returns. Does not move back,
    /// unless it lies after `now`.
    ///
    /// A forgotten job that is submitted again starts at run 1. That is safe, although run numbers are what keeps late workers
    /// out: a run is its worker's only with number and worker both the same, a worker is asked which runs it holds when it
    /// connects, and those that its queue does not know are ended there and then. So nobody can be granted a run while still
    /// holding one of that number from a life of the job that is forgotten.
    ///
    /// # Errors
    ///
    /// [`JournalError::Io`]; nothing is forgotten then.
    pub fn forget_before(&self, left_before: UnixMillis, now: UnixMillis) -> Result<(), JournalError> {
        let shared = self.shared();
        shared.check()?;
        let moved = shared.forgotten.advance(shared.data(), left_before, now);
        moved.map_err(|error| JournalError::io("noting what is forgotten", error))
    }

    /// Whether a row is of a forgotten job.
    pub(crate) fn is_forgotten(&self, kept: &Archived) -> bool {
        self.shared().forgotten.covers(kept)
    }

    /// What is kept, of one queue or of all: at most `rows_max` rows after `after`. The first page has everything that was
    /// handed in before the call.
    pub(crate) fn kept_page(
        &self,
        queue: Option<QueueKey>,
        after: Option<(QueueKey, JobId)>,
        rows_max: usize,
    ) -> Result<KeptPage, JournalError> {
        let shared = self.shared();
        if after.is_none() {
            shared.wait_indexed()?;
        }
        let rows = shared.ask(|store| store.archive_page(queue, after, rows_max))?;
        let next = rows.last().filter(|_| rows.len() == rows_max).map(|(queue, job, _)| (*queue, *job));
        Ok(KeptPage { rows, next })
    }

    /// Begins to take out what is forgotten of a queue. One queue at a time.
    pub(crate) fn begin_forgetting(&self, queue: QueueKey) -> Result<Forgetting, JournalError> {
        let shared = self.shared();
        shared.check_queue(queue)?;
        // While the index is held: what it does from now on is noted.
        let index = shared.lock_index();
        *shared.returned() = Some(Returned { queue, jobs: HashSet::new(), rebuilds: rebuilds(shared) });
        drop(index);
        Ok(Forgetting { journal: self.clone(), queue })
    }

    /// Queues that have files of large bodies.
    pub(crate) fn queues_with_files(&self) -> Result<Vec<QueueKey>, JournalError> {
        bodies::queues(self.shared().data()).map_err(|error| JournalError::io("listing bodies", error))
    }

    /// Large bodies of a queue whose files are old enough to go unless they are named, at most `count_max`.
    pub(crate) fn old_files(&self, queue: QueueKey, count_max: usize) -> Result<Vec<Digest>, JournalError> {
        let shared = self.shared();
        shared.check_queue(queue)?;
        let listed = bodies::older(shared.data(), queue, self.files_before(), count_max);
        listed.map_err(|error| JournalError::io("listing bodies", error))
    }

    /// Removes a large body's file, unless it was stored again meanwhile; says whether it did.
    pub(crate) fn remove_file(&self, queue: QueueKey, digest: Digest) -> Result<bool, JournalError> {
        let shared = self.shared();
        let removed = bodies::remove_older(shared.data(), &shared.bodies, queue, digest, self.files_before());
        removed.map_err(|error| JournalError::io("removing a body", error))
    }

    fn files_before(&self) -> std::time::SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.forgotten_before().0.saturating_sub(FILE_GRACE_MS))
    }
}

impl Forgetting {
    /// Where bodies are now; those that are not in the segments are left out.
    pub(crate) fn places(&self, digests: &[Digest]) -> Result<Vec<(Digest, Place)>, JournalError> {
        let place = |store: &Store, digest: &Digest| Ok(store.body(self.queue, *digest)?.map(|place| (*digest, place)));
        self.journal.shared().ask_of(self.queue, |store| {
            digests.iter().filter_map(|digest| place(store, digest).transpose()).collect::<Result<_, StoreError>>()
        })
    }

    /// Takes out forgotten jobs, and places of bodies that nothing names. Says how many jobs it were; none when too much
    /// happened meanwhile to be sure.
    pub(crate) fn take_out(&self, gone: &[Gone], places: &[(Digest, Place)]) -> Result<u64, JournalError> {
        let queue = self.queue;
        let mut count = 0;
        for part in gone.chunks(REMOVED_AT_ONCE) {
            count += self.while_index_waits(|shared, store| {
                let mut count = 0;
                for one in part {
                    if store.archived(queue, one.job)?.as_ref() != Some(&one.kept) {
                        continue;
                    }
                    store.remove_archived(queue, one.job)?;
                    count += 1;
                    let returned = shared.returned();
                    let is_back = one.is_back || returned.as_ref().is_none_or(|noted| noted.jobs.contains(&one.job));
                    drop(returned);
                    if !is_back {
                        store.remove_job(one.job, queue)?;
                    }
                }
                Ok(count)
            })?;
        }
        for part in places.chunks(REMOVED_AT_ONCE) {
            self.while_index_waits(|_, store| {
                for (digest, place) in part {
                    if store.body(queue, *digest)? == Some(*place) {
                        store.remove_body(queue, *digest)?;
                    }
                }
                Ok(0)
            })?;
        }
        Ok(count)
    }

    fn while_index_waits(
        &self,
        call: impl Fn(&Shared, &Store) -> Result<u64, StoreError>,
    ) -> Result<u64, JournalError> {
        let shared = self.journal.shared();
        shared.check()?;
        shared.check_queue(self.queue)?;
        let mut index = shared.lock_index();
        let count = shared.change(&mut index, |store, _| {
            let is_whole = shared.returned().as_ref().is_some_and(|noted| noted.is_whole(rebuilds(shared)));
            if is_whole { call(shared, store) } else { Ok(0) }
        })?;
        drop(index);
        std::thread::sleep(PAUSE);
        Ok(count)
    }
}

/// Changes while the index is held only.
fn rebuilds(shared: &Shared) -> u64 {
    shared.counters.rebuilds.load(Ordering::Relaxed)
}
