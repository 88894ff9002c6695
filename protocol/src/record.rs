//! Records: an event with its place in its queue's chain, and the bytes that are stored, hashed and sent.
//!
//! `hash = blake3(previous hash ‖ bytes)`. The previous hash and, through the genesis, the queue are bound by the hash and
//! therefore not repeated inside the bytes: every watcher of every change would pay for them.

use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::id::{Digest, Seq, UnixMillis};

/// The version that new records are written with.
pub const RECORD_VERSION: u16 = 1;

/// The most bytes a record may have: events are small facts, and a value of the working store (the record and its hash) stays under 4 KiB.
pub const RECORD_BYTES_MAX: usize = 4000;

/// One stored fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The version of this record's shape.
    pub v: u16,
    /// The position in the queue, from 1 without gaps.
    pub seq: Seq,
    /// When the broker decided it. Never goes back within a queue.
    pub at_ms: UnixMillis,
    /// The fact.
    pub event: Event,
}

/// Why bytes are not a record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not MessagePack of the right shape, or an event this build does not know.
    #[error("not a record this build can read")]
    Malformed(#[source] rmp_serde::decode::Error),
    /// Written by a newer build.
    #[error("record version {0} is newer than this build, which reads up to {RECORD_VERSION}")]
    Newer(u16),
}

impl Record {
    /// The record's bytes: MessagePack with named fields.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(self).expect("a record is maps, integers, bytes and text")
    }

    /// Reads a record of any version that has been written.
    ///
    /// # Errors
    ///
    /// [`RecordError`] when the bytes are not a record, or one of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        match rmp_serde::from_slice::<Self>(bytes) {
            Ok(record) if record.v == RECORD_VERSION => Ok(record),
            found => upcast(bytes, found.err()),
        }
    }
}

#[derive(Deserialize)]
struct Versioned {
    v: u16,
}

/// The seam for old shapes: each version that was ever written has an arm that makes today's record of it.
fn upcast(bytes: &[u8], error: Option<rmp_serde::decode::Error>) -> Result<Record, RecordError> {
    let Versioned { v } = rmp_serde::from_slice(bytes).map_err(RecordError::Malformed)?;
    match (v, error) {
        (RECORD_VERSION, Some(error)) => Err(RecordError::Malformed(error)),
        (other, _) => Err(RecordError::Newer(other)),
    }
}

/// The chain hash after `bytes`, given the one before.
#[must_use]
pub fn chain(previous: &Digest, bytes: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous.as_bytes());
    hasher.update(bytes);
    Digest::from_bytes(*hasher.finalize().as_bytes())
}
