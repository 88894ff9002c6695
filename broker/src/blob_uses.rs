//! Blobs in use this moment: what an uploader was just told is there must not be swept before its job names it.
//!
//! A blob is swept when it is old and no job names it. Between being asked for (or uploaded again) and being named by a job that
//! is on disk it is safe only by being noted here: notes stand for at least `STAYS`, and as long as a sweep is under way. The
//! one key that is being removed is known here too; whoever comes for it waits until it is gone, and finds it missing.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a note stands at least: more than the while between an upload and the submission that names it, and than an
/// upload's address is good for.
pub(crate) const STAYS: Duration = Duration::from_secs(2 * 60 * 60);
/// The most notes of one such while, 8 bytes and little more each. With more of them nothing is swept until they are old.
const NOTES_MAX: usize = 262_144;

/// The notes. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct BlobUses(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    notes: Mutex<Notes>,
    removed: Notify,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Notes {
    /// Of this while and the one before; each key as a hash, so that two keys with one hash are both kept.
    newer: HashSet<u64>,
    older: HashSet<u64>,
    began: Option<Instant>,
    /// Whether there were more than can be noted, in either.
    newer_overflowed: bool,
    older_overflowed: bool,
    sweeps: u32,
    removing: Option<u64>,
}

/// A sweep under way: until it is dropped no note goes.
#[derive(Debug)]
pub(crate) struct Sweeping(BlobUses);

impl Drop for Sweeping {
    fn drop(&mut self) {
        self.0.notes().sweeps -= 1;
    }
}

/// A blob that is being removed: nobody is told meanwhile that it is there.
#[derive(Debug)]
pub(crate) struct Removing(BlobUses);

impl Drop for Removing {
    fn drop(&mut self) {
        self.0.notes().removing = None;
        self.0.0.removed.notify_waiters();
    }
}

impl Notes {
    fn turn(&mut self, now: Instant) {
        let began = *self.began.get_or_insert(now);
        if self.sweeps == 0 && now.duration_since(began) >= STAYS {
            self.older = std::mem::take(&mut self.newer);
            self.older_overflowed = std::mem::take(&mut self.newer_overflowed);
            self.began = Some(now);
        }
    }

    fn note(&mut self, key: u64) {
        if self.newer.len() < NOTES_MAX {
            self.newer.insert(key);
        } else if !self.newer.contains(&key) {
            self.newer_overflowed = true;
        }
    }
}

impl BlobUses {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        let mut notes = self.0.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.turn(Instant::now());
        notes
    }

    fn hash(&self, key: &str) -> u64 {
        self.0.hasher.hash_one(key)
    }

    /// Notes that a blob is named by someone; does not wait.
    pub(crate) fn note(&self, key: &str) {
        let key = self.hash(key);
        self.notes().note(key);
    }

    /// Notes all keys that `each` shows. Takes little memory, however many they are and however often each is shown: whoever
    /// hands in a definition chooses that.
    pub(crate) fn note_all(&self, each: impl FnOnce(&mut dyn FnMut(&str))) {
        let mut keys = HashSet::new();
        each(&mut |key| {
            // One more than can be noted says that there were too many.
            if keys.len() <= NOTES_MAX {
                keys.insert(self.hash(key));
            }
        });
        let mut notes = self.notes();
        keys.into_iter().for_each(|key| notes.note(key));
    }

    /// Notes that someone is about to be told whether a blob is there; waits while just that blob is being removed.
    pub(crate) async fn used(&self, key: &str) {
        let key = self.hash(key);
        loop {
            let removed = self.0.removed.notified();
            {
                let mut notes = self.notes();
                notes.note(key);
                if notes.removing != Some(key) {
                    return;
                }
            }
            removed.await;
        }
    }

    /// Begins a sweep.
    pub(crate) fn sweep(&self) -> Sweeping {
        self.notes().sweeps += 1;
        Sweeping(self.clone())
    }

    /// Whether everything that was used lately is noted.
    pub(crate) fn is_complete(&self) -> bool {
        let notes = self.notes();
        !notes.newer_overflowed && !notes.older_overflowed
    }

    /// Begins to remove a blob; none when it is in use. One at a time.
    pub(crate) fn remove(&self, key: &str) -> Option<Removing> {
        let key = self.hash(key);
        let mut notes = self.notes();
        let is_known = notes.newer.contains(&key) || notes.older.contains(&key);
        let is_free = !is_known && !notes.newer_overflowed && !notes.older_overflowed && notes.removing.is_none();
        is_free.then(|| {
            notes.removing = Some(key);
            drop(notes);
            Removing(self.clone())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_used_lately_is_not_removed() {
        let uses = BlobUses::default();
        uses.used("a").await;
        assert!(uses.remove("a").is_none());
        assert!(uses.remove("b").is_some());
        tokio::time::advance(STAYS).await;
        assert!(uses.remove("a").is_none(), "it may have been noted just before the turn");
        tokio::time::advance(STAYS).await;
        assert!(uses.remove("a").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn notes_stand_as_long_as_a_sweep_takes() {
        let uses = BlobUses::default();
        let sweep = uses.sweep();
        uses.note("a");
        tokio::time::advance(STAYS * 5).await;
        uses.note("b");
        tokio::time::advance(STAYS * 5).await;
        assert!(uses.remove("a").is_none() && uses.remove("b").is_none());
        drop(sweep);
        uses.note("c");
        tokio::time::advance(STAYS).await;
        assert!(uses.remove("a").is_some() && uses.remove("c").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_for_a_blob_that_is_being_removed_waits_until_it_is_gone() {
        let uses = BlobUses::default();
        let removing = uses.remove("a").unwrap();
        assert!(uses.remove("b").is_none(), "one at a time");
        uses.used("b").await;
        let waiting = tokio::spawn({
            let uses = uses.clone();
            async move { uses.used("a").await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        drop(removing);
        waiting.await.unwrap();
        assert!(uses.remove("a").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_text_that_names_too_many_is_not_noted_in_part_as_if_it_were_all() {
        let uses = BlobUses::default();
        uses.note_all(|note| (0..=NOTES_MAX).for_each(|_| note("a")));
        assert!(uses.is_complete() && uses.remove("a").is_none() && uses.remove("b").is_some());
        let uses = BlobUses::default();
        uses.note_all(|note| (0..2 * NOTES_MAX).for_each(|number| note(&number.to_string())));
        assert!(!uses.is_complete() && uses.remove("b").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn with_more_uses_than_can_be_noted_nothing_is_removed() {
        let uses = BlobUses::default();
        (0..=NOTES_MAX).for_each(|number| uses.note(&number.to_string()));
        assert!(!uses.is_complete() && uses.remove("x").is_none());
        tokio::time::advance(STAYS).await;
        assert!(!uses.is_complete());
        tokio::time::advance(STAYS).await;
        assert!(uses.is_complete() && uses.remove("x").is_some());
    }
}
