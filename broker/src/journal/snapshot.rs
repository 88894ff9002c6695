//! Snapshots: a queue's state at a seq, in a file of its own, so that loading replays only what came after.
//!
//! A snapshot that is missing, damaged or of another history is ignored; the records are the truth.

use std::io;
use std::path::{Path, PathBuf};

use protocol::id::{Digest, QueueKey, Seq};
use protocol::queue::QueueState;

use super::segment::{make_dir, sync_dir, write_whole};

/// The folder of the snapshots, in the data folder.
pub(crate) const SNAPSHOTS: &str = "snapshots";
/// How many are kept of a queue: the newest, and one before it should that one not be readable.
const KEPT: usize = 2;
/// Replaying fewer events than this takes milliseconds.
const TAIL_EVENTS_MIN: u64 = 10_000;
/// How often a snapshot's bytes may be replayed before the next one is worth its bytes.
const TAIL_FACTOR: u64 = 2;

/// What of a queue comes after its newest snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// Events since.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The bytes of that snapshot; 0 when there is none.
    pub snapshot_bytes: u64,
}

impl Tail {
    /// Counts one more event.
    pub const fn add(&mut self, record_bytes: u64) {
        self.events += 1;
        self.bytes += record_bytes;
    }

    /// Whether it is time for a snapshot: more than 10,000 events and more than twice the last one's bytes.
    #[must_use]
    pub const fn wants_snapshot(&self) -> bool {
        self.events >= TAIL_EVENTS_MIN && self.bytes >= TAIL_FACTOR * self.snapshot_bytes
    }
}

fn folder(data: &Path, queue: QueueKey) -> PathBuf {
    data.join(SNAPSHOTS).join(queue.to_string())
}

fn list(folder: &Path) -> io::Result<Vec<(Seq, PathBuf)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let Some(seq) = entry.file_name().to_str().and_then(|name| name.strip_suffix(".state")?.parse().ok()) {
            found.push((seq, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Keeps `state`; returns its bytes' count.
pub(crate) fn save(data: &Path, state: &QueueState) -> io::Result<u64> {
    let folder = folder(data, state.queue());
    if !folder.is_dir() {
        make_dir(&folder)?;
        sync_dir(&data.join(SNAPSHOTS))?;
    }
    let state_bytes = state.encode();
    let mut bytes = Digest::of(&state_bytes).as_bytes().to_vec();
    bytes.extend_from_slice(&state_bytes);
    write_whole(&folder.join(format!("{:020}.state", state.head().seq)), &bytes)?;
    let saved = list(&folder)?;
    for (_, path) in saved.iter().rev().skip(KEPT) {
        std::fs::remove_file(path)?;
    }
    Ok(state_bytes.len() as u64)
}

/// The states that are kept of `queue` and whole, newest first, with their bytes' count.
pub(crate) fn load(data: &Path, queue: QueueKey) -> impl Iterator<Item = (QueueState, u64)> {
    let saved = list(&folder(data, queue)).unwrap_or_default();
    saved.into_iter().rev().filter_map(move |(seq, path)| {
        let bytes = std::fs::read(path).ok()?;
        let (digest, state_bytes) = bytes.split_first_chunk::<32>()?;
        if Digest::of(state_bytes) != Digest::from_bytes(*digest) {
            return None;
        }
        let state = QueueState::decode(state_bytes).ok()?;
        (state.queue() == queue && state.head().seq == seq).then_some((state, state_bytes.len() as u64))
    })
}
