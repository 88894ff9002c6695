//! Archives over HTTP, into files without names: each fetch is a new one, so that nothing broken or old is ever built from.
//! Which addresses are asked is [`Web`]'s word.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use protocol::native::LogStep;
use reqwest::header::HeaderMap;
use reqwest::{StatusCode, Url};
use tokio::io::AsyncWriteExt;

use super::log::BuildLog;
use super::source::{Login, shown};
use crate::files::web::{Web, WebError};

/// A server that sends nothing for so long is gone. Some pack the archive before they send its first byte.
pub(super) const SILENCE: Duration = Duration::from_secs(120);
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
    #[error("{url}: {source}")]
    Web { url: String, source: WebError },
    #[error("{url} has more than the {bytes_max} bytes that this worker allows")]
    TooLarge { url: String, bytes_max: u64 },
    #[error("cannot store {url}: {source}")]
    Disk { url: String, source: std::io::Error },
}

impl FetchError {
    fn is_passing(&self) -> bool {
        match self {
            Self::Web { source, .. } => matches!(source, WebError::Unreachable { .. }),
            Self::Status { status, .. } => status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429),
            Self::Nowhere { .. } | Self::TooLarge { .. } | Self::Disk { .. } => false,
        }
    }
}

/// Fetches. Clones share connections.
#[derive(Clone, Debug)]
pub(super) struct Fetcher(pub(super) Web);

impl Fetcher {
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
        let web = |source| FetchError::Web { url: name(), source };
        let login = login.map(|login| (login.user.as_str(), login.password.as_deref()));
        let mut response = self.0.get(url, login, &HeaderMap::new()).await.map_err(web)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status { url: name(), status: response.status() });
        }
        let too_large = || FetchError::TooLarge { url: name(), bytes_max };
        if response.content_length().is_some_and(|bytes| bytes > bytes_max) {
            return Err(too_large());
        }
        let mut file = tokio::fs::File::from_std(tempfile::tempfile_in(folder).map_err(disk)?);
        let mut bytes = 0;
        while let Some(chunk) = response.chunk().await.map_err(|error| web(WebError::of(&error)))? {
            bytes += chunk.len() as u64;
            if bytes > bytes_max {
                return Err(too_large());
            }
            file.write_all(&chunk).await.map_err(disk)?;
        }
        file.flush().await.map_err(disk)?;
        let mut file = file.into_std().await;
        file.seek(SeekFrom::Start(0)).map_err(disk)?;
        Ok((file, bytes))
    }
}
