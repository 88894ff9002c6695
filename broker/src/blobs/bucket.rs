//! A bucket of an S3 store as a blob store.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::signer::Signer;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::names::Names;
use super::probe::{self, Probe};
use super::settle::{CHECKED, Checks};
use super::{BlobError, Blobs};
use crate::config::BucketUrl;

/// What is gathered before it is written: S3 takes parts of 5 MiB and more, and this many fewer requests.
pub(super) const PART_BYTES: usize = 8 * 1024 * 1024;

/// The most parts that S3 takes for one object.
const PARTS_MAX: u64 = 10_000;

/// A bucket that does not answer at all is given up after this.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// How long one request may be silent: the store copies up to 5 GiB before it answers, or takes a part of an upload.
const SILENCE: Duration = Duration::from_secs(120);

/// What a store refuses for a moment is asked for again, but not for longer than whoever waits for it has patience.
const RETRY: RetryConfig = RetryConfig {
    backoff: BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(5), base: 2.0 },
    max_retries: 6,
    retry_timeout: Duration::from_secs(20),
};

/// The region when none is said, as Amazon's own tools have it.
const REGION_DEFAULT: &str = "us-east-1";

/// What a bucket has besides the store.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Signs addresses as clients reach the store.
    pub(super) signer: Arc<dyn Signer>,
    prefix: ObjectPath,
    /// Whether clients may be sent there.
    pub(super) redirect: bool,
    /// Whether the store itself refuses bytes that have another checksum than an address was signed for.
    pub(super) is_strict: bool,
    pub(super) names: Names,
    pub(super) checks: Checks,
}

impl Bucket {
    /// The object's name as the store has it.
    pub(super) fn full_path(&self, path: &ObjectPath) -> ObjectPath {
        ObjectPath::from_iter(self.prefix.parts().chain(path.parts()))
    }
}

impl Blobs {
    pub(super) async fn open_bucket(url: &BucketUrl, bytes_max: u64) -> Result<Self, BlobError> {
        let s3 = build(url, url.endpoint.as_deref()).map_err(|error| told(url, error))?;
        let prefix = ObjectPath::from(url.prefix.as_str());
        let store: Arc<dyn ObjectStore> = if url.prefix.is_empty() {
            Arc::new(s3.clone())
        } else {
            Arc::new(PrefixStore::new(s3.clone(), prefix.clone()))
        };
        let signer: Arc<dyn Signer> = match &url.public_endpoint {
            Some(public) => Arc::new(build(url, Some(public)).map_err(|error| told(url, error))?),
            None => Arc::new(s3.clone()),
        };
        let bucket = Bucket {
            signer,
            prefix,
            redirect: url.redirect,
            is_strict: false,
            names: Names::default(),
            checks: Checks::default(),
        };
        let mut blobs = Self::new(store, None, bytes_max.min(PARTS_MAX * PART_BYTES as u64));
        let probe = Probe { store: &blobs.store, signer: &s3, url, name: blobs.fresh_name() };
        probe.works().await.map_err(|error| told(url, error))?;
        let is_strict = url.redirect && probe::is_strict(&probe, |path| bucket.full_path(path)).await;
        blobs.bucket = Some(Arc::new(Bucket { is_strict, ..bucket }));
        // What a crash left half checked is checked anew when it is asked for.
        let left = blobs.store.list(Some(&ObjectPath::from(CHECKED))).map_ok(|meta| meta.location);
        let removed: Result<Vec<_>, _> = blobs.store.delete_stream(Box::pin(left)).try_collect().await;
        removed.map_err(|error| told(url, error))?;
        blobs.settle_from_time_to_time();
        Ok(blobs)
    }
}

fn build(url: &BucketUrl, endpoint: Option<&str>) -> Result<AmazonS3, object_store::Error> {
    let options = ClientOptions::new()
        .with_allow_http(endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")))
        .with_connect_timeout(CONNECT_TIME)
        .with_timeout_disabled()
        .with_read_timeout(SILENCE);
    let mut builder = AmazonS3Builder::new().with_region(REGION_DEFAULT);
    for (name, value) in url.access.iter() {
        builder = builder.with_config(name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>()?, value);
    }
    builder = builder.with_bucket_name(&url.name).with_client_options(options).with_retry(RETRY);
    if let Some(region) = &url.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint).with_virtual_hosted_style_request(false);
    }
    builder.build()
}

/// What a person can do about a bucket that cannot be used.
fn told(url: &BucketUrl, source: object_store::Error) -> BlobError {
    let text = source.to_string();
    let is = |code: &str| text.contains(code);
    let is_forbidden =
        matches!(source, object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. });
    let problem = if !url.access.has_credentials() {
        "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    } else if is("NoSuchBucket") {
        "there is no such bucket; make it, or correct its name in --blobs"
    } else if is("SignatureDoesNotMatch") || is("InvalidAccessKeyId") {
        "the store does not know these credentials; correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and the region"
    } else if is_forbidden {
        "the store does not allow it; the credentials must be allowed to put, get, delete and list objects there"
    } else if is("PermanentRedirect") || is("AuthorizationHeaderMalformed") {
        "it is in another region; say which one with ?region= in --blobs"
    } else {
        "the store does not answer as it should; check the endpoint and the region in --blobs, and that it is up"
    };
    let place = url.endpoint.as_deref().map_or(String::new(), |endpoint| format!(" at {endpoint}"));
    BlobError::Bucket { bucket: format!("{}{place}", url.name), problem: problem.to_owned(), source }
}
