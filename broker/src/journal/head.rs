//! The head file: a position that the segments are known to have reached, and how the journal was last left.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::segment::write_whole;

const HEAD: &str = "head.json";
/// Where Linux says which start of the machine this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastSeen {
    /// Everything up to here is on disk: files that are missing at the end are noticed by it.
    pub(crate) position: u64,
    /// Whether the journal was closed, the event store put on disk and all.
    #[serde(default)]
    pub(crate) closed: bool,
    /// In which life of the machine that was; empty where it cannot be told.
    #[serde(default)]
    pub(crate) boot: String,
}

impl LastSeen {
    /// Whether the machine stopped while the journal was open: what was not synced, as the event store is not, may be half there.
    pub(crate) fn machine_stopped(&self) -> bool {
        !self.closed && !self.boot.is_empty() && self.boot != boot()
    }
}

fn boot() -> String {
    std::fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Notes that everything up to `position` is on disk.
pub(crate) fn save(data: &Path, position: u64, closed: bool) -> io::Result<()> {
    write_whole(&data.join(HEAD), &serde_json::to_vec(&LastSeen { position, closed, boot: boot() })?)
}

/// What was last noted; nothing when that cannot be read.
pub(crate) fn load(data: &Path) -> LastSeen {
    let bytes = std::fs::read(data.join(HEAD)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}
