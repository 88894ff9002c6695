//! Uploads that went to the bucket past us: how they become blobs.
//!
//! An upload lies below [`STAGED`], under its key and a name that nobody else was given, and whoever was sent there can write
//! it again while the address is good. So it is never served from there. Who asks for its key first has it checked: the store
//! copies it to a place that no address leads to, we read that copy once, and if it is what the key says the store copies it on
//! to where blobs are. What is read is what becomes the blob, whatever happens to the upload meanwhile, and no comparing of
//! ETags (which are MD5) or times is needed. That a blob is there is the verdict; there is no other record of it to be forged.
//!
//! A key that is no digest has no wrong bytes: the earliest upload becomes the blob, later ones are dropped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStoreExt};
use protocol::id::UnixMillis;
use tokio::sync::{Semaphore, watch};

use super::bucket::Bucket;
use super::redirect::ADDRESS_TIME;
use super::sum::Seen;
use super::{BlobError, BlobKey, Blobs, read_failed};
use crate::clock;

/// Where uploads go that come past us.
pub(super) const STAGED: &str = "incoming";
/// Where they are while they are read.
pub(super) const CHECKED: &str = "checking";

/// How many are read at once: each takes a share of the network and a core.
const READ_AT_ONCE_MAX: usize = 4;
/// How many keys may wait for that. Who asks for more is told to come back.
const WAITING_MAX: usize = 1024;
/// How long one who asks is kept waiting: less than clients are patient for. The check goes on without them.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many uploads of one key are looked at: anyone can add some that are wrong, but has to upload each.
const LISTED_MAX: usize = 1000;
/// How many of them are read before the next key has its turn.
const TRIED_MAX: usize = 16;
/// How many keys may fail in one look at all: one that always does must not keep the others from their turn.
const FAILED_MAX: usize = 16;
/// How often uploads are looked for that nobody has asked for.
const SWEEP_EVERY: Duration = Duration::from_secs(10 * 60);
/// An upload is left alone for as long as its address is good, and the time that the upload itself may take.
const LEFT_ALONE: Duration = Duration::from_secs(2 * ADDRESS_TIME.as_secs());

/// What has come of a check.
#[derive(Clone, Debug)]
enum Verdict {
    /// The blob is there.
    There,
    /// There is none.
    Nothing,
    /// There were other bytes, with this digest.
    Wrong(String),
    /// The store failed.
    Failed(String),
}

/// The checks under way. Whoever asks for a key that is being checked waits for the same check.
#[derive(Debug)]
pub(super) struct Checks {
    running: Mutex<HashMap<BlobKey, watch::Receiver<Option<Verdict>>>>,
    reads: Semaphore,
}

impl Default for Checks {
    fn default() -> Self {
        Self { running: Mutex::default(), reads: Semaphore::new(READ_AT_ONCE_MAX) }
    }
}

impl Blobs {
    /// Makes a blob of an upload, if there is one for `key`; answers whether the blob is there now. Not for keys that have one.
    pub(super) async fn settle(&self, key: &BlobKey) -> Result<bool, BlobError> {
        let Some(bucket) = &self.bucket else { return Ok(false) };
        let checking = || BlobError::Checking(key.to_string());
        let joined = bucket.checks.running.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
        let mut told = match joined {
            Some(told) => told,
            None if self.staged(key, 1).await?.is_empty() => {
                // Its check may have ended since the blob was looked for.
                return Ok(self.head(key).await?.is_some());
            }
            None => self.check_behind(bucket, key).ok_or_else(checking)?,
        };
        let told = tokio::time::timeout(PATIENCE, told.wait_for(Option::is_some)).await.map_err(|_| checking())?;
        match told.map_err(|_| checking())?.clone() {
            Some(Verdict::There) => Ok(true),
            Some(Verdict::Nothing) => Ok(false),
            Some(Verdict::Wrong(found)) => Err(BlobError::Removed { found }),
            Some(Verdict::Failed(text)) => Err(read_failed(std::io::Error::other(text))),
            None => Err(checking()),
        }
    }

    /// Begins a check that goes on when nobody waits for it any more; `None` when too many are waiting.
    fn check_behind(&self, bucket: &Arc<Bucket>, key: &BlobKey) -> Option<watch::Receiver<Option<Verdict>>> {
        let mut running = bucket.checks.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = running.get(key) {
            return Some(told.clone());
        }
        if running.len() >= WAITING_MAX {
            return None;
        }
        let (tell, told) = watch::channel(None);
        running.insert(key.clone(), told.clone());
        let (blobs, check) = (self.clone(), Running { bucket: Arc::clone(bucket), key: key.clone() });
        tokio::spawn(async move {
            let verdict = blobs.check(&check.bucket, &check.key).await.unwrap_or_else(|error| {
                tracing::warn!(error = &error as &dyn std::error::Error, "an upload could not be checked");
                Verdict::Failed(error.to_string())
            });
            drop(check);
            // Nobody may be waiting any more.
            let _ = tell.send(Some(verdict));
        });
        Some(told)
    }

    async fn check(&self, bucket: &Bucket, key: &BlobKey) -> Result<Verdict, BlobError> {
        let Ok(_turn) = bucket.checks.reads.acquire().await else { return Ok(Verdict::Nothing) };
        let mut staged = self.staged(key, LISTED_MAX).await?;
        if self.head(key).await?.is_some() {
            self.remove(staged).await;
            return Ok(Verdict::There);
        }
        // Of other keys the first stands. Of a digest most are the same; where somebody adds wrong ones, the latest is the most
        // likely to be right, because whoever asks has just uploaded it.
        staged.sort_by(|a, b| (a.last_modified, &a.location).cmp(&(b.last_modified, &b.location)));
        if key.is_digest() {
            staged.reverse();
        }
        let mut verdict = Verdict::Nothing;
        for upload in staged.iter().take(TRIED_MAX) {
            let tried =
                if key.is_digest() { self.try_digest(key, upload).await } else { self.try_other(key, upload).await };
            match tried? {
                Verdict::There => {
                    self.remove(staged).await;
                    return Ok(Verdict::There);
                }
                Verdict::Wrong(found) => {
                    tracing::warn!("an upload to a blob key that is a digest had other bytes and was removed");
                    verdict = Verdict::Wrong(found);
                }
                Verdict::Nothing | Verdict::Failed(_) => {}
            }
            self.remove(vec![upload.clone()]).await;
        }
        Ok(verdict)
    }

    async fn try_digest(&self, key: &BlobKey, upload: &ObjectMeta) -> Result<Verdict, BlobError> {
        if upload.size > self.bytes_max {
            return Ok(Verdict::Nothing);
        }
        let copy = ObjectPath::from_iter([CHECKED, self.fresh_name().as_str()]);
        match self.store.copy(&upload.location, &copy).await {
            Ok(()) => {}
            Err(object_store::Error::NotFound { .. }) => return Ok(Verdict::Nothing),
            Err(error) => return Err(error.into()),
        }
        let judged = self.judge(key, &copy).await;
        let done = match judged {
            Ok(Verdict::There) => {
                self.store.copy(&copy, &key.path()).await.map(|()| Verdict::There).map_err(Into::into)
            }
            other => other,
        };
        if let Err(error) = self.store.delete(&copy).await {
            tracing::warn!(%error, "the copy that an upload was checked by could not be removed; it goes at the next start");
        }
        done
    }

    /// Reads the bytes that would be the blob.
    async fn judge(&self, key: &BlobKey, copy: &ObjectPath) -> Result<Verdict, BlobError> {
        let Some(mut blob) = self.read(copy, None).await? else { return Ok(Verdict::Nothing) };
        let mut seen = Seen::new(self.bytes_max);
        while let Some(bytes) = blob.bytes.try_next().await.map_err(read_failed)? {
            if seen.take(&bytes).is_err() {
                return Ok(Verdict::Nothing);
            }
        }
        Ok(match key.allows(seen.end().1) {
            Ok(()) => Verdict::There,
            Err(BlobError::WrongDigest { found, .. }) => Verdict::Wrong(found),
            Err(other) => return Err(other),
        })
    }

    async fn try_other(&self, key: &BlobKey, upload: &ObjectMeta) -> Result<Verdict, BlobError> {
        let Some(bucket) = self.bucket.as_ref().filter(|_| upload.size <= self.bytes_max) else {
            return Ok(Verdict::Nothing);
        };
        let _held = bucket.names.hold(key).await;
        if self.head(key).await?.is_some() {
            return Ok(Verdict::There);
        }
        match self.store.copy(&upload.location, &key.path()).await {
            Ok(()) => Ok(Verdict::There),
            Err(object_store::Error::NotFound { .. }) => Ok(Verdict::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// The uploads of a key, as many as `max`.
    async fn staged(&self, key: &BlobKey, max: usize) -> Result<Vec<ObjectMeta>, BlobError> {
        let folder = ObjectPath::from_iter([STAGED, key.as_str()]);
        Ok(self.store.list(Some(&folder)).take(max).try_collect().await?)
    }

    async fn remove(&self, uploads: Vec<ObjectMeta>) {
        let paths = futures_util::stream::iter(uploads.into_iter().map(|upload| Ok(upload.location)));
        let removed: Result<Vec<_>, _> = self.store.delete_stream(paths.boxed()).try_collect().await;
        if let Err(error) = removed {
            tracing::warn!(%error, "uploads that are done with could not be removed from the bucket; they are looked at again");
        }
    }

    /// Settles all uploads that were there before `before`, one key after the other: blobs of those that are right, nothing of
    /// the others. So that what nobody reads does not stay unchecked, and what is wrong does not stay.
    ///
    /// # Errors
    ///
    /// [`BlobError`] when the store failed.
    pub async fn settle_uploads(&self, before: UnixMillis) -> Result<(), BlobError> {
        if self.bucket.is_none() {
            return Ok(());
        }
        let mut listed = self.store.list(Some(&ObjectPath::from(STAGED)));
        let (mut last, mut failed) = (None, 0);
        while let Some(upload) = listed.try_next().await? {
            let is_old = u64::try_from(upload.last_modified.timestamp_millis()).is_ok_and(|at| at < before.0);
            let key = upload.location.parts().nth(1).and_then(|part| part.as_ref().parse::<BlobKey>().ok());
            let Some(key) = key.filter(|key| is_old && last.as_ref() != Some(key)) else { continue };
            match self.settle(&key).await {
                Ok(_) | Err(BlobError::Removed { .. } | BlobError::Checking(_)) => {}
                // It was told by its check; the next look tries it again.
                Err(_) if failed < FAILED_MAX => failed += 1,
                Err(error) => return Err(error),
            }
            // A blob that is there is not looked at again.
            last = Some(key);
        }
        Ok(())
    }

    /// Settles what nobody asks for, until the last of those who use the store is gone.
    pub(super) fn settle_from_time_to_time(&self) {
        let Some(bucket) = &self.bucket else { return };
        let (bucket, mut blobs) = (Arc::downgrade(bucket), self.clone());
        blobs.bucket = None;
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                let Some(bucket) = Weak::upgrade(&bucket) else { return };
                let held = Self { bucket: Some(bucket), ..blobs.clone() };
                let left_alone = u64::try_from(LEFT_ALONE.as_millis()).unwrap_or(u64::MAX);
                let before = UnixMillis(clock::now().0.saturating_sub(left_alone));
                if let Err(error) = held.settle_uploads(before).await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "uploads to the bucket could not be settled"
                    );
                }
            }
        });
    }
}

/// A check that others can join until this is dropped.
struct Running {
    bucket: Arc<Bucket>,
    key: BlobKey,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.bucket.checks.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
