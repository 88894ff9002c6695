//! Bytes that come through us on their way into the store.

use std::pin::pin;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{MultipartUpload, ObjectStoreExt, PutMode, PutOptions, PutPayload, RenameOptions, RenameTargetMode};

use super::error::BlobError;
use super::key::{BlobKey, KEY_BYTES_MAX};
use super::sum::{Seen, Sum};
use super::{Blobs, Stored, UPLOADS};

/// The longest key that a folder takes in one go: the store does so under the key with `#` and a number added.
pub(super) const STAGED_KEY_BYTES_MAX: usize = KEY_BYTES_MAX - 16;

impl Blobs {
    /// Stores what `body` yields under `key`, on disk when this returns. Bytes become visible whole and checked, or not at all.
    ///
    /// # Errors
    ///
    /// [`BlobError`]; nothing of the upload is kept then.
    pub async fn put<E>(&self, key: &BlobKey, body: impl Stream<Item = Result<Bytes, E>>) -> Result<Stored, BlobError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stored = self.put_unmarked(key, body).await?;
        if stored == Stored::Before {
            self.mark_used(key).await;
        }
        Ok(stored)
    }

    async fn put_unmarked<E>(
        &self,
        key: &BlobKey,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<Stored, BlobError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.used(key).await;
        // However long it takes: it may be found to be there before.
        let in_use = |_: &Bytes| self.uses().note(key.as_str());
        let mut body = pin!(body.map_err(|error| BlobError::BrokenOff(error.into())).inspect_ok(in_use).fuse());
        let mut seen = Seen::new(self.bytes_max);
        let mut head = BytesMut::new();
        while head.len() < self.part_bytes() {
            let Some(bytes) = body.try_next().await? else {
                if self.bucket.is_none() && key.as_str().len() > STAGED_KEY_BYTES_MAX {
                    break;
                }
                let (_, sum) = seen.end();
                key.allows(sum)?;
                return self.put_small(key, head.freeze(), sum).await;
            };
            seen.take(&bytes)?;
            head.extend_from_slice(&bytes);
        }
        match &self.bucket {
            None => self.put_large(key, head, body, seen).await,
            Some(_) => self.put_parts(key, head, body, seen).await,
        }
    }

    async fn put_small(&self, key: &BlobKey, bytes: Bytes, sum: Sum) -> Result<Stored, BlobError> {
        let size = bytes.len() as u64;
        self.used(key).await;
        let (_held, mode) = match &self.bucket {
            None => (None, PutMode::Create),
            // Not every store knows conditions; whoever holds the name needs none.
            Some(bucket) => (Some(bucket.names.hold(key).await), PutMode::Overwrite),
        };
        if mode == PutMode::Overwrite && self.head(key).await?.is_some() {
            return self.compare(key, size, sum).await;
        }
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.store.put_opts(&key.path(), PutPayload::from_bytes(bytes), options).await {
            Ok(_) => Ok(Stored::New),
            Err(object_store::Error::AlreadyExists { .. }) => self.compare(key, size, sum).await,
            Err(error) => Err(error.into()),
        }
    }

    /// Into a folder: the parts go to a place of their own; only after the last byte is checked does the key come to name them.
    async fn put_large(
        &self,
        key: &BlobKey,
        mut part: BytesMut,
        mut body: impl Stream<Item = Result<Bytes, BlobError>> + Unpin,
        mut seen: Seen,
    ) -> Result<Stored, BlobError> {
        let place = ObjectPath::from_iter([UPLOADS, self.fresh_name().as_str()]);
        // Dropped unfinished, by an error here or by a caller that gives up, it removes its file.
        let mut upload = self.store.put_multipart(&place).await?;
        while let Some(bytes) = body.try_next().await? {
            seen.take(&bytes)?;
            part.extend_from_slice(&bytes);
            if part.len() >= self.part_bytes() {
                upload.put_part(PutPayload::from_bytes(part.split().freeze())).await?;
            }
        }
        let (size, sum) = seen.end();
        key.allows(sum)?;
        if !part.is_empty() {
            upload.put_part(PutPayload::from_bytes(part.freeze())).await?;
        }
        upload.complete().await?;
        self.used(key).await;
        let create = RenameOptions { target_mode: RenameTargetMode::Create, ..RenameOptions::default() };
        match self.store.rename_opts(&place, &key.path(), create).await {
            Ok(()) => Ok(Stored::New),
            Err(error) => {
                if let Err(left) = self.store.delete(&place).await {
                    tracing::warn!(error = %left, "an upload's file could not be removed; it goes at the next start");
                }
                if matches!(error, object_store::Error::AlreadyExists { .. }) {
                    return self.compare(key, size, sum).await;
                }
                Err(error.into())
            }
        }
    }

    /// Into a bucket: parts are no object before they are put together, which happens after the last byte is checked.
    async fn put_parts(
        &self,
        key: &BlobKey,
        mut part: BytesMut,
        mut body: impl Stream<Item = Result<Bytes, BlobError>> + Unpin,
        mut seen: Seen,
    ) -> Result<Stored, BlobError> {
        let Some(bucket) = &self.bucket else { return Err(BlobError::BadKey) };
        self.used(key).await;
        let mut parts = match self.head(key).await? {
            // Only to be compared.
            Some(_) => None,
            None => Some(Parts::begin(self, key).await?),
        };
        while let Some(bytes) = body.try_next().await? {
            seen.take(&bytes)?;
            part.extend_from_slice(&bytes);
            while part.len() >= self.part_bytes() {
                let full = part.split_to(self.part_bytes()).freeze();
                if let Some(parts) = &mut parts {
                    parts.put(full).await?;
                }
            }
        }
        let (size, sum) = seen.end();
        key.allows(sum)?;
        self.used(key).await;
        let Some(mut parts) = parts else { return self.compare(key, size, sum).await };
        if !part.is_empty() {
            parts.put(part.freeze()).await?;
        }
        let _held = bucket.names.hold(key).await;
        if self.head(key).await?.is_some() {
            return self.compare(key, size, sum).await;
        }
        parts.complete().await?;
        Ok(Stored::New)
    }

    /// Decides between "the same again" and "taken" for a key that was there before.
    async fn compare(&self, key: &BlobKey, size: u64, sum: Sum) -> Result<Stored, BlobError> {
        if key.is_digest() {
            return Ok(Stored::Before);
        }
        let taken = || BlobError::Taken(key.to_string());
        let stored = self.read(&key.path(), None).await?.ok_or_else(taken)?;
        if stored.size == size && stored.sum().await? == sum { Ok(Stored::Before) } else { Err(taken()) }
    }

    /// A name that no other upload has.
    pub(super) fn fresh_name(&self) -> String {
        format!("{:016x}-{}", self.salt, self.uploads.fetch_add(1, Ordering::Relaxed))
    }
}

/// An upload in parts, which the store is told to forget when it does not come to its end.
struct Parts(Option<Box<dyn MultipartUpload>>);

impl Parts {
    async fn begin(blobs: &Blobs, key: &BlobKey) -> Result<Self, BlobError> {
        Ok(Self(Some(blobs.store.put_multipart(&key.path()).await?)))
    }

    async fn put(&mut self, bytes: Bytes) -> Result<(), BlobError> {
        if let Some(upload) = &mut self.0 {
            upload.put_part(PutPayload::from_bytes(bytes)).await?;
        }
        Ok(())
    }

    async fn complete(mut self) -> Result<(), BlobError> {
        if let Some(upload) = &mut self.0 {
            upload.complete().await?;
        }
        // There is nothing left to be forgotten.
        self.0 = None;
        Ok(())
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        if let Some(mut upload) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move {
                if let Err(error) = upload.abort().await {
                    tracing::warn!(%error, "parts of an upload that broke off could not be removed from the bucket");
                }
            });
        }
    }
}
