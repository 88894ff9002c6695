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

    /// The same, with more behind it.
    pub(crate) const fn after(self, events: u64, bytes: u64) -> Self {
        Self { events: self.events + events, bytes: self.bytes + bytes, snapshot_bytes: self.snapshot_bytes }
    }

    /// Whether it is time for a snapshot: more than 10,000 events and more than twice the last one's bytes.
    #[must_use]
    pub const fn wants_snapshot(&self) -> bool {
        self.events >= TAIL_EVENTS_MIN && self.bytes >= TAIL_FACTOR * self.snapshot_bytes
    }
}

/// A state to fold on from, and what was folded into it since its snapshot.
#[derive(Debug)]
pub(crate) struct Start {
    /// The state.
    pub(crate) state: QueueState,
    /// What came after the snapshot.
    pub(crate) tail: Tail,
}

/// The snapshots of all queues, on disk.
#[derive(Debug)]
pub(crate) struct Snapshots {
    folder: PathBuf,
}

impl Snapshots {
    /// The snapshots in a data folder.
    pub(crate) fn new(data: &Path) -> Self {
        Self { folder: data.join(SNAPSHOTS) }
    }

    fn of(&self, queue: QueueKey) -> PathBuf {
        self.folder.join(queue.to_string())
    }

    /// Keeps `state`; returns its bytes' count.
    pub(crate) fn save(&self, state: &QueueState) -> io::Result<u64> {
        let folder = self.of(state.queue());
        if !folder.is_dir() {
            make_dir(&folder)?;
            sync_dir(&self.folder)?;
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

    /// The states that are kept of `queue` and whole, newest first.
    pub(crate) fn load(&self, queue: QueueKey) -> impl Iterator<Item = Start> {
        let saved = list(&self.of(queue)).unwrap_or_default();
        saved.into_iter().rev().filter_map(move |(seq, path)| {
            let bytes = std::fs::read(path).ok()?;
            let (digest, state_bytes) = bytes.split_first_chunk::<32>()?;
            if Digest::of(state_bytes) != Digest::from_bytes(*digest) {
                return None;
            }
            let state = QueueState::decode(state_bytes).ok()?;
            let tail = Tail { snapshot_bytes: state_bytes.len() as u64, ..Tail::default() };
            (state.queue() == queue && state.head().seq == seq).then_some(Start { state, tail })
        })
    }

    /// The queues whose newest snapshot has at least `bytes_min`, the largest first; `queues_max` are looked at.
    pub(crate) fn large(&self, bytes_min: u64, queues_max: usize) -> Vec<(QueueKey, u64)> {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return Vec::new() };
        let newest = |entry: std::fs::DirEntry| {
            let queue: QueueKey = entry.file_name().to_str()?.parse().ok()?;
            let (_, path) = list(&entry.path()).ok()?.pop()?;
            Some((queue, std::fs::metadata(path).ok()?.len()))
        };
        let mut found: Vec<_> = entries.take(queues_max).filter_map(|entry| newest(entry.ok()?)).collect();
        found.retain(|(_, bytes)| *bytes >= bytes_min);
        found.sort_unstable_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        found
    }
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
