//! What the engine is sent: the files that count, as one tar, and the Dockerfile in it. Pure but for the reading of files.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::definition::{Build, NameError, check_relative_name};
use tar::{Builder, EntryType, Header};

use super::ignore::Ignore;
use super::tree::{Node, Tree, TreeError, clean};
use crate::brief::brief;

/// What a Dockerfile is called unless something else is said.
const DOCKERFILE: &str = "Dockerfile";
const IGNORE_FILE: &str = ".dockerignore";
/// A Dockerfile that lies outside of what is built is sent under this name.
const OUTSIDE: &str = ".dockerfile.gridsocket";
/// The largest file of patterns that is read.
const IGNORE_BYTES_MAX: u64 = 1024 * 1024;
const DIRECTORY_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;
/// One time for all files: the engine's cache goes by content.
const MTIME: u64 = 0;

/// Why there is nothing to build.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContextError {
    #[error("build: say what to build, in `dockerfile` (its text) or `context` (the address of files)")]
    Nothing,
    #[error("{0}")]
    Name(#[from] NameError),
    #[error("build.buildContext: {why}")]
    BuildContext { why: String },
    #[error("build.context: there is no directory {name:?} in it")]
    NoDirectory { name: String },
    #[error(
        "there is no {name:?} among the files; say where it is in build.filename, or give its text in build.dockerfile"
    )]
    NoDockerfile { name: String },
    #[error("build.context: {0}")]
    Tree(#[from] TreeError),
}

/// What is sent.
#[derive(Debug)]
pub(super) struct Context {
    /// The clean name of the directory that is built.
    root: String,
    /// What the Dockerfile is called in the tar.
    pub(super) dockerfile: String,
    /// Its text, if it is not a file of the context.
    text: Option<Text>,
    ignore: Ignore,
}

#[derive(Debug)]
enum Text {
    Inline(String),
    /// A file outside of the directory that is built.
    File(String),
}

impl Context {
    /// `directory`: the part of the files that the context's address names.
    pub(super) fn new(build: &Build, tree: &Tree, directory: Option<&str>) -> Result<Self, ContextError> {
        if build.dockerfile.is_none() && build.context.is_none() {
            return Err(ContextError::Nothing);
        }
        // The original's order: one directory at the top is no part of the names.
        let top = tree.only_directory().unwrap_or_default();
        let base = match directory {
            None => top,
            Some(directory) => {
                let base = join(&top, &clean(directory)?);
                if !tree.has_directory(&base) {
                    return Err(ContextError::NoDirectory { name: brief(directory).into_owned() });
                }
                base
            }
        };
        let root = join(&base, &build_context(build.build_context.as_deref())?);
        if !tree.has_directory(&root) {
            let name = brief(build.build_context.as_deref().unwrap_or_default());
            return Err(ContextError::BuildContext { why: format!("there is no directory {name:?} in the context") });
        }
        let (dockerfile, text) = dockerfile(build, tree, &base, &root)?;
        let own_ignore = format!("{}.{}", dockerfile, IGNORE_FILE.trim_start_matches('.'));
        let ignore = match tree.text(&join(&root, &own_ignore), IGNORE_BYTES_MAX).map_err(TreeError::from)? {
            Some(text) => Some(text),
            None => tree.text(&join(&root, IGNORE_FILE), IGNORE_BYTES_MAX).map_err(TreeError::from)?,
        };
        let ignore = ignore.as_deref().map(Ignore::parse).unwrap_or_default();
        Ok(Self { root, dockerfile, text, ignore })
    }

    /// Writes the tar. Files left out write nothing, so that a reader's end alone would not be noticed.
    pub(super) fn write(&self, tree: &Tree, out: impl Write, given_up: &AtomicBool) -> io::Result<()> {
        let mut tar = Builder::new(out);
        let prefix = if self.root.is_empty() { String::new() } else { format!("{}/", self.root) };
        let below = tree.nodes().range(prefix.clone()..).take_while(|(name, _)| name.starts_with(&prefix));
        for (name, node) in below {
            let name = name.strip_prefix(&prefix).unwrap_or(name);
            if given_up.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let is_needed = name == self.dockerfile;
            if name.is_empty() || (is_needed && self.text.is_some()) || (!is_needed && self.ignore.matches(name)) {
                continue;
            }
            append(&mut tar, tree, name, node)?;
        }
        match &self.text {
            None => {}
            Some(Text::Inline(text)) => {
                let mut header = header(EntryType::Regular, FILE_MODE, text.len() as u64);
                tar.append_data(&mut header, &self.dockerfile, text.as_bytes())?;
            }
            Some(Text::File(name)) => match tree.nodes().get(name) {
                Some(node) => append(&mut tar, tree, &self.dockerfile, node)?,
                None => return Err(io::Error::other("invariant: the Dockerfile was there")),
            },
        }
        tar.into_inner()?.flush()
    }
}

fn append(tar: &mut Builder<impl Write>, tree: &Tree, name: &str, node: &Node) -> io::Result<()> {
    match node {
        Node::Directory { mode } => {
            let mut header = header(EntryType::Directory, *mode, 0);
            tar.append_data(&mut header, name, io::empty())
        }
        Node::File { at, bytes, mode } => {
            let mut header = header(EntryType::Regular, *mode, *bytes);
            tar.append_data(&mut header, name, tree.read(*at, *bytes))
        }
        Node::Link { target } => {
            let mut header = header(EntryType::Symlink, 0o777, 0);
            tar.append_link(&mut header, name, target)
        }
    }
}

fn header(kind: EntryType, mode: u32, bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    // A directory that nobody may enter would stop the build.
    header.set_mode(if kind == EntryType::Directory { mode | DIRECTORY_MODE & 0o700 } else { mode });
    header.set_size(bytes);
    header.set_mtime(MTIME);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Which Dockerfile, and what it is called in the tar.
fn dockerfile(build: &Build, tree: &Tree, base: &str, root: &str) -> Result<(String, Option<Text>), ContextError> {
    let filename = match build.filename.as_deref() {
        Some(name) => {
            let checked = check_relative_name("build.filename", name);
            checked.map_err(|error| NameError { name: brief(&error.name).into_owned(), ..error })?;
            Some(clean(name)?)
        }
        None => None,
    };
    // Beside the files, as the original has it; only one that is looked for without a name is looked for in what is built.
    let at = match (&filename, &build.dockerfile) {
        (Some(name), _) => join(base, name),
        (None, Some(_)) => join(base, DOCKERFILE),
        (None, None) => join(root, DOCKERFILE),
    };
    let inside =
        if root.is_empty() { Some(at.as_str()) } else { at.strip_prefix(root).and_then(|rest| rest.strip_prefix('/')) };
    if let Some(text) = &build.dockerfile {
        return Ok((inside.unwrap_or(OUTSIDE).to_owned(), Some(Text::Inline(text.clone()))));
    }
    match (tree.nodes().get(&at), inside) {
        (Some(Node::File { .. } | Node::Link { .. }), Some(inside)) => Ok((inside.to_owned(), None)),
        (Some(Node::File { .. }), None) => Ok((OUTSIDE.to_owned(), Some(Text::File(at)))),
        (Some(Node::Directory { .. } | Node::Link { .. }) | None, _) => {
            Err(ContextError::NoDockerfile { name: brief(filename.as_deref().unwrap_or(DOCKERFILE)).into_owned() })
        }
    }
}

/// A directory in the context; never an address, an option or a way out.
fn build_context(text: Option<&str>) -> Result<String, ContextError> {
    let text = text.map(str::trim).unwrap_or_default();
    if text.contains("://") || text.starts_with('-') {
        let why = format!("{:?} is not a directory in the context", brief(text));
        return Err(ContextError::BuildContext { why });
    }
    clean(text).map_err(|error| ContextError::BuildContext { why: error.to_string() })
}

fn join(base: &str, name: &str) -> String {
    match (base, name) {
        ("", name) => name.to_owned(),
        (base, "") => base.to_owned(),
        (base, name) => format!("{base}/{name}"),
    }
}

#[cfg(test)]
mod tests;
