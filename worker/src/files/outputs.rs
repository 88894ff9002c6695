//! Outputs: what a run left, into data refs: small files whole, others as blobs at the broker. One that cannot be had is named, and
//! the rest is there.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::Files;
use super::digest::BlobHash;
use super::transfer::{PARALLEL, Patience, Rooms, TransferError, Upload};
use super::walk::{self, Output, WalkError};
use crate::brief::brief;
use crate::logs::json_cost;
use crate::outcome::Outputs;

/// Files up to here travel inside the result; the limit is the original's.
const INLINE_BYTES_MAX: u64 = 200;
/// The most bytes of JSON that names and refs may come to: with the log it fits one frame of the socket.
const JSON_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What a ref costs besides the address of the broker's blobs.
const REF_BYTES: usize = 120;
/// How often a file that changes while it is read is read anew.
const READS_MAX: u32 = 3;
/// How many failures are told one by one.
const TOLD_MAX: usize = 5;
/// Longer than any process lives: where nothing else limits it.
const NO_LIMIT: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Outputs, and what there is to say about the others.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) outputs: Outputs,
    /// Lines about what is no output.
    pub(crate) skipped: Vec<String>,
    /// Lines about outputs that could not be had.
    pub(crate) failed: Vec<String>,
    failed_untold: usize,
}

/// Why outputs could not be collected at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    #[error(transparent)]
    Walk(#[from] WalkError),
    #[error("the names of the outputs have more than {JSON_BYTES_MAX} bytes; put the files in one archive")]
    Names,
    #[error("collecting the outputs failed: {0}")]
    Task(std::io::Error),
}

/// Why one output is not there.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot read the output {:?}: {source}", brief(.name))]
    Read { name: String, source: std::io::Error },
    #[error("cannot upload the output {:?}: {source}", brief(.name))]
    Transfer { name: String, source: TransferError },
    #[error("the output {:?} was not uploaded: there was no more time", brief(.name))]
    Time { name: String },
}

impl Collected {
    fn fail(&mut self, failure: &Failure) {
        if self.failed.len() < TOLD_MAX {
            self.failed.push(failure.to_string());
        } else {
            self.failed_untold += 1;
        }
    }

    /// What the result says of those that could not be had, if there are any.
    pub(crate) fn failure(&self) -> Option<String> {
        let more = match self.failed_untold {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        (!self.failed.is_empty()).then(|| format!("{}{more}", self.failed.join("; ")))
    }
}

impl Files {
    /// Collects what is below `root`; what is not there after `limit` is left out by name.
    pub(crate) async fn collect(&self, root: &Path, limit: Option<Duration>) -> Result<Collected, OutputError> {
        let until = Instant::now() + limit.unwrap_or(NO_LIMIT);
        let at = root.to_owned();
        let (mut refs, large, mut collected) = tokio::task::spawn_blocking(move || sort_out(&at))
            .await
            .map_err(|error| OutputError::Task(std::io::Error::other(error)))??;
        let ref_bytes = REF_BYTES + self.public_api.as_str().len();
        let small: usize = refs.iter().map(|(name, value)| json_cost(name) + value.to_string().len() + 2).sum();
        // Before anything is sent for nothing.
        if small + large.iter().map(|output| json_cost(&output.name) + ref_bytes).sum::<usize>() > JSON_BYTES_MAX {
            return Err(OutputError::Names);
        }
        let (rooms, patience) = (self.transfer.sending(), Patience::new());
        let upload = |output: Output| {
            let (name, rooms, patience) = (output.name.clone(), &rooms, &patience);
            async move {
                let uploaded = timeout_at(until, self.upload(root, output, rooms, patience)).await;
                uploaded.unwrap_or(Err(Failure::Time { name }))
            }
        };
        let mut uploads = stream::iter(large).map(upload).buffer_unordered(PARALLEL);
        while let Some(uploaded) = uploads.next().await {
            match uploaded {
                Ok(done) => refs.push(done),
                Err(failure) => collected.fail(&failure),
            }
        }
        drop(uploads);
        refs.sort_by(|a, b| a.0.cmp(&b.0));
        collected.outputs = refs.into_iter().collect();
        Ok(collected)
    }

    async fn upload(
        &self,
        root: &Path,
        output: Output,
        rooms: &Rooms<'_>,
        patience: &Patience,
    ) -> Result<(String, Value), Failure> {
        let _room = rooms.room().await;
        for read in 1.. {
            let seen = hashed(root.to_owned(), output.name.clone()).await;
            let seen = seen.map_err(|source| Failure::Read { name: output.name.clone(), source })?;
            let key = seen.hash.to_string();
            let url = self.api.blob(&key);
            let open = || open_unchanged(root, &output.name, &seen.stamp);
            let upload = Upload { url: &url, hash: seen.hash, bytes: seen.bytes, open, patience };
            // What was sent while it changed is not what it was called.
            let uploaded = self.transfer.upload(upload).await;
            match uploaded.and_then(|()| open_unchanged(root, &output.name, &seen.stamp)) {
                Ok(_) => return Ok((output.name, json!({ "type": "url", "value": self.public_api.blob(&key) }))),
                Err(TransferError::Changed) if read < READS_MAX => {}
                Err(source) => return Err(Failure::Transfer { name: output.name, source }),
            }
        }
        Err(Failure::Transfer { name: output.name, source: TransferError::Changed })
    }
}

/// A file as it was when it was hashed.
struct Seen {
    hash: BlobHash,
    bytes: u64,
    stamp: Stamp,
}

/// What differs once a file's bytes have been touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> std::io::Result<Self> {
        let about = file.metadata()?;
        Ok(Self { file: about.ino(), bytes: about.len(), changed: (about.ctime(), about.ctime_nsec()) })
    }
}

/// Ends the work of a thread when nobody waits for it any more.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

async fn hashed(root: PathBuf, name: String) -> std::io::Result<Seen> {
    let goes_on = Arc::new(AtomicBool::new(true));
    let _waiting = Waiting(Arc::clone(&goes_on));
    let hashing = tokio::task::spawn_blocking(move || {
        let file = walk::open(&root, &name)?;
        let stamp = Stamp::of(&file)?;
        let (hash, bytes) = BlobHash::of_reader(file, || goes_on.load(Ordering::Relaxed))?;
        Ok(Seen { hash, bytes, stamp })
    });
    hashing.await.map_err(std::io::Error::other)?
}

fn open_unchanged(root: &Path, name: &str, stamp: &Stamp) -> Result<File, TransferError> {
    let opened = walk::open(root, name).and_then(|file| Ok((Stamp::of(&file)?, file)));
    match opened {
        Ok((now, file)) if now == *stamp => Ok(file),
        Ok(_) => Err(TransferError::Changed),
        Err(source) => Err(TransferError::Read { source }),
    }
}

/// Refs of the small files, the large ones, and what there is to say so far.
type SortedOut = (Vec<(String, Value)>, Vec<Output>, Collected);

fn sort_out(root: &Path) -> Result<SortedOut, OutputError> {
    let found = walk::walk(root)?;
    let mut collected = Collected { skipped: found.skipped, ..Collected::default() };
    for (name, source) in found.unreadable {
        collected.fail(&Failure::Read { name, source });
    }
    let mut refs = Vec::new();
    let mut large = Vec::new();
    for output in found.files {
        if output.bytes > INLINE_BYTES_MAX {
            large.push(output);
            continue;
        }
        match read_small(root, &output.name) {
            Ok(content) if content.len() as u64 > INLINE_BYTES_MAX => large.push(output),
            Ok(content) => refs.push((output.name, json!({ "type": "base64", "value": STANDARD.encode(content) }))),
            Err(source) => collected.fail(&Failure::Read { name: output.name, source }),
        }
    }
    Ok((refs, large, collected))
}

/// Its bytes; one more than travel inside the result, if it has grown.
fn read_small(root: &Path, name: &str) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    walk::open(root, name)?.take(INLINE_BYTES_MAX + 1).read_to_end(&mut content)?;
    Ok(content)
}
