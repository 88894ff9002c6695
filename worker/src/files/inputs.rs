//! Inputs: what a definition holds or points at, into the run's directory.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use futures_util::{StreamExt, TryStreamExt, stream};
use protocol::definition::{DataKind, DataRef, Definition};
use protocol::json;
use protocol::raw::RawJson;

use super::digest::BlobHash;
use super::transfer::TransferError;
use super::{Files, RunDirs, below};

/// How many inputs are fetched at once.
const PARALLEL: usize = 4;
const FILE_MODE: u32 = 0o644;
/// Blobs by key are executable, as in the original.
const KEY_MODE: u32 = 0o777;
/// Base64 as people send it: with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Why the inputs are not there. The text names the file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error("the input {name:?} is not base64: {source}")]
    Base64 { name: String, source: base64::DecodeError },
    #[error("the input {name:?}: {source}")]
    Transfer { name: String, source: TransferError },
    #[error("cannot write the input {name:?}: {source}")]
    Disk { name: String, source: std::io::Error },
    #[error("cannot make the run's directory: {0}")]
    Directory(std::io::Error),
}

/// One file to be made.
struct Item {
    name: String,
    path: PathBuf,
    content: Content,
    mode: u32,
}

enum Content {
    Bytes(Vec<u8>),
    Url { url: String, hash: Option<BlobHash> },
}

impl Files {
    /// Makes the run's directories and puts all inputs and config files there, and the definition's `text` beside them.
    pub(crate) async fn materialise(
        &self,
        definition: &Definition,
        text: &RawJson,
        dirs: &RunDirs,
    ) -> Result<(), InputError> {
        let mut inline = Vec::new();
        let mut remote = Vec::new();
        for item in self.items(definition, dirs)? {
            match &item.content {
                Content::Bytes(_) => inline.push(item),
                Content::Url { .. } => remote.push(item),
            }
        }
        let (made, text) = (dirs.clone(), text.clone());
        blocking(move || {
            made.make().map_err(InputError::Directory)?;
            fs::write(&made.definition, text.as_str()).map_err(InputError::Directory)?;
            inline.into_iter().try_for_each(|item| write(item).map(drop))
        })
        .await?;
        stream::iter(remote).map(|item| self.fetch(item)).buffer_unordered(PARALLEL).try_collect::<()>().await
    }

    /// What is to be made; a relative config file takes the place of an input of that name.
    fn items(&self, definition: &Definition, dirs: &RunDirs) -> Result<Vec<Item>, InputError> {
        let mut items = BTreeMap::new();
        for (name, data) in definition.inputs.iter().chain(&definition.config_files) {
            let path = if name.starts_with('/') { dirs.config_file(name) } else { below(&dirs.inputs, name) };
            let item = self.item(name, path.clone(), data)?;
            items.insert(path, item);
        }
        Ok(items.into_values().collect())
    }

    fn item(&self, name: &str, path: PathBuf, data: &DataRef) -> Result<Item, InputError> {
        let text = data.text().unwrap_or_default();
        let claimed = data.hash.as_deref().and_then(BlobHash::parse);
        let (content, mode) = match data.kind {
            DataKind::Utf8 => (Content::Bytes(text.into_owned().into_bytes()), FILE_MODE),
            DataKind::Json => (Content::Bytes(json::to_json(&data.value).into_bytes()), FILE_MODE),
            DataKind::Base64 => {
                let bytes =
                    decode_base64(&text).map_err(|source| InputError::Base64 { name: name.to_owned(), source })?;
                (Content::Bytes(bytes), FILE_MODE)
            }
            DataKind::Url => {
                // Only our own broker's addresses are known to say the hash.
                let said = self.api.serves(&text).then(|| hash_in_path(&text)).flatten();
                (Content::Url { hash: claimed.or(said), url: text.into_owned() }, FILE_MODE)
            }
            DataKind::Key => {
                let hash = claimed.or_else(|| BlobHash::parse(&text));
                (Content::Url { url: self.api.blob(&text), hash }, KEY_MODE)
            }
        };
        Ok(Item { name: name.to_owned(), path, content, mode })
    }

    async fn fetch(&self, item: Item) -> Result<(), InputError> {
        let Content::Url { url, hash } = &item.content else { return Ok(()) };
        let cached = match hash.and_then(|hash| self.cache.find(hash)) {
            Some(cached) => cached,
            None => {
                let fetched = self.transfer.fetch(url, *hash, &self.cache).await;
                fetched.map_err(|source| InputError::Transfer { name: item.name.clone(), source })?
            }
        };
        blocking(move || {
            let placed = parent(&item.path).and_then(|()| copy(&cached, &item.path, item.mode));
            placed.map_err(|source| InputError::Disk { name: item.name, source })
        })
        .await
    }
}

/// `/f/<hash>`, and what the original's addresses once were.
fn hash_in_path(url: &str) -> Option<BlobHash> {
    let path = url.split(['?', '#']).next()?;
    let (before, hash) = path.rsplit_once('/')?;
    if before.ends_with("/f") || before.ends_with("/api/v1/download") { BlobHash::parse(hash) } else { None }
}

fn decode_base64(text: &str) -> Result<Vec<u8>, base64::DecodeError> {
    if text.bytes().any(|byte| byte.is_ascii_whitespace() || matches!(byte, b'-' | b'_')) {
        // Wrapped lines and the URL alphabet, both of which JavaScript's decoders take.
        let plain: String = text
            .chars()
            .filter(|c| !c.is_ascii_whitespace())
            .map(|c| match c {
                '-' => '+',
                '_' => '/',
                c => c,
            })
            .collect();
        return BASE64.decode(plain);
    }
    BASE64.decode(text)
}

fn write(item: Item) -> Result<(), InputError> {
    let Content::Bytes(bytes) = &item.content else { return Ok(()) };
    let written = parent(&item.path).and_then(|()| {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&item.path)?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(item.mode))
    });
    written.map_err(|source| InputError::Disk { name: item.name, source })
}

fn parent(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// A copy, never a link: what a container does to it must not reach the cache. Where the file system can, it shares blocks.
fn copy(from: &Path, to: &Path, mode: u32) -> std::io::Result<()> {
    fs::copy(from, to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, InputError> + Send + 'static,
) -> Result<T, InputError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(InputError::Directory(std::io::Error::other(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_as_people_send_it() {
        for text in ["aGk+Pw==", "aGk+Pw", "aGk-Pw==", "aGk+\nPw=="] {
            assert_eq!(decode_base64(text).unwrap(), b"hi>?", "{text}");
        }
        assert!(decode_base64("!").is_err());
    }

    #[test]
    fn the_hash_in_an_address_is_found() {
        let hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert!(hash_in_path(&format!("http://h/f/{hash}")).is_some());
        assert!(hash_in_path(&format!("http://h/api/v1/download/{hash}?x=1")).is_some());
        assert!(hash_in_path(&format!("http://h/other/{hash}")).is_none());
        assert!(hash_in_path("http://h/f/name.txt").is_none());
    }

    #[test]
    fn names_stay_below_their_directory() {
        let dirs = RunDirs::at(Path::new("/d"));
        assert_eq!(below(&dirs.inputs, "a//./b.txt"), Path::new("/d/inputs/a/b.txt"));
        assert_eq!(dirs.config_file("/etc/app.toml"), Path::new("/d/configFiles/etc/app.toml"));
    }
}
