//! What a bucket is asked at start: whether we may use it, and whether it keeps clients to what they were allowed.

use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path as ObjectPath;
use object_store::signer::{HeaderName, HeaderValue, Method, SignedUrlOptions, Signer};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use super::redirect::CHECKSUM;
use super::sum::{Seen, Sum};
use crate::config::BucketUrl;

/// Where the questions are put.
const PROBE: &str = "probe";
/// How long addresses of the questions are good for, and how long their answers may take.
const TIME: Duration = Duration::from_secs(15);

const RIGHT: &[u8] = b"right";
const WRONG: &[u8] = b"wrong";

/// A bucket that is looked at.
pub(super) struct Probe<'a, Store: ?Sized> {
    pub(super) store: &'a Store,
    pub(super) signer: &'a dyn Signer,
    pub(super) url: &'a BucketUrl,
    /// What no other probe is called.
    pub(super) name: String,
}

impl<Store: ObjectStore> Probe<'_, Store> {
    fn path(&self, what: &str) -> ObjectPath {
        ObjectPath::from_iter([PROBE, format!("{}-{what}", self.name).as_str()])
    }

    /// Does once all that has to work.
    pub(super) async fn works(&self) -> Result<(), object_store::Error> {
        let (written, copied) = (self.path("written"), self.path("copied"));
        self.store.put(&written, PutPayload::from_static(RIGHT)).await?;
        self.store.copy(&written, &copied).await?;
        let read = self.store.get(&copied).await?.bytes().await?;
        let listed: Vec<_> = self.store.list(Some(&ObjectPath::from(PROBE))).try_collect().await?;
        let is_listed = listed.iter().any(|meta| meta.location == copied);
        self.store.delete(&written).await?;
        self.store.delete(&copied).await?;
        if read == RIGHT && is_listed {
            return Ok(());
        }
        let source = "what was written is not what is there".into();
        Err(object_store::Error::Generic { store: "S3", source })
    }
}

/// Whether an address that is signed with a checksum takes those bytes, no others, and nothing in their place. Not knowing
/// counts as no: what comes in past us is then checked by us.
pub(super) async fn is_strict<Store: ObjectStore>(
    probe: &Probe<'_, Store>,
    full_path: impl Fn(&ObjectPath) -> ObjectPath,
) -> bool {
    let (source, target) = (probe.path("source"), probe.path("signed"));
    let asked = async {
        probe.store.put(&source, PutPayload::from_static(WRONG)).await?;
        let sum = sum_of(RIGHT).to_base64();
        let sum = HeaderValue::from_str(&sum)?;
        let options = SignedUrlOptions::new().with_signed_header(CHECKSUM, sum.clone());
        let address = probe.signer.signed_url_opts(Method::PUT, &full_path(&target), TIME, &options).await?;
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(TIME).build()?;
        let put = |body: &'static [u8]| client.put(address.clone()).header(CHECKSUM, sum.clone()).body(body);
        let is_there = async || match probe.store.head(&target).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        };
        if put(WRONG).send().await?.status().is_success() || is_there().await? {
            return Ok("it takes other bytes than an address was signed for");
        }
        let copy = format!("/{}/{}", probe.url.name, full_path(&source));
        let copied = put(b"").header(COPY_SOURCE, copy).send().await?;
        if copied.status().is_success() || is_there().await? {
            tracing::warn!(
                "the blob store lets whoever holds a signed address copy any object that these credentials can read; give the broker a bucket and credentials of its own"
            );
            return Ok("it copies for whoever holds a signed address");
        }
        if !put(RIGHT).send().await?.status().is_success() || !is_there().await? {
            return Ok("it does not take checksums");
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>("")
    };
    let lacks = asked.await.unwrap_or_else(|error| {
        tracing::debug!(%error, "the blob store could not be asked what it checks");
        "it cannot be told what it checks"
    });
    for left in [&source, &target] {
        if let Err(error) = probe.store.delete(left).await {
            tracing::debug!(%error, "what the blob store was asked with could not be removed");
        }
    }
    if !lacks.is_empty() {
        tracing::info!(
            "uploads that go to the blob store past the broker are checked when they are first read: {lacks}"
        );
    }
    lacks.is_empty()
}

const COPY_SOURCE: HeaderName = HeaderName::from_static("x-amz-copy-source");

fn sum_of(bytes: &'static [u8]) -> Sum {
    let mut seen = Seen::new(u64::MAX);
    // It is far from being too large.
    let _ = seen.take(&Bytes::from_static(bytes));
    seen.end().1
}
