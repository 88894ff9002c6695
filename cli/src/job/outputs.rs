//! Result files on their way to disk. Their names come from a job and are hostile: nothing lands outside the folder, and
//! no link is followed on the way.

use std::io;
use std::path::{Path, PathBuf};

use protocol::id::JobId;
use tokio::io::AsyncWriteExt;

use super::api::{Api, ApiError};
use crate::args::job::Target;
use crate::progress::Transfer;

/// Why a result file is not on disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// The name would lead elsewhere.
    #[error("the job has a result file named {0:?}, which is no name for a file here; it is left out")]
    Name(String),
    /// A link stands where a folder or the file should be.
    #[error("{0} is a link, or no folder; result files do not go through links")]
    Link(String),
    /// The disk refuses.
    #[error("cannot write {path}: {source}")]
    Disk {
        /// The file or folder.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The broker refuses, or is gone.
    #[error("cannot fetch the result file {name:?}: {source}")]
    Fetch {
        /// The file's name.
        name: String,
        /// Why.
        source: ApiError,
    },
}

/// Fetches result files into `folder`, which is made. Goes on after a failure, and answers all failures.
pub(crate) async fn fetch(api: &Api, target: &Target, job: JobId, names: &[String], folder: &Path) -> Vec<OutputError> {
    let mut failures = Vec::new();
    if let Err(error) = std::fs::create_dir_all(folder) {
        return vec![disk(folder, error)];
    }
    for name in names {
        if let Err(error) = fetch_one(api, target, job, name, folder).await {
            failures.push(error);
        }
    }
    failures
}

async fn fetch_one(api: &Api, target: &Target, job: JobId, name: &str, folder: &Path) -> Result<(), OutputError> {
    let path = place(folder, name)?;
    let fetch = |source| OutputError::Fetch { name: name.to_owned(), source };
    let mut answer = api.output(target, job, name).await.map_err(fetch)?;
    // Beside the file and renamed when it is whole: no half a file stays, and a link of that name is replaced, not followed.
    let partial = path.with_file_name(format!(".{}.partial-{}", short_name(&path), std::process::id()));
    let progress = Transfer::start("fetching", name, answer.content_length());
    let stored = async {
        let mut file = create_new(&partial).await.map_err(|error| disk(&partial, error))?;
        while let Some(chunk) = answer.chunk().await.map_err(|error| fetch(api.unreachable(&error)))? {
            file.write_all(&chunk).await.map_err(|error| disk(&partial, error))?;
            progress.advance(chunk.len() as u64);
        }
        file.flush().await.map_err(|error| disk(&partial, error))?;
        tokio::fs::rename(&partial, &path).await.map_err(|error| disk(&path, error))
    };
    let stored: Result<(), OutputError> = stored.await;
    progress.end(stored.is_ok());
    if stored.is_err() {
        let _ = tokio::fs::remove_file(&partial).await;
    }
    stored
}

async fn create_new(path: &Path) -> io::Result<tokio::fs::File> {
    tokio::fs::OpenOptions::new().write(true).create_new(true).open(path).await
}

/// A part of the file's name that leaves room for what is added to it (names have 255 bytes at most).
fn short_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().chars().take(40).collect())
}

/// Where the file of that name goes; makes the folders on the way, none of which may be a link.
fn place(folder: &Path, name: &str) -> Result<PathBuf, OutputError> {
    let bad = || OutputError::Name(name.to_owned());
    let mut segments: Vec<&str> = name.split('/').collect();
    if segments.iter().any(|segment| !is_plain(segment)) {
        return Err(bad());
    }
    let last = segments.pop().ok_or_else(bad)?;
    let mut path = folder.to_owned();
    for segment in segments {
        path.push(segment);
        match std::fs::create_dir(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let found = std::fs::symlink_metadata(&path).map_err(|error| disk(&path, error))?;
                if !found.is_dir() {
                    return Err(OutputError::Link(path.display().to_string()));
                }
            }
            Err(error) => return Err(disk(&path, error)),
        }
    }
    Ok(path.join(last))
}

/// Whether this is one name, on any system.
fn is_plain(segment: &str) -> bool {
    !matches!(segment, "" | "." | "..") && !segment.contains(['\\', '\0'])
}

fn disk(path: &Path, source: io::Error) -> OutputError {
    OutputError::Disk { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_below_the_folder_or_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(place(folder.path(), "a/b/c.txt").unwrap(), folder.path().join("a/b/c.txt"));
        assert!(folder.path().join("a/b").is_dir());
        for bad in ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "a/", "./a", "a\\..\\b", "a\0b"] {
            assert!(matches!(place(folder.path(), bad), Err(OutputError::Name(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_link_on_the_way_is_not_followed() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("a")).unwrap();
        assert!(matches!(place(folder.path(), "a/b"), Err(OutputError::Link(_))));
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    proptest::proptest! {
        #[test]
        fn no_name_leaves_the_folder(name in "[a./\\\\]{0,12}") {
            let folder = tempfile::tempdir().unwrap();
            if let Ok(path) = place(folder.path(), &name) {
                let parent = path.parent().unwrap().canonicalize().unwrap();
                proptest::prop_assert!(parent.starts_with(folder.path().canonicalize().unwrap()));
                proptest::prop_assert!(path.file_name().is_some_and(|last| last != ".."));
            }
        }
    }
}
