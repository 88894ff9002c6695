//! The horizon: jobs that left their queue before it are forgotten.
//!
//! It is on disk before anything that it covers is removed, and it does not move back. So what was forgotten stays forgotten,
//! whatever a crash left of it and though the segments could tell it again: rows that a rebuilt event store brings back are
//! hidden by it, and the next sweep takes them out.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use protocol::id::{Digest, UnixMillis};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::archive::Archived;
use super::segment::write_whole;

const FORGOTTEN: &str = "forgotten.json";

/// What the file says.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    left_before_ms: UnixMillis,
    /// The blake3 of the number's text: a flipped bit must not make years of jobs disappear.
    check: Digest,
}

fn check(left_before: UnixMillis) -> Digest {
    Digest::of(left_before.to_string().as_bytes())
}

/// The horizon, in memory.
#[derive(Debug, Default)]
pub(crate) struct Forgotten(AtomicU64);

impl Forgotten {
    /// What a data folder says.
    pub(crate) fn of(data: &Path) -> Self {
        Self(AtomicU64::new(load(data).0))
    }

    /// Jobs that left before this are forgotten.
    pub(crate) fn left_before(&self) -> UnixMillis {
        UnixMillis(self.0.load(Ordering::Acquire))
    }

    /// Whether a job is.
    pub(crate) fn covers(&self, kept: &Archived) -> bool {
        kept.last_there_ms() < self.left_before()
    }

    /// Moves it forward, on disk first. Only one that lies after `now` moves back: a clock that was wrong put it there, and it
    /// would hide every job that leaves from now on.
    pub(crate) fn advance(&self, data: &Path, left_before: UnixMillis, now: UnixMillis) -> io::Result<()> {
        let known = self.left_before();
        if known > now {
            warn!("jobs were forgotten up to a time that is still to come; the clock was wrong");
        }
        if left_before > known || known > now {
            let stored = Stored { left_before_ms: left_before, check: check(left_before) };
            write_whole(&data.join(FORGOTTEN), &serde_json::to_vec(&stored)?)?;
            self.0.store(left_before.0, Ordering::Release);
        }
        Ok(())
    }
}

/// The horizon of a data folder; the beginning of time when there is none, or none that can be read.
pub(crate) fn load(data: &Path) -> UnixMillis {
    let path = data.join(FORGOTTEN);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return UnixMillis(0),
        Err(error) => {
            warn!("cannot read {}: {error}; the next sweep writes it again", path.display());
            return UnixMillis(0);
        }
    };
    match serde_json::from_slice::<Stored>(&bytes) {
        Ok(stored) if stored.check == check(stored.left_before_ms) => stored.left_before_ms,
        Ok(_) | Err(_) => {
            warn!("{} is damaged; the next sweep writes it again", path.display());
            UnixMillis(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_horizon_only_moves_forward_and_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let forgotten = Forgotten::of(dir.path());
        assert_eq!(forgotten.left_before(), UnixMillis(0));
        forgotten.advance(dir.path(), UnixMillis(50), UnixMillis(99)).unwrap();
        forgotten.advance(dir.path(), UnixMillis(20), UnixMillis(50)).unwrap();
        assert_eq!((forgotten.left_before(), load(dir.path())), (UnixMillis(50), UnixMillis(50)));
        // Unless a wrong clock put it where nothing is yet.
        forgotten.advance(dir.path(), UnixMillis(20), UnixMillis(49)).unwrap();
        assert_eq!((forgotten.left_before(), load(dir.path())), (UnixMillis(20), UnixMillis(20)));
    }

    #[test]
    fn a_changed_horizon_hides_nothing() {
        let dir = tempfile::tempdir().unwrap();
        Forgotten::default().advance(dir.path(), UnixMillis(50), UnixMillis(99)).unwrap();
        let path = dir.path().join(FORGOTTEN);
        let text = std::fs::read_to_string(&path).unwrap().replace(":50,", ":51,");
        std::fs::write(&path, text).unwrap();
        assert_eq!(load(dir.path()), UnixMillis(0));
    }
}
