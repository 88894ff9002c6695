//! Addresses at which clients reach the bucket themselves.
//!
//! Nobody is given an address to write a blob at, save one that the store itself holds to the key's digest: what is uploaded
//! past us goes to a place of its own below [`STAGED`], see [`super::settle`].

use std::time::Duration;

use object_store::path::Path as ObjectPath;
use object_store::signer::{HeaderName, HeaderValue, Method, SignedUrlOptions};

use super::bucket::Bucket;
use super::settle::STAGED;
use super::sum::Sum;
use super::{BlobError, BlobKey, Blobs};

/// The header with which an uploader says what it will upload, as S3 reads it: base64 of the sha256.
pub(crate) const CHECKSUM: HeaderName = HeaderName::from_static("x-amz-checksum-sha256");

/// How long an address is good for. It is used at once; an hour is for a slow upload that begins late. Longer would only serve
/// whoever finds it in a log: an address is a key.
pub(super) const ADDRESS_TIME: Duration = Duration::from_secs(60 * 60);

/// The most bytes that S3 takes in one request.
const ONE_PUT_BYTES_MAX: u64 = 5 << 30;

/// Which way an upload goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WayIn {
    /// Through us.
    Here,
    /// To this address.
    At(String),
    /// Nowhere: the same bytes are there.
    Stored,
}

/// What a download shall look like.
#[derive(Clone, Copy, Debug)]
pub struct Download<'a> {
    /// Its type.
    pub content_type: &'a str,
    /// What to do with it: the header's whole value.
    pub disposition: &'a str,
    /// Whether only its headers are asked for.
    pub is_head: bool,
}

impl Blobs {
    /// Whether clients can be sent to the store.
    #[must_use]
    pub fn redirects(&self) -> bool {
        self.bucket.as_ref().is_some_and(|bucket| bucket.redirect)
    }

    /// Which way an upload to `key` goes whose sender promises `sum` or nothing, and says how long it is or nothing.
    ///
    /// # Errors
    ///
    /// [`BlobError::WrongDigest`] when the promise is not what the key says, or that the store failed.
    pub async fn way_in(&self, key: &BlobKey, sum: Option<Sum>, length: Option<u64>) -> Result<WayIn, BlobError> {
        sum.map_or(Ok(()), |sum| key.allows(sum))?;
        let Some(bucket) = self.bucket.as_ref().filter(|bucket| bucket.redirect) else { return Ok(WayIn::Here) };
        self.used(key).await;
        let is_there = if key.is_digest() { self.head(key).await?.is_some() } else { self.is_there(key).await? };
        if is_there {
            // Of other keys only the bytes can tell whether they are the same again.
            if !key.is_digest() || sum.is_none() {
                return Ok(WayIn::Here);
            }
            self.mark_used(key).await;
            return Ok(WayIn::Stored);
        }
        if length.is_some_and(|length| length > ONE_PUT_BYTES_MAX) || (key.is_digest() && !key.names_bytes()) {
            return Ok(WayIn::Here);
        }
        let path = if bucket.is_strict && key.is_digest() && sum.is_some() {
            key.path()
        } else {
            ObjectPath::from_iter([STAGED, key.as_str(), self.fresh_name().as_str()])
        };
        let mut options = SignedUrlOptions::new();
        if let Some(sum) = sum.and_then(|sum| HeaderValue::from_str(&sum.to_base64()).ok()) {
            options = options.with_signed_header(CHECKSUM, sum);
        }
        bucket.sign(Method::PUT, &path, &options).await.map(WayIn::At)
    }

    /// Where a blob can be had, when clients can be sent to the store; `None` when there is none of that key.
    ///
    /// # Errors
    ///
    /// [`BlobError`] when the store failed.
    pub async fn way_out(&self, key: &BlobKey, download: Download<'_>) -> Result<Option<String>, BlobError> {
        let Some(bucket) = self.bucket.as_ref().filter(|bucket| bucket.redirect) else { return Ok(None) };
        if !self.is_there(key).await? {
            return Ok(None);
        }
        // What the uploader said about these to the store is overruled.
        let options = SignedUrlOptions::new().with_query([
            ("response-content-type", download.content_type),
            ("response-content-disposition", download.disposition),
        ]);
        let method = if download.is_head { Method::HEAD } else { Method::GET };
        bucket.sign(method, &key.path(), &options).await.map(Some)
    }
}

impl Bucket {
    async fn sign(&self, method: Method, path: &ObjectPath, options: &SignedUrlOptions) -> Result<String, BlobError> {
        let signed = self.signer.signed_url_opts(method, &self.full_path(path), ADDRESS_TIME, options).await?;
        Ok(signed.into())
    }
}
