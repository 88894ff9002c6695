//! Logs: what runs print, kept beside the journal, not in it.
//!
//! Each job has one build log and one run log, whose lines are numbered from 0 over all its runs; those numbers are the cursors
//! that followers hold. They never move back: lines that are dropped keep their numbers, and a reader is told of the gap.
//!
//! A log is a row of files of bounded size with one JSON line per log line. A broker that is killed may lose the last lines
//! that the system had not written yet; logs are not synced.

mod chunk;
mod job;
mod sweep;
mod tap;
mod track;
mod watch;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::id::{JobId, QueueKey, RunNumber};
use protocol::native::{LogKind, LogLine, LogStep};
use tokio::sync::mpsc;

use job::JobLog;
pub use tap::Logged;
use tap::Taps;
pub use watch::LogWatch;
use watch::Watches;

/// A log that is at its limit has at least so many files, so that only a part of it goes at a time.
const CHUNKS_MIN: u64 = 4;

/// Bounds on stored logs.
#[derive(Clone, Copy, Debug)]
pub struct LogLimits {
    /// The most bytes kept per job, build and run together. Default: 100 MiB. Over it the oldest lines go.
    pub job_bytes_max: u64,
    /// The longest line, in bytes. Default: 64 KiB; what is longer is cut and says so.
    pub line_bytes_max: usize,
    /// The size at which the next file begins, and so the grain in which old lines go and the most that is read at once.
    /// Default: 1 MiB.
    pub chunk_bytes_max: u64,
    /// The most jobs whose files are held open. Default: 128, so that with two files each a usual limit of 1,024 open files is far.
    pub open_jobs_max: usize,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            job_bytes_max: 100 * 1024 * 1024,
            line_bytes_max: 64 * 1024,
            chunk_bytes_max: 1024 * 1024,
            open_jobs_max: 128,
        }
    }
}

/// Why lines could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The number of the first line is beyond what a run can have printed.
    #[error("line number {0} is out of range")]
    BadFirst(u64),
    /// The disk refused.
    #[error("cannot use the log files")]
    Io(#[from] io::Error),
}

/// Lines of one log from a position on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogPage {
    /// The number of the first line here.
    pub from: u64,
    /// The lines; where some are not kept any more, one line that says so.
    pub lines: Vec<LogLine>,
    /// Where to read on.
    pub next: u64,
    /// How many lines the log has had in all; a page that ends there is the last for now.
    pub end: u64,
}

/// One job in one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    queue: QueueKey,
    job: JobId,
}

/// All logs of a broker.
#[derive(Clone, Debug)]
pub struct LogStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    limits: LogLimits,
    open: Mutex<OpenJobs>,
    watches: Arc<Watches>,
    taps: Taps,
}

/// The jobs whose files are open, at most `open_jobs_max` of them apart from those in use this moment.
#[derive(Debug, Default)]
struct OpenJobs {
    /// Counts uses, so that the job used longest ago can be found.
    uses: u64,
    jobs: HashMap<Place, OpenJob>,
}

#[derive(Debug)]
struct OpenJob {
    used: u64,
    log: Arc<Mutex<JobLog>>,
}

impl LogStore {
    /// Opens the logs under `dir`, which is made when it is missing.
    ///
    /// # Errors
    ///
    /// What the system says when it cannot be made.
    pub fn open(dir: impl Into<PathBuf>, limits: LogLimits) -> io::Result<Self> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir)?;
        // The oldest file goes when there is too much: a small limit needs small files to be kept.
        let chunk_bytes_max = limits.chunk_bytes_max.min((limits.job_bytes_max / CHUNKS_MIN).max(1));
        let limits = LogLimits { chunk_bytes_max, ..limits };
        Ok(Self {
            shared: Arc::new(Shared {
                dir,
                limits,
                open: Mutex::default(),
                watches: Arc::default(),
                taps: Taps::default(),
            }),
        })
    }

    /// Adds lines of a run. `first` is the number of the first among the run's lines of this step's kind: lines that came
    /// before are dropped, a gap is kept as one, and lines of a run older than the newest are dropped.
    ///
    /// # Errors
    ///
    /// [`LogError`]; the lines are then not kept and may be sent again.
    pub async fn append(
        &self,
        queue: QueueKey,
        job: JobId,
        run: RunNumber,
        step: LogStep,
        first: u64,
        lines: Vec<LogLine>,
    ) -> Result<(), LogError> {
        self.add(Place { queue, job }, run, step, Some(first), lines).await
    }

    /// As [`LogStore::append`], for a run whose worker does not number its lines: they follow those that are there.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`]; the lines are then not kept.
    pub async fn append_next(
        &self,
        queue: QueueKey,
        job: JobId,
        run: RunNumber,
        step: LogStep,
        lines: Vec<LogLine>,
    ) -> Result<(), LogError> {
        self.add(Place { queue, job }, run, step, None, lines).await
    }

    async fn add(
        &self,
        place: Place,
        run: RunNumber,
        step: LogStep,
        first: Option<u64>,
        lines: Vec<LogLine>,
    ) -> Result<(), LogError> {
        let kind = step.kind();
        let shared = Arc::clone(&self.shared);
        let tap = shared.taps.of(place.queue);
        let tapped = tap.is_some().then(|| lines.clone());
        let known = blocking(move || {
            let log = shared.job(place);
            let mut log = lock(&log);
            log.append(kind, run, first, lines)
        })
        .await?;
        self.shared.watches.tell(place, kind);
        if let (Some(tap), Some(mut lines)) = (tap, tapped) {
            lines.drain(..known.min(lines.len()));
            if !lines.is_empty() {
                // A tap that is full loses them.
                let _ = tap.try_send(Logged { job: place.job, step, lines });
            }
        }
        Ok(())
    }

    /// Every line of a queue as it is written, from now on. A queue has one tap: an earlier one ends.
    #[must_use]
    pub fn tap(&self, queue: QueueKey) -> mpsc::Receiver<Logged> {
        self.shared.taps.open(queue)
    }

    /// Reads at most `lines_max` lines (and at most one file's worth) from number `since` on.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`].
    pub async fn read(
        &self,
        queue: QueueKey,
        job: JobId,
        kind: LogKind,
        since: u64,
        lines_max: usize,
    ) -> Result<LogPage, LogError> {
        let place = Place { queue, job };
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let Some(log) = shared.job_if_any(place)? else {
                return Ok(LogPage { from: since, next: since, ..LogPage::default() });
            };
            let mut log = lock(&log);
            log.read(kind, since, lines_max)
        })
        .await
    }

    /// Tells when there may be more to read. Take it before reading, or what comes in between is missed.
    #[must_use]
    pub fn watch(&self, queue: QueueKey, job: JobId, kind: LogKind) -> LogWatch {
        Watches::watch(&self.shared.watches, Place { queue, job }, kind)
    }

    /// Wakes the followers of both of a job's logs although no line came: the job is over.
    pub fn touch(&self, queue: QueueKey, job: JobId) {
        for kind in [LogKind::Build, LogKind::Run] {
            self.shared.watches.tell(Place { queue, job }, kind);
        }
    }

    /// Forgets a job's logs.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`].
    pub async fn remove(&self, queue: QueueKey, job: JobId) -> Result<(), LogError> {
        let place = Place { queue, job };
        let shared = Arc::clone(&self.shared);
        blocking(move || match shared.job_if_any(place)? {
            Some(log) => lock(&log).remove(),
            None => Ok(()),
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panic) => Err(LogError::Io(io::Error::other(panic))),
    }
}

/// A panic between two changes of a log leaves it to be read from its files again, so the lock stays good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn path(&self, place: Place) -> PathBuf {
        self.dir.join(place.queue.to_string()).join(place.job.to_string())
    }

    fn job_if_any(&self, place: Place) -> io::Result<Option<Arc<Mutex<JobLog>>>> {
        let known = lock(&self.open).jobs.contains_key(&place);
        Ok((known || self.path(place).try_exists()?).then(|| self.job(place)))
    }

    /// There is one [`JobLog`] per job at any time: it leaves the map only when nobody else holds it.
    fn job(&self, place: Place) -> Arc<Mutex<JobLog>> {
        let mut open = lock(&self.open);
        open.uses += 1;
        let used = open.uses;
        if let Some(job) = open.jobs.get_mut(&place) {
            job.used = used;
            return Arc::clone(&job.log);
        }
        while open.jobs.len() >= self.limits.open_jobs_max {
            let idle = open.jobs.iter().filter(|(_, job)| Arc::strong_count(&job.log) == 1);
            let Some(oldest) = idle.min_by_key(|(_, job)| job.used).map(|(place, _)| *place) else {
                break;
            };
            open.jobs.remove(&oldest);
        }
        let log = Arc::new(Mutex::new(JobLog::new(self.path(place), self.limits)));
        open.jobs.insert(place, OpenJob { used, log: Arc::clone(&log) });
        log
    }
}
