//! Tar, entry by entry. The extensions that hold long names are read here, with a limit: the library takes them whole.

use std::io::Read;
use std::sync::atomic::AtomicBool;

use tar::{Archive, Entry, PaxExtensions};

use super::super::tree::{Tree, TreeError};
use super::{ArchiveError, broken};
use crate::brief::brief;

/// The longest extension that is read: a name has 4,096 bytes at most, and other records are short.
const EXTENSION_BYTES_MAX: u64 = 64 * 1024;
/// Modes of what says none.
const FILE_MODE: u32 = 0o644;
const MODE_BITS: u32 = 0o7777;

/// What extensions say about the next entry.
#[derive(Default)]
struct Said {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

pub(super) fn unpack(source: impl Read, tree: &mut Tree, given_up: &AtomicBool) -> Result<(), ArchiveError> {
    let mut archive = Archive::new(source);
    let entries = archive.entries().map_err(|error| broken(error.to_string()))?.raw(true);
    let mut said = Said::default();
    for entry in entries {
        let mut entry = entry.map_err(|error| broken(error.to_string()))?;
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname() {
            said.path = Some(gnu(&mut entry)?);
        } else if kind.is_gnu_longlink() {
            said.link = Some(gnu(&mut entry)?);
        } else if kind.is_pax_local_extensions() {
            pax(&extension(&mut entry)?, &mut said)?;
        } else if kind.is_pax_global_extensions() {
            tree.commit = commit(&extension(&mut entry)?).or(tree.commit.take());
        } else {
            take(&mut entry, std::mem::take(&mut said), tree, given_up)?;
        }
    }
    Ok(())
}

fn take(
    entry: &mut Entry<'_, impl Read>,
    said: Said,
    tree: &mut Tree,
    given_up: &AtomicBool,
) -> Result<(), ArchiveError> {
    let name = text(said.path.unwrap_or_else(|| entry.path_bytes().into_owned()))?;
    if said.size.is_some_and(|size| entry.header().entry_size().ok() != Some(size)) {
        return Err(ArchiveError::Unsupported { why: format!("has a file of 8 GiB or more, {:?}", brief(&name)) });
    }
    let mode = entry.header().mode().unwrap_or(FILE_MODE) & MODE_BITS;
    let target = |said: Option<Vec<u8>>, entry: &Entry<'_, _>| {
        text(said.or_else(|| entry.link_name_bytes().map(|target| target.into_owned())).unwrap_or_default())
    };
    let kind = entry.header().entry_type();
    // Before there was a type for them, directories were files with a slash.
    if kind.is_dir() || (kind.is_file() && name.ends_with('/')) {
        tree.directory(&name, mode)?;
    } else if kind.is_file() || kind.is_contiguous() {
        match tree.file(&name, mode, entry, given_up) {
            Err(TreeError::Io(error)) => return Err(broken(error.to_string())),
            done => done?,
        }
    } else if kind.is_symlink() {
        let target = target(said.link, entry)?;
        tree.link(&name, target)?;
    } else if kind.is_hard_link() {
        let target = target(said.link, entry)?;
        if !tree.hard_link(&name, &target)? {
            let (name, target) = (brief(&name), brief(&target));
            return Err(broken(format!("{name:?} is another name of {target:?}, which is not there")));
        }
    } else if kind.is_gnu_sparse() {
        return Err(ArchiveError::Unsupported {
            why: format!("has a sparse file, {:?}: pack it without", brief(&name)),
        });
    } else {
        // Devices and pipes have no place in a build.
        tree.left_out += 1;
    }
    Ok(())
}

fn extension(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, ArchiveError> {
    if entry.size() > EXTENSION_BYTES_MAX {
        return Err(broken(format!("a name or note in it has more than {EXTENSION_BYTES_MAX} bytes")));
    }
    let mut bytes = Vec::new();
    entry.take(EXTENSION_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| broken(error.to_string()))?;
    Ok(bytes)
}

fn gnu(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = extension(entry)?;
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(bytes)
}

fn pax(bytes: &[u8], said: &mut Said) -> Result<(), ArchiveError> {
    for record in PaxExtensions::new(bytes) {
        let record = record.map_err(|error| broken(error.to_string()))?;
        match record.key_bytes() {
            b"path" => said.path = Some(record.value_bytes().to_vec()),
            b"linkpath" => said.link = Some(record.value_bytes().to_vec()),
            b"size" => said.size = record.value().ok().and_then(|size| size.parse().ok()),
            _ => {}
        }
    }
    Ok(())
}

/// `git archive` notes which commit it packs.
fn commit(bytes: &[u8]) -> Option<String> {
    let comment = PaxExtensions::new(bytes).flatten().find(|record| record.key_bytes() == b"comment")?;
    comment.value().ok().filter(|text| super::super::source::is_commit(text)).map(str::to_owned)
}

fn text(bytes: Vec<u8>) -> Result<String, ArchiveError> {
    String::from_utf8(bytes).map_err(|error| ArchiveError::Unsupported {
        why: format!("has a name that is not UTF-8, {:?}", brief(&String::from_utf8_lossy(error.as_bytes()))),
    })
}
