//! Archives from strangers, told apart by their first bytes, into a [`Tree`].

mod tar;
mod zip;

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;

use super::tree::{Tree, TreeError};

/// Where a tar says that it is one.
const TAR_MAGIC_AT: usize = 257;
const TAR_MAGIC: &[u8] = b"ustar";
/// A tar's first block.
const TAR_BLOCK_BYTES: usize = 512;

/// Why an archive cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveError {
    #[error("it is no archive that is known: pack it as .tar, .tar.gz, .tar.zst or .zip{hint}")]
    Unknown { hint: &'static str },
    #[error("the archive is broken: {why}")]
    Broken { why: String },
    #[error("the archive {why}")]
    Unsupported { why: String },
    #[error(transparent)]
    Tree(#[from] TreeError),
}

fn broken(why: impl Into<String>) -> ArchiveError {
    ArchiveError::Broken { why: why.into() }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gzip,
    Zstd,
    Zip,
    Tar,
}

fn kind(first: &[u8]) -> Result<Kind, ArchiveError> {
    let unknown = |hint| Err(ArchiveError::Unknown { hint });
    match first {
        [0x1f, 0x8b, ..] => Ok(Kind::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Kind::Zstd),
        // With entries, or empty.
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Ok(Kind::Zip),
        _ if first.get(TAR_MAGIC_AT..).is_some_and(|rest| rest.starts_with(TAR_MAGIC)) => Ok(Kind::Tar),
        [b'B', b'Z', b'h', ..] => unknown(" (this is bzip2)"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => unknown(" (this is xz)"),
        [b'7', b'z', 0xbc, 0xaf, ..] => unknown(" (this is 7z)"),
        _ if first.trim_ascii_start().starts_with(b"<") => {
            unknown(" (this is a web page: is the address that of a file?)")
        }
        _ => unknown(""),
    }
}

/// Unpacks an archive. Blocks.
pub(super) fn unpack(mut file: File, tree: &mut Tree, given_up: &AtomicBool) -> Result<(), ArchiveError> {
    let io = |error: io::Error| ArchiveError::Tree(error.into());
    let mut first = Vec::new();
    (&mut file).take(TAR_BLOCK_BYTES as u64).read_to_end(&mut first).map_err(io)?;
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    match kind(&first)? {
        Kind::Zip => zip::unpack(&file, tree, given_up)?,
        Kind::Tar => tar::unpack(Watched { source: BufReader::new(file), given_up }, tree, given_up)?,
        Kind::Gzip => {
            let source = MultiGzDecoder::new(BufReader::new(file));
            tar::unpack(Watched { source, given_up }, tree, given_up)?;
        }
        Kind::Zstd => {
            let decoder = StreamingDecoder::new(BufReader::new(file)).map_err(|error| broken(error.to_string()))?;
            tar::unpack(Watched { source: decoder, given_up }, tree, given_up)?;
        }
    }
    tree.check()?;
    Ok(())
}

/// Ends when nobody waits any more, also in what is only skipped.
struct Watched<'a, R> {
    source: R,
    given_up: &'a AtomicBool,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given_up.load(Ordering::Relaxed) {
            return Err(io::Error::other("nobody waits for the build any more"));
        }
        self.source.read(buffer)
    }
}

#[cfg(test)]
mod tests;
