//! Rows of the event store that hold several records of a queue: putting a row in costs far more than its bytes.
//!
//! A record in such a row is its length (two bytes), its chain hash and its bytes; the row's key names the last record's seq.

use protocol::id::{Digest, QueueKey, Seq};
use protocol::record::RECORD_BYTES_MAX;

/// Records are packed into one row up to this many bytes: about a dozen. The store keeps up to 17 rows in a page and reads
/// pages whole.
const PACK_BYTES_MAX: usize = 2048;
/// What a record takes besides its bytes.
const RECORD_EXTRA_BYTES: usize = 2 + 32;
/// The longest row: a record of the greatest length is a row of its own.
pub(crate) const ROW_BYTES_MAX: usize = RECORD_EXTRA_BYTES + RECORD_BYTES_MAX;

/// A record, where it is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packed<'a> {
    /// The chain hash up to and including it.
    pub(crate) hash: Digest,
    /// Its bytes.
    pub(crate) bytes: &'a [u8],
}

/// Some consecutive records of a queue.
#[derive(Debug)]
pub(crate) struct Pack {
    /// The queue.
    pub(crate) queue: QueueKey,
    /// The last record's seq.
    pub(crate) last: Seq,
    /// The row.
    pub(crate) row: Vec<u8>,
}

impl Pack {
    /// A row of one record.
    ///
    /// # Panics
    ///
    /// When the record is over [`RECORD_BYTES_MAX`], which the bounds on batches exclude.
    pub(crate) fn new(queue: QueueKey, seq: Seq, hash: Digest, bytes: &[u8]) -> Self {
        let mut pack = Self { queue, last: seq, row: Vec::new() };
        pack.put(hash, bytes);
        pack
    }

    /// Adds a record; `false` when it does not follow, or would be too much.
    pub(crate) fn add(&mut self, queue: QueueKey, seq: Seq, hash: Digest, bytes: &[u8]) -> bool {
        let follows = queue == self.queue && seq == self.last + 1;
        let fits = self.row.len() + RECORD_EXTRA_BYTES + bytes.len() <= PACK_BYTES_MAX;
        if follows && fits {
            self.put(hash, bytes);
            self.last = seq;
        }
        follows && fits
    }

    fn put(&mut self, hash: Digest, bytes: &[u8]) {
        assert!(bytes.len() <= RECORD_BYTES_MAX, "a record of {} bytes", bytes.len());
        let len = u16::try_from(bytes.len()).expect("RECORD_BYTES_MAX is below 2^16");
        self.row.extend_from_slice(&len.to_be_bytes());
        self.row.extend_from_slice(hash.as_bytes());
        self.row.extend_from_slice(bytes);
    }
}

/// The records of a row, in order; `None` when it is not one.
pub(crate) fn records(mut row: &[u8]) -> Option<Vec<Packed<'_>>> {
    let mut found = Vec::new();
    while !row.is_empty() {
        let (len, rest) = row.split_first_chunk()?;
        let (hash, rest) = rest.split_first_chunk()?;
        let (bytes, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        found.push(Packed { hash: Digest::from_bytes(*hash), bytes });
        row = rest;
    }
    (!found.is_empty()).then_some(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::events::{Rows, Store};
    use super::*;

    const QUEUE: QueueKey = QueueKey::from_bytes([1; 16]);

    proptest! {
        #[test]
        fn what_was_packed_is_read_back(lens in proptest::collection::vec(1..=RECORD_BYTES_MAX / 20, 1..40), long in any::<bool>()) {
            let first = if long { RECORD_BYTES_MAX } else { 7 };
            let texts: Vec<Vec<u8>> = std::iter::once(first).chain(lens).map(|len| vec![b'x'; len]).collect();
            let mut pack = Pack::new(QUEUE, 5, Digest::of(&texts[0]), &texts[0]);
            let mut count = 1;
            for (text, seq) in texts[1..].iter().zip(6..) {
                if !pack.add(QUEUE, seq, Digest::of(text), text) {
                    break;
                }
                count += 1;
            }
            prop_assert_eq!(pack.last, 4 + count as Seq);
            let bytes_max = if count == 1 { ROW_BYTES_MAX } else { PACK_BYTES_MAX };
            prop_assert!(pack.row.len() <= bytes_max);
            let expected: Vec<Packed<'_>> =
                texts[..count].iter().map(|text| Packed { hash: Digest::of(text), bytes: text }).collect();
            prop_assert_eq!(records(&pack.row), Some(expected));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(found) = records(&bytes) {
                prop_assert_eq!(found.iter().map(|one| RECORD_EXTRA_BYTES + one.bytes.len()).sum::<usize>(), bytes.len());
            }
        }
    }

    #[test]
    fn only_what_follows_is_packed() {
        let mut pack = Pack::new(QUEUE, 5, Digest::of(b"a"), b"a");
        assert!(!pack.add(QUEUE, 7, Digest::of(b"b"), b"b"));
        assert!(!pack.add(QueueKey::from_bytes([2; 16]), 6, Digest::of(b"b"), b"b"));
        assert!(pack.add(QUEUE, 6, Digest::of(b"b"), b"b"));
        assert!(!pack.add(QUEUE, 7, Digest::of(b"c"), &[0; PACK_BYTES_MAX]));
        assert_eq!(pack.last, 6);
    }

    /// Rows that no head counts, as a crash leaves them, and the same records put in again in other pieces.
    #[test]
    fn what_a_crash_left_is_not_read_twice_nor_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("events")).unwrap();
        let other = QueueKey::from_bytes([2; 16]);
        let text = |seq: Seq| format!("record {seq}").into_bytes();
        let put = |queue, seqs: std::ops::RangeInclusive<Seq>| {
            let mut rows = Rows::default();
            seqs.for_each(|seq| rows.event(queue, seq, Digest::of(&text(seq)), &text(seq)));
            store.apply(rows).unwrap();
        };
        put(QUEUE, 1..=3);
        put(QUEUE, 4..=9);
        put(other, 1..=9);
        store.forget_after(QUEUE, 3).unwrap();
        assert_eq!(store.row(QUEUE, 4).unwrap(), None);
        put(QUEUE, 4..=5);
        put(QUEUE, 6..=7);
        for from in 1..=8 {
            let mut seen = Vec::new();
            store
                .rows(QUEUE, from, |row| {
                    seen.push((row.seq, row.bytes));
                    true
                })
                .unwrap();
            assert_eq!(seen, (from..=7).map(|seq| (seq, text(seq))).collect::<Vec<_>>(), "from {from}");
        }
        for seq in 1..=9 {
            let hash = (seq <= 7).then(|| Digest::of(&text(seq)));
            assert_eq!(store.hash_at(QUEUE, seq).unwrap(), hash);
            assert_eq!(store.hash_at(other, seq).unwrap(), Some(Digest::of(&text(seq))));
        }
    }
}
