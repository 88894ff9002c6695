//! Blobs: the bytes of inputs and outputs, in an object store.
//!
//! A key of 64 hex digits is the sha256 of its bytes, and is checked before anything becomes visible under it; any other key
//! is written once. What is stored never changes, so that whoever holds a key holds the bytes.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{
    GetOptions, GetRange, GetResultPayload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    RenameOptions, RenameTargetMode,
};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use crate::config::BlobsUrl;

/// What is gathered before it is written: a blob up to this size is one write, a larger one goes in parts of it. This is also
/// the memory that one upload takes.
pub(crate) const PART_BYTES: usize = 1024 * 1024;

/// How much of a file is read at once for a download.
const READ_BYTES: usize = 128 * 1024;

/// The longest key: what file systems take as a name.
const KEY_BYTES_MAX: usize = 255;

/// The longest key that is written in one go: the store does so under the key with `#` and a number added.
const STAGED_KEY_BYTES_MAX: usize = KEY_BYTES_MAX - 16;

/// The folder of finished blobs, and in the addresses that name them.
const BLOBS: &str = "f";
/// The folder of uploads under way; emptied at start.
const UPLOADS: &str = "uploads";

/// A blob's name: a letter or digit, then letters, digits, `.`, `_`, `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BlobKey(String);

impl BlobKey {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the key claims to be the sha256 of its bytes.
    #[must_use]
    pub fn is_digest(&self) -> bool {
        self.0.len() == 64 && self.0.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    fn path(&self) -> ObjectPath {
        ObjectPath::from_iter([BLOBS, self.0.as_str()])
    }
}

impl fmt::Display for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BlobKey {
    type Err = BlobError;

    fn from_str(text: &str) -> Result<Self, BlobError> {
        let rest_is_plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
        let is_key = text.len() <= KEY_BYTES_MAX
            && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
            && text.bytes().all(rest_is_plain);
        if is_key { Ok(Self(text.to_owned())) } else { Err(BlobError::BadKey) }
    }
}

/// Why a blob could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The key has a character it may not have, or is too long.
    #[error("a blob key is 1 to {KEY_BYTES_MAX} letters, digits, `.`, `_` and `-`, and starts with a letter or digit")]
    BadKey,
    /// The bytes are not those that the key names. Nothing was stored.
    #[error("the key says sha256 {expected}, the bytes received have sha256 {found}; nothing was stored")]
    WrongDigest {
        /// The key.
        expected: String,
        /// The digest of what came.
        found: String,
    },
    /// The key is taken. What is stored stands.
    #[error("the key {0} is taken by other bytes, and blobs do not change; choose another key")]
    Taken(String),
    /// More bytes than allowed.
    #[error("the blob is larger than the limit of {0} bytes")]
    TooLarge(u64),
    /// The asked range lies beyond the blob's end.
    #[error("the range lies outside of the blob's {0} bytes")]
    NoSuchRange(u64),
    /// The sender stopped, or its bytes could not be read.
    #[error("the upload broke off")]
    BrokenOff(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The disk is full.
    #[error("the blob store is full")]
    Full(#[source] object_store::Error),
    /// The store failed.
    #[error("the blob store failed")]
    Store(#[source] object_store::Error),
    /// The store's folder could not be made or read.
    #[error("cannot use the blob folder {folder}")]
    Folder {
        /// The folder.
        folder: String,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
}

impl From<object_store::Error> for BlobError {
    fn from(error: object_store::Error) -> Self {
        if is_full(&error) { Self::Full(error) } else { Self::Store(error) }
    }
}

fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| matches!(io.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded))
        {
            return true;
        }
        next = error.source();
    }
    false
}

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

/// The blob store.
#[derive(Clone, Debug)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    bytes_max: u64,
    /// Makes the names of uploads differ between processes that share a folder by mistake.
    salt: u64,
    uploads: Arc<AtomicU64>,
}

impl Blobs {
    /// Opens the store and throws away uploads that a crash left unfinished.
    ///
    /// # Errors
    ///
    /// [`BlobError`] when the folder cannot be made or read.
    pub fn open(url: &BlobsUrl, bytes_max: u64) -> Result<Self, BlobError> {
        let BlobsUrl::Folder(folder) = url;
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
        let salt = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        Ok(Self { store: Arc::new(store), bytes_max, salt, uploads: Arc::default() })
    }

    /// Stores what `body` yields under `key`, on disk when this returns. Bytes become visible whole and checked, or not at all.
    ///
    /// # Errors
    ///
    /// [`BlobError`]; nothing of the upload is kept then.
    pub async fn put<E>(&self, key: &BlobKey, body: impl Stream<Item = Result<Bytes, E>>) -> Result<Stored, BlobError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut body = std::pin::pin!(body.map_err(|error| BlobError::BrokenOff(error.into())).fuse());
        let mut seen = Seen { hasher: Sha256::new(), bytes: 0, bytes_max: self.bytes_max };
        let mut head = BytesMut::new();
        while head.len() < PART_BYTES {
            let Some(bytes) = body.try_next().await? else {
                if key.0.len() > STAGED_KEY_BYTES_MAX {
                    break;
                }
                let digest = seen.digest(key)?;
                return self.put_small(key, head.freeze(), digest).await;
            };
            seen.take(&bytes)?;
            head.extend_from_slice(&bytes);
        }
        self.put_large(key, head, body, seen).await
    }

    async fn put_small(&self, key: &BlobKey, bytes: Bytes, digest: Sum) -> Result<Stored, BlobError> {
        let size = bytes.len() as u64;
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(&key.path(), PutPayload::from_bytes(bytes), create).await {
            Ok(_) => Ok(Stored::New),
            Err(object_store::Error::AlreadyExists { .. }) => self.compare(key, size, digest).await,
            Err(error) => Err(error.into()),
        }
    }

    /// The parts go to a place of their own; only after the last byte is checked does the key come to name them.
    async fn put_large(
        &self,
        key: &BlobKey,
        mut part: BytesMut,
        mut body: impl Stream<Item = Result<Bytes, BlobError>> + Unpin,
        mut seen: Seen,
    ) -> Result<Stored, BlobError> {
        let number = self.uploads.fetch_add(1, Ordering::Relaxed);
        let place = ObjectPath::from_iter([UPLOADS, format!("{:016x}-{number}", self.salt).as_str()]);
        // Dropped unfinished, by an error here or by a caller that gives up, it removes its file.
        let mut upload = self.store.put_multipart(&place).await?;
        while let Some(bytes) = body.try_next().await? {
            seen.take(&bytes)?;
            part.extend_from_slice(&bytes);
            if part.len() >= PART_BYTES {
                upload.put_part(PutPayload::from_bytes(part.split().freeze())).await?;
            }
        }
        let size = seen.bytes;
        let digest = seen.digest(key)?;
        if !part.is_empty() {
            upload.put_part(PutPayload::from_bytes(part.freeze())).await?;
        }
        upload.complete().await?;
        let create = RenameOptions { target_mode: RenameTargetMode::Create, ..RenameOptions::default() };
        match self.store.rename_opts(&place, &key.path(), create).await {
            Ok(()) => Ok(Stored::New),
            Err(error) => {
                if let Err(left) = self.store.delete(&place).await {
                    tracing::warn!(error = %left, "an upload's file could not be removed; it goes at the next start");
                }
                if matches!(error, object_store::Error::AlreadyExists { .. }) {
                    return self.compare(key, size, digest).await;
                }
                Err(error.into())
            }
        }
    }

    /// Decides between "the same again" and "taken" for a key that was there before.
    async fn compare(&self, key: &BlobKey, size: u64, digest: Sum) -> Result<Stored, BlobError> {
        if key.is_digest() {
            return Ok(Stored::Before);
        }
        let taken = || BlobError::Taken(key.to_string());
        let stored = self.get(key, None).await?.ok_or_else(taken)?;
        if stored.size != size {
            return Err(taken());
        }
        let hashed = stored
            .bytes
            .try_fold(Sha256::new(), |hasher, bytes| std::future::ready(Ok(hasher.chain_update(&bytes))))
            .await
            .map_err(read_failed)?;
        if <Sum>::from(hashed.finalize()) == digest { Ok(Stored::Before) } else { Err(taken()) }
    }

    /// Reads a blob, or a part of it; `None` when there is none of that key.
    ///
    /// # Errors
    ///
    /// [`BlobError::NoSuchRange`], or that the store failed.
    pub async fn get(&self, key: &BlobKey, part: Option<Part>) -> Result<Option<Blob>, BlobError> {
        let range = part.map(|part| match part {
            Part::Between(start, end) => GetRange::Bounded(start..end),
            Part::From(start) => GetRange::Offset(start),
            Part::Last(count) => GetRange::Suffix(count),
        });
        let got = match self.store.get_opts(&key.path(), GetOptions { range, ..GetOptions::default() }).await {
            Ok(got) => got,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => {
                // The store does not say which of its failures is a range beyond the end.
                let size = self.store.head(&key.path()).await.map(|meta| meta.size);
                return Err(match (part, size) {
                    (Some(part), Ok(size)) if part.is_beyond(size) => BlobError::NoSuchRange(size),
                    _ => error.into(),
                });
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

    /// Whether there is a blob of that key.
    ///
    /// # Errors
    ///
    /// [`BlobError`] when the store failed.
    pub async fn exists(&self, key: &BlobKey) -> Result<bool, BlobError> {
        match self.store.head(&key.path()).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn read_failed(source: std::io::Error) -> BlobError {
    BlobError::Store(object_store::Error::Generic { store: "blobs", source: Box::new(source) })
}

type Sum = [u8; 32];

/// What an upload has brought so far.
struct Seen {
    hasher: Sha256,
    bytes: u64,
    bytes_max: u64,
}

impl Seen {
    fn take(&mut self, bytes: &Bytes) -> Result<(), BlobError> {
        self.bytes += bytes.len() as u64;
        if self.bytes > self.bytes_max {
            return Err(BlobError::TooLarge(self.bytes_max));
        }
        self.hasher.update(bytes);
        Ok(())
    }

    /// The digest, when it is the one that `key` names or the key names none.
    fn digest(self, key: &BlobKey) -> Result<Sum, BlobError> {
        let sum: Sum = self.hasher.finalize().into();
        let found = protocol::id::Digest::from_bytes(sum).to_string();
        if key.is_digest() && key.as_str() != found {
            return Err(BlobError::WrongDigest { expected: key.to_string(), found });
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_plain_file_name() {
        for good in ["a", "0", "abc.tar.gz", "1730000000000-x7-my_file.txt", &"a".repeat(255), &"0".repeat(64)] {
            assert!(good.parse::<BlobKey>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "-x", "_x", "a/b", "../x", "a b", "a#1", "é", "a\0", &"a".repeat(256)] {
            assert!(bad.parse::<BlobKey>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let failed = |kind| {
            let source = Box::new(std::io::Error::from(kind));
            BlobError::from(object_store::Error::Generic { store: "test", source })
        };
        assert!(matches!(failed(std::io::ErrorKind::StorageFull), BlobError::Full(_)));
        assert!(matches!(failed(std::io::ErrorKind::PermissionDenied), BlobError::Store(_)));
    }

    #[test]
    fn any_64_hex_digits_claim_to_be_a_digest() {
        let key = |text: &str| text.parse::<BlobKey>().unwrap();
        assert!(key(&"a".repeat(64)).is_digest());
        assert!(key(&"A".repeat(64)).is_digest());
        assert!(!key(&"g".repeat(64)).is_digest());
        assert!(!key(&"a".repeat(63)).is_digest());
    }
}
