//! What a live queue keeps in memory so that the usual case reads nothing from disk: definitions between submission and grant,
//! and the newest records for watchers that come back.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use protocol::id::{Digest, Head};

use crate::journal::EncodedRecord;

/// Definitions kept in memory between submission and grant, in bytes per queue; others are read from disk.
const FRESH_BODIES_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of records kept for watchers that come back: some minutes of a busy queue. Older ones are read from disk.
const RECENT_BYTES_MAX: usize = 1024 * 1024;

/// Definitions that were submitted a moment ago and are likely to be granted in the next; the oldest make room.
#[derive(Default)]
pub(super) struct FreshBodies {
    bodies: HashMap<Digest, Arc<[u8]>>,
    order: VecDeque<Digest>,
    bytes: usize,
}

impl FreshBodies {
    pub(super) fn put(&mut self, digest: Digest, body: Arc<[u8]>) {
        self.bytes += body.len();
        if self.bodies.insert(digest, body.clone()).is_some() {
            self.bytes -= body.len();
            return;
        }
        self.order.push_back(digest);
        while self.bytes > FRESH_BODIES_BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.bytes -= self.bodies.remove(&oldest).map_or(0, |body| body.len());
        }
    }

    pub(super) fn get(&self, digest: Digest) -> Option<Arc<[u8]>> {
        self.bodies.get(&digest).cloned()
    }
}

/// The newest records, without a gap, up to the last one decided.
pub(super) struct RecentRecords {
    /// Where the chain stood before the first of them.
    before: Head,
    records: VecDeque<EncodedRecord>,
    bytes: usize,
}

impl RecentRecords {
    pub(super) fn after(head: Head) -> Self {
        Self { before: head, records: VecDeque::new(), bytes: 0 }
    }

    pub(super) fn push(&mut self, record: &EncodedRecord) {
        self.bytes += record.bytes.len();
        self.records.push_back(record.clone());
        while self.bytes > RECENT_BYTES_MAX {
            let Some(oldest) = self.records.pop_front() else { break };
            self.bytes -= oldest.bytes.len();
            self.before = Head { seq: oldest.seq, hash: oldest.hash };
        }
    }

    /// The records after `head`; `None` when it is too old, or not a head of this chain.
    pub(super) fn since(&self, head: Head) -> Option<impl Iterator<Item = &EncodedRecord>> {
        let known = usize::try_from(head.seq.checked_sub(self.before.seq)?).ok()?;
        let at = match known.checked_sub(1) {
            None => self.before.hash,
            Some(index) => self.records.get(index)?.hash,
        };
        (at == head.hash).then(|| self.records.iter().skip(known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seq: u64, bytes: usize) -> EncodedRecord {
        EncodedRecord { seq, hash: Digest::of(&seq.to_be_bytes()), bytes: vec![0; bytes].into() }
    }

    fn head(seq: u64) -> Head {
        Head { seq, hash: Digest::of(&seq.to_be_bytes()) }
    }

    #[test]
    fn what_came_after_a_head_is_found_while_it_is_kept() {
        let mut recent = RecentRecords::after(head(10));
        let seqs = |recent: &RecentRecords, from| {
            recent.since(head(from)).map(|records| records.map(|one| one.seq).collect::<Vec<_>>())
        };
        assert_eq!(seqs(&recent, 10), Some(vec![]));
        (11..=13).for_each(|seq| recent.push(&record(seq, 10)));
        assert_eq!(seqs(&recent, 10), Some(vec![11, 12, 13]));
        assert_eq!(seqs(&recent, 12), Some(vec![13]));
        assert_eq!(seqs(&recent, 13), Some(vec![]));
        assert_eq!(seqs(&recent, 14), None, "it has not happened");
        assert_eq!(seqs(&recent, 9), None, "too old");
        assert!(recent.since(Head { seq: 12, hash: Digest::of(b"other") }).is_none(), "another chain");
        recent.push(&record(14, RECENT_BYTES_MAX - 5));
        assert_eq!(seqs(&recent, 12), None);
        assert_eq!(seqs(&recent, 13), Some(vec![14]));
    }
}
