//! Who a worker is: its id, kept in its data directory, which is its alone.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use protocol::id::WorkerId;

use crate::config::Identity;
use crate::error::WorkerError;

const LOCK_FILE: &str = "lock";
const ID_FILE: &str = "worker-id";

/// Holds the data directory for this process; the system lets go of it however the process ends.
#[derive(Debug)]
pub(crate) struct DataLock {
    _file: File,
}

impl DataLock {
    /// Makes `directory` (for its owner's eyes only) and takes it.
    pub(crate) fn take(directory: &Path) -> Result<Self, WorkerError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(WorkerError::disk(directory))?;
        let path = directory.join(LOCK_FILE);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(WorkerError::disk(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(WorkerError::DataDirectoryInUse { path: directory.to_owned() }),
            Err(TryLockError::Error(source)) => Err(WorkerError::DataDirectory { path, source }),
        }
    }
}

/// The worker's id. A kept one that cannot be read is an error, not a new id: its runs would be lost.
pub(crate) fn worker_id(identity: &Identity, directory: &Path) -> Result<WorkerId, WorkerError> {
    let path = directory.join(ID_FILE);
    let invalid = |error: protocol::id::IdError| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
    match identity {
        Identity::Given(id) => Ok(id.clone()),
        Identity::Fresh => fresh().map_err(invalid).map_err(WorkerError::disk(&path)),
        Identity::Kept => match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(invalid).map_err(WorkerError::disk(&path)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let id = fresh().map_err(invalid).map_err(WorkerError::disk(&path))?;
                keep(&path, directory, &id).map_err(WorkerError::disk(&path))?;
                Ok(id)
            }
            Err(error) => Err(WorkerError::disk(&path)(error)),
        },
    }
}

fn fresh() -> Result<WorkerId, protocol::id::IdError> {
    uuid::Uuid::new_v4().to_string().parse()
}

fn keep(path: &Path, directory: &Path, id: &WorkerId) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(directory)?; // Mode 0600.
    writeln!(file, "{id}")?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_made_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let first = worker_id(&Identity::Kept, directory.path()).unwrap();
        assert_eq!(worker_id(&Identity::Kept, directory.path()).unwrap(), first);
        assert_ne!(worker_id(&Identity::Fresh, directory.path()).unwrap(), first);
        assert_eq!(worker_id(&Identity::Kept, directory.path()).unwrap(), first);
    }

    #[test]
    fn a_data_directory_has_one_owner_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let held = DataLock::take(directory.path()).unwrap();
        assert!(matches!(DataLock::take(directory.path()), Err(WorkerError::DataDirectoryInUse { .. })));
        drop(held);
        assert!(DataLock::take(directory.path()).is_ok());
    }
}
