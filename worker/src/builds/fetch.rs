//! Archives over HTTP, into files without names: each fetch is a new one, so that nothing broken or old is ever built from.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use protocol::native::LogStep;
use reqwest::header::ACCEPT_ENCODING;
use reqwest::{Client, Response, StatusCode, Url};

use super::log::BuildLog;
use super::source::{Login, shown};

/// Connecting takes no longer than this, or the next try has a better chance.
const CONNECT: Duration = Duration::from_secs(30);
/// A server that sends nothing for so long is gone. Some pack the archive before they send its first byte.
const SILENCE: Duration = Duration::from_secs(120);
const REDIRECTS_MAX: usize = 10;
/// How often one address is tried when that may help, with [`PAUSE`] between.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_secs(2);

/// Why there are no files.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("none of {tried} is there; a private repository needs a token, https://TOKEN@github.com/…")]
    Nowhere { tried: String },
    #[error("{url} answered {status}")]
    Status { url: String, status: StatusCode },
    #[error("{url} cannot be reached: {why}")]
    Unreachable { url: String, why: String },
    #[error("{url} has more than the {bytes_max} bytes that this worker allows")]
    TooLarge { url: String, bytes_max: u64 },
    #[error("cannot store {url}: {source}")]
    Disk { url: String, source: std::io::Error },
}

impl FetchError {
    fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429),
            Self::Nowhere { .. } | Self::TooLarge { .. } | Self::Disk { .. } => false,
        }
    }
}

/// The clients: through the proxy that the environment names, and to this machine itself, which no proxy reaches.
#[derive(Clone, Debug)]
pub(super) struct Fetcher {
    outward: Client,
    inward: Client,
}

impl Fetcher {
    pub(super) fn new(tls: &rustls::ClientConfig) -> reqwest::Result<Self> {
        let builder = || {
            Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .redirect(reqwest::redirect::Policy::limited(REDIRECTS_MAX))
                .connect_timeout(CONNECT)
                .read_timeout(SILENCE)
        };
        Ok(Self { outward: builder().build()?, inward: builder().no_proxy().build()? })
    }

    /// Fetches the first of `urls` that is there, into a file in `folder`.
    pub(super) async fn first_of(
        &self,
        urls: &[Url],
        login: Option<&Login>,
        folder: &Path,
        bytes_max: u64,
        log: &BuildLog,
    ) -> Result<(File, u64), FetchError> {
        for url in urls {
            let name = shown(url.as_str());
            log.line(LogStep::Clone, &format!("fetching {name}"), false);
            match self.fetch(url, login, folder, bytes_max).await {
                Ok((file, bytes)) => {
                    log.line(LogStep::Clone, &format!("fetched {bytes} bytes"), false);
                    return Ok((file, bytes));
                }
                Err(FetchError::Status { status: StatusCode::NOT_FOUND, .. }) if urls.len() > 1 => {
                    log.line(LogStep::Clone, &format!("{name} is not there"), false);
                }
                Err(error) => return Err(error),
            }
        }
        let tried: Vec<String> = urls.iter().map(|url| shown(url.as_str())).collect();
        Err(FetchError::Nowhere { tried: tried.join(", ") })
    }

    async fn fetch(
        &self,
        url: &Url,
        login: Option<&Login>,
        folder: &Path,
        bytes_max: u64,
    ) -> Result<(File, u64), FetchError> {
        for _ in 1..TRIES {
            match self.fetch_once(url, login, folder, bytes_max).await {
                Err(error) if error.is_passing() => tracing::debug!("{error}; trying again"),
                done => return done,
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.fetch_once(url, login, folder, bytes_max).await
    }

    async fn fetch_once(
        &self,
        url: &Url,
        login: Option<&Login>,
        folder: &Path,
        bytes_max: u64,
    ) -> Result<(File, u64), FetchError> {
        let name = || shown(url.as_str());
        let disk = |source| FetchError::Disk { url: name(), source };
        let host = url.host_str().unwrap_or_default();
        let is_loopback = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let client = if is_loopback || host == "localhost" { &self.inward } else { &self.outward };
        // The bytes as they are: an archive that is packed for the way only would be told apart wrongly.
        let mut request = client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some(Login { user, password }) = login {
            request = request.basic_auth(user, password.as_ref());
        }
        let unreachable = |error: &reqwest::Error| {
            // The error's own text repeats the address, secrets included; what caused it does not.
            let cause = std::error::Error::source(error).map(crate::outcome::with_sources);
            FetchError::Unreachable { url: name(), why: cause.unwrap_or_else(|| "the connection failed".to_owned()) }
        };
        let mut response: Response = request.send().await.map_err(|error| unreachable(&error))?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status { url: name(), status: response.status() });
        }
        let too_large = || FetchError::TooLarge { url: name(), bytes_max };
        if response.content_length().is_some_and(|bytes| bytes > bytes_max) {
            return Err(too_large());
        }
        let (mut file, mut bytes) = (tempfile::tempfile_in(folder).map_err(disk)?, 0);
        while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&error))? {
            bytes += chunk.len() as u64;
            if bytes > bytes_max {
                return Err(too_large());
            }
            // Into the page cache; a thread for each chunk would cost more.
            file.write_all(&chunk).map_err(disk)?;
        }
        file.seek(SeekFrom::Start(0)).map_err(disk)?;
        Ok((file, bytes))
    }
}
