//! The files of a build as a list, their bytes in one nameless file: nothing that a stranger named ever becomes a path on
//! this machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::brief::brief;

/// The most files, directories and links of a context: repositories of whole operating systems have fewer.
pub(super) const ENTRIES_MAX: usize = 200_000;
/// The most bytes of their names together: the list is in memory.
pub(super) const NAME_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The longest name, and the longest part of one, that Linux takes.
const PATH_BYTES_MAX: usize = 4096;
const PART_BYTES_MAX: usize = 255;
/// What may be unpacked of an archive whatever its size, and beyond that for each of its bytes: what people pack shrinks
/// less, a bomb shrinks a thousandfold.
const UNPACKED_BYTES_FREE: u64 = 256 * 1024 * 1024;
const UNPACKED_RATIO_MAX: u64 = 200;
/// How much is copied at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// Why files cannot be taken. Names come from strangers and are shown escaped and cut.
#[derive(Debug, thiserror::Error)]
pub(super) enum TreeError {
    #[error("the name {name:?} {why}")]
    Name { name: String, why: &'static str },
    #[error("{name:?} lies below {parent:?}, which is not a directory")]
    BelowFile { name: String, parent: String },
    #[error("there are more than {ENTRIES_MAX} files")]
    Entries,
    #[error("the names of the files have more than {NAME_BYTES_MAX} bytes together")]
    NameBytes,
    #[error("the files have more than the {bytes_max} bytes that this worker allows")]
    Bytes { bytes_max: u64 },
    #[error(
        "the files have more than {UNPACKED_RATIO_MAX} times the bytes of their archive ({archive_bytes}), as only an archive made to fill a disk has"
    )]
    Ratio { archive_bytes: u64 },
    #[error("nobody waits for the build any more")]
    GivenUp,
    #[error("cannot store the files: {0}")]
    Disk(io::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One file, directory or link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Directory {
        mode: u32,
    },
    /// Its bytes are the tree's from `at` on.
    File {
        at: u64,
        bytes: u64,
        mode: u32,
    },
    /// A symbolic link. It is only ever followed by the engine, inside what it unpacks.
    Link {
        target: String,
    },
}

/// What may be taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) bytes_max: u64,
    /// The size of what is unpacked, if it is an archive.
    pub(super) archive_bytes: Option<u64>,
}

/// The files.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
    name_bytes: usize,
    bytes: File,
    len: u64,
    /// The bytes of files that have several names, for each name but the first: the engine is sent them each time.
    linked: u64,
    limits: Limits,
    /// What was left out, for the log.
    pub(super) left_out: u64,
    /// The commit that the files are of, where an archive says so.
    pub(super) commit: Option<String>,
}

impl Tree {
    /// An empty tree, with its bytes in `folder`.
    pub(super) fn new(folder: &Path, limits: Limits) -> io::Result<Self> {
        let bytes = tempfile::tempfile_in(folder)?;
        Ok(Self { nodes: BTreeMap::new(), name_bytes: 0, bytes, len: 0, linked: 0, limits, left_out: 0, commit: None })
    }

    pub(super) fn nodes(&self) -> &BTreeMap<String, Node> {
        &self.nodes
    }

    pub(super) fn bytes(&self) -> u64 {
        self.len
    }

    pub(super) fn directory(&mut self, name: &str, mode: u32) -> Result<(), TreeError> {
        self.put(name, Node::Directory { mode })
    }

    pub(super) fn link(&mut self, name: &str, target: String) -> Result<(), TreeError> {
        if target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains('\0') {
            return Err(TreeError::Name { name: brief(&target).into_owned(), why: "is no target for a link" });
        }
        self.put(name, Node::Link { target })
    }

    /// Another name for a file that is there already; `false` if it is not.
    pub(super) fn hard_link(&mut self, name: &str, target: &str) -> Result<bool, TreeError> {
        let target = clean(target)?;
        match self.nodes.get(&target) {
            Some(node @ (Node::File { .. } | Node::Link { .. })) => {
                let node = node.clone();
                if let Node::File { bytes, .. } = &node {
                    self.check_bytes(*bytes)?;
                    self.linked += bytes;
                }
                self.put(name, node).map(|()| true)
            }
            Some(Node::Directory { .. }) | None => Ok(false),
        }
    }

    /// Takes a file in, to the end of `content`.
    pub(super) fn file(
        &mut self,
        name: &str,
        mode: u32,
        content: &mut dyn Read,
        given_up: &AtomicBool,
    ) -> Result<(), TreeError> {
        let (at, mut chunk) = (self.len, vec![0; CHUNK_BYTES]);
        loop {
            if given_up.load(Ordering::Relaxed) {
                return Err(TreeError::GivenUp);
            }
            let read = match content.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            self.check_bytes(read as u64)?;
            (&self.bytes).write_all(chunk.get(..read).unwrap_or_default()).map_err(TreeError::Disk)?;
            self.len += read as u64;
        }
        self.put(name, Node::File { at, bytes: self.len - at, mode })
    }

    fn check_bytes(&self, more: u64) -> Result<(), TreeError> {
        let (len, Limits { bytes_max, archive_bytes }) =
            (self.len.saturating_add(self.linked).saturating_add(more), self.limits);
        if len > bytes_max {
            return Err(TreeError::Bytes { bytes_max });
        }
        let by_ratio = |bytes: u64| bytes.saturating_mul(UNPACKED_RATIO_MAX).saturating_add(UNPACKED_BYTES_FREE);
        match archive_bytes {
            Some(archive_bytes) if len > by_ratio(archive_bytes) => Err(TreeError::Ratio { archive_bytes }),
            Some(_) | None => Ok(()),
        }
    }

    fn put(&mut self, name: &str, node: Node) -> Result<(), TreeError> {
        let name = clean(name)?;
        if name.is_empty() {
            // The root itself.
            return Ok(());
        }
        self.name_bytes += name.len() + if let Node::Link { target } = &node { target.len() } else { 0 };
        if self.name_bytes > NAME_BYTES_MAX {
            return Err(TreeError::NameBytes);
        }
        if self.nodes.len() >= ENTRIES_MAX && !self.nodes.contains_key(&name) {
            return Err(TreeError::Entries);
        }
        // A later entry of the same name wins, as with tar.
        self.nodes.insert(name, node);
        Ok(())
    }

    /// Refuses what lies below a link or a file: unpacked one after the other it would lie elsewhere.
    pub(super) fn check(&self) -> Result<(), TreeError> {
        for name in self.nodes.keys() {
            for (end, _) in name.match_indices('/') {
                let parent = name.get(..end).unwrap_or_default();
                match self.nodes.get(parent) {
                    None | Some(Node::Directory { .. }) => {}
                    Some(Node::File { .. } | Node::Link { .. }) => {
                        let (name, parent) = (brief(name).into_owned(), brief(parent).into_owned());
                        return Err(TreeError::BelowFile { name, parent });
                    }
                }
            }
        }
        Ok(())
    }

    /// The only thing in the root, if it is a directory: what is below that is what was meant.
    pub(super) fn only_directory(&self) -> Option<String> {
        let first = self.nodes.keys().next()?.split('/').next()?.to_owned();
        let is_below =
            |name: &String| name.strip_prefix(&first).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let is_directory = match self.nodes.get(&first) {
            Some(Node::Directory { .. }) => true,
            // Named only by what is in it.
            None => true,
            Some(Node::File { .. } | Node::Link { .. }) => false,
        };
        (is_directory && self.nodes.keys().all(is_below)).then_some(first)
    }

    /// Whether there is a directory of that clean name.
    pub(super) fn has_directory(&self, name: &str) -> bool {
        let prefix = format!("{name}/");
        name.is_empty()
            || matches!(self.nodes.get(name), Some(Node::Directory { .. }))
            || self.nodes.range(prefix.clone()..).next().is_some_and(|(first, _)| first.starts_with(&prefix))
    }

    /// The bytes of a file, for whoever writes them elsewhere.
    pub(super) fn read(&self, at: u64, bytes: u64) -> impl Read + '_ {
        Slice { file: &self.bytes, at, left: bytes }
    }

    /// A small file as text.
    pub(super) fn text(&self, name: &str, bytes_max: u64) -> io::Result<Option<String>> {
        let Some(Node::File { at, bytes, .. }) = self.nodes.get(name) else { return Ok(None) };
        let mut text = Vec::new();
        self.read(*at, (*bytes).min(bytes_max)).read_to_end(&mut text)?;
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }
}

struct Slice<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Slice<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(buffer.get_mut(..room).unwrap_or_default(), self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// A name without the parts that say nothing; refused if it leads out.
pub(super) fn clean(name: &str) -> Result<String, TreeError> {
    let refuse = |why| Err(TreeError::Name { name: brief(name).into_owned(), why });
    if name.starts_with('/') {
        return refuse("is absolute");
    }
    if name.contains('\0') {
        return refuse("holds a NUL character");
    }
    if name.len() > PATH_BYTES_MAX {
        return refuse("is longer than any path");
    }
    let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return refuse("has a `..` segment");
    }
    if parts.iter().any(|part| part.len() > PART_BYTES_MAX) {
        return refuse("has a segment that is longer than any file name");
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(bytes_max: u64, archive_bytes: Option<u64>) -> Tree {
        Tree::new(&std::env::temp_dir(), Limits { bytes_max, archive_bytes }).unwrap()
    }

    fn put(tree: &mut Tree, name: &str, content: &[u8]) -> Result<(), TreeError> {
        tree.file(name, 0o644, &mut &*content, &AtomicBool::new(false))
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        let mut tree = tree(100, None);
        for bad in ["/a", "..", "../a", "a/../../b", "a/..", "a\0b", &"a".repeat(256), &"a/".repeat(3000)] {
            assert!(matches!(put(&mut tree, bad, b""), Err(TreeError::Name { .. })), "{bad:?}");
            assert!(matches!(tree.directory(bad, 0o755), Err(TreeError::Name { .. })), "{bad:?}");
        }
        put(&mut tree, "./a//b/./c", b"x").unwrap();
        assert_eq!(tree.nodes().keys().collect::<Vec<_>>(), ["a/b/c"]);
    }

    #[test]
    fn an_error_repeats_a_long_name_only_in_part() {
        let (mut tree, long) = (tree(100, None), "x".repeat(60_000));
        let told = [
            tree.link("a", long.clone()).unwrap_err().to_string(),
            put(&mut tree, &long, b"").unwrap_err().to_string(),
            tree.hard_link("b", &long).unwrap_err().to_string(),
        ];
        assert!(told.iter().all(|text| text.contains("xxx") && text.len() < 1000), "{told:?}");
    }

    #[test]
    fn nothing_lies_below_a_link_or_a_file() {
        let mut under_link = tree(100, None);
        under_link.link("a", "/etc".to_owned()).unwrap();
        put(&mut under_link, "a/passwd", b"").unwrap();
        assert!(matches!(under_link.check(), Err(TreeError::BelowFile { .. })));
        let mut under_file = tree(100, None);
        put(&mut under_file, "a/b/c", b"").unwrap();
        put(&mut under_file, "a/b", b"").unwrap();
        assert!(matches!(under_file.check(), Err(TreeError::BelowFile { .. })));
        let mut fine = tree(100, None);
        put(&mut fine, "a/b/c", b"").unwrap();
        put(&mut fine, "a-b", b"").unwrap();
        fine.directory("a", 0o755).unwrap();
        fine.check().unwrap();
    }

    #[test]
    fn bytes_are_kept_and_counted() {
        let mut tree = tree(9, None);
        put(&mut tree, "a", b"abc").unwrap();
        put(&mut tree, "b", b"def").unwrap();
        assert_eq!(tree.text("b", 10).unwrap().as_deref(), Some("def"));
        assert_eq!(tree.text("b", 2).unwrap().as_deref(), Some("de"));
        assert_eq!(tree.text("c", 2).unwrap(), None);
        assert!(tree.hard_link("c", "./a").unwrap() && !tree.hard_link("d", "nothing").unwrap());
        assert_eq!(tree.text("c", 10).unwrap().as_deref(), Some("abc"));
        assert!(matches!(put(&mut tree, "e", b"g"), Err(TreeError::Bytes { bytes_max: 9 })));
    }

    #[test]
    fn a_file_with_many_names_counts_for_each() {
        let mut tree = tree(6, None);
        put(&mut tree, "a", b"abc").unwrap();
        assert!(tree.hard_link("b", "a").unwrap());
        assert!(matches!(tree.hard_link("c", "a"), Err(TreeError::Bytes { bytes_max: 6 })));
    }

    #[test]
    fn what_unpacks_to_too_much_is_a_bomb() {
        let mut tree = tree(u64::MAX, Some(1024));
        tree.len = UNPACKED_BYTES_FREE + UNPACKED_RATIO_MAX * 1024 - 1;
        tree.check_bytes(1).unwrap();
        assert!(matches!(tree.check_bytes(2), Err(TreeError::Ratio { archive_bytes: 1024 })));
    }

    #[test]
    fn one_that_nobody_waits_for_ends() {
        let ended = tree(9, None).file("a", 0, &mut io::repeat(0), &AtomicBool::new(true));
        assert!(matches!(ended, Err(TreeError::GivenUp)));
    }

    #[test]
    fn the_only_directory_is_found_by_what_is_in_it() {
        let mut one = tree(100, None);
        assert_eq!(one.only_directory(), None);
        put(&mut one, "top/a", b"").unwrap();
        put(&mut one, "top/sub/b", b"").unwrap();
        assert_eq!(one.only_directory().as_deref(), Some("top"));
        assert!(one.has_directory("top/sub") && one.has_directory("") && !one.has_directory("top/a"));
        put(&mut one, "top2", b"").unwrap();
        assert_eq!(one.only_directory(), None);
        let mut file = tree(100, None);
        put(&mut file, "top", b"").unwrap();
        assert_eq!(file.only_directory(), None);
    }
}
