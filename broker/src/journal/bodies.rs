//! Bodies too large for a segment: a file each, on disk before the record that names it.
//!
//! A file's time of modification is when it was last handed in, so that a sweep can tell a file that will be named from one
//! that is not named any more.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::id::{Digest, QueueKey};

use super::segment::{make_dir, sync_dir, write_whole};
use crate::clock;

/// The folder of these files, in the data folder.
pub(crate) const BODIES: &str = "bodies";

fn folder(data: &Path, queue: QueueKey) -> PathBuf {
    data.join(BODIES).join(queue.to_string())
}

/// Keeps a body; it is on disk, name and all, when this returns. `swept` keeps a sweep from removing a file that was just
/// found to be there already.
pub(crate) fn store(data: &Path, swept: &Mutex<()>, queue: QueueKey, digest: Digest, bytes: &[u8]) -> io::Result<()> {
    let folder = folder(data, queue);
    if !folder.is_dir() {
        make_dir(&folder)?;
        sync_dir(&data.join(BODIES))?;
    }
    let path = folder.join(digest.to_string());
    let held = swept.lock().unwrap_or_else(PoisonError::into_inner);
    match read(data, queue, digest) {
        Ok(Some(_)) => {
            let now = UNIX_EPOCH + Duration::from_millis(clock::now().0);
            File::options().write(true).open(&path)?.set_modified(now)?;
            drop(held);
            // Whole files get their name only once they are on disk; the name itself may be on its way there still.
            sync_dir(&folder)
        }
        Ok(None) => {
            drop(held);
            write_whole(&path, bytes)
        }
        // Still held: a sweep that has looked at the broken one would remove what takes its place.
        Err(_) => write_whole(&path, bytes),
    }
}

/// The queues that have such files.
pub(crate) fn queues(data: &Path) -> io::Result<Vec<QueueKey>> {
    let queue =
        |entry: io::Result<std::fs::DirEntry>| Ok(entry?.file_name().to_str().and_then(|name| name.parse().ok()));
    std::fs::read_dir(data.join(BODIES))?.map(queue).filter_map(Result::transpose).collect()
}

/// Bodies of a queue that were last handed in before `before`, at most `count_max`. Those that an interrupted write left
/// under a name of its own are none.
pub(crate) fn older(data: &Path, queue: QueueKey, before: SystemTime, count_max: usize) -> io::Result<Vec<Digest>> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(folder(data, queue)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let Some(digest) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if found.len() < count_max && entry.metadata()?.modified()? < before {
            found.push(digest);
        }
    }
    Ok(found)
}

/// Removes a body that was last handed in before `before`; says whether there was one.
pub(crate) fn remove_older(
    data: &Path,
    swept: &Mutex<()>,
    queue: QueueKey,
    digest: Digest,
    before: SystemTime,
) -> io::Result<bool> {
    let path = folder(data, queue).join(digest.to_string());
    let _held = swept.lock().unwrap_or_else(PoisonError::into_inner);
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.modified()? < before => std::fs::remove_file(&path).map(|()| true),
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads a body; `None` when there is no such file, an error of kind `InvalidData` when it is not what was stored.
pub(crate) fn read(data: &Path, queue: QueueKey, digest: Digest) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(folder(data, queue).join(digest.to_string())) {
        Ok(bytes) if Digest::of(&bytes) == digest => Ok(Some(bytes)),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the file of a body is damaged")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
