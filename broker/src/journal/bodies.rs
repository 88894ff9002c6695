//! Bodies too large for a segment: a file each, on disk before the record that names it.

use std::io;
use std::path::{Path, PathBuf};

use protocol::id::{Digest, QueueKey};

use super::segment::{make_dir, sync_dir, write_whole};

/// The folder of these files, in the data folder.
pub(crate) const BODIES: &str = "bodies";

fn folder(data: &Path, queue: QueueKey) -> PathBuf {
    data.join(BODIES).join(queue.to_string())
}

/// Keeps a body; it is on disk, name and all, when this returns.
pub(crate) fn store(data: &Path, queue: QueueKey, digest: Digest, bytes: &[u8]) -> io::Result<()> {
    let folder = folder(data, queue);
    if !folder.is_dir() {
        make_dir(&folder)?;
        sync_dir(&data.join(BODIES))?;
    }
    let path = folder.join(digest.to_string());
    match read(data, queue, digest) {
        // Whole files get their name only once they are on disk; the name itself may be on its way there still.
        Ok(Some(_)) => sync_dir(&folder),
        Ok(None) | Err(_) => write_whole(&path, bytes),
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
