//! HTTP: blobs in and out, with bounded retries. Redirects of an upload keep it an upload.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, LOCATION};
use reqwest::{Client, Response, StatusCode, Url};
use sha2::{Digest, Sha256};

use super::cache::Cache;
use super::digest::BlobHash;

/// Connecting takes no longer than this, or the next try has a better chance.
const CONNECT: Duration = Duration::from_secs(30);
/// A peer that sends nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// Uploads end within this, also when the storage never answers: 50 GiB at 120 Mbit/s.
const UPLOAD: Duration = Duration::from_secs(60 * 60);
/// As many redirects as browsers of old followed; more is a loop.
const REDIRECTS_MAX: usize = 10;
/// A try, and then again after 0.2, 0.4, 0.8 … seconds, 10 at most: a broker's restart is waited for, a minute in all.
const TRIES: u32 = 11;
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// The header with which uploads say their SHA-256, as S3 has it.
const CHECKSUM: &str = "x-amz-checksum-sha256";
/// The largest input: what the broker stores at most.
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
    #[error("{url} is larger than the {BLOB_BYTES_MAX} bytes allowed")]
    TooLarge { url: String },
    #[error("{url} redirects too often")]
    Redirects { url: String },
    #[error("{url} has SHA-256 {found}, not {expected} as the job says")]
    Hash { url: String, expected: String, found: String },
    #[error("cannot store {url}: {source}")]
    Disk { url: String, source: std::io::Error },
}

impl TransferError {
    /// Whether another try may help.
    fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429),
            // Its address was good for a while only, and each try asks for another one.
            Self::Storage { status, .. } => {
                status.is_server_error() || matches!(status.as_u16(), 403 | 408 | 409 | 425 | 429)
            }
            Self::Address { .. }
            | Self::TooLarge { .. }
            | Self::Redirects { .. }
            | Self::Hash { .. }
            | Self::Disk { .. } => false,
        }
    }
}

/// The clients. Clones share connections.
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    /// Through the proxy that the environment names, if it names one.
    outward: Clients,
    /// To this machine itself, which no proxy reaches.
    inward: Clients,
}

#[derive(Clone, Debug)]
struct Clients {
    following: Client,
    plain: Client,
}

impl Transfer {
    pub(super) fn new(tls: &rustls::ClientConfig) -> reqwest::Result<Self> {
        let client = |redirects, is_inward| {
            let builder = Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .redirect(redirects)
                .connect_timeout(CONNECT)
                .read_timeout(SILENCE);
            if is_inward { builder.no_proxy() } else { builder }.build()
        };
        let clients = |is_inward| {
            Ok(Clients {
                following: client(reqwest::redirect::Policy::limited(REDIRECTS_MAX), is_inward)?,
                plain: client(reqwest::redirect::Policy::none(), is_inward)?,
            })
        };
        Ok(Self { outward: clients(false)?, inward: clients(true)? })
    }

    fn clients(&self, url: &Url) -> &Clients {
        let host = url.host_str().unwrap_or_default();
        let is_loopback = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if is_loopback || host == "localhost" { &self.inward } else { &self.outward }
    }

    /// Fetches `url` into `cache` and says under which hash; refuses other bytes than `expected`.
    pub(super) async fn fetch(
        &self,
        url: &str,
        expected: Option<BlobHash>,
        cache: &Arc<Cache>,
    ) -> Result<PathBuf, TransferError> {
        let parsed = address(url)?;
        retried(|| self.fetch_once(url, parsed.clone(), expected, cache)).await
    }

    async fn fetch_once(
        &self,
        url: &str,
        parsed: Url,
        expected: Option<BlobHash>,
        cache: &Arc<Cache>,
    ) -> Result<PathBuf, TransferError> {
        let disk = |source| TransferError::Disk { url: shown(url), source };
        // A compressed body would be hashed as it travels.
        let request = self.clients(&parsed).following.get(parsed).header(ACCEPT_ENCODING, "identity");
        let mut response = checked(url, request.send().await)?;
        if response.content_length().is_some_and(|bytes| bytes > BLOB_BYTES_MAX) {
            return Err(TransferError::TooLarge { url: shown(url) });
        }
        let (mut file, path) = cache.incoming().map_err(disk)?;
        let (mut hasher, mut bytes) = (Sha256::new(), 0);
        while let Some(chunk) = response.chunk().await.map_err(|error| unreachable_words(url, &error))? {
            bytes += chunk.len() as u64;
            if bytes > BLOB_BYTES_MAX {
                return Err(TransferError::TooLarge { url: shown(url) });
            }
            hasher.update(&chunk);
            // Into the page cache; a thread for each chunk would cost more.
            file.write_all(&chunk).map_err(disk)?;
        }
        let found = BlobHash::finish(hasher);
        if let Some(expected) = expected
            && expected != found
        {
            let (expected, found) = (expected.to_string(), found.to_string());
            return Err(TransferError::Hash { url: shown(url), expected, found });
        }
        let cache = Arc::clone(cache);
        let stored = tokio::task::spawn_blocking(move || cache.store(&file, path, found)).await;
        stored.map_err(std::io::Error::other).and_then(|stored| stored).map_err(disk)
    }

    /// Whether there is a blob at `url` already. Not knowing counts as no.
    pub(super) async fn exists(&self, url: &str) -> bool {
        let Ok(parsed) = address(&format!("{url}/exists")) else { return false };
        let answer = self.clients(&parsed).following.get(parsed).send().await;
        answer.is_ok_and(|response| response.status() == StatusCode::OK)
    }

    /// Puts `bytes` bytes to `url`, from a file that `open` opens anew for each try. Says beforehand that they have `hash`, so
    /// that storage can be told to take no others.
    pub(super) async fn upload(
        &self,
        url: &str,
        hash: BlobHash,
        bytes: u64,
        open: impl Fn() -> std::io::Result<File>,
    ) -> Result<(), TransferError> {
        let parsed = address(url)?;
        retried(|| self.upload_once(url, parsed.clone(), hash, bytes, &open)).await
    }

    async fn upload_once(
        &self,
        url: &str,
        mut target: Url,
        hash: BlobHash,
        bytes: u64,
        open: &impl Fn() -> std::io::Result<File>,
    ) -> Result<(), TransferError> {
        for hop in 0..=REDIRECTS_MAX {
            let file = open().map_err(|source| TransferError::Disk { url: shown(url), source })?;
            let body = reqwest::Body::from(tokio::fs::File::from_std(file));
            // The length is said, because storage behind a redirect takes no chunked bodies.
            let put = self.clients(&target).plain.put(target.clone());
            let put = if takes_checksum(&target) { put.header(CHECKSUM, hash.to_base64()) } else { put };
            let request = put.header(CONTENT_LENGTH, bytes).timeout(UPLOAD).body(body);
            let response = request.send().await.map_err(|error| unreachable_words(url, &error))?;
            let status = response.status();
            if !matches!(status.as_u16(), 301 | 302 | 307 | 308) {
                return match checked(url, Ok(response)) {
                    Err(TransferError::Status { url, status }) if hop > 0 => {
                        Err(TransferError::Storage { url, status })
                    }
                    done => done.map(drop),
                };
            }
            let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            target = location
                .and_then(|location| target.join(location).ok())
                .filter(|next| matches!(next.scheme(), "http" | "https"))
                .ok_or_else(|| TransferError::Status { url: shown(url), status })?;
        }
        Err(TransferError::Redirects { url: shown(url) })
    }
}

/// Whether an upload there may say its checksum: where an address is signed for some headers, others of this kind are refused.
fn takes_checksum(target: &Url) -> bool {
    let signed = target.query_pairs().find(|(name, _)| name.eq_ignore_ascii_case("x-amz-signedheaders"));
    signed.is_none_or(|(_, headers)| headers.split(';').any(|header| header == CHECKSUM))
}

fn address(url: &str) -> Result<Url, TransferError> {
    let refuse = |why: String| TransferError::Address { url: shown(url), why };
    let parsed = Url::parse(url).map_err(|error| refuse(error.to_string()))?;
    match parsed.scheme() {
        "http" | "https" => Ok(parsed),
        other => Err(refuse(format!("{other}: is not fetched"))),
    }
}

/// An address without what may be a secret in it: user, password, query.
fn shown(url: &str) -> String {
    const CHARS_MAX: usize = 300;
    match Url::parse(url) {
        Ok(mut url) => {
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.set_query(None);
            url.set_fragment(None);
            url.as_str().chars().take(CHARS_MAX).collect()
        }
        Err(_) => format!("{:?}", url.chars().take(CHARS_MAX).collect::<String>()),
    }
}

fn checked(url: &str, answer: reqwest::Result<Response>) -> Result<Response, TransferError> {
    let response = answer.map_err(|error| unreachable_words(url, &error))?;
    if response.status().is_success() {
        Ok(response)
    } else {
        Err(TransferError::Status { url: shown(url), status: response.status() })
    }
}

fn unreachable_words(url: &str, error: &reqwest::Error) -> TransferError {
    if error.is_redirect() {
        return TransferError::Redirects { url: shown(url) };
    }
    // The error's own text repeats the address, secrets included; what caused it does not.
    let cause = std::error::Error::source(error).map(crate::outcome::with_sources);
    TransferError::Unreachable { url: shown(url), why: cause.unwrap_or_else(|| "the connection failed".to_owned()) }
}

async fn retried<T, F: Future<Output = Result<T, TransferError>>>(
    mut attempt: impl FnMut() -> F,
) -> Result<T, TransferError> {
    let mut pause = RETRY_FIRST;
    for _ in 1..TRIES {
        match attempt().await {
            Err(error) if error.is_passing() => tracing::debug!("{error}; trying again in {} ms", pause.as_millis()),
            done => return done,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
    attempt().await
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

    #[test]
    fn what_is_shown_of_an_address_holds_no_secret() {
        assert_eq!(shown("https://user:pw@h.example/a?X-Signature=s#f"), "https://h.example/a");
        assert!(address("file:///etc/passwd").is_err());
        assert!(address("nonsense").is_err());
    }
}
