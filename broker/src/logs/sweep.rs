//! Finding and removing logs that nothing was written to for long. Whether their jobs are over is not known here.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use protocol::id::{JobId, QueueKey, UnixMillis};

use super::{LogError, LogStore, Place, Shared, blocking, lock};

impl LogStore {
    /// The queues that have logs.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`].
    pub async fn queues(&self) -> Result<Vec<QueueKey>, LogError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || Ok(names(&shared.dir)?)).await
    }

    /// The jobs of a queue that have logs. An empty folder that stands for a queue goes.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`].
    pub async fn jobs(&self, queue: QueueKey) -> Result<Vec<JobId>, LogError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let folder = shared.dir.join(queue.to_string());
            let jobs: Vec<JobId> = names(&folder)?;
            if jobs.is_empty() {
                // One that got a job meanwhile is not empty, and stays.
                let _ = std::fs::remove_dir(&folder);
            }
            Ok(jobs)
        })
        .await
    }

    /// Those of `jobs` whose logs were last written to before `before`.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`].
    pub async fn silent(
        &self,
        queue: QueueKey,
        mut jobs: Vec<JobId>,
        before: UnixMillis,
    ) -> Result<Vec<JobId>, LogError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            // One that cannot be looked at is left for the next time.
            jobs.retain(|job| is_silent(&shared.path(Place { queue, job: *job }), before).unwrap_or(false));
            Ok(jobs)
        })
        .await
    }

    /// Removes a job's logs unless they were written to since `before`; says whether it did.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`].
    pub async fn remove_silent(&self, queue: QueueKey, job: JobId, before: UnixMillis) -> Result<bool, LogError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || shared.remove_silent(Place { queue, job }, before)).await
    }
}

impl Shared {
    fn remove_silent(&self, place: Place, before: UnixMillis) -> Result<bool, LogError> {
        {
            let log = self.job(place);
            let mut log = lock(&log);
            // Looked at now that nobody can write.
            if !is_silent(&self.path(place), before)? {
                return Ok(false);
            }
            log.remove()?;
        }
        lock(&self.open).jobs.retain(|open, job| *open != place || Arc::strong_count(&job.log) > 1);
        Ok(true)
    }
}

/// What stands in a folder under names of that kind.
fn names<T: std::str::FromStr>(folder: &Path) -> io::Result<Vec<T>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let name =
        |entry: io::Result<std::fs::DirEntry>| Ok(entry?.file_name().to_str().and_then(|name| name.parse().ok()));
    entries.map(name).filter_map(Result::transpose).collect()
}

/// Whether nothing in a job's folder was written since `before`; a folder that is gone is not.
fn is_silent(folder: &Path, before: UnixMillis) -> io::Result<bool> {
    let before = UNIX_EPOCH + Duration::from_millis(before.0);
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries?,
    };
    let mut last = UNIX_EPOCH;
    for entry in entries {
        last = last.max(entry?.metadata()?.modified()?);
    }
    Ok(last < before)
}
