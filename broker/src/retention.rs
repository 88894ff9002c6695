//! What is kept how long: jobs that left their queue, their logs, and blobs.
//!
//! One task sweeps, slowly: it takes small pieces with pauses between them, wakes no queue, and asks a live one only for what
//! fits between two of its batches. What it removes nobody could see any more (jobs), or was looked for by all who could need it
//! (blobs). A sweep that is broken off is begun again by the next.
//!
//! The order in one sweep matters: logs before jobs, so that a job that is forgotten and comes back at run 1 finds no lines of a
//! higher run; jobs before blobs, so that what only forgotten jobs name goes with them.

mod blobs;
mod jobs;
mod logs;
mod named;
mod pace;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use protocol::id::UnixMillis;
use tokio::time::Instant;

use crate::blob_uses::STAYS;
use crate::blobs::{BlobError, Blobs};
use crate::clock;
use crate::engine::Engine;
use crate::journal::JournalError;
use crate::logs::LogError;
use crate::refusal::Refusal;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// How long after a start the first sweep comes: everybody comes back first.
const FIRST_AFTER: Duration = Duration::from_secs(10 * 60);
/// How long after a start the first blobs may go: until [`STAYS`] it is not known who was told before that one is there. Half as
/// much again, so that it is not less when it is [`jittered`].
const BLOBS_AFTER: Duration = Duration::from_secs(STAYS.as_secs() * 3 / 2);
/// How long between two sweeps; what is kept for days may stay for an hour more.
const EVERY: Duration = Duration::from_secs(60 * 60);
/// And between two sweeps of blobs, which read all definitions and results.
const BLOBS_EVERY: Duration = Duration::from_secs(12 * 60 * 60);

/// How long things are kept; `None`: for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Jobs, with their definitions and results, after they left their queue, in milliseconds. Default: four weeks. A submission
    /// of the job begins it anew.
    pub jobs_ms: Option<u64>,
    /// Logs after their job ended, in milliseconds; not longer than the job. Default: a week.
    pub logs_ms: Option<u64>,
    /// Blobs that no job names, after they were stored or found there by someone who wanted to store them, in milliseconds.
    /// Default: four weeks.
    pub blobs_ms: Option<u64>,
}

impl Default for Keep {
    fn default() -> Self {
        Self { jobs_ms: Some(28 * DAY_MS), logs_ms: Some(7 * DAY_MS), blobs_ms: Some(28 * DAY_MS) }
    }
}

/// The time before which something that is kept for `keep_ms` goes; none when it is kept for ever.
fn before(now: UnixMillis, keep_ms: Option<u64>) -> Option<UnixMillis> {
    keep_ms.map(|keep_ms| UnixMillis(now.0.saturating_sub(keep_ms)))
}

/// How much a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Jobs that are forgotten.
    pub jobs: u64,
    /// Files of large definitions and results.
    pub bodies: u64,
    /// Jobs whose logs are gone.
    pub logs: u64,
    /// Blobs.
    pub blobs: u64,
}

/// Why a sweep was broken off.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The journal cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A queue cannot be read.
    #[error("a queue cannot be read: {0}")]
    Queue(Refusal),
    /// The logs.
    #[error(transparent)]
    Logs(#[from] LogError),
    /// The blob store.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// What some jobs name cannot be known.
    #[error("blobs are left as they are: {0}")]
    Unknown(&'static str),
    /// The broker stops.
    #[error("the broker stops")]
    Stopping,
}

impl From<Refusal> for SweepError {
    fn from(refusal: Refusal) -> Self {
        Self::Queue(refusal)
    }
}

/// Sweeps. Clones share it.
#[derive(Clone)]
pub struct Retention(Arc<Shared>);

struct Shared {
    engine: Engine,
    blobs: Blobs,
    keep: Keep,
    swept: [AtomicU64; 4],
    last_at_ms: AtomicU64,
    /// Sweeps do not overlap.
    sweeping: tokio::sync::Mutex<()>,
}

impl Retention {
    /// Over the parts of an open broker; does nothing by itself.
    #[must_use]
    pub fn new(engine: Engine, blobs: Blobs, keep: Keep) -> Self {
        let shared = Shared {
            engine,
            blobs,
            keep,
            swept: Default::default(),
            last_at_ms: AtomicU64::new(0),
            sweeping: tokio::sync::Mutex::default(),
        };
        Self(Arc::new(shared))
    }

    /// Sweeps now and then, until the engine ends.
    pub async fn run(self) {
        let engine = self.0.engine.clone();
        tokio::select! {
            () = engine.ends() => {}
            () = self.sweep_for_ever() => {}
        }
    }

    async fn sweep_for_ever(&self) {
        let started = Instant::now();
        let mut blobs_due = started + jittered(BLOBS_AFTER);
        tokio::time::sleep(jittered(FIRST_AFTER)).await;
        loop {
            self.sweep_in_turn(clock::now(), &mut blobs_due).await;
            tokio::time::sleep(jittered(EVERY)).await;
        }
    }

    /// Sweeps what is due, once the event store was compared with the journal: files and blobs that only a job names which the
    /// store has lost could not be had again, but the job can.
    async fn sweep_in_turn(&self, now: UnixMillis, blobs_due: &mut Instant) {
        if !self.0.engine.journal().stats().scrubbed {
            tracing::info!("the journal is still being read through; nothing is swept yet");
            return;
        }
        tell(self.sweep_jobs(now).await);
        if Instant::now() >= *blobs_due {
            tell(self.sweep_blobs(now).await);
            *blobs_due = Instant::now() + jittered(BLOBS_EVERY);
        }
    }

    /// Sweeps everything, as of `now`.
    ///
    /// # Errors
    ///
    /// [`SweepError`]; what was removed before is gone all the same.
    pub async fn sweep(&self, now: UnixMillis) -> Result<Swept, SweepError> {
        let jobs = self.sweep_jobs(now).await?;
        let blobs = self.sweep_blobs(now).await?;
        Ok(Swept { blobs: blobs.blobs, ..jobs })
    }

    /// Removes logs and jobs whose time is over.
    ///
    /// # Errors
    ///
    /// As [`Retention::sweep`].
    pub async fn sweep_jobs(&self, now: UnixMillis) -> Result<Swept, SweepError> {
        let _alone = self.0.sweeping.lock().await;
        let Keep { jobs_ms, logs_ms, blobs_ms: _ } = self.0.keep;
        let mut swept = Swept::default();
        // A job that is forgotten takes its logs along.
        let logs_ms = logs_ms.into_iter().chain(jobs_ms).min();
        let done = async {
            if let Some(ended_before) = before(now, logs_ms) {
                logs::sweep(&self.0.engine, ended_before, &mut swept).await?;
            }
            if let Some(left_before) = before(now, jobs_ms) {
                jobs::sweep(&self.0.engine, left_before, now, &mut swept).await?;
            }
            Ok(())
        };
        let done = done.await;
        self.count(swept, now);
        done.map(|()| swept)
    }

    /// Removes blobs that are old and that nothing names.
    ///
    /// # Errors
    ///
    /// As [`Retention::sweep`].
    pub async fn sweep_blobs(&self, now: UnixMillis) -> Result<Swept, SweepError> {
        let _alone = self.0.sweeping.lock().await;
        let mut swept = Swept::default();
        let done = match before(now, self.0.keep.blobs_ms) {
            Some(used_before) => blobs::sweep(&self.0.engine, &self.0.blobs, used_before, &mut swept).await,
            None => Ok(()),
        };
        self.count(swept, now);
        done.map(|()| swept)
    }

    fn count(&self, swept: Swept, now: UnixMillis) {
        let Swept { jobs, bodies, logs, blobs } = swept;
        for (counter, more) in self.0.swept.iter().zip([jobs, bodies, logs, blobs]) {
            counter.fetch_add(more, Ordering::Relaxed);
        }
        self.0.last_at_ms.fetch_max(now.0, Ordering::Relaxed);
    }

    /// What was removed since the start.
    #[must_use]
    pub fn swept(&self) -> Swept {
        let [jobs, bodies, logs, blobs] = [0, 1, 2, 3].map(|at: usize| self.0.swept[at].load(Ordering::Relaxed));
        Swept { jobs, bodies, logs, blobs }
    }

    /// When the last sweep began; the beginning of time before the first.
    #[must_use]
    pub fn last_at(&self) -> UnixMillis {
        UnixMillis(self.0.last_at_ms.load(Ordering::Relaxed))
    }
}

fn tell(done: Result<Swept, SweepError>) {
    match done {
        Ok(swept) if swept == Swept::default() => {}
        Ok(Swept { jobs, bodies, logs, blobs }) => {
            tracing::info!("swept {jobs} jobs, {bodies} large bodies, the logs of {logs} jobs, {blobs} blobs");
        }
        Err(error) => tracing::warn!(%error, "a sweep was broken off: {error}; the next one goes on"),
    }
}

/// Between three and five quarters of `usual`, so that brokers that were started together do not sweep together.
fn jittered(usual: Duration) -> Duration {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0_u8) % 1024;
    let quarter = usual / 4;
    usual - quarter + quarter * u32::try_from(random * 2).unwrap_or(0) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BlobsUrl;
    use crate::engine::EngineConfig;
    use crate::journal::{Journal, JournalConfig};
    use crate::logs::{LogLimits, LogStore};

    #[tokio::test]
    async fn nothing_is_swept_before_the_event_store_was_compared_with_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let config = JournalConfig { scrub: false, ..JournalConfig::new(dir.path().join("journal")) };
        let (journal, _) = Journal::open(config).unwrap();
        let logs = LogStore::open(dir.path().join("logs"), LogLimits::default()).unwrap();
        let blobs = Blobs::open(&BlobsUrl::Folder(dir.path().join("blobs")), 1000).await.unwrap();
        let retention =
            Retention::new(Engine::start(journal.clone(), logs, EngineConfig::default()), blobs, Keep::default());
        let (now, mut blobs_due) = (clock::now(), Instant::now());
        retention.sweep_in_turn(now, &mut blobs_due).await;
        assert_eq!(retention.last_at(), UnixMillis(0));
        tokio::task::spawn_blocking(move || journal.scrub()).await.unwrap().unwrap();
        retention.sweep_in_turn(now, &mut blobs_due).await;
        assert_eq!(retention.last_at(), now);
    }

    #[test]
    fn no_blob_goes_before_all_is_noted_that_may_be_in_use() {
        for usual in [BLOBS_AFTER, EVERY] {
            (0..100).for_each(|_| assert!(jittered(usual) >= usual / 4 * 3 && jittered(usual) <= usual / 4 * 5));
        }
        assert!(BLOBS_AFTER / 4 * 3 >= STAYS);
    }
}
