//! Blobs that were fetched, by their SHA-256. A file here has the bytes that its name says, and nobody can write it:
//! containers get copies. The least recently used go when there are too many, never one that is being copied.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};
use tempfile::TempPath;
use tokio::sync::OwnedMutexGuard;

use super::digest::BlobHash;
use super::transfer::TransferError;
use super::tree::remove_tree;
use crate::sync::lock;

/// Nobody writes a cached blob.
const CACHED_MODE: u32 = 0o444;
/// The most blobs: what is known of each takes some hundred bytes of memory, and a directory of more is slow to read.
const ENTRIES_MAX: usize = 100_000;

/// The cache's two directories, on one file system, so that a rename is all it takes.
#[derive(Debug)]
pub(super) struct Cache {
    blobs: PathBuf,
    incoming: PathBuf,
    bytes_max: u64,
    state: Mutex<State>,
    /// Those that are being fetched, by address and hash: an address that never answers must not hold up who knows a better one.
    fetching: Mutex<HashMap<(String, BlobHash), Weak<Slot>>>,
}

/// One fetch that several wait for; how it failed is for all of them.
type Slot = tokio::sync::Mutex<Option<Arc<TransferError>>>;

#[derive(Debug, Default)]
struct State {
    entries: HashMap<BlobHash, Entry>,
    /// Which was used when; the first was used least recently.
    order: BTreeMap<u64, BlobHash>,
    next_use: u64,
    bytes: u64,
    evicted: u64,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    used: u64,
    /// How many copy it now.
    users: u32,
}

/// A blob that stays while this is held.
#[derive(Debug)]
pub(super) struct Cached {
    cache: Arc<Cache>,
    hash: BlobHash,
    bytes: u64,
}

impl Cached {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn path(&self) -> PathBuf {
        self.cache.path(self.hash)
    }

    /// Notes on disk that it was used, so that the next process knows it. It is only worth something to the order.
    pub(super) fn touch(&self) {
        let what = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        let now = Timestamps { last_access: what(UTIME_OMIT), last_modification: what(UTIME_NOW) };
        let _ = utimensat(CWD, self.path(), &now, AtFlags::empty());
    }
}

impl Drop for Cached {
    fn drop(&mut self) {
        if let Some(entry) = lock(&self.cache.state).entries.get_mut(&self.hash) {
            entry.users = entry.users.saturating_sub(1);
        }
    }
}

impl Cache {
    /// Opens the cache below `data`: what an earlier process kept is taken over, what it was fetching when it ended goes.
    pub(super) fn open(data: &Path, bytes_max: Option<u64>) -> io::Result<Self> {
        let bytes_max = bytes_max.unwrap_or(u64::MAX);
        let (blobs, incoming) = (data.join("f"), data.join("incoming"));
        remove_tree(&incoming)?;
        for directory in [&blobs, &incoming] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let state = Mutex::new(State::read(&blobs)?);
        let cache = Self { blobs, incoming, bytes_max, state, fetching: Mutex::default() };
        cache.trim();
        Ok(cache)
    }

    /// The blob, if it is here.
    pub(super) fn find(self: &Arc<Self>, hash: BlobHash) -> Option<Cached> {
        let bytes = fs::symlink_metadata(self.path(hash)).ok().filter(fs::Metadata::is_file).map(|found| found.len());
        let mut state = lock(&self.state);
        // Somebody removed it, or cut it off.
        let bytes = bytes.filter(|bytes| state.entries.get(&hash).is_some_and(|entry| entry.bytes == *bytes));
        let Some(bytes) = bytes else {
            if state.entries.get(&hash).is_some_and(|entry| entry.users == 0) {
                state.forget(hash);
            }
            return None;
        };
        state.used(hash);
        drop(state);
        Some(Cached { cache: Arc::clone(self), hash, bytes })
    }

    /// Waits for its turn to fetch a blob from an address. Whoever waited looks whether it is there now; `Some` in the guard: it
    /// cannot be had.
    pub(super) async fn turn(&self, url: &str, hash: BlobHash) -> OwnedMutexGuard<Option<Arc<TransferError>>> {
        let slot = {
            let mut fetching = lock(&self.fetching);
            fetching.retain(|_, slot| slot.strong_count() > 0);
            let key = (url.to_owned(), hash);
            match fetching.get(&key).and_then(Weak::upgrade) {
                Some(slot) => slot,
                None => {
                    let slot = Arc::new(Slot::default());
                    fetching.insert(key, Arc::downgrade(&slot));
                    slot
                }
            }
        };
        slot.lock_owned().await
    }

    fn path(&self, hash: BlobHash) -> PathBuf {
        self.blobs.join(hash.to_string())
    }

    /// A file to fetch into; it goes away unless it is [stored](Self::store).
    pub(super) fn incoming(&self) -> io::Result<(fs::File, TempPath)> {
        tempfile::NamedTempFile::new_in(&self.incoming).map(tempfile::NamedTempFile::into_parts)
    }

    /// Whether a blob of that size is worth keeping.
    pub(super) fn takes(&self, bytes: u64) -> bool {
        bytes <= self.bytes_max
    }

    /// Takes in a complete file whose bytes have been hashed to `hash`. On disk before it has its name.
    pub(super) fn store(
        self: &Arc<Self>,
        file: &fs::File,
        path: TempPath,
        hash: BlobHash,
        bytes: u64,
    ) -> io::Result<Cached> {
        file.set_permissions(fs::Permissions::from_mode(CACHED_MODE))?;
        file.sync_data()?;
        let mut state = lock(&self.state);
        path.persist(self.path(hash))?;
        let users = state.forget(hash).unwrap_or(0);
        state.add(hash, bytes, users);
        state.used(hash);
        drop(state);
        self.trim();
        Ok(Cached { cache: Arc::clone(self), hash, bytes })
    }

    /// Removes the least recently used until the rest fits.
    pub(super) fn trim(&self) {
        self.shrink(self.bytes_max, ENTRIES_MAX);
    }

    /// Removes all that nobody uses, because the disk is full; says whether there was any.
    pub(super) fn make_room(&self) -> bool {
        self.shrink(0, 0)
    }

    fn shrink(&self, bytes_max: u64, entries_max: usize) -> bool {
        let mut victims = Vec::new();
        {
            let mut state = lock(&self.state);
            while let Some(hash) = state.victim(bytes_max, entries_max) {
                state.forget(hash);
                state.evicted += 1;
                // Out of the way at once, so that nothing that comes again meanwhile is removed in its stead; the bytes go below.
                let aside = self.incoming.join(format!("evicted-{}", state.evicted));
                match fs::rename(self.path(hash), &aside) {
                    Ok(()) => victims.push(aside),
                    Err(error) => tracing::debug!("cannot remove a cached input: {error}"),
                }
            }
        }
        for victim in &victims {
            if let Err(error) = fs::remove_file(victim) {
                tracing::warn!("cannot remove a cached input: {error}");
            }
        }
        !victims.is_empty()
    }
}

impl State {
    /// What is in the directory, in the order in which it was used.
    fn read(blobs: &Path) -> io::Result<Self> {
        let mut found: Vec<(SystemTime, BlobHash, u64)> = Vec::new();
        for entry in fs::read_dir(blobs)? {
            let entry = entry?;
            let Some(hash) = entry.file_name().to_str().and_then(BlobHash::parse) else { continue };
            let Ok(about) = entry.metadata() else { continue };
            if about.is_file() {
                found.push((about.modified()?, hash, about.len()));
            }
        }
        found.sort_unstable_by_key(|(used, ..)| *used);
        let mut state = Self::default();
        found.into_iter().for_each(|(_, hash, bytes)| state.add(hash, bytes, 0));
        Ok(state)
    }

    fn add(&mut self, hash: BlobHash, bytes: u64, users: u32) {
        let used = self.next_use;
        self.next_use += 1;
        self.order.insert(used, hash);
        self.entries.insert(hash, Entry { bytes, used, users });
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// It is the most recently used, by one more.
    fn used(&mut self, hash: BlobHash) {
        let used = self.next_use;
        if let Some(entry) = self.entries.get_mut(&hash) {
            self.next_use += 1;
            self.order.remove(&entry.used);
            self.order.insert(used, hash);
            entry.used = used;
            entry.users += 1;
        }
    }

    /// Says how many used it.
    fn forget(&mut self, hash: BlobHash) -> Option<u32> {
        let entry = self.entries.remove(&hash)?;
        self.order.remove(&entry.used);
        self.bytes = self.bytes.saturating_sub(entry.bytes);
        Some(entry.users)
    }

    fn victim(&self, bytes_max: u64, entries_max: usize) -> Option<BlobHash> {
        if self.bytes <= bytes_max && self.entries.len() <= entries_max {
            return None;
        }
        let is_unused = |hash: &&BlobHash| self.entries.get(*hash).is_some_and(|entry| entry.users == 0);
        self.order.values().find(is_unused).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn put(cache: &Arc<Cache>, text: &str) -> Cached {
        let (mut file, path) = cache.incoming().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        cache.store(&file, path, hash(text), text.len() as u64).unwrap()
    }

    fn hash(text: &str) -> BlobHash {
        BlobHash::of_reader(text.as_bytes(), || true).unwrap().0
    }

    fn has(cache: &Arc<Cache>, text: &str) -> bool {
        cache.path(hash(text)).exists() && cache.find(hash(text)).is_some()
    }

    fn open(data: &Path, bytes_max: u64) -> Arc<Cache> {
        Arc::new(Cache::open(data, Some(bytes_max)).unwrap())
    }

    #[test]
    fn the_least_recently_used_goes_and_one_in_use_never() {
        let data = tempfile::tempdir().unwrap();
        let cache = open(data.path(), 10);
        drop(put(&cache, "aaaa"));
        drop(put(&cache, "bbbb"));
        assert!(has(&cache, "aaaa"), "and so it was used later than the other");
        let c = put(&cache, "cccc");
        assert_eq!([has(&cache, "aaaa"), has(&cache, "bbbb"), has(&cache, "cccc")], [true, false, true]);
        let held = [cache.find(hash("aaaa")).unwrap(), c];
        let d = put(&cache, "dddd");
        assert_eq!(
            [has(&cache, "aaaa"), has(&cache, "cccc"), has(&cache, "dddd")],
            [true, true, true],
            "all are in use"
        );
        drop((held, d));
        cache.trim();
        assert_eq!([has(&cache, "aaaa"), has(&cache, "cccc"), has(&cache, "dddd")], [false, true, true]);
        assert_eq!(fs::read_dir(data.path().join("incoming")).unwrap().count(), 0);
        assert!(cache.make_room() && !has(&cache, "cccc") && !cache.make_room());
    }

    #[test]
    fn a_restart_takes_over_what_is_whole_in_the_order_of_its_use_and_removes_what_is_not() {
        let data = tempfile::tempdir().unwrap();
        let cache = open(data.path(), 100);
        for (age, text) in [(1, "aaaa"), (3, "bbbb"), (2, "cccc")] {
            let path = put(&cache, text).path();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 - age);
            fs::File::open(path).unwrap().set_modified(time).unwrap();
        }
        // As after a kill in the middle of a fetch.
        fs::write(data.path().join("incoming/half"), "h").unwrap();
        drop(cache);
        let cache = open(data.path(), 8);
        assert_eq!([has(&cache, "aaaa"), has(&cache, "bbbb"), has(&cache, "cccc")], [true, false, true]);
        assert_eq!(fs::read_dir(data.path().join("incoming")).unwrap().count(), 0);
    }

    #[test]
    fn a_blob_that_was_removed_or_cut_off_by_hand_is_not_there() {
        let data = tempfile::tempdir().unwrap();
        let cache = open(data.path(), 100);
        let (gone, cut) = (put(&cache, "gone").path(), put(&cache, "cut!").path());
        fs::remove_file(gone).unwrap();
        fs::set_permissions(&cut, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(cut, "cut").unwrap();
        assert!(!has(&cache, "gone") && !has(&cache, "cut!"));
        drop(put(&cache, "gone"));
        assert!(has(&cache, "gone"), "it can be had again");
        assert_eq!(lock(&cache.state).bytes, 4);
    }

    #[tokio::test]
    async fn one_fetches_and_the_others_hear_how_it_went() {
        let data = tempfile::tempdir().unwrap();
        let cache = open(data.path(), 100);
        let mut first = cache.turn("http://a/", hash("x")).await;
        let waiting = tokio::spawn({
            let cache = Arc::clone(&cache);
            async move { cache.turn("http://a/", hash("x")).await.is_some() }
        });
        // Neither another blob nor another address of it has to wait.
        drop(cache.turn("http://a/", hash("y")).await);
        drop(cache.turn("http://b/", hash("x")).await);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        *first = Some(Arc::new(TransferError::Changed));
        drop(first);
        assert!(waiting.await.unwrap());
        assert!(cache.turn("http://a/", hash("x")).await.is_none(), "a later one tries itself");
    }
}
