//! The data directory: whether files can be written there, whether the engine sees the same ones, and how much fits.

use std::path::{Path, PathBuf};

use rustix::fs::StatVfs;
use tokio::time::timeout;

use super::engine::Reached;
use super::{Finding, QUESTION};
use crate::container::{SharedError, check_shared};
use crate::outcome::in_units;

const CHECK: &str = "data directory";
const SHARED: &str = "same path";
/// With less than this, a few images fill the disk.
const BYTES_WANTED: u64 = 10 << 30;
/// What a file system must have room for, in files and folders; a run makes some ten, an image some ten thousand.
const FILES_MIN: u64 = 1024;
const FILES_WANTED: u64 = 100_000;

/// The data directory, and what of the way to it was made only to look; that goes again.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    /// From the top.
    made: Vec<PathBuf>,
}

impl Drop for Folder {
    fn drop(&mut self) {
        for folder in self.made.iter().rev() {
            // Somebody else may have put something there.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Writes a file there.
pub(super) async fn open(path: &Path) -> Result<(Folder, Finding), Finding> {
    let path = path.to_owned();
    let shown = path.display().to_string();
    let tried = tokio::task::spawn_blocking(move || {
        let folder = make(path)?;
        tempfile::NamedTempFile::new_in(&folder.path)?;
        std::io::Result::Ok(folder)
    });
    match timeout(QUESTION, tried).await {
        Ok(Ok(Ok(folder))) => {
            let new = if folder.made.is_empty() { "" } else { "; it is made at the first start" };
            Ok((folder, Finding::ok(CHECK, format!("{shown} can be written to{new}"))))
        }
        Ok(Ok(Err(error))) => Err(not_written(&shown, &error)),
        Ok(Err(_)) | Err(_) => Err(Finding::fail(
            CHECK,
            format!("{shown} does not answer within {} s", QUESTION.as_secs()),
            "a network's file system may be away: choose a folder on a disk of this machine with --data-directory",
        )),
    }
}

fn make(path: PathBuf) -> std::io::Result<Folder> {
    use std::os::unix::fs::DirBuilderExt;
    let mut missing: Vec<PathBuf> =
        path.ancestors().take_while(|folder| !folder.exists()).map(Path::to_owned).collect();
    missing.reverse();
    let mut folder = Folder { path, made: Vec::new() };
    for next in missing {
        std::fs::DirBuilder::new().mode(0o700).create(&next)?;
        folder.made.push(next);
    }
    Ok(folder)
}

fn not_written(path: &str, error: &std::io::Error) -> Finding {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, StorageFull};
    let known = [
        (
            PermissionDenied,
            "it is another user's: make it yours (`sudo chown $USER`), or choose another with --data-directory",
        ),
        (ReadOnlyFilesystem, "choose a folder on a disk that can be written to with --data-directory"),
        (StorageFull, "make room on that disk, or choose another with --data-directory"),
    ];
    let advice = known.iter().find(|(kind, _)| *kind == error.kind());
    let advice = advice.map_or("choose another folder with --data-directory", |(_, advice)| *advice);
    Finding::fail(CHECK, format!("nothing can be written to {path}: {error}"), advice)
}

/// Has the engine read a file there.
pub(super) async fn shared(reached: &Reached, folder: Option<&Folder>) -> Option<Finding> {
    let folder = folder?;
    // Not the worker's id: one that works just now looks for its own.
    let asker = format!("doctor-{}", uuid::Uuid::new_v4()).parse().ok()?;
    let advice = "inputs and outputs are handed to the engine as paths. In a container, mount a folder of the engine's machine under \
                  the path that it has there (-v /tmp:/tmp), and choose one in it with --data-directory";
    Some(match check_shared(&reached.engine, &folder.path, &asker).await {
        Ok(()) => Finding::ok(SHARED, "the engine sees the data directory under the same path"),
        Err(why @ (SharedError::Missing | SharedError::Other)) => {
            Finding::fail(SHARED, format!("the engine does not see the data directory: {why}"), advice)
        }
        Err(SharedError::Unknown(error)) => Finding::warn(
            SHARED,
            format!("it cannot be seen whether the engine has the data directory: {error}"),
            advice,
        ),
    })
}

/// How much is free below `places`.
pub(super) async fn disks(places: Vec<PathBuf>, bytes_min: u64) -> Vec<Finding> {
    let looking = tokio::task::spawn_blocking(move || {
        let mut seen: Vec<(u64, Finding)> = Vec::new();
        for place in places {
            let Some(there) = place.ancestors().find(|folder| folder.exists()) else { continue };
            let Ok(about) = rustix::fs::statvfs(there) else { continue };
            // One file system is told once.
            if seen.iter().all(|(id, _)| *id != about.f_fsid || *id == 0) {
                seen.push((about.f_fsid, about_disk(&place, &about, bytes_min)));
            }
        }
        seen.into_iter().map(|(_, finding)| finding).collect()
    });
    timeout(QUESTION, looking).await.ok().and_then(Result::ok).unwrap_or_default()
}

fn about_disk(place: &Path, about: &StatVfs, bytes_min: u64) -> Finding {
    let files = (about.f_files > 0).then_some(about.f_favail);
    room(&place.display().to_string(), about.f_bavail.saturating_mul(about.f_frsize), files, bytes_min)
}

fn room(place: &str, bytes: u64, files: Option<u64>, bytes_min: u64) -> Finding {
    const CHECK: &str = "disk";
    let free = format!("{} free below {place}", in_units(bytes));
    let clear = "make room (`docker system df` tells what the engine keeps), or move the data to a larger disk";
    if bytes < bytes_min {
        let seen = format!("only {free}: below --min-free-disk ({}) the worker takes no jobs", in_units(bytes_min));
        return Finding::fail(CHECK, seen, clear);
    }
    match files {
        Some(files) if files < FILES_MIN => {
            return Finding::fail(
                CHECK,
                format!("only {files} more files fit below {place}: the worker takes no jobs"),
                clear,
            );
        }
        Some(files) if files < FILES_WANTED => {
            return Finding::warn(
                CHECK,
                format!("only {files} more files fit below {place}: fewer than an image may have"),
                clear,
            );
        }
        Some(_) | None => {}
    }
    if bytes < BYTES_WANTED {
        return Finding::warn(CHECK, format!("only {free}: a few images fill that"), clear);
    }
    Finding::ok(CHECK, free)
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[tokio::test]
    async fn looking_leaves_no_folder_behind_and_takes_none_that_was_there() {
        let home = tempfile::tempdir().unwrap();
        let (top, deep) = (home.path().join("a"), home.path().join("a/b/remote"));
        let (folder, finding) = open(&deep).await.unwrap();
        assert!(deep.exists() && finding.level == Level::Ok);
        drop(folder);
        assert!(!top.exists());
        std::fs::create_dir(&top).unwrap();
        drop(open(&deep).await.unwrap());
        assert!(top.exists() && !top.join("b").exists());
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_told() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("file"), "x").unwrap();
        let found = open(&home.path().join("file/remote")).await.unwrap_err();
        assert!(found.level == Level::Fail && found.advice.unwrap().contains("--data-directory"));
    }

    #[test]
    fn room_is_judged_by_bytes_and_by_files() {
        let level = |bytes, files| room("/d", bytes, files, 1 << 30).level;
        assert_eq!(level(100 << 30, None), Level::Ok);
        assert_eq!(level(100 << 30, Some(1_000_000)), Level::Ok);
        assert_eq!(level(5 << 30, None), Level::Warn);
        assert_eq!(level(1 << 29, None), Level::Fail);
        assert_eq!(level(100 << 30, Some(5000)), Level::Warn);
        assert_eq!(level(100 << 30, Some(5)), Level::Fail);
    }
}
