//! What a frame's payload says.
//!
//! Payloads as this build writes them are read by their fixed bytes, because recovery, scrub and audit read millions of them;
//! the same MessagePack in any other shape is read the general way.

use protocol::id::{Digest, QueueKey, Seq};

use super::frame::{BodyFrame, GroupHead, Kind, Peek, RecordFrame, Seal};

/// A frame's payload, read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content<'a> {
    /// The head of a group.
    Group(GroupHead),
    /// A record.
    Record { queue: QueueKey, seq: Seq, hash: Digest, bytes: &'a [u8] },
    /// A body.
    Body { queue: QueueKey, digest: Digest, bytes: &'a [u8] },
    /// The end of a full segment.
    Seal(Seal),
}

impl<'a> Content<'a> {
    /// Reads a payload; `None` when it is not of that kind. Whether a record can be read beyond its seq is left to others.
    pub(crate) fn read(kind: Kind, payload: &'a [u8]) -> Option<Self> {
        match kind {
            Kind::Group => rmp_serde::from_slice(payload).ok().map(Self::Group),
            Kind::Record => {
                let (queue, hash, bytes) = match usual(payload, b"\xa4hash\xc4\x20") {
                    Some(read) => read,
                    None => {
                        let RecordFrame { queue, hash, bytes } = rmp_serde::from_slice(payload).ok()?;
                        (queue, hash, bytes)
                    }
                };
                let seq = match usual_seq(bytes) {
                    Some(seq) => seq,
                    None => rmp_serde::from_slice::<Peek>(bytes).ok()?.seq,
                };
                Some(Self::Record { queue, seq, hash, bytes })
            }
            Kind::Body => {
                let (queue, digest, bytes) = match usual(payload, b"\xa6digest\xc4\x20") {
                    Some(read) => read,
                    None => {
                        let BodyFrame { queue, digest, bytes } = rmp_serde::from_slice(payload).ok()?;
                        (queue, digest, bytes)
                    }
                };
                Some(Self::Body { queue, digest, bytes })
            }
            Kind::Seal => rmp_serde::from_slice(payload).ok().map(Self::Seal),
        }
    }
}

/// A map of queue, a digest under the name that `digest` ends with, and bytes, as [`super::frame::put`] writes it.
fn usual<'a>(payload: &'a [u8], digest: &[u8]) -> Option<(QueueKey, Digest, &'a [u8])> {
    let rest = payload.strip_prefix(b"\x83\xa5queue\xc4\x10")?;
    let (queue, rest) = rest.split_first_chunk()?;
    let (hash, rest) = rest.strip_prefix(digest)?.split_first_chunk()?;
    let (len, bytes) = match rest.strip_prefix(b"\xa5bytes")? {
        [0xc4, len, bytes @ ..] => (usize::from(*len), bytes),
        [0xc5, b1, b0, bytes @ ..] => (usize::from(u16::from_be_bytes([*b1, *b0])), bytes),
        _ => return None,
    };
    (bytes.len() == len).then(|| (QueueKey::from_bytes(*queue), Digest::from_bytes(*hash), bytes))
}

/// The seq of a record as `Record::encode` writes it.
fn usual_seq(record: &[u8]) -> Option<Seq> {
    match record.strip_prefix(b"\x84\xa1v\x01\xa3seq")? {
        [0xcf, rest @ ..] => rest.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)),
        [0xce, rest @ ..] => rest.first_chunk().map(|bytes| u32::from_be_bytes(*bytes).into()),
        [0xcd, rest @ ..] => rest.first_chunk().map(|bytes| u16::from_be_bytes(*bytes).into()),
        [0xcc, small, ..] | [small @ ..=0x7f, ..] => Some((*small).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protocol::event::Event;
    use protocol::id::UnixMillis;
    use protocol::record::{RECORD_VERSION, Record};
    use serde::Serialize;

    use super::*;

    /// The same fields in another order: MessagePack that only the general reader takes.
    #[derive(Serialize)]
    struct Turned<'a> {
        #[serde(with = "serde_bytes")]
        bytes: &'a [u8],
        hash: Digest,
        queue: QueueKey,
    }

    fn record(seq: Seq, text: usize) -> Vec<u8> {
        let event =
            Event::JobCancelled { job: protocol::id::JobId::from_bytes([5; 32]), message: Some("x".repeat(text)) };
        Record { v: RECORD_VERSION, seq, at_ms: UnixMillis(7), event }.encode()
    }

    proptest! {
        #[test]
        fn a_record_reads_the_same_both_ways(shift in 0_u32..64, low in any::<u64>(), text in 0_usize..3_000) {
            let (queue, hash) = (QueueKey::from_bytes([1; 16]), Digest::from_bytes([2; 32]));
            let seq = low >> shift;
            let bytes = record(seq, text);
            let frame = rmp_serde::to_vec_named(&RecordFrame { queue, hash, bytes: &bytes }).unwrap();
            prop_assert_eq!(usual(&frame, b"\xa4hash\xc4\x20"), Some((queue, hash, &bytes[..])));
            prop_assert_eq!(usual_seq(&bytes), Some(seq));
            let turned = rmp_serde::to_vec_named(&Turned { bytes: &bytes, hash, queue }).unwrap();
            prop_assert_eq!(usual(&turned, b"\xa4hash\xc4\x20"), None);
            let expected = Some(Content::Record { queue, seq, hash, bytes: &bytes });
            prop_assert_eq!(&Content::read(Kind::Record, &frame), &expected);
            prop_assert_eq!(&Content::read(Kind::Record, &turned), &expected);
        }

        #[test]
        fn a_body_reads_the_same_both_ways(bytes in proptest::collection::vec(any::<u8>(), 0..70_000)) {
            let (queue, digest) = (QueueKey::from_bytes([1; 16]), Digest::of(&bytes));
            let frame = rmp_serde::to_vec_named(&BodyFrame { queue, digest, bytes: &bytes }).unwrap();
            let BodyFrame { queue: of, digest: named, bytes: general } = rmp_serde::from_slice(&frame).unwrap();
            prop_assert_eq!(Content::read(Kind::Body, &frame), Some(Content::Body { queue: of, digest: named, bytes: general }));
            prop_assert_eq!(general, &bytes[..]);
        }

        #[test]
        fn what_is_cut_short_is_no_frame(cut in 0_usize..200) {
            let bytes = record(300, 20);
            let frame = RecordFrame { queue: QueueKey::from_bytes([1; 16]), hash: Digest::from_bytes([2; 32]), bytes: &bytes };
            let frame = rmp_serde::to_vec_named(&frame).unwrap();
            let cut = cut.min(frame.len() - 1);
            prop_assert_eq!(Content::read(Kind::Record, &frame[..cut]), None);
        }
    }
}
