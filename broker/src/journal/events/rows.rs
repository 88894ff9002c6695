//! What goes into the store together, and the keys that it goes under.

use std::collections::HashMap;

use protocol::id::{Digest, Head, JobId, QueueKey, Seq, UnixMillis};

use super::{Place, VALUE_BYTES_MAX};
use crate::journal::archive::Archived;
use crate::journal::pack::{Pack, ROW_BYTES_MAX};

/// A key and its value.
pub(super) type Pair = (Vec<u8>, Vec<u8>);

/// Rows that go in together. Heads come last and all at once: rows that no head counts yet are put in again after a crash.
#[derive(Default)]
pub(crate) struct Rows {
    pub(super) events: Vec<Pack>,
    /// Which of those each queue's next record may go into.
    pub(super) open: HashMap<QueueKey, usize>,
    pub(super) heads: Vec<Pair>,
    pub(super) bodies: Vec<Pair>,
    pub(super) archive: Vec<Pair>,
    pub(super) by_job: Vec<Pair>,
    pub(super) due: Vec<(QueueKey, Option<UnixMillis>)>,
    pub(super) count: usize,
}

pub(super) fn joined<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut key = [0; N];
    let mut at = 0;
    for part in parts {
        key[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    key
}

pub(super) fn event_key(queue: QueueKey, seq: Seq) -> [u8; 24] {
    joined(&[queue.as_bytes(), &seq.to_be_bytes()])
}

pub(super) fn body_key(queue: QueueKey, digest: Digest) -> [u8; 48] {
    joined(&[queue.as_bytes(), digest.as_bytes()])
}

pub(super) fn job_key(queue: QueueKey, job: JobId) -> [u8; 48] {
    joined(&[queue.as_bytes(), job.as_bytes()])
}

pub(super) fn by_job_key(job: JobId, queue: QueueKey) -> [u8; 48] {
    joined(&[job.as_bytes(), queue.as_bytes()])
}

pub(super) fn due_key(at: UnixMillis, queue: QueueKey) -> [u8; 24] {
    joined(&[&at.0.to_be_bytes(), queue.as_bytes()])
}

impl Rows {
    fn put(rows: &mut Vec<Pair>, key: &[u8], value: &[u8]) {
        assert!(value.len() <= VALUE_BYTES_MAX, "a value of {} bytes", value.len());
        rows.push((key.to_vec(), value.to_vec()));
    }

    /// A record.
    pub(crate) fn event(&mut self, queue: QueueKey, seq: Seq, hash: Digest, bytes: &[u8]) {
        const { assert!(ROW_BYTES_MAX <= VALUE_BYTES_MAX, "a record is a value of its own at most") };
        self.count += 1;
        if let Some(pack) = self.open.get(&queue).and_then(|index| self.events.get_mut(*index))
            && pack.add(queue, seq, hash, bytes)
        {
            return;
        }
        self.open.insert(queue, self.events.len());
        self.events.push(Pack::new(queue, seq, hash, bytes));
    }

    /// The last record of a queue.
    pub(crate) fn head(&mut self, queue: QueueKey, head: Head) {
        let value: [u8; 40] = joined(&[&head.seq.to_be_bytes(), head.hash.as_bytes()]);
        Self::put(&mut self.heads, queue.as_bytes(), &value);
    }

    /// Where a body is.
    pub(crate) fn body(&mut self, queue: QueueKey, digest: Digest, place: Place) {
        let value: [u8; 12] = joined(&[&place.position.to_be_bytes(), &place.frame_bytes.to_be_bytes()]);
        Self::put(&mut self.bodies, &body_key(queue, digest), &value);
        self.count += 1;
    }

    /// What stays of a job.
    pub(crate) fn archived(&mut self, queue: QueueKey, job: JobId, archived: &Archived) {
        Self::put(&mut self.archive, &job_key(queue, job), &archived.encode());
        self.count += 1;
    }

    /// That a queue knows a job.
    pub(crate) fn job(&mut self, job: JobId, queue: QueueKey) {
        Self::put(&mut self.by_job, &by_job_key(job, queue), b"");
        self.count += 1;
    }

    /// When a queue is to be looked at.
    pub(crate) fn due(&mut self, queue: QueueKey, at: Option<UnixMillis>) {
        self.due.push((queue, at));
    }

    /// How many rows.
    pub(crate) const fn len(&self) -> usize {
        self.count
    }
}
