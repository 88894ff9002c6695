//! Files on their way into a job: small ones into the definition, large ones to the broker's blobs, each only once.

use std::io::Read;
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use sha2::{Digest as _, Sha256};
use tokio_util::io::ReaderStream;

use super::api::{Api, ApiError, file_error};
use super::define::{INLINE_BYTES_MAX, Input};
use crate::progress::Transfer;

/// How much of a file is read at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// What a file on disk comes to.
#[derive(Debug, PartialEq, Eq)]
enum Scanned {
    Small(Vec<u8>),
    Large { sha256: String, size: u64 },
}

/// Makes inputs of the files, uploading what the broker does not have.
pub(crate) async fn inputs(api: &Api, files: &[(String, PathBuf)]) -> Result<Vec<(String, Input)>, ApiError> {
    let mut inputs = Vec::with_capacity(files.len());
    for (name, path) in files {
        inputs.push((name.clone(), input(api, name, path).await?));
    }
    Ok(inputs)
}

async fn input(api: &Api, name: &str, path: &Path) -> Result<Input, ApiError> {
    let owned = path.to_owned();
    let scanned = tokio::task::spawn_blocking(move || scan(&owned)).await;
    let scanned = scanned.unwrap_or_else(|panic| Err(std::io::Error::other(panic)));
    match scanned.map_err(|error| file_error(path, error))? {
        Scanned::Small(bytes) => Ok(Input::Inline(bytes)),
        Scanned::Large { sha256, size } => {
            if !api.has_blob(&sha256).await? {
                upload(api, name, path, &sha256, size).await?;
            }
            Ok(Input::Blob { url: api.blob_url(&sha256), sha256 })
        }
    }
}

/// Reads the file once, to its end: the digest has to be known before the broker is asked.
fn scan(path: &Path) -> std::io::Result<Scanned> {
    let mut file = std::fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other(
            "it is not a file; pack a folder into an archive, or name its files one by one",
        ));
    }
    let mut small = Vec::new();
    file.by_ref().take(INLINE_BYTES_MAX + 1).read_to_end(&mut small)?;
    if small.len() as u64 <= INLINE_BYTES_MAX {
        return Ok(Scanned::Small(small));
    }
    let mut hasher = Sha256::new();
    hasher.update(&small);
    let mut size = small.len() as u64;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            n => {
                hasher.update(&chunk[..n]);
                size += n as u64;
            }
        }
    }
    Ok(Scanned::Large { sha256: hex(&hasher.finalize()), size })
}

async fn upload(api: &Api, name: &str, path: &Path, sha256: &str, size: u64) -> Result<(), ApiError> {
    let progress = Transfer::start("uploading", name, Some(size));
    let body = async || {
        let file = tokio::fs::File::open(path).await.map_err(|error| file_error(path, error))?;
        let (path, progress) = (path.to_owned(), progress.clone());
        progress.restart();
        let chunks = ReaderStream::with_capacity(file, CHUNK_BYTES)
            .inspect_ok(move |chunk| progress.advance(chunk.len() as u64))
            .map_err(move |error| file_error(&path, error));
        Ok(reqwest::Body::wrap_stream(chunks))
    };
    let stored = api.put_blob(sha256, size, body).await;
    progress.end(stored.is_ok());
    stored
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanned(bytes: &[u8]) -> Scanned {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        scan(&path).unwrap()
    }

    #[test]
    fn two_hundred_bytes_travel_inside_and_one_more_does_not() {
        assert_eq!(scanned(&[7; 200]), Scanned::Small(vec![7; 200]));
        assert!(matches!(scanned(&[7; 201]), Scanned::Large { size: 201, .. }));
        assert_eq!(scanned(b""), Scanned::Small(Vec::new()));
    }

    #[test]
    fn a_large_file_is_named_by_the_sha256_of_all_its_bytes() {
        let bytes: Vec<u8> = (0..CHUNK_BYTES * 2 + 17).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let expected = hex(&Sha256::digest(&bytes));
        assert_eq!(scanned(&bytes), Scanned::Large { sha256: expected, size: bytes.len() as u64 });
    }

    #[test]
    fn a_folder_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        assert!(scan(folder.path()).unwrap_err().to_string().contains("archive"));
        assert_eq!(scan(&folder.path().join("missing")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }
}
