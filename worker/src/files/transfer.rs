//! Blobs to the broker and from anywhere, with bounded retries and a bounded number at once. Redirects of an upload keep it an
//! upload.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt;
use reqwest::header::{CONTENT_LENGTH, HeaderMap, LOCATION};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::io::ReaderStream;

use super::digest::BlobHash;
use super::web::{REDIRECTS_MAX, Web, WebError, shown};
use crate::config::ApiAddress;

/// Connecting takes no longer than this, or the next try has a better chance.
const CONNECT: Duration = Duration::from_secs(30);
/// A peer that sends nothing for so long, or takes nothing of an upload, is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// An upload that was taken whole is answered within this: storage may copy 50 GiB from one place to another first.
const SETTLED: Duration = Duration::from_secs(15 * 60);
/// A try, and then again after 0.2, 0.4, 0.8 … seconds, 10 at most: a broker's restart is waited for, a minute in all.
const TRIES: u32 = 11;
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long the outputs of a run that has ended wait for a broker that cannot be reached: an upgrade of it takes less, and a
/// program may have run for days for them.
const BROKER_RETURN: Duration = Duration::from_secs(10 * 60);
/// How much of a file is read at once for an upload: 4 KiB, the library's own measure, is a thread's turn each.
const READ_BYTES: usize = 128 * 1024;
/// How many transfers each way all runs of a worker have together, besides the one that each run always has. More of them make
/// nothing faster on one line, and each takes a socket and up to a megabyte.
const SHARED: usize = 12;
/// How many transfers one run has at once: enough to fill a line with small files.
pub(super) const PARALLEL: usize = 4;
/// The header with which uploads say their SHA-256, as S3 has it.
const CHECKSUM: &str = "x-amz-checksum-sha256";
/// The largest input and output: what the broker stores at most.
pub(super) const BLOB_BYTES_MAX: u64 = 50 << 30;

/// Why a blob did not get across.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    #[error("{url} is no address: {why}")]
    Address { url: String, why: String },
    #[error("{url} answered {status}")]
    Status { url: String, status: StatusCode },
    #[error("the storage that {url} leads to answered {status}")]
    Storage { url: String, status: StatusCode },
    #[error("{url} cannot be reached: {why}")]
    Unreachable { url: String, why: String },
    #[error("{url} is not fetched: {source}")]
    Refused { url: String, source: WebError },
    #[error("{url} is larger than the {bytes_max} bytes allowed")]
    TooLarge { url: String, bytes_max: u64 },
    #[error("{url} has SHA-256 {found}, not {expected} as the job says")]
    Hash { url: String, expected: String, found: String },
    #[error("cannot store {url}: {source}")]
    Disk { url: String, source: std::io::Error },
    #[error("it cannot be read: {source}")]
    Read { source: std::io::Error },
    #[error("it changes while it is read")]
    Changed,
}

impl TransferError {
    pub(super) fn web(url: &str, error: WebError) -> Self {
        match error {
            WebError::Unreachable { why } => Self::Unreachable { url: shown(url), why },
            source @ (WebError::Scheme { .. } | WebError::NoAddress | WebError::Private | WebError::Redirects) => {
                Self::Refused { url: shown(url), source }
            }
        }
    }

    pub(super) fn disk(url: &str, source: std::io::Error) -> Self {
        Self::Disk { url: shown(url), source }
    }

    pub(super) fn is_disk_full(&self) -> bool {
        matches!(self, Self::Disk { source, .. }
            if matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded))
    }

    /// Whether another try may help.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429),
            // Its address was good for a while only, and each try asks for another one.
            Self::Storage { status, .. } => {
                status.is_server_error() || matches!(status.as_u16(), 403 | 408 | 409 | 425 | 429)
            }
            Self::Address { .. }
            | Self::Refused { .. }
            | Self::TooLarge { .. }
            | Self::Hash { .. }
            | Self::Disk { .. }
            | Self::Read { .. }
            | Self::Changed => false,
        }
    }

    /// Whether it is the broker that is not there, and not one file that it does not take.
    fn is_away(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } | Self::Storage { status, .. } => matches!(status.as_u16(), 502..=504),
            Self::Address { .. }
            | Self::Refused { .. }
            | Self::TooLarge { .. }
            | Self::Hash { .. }
            | Self::Disk { .. }
            | Self::Read { .. }
            | Self::Changed => false,
        }
    }
}

/// When the next try comes, and when no other.
#[derive(Debug)]
pub(super) struct Pauses {
    tries: u32,
    pause: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { tries: 1, pause: PAUSE_FIRST }
    }
}

impl Pauses {
    /// Waits for the next try, or gives up with the error of the last one. `patient`: there is a next one whatever the number.
    pub(super) async fn next(&mut self, error: TransferError, patient: bool) -> Result<(), TransferError> {
        let Some(pause) = self.pause(patient) else { return Err(error) };
        tracing::debug!("{error}; trying again in {} ms", pause.as_millis());
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn pause(&mut self, patient: bool) -> Option<Duration> {
        if self.tries >= TRIES && !patient {
            return None;
        }
        let pause = self.pause;
        self.tries = self.tries.saturating_add(1);
        self.pause = (pause * 2).min(PAUSE_MAX);
        Some(pause)
    }
}

/// How long a run's uploads wait for a broker that is away, all of them together.
#[derive(Debug)]
pub(super) struct Patience {
    started: Instant,
    /// When something got through last, in milliseconds from the start.
    through_ms: AtomicU64,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), through_ms: AtomicU64::new(0) }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn got_through(&self) {
        self.got_through_at(self.elapsed_ms());
    }

    fn got_through_at(&self, now_ms: u64) {
        self.through_ms.store(now_ms, Ordering::Relaxed);
    }

    fn is_left(&self) -> bool {
        self.is_left_at(self.elapsed_ms())
    }

    fn is_left_at(&self, now_ms: u64) -> bool {
        let silent = now_ms.saturating_sub(self.through_ms.load(Ordering::Relaxed));
        u128::from(silent) < BROKER_RETURN.as_millis()
    }
}

/// The transfers of one run, one way.
pub(super) struct Rooms<'a> {
    own: Semaphore,
    shared: &'a Semaphore,
}

impl<'a> Rooms<'a> {
    fn new(shared: &'a Semaphore) -> Self {
        Self { own: Semaphore::new(1), shared }
    }

    /// Waits for room for one more. Each run gets on with one, whatever the others wait for.
    pub(super) async fn room(&self) -> Option<SemaphorePermit<'_>> {
        tokio::select! {
            biased;
            own = self.own.acquire() => own.ok(),
            shared = self.shared.acquire() => shared.ok(),
        }
    }
}

/// The clients. Clones share connections and the number of transfers.
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    web: Web,
    uploads: Uploads,
    fetching: Arc<Semaphore>,
    sending: Arc<Semaphore>,
}

/// Clients without a limit on how long an answer may take, because it comes after the body.
#[derive(Clone, Debug)]
struct Uploads {
    outward: Client,
    inward: Client,
}

/// What is uploaded.
pub(super) struct Upload<'a, F> {
    pub(super) url: &'a str,
    pub(super) hash: BlobHash,
    pub(super) bytes: u64,
    /// Opens the file anew for each try.
    pub(super) open: F,
    pub(super) patience: &'a Patience,
}

impl Transfer {
    pub(super) fn new(
        tls: &rustls::ClientConfig,
        [api, public_api]: [&ApiAddress; 2],
        fetches_private: bool,
    ) -> reqwest::Result<Self> {
        let builder = || {
            Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT)
        };
        Ok(Self {
            web: Web::new(tls, api, fetches_private, SILENCE)?.knowing(public_api),
            uploads: Uploads { outward: builder().build()?, inward: builder().no_proxy().build()? },
            fetching: Arc::new(Semaphore::new(SHARED)),
            sending: Arc::new(Semaphore::new(SHARED)),
        })
    }

    pub(super) fn web(&self) -> &Web {
        &self.web
    }

    pub(super) fn fetching(&self) -> Rooms<'_> {
        Rooms::new(&self.fetching)
    }

    pub(super) fn sending(&self) -> Rooms<'_> {
        Rooms::new(&self.sending)
    }

    /// Whether there is a blob at `url` already. Not knowing counts as no.
    async fn exists(&self, url: &str) -> bool {
        let Ok(parsed) = address(&format!("{url}/exists")) else { return false };
        let answer = self.web.get(&parsed, None, &HeaderMap::new()).await;
        answer.is_ok_and(|response| response.status() == StatusCode::OK)
    }

    /// Sees to it that a blob is at its address: what is there already is not sent again, also when it got there in a try whose
    /// answer was lost.
    pub(super) async fn upload<F>(&self, upload: Upload<'_, F>) -> Result<(), TransferError>
    where
        F: Fn() -> Result<File, TransferError>,
    {
        let parsed = address(upload.url)?;
        let mut pauses = Pauses::default();
        loop {
            if self.exists(upload.url).await {
                upload.patience.got_through();
                return Ok(());
            }
            match self.upload_once(&upload, parsed.clone()).await {
                Ok(()) => {
                    upload.patience.got_through();
                    return Ok(());
                }
                Err(error) if error.is_passing() => {
                    let patient = error.is_away() && upload.patience.is_left();
                    pauses.next(error, patient).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Says beforehand which hash the bytes have, so that storage can be told to take no others.
    async fn upload_once<F>(&self, upload: &Upload<'_, F>, mut target: Url) -> Result<(), TransferError>
    where
        F: Fn() -> Result<File, TransferError>,
    {
        let Upload { url, hash, bytes, .. } = *upload;
        for hop in 0..=REDIRECTS_MAX {
            let file = tokio::fs::File::from_std((upload.open)()?);
            let client = if is_loopback(&target) { &self.uploads.inward } else { &self.uploads.outward };
            let put = client.put(target.clone());
            let put = if takes_checksum(&target) { put.header(CHECKSUM, hash.to_base64()) } else { put };
            // The length is said, because storage behind a redirect takes no chunked bodies.
            let put = put.header(CONTENT_LENGTH, bytes);
            let response = watched(url, put, file, bytes).await?;
            let status = response.status();
            if !matches!(status.as_u16(), 301 | 302 | 307 | 308) {
                return match status {
                    status if status.is_success() => Ok(()),
                    status if hop > 0 => Err(TransferError::Storage { url: shown(url), status }),
                    status => Err(TransferError::Status { url: shown(url), status }),
                };
            }
            let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            target = location
                .and_then(|location| target.join(location).ok())
                .filter(|next| matches!(next.scheme(), "http" | "https"))
                .ok_or_else(|| TransferError::Status { url: shown(url), status })?;
        }
        Err(TransferError::web(url, WebError::Redirects))
    }
}

/// Sends a file, as long as it is taken.
async fn watched(
    url: &str,
    put: reqwest::RequestBuilder,
    file: tokio::fs::File,
    bytes: u64,
) -> Result<Response, TransferError> {
    let taken = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&taken);
    // No more than was said, should the file have grown.
    let file = tokio::io::AsyncReadExt::take(file, bytes);
    let body = ReaderStream::with_capacity(file, READ_BYTES).inspect_ok(move |chunk| {
        count.fetch_add(chunk.len() as u64, Ordering::Relaxed);
    });
    let request = put.body(reqwest::Body::wrap_stream(body)).send();
    tokio::pin!(request);
    let mut before = 0;
    let mut silent_since = Instant::now();
    loop {
        let now = taken.load(Ordering::Relaxed);
        if now != before {
            (before, silent_since) = (now, Instant::now());
        }
        let patience = if before >= bytes { SETTLED } else { SILENCE };
        let look = (silent_since + patience).min(Instant::now() + SILENCE / 2);
        tokio::select! {
            answer = &mut request => {
                return answer.map_err(|error| TransferError::web(url, WebError::of(&error)));
            }
            () = tokio::time::sleep_until(look) => {}
        }
        if taken.load(Ordering::Relaxed) == before && silent_since.elapsed() >= patience {
            let why = format!("it took nothing for {} s", patience.as_secs());
            return Err(TransferError::Unreachable { url: shown(url), why });
        }
    }
}

/// Whether an upload there may say its checksum: where an address is signed for some headers, others of this kind are refused.
fn takes_checksum(target: &Url) -> bool {
    let signed = target.query_pairs().find(|(name, _)| name.eq_ignore_ascii_case("x-amz-signedheaders"));
    signed.is_none_or(|(_, headers)| headers.split(';').any(|header| header == CHECKSUM))
}

/// Whether an address is of this machine, which no proxy reaches.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let is_ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    is_ip || host == "localhost"
}

pub(super) fn address(url: &str) -> Result<Url, TransferError> {
    Url::parse(url).map_err(|error| TransferError::Address { url: shown(url), why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_address_is_given_no_checksum_that_it_was_not_signed_for() {
        let takes = |url: &str| takes_checksum(&url.parse().unwrap());
        assert!(takes("http://h/f/x"));
        assert!(takes("http://h/f/x?X-Amz-SignedHeaders=host%3Bx-amz-checksum-sha256&X-Amz-Signature=s"));
        assert!(!takes("http://h/f/x?X-Amz-SignedHeaders=host&X-Amz-Signature=s"));
    }

    /// How often there is a try, and how long all that takes.
    fn tries(is_patient_at: impl Fn(u64) -> bool) -> (u32, u64) {
        let (mut pauses, mut now_ms) = (Pauses::default(), 0);
        while let Some(pause) = pauses.pause(is_patient_at(now_ms)) {
            now_ms += u64::try_from(pause.as_millis()).unwrap();
        }
        (pauses.tries, now_ms)
    }

    #[test]
    fn a_broker_that_is_away_is_waited_for_and_not_for_ever() {
        let patience = Patience::new();
        let (number, ms) = tries(|now_ms| patience.is_left_at(now_ms));
        assert!((60..80).contains(&number) && (600_000..620_000).contains(&ms), "{number} tries in {ms} ms");
        assert!(!patience.is_left_at(ms));
        patience.got_through_at(ms);
        assert!(patience.is_left_at(ms), "what got through begins it anew");
        let (number, ms) = tries(|_| false);
        assert!(number == TRIES && (40_000..70_000).contains(&ms), "{number} tries in {ms} ms");
    }

    #[tokio::test]
    async fn each_run_gets_on_with_one_transfer_whatever_the_others_do() {
        let shared = Semaphore::new(2);
        let (greedy, other) = (Rooms::new(&shared), Rooms::new(&shared));
        let held = [greedy.room().await, greedy.room().await, greedy.room().await];
        assert!(held.iter().all(Option::is_some));
        let full = tokio::time::timeout(Duration::from_millis(1), greedy.room()).await;
        assert!(full.is_err());
        assert!(other.room().await.is_some());
    }
}
