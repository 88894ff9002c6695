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
}

impl Archived {
    /// What is kept of `job`: a cancel message is cut to 1 KiB.
    #[must_use]
    pub fn of(job: &Job) -> Self {
        Self {
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
        };
        let bytes = archived.encode();
        assert!(bytes.len() < 2048, "{}", bytes.len());
        let read = Archived::decode(&bytes).unwrap();
        assert_eq!(read.status, Status::Cancelled { message: Some("é".repeat(512)) });
    }
}
