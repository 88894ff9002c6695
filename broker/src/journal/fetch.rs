//! Reading bodies back out of the segments: neighbours in one read.

use std::fs::File;
use std::io;

use protocol::id::{Digest, QueueKey};

use super::content::Content;
use super::events::Place;
use super::frame::{FRAME_HEADER_BYTES, Header, PAYLOAD_BYTES_MAX};
use super::segment::{Segment, read_around};

/// The longest read: bodies that were written together are read together, in bounded memory.
const READ_BYTES_MAX: u64 = 256 * 1024;
/// What may lie between two bodies of one read: the records that came with them cost less than another call.
const GAP_BYTES_MAX: u64 = 4 * 1024;

/// A body that is wanted, and what to call it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// The caller's name for it.
    pub(crate) index: usize,
    /// The blake3 of its bytes.
    pub(crate) digest: Digest,
    /// Where it is said to be.
    pub(crate) place: Place,
}

impl Wanted {
    const fn end(&self) -> u64 {
        self.place.position.saturating_add(self.place.frame_bytes as u64)
    }
}

/// Reads the bodies of `queue` that are `wanted` from `segment`; `found` is given each whose bytes are what its digest says.
/// Those that it is not given are not there.
pub(crate) fn bodies(
    segment: &Segment,
    queue: QueueKey,
    mut wanted: Vec<Wanted>,
    mut found: impl FnMut(usize, Vec<u8>),
) -> io::Result<()> {
    let frame_bytes_max = FRAME_HEADER_BYTES + PAYLOAD_BYTES_MAX;
    wanted.retain(|one| usize::try_from(one.place.frame_bytes).is_ok_and(|bytes| bytes <= frame_bytes_max));
    wanted.sort_unstable_by_key(|one| one.place.position);
    let file = File::open(&segment.path)?;
    let mut buffer = Vec::new();
    let mut rest = wanted.as_slice();
    while let Some(first) = rest.first() {
        let start = first.place.position;
        let (mut count, mut end) = (1, first.end());
        for next in &rest[1..] {
            if next.place.position > end + GAP_BYTES_MAX || next.end() > start + READ_BYTES_MAX {
                break;
            }
            end = end.max(next.end());
            count += 1;
        }
        let (run, later) = rest.split_at(count);
        rest = later;
        buffer.resize(usize::try_from(end - start).unwrap_or(0), 0);
        let filled = read_around(&file, &mut buffer, start.saturating_sub(segment.base))?;
        for one in run {
            let from = usize::try_from(one.place.position - start).unwrap_or(filled);
            let until = usize::try_from(one.end() - start).unwrap_or(filled);
            let frame = buffer[..filled].get(from..until);
            if let Some(bytes) = frame.and_then(|frame| body(frame, queue, one.digest)) {
                found(one.index, bytes.to_vec());
            }
        }
    }
    Ok(())
}

/// The body in a frame, when it is the one that is wanted.
fn body(frame: &[u8], queue: QueueKey, digest: Digest) -> Option<&[u8]> {
    let header = Header::read(frame)?;
    let payload = frame.get(FRAME_HEADER_BYTES..).filter(|payload| header.vouches_for(payload))?;
    match Content::read(header.kind, payload)? {
        Content::Body { queue: of, digest: named, bytes } => {
            ((of, named) == (queue, digest) && Digest::of(bytes) == digest).then_some(bytes)
        }
        Content::Group(_) | Content::Record { .. } | Content::Seal(_) => None,
    }
}
