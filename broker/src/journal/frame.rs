//! The frames that segments are made of: their bytes, nothing about files.
//!
//! A frame is a 20-byte header and a MessagePack payload with named fields. The header: two magic bytes that no UTF-8 text
//! holds (so that nothing a peer submits can look like a frame), the kind, a zero, the index within the group, where the
//! group stands (the low 32 bits of its position), the payload's length, and a crc32 of all of that but the magic. A group is
//! what one write puts on disk: a group head, which says where it stands and what of which queue follows, then that many
//! records and bodies.

use protocol::id::{Digest, QueueKey, Seq};
use serde::{Deserialize, Serialize};

/// The first two bytes of a frame; neither occurs in UTF-8.
pub(crate) const MAGIC: [u8; 2] = [0xF5, 0xC1];
/// Bytes before the payload.
pub(crate) const FRAME_HEADER_BYTES: usize = 20;
/// The longest payload: a group head that names as many queues as a group may have is the longest there is (about 0.4 MiB).
pub(crate) const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A [`GroupHead`]; its index is 0.
    Group = 1,
    /// A [`RecordFrame`].
    Record = 2,
    /// A [`BodyFrame`].
    Body = 3,
    /// A [`Seal`], the last frame of a full segment.
    Seal = 4,
}

impl Kind {
    const fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Group),
            2 => Some(Self::Record),
            3 => Some(Self::Body),
            4 => Some(Self::Seal),
            _ => None,
        }
    }
}

/// What one write holds, said before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupHead {
    /// The position of this frame in the whole log: a group head that stands elsewhere is none.
    pub(crate) at: u64,
    /// How many frames follow.
    pub(crate) frames: u32,
    /// How many bytes they have.
    pub(crate) bytes: u64,
    /// What follows, queue by queue, so that a broken frame's queue is known.
    pub(crate) queues: Vec<GroupPart>,
}

/// What a group holds of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupPart {
    /// The queue.
    pub(crate) queue: QueueKey,
    /// The first record's seq.
    pub(crate) from_seq: Seq,
    /// The last record's seq; smaller than `from_seq` when there is no record.
    pub(crate) to_seq: Seq,
    /// How many bodies.
    pub(crate) bodies: u32,
}

/// A record with its chain hash.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RecordFrame<'a> {
    /// The queue that it belongs to.
    pub(crate) queue: QueueKey,
    /// The chain hash up to and including this record.
    pub(crate) hash: Digest,
    /// The record's bytes.
    #[serde(borrow, with = "serde_bytes")]
    pub(crate) bytes: &'a [u8],
}

/// A definition or a result, as received.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BodyFrame<'a> {
    /// The queue that it belongs to.
    pub(crate) queue: QueueKey,
    /// The blake3 of the bytes.
    pub(crate) digest: Digest,
    /// The bytes.
    #[serde(borrow, with = "serde_bytes")]
    pub(crate) bytes: &'a [u8],
}

/// The end of a full segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seal {
    /// How many frames the segment has before this one.
    pub(crate) frames: u64,
    /// How many bytes the file has before this frame.
    pub(crate) bytes: u64,
    /// The blake3 of those bytes.
    pub(crate) hash: Digest,
}

/// Where a record belongs, read without the rest of it.
#[derive(Deserialize)]
pub(crate) struct Peek {
    /// The position.
    pub(crate) seq: Seq,
}

/// A frame's header, as read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    /// What the payload is.
    pub(crate) kind: Kind,
    /// The position in its group, from 1; 0 for heads and seals.
    pub(crate) index: u32,
    /// Where its group stands; see [`mark`].
    pub(crate) group: u32,
    /// The payload's length.
    pub(crate) len: usize,
    crc: u32,
}

impl Header {
    /// Reads a header; `None` when these bytes cannot be one.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<FRAME_HEADER_BYTES>()?;
        let [m0, m1, kind, zero, i0, i1, i2, i3, g0, g1, g2, g3, l0, l1, l2, l3, c0, c1, c2, c3] = *bytes;
        if [m0, m1] != MAGIC || zero != 0 {
            return None;
        }
        let len = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).ok()?;
        (len <= PAYLOAD_BYTES_MAX).then_some(())?;
        Some(Self {
            kind: Kind::of(kind)?,
            index: u32::from_le_bytes([i0, i1, i2, i3]),
            group: u32::from_le_bytes([g0, g1, g2, g3]),
            len,
            crc: u32::from_le_bytes([c0, c1, c2, c3]),
        })
    }

    /// Whether `payload` is what was written after this header.
    pub(crate) fn vouches_for(&self, payload: &[u8]) -> bool {
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        payload.len() == self.len && checksum(self.kind, self.index, self.group, len, payload) == self.crc
    }

    /// Header and payload together.
    pub(crate) const fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.len
    }
}

fn checksum(kind: Kind, index: u32, group: u32, len: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind as u8, 0]);
    hasher.update(&index.to_le_bytes());
    hasher.update(&group.to_le_bytes());
    hasher.update(&len.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// What the frames of the group at `position` carry, so that one without its head still tells where the head was.
pub(crate) const fn mark(position: u64) -> u32 {
    let [b0, b1, b2, b3, ..] = position.to_le_bytes();
    u32::from_le_bytes([b0, b1, b2, b3])
}

/// Appends one frame to `out`.
///
/// # Panics
///
/// When the payload is over [`PAYLOAD_BYTES_MAX`], which the bounds on batches exclude.
pub(crate) fn put<T: Serialize>(out: &mut Vec<u8>, kind: Kind, index: u32, group: u32, payload: &T) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
    rmp_serde::encode::write_named(out, payload).expect("frames are maps, integers and bytes");
    let body = start + FRAME_HEADER_BYTES;
    let len = out.len() - body;
    assert!(len <= PAYLOAD_BYTES_MAX, "a frame's payload of {len} bytes");
    let len = u32::try_from(len).expect("below PAYLOAD_BYTES_MAX");
    let crc = checksum(kind, index, group, len, &out[body..]);
    out[start..start + 2].copy_from_slice(&MAGIC);
    out[start + 2] = kind as u8;
    out[start + 4..start + 8].copy_from_slice(&index.to_le_bytes());
    out[start + 8..start + 12].copy_from_slice(&group.to_le_bytes());
    out[start + 12..start + 16].copy_from_slice(&len.to_le_bytes());
    out[start + 16..body].copy_from_slice(&crc.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_bytes_of_a_frame_are_frozen() {
        let mut out = Vec::new();
        let frame =
            BodyFrame { queue: QueueKey::from_bytes([1; 16]), digest: Digest::from_bytes([2; 32]), bytes: b"{}" };
        put(&mut out, Kind::Body, 7, mark(0x0000_0005_0403_0201), &frame);
        let payload =
            format!("83a57175657565c410{}a6646967657374c420{}a56279746573c4027b7d", "01".repeat(16), "02".repeat(32));
        assert_eq!(hex(&out[FRAME_HEADER_BYTES..]), payload);
        assert_eq!(hex(&out[..16]), "f5c1030007000000010203044c000000");
        let header = Header::read(&out).unwrap();
        assert_eq!(
            (header.kind, header.index, header.group, header.frame_bytes()),
            (Kind::Body, 7, 0x0403_0201, out.len())
        );
        assert!(header.vouches_for(&out[FRAME_HEADER_BYTES..]));
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let mut out = Vec::new();
        put(&mut out, Kind::Seal, 0, 0, &Seal { frames: 3, bytes: 99, hash: Digest::of(b"x") });
        for bit in 0..out.len() * 8 {
            let mut bad = out.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let seen = Header::read(&bad).is_none_or(|header| {
                bad.get(FRAME_HEADER_BYTES..header.frame_bytes()).is_none_or(|payload| !header.vouches_for(payload))
            });
            assert!(seen, "bit {bit}");
        }
    }
}
