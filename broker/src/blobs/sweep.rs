//! Blobs that go: which are old, when each was last used, and removing them.
//!
//! A blob's last use is when it was stored, or, if later, when someone who wanted to store it was told that it is there: that is
//! a mark beside it, `used/<key>`, whose own time says when. Who names it is not known here.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStoreExt, PutPayload};
use protocol::id::{Digest, UnixMillis};

use super::error::BlobError;
use super::key::BlobKey;
use super::upload::STAGED_KEY_BYTES_MAX;
use super::{BLOBS, Blobs};
use crate::blob_uses::BlobUses;
use crate::clock;

/// The folder of the marks.
const USED: &str = "used";
/// Uses of a blob that was stored or marked less than this ago are not marked: that time says enough. So a blob may go this much
/// earlier than it could; it is less than notes in memory stand, so that nobody who was told just now loses it.
const MARKED_AFTER: Duration = Duration::from_secs(10 * 60);

/// Where a blob's mark is. A folder takes marks of long keys under a digest only.
fn mark(key: &BlobKey) -> ObjectPath {
    match key.as_str() {
        long if long.len() > STAGED_KEY_BYTES_MAX => {
            ObjectPath::from_iter([USED, Digest::of(long.as_bytes()).to_string().as_str()])
        }
        short => ObjectPath::from_iter([USED, short]),
    }
}

fn time_of(meta: &ObjectMeta) -> UnixMillis {
    UnixMillis(u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0))
}

impl Blobs {
    /// Who uses blobs this moment.
    pub(crate) const fn uses(&self) -> &BlobUses {
        &self.uses
    }

    /// Someone is about to be told whether a blob is there, or to store it.
    pub(crate) async fn used(&self, key: &BlobKey) {
        self.uses.used(key.as_str()).await;
    }

    /// Someone who wanted to store a blob was told that it is there: that counts as if it had been stored now.
    pub(crate) async fn mark_used(&self, key: &BlobKey) {
        if let Err(error) = self.try_mark(key, clock::now()).await {
            // It is safe as long as it is noted in memory, and after that from the moment that a job names it.
            tracing::warn!(%error, "a blob's use could not be marked");
        }
    }

    async fn try_mark(&self, key: &BlobKey, now: UnixMillis) -> Result<(), BlobError> {
        let marked_after_ms = u64::try_from(MARKED_AFTER.as_millis()).unwrap_or(u64::MAX);
        let is_old = |last: UnixMillis| now.since(last) > marked_after_ms;
        // Most are young, and cost one look.
        let stored = self.head(key).await?.as_ref().map(time_of);
        if stored.is_some_and(is_old) && self.marked(key).await?.is_none_or(is_old) {
            self.store.put(&mark(key), PutPayload::new()).await?;
        }
        Ok(())
    }

    async fn marked(&self, key: &BlobKey) -> Result<Option<UnixMillis>, BlobError> {
        match self.store.head(&mark(key)).await {
            Ok(meta) => Ok(Some(time_of(&meta))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// When a blob was last used; `None` when there is no such blob.
    async fn last_use(&self, key: &BlobKey) -> Result<Option<UnixMillis>, BlobError> {
        let Some(stored) = self.head(key).await? else { return Ok(None) };
        Ok(self.marked(key).await?.max(Some(time_of(&stored))))
    }

    /// Blobs that were last stored before `before`, in the order of their keys, after `after`, at most `count_max`.
    pub(crate) async fn older(
        &self,
        before: UnixMillis,
        after: Option<&str>,
        count_max: usize,
    ) -> Result<Vec<BlobKey>, BlobError> {
        // Not every store lists in order, so that the first ones are gathered from all.
        let mut first = BTreeMap::new();
        let mut listed = self.store.list(Some(&ObjectPath::from(BLOBS)));
        while let Some(meta) = listed.try_next().await? {
            let Some(name) = meta.location.filename() else { continue };
            let Ok(key) = name.parse::<BlobKey>() else { continue };
            if time_of(&meta) < before && after.is_none_or(|after| name > after) {
                first.insert(name.to_owned(), key);
                if first.len() > count_max {
                    first.pop_last();
                }
            }
        }
        Ok(first.into_values().collect())
    }

    /// Removes a blob that nothing names, unless it was used since `before` or is in use; says whether it is gone.
    ///
    /// The uses are looked at last, and from then on whoever comes for the blob waits until it is gone: so nobody is told that
    /// it is there and then finds it missing.
    pub(crate) async fn remove_unused(&self, key: &BlobKey, before: UnixMillis) -> Result<bool, BlobError> {
        let Some(_removing) = self.uses.remove(key.as_str()) else { return Ok(false) };
        if self.last_use(key).await?.is_none_or(|last| last >= before) {
            return Ok(false);
        }
        // The mark last: a crash in between leaves it, which the next upload of that key makes good use of.
        for path in [key.path(), mark(key)] {
            match self.store.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Removes marks whose blobs are gone: a crash may have left them. (A long key's looks like one; it is old, and so of no use.)
    pub(crate) async fn remove_stray_marks(&self, before: UnixMillis) -> Result<(), BlobError> {
        let mut listed = self.store.list(Some(&ObjectPath::from(USED))).boxed();
        while let Some(meta) = listed.try_next().await? {
            let key = meta.location.filename().and_then(|name| name.parse::<BlobKey>().ok());
            if let Some(key) = key.filter(|_| time_of(&meta) < before)
                && self.head(&key).await?.is_none()
            {
                self.store.delete(&meta.location).await?;
            }
        }
        Ok(())
    }
}
