//! How a journal is opened.

use std::path::PathBuf;

/// Segments are sealed at 64 MiB: quick to read whole, few enough files.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// When an acknowledgement may leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// After its record is on disk.
    #[default]
    Fsync,
    /// After its record was handed to the operating system, which puts it on disk within a second. A power cut may lose that
    /// second; a crash of the broker alone loses nothing.
    Interval,
}

/// How a journal is opened.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// The folder; made when it is missing.
    pub dir: PathBuf,
    /// When an acknowledgement may leave.
    pub durability: Durability,
    /// A segment is sealed when it has reached this many bytes.
    pub segment_bytes_max: u64,
    /// Whether all segments are read through, slowly, after the start.
    pub scrub: bool,
}

impl JournalConfig {
    /// The defaults: synced, segments of 64 MiB, scrubbed.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), durability: Durability::Fsync, segment_bytes_max: SEGMENT_BYTES, scrub: true }
    }
}
