//! A run's files: its directory, inputs in, outputs out, blobs to and from the broker.

mod cache;
mod digest;
mod fetch;
mod inputs;
mod outputs;
mod place;
mod transfer;
mod tree;
mod walk;
pub(crate) mod web;

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use protocol::id::{JobId, QueueKey};
use protocol::native::HeldRun;

use cache::Cache;
pub(crate) use outputs::Collected;
use transfer::Transfer;
pub(crate) use tree::remove_tree;

use crate::config::{ApiAddress, Config};
use crate::error::WorkerError;

/// Both directories that a container writes in are open for whatever user it runs as.
const OPEN_MODE: u32 = 0o777;

/// How often a run's directory is made: its job's may be removed in the same moment, after another run of it.
const MAKE_TRIES: u32 = 5;

/// Where everything is. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    jobs: PathBuf,
    queue: QueueKey,
    cache: Arc<Cache>,
    transfer: Transfer,
    api: ApiAddress,
    public_api: ApiAddress,
    /// The most bytes that the inputs of one job may take.
    job_bytes_max: u64,
}

/// The directories of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunDirs {
    pub(crate) root: PathBuf,
    pub(crate) inputs: PathBuf,
    pub(crate) outputs: PathBuf,
    /// The definition as received, so that its limits are known after a restart.
    pub(crate) definition: PathBuf,
    config_files: PathBuf,
}

impl RunDirs {
    pub(crate) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            inputs: root.join("inputs"),
            outputs: root.join("outputs"),
            definition: root.join("definition.json"),
            config_files: root.join("configFiles"),
        }
    }

    /// Where the config file of that absolute name is kept. The name holds no `..`.
    pub(crate) fn config_file(&self, name: &str) -> PathBuf {
        below(&self.config_files, name)
    }

    /// Makes the directories, empty: a run never sees what an earlier one left.
    fn make(&self) -> std::io::Result<()> {
        remove_tree(&self.root)?;
        let mut made = fs::create_dir_all(&self.root);
        for _ in 1..MAKE_TRIES {
            match &made {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => made = fs::create_dir_all(&self.root),
                Ok(()) | Err(_) => break,
            }
        }
        made?;
        for directory in [&self.inputs, &self.outputs] {
            fs::create_dir(directory)?;
            // Not left to the umask.
            fs::set_permissions(directory, fs::Permissions::from_mode(OPEN_MODE))?;
        }
        fs::create_dir(&self.config_files)
    }
}

/// `name` below `root`, whatever slashes and dots it has. It was checked to hold no `..`.
fn below(root: &Path, name: &str) -> PathBuf {
    let mut path = root.to_owned();
    path.extend(name.split('/').filter(|segment| !segment.is_empty() && *segment != "."));
    path
}

impl Files {
    /// Prepares the directories below the data directory, for the runs of `queue`.
    pub(crate) fn open(config: &Config, queue: QueueKey, tls: &rustls::ClientConfig) -> Result<Self, WorkerError> {
        let data = config.data_directory.as_path();
        let jobs = data.join("j");
        let make = |path: &Path| {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(WorkerError::disk(path))
        };
        make(&jobs)?;
        let cache = Cache::open(data, config.files.cache_bytes_max).map_err(WorkerError::disk(data))?;
        let fetches_private = config.files.fetch_private.is_allowed(config.network.as_deref());
        let public_api = config.public_api.clone().unwrap_or_else(|| config.api.clone());
        let transfer = Transfer::new(tls, [&config.api, &public_api], fetches_private);
        Ok(Self {
            jobs,
            queue,
            cache: Arc::new(cache),
            transfer: transfer.map_err(|error| WorkerError::Tls(error.to_string()))?,
            public_api,
            api: config.api.clone(),
            job_bytes_max: config.limits.disk_bytes.unwrap_or(u64::MAX),
        })
    }

    /// The same for the runs of another queue.
    pub(crate) fn of(&self, queue: QueueKey) -> Self {
        Self { queue, ..self.clone() }
    }

    /// The directories of a run. The queue is in the name, because run numbers count per queue.
    pub(crate) fn dirs(&self, run: HeldRun) -> RunDirs {
        RunDirs::at(&self.job(run.job).join(format!("{}.{}", self.queue.short(), run.run)))
    }

    fn job(&self, job: JobId) -> PathBuf {
        self.jobs.join(job.to_string())
    }

    /// Removes a run's directories, and its job's when it was the last.
    pub(crate) async fn remove(&self, run: HeldRun) {
        let (root, job) = (self.dirs(run).root, self.job(run.job));
        let removed = tokio::task::spawn_blocking(move || {
            let removed = remove_tree(&root);
            // Not empty: another run of it is here.
            let _ = fs::remove_dir(job);
            removed
        });
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(
                job.id = %run.job,
                "cannot remove all files of a run of job {}, the next start tries again: {error}", run.job
            );
        }
    }

    /// The directories of this queue's runs that nobody holds any more. To be asked for before the first run is taken.
    pub(crate) async fn left_over(&self, held: Vec<HeldRun>) -> Vec<PathBuf> {
        let keep: HashSet<PathBuf> = held.into_iter().map(|run| self.dirs(run).root).collect();
        let (jobs, prefix) = (self.jobs.clone(), format!("{}.", self.queue.short()));
        let listed = tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            for job in fs::read_dir(jobs)? {
                // What is no job's directory, or cannot be read, is no reason to leave the others.
                let Ok(runs) = fs::read_dir(job?.path()) else { continue };
                for run in runs.flatten() {
                    if run.file_name().to_string_lossy().starts_with(&prefix) && !keep.contains(&run.path()) {
                        found.push(run.path());
                    }
                }
            }
            Ok::<_, std::io::Error>(found)
        });
        listed.await.map_err(std::io::Error::other).and_then(|listed| listed).unwrap_or_else(|error| {
            tracing::warn!("cannot look for what earlier runs left: {error}");
            Vec::new()
        })
    }

    /// The directories of runs of queues that this worker works for no more.
    pub(crate) async fn left_by_other_queues(&self, served: Vec<QueueKey>) -> Vec<PathBuf> {
        let jobs = self.jobs.clone();
        let prefixes: Vec<String> = served.iter().map(|queue| format!("{}.", queue.short())).collect();
        let listed = tokio::task::spawn_blocking(move || {
            let jobs = fs::read_dir(jobs)?.flatten();
            let runs = jobs.flat_map(|job| fs::read_dir(job.path()).into_iter().flatten().flatten());
            let is_served = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
            let others = runs.filter(|run| !is_served(&run.file_name().to_string_lossy()));
            Ok::<_, std::io::Error>(others.map(|run| run.path()).collect())
        });
        listed.await.map_err(std::io::Error::other).and_then(|listed| listed).unwrap_or_else(|error| {
            tracing::warn!("cannot look for what other queues' runs left: {error}");
            Vec::new()
        })
    }

    /// Removes what [`Self::left_over`] found.
    pub(crate) async fn sweep(&self, left_over: Vec<PathBuf>) {
        let swept = tokio::task::spawn_blocking(move || {
            let mut swept = Ok(());
            for run in left_over {
                // One that cannot be removed is no reason to leave the others.
                swept = remove_tree(&run).and(swept);
                // Not empty: another run of the job is here.
                let _ = run.parent().map(fs::remove_dir);
            }
            swept
        });
        if let Ok(Err(error)) = swept.await {
            tracing::warn!("cannot remove all directories that earlier runs left: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
