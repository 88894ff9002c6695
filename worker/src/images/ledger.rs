//! Which images are this worker's own doing, since when, and when each was last used. On disk, so that a restarted worker
//! still knows them; what is not in here is never removed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use protocol::id::UnixMillis;
use serde::{Deserialize, Serialize};

use super::reference::Reference;

/// The most images remembered. The ones unused for longest go first; they are then nobody's and stay.
const ENTRIES_MAX: usize = 10_000;
/// The file below the data directory.
const FILE: &str = "images.json";

/// Whose an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Origin {
    /// It was here already, or somebody else fetched it. Only looked after, never removed.
    Theirs,
    /// Fetched for a job.
    Pulled,
    /// Built for a job.
    Built,
    /// A layer that a build left which did not come to its end, or an image whose name went to a newer one.
    Remains,
}

impl Origin {
    /// Whose it is once its name was fetched: what a registry gave under a built image's name was not built.
    pub(super) fn after_pull(self) -> Self {
        match self {
            Self::Built => Self::Pulled,
            other @ (Self::Theirs | Self::Pulled | Self::Remains) => other,
        }
    }
}

/// An image by the one spelling of its name, or by its id where it has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) id: String,
    pub(super) origin: Origin,
    #[serde(default)]
    pub(super) bytes: u64,
    /// When its registry was last asked for it.
    #[serde(default)]
    pub(super) asked_ms: UnixMillis,
    /// When a run was last given it.
    #[serde(default)]
    pub(super) used_ms: UnixMillis,
}

/// The images that are known.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
}

impl Ledger {
    /// Reads what an earlier process wrote. A file that cannot be read is started anew: the images that it named stay.
    pub(super) fn open(data: &Path) -> Self {
        let path = data.join(FILE);
        let read = std::fs::read(&path).and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::other));
        let read: BTreeMap<String, Entry> = read.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!("cannot read {}: {error}; the images that it names will not be removed", path.display());
            }
            BTreeMap::new()
        });
        let mut ledger = Self { path, entries: BTreeMap::new() };
        read.into_iter().for_each(|(name, entry)| ledger.take_in(name, entry));
        ledger
    }

    /// Takes in what an earlier version may have written down under several spellings of one name. What is somebody else's
    /// under one of them is so under all.
    fn take_in(&mut self, name: String, entry: Entry) {
        let name = match (entry.origin, Reference::parse(&name)) {
            (Origin::Theirs | Origin::Pulled | Origin::Built, Some(reference)) => reference.canonical(),
            (Origin::Theirs | Origin::Pulled | Origin::Built, None) | (Origin::Remains, _) => name,
        };
        match self.entries.get_mut(&name) {
            None => {
                self.entries.insert(name, entry);
            }
            Some(there) => {
                there.used_ms = there.used_ms.max(entry.used_ms);
                there.asked_ms = there.asked_ms.max(entry.asked_ms);
                if there.origin != entry.origin || there.id != entry.id {
                    there.origin = Origin::Theirs;
                }
            }
        }
    }

    /// What is to be written, and where.
    pub(super) fn image(&self) -> (PathBuf, Vec<u8>) {
        (self.path.clone(), serde_json::to_vec(&self.entries).expect("invariant: plain data with text keys"))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    pub(super) fn put(&mut self, name: &str, entry: Entry) {
        self.entries.insert(name.to_owned(), entry);
        while self.entries.len() > ENTRIES_MAX {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used_ms).map(|(name, _)| name.clone());
            let Some(oldest) = oldest else { break };
            self.entries.remove(&oldest);
        }
    }

    pub(super) fn used(&mut self, name: &str, now: UnixMillis) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.used_ms = entry.used_ms.max(now);
        }
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.entries.remove(name);
    }

    /// What has to go until at most `bytes_max` bytes of our own images are left: those unused for longest, none of `kept`.
    pub(super) fn surplus(&self, bytes_max: u64, kept: &BTreeSet<String>) -> Vec<(String, Entry)> {
        let own = || self.entries.iter().filter(|(_, entry)| entry.origin != Origin::Theirs);
        // One image may have several names; its bytes count once and are free when the last is gone.
        let sizes: BTreeMap<&str, u64> = own().map(|(_, entry)| (entry.id.as_str(), entry.bytes)).collect();
        let mut left: u64 = sizes.values().fold(0, |sum, bytes| sum.saturating_add(*bytes));
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        own().for_each(|(_, entry)| *names.entry(&entry.id).or_default() += 1);
        let mut oldest_first: Vec<_> = own().filter(|(name, _)| !kept.contains(*name)).collect();
        oldest_first.sort_by_key(|(_, entry)| entry.used_ms);
        let mut surplus = Vec::new();
        for (name, entry) in oldest_first {
            if left <= bytes_max {
                break;
            }
            surplus.push((name.clone(), entry.clone()));
            if let Some(count) = names.get_mut(entry.id.as_str()) {
                *count -= 1;
                if *count == 0 {
                    left = left.saturating_sub(entry.bytes);
                }
            }
        }
        surplus
    }
}

/// Writes a ledger so that it is there as a whole, or the one before it is.
pub(super) fn write((path, bytes): (PathBuf, Vec<u8>)) -> io::Result<()> {
    use std::io::Write;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&bytes)?;
    file.persist(&path).map(drop).map_err(|error| error.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, origin: Origin, bytes: u64, used: u64) -> Entry {
        Entry { id: id.to_owned(), origin, bytes, asked_ms: UnixMillis(0), used_ms: UnixMillis(used) }
    }

    fn names(surplus: &[(String, Entry)]) -> Vec<&str> {
        surplus.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn the_images_unused_for_longest_go_and_never_those_of_others() {
        let mut ledger = Ledger::default();
        ledger.put("theirs", entry("1", Origin::Theirs, 1000, 0));
        ledger.put("old", entry("2", Origin::Pulled, 100, 1));
        ledger.put("new", entry("3", Origin::Built, 100, 3));
        ledger.put("middle", entry("4", Origin::Pulled, 100, 2));
        let none = BTreeSet::new();
        assert_eq!(names(&ledger.surplus(300, &none)), Vec::<&str>::new());
        assert_eq!(names(&ledger.surplus(299, &none)), ["old"]);
        assert_eq!(names(&ledger.surplus(100, &none)), ["old", "middle"]);
        assert_eq!(names(&ledger.surplus(0, &none)), ["old", "middle", "new"]);
        assert_eq!(names(&ledger.surplus(299, &BTreeSet::from(["old".to_owned()]))), ["middle"]);
        ledger.used("old", UnixMillis(9));
        assert_eq!(names(&ledger.surplus(299, &none)), ["middle"]);
        ledger.forget("middle");
        assert_eq!(names(&ledger.surplus(200, &none)), Vec::<&str>::new());
    }

    #[test]
    fn what_was_fetched_over_a_built_image_was_not_built() {
        assert_eq!(Origin::Built.after_pull(), Origin::Pulled);
        assert_eq!(Origin::Theirs.after_pull(), Origin::Theirs);
    }

    #[test]
    fn an_image_with_two_names_counts_once_and_is_free_when_both_are_gone() {
        let mut ledger = Ledger::default();
        ledger.put("a", entry("1", Origin::Pulled, 100, 1));
        ledger.put("b", entry("1", Origin::Pulled, 100, 2));
        ledger.put("c", entry("2", Origin::Pulled, 100, 3));
        let none = BTreeSet::new();
        assert_eq!(names(&ledger.surplus(200, &none)), Vec::<&str>::new());
        assert_eq!(names(&ledger.surplus(100, &none)), ["a", "b"]);
    }

    #[test]
    fn a_restarted_worker_knows_its_images() {
        let data = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(data.path());
        ledger.put("a:1", entry("sha256:1", Origin::Pulled, 7, 5));
        write(ledger.image()).unwrap();
        assert_eq!(Ledger::open(data.path()).get("docker.io/library/a:1"), ledger.get("a:1"));
        std::fs::write(data.path().join(FILE), "torn").unwrap();
        assert!(Ledger::open(data.path()).entries.is_empty());
    }

    #[test]
    fn what_was_written_down_under_two_spellings_is_one_and_never_less_somebody_elses() {
        let data = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(data.path());
        ledger.put("a", entry("sha256:1", Origin::Pulled, 7, 5));
        ledger.put("docker.io/library/a:latest", entry("sha256:1", Origin::Pulled, 7, 9));
        ledger.put("b", entry("sha256:2", Origin::Pulled, 7, 5));
        ledger.put("library/b", entry("sha256:2", Origin::Theirs, 7, 5));
        ledger.put("sha256:3", entry("sha256:3", Origin::Remains, 7, 5));
        write(ledger.image()).unwrap();
        let read = Ledger::open(data.path());
        let one = read.get("docker.io/library/a:latest").unwrap();
        assert_eq!((one.origin, one.used_ms), (Origin::Pulled, UnixMillis(9)));
        assert_eq!(read.get("docker.io/library/b:latest").unwrap().origin, Origin::Theirs);
        assert!(read.get("sha256:3").is_some(), "an id is no name");
        assert_eq!(read.entries.len(), 3);
    }
}
