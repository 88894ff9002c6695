//! Outputs: what a run left, into data refs: small files whole, others as blobs at the broker.

use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use super::Files;
use super::digest::BlobHash;
use super::transfer::TransferError;
use super::walk::{self, Output, WalkError};
use crate::logs::json_cost;
use crate::outcome::Outputs;

/// Files up to here travel inside the result; the limit is the original's.
const INLINE_BYTES_MAX: u64 = 200;
/// How many files are hashed and sent at once.
const PARALLEL: usize = 4;
/// The most bytes of JSON that names and refs may come to: with the log it fits one frame of the socket.
const JSON_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Outputs, and lines about what was left out.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) outputs: Outputs,
    pub(crate) skipped: Vec<String>,
}

/// Why outputs could not be collected. The text names the file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    #[error(transparent)]
    Walk(#[from] WalkError),
    #[error("cannot read the output {name:?}: {source}")]
    Disk { name: String, source: std::io::Error },
    #[error("cannot upload the output {name:?}: {source}")]
    Transfer { name: String, source: TransferError },
    #[error("the names of the outputs have more than {JSON_BYTES_MAX} bytes; put the files in one archive")]
    Names,
}

impl Files {
    /// Collects what is below `root`.
    pub(crate) async fn collect(&self, root: &Path) -> Result<Collected, OutputError> {
        let at = root.to_owned();
        let (mut refs, large, skipped) = blocking(move || sort_out(&at)).await?;
        let uploads = large.into_iter().map(|output| self.upload(root.to_owned(), output));
        let uploaded: Vec<(String, Value)> = stream::iter(uploads).buffer_unordered(PARALLEL).try_collect().await?;
        refs.extend(uploaded);
        refs.sort_by(|a, b| a.0.cmp(&b.0));
        let cost: usize = refs.iter().map(|(name, value)| json_cost(name) + value.to_string().len() + 2).sum();
        if cost > JSON_BYTES_MAX {
            return Err(OutputError::Names);
        }
        Ok(Collected { outputs: refs.into_iter().collect(), skipped })
    }

    async fn upload(&self, root: PathBuf, output: Output) -> Result<(String, Value), OutputError> {
        let name = output.name.clone();
        let at = root.clone();
        let (hash, bytes) = blocking(move || {
            walk::open(&at, &name).and_then(BlobHash::of_reader).map_err(|source| OutputError::Disk { name, source })
        })
        .await?;
        let key = hash.to_string();
        let url = self.api.blob(&key);
        if !self.transfer.exists(&url).await {
            let uploaded = self.transfer.upload(&url, hash, bytes, || walk::open(&root, &output.name)).await;
            uploaded.map_err(|source| OutputError::Transfer { name: output.name.clone(), source })?;
        }
        Ok((output.name, json!({ "type": "url", "value": self.public_api.blob(&key) })))
    }
}

/// Refs of the small files, the large ones, and lines about what is left out.
type SortedOut = (Vec<(String, Value)>, Vec<Output>, Vec<String>);

fn sort_out(root: &Path) -> Result<SortedOut, OutputError> {
    let found = walk::walk(root)?;
    let mut refs = Vec::new();
    let mut large = Vec::new();
    for output in found.files {
        if output.bytes > INLINE_BYTES_MAX {
            large.push(output);
        } else {
            let content = read_small(root, &output.name);
            let content = content.map_err(|source| OutputError::Disk { name: output.name.clone(), source })?;
            refs.push((output.name, json!({ "type": "base64", "value": STANDARD.encode(content) })));
        }
    }
    Ok((refs, large, found.skipped))
}

fn read_small(root: &Path, name: &str) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    walk::open(root, name)?.take(INLINE_BYTES_MAX).read_to_end(&mut content)?;
    Ok(content)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, OutputError> + Send + 'static,
) -> Result<T, OutputError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(OutputError::Disk { name: String::new(), source: std::io::Error::other(error) }),
    }
}
