//! Queues that damage has touched: who they are, why, and the file that remembers it over restarts.
//!
//! The file only saves looking: every entry names what was found where, and one that is no longer so (a segment was put back
//! from a copy) is dropped at the next start.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use protocol::id::{QueueKey, Seq};
use serde::{Deserialize, Serialize};

use super::scan::{Loss, Touched};
use super::segment::write_whole;

const QUARANTINE: &str = "quarantine.json";

/// A queue that is not served, because its records are not all what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// The queue.
    pub queue: QueueKey,
    /// The number of the segment where it shows; 0 when records are simply not there.
    pub segment: u64,
    /// Where in that file.
    pub offset: u64,
    /// The first record that cannot be had; for records that are not there the last one that must be.
    pub seq: Option<Seq>,
    /// What is wrong, for people.
    pub text: String,
}

impl Quarantined {
    /// The queues that a loss touches.
    pub(crate) fn of_loss(loss: &Loss) -> Vec<Self> {
        let Touched::Queues(queues) = &loss.touched else { return Vec::new() };
        let of = |(queue, seq): &(QueueKey, Option<Seq>)| {
            let what = seq.map_or_else(|| "a body".to_owned(), |seq| format!("record {seq}"));
            let text = format!("{what} is damaged: {} at byte {} of segment {}", loss.what, loss.offset, loss.segment);
            Self { queue: *queue, segment: loss.segment, offset: loss.offset, seq: *seq, text }
        };
        queues.iter().map(of).collect()
    }

    /// A queue whose records are known up to `known`, and of which the segments lack `missing` and what follows.
    pub(crate) fn absent(queue: QueueKey, missing: Seq, known: Seq) -> Self {
        let text =
            format!("records from {missing} on are missing from the segments; {known} is known to have been there");
        Self { queue, segment: 0, offset: 0, seq: Some(known), text }
    }
}

/// All quarantined queues.
#[derive(Debug, Default)]
pub(crate) struct Quarantine(RwLock<BTreeMap<QueueKey, Quarantined>>);

impl Quarantine {
    /// Reads what earlier runs found. A file that cannot be read is as good as none: the scrub finds everything again.
    pub(crate) fn recall(data: &Path) -> Vec<Quarantined> {
        let bytes = std::fs::read(data.join(QUARANTINE)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Why `queue` is quarantined, if it is.
    pub(crate) fn of(&self, queue: QueueKey) -> Option<Quarantined> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&queue).cloned()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Quarantined> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Adds queues; says which were not known.
    pub(crate) fn add(&self, found: Vec<Quarantined>) -> Vec<Quarantined> {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<_> = found.into_iter().filter(|one| !all.contains_key(&one.queue)).collect();
        all.extend(new.iter().map(|one| (one.queue, one.clone())));
        new
    }

    /// Writes the file.
    pub(crate) fn remember(&self, data: &Path) -> io::Result<()> {
        let all = self.all();
        let path = data.join(QUARANTINE);
        if all.is_empty() && !path.exists() {
            return Ok(());
        }
        write_whole(&path, &serde_json::to_vec_pretty(&all)?)
    }
}
