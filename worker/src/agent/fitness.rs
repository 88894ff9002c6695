//! What keeps a worker from taking runs although it has room: an engine that does not answer, a disk that is nearly full, results
//! that nobody takes. Looked at beside the work; whatever runs goes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::container::Engine;
use crate::outcome::in_units;

/// How often all is looked at while it is well: a disk fills in minutes, and an engine that goes away is mostly told sooner.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often while it is not: jobs wait for it.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The fewest files and folders that a file system must have room for: a run makes about ten of its own.
const FILES_MIN: u64 = 1024;
/// The most ends of runs that wait to be taken by the broker, of all queues, before no new ones are begun. Each is also a file.
const RESULTS_MAX: usize = 1000;
/// And the most bytes of them: they are in memory too.
const RESULT_BYTES_MAX: usize = 256 * 1024 * 1024;

/// A file system with less room than it has to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// So many bytes are free below the path.
    Bytes(PathBuf, u64),
    /// So few files and folders fit below the path.
    Files(PathBuf, u64),
}

/// What was seen last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    is_engine_away: bool,
    full: Option<Full>,
}

/// What is waiting for the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) results: usize,
    pub(super) bytes: usize,
}

/// Why nothing new is taken, in words; `None`: nothing stands against it. Pure.
pub(super) fn obstacle(seen: &Seen, waiting: Waiting) -> Option<String> {
    if seen.is_engine_away {
        return Some("the container engine does not answer".to_owned());
    }
    match &seen.full {
        Some(Full::Bytes(path, free)) => {
            return Some(format!(
                "only {} are free below {}, less than --min-free-disk",
                in_units(*free),
                path.display()
            ));
        }
        Some(Full::Files(path, free)) => return Some(format!("only {free} more files fit below {}", path.display())),
        None => {}
    }
    if waiting.results > RESULTS_MAX || waiting.bytes > RESULT_BYTES_MAX {
        return Some(format!(
            "{} results with {} wait to be taken by the broker",
            waiting.results,
            in_units(waiting.bytes as u64)
        ));
    }
    None
}

/// The worker's side of it.
#[derive(Debug)]
pub(super) struct Fitness {
    seen: Seen,
    news: watch::Receiver<Seen>,
    doubt: Arc<Notify>,
    /// What was told last.
    obstacle: Option<String>,
    _looking: AbortOnDropHandle<()>,
}

impl Fitness {
    /// Looks at `engine`, and that `bytes_min` are free below each of `places`, from now on.
    pub(super) fn start(engine: Engine, places: Vec<PathBuf>, bytes_min: u64) -> Self {
        let (tell, news) = watch::channel(Seen::default());
        let doubt = Arc::new(Notify::new());
        let looking = look(engine, places, bytes_min, Arc::clone(&doubt), tell);
        Self {
            seen: Seen::default(),
            news,
            doubt,
            obstacle: None,
            _looking: AbortOnDropHandle::new(tokio::spawn(looking)),
        }
    }

    /// Waits for the next look.
    pub(super) async fn looked(&mut self) {
        if self.news.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Takes in what was seen; says whether that changes anything.
    pub(super) fn update(&mut self) -> bool {
        let seen = self.news.borrow_and_update().clone();
        let is_new = (seen.is_engine_away, seen.full.is_some()) != (self.seen.is_engine_away, self.seen.full.is_some());
        self.seen = seen;
        is_new
    }

    /// A run found the engine away: that counts until it was looked at.
    pub(super) fn engine_failed(&mut self) {
        self.seen.is_engine_away = true;
        self.doubt.notify_one();
    }

    /// Why nothing new is to be taken. Told when it begins and when it ends.
    pub(super) fn obstacle(&mut self, waiting: Waiting) -> Option<&str> {
        let obstacle = obstacle(&self.seen, waiting);
        match (&self.obstacle, &obstacle) {
            (None, Some(why)) => warn!("takes no new jobs: {why}"),
            (Some(_), None) => info!("takes new jobs again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        self.obstacle = obstacle;
        self.obstacle.as_deref()
    }
}

async fn look(engine: Engine, places: Vec<PathBuf>, bytes_min: u64, doubt: Arc<Notify>, tell: watch::Sender<Seen>) {
    let places: Arc<[PathBuf]> = places.into();
    loop {
        let is_engine_away = !engine.answers().await;
        let places = Arc::clone(&places);
        // A network's file system may not answer for long.
        let full = tokio::task::spawn_blocking(move || places.iter().find_map(|place| full(place, bytes_min)));
        let seen = Seen { is_engine_away, full: full.await.ok().flatten() };
        let pause = if seen == Seen::default() { LOOK_EVERY } else { LOOK_AGAIN };
        // Told also when it is as before: a run may have doubted it.
        if tell.send(seen).is_err() {
            return;
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = doubt.notified() => {}
        }
    }
}

/// Whether there is too little room below `place`. One that cannot be looked at is not judged.
fn full(place: &Path, bytes_min: u64) -> Option<Full> {
    if bytes_min == 0 {
        return None;
    }
    let about = rustix::fs::statvfs(place).ok()?;
    let bytes = about.f_bavail.saturating_mul(about.f_frsize);
    if bytes < bytes_min {
        return Some(Full::Bytes(place.to_owned(), bytes));
    }
    // Some file systems do not count them.
    (about.f_files > 0 && about.f_favail < FILES_MIN).then(|| Full::Files(place.to_owned(), about.f_favail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_obstacle_is_told_in_words_and_no_room_at_all_is_none() {
        let well = Seen::default();
        assert_eq!(obstacle(&well, Waiting { results: RESULTS_MAX, bytes: RESULT_BYTES_MAX }), None);
        let away = Seen { is_engine_away: true, full: None };
        assert!(obstacle(&away, Waiting::default()).unwrap().contains("engine"));
        let full = Seen { full: Some(Full::Bytes("/data".into(), 3 << 20)), ..Seen::default() };
        let why = obstacle(&full, Waiting::default()).unwrap();
        assert!(why.contains("3 MiB") && why.contains("/data") && why.contains("--min-free-disk"), "{why}");
        let full = Seen { full: Some(Full::Files("/data".into(), 7)), ..Seen::default() };
        assert!(obstacle(&full, Waiting::default()).unwrap().contains("7 more files"));
        for waiting in
            [Waiting { results: RESULTS_MAX + 1, bytes: 0 }, Waiting { results: 1, bytes: RESULT_BYTES_MAX + 1 }]
        {
            assert!(obstacle(&well, waiting).unwrap().contains("wait to be taken"));
        }
    }

    #[test]
    fn free_disk_is_what_the_file_system_says() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(full(folder.path(), 0), None);
        assert!(matches!(full(folder.path(), u64::MAX), Some(Full::Bytes(..))));
        assert_eq!(full(&folder.path().join("missing"), u64::MAX), None);
    }
}
