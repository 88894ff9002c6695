//! Inputs: what a definition holds or points at, into the run's directory.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use futures_util::{StreamExt, TryStreamExt, stream};
use protocol::definition::{DataKind, DataRef, Definition};
use protocol::json;
use protocol::raw::RawJson;

use super::cache::Cached;
use super::digest::BlobHash;
use super::fetch::Fetched;
use super::place::{PlaceError, places};
use super::transfer::{BLOB_BYTES_MAX, PARALLEL, Rooms, TransferError};
use super::{Files, RunDirs};
use crate::brief::brief;

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
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("the input {:?} is not base64: {source}", brief(.name))]
    Base64 { name: String, source: base64::DecodeError },
    #[error("the input {:?}: {source}", brief(.name))]
    Transfer { name: String, source: Arc<TransferError> },
    #[error("cannot write the input {:?}: {source}", brief(.name))]
    Disk { name: String, source: std::io::Error },
    #[error(
        "cannot write the input {:?}: there is another file of that name here, because this disk does not tell capital letters from small ones",
        brief(.name)
    )]
    Case { name: String },
    #[error("the inputs have more than the {bytes_max} bytes that this worker allows a job on its disk")]
    TooMany { bytes_max: u64 },
    #[error("cannot make the run's directory: {0}")]
    Directory(std::io::Error),
}

impl InputError {
    fn disk(name: String) -> impl FnOnce(std::io::Error) -> Self {
        // Names that are equal were sorted out before.
        |source| {
            let is_there = source.kind() == std::io::ErrorKind::AlreadyExists;
            if is_there { Self::Case { name } } else { Self::Disk { name, source } }
        }
    }
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
        let (rooms, taken) = (self.transfer.fetching(), AtomicU64::new(0));
        let fetched = stream::iter(remote).map(|item| self.fetch(item, &rooms, &taken)).buffer_unordered(PARALLEL);
        fetched.try_collect::<()>().await
    }

    fn items(&self, definition: &Definition, dirs: &RunDirs) -> Result<Vec<Item>, InputError> {
        places(definition, dirs)?.into_iter().map(|(path, (name, data))| self.item(name, path, data)).collect()
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

    async fn fetch(&self, item: Item, rooms: &Rooms<'_>, taken: &AtomicU64) -> Result<(), InputError> {
        let Content::Url { url, hash } = &item.content else { return Ok(()) };
        let had = match self.had(url, *hash, rooms).await {
            Ok(had) => had,
            Err(source) => return Err(InputError::Transfer { name: item.name, source }),
        };
        // Before a copy takes the room a second time.
        let bytes_max = self.job_bytes_max;
        if taken.fetch_add(had.bytes(), Ordering::Relaxed).saturating_add(had.bytes()) > bytes_max {
            return Err(InputError::TooMany { bytes_max });
        }
        let cache = Arc::clone(&self.cache);
        blocking(move || {
            let placed = parent(&item.path).and_then(|()| had.place(&item.path, item.mode));
            // What was in use until now may have to go.
            cache.trim();
            placed.map_err(InputError::disk(item.name))
        })
        .await
    }

    /// Has the bytes on this disk. Those with a known digest are kept for later jobs; others would have to be fetched again all
    /// the same.
    async fn had(&self, url: &str, hash: Option<BlobHash>, rooms: &Rooms<'_>) -> Result<Had, Arc<TransferError>> {
        let fetch = || self.transfer.fetch(url, hash, BLOB_BYTES_MAX.min(self.job_bytes_max), &self.cache);
        let Some(hash) = hash else {
            let _room = rooms.room().await;
            return Ok(Had::Fetched(fetch().await?));
        };
        if let Some(cached) = self.cache.find(hash) {
            return Ok(Had::Cached(cached));
        }
        let _room = rooms.room().await;
        let mut turn = self.cache.turn(url, hash).await;
        if let Some(error) = &*turn {
            return Err(Arc::clone(error));
        }
        if let Some(cached) = self.cache.find(hash) {
            return Ok(Had::Cached(cached));
        }
        let fetched = match fetch().await {
            Ok(fetched) => fetched,
            Err(error) => return Err(Arc::clone(turn.insert(Arc::new(error)))),
        };
        if !self.cache.takes(fetched.bytes) {
            return Ok(Had::Fetched(fetched));
        }
        let cache = Arc::clone(&self.cache);
        let stored = tokio::task::spawn_blocking(move || {
            let Fetched { file, path, hash, bytes } = fetched;
            cache.store(&file, path, hash, bytes)
        });
        let stored = stored.await.map_err(std::io::Error::other).and_then(|stored| stored);
        stored.map(Had::Cached).map_err(|source| Arc::new(TransferError::disk(url, source)))
    }
}

/// Bytes that are on this disk.
enum Had {
    Cached(Cached),
    Fetched(Fetched),
}

impl Had {
    fn bytes(&self) -> u64 {
        match self {
            Self::Cached(cached) => cached.bytes(),
            Self::Fetched(fetched) => fetched.bytes,
        }
    }

    fn place(self, to: &Path, mode: u32) -> std::io::Result<()> {
        match self {
            Self::Cached(cached) => {
                cached.touch();
                copy(&cached.path(), to, mode)
            }
            Self::Fetched(fetched) => {
                fetched.path.persist_noclobber(to)?;
                fetched.file.set_permissions(fs::Permissions::from_mode(mode))
            }
        }
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
    written.map_err(InputError::disk(item.name))
}

fn parent(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// A copy, never a link: what a container does to it must not reach the cache. Where the file system can, it shares blocks.
fn copy(from: &Path, to: &Path, mode: u32) -> std::io::Result<()> {
    let (mut from, mut to) = (File::open(from)?, File::create_new(to)?);
    std::io::copy(&mut from, &mut to)?;
    to.set_permissions(fs::Permissions::from_mode(mode))
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
        assert_eq!(super::super::below(&dirs.inputs, "a//./b.txt"), Path::new("/d/inputs/a/b.txt"));
        assert_eq!(dirs.config_file("/etc/app.toml"), Path::new("/d/configFiles/etc/app.toml"));
    }
}
