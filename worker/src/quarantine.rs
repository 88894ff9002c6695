//! Jobs that crash the worker: counted on disk, and after the second time not run by this worker any more.
//!
//! A run leaves a mark on disk while the worker does something about it that is of its own making: preparing it, the first
//! minute beside its container, collecting what it left. A process that ends in order takes its marks away; those that the next
//! one finds are of runs during which the process died. It cannot be told apart why it died, so that the first time counts for
//! nothing by itself. A machine that went down proves nothing about its jobs: marks of another start of the machine do not count.
//!
//! A file is also how people see what is in quarantine, and let it out: by removing it.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use protocol::id::{JobId, QueueKey, RunNumber};
use protocol::native::HeldRun;
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use crate::error::WorkerError;
use crate::sync::lock;

/// How long a container is run beside before the worker stops to be at risk by it: a crash by what it prints comes back when a
/// restarted worker reads that again, within moments.
pub(crate) const STEADY: Duration = Duration::from_secs(60);
/// After so many crashes a job is in quarantine.
const CRASHES_MAX: u32 = 2;
/// The most jobs that are remembered: a queue's users cannot fill the disk with them. The oldest go first.
const JOBS_MAX: usize = 10_000;
const FOLDER: &str = "quarantine";
const SUFFIX: &str = ".json";

type Key = (QueueKey, JobId);

/// What is known of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    /// How often the worker died on it.
    crashes: u32,
    /// The newest run.
    run: RunNumber,
    /// The start of the machine, while a run is in a risky phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    marked_in: Option<String>,
}

/// A run during which the process before this one died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crashed {
    pub(crate) queue: QueueKey,
    pub(crate) run: HeldRun,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Quarantine {
    folder: PathBuf,
    boot: String,
    /// Jobs that the worker has died on; few, mostly none.
    known: Mutex<HashMap<Key, Known>>,
}

impl Quarantine {
    /// Reads what earlier processes left below `data`, and counts. `boot` names this start of the machine.
    pub(crate) fn open(data: &Path, boot: Option<&str>) -> Result<(Self, Vec<Crashed>), WorkerError> {
        let folder = data.join(FOLDER);
        fs::create_dir_all(&folder).map_err(WorkerError::disk(&folder))?;
        let found = read_all(&folder).map_err(WorkerError::disk(&folder))?;
        let quarantine = Self { folder, boot: boot.unwrap_or_default().to_owned(), known: Mutex::default() };
        let crashed = found.into_iter().filter_map(|(key, known)| quarantine.count(key, known)).collect();
        quarantine.forget_oldest();
        Ok((quarantine, crashed))
    }

    /// Takes in what was found of one job; says whether the last process died on it.
    fn count(&self, key: Key, mut known: Known) -> Option<Crashed> {
        let marked_in = known.marked_in.take();
        let is_crash = marked_in.as_ref().is_some_and(|boot| *boot == self.boot);
        if is_crash {
            known.crashes = known.crashes.saturating_add(1);
            let (queue, job) = (key.0.short(), key.1);
            if known.crashes >= CRASHES_MAX {
                error!(job.id = %job, queue.key = queue, "the worker died {} times on job {job}, and runs it no more; {} lets it run again", known.crashes, remedy(&key));
            } else {
                warn!(job.id = %job, queue.key = queue, "the worker died while it was at job {job}; once more, and it runs that job no more");
            }
        }
        if marked_in.is_some() {
            self.write(&key, &known);
        }
        let run = HeldRun { job: key.1, run: known.run };
        if known.crashes > 0 {
            lock(&self.known).insert(key, known);
        }
        is_crash.then_some(Crashed { queue: key.0, run })
    }

    /// Whether the job must not be run: then in words, why not.
    pub(crate) fn refuses(&self, queue: QueueKey, job: JobId) -> Option<String> {
        let key = (queue, job);
        let mut known = lock(&self.known);
        if known.get(&key)?.crashes < CRASHES_MAX {
            return None;
        }
        if matches!(fs::exists(self.path(&key)), Ok(false)) {
            known.remove(&key);
            return None;
        }
        Some(format!(
            "the worker crashed {CRASHES_MAX} times while it was at this job, and does not run it any more; whoever runs the worker \
             lets it run again by {}",
            remedy(&key)
        ))
    }

    /// Marks a run, until what is returned is gone.
    pub(crate) fn mark(self: &Arc<Self>, queue: QueueKey, run: HeldRun) -> Mark {
        let mark =
            Mark { quarantine: Arc::clone(self), key: (queue, run.job), run: run.run, is_set: AtomicBool::new(false) };
        mark.set();
        mark
    }

    /// The job came to its end here: what went wrong before was not its fault.
    pub(crate) fn ended(&self, queue: QueueKey, job: JobId) {
        let key = (queue, job);
        let mut known = lock(&self.known);
        if known.get(&key).is_some_and(|known| known.crashes < CRASHES_MAX) {
            known.remove(&key);
            self.remove(&key);
        }
    }

    fn path(&self, (queue, job): &Key) -> PathBuf {
        self.folder.join(queue.to_string()).join(format!("{job}{SUFFIX}"))
    }

    /// A hundred bytes into the page cache: whatever kills the process does not lose them.
    fn write(&self, key: &Key, known: &Known) {
        if *known == (Known { crashes: 0, marked_in: None, run: known.run }) {
            return self.remove(key);
        }
        let path = self.path(key);
        let bytes = serde_json::to_vec(known).unwrap_or_default();
        // A process that is killed here must not lose what was counted before.
        let new = path.with_extension("new");
        let write = || fs::write(&new, &bytes).and_then(|()| fs::rename(&new, &path));
        let written = match write() {
            Err(missing) if missing.kind() == ErrorKind::NotFound => {
                path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| write())
            }
            written => written,
        };
        if let Err(error) = written {
            warn!("cannot write {}: {error}; a crash of the worker would not be counted", path.display());
        }
    }

    fn remove(&self, key: &Key) {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => warn!("cannot remove {}: {error}", path.display()),
            Ok(()) | Err(_) => {}
        }
    }

    fn forget_oldest(&self) {
        let mut known = lock(&self.known);
        let excess = known.len().saturating_sub(JOBS_MAX);
        if excess == 0 {
            return;
        }
        let age = |key: &Key| {
            fs::metadata(self.path(key)).and_then(|about| about.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
        };
        let mut by_age: Vec<(SystemTime, Key)> = known.keys().map(|key| (age(key), *key)).collect();
        by_age.sort_by_key(|(modified, _)| *modified);
        for (_, key) in by_age.into_iter().take(excess) {
            known.remove(&key);
            self.remove(&key);
        }
    }
}

/// What has to be done to let a job run again.
fn remedy((queue, job): &Key) -> String {
    format!("removing {FOLDER}/{queue}/{job}{SUFFIX} from its data directory")
}

/// A run that is marked, or can be again. It is not once this is gone.
#[derive(Debug)]
pub(crate) struct Mark {
    quarantine: Arc<Quarantine>,
    key: Key,
    run: RunNumber,
    is_set: AtomicBool,
}

impl Mark {
    /// A risky phase begins.
    pub(crate) fn set(&self) {
        if !self.is_set.swap(true, Ordering::Relaxed) {
            let marked_in = Some(self.quarantine.boot.clone());
            self.write(marked_in);
        }
    }

    /// It is over.
    pub(crate) fn unset(&self) {
        if self.is_set.swap(false, Ordering::Relaxed) {
            self.write(None);
        }
    }

    fn write(&self, marked_in: Option<String>) {
        let crashes = lock(&self.quarantine.known).get(&self.key).map_or(0, |known| known.crashes);
        self.quarantine.write(&self.key, &Known { crashes, run: self.run, marked_in });
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.unset();
    }
}

/// What cannot be read is no reason not to start; it counts for nothing and goes.
fn read_all(folder: &Path) -> std::io::Result<Vec<(Key, Known)>> {
    let mut found = Vec::new();
    for queue in fs::read_dir(folder)? {
        let queue = queue?.path();
        let Some(key) = queue.file_name().and_then(|name| name.to_str()?.parse::<QueueKey>().ok()) else { continue };
        for job in fs::read_dir(&queue)? {
            let path = job?.path();
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SUFFIX));
            let Some(job) = name.and_then(|name| name.parse().ok()) else { continue };
            match fs::read(&path).map(|bytes| serde_json::from_slice(&bytes)) {
                Ok(Ok(known)) => found.push(((key, job), known)),
                Ok(Err(error)) => {
                    warn!("removes {}, which cannot be read: {error}", path.display());
                    let _ = fs::remove_file(&path);
                }
                Err(error) => warn!("cannot read {}: {error}", path.display()),
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: HeldRun = HeldRun { job: JobId::from_bytes([7; 32]), run: 3 };

    fn queue() -> QueueKey {
        QueueKey::of(&"q".parse().unwrap())
    }

    fn open_in(data: &Path, boot: &str) -> (Arc<Quarantine>, Vec<Crashed>) {
        let (quarantine, crashed) = Quarantine::open(data, Some(boot)).unwrap();
        (Arc::new(quarantine), crashed)
    }

    /// The process dies while the run is marked.
    fn die(data: &Path, boot: &str) {
        let (quarantine, _) = open_in(data, boot);
        std::mem::forget(quarantine.mark(queue(), RUN));
    }

    fn files(data: &Path) -> usize {
        let folders = fs::read_dir(data.join(FOLDER)).unwrap();
        folders.map(|queue| fs::read_dir(queue.unwrap().path()).unwrap().count()).sum()
    }

    #[test]
    fn a_job_that_the_worker_died_on_twice_is_refused_until_its_file_is_removed() {
        let data = tempfile::tempdir().unwrap();
        die(data.path(), "boot");
        let (quarantine, crashed) = open_in(data.path(), "boot");
        assert_eq!(crashed, [Crashed { queue: queue(), run: RUN }]);
        assert_eq!(quarantine.refuses(queue(), RUN.job), None, "once is no reason");
        die(data.path(), "boot");
        let (quarantine, crashed) = open_in(data.path(), "boot");
        assert_eq!(crashed.len(), 1);
        let why = quarantine.refuses(queue(), RUN.job).unwrap();
        assert_eq!(quarantine.refuses(QueueKey::of(&"other".parse().unwrap()), RUN.job), None);
        // It stays so, but is told as a crash only once.
        let (quarantine, crashed) = open_in(data.path(), "boot");
        assert!(crashed.is_empty() && quarantine.refuses(queue(), RUN.job).is_some());
        quarantine.ended(queue(), RUN.job);
        assert!(quarantine.refuses(queue(), RUN.job).is_some(), "the end that tells of it lets nobody out");
        let file = why.split(' ').find(|word| word.starts_with(FOLDER)).unwrap();
        fs::remove_file(data.path().join(file)).unwrap();
        assert_eq!(quarantine.refuses(queue(), RUN.job), None, "without a restart");
        assert_eq!(files(data.path()), 0);
    }

    #[test]
    fn a_process_that_ends_in_order_and_a_machine_that_goes_down_count_for_nothing() {
        let data = tempfile::tempdir().unwrap();
        let (quarantine, _) = open_in(data.path(), "boot");
        let mark = quarantine.mark(queue(), RUN);
        assert_eq!(files(data.path()), 1, "it is on disk before anything happens");
        drop(mark);
        assert_eq!(files(data.path()), 0);
        let mark = quarantine.mark(queue(), RUN);
        mark.unset();
        std::mem::forget(mark);
        assert!(open_in(data.path(), "boot").1.is_empty(), "it died, but not in a phase that counts");
        for boot in ["first", "second", "third"] {
            assert!(open_in(data.path(), boot).1.is_empty(), "the machine was started anew");
            die(data.path(), boot);
        }
        open_in(data.path(), "last");
        assert_eq!(files(data.path()), 0);
    }

    #[test]
    fn a_job_that_comes_to_its_end_starts_anew() {
        let data = tempfile::tempdir().unwrap();
        die(data.path(), "boot");
        let (quarantine, _) = open_in(data.path(), "boot");
        drop(quarantine.mark(queue(), RUN));
        assert_eq!(files(data.path()), 1, "the first crash is not forgotten by starting again");
        quarantine.ended(queue(), RUN.job);
        assert_eq!(files(data.path()), 0);
        die(data.path(), "boot");
        assert_eq!(open_in(data.path(), "boot").0.refuses(queue(), RUN.job), None);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_no_reason_not_to_start() {
        let data = tempfile::tempdir().unwrap();
        die(data.path(), "boot");
        let folder = data.path().join(FOLDER).join(queue().to_string());
        fs::write(folder.join(format!("{}{SUFFIX}", RUN.job)), "{").unwrap();
        fs::write(folder.join("note"), "mine").unwrap();
        assert!(open_in(data.path(), "boot").1.is_empty());
        assert_eq!(files(data.path()), 1, "what is not ours stays");
    }
}
