//! Zip, read from its central directory with every size checked first. Stored and deflated entries; no passwords.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;

use flate2::Crc;
use flate2::read::DeflateDecoder;

use super::super::tree::{ENTRIES_MAX, NAME_BYTES_MAX, Tree, TreeError};
use super::{ArchiveError, broken};
use crate::brief::brief;

const END_MAGIC: u32 = 0x0605_4b50;
const END_BYTES: u64 = 22;
/// The end is followed by a comment of so many bytes at most.
const COMMENT_BYTES_MAX: u64 = 65_535;
const END64_MAGIC: u32 = 0x0606_4b50;
const LOCATOR64_MAGIC: u32 = 0x0706_4b50;
const LOCATOR64_BYTES: u64 = 20;
const CENTRAL_MAGIC: u32 = 0x0201_4b50;
const CENTRAL_BYTES: usize = 46;
const LOCAL_MAGIC: u32 = 0x0403_4b50;
const LOCAL_BYTES: u64 = 30;
/// The largest central directory: names, and some 200 bytes more for each entry.
const DIRECTORY_BYTES_MAX: u64 = NAME_BYTES_MAX as u64 + ENTRIES_MAX as u64 * 200;
/// The number of the extra field with sizes that do not fit in 32 bits, and what stands in their places.
const EXTRA64: u16 = 1;
const IN_EXTRA: u32 = u32::MAX;
/// The systems whose attributes hold a mode.
const UNIX: u8 = 3;
const DARWIN: u8 = 19;
const TYPE_BITS: u32 = 0o170_000;
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_LINK: u32 = 0o120_000;
const MODE_BITS: u32 = 0o7777;
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;
/// The longest target of a link.
const LINK_BYTES_MAX: u64 = 4096;

struct Entry {
    name: String,
    mode: Option<u32>,
    is_encrypted: bool,
    method: u16,
    crc: u32,
    packed: u64,
    unpacked: u64,
    at: u64,
}

pub(super) fn unpack(file: &File, tree: &mut Tree, given_up: &AtomicBool) -> Result<(), ArchiveError> {
    let (count, directory) = directory(file)?;
    let mut rest = directory.as_slice();
    for _ in 0..count {
        let (entry, after) = entry(rest)?;
        take(file, &entry, tree, given_up)?;
        rest = after;
    }
    Ok(())
}

/// The number of entries, and the bytes that describe them.
fn directory(file: &File) -> Result<(u64, Vec<u8>), ArchiveError> {
    let len = file.metadata().map_err(|error| ArchiveError::Tree(error.into()))?.len();
    let tail_at = len.saturating_sub(END_BYTES + COMMENT_BYTES_MAX);
    let tail = bytes(file, tail_at, len - tail_at)?;
    let end = (0..tail.len().saturating_sub(21)).rev().find(|&at| {
        let comment = u16_at(&tail, at + 20).map(usize::from);
        u32_at(&tail, at) == Some(END_MAGIC) && comment.is_some_and(|comment| at + 22 + comment == tail.len())
    });
    let cut = || broken("its end is missing");
    let end = end.ok_or_else(cut)?;
    let (count, size, at) = (u16_at(&tail, end + 10), u32_at(&tail, end + 12), u32_at(&tail, end + 16));
    let (count, size, at) = (count.ok_or_else(cut)?, size.ok_or_else(cut)?, at.ok_or_else(cut)?);
    let end_at = tail_at + end as u64;
    let (count, size, at) = if count == u16::MAX || size == IN_EXTRA || at == IN_EXTRA {
        end64(file, end_at)?
    } else {
        (u64::from(count), u64::from(size), u64::from(at))
    };
    if count > ENTRIES_MAX as u64 {
        return Err(TreeError::Entries.into());
    }
    if size > DIRECTORY_BYTES_MAX {
        return Err(TreeError::NameBytes.into());
    }
    if at.checked_add(size).is_none_or(|directory_end| directory_end > end_at) {
        return Err(broken("its directory lies outside of it"));
    }
    Ok((count, bytes(file, at, size)?))
}

fn end64(file: &File, end_at: u64) -> Result<(u64, u64, u64), ArchiveError> {
    let bad = || broken("its 64-bit end is missing");
    let locator = bytes(file, end_at.checked_sub(LOCATOR64_BYTES).ok_or_else(bad)?, LOCATOR64_BYTES)?;
    let at = u64_at(&locator, 8).filter(|_| u32_at(&locator, 0) == Some(LOCATOR64_MAGIC)).ok_or_else(bad)?;
    let end = bytes(file, at, 56)?;
    if u32_at(&end, 0) != Some(END64_MAGIC) {
        return Err(bad());
    }
    u64_at(&end, 32)
        .zip(u64_at(&end, 40))
        .zip(u64_at(&end, 48))
        .map(|((count, size), at)| (count, size, at))
        .ok_or_else(bad)
}

fn entry(rest: &[u8]) -> Result<(Entry, &[u8]), ArchiveError> {
    let bad = || broken("its directory is cut");
    let head = rest.get(..CENTRAL_BYTES).filter(|head| u32_at(head, 0) == Some(CENTRAL_MAGIC)).ok_or_else(bad)?;
    let half = |at| u16_at(head, at).unwrap_or_default();
    let word = |at| u32_at(head, at).unwrap_or_default();
    let (name_len, extra_len, comment_len) = (usize::from(half(28)), usize::from(half(30)), usize::from(half(32)));
    let after = rest.get(CENTRAL_BYTES..).unwrap_or_default();
    let name = after.get(..name_len).ok_or_else(bad)?;
    let extra = after.get(name_len..name_len + extra_len).ok_or_else(bad)?;
    let rest = after.get(name_len + extra_len + comment_len..).ok_or_else(bad)?;
    let name = String::from_utf8(name.to_vec()).map_err(|_| ArchiveError::Unsupported {
        why: format!("has a name that is not UTF-8, {:?}", brief(&String::from_utf8_lossy(name))),
    })?;
    let mut wide = wide(extra).into_iter();
    let mut size = |at| {
        let size = word(at);
        if size == IN_EXTRA { wide.next().ok_or_else(bad) } else { Ok(u64::from(size)) }
    };
    // In the order in which the extra field has them.
    let (unpacked, packed, at) = (size(24)?, size(20)?, size(42)?);
    let made_by = head.get(5).copied().unwrap_or_default();
    let mode = matches!(made_by, UNIX | DARWIN).then(|| word(38) >> 16).filter(|mode| *mode != 0);
    let entry =
        Entry { name, mode, is_encrypted: half(8) & 1 != 0, method: half(10), crc: word(16), packed, unpacked, at };
    Ok((entry, rest))
}

/// The numbers of the extra field for large sizes.
fn wide(mut extra: &[u8]) -> Vec<u64> {
    while let (Some(id), Some(len)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let end = 4 + usize::from(len);
        if id == EXTRA64 {
            let field = extra.get(4..end).unwrap_or_default();
            return (0..field.len() / 8).filter_map(|index| u64_at(field, index * 8)).collect();
        }
        extra = extra.get(end..).unwrap_or_default();
    }
    Vec::new()
}

fn take(file: &File, entry: &Entry, tree: &mut Tree, given_up: &AtomicBool) -> Result<(), ArchiveError> {
    let (name, told) = (&entry.name, brief(&entry.name));
    let mode = |default| entry.mode.map_or(default, |mode| mode & MODE_BITS);
    let kind = match entry.mode.map(|mode| mode & TYPE_BITS) {
        Some(TYPE_DIRECTORY) => TYPE_DIRECTORY,
        _ if name.ends_with('/') => TYPE_DIRECTORY,
        Some(0) | None => TYPE_FILE,
        Some(kind) => kind,
    };
    match kind {
        TYPE_DIRECTORY => return Ok(tree.directory(name, mode(DIRECTORY_MODE))?),
        TYPE_FILE | TYPE_LINK => {}
        _ => {
            tree.left_out += 1;
            return Ok(());
        }
    }
    if entry.is_encrypted {
        return Err(ArchiveError::Unsupported { why: format!("has a file with a password, {told:?}") });
    }
    let head = bytes(file, entry.at, LOCAL_BYTES)?;
    let (Some(LOCAL_MAGIC), Some(name_len), Some(extra_len)) = (u32_at(&head, 0), u16_at(&head, 26), u16_at(&head, 28))
    else {
        return Err(broken(format!("{told:?} is not where its directory says")));
    };
    let at = entry.at + LOCAL_BYTES + u64::from(name_len) + u64::from(extra_len);
    let packed = At { file, at, left: entry.packed };
    let content: Box<dyn Read> = match entry.method {
        0 => Box::new(packed),
        8 => Box::new(DeflateDecoder::new(std::io::BufReader::new(packed))),
        other => {
            let why = format!("has a file packed by method {other}, {told:?}: pack it with deflate");
            return Err(ArchiveError::Unsupported { why });
        }
    };
    let mut content = Checked { content, crc: Crc::new(), left: entry.unpacked };
    let name_broken = |why: &str| broken(format!("{told:?}: {why}"));
    if kind == TYPE_LINK {
        let mut target = String::new();
        (&mut content)
            .take(LINK_BYTES_MAX + 1)
            .read_to_string(&mut target)
            .map_err(|_| name_broken("no link's target"))?;
        tree.link(name, target)?;
    } else {
        match tree.file(name, mode(FILE_MODE), &mut content, given_up) {
            Err(TreeError::Io(error)) => return Err(name_broken(&error.to_string())),
            done => done?,
        }
    }
    if content.left != 0 || content.crc.sum() != entry.crc {
        return Err(name_broken("its bytes are not those that were packed"));
    }
    Ok(())
}

/// A part of the file.
struct At<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(buffer.get_mut(..room).unwrap_or_default(), self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// Counts and sums up what passes; no more of it than was said.
struct Checked<R> {
    content: R,
    crc: Crc,
    left: u64,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.content.read(buffer)?;
        self.left =
            self.left.checked_sub(read as u64).ok_or_else(|| std::io::Error::other("it is longer than it says"))?;
        self.crc.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

fn bytes(file: &File, at: u64, len: u64) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| broken("it is too large"))?];
    file.read_exact_at(&mut bytes, at).map_err(|_| broken("it is cut"))?;
    Ok(bytes)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_le_bytes)
}
