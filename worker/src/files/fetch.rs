//! What jobs name, out of the web onto the disk: hashed on the way, gone on with where it broke off, never whole in memory.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Response, StatusCode, Url};
use sha2::{Digest, Sha256};
use tempfile::TempPath;
use tokio::task::JoinHandle;

use super::cache::Cache;
use super::digest::BlobHash;
use super::transfer::{Pauses, Transfer, TransferError, address};
use super::web::{WebError, shown};

/// How much is written at once: a thread for each chunk off the network would cost more than the writing. One more of it is in
/// memory, while the next comes in.
const WRITE_BYTES: usize = 512 * 1024;
/// A try that got so much further does not count: a large file over a bad line comes in pieces.
const PROGRESS_BYTES: u64 = 1024 * 1024;
/// The longest tag of a version that is repeated to a server.
const ETAG_BYTES_MAX: usize = 256;

/// A file that was fetched whole, and goes away unless it is taken.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) file: File,
    pub(super) path: TempPath,
    pub(super) hash: BlobHash,
    pub(super) bytes: u64,
}

/// What is fetched.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    url: &'a str,
    parsed: &'a Url,
    expected: Option<BlobHash>,
    bytes_max: u64,
}

/// What has come so far.
struct Partial {
    sink: Sink,
    path: TempPath,
    bytes: u64,
    /// The version of which it is a part.
    etag: Option<HeaderValue>,
    was_resumed: bool,
}

struct Sink {
    file: File,
    hasher: Sha256,
}

impl Sink {
    fn write(mut self, chunks: Vec<Bytes>) -> std::io::Result<Self> {
        for chunk in chunks {
            self.hasher.update(&chunk);
            self.file.write_all(&chunk)?;
        }
        Ok(self)
    }
}

/// Where a try left off: with what came, if that can be gone on with.
enum Left {
    Whole(Partial),
    Broken(Option<Partial>, TransferError),
}

impl Transfer {
    /// Fetches `url` and refuses other bytes than `expected`, and more than `bytes_max`.
    pub(super) async fn fetch(
        &self,
        url: &str,
        expected: Option<BlobHash>,
        bytes_max: u64,
        cache: &Arc<Cache>,
    ) -> Result<Fetched, TransferError> {
        let parsed = address(url)?;
        let mut pauses = Pauses::default();
        let (mut partial, mut furthest, mut had_room_made) = (None, 0, false);
        loop {
            let error =
                match self.try_fetch(Wanted { url, parsed: &parsed, expected, bytes_max }, cache, partial.take()).await
                {
                    Left::Whole(whole) => match finish(url, whole, expected) {
                        // Perhaps the pieces were of two versions.
                        Err((error, true)) => error,
                        Err((error, false)) => return Err(error),
                        Ok(fetched) => return Ok(fetched),
                    },
                    Left::Broken(_, error) if error.is_disk_full() && !had_room_made && make_room(cache).await => {
                        had_room_made = true;
                        continue;
                    }
                    Left::Broken(rest, error) => {
                        if !error.is_passing() {
                            return Err(error);
                        }
                        let came = rest.as_ref().map_or(0, |rest| rest.bytes);
                        if came >= furthest + PROGRESS_BYTES {
                            (pauses, furthest) = (Pauses::default(), came);
                        }
                        partial = rest;
                        error
                    }
                };
            pauses.next(error, false).await?;
        }
    }

    async fn try_fetch(&self, wanted: Wanted<'_>, cache: &Arc<Cache>, partial: Option<Partial>) -> Left {
        let Wanted { url, parsed, expected, bytes_max } = wanted;
        // Only a part that is known to be of the same bytes is gone on with: by its digest, or by the server's word.
        let partial = partial.filter(|partial| partial.bytes > 0 && (expected.is_some() || partial.etag.is_some()));
        let mut headers = HeaderMap::new();
        if let Some(partial) = &partial
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", partial.bytes))
        {
            headers.insert(RANGE, range);
            if let Some(etag) = &partial.etag {
                headers.insert(IF_RANGE, etag.clone());
            }
        }
        let response = match self.web().get(parsed, None, &headers).await {
            Ok(response) => response,
            Err(source) => return Left::Broken(partial, TransferError::web(url, source)),
        };
        let status = response.status();
        let other_part = || {
            let why = "it has not the part that was asked for".to_owned();
            Left::Broken(None, TransferError::Unreachable { url: shown(url), why })
        };
        if partial.is_some() && status == StatusCode::RANGE_NOT_SATISFIABLE {
            return other_part();
        }
        if !status.is_success() {
            return Left::Broken(partial, TransferError::Status { url: shown(url), status });
        }
        let is_part = status == StatusCode::PARTIAL_CONTENT;
        let partial = match partial.filter(|partial| is_part && goes_on_at(&response, partial.bytes)) {
            Some(partial) => Partial { was_resumed: true, ..partial },
            None if is_part => return other_part(),
            None => match begun(cache, &response).await {
                Ok(partial) => partial,
                Err(source) => return Left::Broken(None, TransferError::disk(url, source)),
            },
        };
        receive(url, bytes_max, response, partial).await
    }
}

async fn make_room(cache: &Arc<Cache>) -> bool {
    let cache = Arc::clone(cache);
    tokio::task::spawn_blocking(move || cache.make_room()).await.unwrap_or(false)
}

async fn begun(cache: &Arc<Cache>, response: &Response) -> std::io::Result<Partial> {
    let etag = response.headers().get(ETAG).filter(|etag| is_strong(etag.as_bytes())).cloned();
    let cache = Arc::clone(cache);
    let made = tokio::task::spawn_blocking(move || cache.incoming()).await;
    let (file, path) = made.map_err(std::io::Error::other)??;
    Ok(Partial { sink: Sink { file, hasher: Sha256::new() }, path, bytes: 0, etag, was_resumed: false })
}

/// Whether a tag stands for exactly these bytes.
fn is_strong(etag: &[u8]) -> bool {
    etag.len() <= ETAG_BYTES_MAX && etag.starts_with(b"\"")
}

/// Whether a part begins where the last one ended.
fn goes_on_at(response: &Response, bytes: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse::<u64>().ok());
    first == Some(bytes)
}

/// Takes the body in. A piece is written while the next one comes.
async fn receive(url: &str, bytes_max: u64, mut response: Response, partial: Partial) -> Left {
    let Partial { sink, path, bytes, etag, was_resumed } = partial;
    let too_large = || Left::Broken(None, TransferError::TooLarge { url: shown(url), bytes_max });
    let rest = response.content_length();
    if rest.is_some_and(|rest| rest.saturating_add(bytes) > bytes_max) {
        return too_large();
    }
    let mut writing = Writing::Idle(sink);
    let (mut chunks, mut waiting, mut received) = (Vec::new(), 0, bytes);
    let broken = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                received += chunk.len() as u64;
                waiting += chunk.len();
                if received > bytes_max {
                    return too_large();
                }
                chunks.push(chunk);
            }
            Ok(None) => break None,
            Err(error) => break Some(TransferError::web(url, WebError::of(&error))),
        }
        if waiting >= WRITE_BYTES {
            writing = match writing.then(std::mem::take(&mut chunks)).await {
                Ok(writing) => writing,
                Err(source) => return Left::Broken(None, TransferError::disk(url, source)),
            };
            waiting = 0;
        }
    };
    let sink = async { writing.then(chunks).await?.done().await }.await;
    let sink = match sink {
        Ok(sink) => sink,
        Err(source) => return Left::Broken(None, TransferError::disk(url, source)),
    };
    let partial = Partial { sink, path, bytes: received, etag, was_resumed };
    match broken {
        None => Left::Whole(partial),
        Some(error) => Left::Broken(Some(partial), error),
    }
}

/// A file that is written to beside the runtime, one piece at a time.
enum Writing {
    Idle(Sink),
    Busy(JoinHandle<std::io::Result<Sink>>),
}

impl Writing {
    async fn then(self, chunks: Vec<Bytes>) -> std::io::Result<Self> {
        let sink = self.done().await?;
        if chunks.is_empty() {
            return Ok(Self::Idle(sink));
        }
        Ok(Self::Busy(tokio::task::spawn_blocking(move || sink.write(chunks))))
    }

    async fn done(self) -> std::io::Result<Sink> {
        match self {
            Self::Idle(sink) => Ok(sink),
            Self::Busy(task) => task.await.map_err(std::io::Error::other)?,
        }
    }
}

/// The whole file, if it has the digest; the error says whether fetching it anew may help.
fn finish(url: &str, whole: Partial, expected: Option<BlobHash>) -> Result<Fetched, (TransferError, bool)> {
    let hash = BlobHash::finish(whole.sink.hasher);
    match expected {
        Some(expected) if expected != hash => {
            let (expected, found) = (expected.to_string(), hash.to_string());
            Err((TransferError::Hash { url: shown(url), expected, found }, whole.was_resumed))
        }
        Some(_) | None => Ok(Fetched { file: whole.sink.file, path: whole.path, hash, bytes: whole.bytes }),
    }
}
