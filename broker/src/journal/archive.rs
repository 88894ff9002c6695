//! What is kept of a job that left its queue.

use std::collections::BTreeMap;

use protocol::definition::Needs;
use protocol::id::{Digest, RunNumber, UnixMillis, WorkerId};
use protocol::queue::{Job, Status};
use serde::{Deserialize, Serialize};

/// The most of a cancel message that is kept, in bytes: all of a row stays under 4 KiB; the record has the whole text.
const MESSAGE_BYTES_MAX: usize = 1024;

/// What stays of a job after `JobRemoved`: enough to answer a repeated submission from what is kept, and to number its next run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archived {
    /// The blake3 of its definition.
    pub body: Digest,
    /// When it was first queued.
    pub queued_at_ms: UnixMillis,
    /// When it ended.
    pub changed_at_ms: UnixMillis,
    /// The number of its newest run; 0 when none was claimed.
    pub run: RunNumber,
    /// The worker of that run.
    pub worker: Option<WorkerId>,
    /// Runs lost.
    pub lost: u32,
    /// How it ended.
    pub status: Status,
    /// When it left the queue, for the last time: it may have come back to answer a submission long after it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_at_ms: Option<UnixMillis>,
}

impl Archived {
    /// What is kept of `job`, which leaves at `left_at_ms`: a cancel message is cut to 1 KiB.
    #[must_use]
    pub fn of(job: &Job, left_at_ms: UnixMillis) -> Self {
        Self {
            left_at_ms: Some(left_at_ms),
            body: job.body,
            queued_at_ms: job.queued_at_ms,
            changed_at_ms: job.changed_at_ms,
            run: job.run,
            worker: job.worker.clone(),
            lost: job.lost,
            status: job.status.clone(),
        }
        .bounded()
    }

    /// When it was last in its queue; what is kept of it is kept for a time from then on.
    #[must_use]
    pub fn last_there_ms(&self) -> UnixMillis {
        self.left_at_ms.unwrap_or_default().max(self.changed_at_ms)
    }

    /// The bodies that it names: its definition, and its result when it ended with one.
    pub fn bodies(&self) -> impl Iterator<Item = Digest> {
        [Some(self.body), result_of(&self.status)].into_iter().flatten()
    }

    /// The job as it was, without what is not kept: namespaces, needs, priority, its place in line.
    #[must_use]
    pub fn into_job(self) -> Job {
        Job {
            body: self.body,
            queued_at_ms: self.queued_at_ms,
            queued_seq: 0,
            changed_at_ms: self.changed_at_ms,
            namespaces: BTreeMap::new(),
            needs: Needs::default(),
            priority: 0,
            debug: false,
            run: self.run,
            worker: self.worker,
            lost: self.lost,
            status: self.status,
        }
    }

    fn bounded(mut self) -> Self {
        if let Status::Cancelled { message: Some(message) } = &mut self.status {
            let cut = (0..=MESSAGE_BYTES_MAX.min(message.len())).rev().find(|at| message.is_char_boundary(*at));
            message.truncate(cut.unwrap_or(0));
        }
        self
    }

    /// The row's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(&self.clone().bounded()).expect("a row is maps, integers, bytes and text")
    }

    /// Reads [`Archived::encode`]'s bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        rmp_serde::from_slice(bytes).ok()
    }
}

/// The result that a status names.
pub(crate) const fn result_of(status: &Status) -> Option<Digest> {
    match status {
        Status::Finished { result, .. } => Some(*result),
        Status::Queued { .. }
        | Status::Running {}
        | Status::Cancelled { .. }
        | Status::Replaced { .. }
        | Status::Deleted {} => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_row_stays_small() {
        let archived = Archived {
            body: Digest::of(b"x"),
            queued_at_ms: UnixMillis(u64::MAX),
            changed_at_ms: UnixMillis(u64::MAX),
            run: RunNumber::MAX,
            worker: Some("w".repeat(protocol::id::WORKER_ID_BYTES_MAX).parse().unwrap()),
            lost: u32::MAX,
            status: Status::Cancelled { message: Some("é".repeat(4000)) },
            left_at_ms: Some(UnixMillis(u64::MAX)),
        };
        let bytes = archived.encode();
        assert!(bytes.len() < 2048, "{}", bytes.len());
        let read = Archived::decode(&bytes).unwrap();
        assert_eq!(read.status, Status::Cancelled { message: Some("é".repeat(512)) });
    }

    /// A row as builds wrote it that did not note when a job left.
    #[test]
    fn an_older_row_counts_from_the_jobs_end() {
        let job = |left_at_ms| Archived {
            body: Digest::of(b"x"),
            queued_at_ms: UnixMillis(1),
            changed_at_ms: UnixMillis(2),
            run: 1,
            worker: None,
            lost: 0,
            status: Status::Deleted {},
            left_at_ms,
        };
        let (old, new) = (job(None), job(Some(UnixMillis(9))));
        assert!(!String::from_utf8_lossy(&old.encode()).contains("left_at_ms"));
        assert_eq!(Archived::decode(&old.encode()), Some(old.clone()));
        assert_eq!(Archived::decode(&new.encode()), Some(new.clone()));
        assert_eq!((old.last_there_ms(), new.last_there_ms()), (UnixMillis(2), UnixMillis(9)));
    }
}
