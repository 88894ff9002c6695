//! Removes what a job left. Its folders may be nested deeper than any stack or any number of open files, may forbid everything to
//! everyone, and may hold what cannot be removed: all else goes.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, chmodat, fchmod, fstat, openat, unlinkat};
use rustix::io::Errno;
use rustix::path::Arg;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How often a directory is looked through: file systems may leave names out while others are being removed.
const LOOKS: u32 = 2;

/// Removes a directory and all that is in it, following no link. Not being there is no error; what cannot be removed is one, after
/// everything else has gone.
///
/// # Errors
///
/// The first of them.
pub(crate) fn remove_tree(root: &Path) -> io::Result<()> {
    let top = match open(CWD, root) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        // A file or a link.
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(unlinkat(CWD, root, AtFlags::empty())?),
        Err(error) => return Err(error.into()),
    };
    empty(top)?;
    match unlinkat(CWD, root, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A directory on the way down.
struct Level {
    /// What it is called in the one above.
    name: CString,
    /// By which it is known again on the way up.
    id: (u64, u64),
    /// Directories in it that are not empty.
    full: Vec<CString>,
    looks: u32,
}

impl Level {
    fn of(name: CString, directory: &OwnedFd) -> Result<Self, Errno> {
        let _ = fchmod(directory, Mode::RWXU);
        Ok(Self { name, id: id(directory)?, full: Vec::new(), looks: 0 })
    }
}

/// Opens a directory, also one that its owner has closed. Never by a name that could have become a link meanwhile.
fn open(from: impl AsFd, name: impl Arg + Copy) -> Result<OwnedFd, Errno> {
    match openat(&from, name, DIRECTORY, Mode::empty()) {
        Err(Errno::ACCESS) => {
            let place = openat(&from, name, DIRECTORY.union(OFlags::PATH), Mode::empty())?;
            let opened = format!("/proc/self/fd/{}", place.as_raw_fd());
            chmodat(CWD, opened, Mode::RWXU, AtFlags::empty())?;
            openat(&from, name, DIRECTORY, Mode::empty())
        }
        opened => opened,
    }
}

/// One directory is open at a time, and the way up is `..`: nobody should be left who could move anything meanwhile, and where that
/// is not so, it is seen.
fn empty(top: OwnedFd) -> Result<(), Errno> {
    let mut failure = None;
    let mut levels = vec![Level::of(CString::default(), &top)?];
    let mut here = top;
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.full.pop() {
            match below(&here, name) {
                Ok((level, directory)) => {
                    levels.push(level);
                    here = directory;
                }
                Err(error) => _ = failure.get_or_insert(error),
            }
        } else if level.looks < LOOKS {
            level.looks += 1;
            if let Err(error) = clear(&here, &mut level.full) {
                failure.get_or_insert(error);
            }
        } else if let Some(done) = levels.pop()
            && let Some(above) = levels.last()
        {
            here = openat(&here, "..", DIRECTORY, Mode::empty())?;
            if id(&here)? != above.id {
                return Err(Errno::STALE);
            }
            if let Err(error) = unlinkat(&here, done.name.as_c_str(), AtFlags::REMOVEDIR) {
                failure.get_or_insert(error);
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

fn below(directory: &OwnedFd, name: CString) -> Result<(Level, OwnedFd), Errno> {
    let below = open(directory, name.as_c_str())?;
    Ok((Level::of(name, &below)?, below))
}

/// Removes all files and empty directories; tells the first failure and, in `full`, the other directories.
fn clear(directory: &OwnedFd, full: &mut Vec<CString>) -> Result<(), Errno> {
    let mut failure = None;
    for entry in Dir::read_from(directory.as_fd())? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            // Directories: which of the two depends on the file system. The latter is also a file that may not be removed.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => {
                failure.get_or_insert(error);
                continue;
            }
        }
        match unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => full.push(name.to_owned()),
            Err(Errno::NOTDIR) => _ = failure.get_or_insert(Errno::PERM),
            Err(error) => _ = failure.get_or_insert(error),
        }
    }
    failure.map_or(Ok(()), Err)
}

#[expect(clippy::useless_conversion, reason = "the types differ between platforms")]
fn id(directory: &OwnedFd) -> Result<(u64, u64), Errno> {
    let about = fstat(directory)?;
    Ok((u64::from(about.st_dev), u64::from(about.st_ino)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn a_tree_deeper_than_any_path_or_stack_goes() {
        let around = tempfile::tempdir().unwrap();
        let root = around.path().join("root");
        fs::create_dir(&root).unwrap();
        let mut at: OwnedFd = fs::File::open(&root).unwrap().into();
        // More directories than most processes may have open, in a path longer than any may be.
        for _ in 0..3_000 {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        drop(at);
        remove_tree(&root).unwrap();
        assert!(!root.exists());
    }

    #[test]
    fn nothing_behind_links_is_touched_and_closed_folders_are_opened() {
        let around = tempfile::tempdir().unwrap();
        let kept = around.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        let root = around.path().join("root");
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        symlink(&kept, root.join("a/b/link")).unwrap();
        symlink(kept.join("file"), root.join("link")).unwrap();
        fs::write(root.join("a/b/c/file"), "x").unwrap();
        for closed in ["a/b/c/file", "a/b/c", "a/b", "a", ""] {
            fs::set_permissions(root.join(closed), fs::Permissions::from_mode(0o000)).unwrap();
        }
        remove_tree(&root).unwrap();
        assert!(!root.exists());
        assert_eq!(fs::read_to_string(kept.join("file")).unwrap(), "x");
        let link = around.path().join("link");
        symlink(&kept, &link).unwrap();
        remove_tree(&link).unwrap();
        assert!(!link.exists() && kept.exists(), "the link itself goes");
        remove_tree(&root).unwrap();
    }

    #[test]
    fn what_cannot_be_removed_is_told_and_all_else_goes() {
        let around = tempfile::tempdir().unwrap();
        let root = around.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        let stuck = root.join("a/b/stuck");
        fs::write(&stuck, "x").unwrap();
        // In whichever order they are found.
        (0..50).for_each(|number| fs::write(root.join(format!("a/b/other{number}")), "x").unwrap());
        let chattr = |how| std::process::Command::new("chattr").arg(how).arg(&stuck).status();
        if !chattr("+i").is_ok_and(|status| status.success()) {
            eprintln!("left out: files cannot be made immutable here");
            return;
        }
        let refused = remove_tree(&root);
        let left = files_below(&root);
        assert!(chattr("-i").unwrap().success());
        assert!(refused.is_err());
        assert_eq!(left, [stuck]);
        remove_tree(&root).unwrap();
        assert!(!root.exists());
    }

    fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                found.extend(files_below(&entry.path()));
            } else {
                found.push(entry.path());
            }
        }
        found
    }
}
