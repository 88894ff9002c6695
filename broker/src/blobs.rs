//! Blobs: the bytes of inputs and outputs, in a folder or in a bucket.
//!
//! A key of 64 hex digits is the sha256 of its bytes, and is checked before anything becomes visible under it; any other key
//! is written once. What is stored never changes, so that whoever holds a key holds the bytes.
//!
//! **Invariant:** nobody but the broker writes below `f/`, save through an address that the store itself holds to one digest.
//! What is there has been checked.

mod bucket;
mod error;
mod key;
mod names;
mod probe;
mod redirect;
mod settle;
mod sum;
mod sweep;
mod upload;

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

pub use self::error::BlobError;
pub use self::key::BlobKey;
pub(crate) use self::redirect::CHECKSUM;
pub use self::redirect::{Download, WayIn};
pub use self::sum::Sum;

use self::bucket::Bucket;
use self::sum::Seen;
use crate::blob_uses::BlobUses;
use crate::config::BlobsUrl;

/// What is gathered before it is written to a folder: a blob up to this size is one write, a larger one goes in parts of it.
/// This is also the memory that one upload takes.
const FOLDER_PART_BYTES: usize = 1024 * 1024;

/// How much of a file is read at once for a download.
const READ_BYTES: usize = 128 * 1024;

/// The folder of finished blobs, and in the addresses that name them.
const BLOBS: &str = "f";
/// The folder of uploads under way; emptied at start.
const UPLOADS: &str = "uploads";

/// What a stored blob's writer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The key was free.
    New,
    /// The same bytes were there before.
    Before,
}

/// A blob, or a part of one, on its way out.
pub struct Blob {
    /// The whole blob's size in bytes.
    pub size: u64,
    /// Which bytes follow.
    pub range: Range<u64>,
    /// The bytes.
    pub bytes: BoxStream<'static, std::io::Result<Bytes>>,
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blob").field("size", &self.size).field("range", &self.range).finish_non_exhaustive()
    }
}

impl Blob {
    /// Reads it to its end.
    async fn sum(mut self) -> Result<Sum, BlobError> {
        let mut seen = Seen::new(u64::MAX);
        while let Some(bytes) = self.bytes.try_next().await.map_err(read_failed)? {
            seen.take(&bytes)?;
        }
        Ok(seen.end().1)
    }
}

/// A part of a blob, as a request names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// From a position on, to before another.
    Between(u64, u64),
    /// From a position to the end.
    From(u64),
    /// The last so many bytes.
    Last(u64),
}

impl Part {
    /// Whether a blob of `size` bytes has none of it.
    const fn is_beyond(self, size: u64) -> bool {
        match self {
            Self::Between(start, _) | Self::From(start) => start >= size,
            Self::Last(_) => false,
        }
    }
}

/// The blob store. Clones share it.
#[derive(Clone, Debug)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    /// What there is besides, when it is a bucket.
    bucket: Option<Arc<Bucket>>,
    bytes_max: u64,
    /// Makes the names of uploads differ between processes that share a folder by mistake.
    salt: u64,
    uploads: Arc<AtomicU64>,
    /// Who uses blobs this moment, so that a sweep leaves them.
    uses: BlobUses,
}

impl Blobs {
    /// Opens the store, sees whether it can be used, and throws away what a crash left unfinished.
    ///
    /// # Errors
    ///
    /// [`BlobError`] when the folder cannot be made or read, or the bucket does not do what it has to.
    pub async fn open(url: &BlobsUrl, bytes_max: u64) -> Result<Self, BlobError> {
        match url {
            BlobsUrl::Folder(folder) => Self::open_folder(folder, bytes_max),
            BlobsUrl::Bucket(bucket) => Self::open_bucket(bucket, bytes_max).await,
        }
    }

    fn open_folder(folder: &Path, bytes_max: u64) -> Result<Self, BlobError> {
        let told = |source| BlobError::Folder { folder: folder.display().to_string(), source };
        let uploads = folder.join(UPLOADS);
        match std::fs::remove_dir_all(&uploads) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(told(error)),
            Ok(()) | Err(_) => {}
        }
        for made in [&uploads, &folder.join(BLOBS)] {
            std::fs::create_dir_all(made).map_err(told)?;
        }
        let store = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true);
        Ok(Self::new(Arc::new(store), None, bytes_max))
    }

    fn new(store: Arc<dyn ObjectStore>, bucket: Option<Arc<Bucket>>, bytes_max: u64) -> Self {
        let salt = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        Self { store, bucket, bytes_max, salt, uploads: Arc::default(), uses: BlobUses::default() }
    }

    /// How much is written at once, which is what an upload takes of memory.
    pub(crate) fn part_bytes(&self) -> usize {
        if self.bucket.is_some() { bucket::PART_BYTES } else { FOLDER_PART_BYTES }
    }

    /// The most bytes that a blob may have.
    #[must_use]
    pub const fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Reads a blob, or a part of it; `None` when there is none of that key.
    ///
    /// # Errors
    ///
    /// [`BlobError::NoSuchRange`], or that the store failed.
    pub async fn get(&self, key: &BlobKey, part: Option<Part>) -> Result<Option<Blob>, BlobError> {
        match self.read(&key.path(), part).await? {
            None if self.settle(key).await? => self.read(&key.path(), part).await,
            found => Ok(found),
        }
    }

    /// Whether there is a blob of that key.
    ///
    /// # Errors
    ///
    /// [`BlobError`] when the store failed.
    pub async fn exists(&self, key: &BlobKey) -> Result<bool, BlobError> {
        self.used(key).await;
        match self.is_there(key).await {
            Ok(true) => {
                self.mark_used(key).await;
                Ok(true)
            }
            Err(BlobError::Removed { .. }) => Ok(false),
            told => told,
        }
    }

    /// As [`Blobs::exists`]; when what was there was wrong and had to go, says so.
    async fn is_there(&self, key: &BlobKey) -> Result<bool, BlobError> {
        Ok(self.head(key).await?.is_some() || self.settle(key).await?)
    }

    /// What the store says about a blob that has been checked.
    async fn head(&self, key: &BlobKey) -> Result<Option<ObjectMeta>, BlobError> {
        match self.store.head(&key.path()).await {
            Ok(meta) => Ok(Some(meta)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn read(&self, path: &ObjectPath, part: Option<Part>) -> Result<Option<Blob>, BlobError> {
        let range = part.map(|part| match part {
            Part::Between(start, end) => GetRange::Bounded(start..end),
            Part::From(start) => GetRange::Offset(start),
            Part::Last(count) => GetRange::Suffix(count),
        });
        let got = match self.store.get_opts(path, GetOptions { range, ..GetOptions::default() }).await {
            Ok(got) => got,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => {
                // The store does not say which of its failures is a range beyond the end.
                let size = self.store.head(path).await.map(|meta| meta.size);
                return match (part, size) {
                    (Some(part), Ok(size)) if part.is_beyond(size) => Err(BlobError::NoSuchRange(size)),
                    // Buckets have no last bytes of nothing; folders do.
                    (Some(Part::Last(_)), Ok(0)) => {
                        Ok(Some(Blob { size: 0, range: 0..0, bytes: stream::empty().boxed() }))
                    }
                    _ => Err(error.into()),
                };
            }
        };
        let (size, range) = (got.meta.size, got.range.clone());
        let bytes = match got.payload {
            // The store's own stream reads 8 KiB at a time, each on a thread of its own.
            GetResultPayload::File(file, _) => {
                let mut file = tokio::fs::File::from_std(file);
                file.seek(std::io::SeekFrom::Start(range.start)).await.map_err(read_failed)?;
                ReaderStream::with_capacity(file.take(range.end - range.start), READ_BYTES).boxed()
            }
            GetResultPayload::Stream(stream) => stream.map_err(std::io::Error::other).boxed(),
        };
        Ok(Some(Blob { size, range, bytes }))
    }
}

fn read_failed(source: std::io::Error) -> BlobError {
    BlobError::Store(object_store::Error::Generic { store: "blobs", source: Box::new(source) })
}
