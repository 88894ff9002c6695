//! Walks what a container left in its output directory. Everything in it is hostile: nothing is followed, nothing but
//! regular files is opened.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;

use crate::brief::brief;

/// The most files of one run.
pub(super) const FILES_MAX: usize = 10_000;
/// The most directories; empty ones are not reported, but looked into.
const DIRECTORIES_MAX: usize = 100_000;
/// How deep they may be nested.
const DEPTH_MAX: usize = 64;
/// The most bytes of all files together: what one blob may have.
const BYTES_MAX: u64 = super::transfer::BLOB_BYTES_MAX;
/// The most things that are told to be left out one by one.
const SKIPPED_TOLD_MAX: usize = 20;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) files: Vec<Output>,
    /// What is left out and why, for the job's log.
    pub(super) skipped: Vec<String>,
    /// What should be there and cannot be read: its name, and why.
    pub(super) unreadable: Vec<(String, std::io::Error)>,
    skipped_untold: usize,
    unreadable_untold: usize,
    bytes: u64,
    directories: usize,
}

/// A regular file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Output {
    /// Its path below the directory, with slashes.
    pub(super) name: String,
    pub(super) bytes: u64,
}

/// Why the directory cannot be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WalkError {
    #[error("there are more than {FILES_MAX} output files; put them in one archive")]
    Files,
    #[error("there are more than {DIRECTORIES_MAX} output directories")]
    Directories,
    #[error("the output files have more than {BYTES_MAX} bytes")]
    Bytes,
    #[error("cannot read the outputs: {0}")]
    Disk(std::io::Error),
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Without `NONBLOCK` opening a FIFO that took the file's place would hang.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Finds all regular files below `root`, in the order of their names.
pub(super) fn walk(root: &Path) -> Result<Found, WalkError> {
    let mut found = Found::default();
    let directory = openat(CWD, root, DIRECTORY, Mode::empty()).map_err(|error| WalkError::Disk(error.into()))?;
    found.directory(&directory, "", 0)?;
    found.files.sort_by(|a, b| a.name.cmp(&b.name));
    if found.skipped_untold > 0 {
        found.skipped.push(format!("{} more were not collected", found.skipped_untold));
    }
    if found.unreadable_untold > 0 {
        let more = format!("{} more", found.unreadable_untold);
        found.unreadable.push((more, std::io::Error::other("they cannot be read")));
    }
    Ok(found)
}

/// Opens a file that [`walk`] found, following no link on the way.
pub(super) fn open(root: &Path, name: &str) -> std::io::Result<File> {
    let mut directory: OwnedFd = openat(CWD, root, DIRECTORY, Mode::empty())?;
    let (parents, last) = name.rsplit_once('/').unwrap_or(("", name));
    for segment in parents.split('/').filter(|segment| !segment.is_empty()) {
        directory = openat(&directory, segment, DIRECTORY, Mode::empty())?;
    }
    let file = openat(&directory, last, FILE, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    Ok(File::from(file))
}

impl Found {
    fn directory(&mut self, directory: &OwnedFd, prefix: &str, depth: usize) -> Result<(), WalkError> {
        self.directories += 1;
        if self.directories > DIRECTORIES_MAX {
            return Err(WalkError::Directories);
        }
        let entries = match Dir::read_from(directory.as_fd()) {
            Ok(entries) => entries,
            Err(error) => {
                self.unreadable(prefix, error);
                return Ok(());
            }
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.unreadable(prefix, error);
                    return Ok(());
                }
            };
            let raw = entry.file_name();
            if matches!(raw.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(name) = raw.to_str() else {
                self.skip(&format!("{prefix}{}", raw.to_string_lossy()), "its name is not UTF-8");
                continue;
            };
            let path = format!("{prefix}{name}");
            let stat = match statat(directory, raw, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // It has just been removed.
                Err(Errno::NOENT) => continue,
                Err(error) => {
                    self.unreadable(&path, error);
                    continue;
                }
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => self.file(path, u64::try_from(stat.st_size).unwrap_or(0))?,
                FileType::Directory if depth >= DEPTH_MAX => self.skip(&path, "it is nested too deep"),
                FileType::Directory => match openat(directory, raw, DIRECTORY, Mode::empty()) {
                    Ok(below) => self.directory(&below, &format!("{path}/"), depth + 1)?,
                    Err(error) => self.unreadable(&path, error),
                },
                FileType::Symlink => self.skip(&path, "it is a symbolic link"),
                FileType::Fifo
                | FileType::Socket
                | FileType::CharacterDevice
                | FileType::BlockDevice
                | FileType::Unknown => self.skip(&path, "it is no regular file"),
            }
        }
        Ok(())
    }

    fn file(&mut self, name: String, bytes: u64) -> Result<(), WalkError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > BYTES_MAX {
            return Err(WalkError::Bytes);
        }
        if self.files.len() >= FILES_MAX {
            return Err(WalkError::Files);
        }
        self.files.push(Output { name, bytes });
        Ok(())
    }

    fn skip(&mut self, name: &str, why: &str) {
        if self.skipped.len() < SKIPPED_TOLD_MAX {
            self.skipped.push(format!("the output {:?} is not collected: {why}", brief(name)));
        } else {
            self.skipped_untold += 1;
        }
    }

    fn unreadable(&mut self, name: &str, error: Errno) {
        if self.unreadable.len() < SKIPPED_TOLD_MAX {
            self.unreadable.push((name.to_owned(), error.into()));
        } else {
            self.unreadable_untold += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_are_found_with_their_paths_and_links_are_left_alone() {
        let secret = tempfile::tempdir().unwrap();
        fs::write(secret.path().join("secret"), "s").unwrap();
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("plots/empty")).unwrap();
        fs::write(root.path().join("plots/a.png"), "png").unwrap();
        fs::write(root.path().join("n.txt"), "42").unwrap();
        symlink(secret.path().join("secret"), root.path().join("file")).unwrap();
        symlink(secret.path(), root.path().join("dir")).unwrap();
        symlink("loop", root.path().join("loop")).unwrap();
        rustix::fs::mknodat(CWD, root.path().join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let found = walk(root.path()).unwrap();
        let names: Vec<_> = found.files.iter().map(|file| (file.name.as_str(), file.bytes)).collect();
        assert_eq!(names, [("n.txt", 2), ("plots/a.png", 3)]);
        assert_eq!(found.skipped.len(), 4, "{:?}", found.skipped);
        for name in ["file", "dir/secret", "loop", "fifo", "plots"] {
            assert!(open(root.path(), name).is_err(), "{name}");
        }
        assert!(open(root.path(), "plots/a.png").is_ok());
    }

    #[test]
    fn too_many_files_are_refused() {
        let root = tempfile::tempdir().unwrap();
        (0..=FILES_MAX).for_each(|n| fs::write(root.path().join(n.to_string()), "").unwrap());
        assert!(matches!(walk(root.path()), Err(WalkError::Files)));
    }

    #[test]
    fn many_links_are_told_in_few_lines() {
        let root = tempfile::tempdir().unwrap();
        (0..50).for_each(|n| symlink("x", root.path().join(n.to_string())).unwrap());
        let found = walk(root.path()).unwrap();
        assert_eq!(found.skipped.len(), SKIPPED_TOLD_MAX + 1);
        assert!(found.skipped.last().unwrap().starts_with("30 more"));
    }
}
