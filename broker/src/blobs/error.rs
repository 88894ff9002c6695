//! What can go wrong with blobs.

use super::key::KEY_BYTES_MAX;

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
    #[error("the blob is larger than the limit of {0} bytes; split it, or raise the broker's limit `blob`")]
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
    /// What was uploaded past us under a digest were other bytes. They are gone.
    #[error("File not found: what was uploaded under this key had sha256 {found} and was removed")]
    Removed {
        /// The digest of what was there.
        found: String,
    },
    /// What was uploaded past us is being read, to see whether it is what its key says.
    #[error("the upload under the key {0} is being checked; try again in a moment")]
    Checking(String),
    /// The bucket cannot be used.
    #[error("cannot use the bucket {bucket}: {problem}")]
    Bucket {
        /// Its name, and where it is.
        bucket: String,
        /// What to do about it.
        problem: String,
        /// What the store says.
        #[source]
        source: object_store::Error,
    },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let failed = |kind| {
            let source = Box::new(std::io::Error::from(kind));
            BlobError::from(object_store::Error::Generic { store: "test", source })
        };
        assert!(matches!(failed(std::io::ErrorKind::StorageFull), BlobError::Full(_)));
        assert!(matches!(failed(std::io::ErrorKind::PermissionDenied), BlobError::Store(_)));
    }
}
