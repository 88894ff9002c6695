//! What is handed in to be committed.

use std::sync::Arc;

use protocol::id::{Digest, JobId, QueueKey, Seq, UnixMillis};
use protocol::record::RECORD_BYTES_MAX;

use super::archive::Archived;
use super::error::JournalError;

/// Bodies up to this many bytes go into the segments, in the batch that names them; larger ones are files of their own.
pub const INLINE_BODY_BYTES_MAX: usize = 64 * 1024;
/// The most records one batch may have.
pub const BATCH_RECORDS_MAX: usize = 65_536;

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedRecord {
    /// The position in the queue.
    pub seq: Seq,
    /// The chain hash up to and including this record.
    pub hash: Digest,
    /// The record's bytes, at most [`RECORD_BYTES_MAX`].
    pub bytes: Arc<[u8]>,
}

/// A definition or a result, as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// The blake3 of the bytes.
    pub digest: Digest,
    /// The bytes, at most [`INLINE_BODY_BYTES_MAX`].
    pub bytes: Arc<[u8]>,
}

/// What is committed together, of one queue.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The queue.
    pub queue: QueueKey,
    /// Its next records, in order.
    pub records: Vec<EncodedRecord>,
    /// The bodies that they name.
    pub bodies: Vec<Body>,
    /// What stays of the jobs that leave with them.
    pub archives: Vec<(JobId, Archived)>,
    /// When the queue is to be looked at though nobody touches it; takes the place of what was said before.
    pub due: Option<UnixMillis>,
}

impl Batch {
    /// What it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let records: usize = self.records.iter().map(|record| record.bytes.len()).sum();
        let bodies: usize = self.bodies.iter().map(|body| body.bytes.len()).sum();
        records + bodies
    }

    /// Whether it keeps the bounds.
    pub(crate) fn check(&self) -> Result<(), JournalError> {
        let bad = |what| Err(JournalError::Invalid { what });
        if self.records.len() > BATCH_RECORDS_MAX || self.bodies.len() > BATCH_RECORDS_MAX {
            return bad("the batch has too many records");
        }
        if self.records.iter().any(|record| record.bytes.len() > RECORD_BYTES_MAX) {
            return bad("a record is too long");
        }
        if self.bodies.iter().any(|body| body.bytes.len() > INLINE_BODY_BYTES_MAX) {
            return bad("a body is too long for a batch");
        }
        if self.records.windows(2).any(|pair| pair[1].seq != pair[0].seq + 1) {
            return bad("the records do not follow each other");
        }
        Ok(())
    }
}
