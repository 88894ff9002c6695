//! Blobs that were fetched, by their SHA-256. A file here has the bytes that its name says, and nobody can write it:
//! containers get copies.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use super::digest::BlobHash;

/// Nobody writes a cached blob.
const CACHED_MODE: u32 = 0o444;

/// The cache's two directories, on one file system, so that a rename is all it takes.
#[derive(Debug)]
pub(super) struct Cache {
    blobs: PathBuf,
    incoming: PathBuf,
}

impl Cache {
    /// Opens the cache below `data`; what an earlier process was fetching when it ended goes.
    pub(super) fn open(data: &Path) -> io::Result<Self> {
        let cache = Self { blobs: data.join("f"), incoming: data.join("incoming") };
        match fs::remove_dir_all(&cache.incoming) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        for directory in [&cache.blobs, &cache.incoming] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        Ok(cache)
    }

    /// Where the blob is, if it is here.
    pub(super) fn find(&self, hash: BlobHash) -> Option<PathBuf> {
        let path = self.path(hash);
        path.is_file().then_some(path)
    }

    fn path(&self, hash: BlobHash) -> PathBuf {
        self.blobs.join(hash.to_string())
    }

    /// A file to fetch into; it goes away unless it is [stored](Self::store).
    pub(super) fn incoming(&self) -> io::Result<(fs::File, TempPath)> {
        tempfile::NamedTempFile::new_in(&self.incoming).map(tempfile::NamedTempFile::into_parts)
    }

    /// Takes in a complete file whose bytes have been hashed to `hash`. On disk before it has its name.
    pub(super) fn store(&self, file: &fs::File, path: TempPath, hash: BlobHash) -> io::Result<PathBuf> {
        file.set_permissions(fs::Permissions::from_mode(CACHED_MODE))?;
        file.sync_data()?;
        let stored = self.path(hash);
        path.persist(&stored)?;
        Ok(stored)
    }
}
