//! Segment files: their names, their first 32 bytes, and the one that is being appended to.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use protocol::id::Digest;

use super::frame::{self, Kind, Seal};

/// The folder of the segments, in the data folder.
pub(crate) const SEGMENTS: &str = "segments";
/// Bytes before the first frame.
pub(crate) const SEGMENT_HEADER_BYTES: u64 = 32;
/// The version of the format that this build writes and reads.
const SEGMENT_VERSION: u32 = 1;
const SEGMENT_MAGIC: &[u8; 8] = b"GRIDSEG\n";
/// What a disk fails to read at once.
const DISK_BLOCK_BYTES: u64 = 4096;
/// How much is read at a time when a whole file is hashed.
const HASH_CHUNK_BYTES: usize = 256 * 1024;

/// One segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Its number, from 1 without gaps.
    pub(crate) number: u64,
    /// The position of its first byte in the whole log.
    pub(crate) base: u64,
    /// Where it is.
    pub(crate) path: Arc<Path>,
}

/// What the first bytes of a segment say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SegmentHeader {
    /// The segment's number and base.
    Good { number: u64, base: u64 },
    /// A version that this build does not read.
    Newer(u32),
    /// Not a header.
    Bad,
}

/// The file name of segment `number`.
pub(crate) fn file_name(number: u64) -> String {
    format!("{number:020}.seg")
}

/// The segment files of `data`, by number.
pub(crate) fn list(data: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(data.join(SEGMENTS))? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".seg")).and_then(|digits| digits.parse().ok());
        if let Some(number) = number {
            found.push((number, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn header_bytes(number: u64, base: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(SEGMENT_MAGIC);
    bytes[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
    bytes[12..20].copy_from_slice(&number.to_le_bytes());
    bytes[20..28].copy_from_slice(&base.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..28]);
    bytes[28..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Reads a segment's header.
pub(crate) fn read_header(path: &Path) -> io::Result<SegmentHeader> {
    let mut bytes = [0; 32];
    match File::open(path)?.read_exact(&mut bytes) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(SegmentHeader::Bad),
        Err(error) => return Err(error),
    }
    let u64_at = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
    let u32_at = |at: usize| bytes[at..at + 4].iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
    if bytes[..8] != *SEGMENT_MAGIC || crc32fast::hash(&bytes[..28]) != u32_at(28) {
        return Ok(SegmentHeader::Bad);
    }
    Ok(match u32_at(8) {
        SEGMENT_VERSION => SegmentHeader::Good { number: u64_at(12), base: u64_at(20) },
        other => SegmentHeader::Newer(other),
    })
}

/// Makes a folder that only its owner may enter, and its parents.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Puts a folder's entries on disk.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Reads from `at` on until `bytes` is full or the file ends; returns how much. Blocks that the disk cannot read are read as
/// zeros, which are no frames: a bad sector is damage, not a reason to serve nobody.
pub(crate) fn read_around(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    let mut by_block = false;
    while filled < bytes.len() {
        let here = at + filled as u64;
        let block_left = usize::try_from(DISK_BLOCK_BYTES - here % DISK_BLOCK_BYTES).unwrap_or(1);
        let end = if by_block { bytes.len().min(filled + block_left) } else { bytes.len() };
        match file.read_at(&mut bytes[filled..end], here) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::IO.raw_os_error()) => return Err(error),
            Err(_) if !by_block => by_block = true,
            Err(_) => {
                bytes[filled..end].fill(0);
                filled = end;
            }
        }
    }
    Ok(filled)
}

/// Writes a small file so that after a power cut it is there whole, or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    // A name of its own, because two may write the same file at once.
    let temporary = path.with_extension(format!("{}.new", WRITES.fetch_add(1, Ordering::Relaxed)));
    let result = (|| {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all_at(bytes, 0)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), sync_dir)
    })();
    if result.is_err() {
        // What is left of a failed write is of no use; that it cannot be removed changes nothing.
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

/// The beginning of a file, as far as it went into a hash.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hashed {
    hasher: blake3::Hasher,
    len: u64,
}

impl Hashed {
    /// Reads on up to `until`, or to the end.
    pub(crate) fn extend(&mut self, file: &File, until: u64) -> io::Result<()> {
        let mut chunk = vec![0; HASH_CHUNK_BYTES];
        while self.len < until {
            let want = usize::try_from(until - self.len).unwrap_or(HASH_CHUNK_BYTES).min(HASH_CHUNK_BYTES);
            let read = read_around(file, &mut chunk[..want], self.len)?;
            if read == 0 {
                break;
            }
            self.hasher.update(&chunk[..read]);
            self.len += read as u64;
        }
        Ok(())
    }
}

/// The segment that is being written.
#[derive(Debug)]
pub(crate) struct Appender {
    segment: Segment,
    file: File,
    len: u64,
    frames: u64,
    hasher: blake3::Hasher,
}

impl Appender {
    /// Makes segment `number`, on disk with its name when this returns.
    pub(crate) fn create(data: &Path, number: u64, base: u64) -> io::Result<Self> {
        let dir = data.join(SEGMENTS);
        let path = dir.join(file_name(number));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let header = header_bytes(number, base);
        file.write_all_at(&header, 0)?;
        file.sync_all()?;
        sync_dir(&dir)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&header);
        Ok(Self {
            segment: Segment { number, base, path: path.into() },
            file,
            len: SEGMENT_HEADER_BYTES,
            frames: 0,
            hasher,
        })
    }

    /// Goes on with `segment`, which holds `frames` frames and is good up to its end; `hashed` is its beginning.
    pub(crate) fn resume(segment: Segment, frames: u64, mut hashed: Hashed) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(&segment.path)?;
        hashed.extend(&file, u64::MAX)?;
        Ok(Self { segment, file, len: hashed.len, frames, hasher: hashed.hasher })
    }

    /// The segment.
    pub(crate) const fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Bytes in the file.
    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    /// The position of the next byte in the whole log.
    pub(crate) const fn end(&self) -> u64 {
        self.segment.base + self.len
    }

    /// Appends frames. After a failure the segment must not be used any more.
    pub(crate) fn append(&mut self, bytes: &[u8], frames: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, self.len)?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        self.frames += frames;
        Ok(())
    }

    /// Puts what was appended on disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Ends `full` with its seal and makes the next one.
    pub(crate) fn create_after(full: &mut Self, data: &Path) -> io::Result<Self> {
        let hash = Digest::from_bytes(*full.hasher.finalize().as_bytes());
        let mut bytes = Vec::new();
        frame::put(
            &mut bytes,
            Kind::Seal,
            0,
            frame::mark(full.end()),
            &Seal { frames: full.frames, bytes: full.len, hash },
        );
        full.append(&bytes, 1)?;
        full.sync()?;
        Self::create(data, full.segment.number + 1, full.end())
    }
}
