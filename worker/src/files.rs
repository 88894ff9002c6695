//! A run's files: its directory, inputs in, outputs out, blobs to and from the broker.

mod cache;
mod digest;
mod inputs;
mod outputs;
mod transfer;
mod walk;

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use protocol::id::{JobId, QueueKey};
use protocol::native::HeldRun;

use cache::Cache;
use transfer::Transfer;

use crate::config::ApiAddress;
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
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
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
    /// Prepares the directories below `data`, for the runs of `queue`.
    pub(crate) fn open(
        data: &Path,
        queue: QueueKey,
        api: ApiAddress,
        public_api: Option<ApiAddress>,
        tls: &rustls::ClientConfig,
    ) -> Result<Self, WorkerError> {
        let jobs = data.join("j");
        let make = |path: &Path| {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(WorkerError::disk(path))
        };
        make(&jobs)?;
        Ok(Self {
            jobs,
            queue,
            cache: Arc::new(Cache::open(data).map_err(WorkerError::disk(data))?),
            transfer: Transfer::new(tls).map_err(|error| WorkerError::Tls(error.to_string()))?,
            public_api: public_api.unwrap_or_else(|| api.clone()),
            api,
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
            let removed = fs::remove_dir_all(&root);
            // Not empty: another run of it is here.
            let _ = fs::remove_dir(job);
            removed
        });
        match removed.await {
            Ok(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(job.id = %run.job, "cannot remove the files of a run of job {}: {error}", run.job);
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// The directories of this queue's runs that nobody holds any more. To be asked for before the first run is taken.
    pub(crate) async fn left_over(&self, held: Vec<HeldRun>) -> Vec<PathBuf> {
        let keep: HashSet<PathBuf> = held.into_iter().map(|run| self.dirs(run).root).collect();
        let (jobs, prefix) = (self.jobs.clone(), format!("{}.", self.queue.short()));
        let listed = tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            for job in fs::read_dir(jobs)? {
                for run in fs::read_dir(job?.path())? {
                    let run = run?;
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

    /// Removes what [`Self::left_over`] found.
    pub(crate) async fn sweep(&self, left_over: Vec<PathBuf>) {
        let swept = tokio::task::spawn_blocking(move || {
            let mut swept = Ok(());
            for run in left_over {
                // One that cannot be removed is no reason to leave the others.
                swept = fs::remove_dir_all(&run).and(swept);
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
