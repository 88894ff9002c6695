//! What a worker is told: checked values. Flags and environment are the command line's business; the readings of the odd
//! ones (GPUs, durations) are here.

mod address;
mod dialect;
mod files;
mod gpus;
mod images;
mod isolation;

use std::net::SocketAddr;
use std::path::PathBuf;

use protocol::duration;
use protocol::id::{QueueName, WorkerId};

pub use address::ApiAddress;
pub use dialect::Dialect;
pub use files::{FetchPrivate, FileConfig, INPUT_CACHE_BYTES_DEFAULT};
pub use gpus::GpuSpec;
pub(crate) use gpus::{is_cdi, is_index};
pub use images::{
    BUILD_MS_DEFAULT, BUILDS_DEFAULT, BUILDS_MAX, BuildConfig, BuildRegistry, Builder, CONTEXT_BYTES_DEFAULT,
    FLOATING_MS_DEFAULT, IMAGE_CACHE_BYTES_DEFAULT, ImageConfig, PullPolicy, RegistryLogin,
};
pub use isolation::{Capabilities, Isolation, JobUser, Ulimit, parse_name};

/// The engine's address when none is given.
pub const DOCKER_HOST_DEFAULT: &str = "unix:///var/run/docker.sock";
/// How long a job may run when neither it nor the worker says otherwise: five minutes, as the original.
pub const JOB_DURATION_MS_DEFAULT: u64 = 5 * 60 * 1000;
/// The longest that inputs and image may take: an hour lets a 50 GiB model through a 120 Mbit/s line.
pub const PREPARE_MS_DEFAULT: u64 = 60 * 60 * 1000;
/// The most runs at once: each has a socket to the engine and a few tasks; more than this is a typing error.
pub const CPUS_MAX: u32 = 10_000;
/// The most queues of one worker: each has a socket, and an idle one still costs a turn now and then.
pub const QUEUES_MAX: usize = 64;

/// How much disk must be free for a worker to take jobs: enough for results, logs and the rest of the machine to go on.
pub const MIN_FREE_DISK_BYTES_DEFAULT: u64 = 1 << 30;

/// The network that has no way to the host, its neighbours or the cloud's metadata.
pub const INTERNET_ONLY: &str = "internet-only";

/// Everything a worker has to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The queues it works for, 1 to [`QUEUES_MAX`], each once. They share its capacity: each is given its turn.
    pub queues: Vec<QueueName>,
    /// The broker.
    pub api: ApiAddress,
    /// What is spoken to it.
    pub dialect: Dialect,
    /// What stands in the addresses of uploaded outputs instead of [`Self::api`], when that is not reachable for others.
    pub public_api: Option<ApiAddress>,
    /// Where it keeps its id, inputs, outputs and cache. The engine must see it under the same path.
    pub data_directory: PathBuf,
    /// Who it is.
    pub id: Identity,
    /// How many runs of one CPU each it takes at once.
    pub cpus: u32,
    /// Bytes of memory it offers to all runs together; `None`: not counted.
    pub memory_bytes: Option<u64>,
    /// Which GPUs it offers.
    pub gpus: GpuSpec,
    /// Jobs must match one of these when there are any.
    pub tags: Vec<String>,
    /// The longest a container may run, in milliseconds.
    pub max_job_duration_ms: u64,
    /// The longest that fetching inputs and image may take, in milliseconds.
    pub prepare_ms_max: u64,
    /// What every container is held to.
    pub limits: JobLimits,
    /// How far they are kept from the host and each other.
    pub isolation: Isolation,
    /// The engine's network for containers; `None`: the workers' own bridge, which is created when missing;
    /// [`INTERNET_ONLY`]: one of its own from which nothing but the internet can be reached.
    pub network: Option<String>,
    /// Where the engine listens; `None`: [`DOCKER_HOST_DEFAULT`].
    pub docker_host: Option<String>,
    /// What is done about images.
    pub images: ImageConfig,
    /// What is done about jobs that say how their image is built.
    pub builds: BuildConfig,
    /// Where numbers and health are told over HTTP; `None`: nowhere.
    pub listen_metrics: Option<SocketAddr>,
    /// Where whoever set up the logging writes what was logged of late, for those who look at the worker.
    pub recent: crate::observe::Recent,
    /// What is done about the files of jobs.
    pub files: FileConfig,
    /// With fewer bytes free on the disk of the data directory, or of the engine, nothing new is taken; 0: not looked at.
    pub min_free_disk_bytes: u64,
}

/// Limits that the worker puts on each container on its own account. All off by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobLimits {
    /// Thousandths of a CPU: for jobs that state nothing, and the most for those that do.
    pub cpus_milli: Option<u32>,
    /// Bytes of memory: for jobs that state nothing, and the most for those that do.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// The most bytes of `/dev/shm`, for jobs that ask for some.
    pub shm_bytes: Option<u64>,
    /// Bytes on disk: what it writes into its image's files, to its outputs and to its log.
    pub disk_bytes: Option<u64>,
    /// Bytes that a queue's jobs may leave to each other below `/job-cache`.
    pub cache_bytes: Option<u64>,
    /// What one process may take.
    pub ulimits: Vec<Ulimit>,
}

/// Where a worker's id comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The id kept in the data directory; a new one is made and kept when there is none.
    Kept,
    /// A new one at each start: for machines cloned from one image.
    Fresh,
    /// This one.
    Given(WorkerId),
}

/// A value that cannot be meant; says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not an address of a broker.
    #[error("{text:?} is not the address of a broker: {why}; write it as http://host:port or https://host/prefix")]
    Address {
        /// What was given.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// Not a duration, or none above zero.
    #[error("{text:?} is not a duration above zero; write 90s, 20m or 1h30m")]
    Duration {
        /// What was given.
        text: String,
    },
    /// Not a choice of GPUs.
    #[error("{text:?} is not a choice of GPUs: {why}; write a number, all, none, or device=0,2")]
    Gpus {
        /// What was given.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// Not a runtime of the engine.
    #[error("the container engine has no runtime {name:?}, only {}", .known.join(", "))]
    Runtime {
        /// What was given.
        name: String,
        /// What it has.
        known: Vec<String>,
    },
    /// Not a network of the engine.
    #[error(
        "the container engine has no network {name:?}, only {}; make it with `docker network create`, or choose another with \
         --network", .known.join(", ")
    )]
    Network {
        /// What was given.
        name: String,
        /// What it has.
        known: Vec<String>,
    },
    /// Users whose files the worker could not remove.
    #[error(
        "jobs can run as other users than the worker only if that runs as root: their outputs could not be removed; \
         leave --user out, or write --user=worker"
    )]
    User,
    /// Not a sensible number of CPUs.
    #[error("{given} CPUs is not between 1 and {CPUS_MAX}")]
    Cpus {
        /// What was given.
        given: u32,
    },
    /// No queue, or too many.
    #[error(
        "{given} queues are not between 1 and {QUEUES_MAX}; a machine can run several workers, each with its own data directory"
    )]
    Queues {
        /// How many were given.
        given: usize,
    },
    /// A queue that was named twice.
    #[error("the queue {place} is the same as the queue {first}: name each queue once")]
    QueueTwice {
        /// Which one, counted from 1: its name is a secret, and this text may get into a log.
        place: usize,
        /// Which one has the same name.
        first: usize,
    },
    /// Not a word for when images are fetched.
    #[error("{text:?} does not say when images are fetched; write missing, floating, floating=12h, always or never")]
    PullPolicy {
        /// What was given.
        text: String,
    },
    /// Not a word for what builds images.
    #[error("{text:?} is no builder; write auto, classic or buildkit")]
    Builder {
        /// What was given.
        text: String,
    },
    /// Not a login to a registry. What was given is not repeated: it may hold a password.
    #[error("this is not a login to a registry; write registry.example:5000=user:password, docker.io for Docker Hub")]
    RegistryLogin,
    /// Not the name of an image.
    #[error("{text:?} is not the name of an image; write it as name:tag or registry/name:tag")]
    ImageName {
        /// What was given.
        text: String,
    },
    /// Too many builds at once.
    #[error("{given} builds at once are more than {BUILDS_MAX}")]
    Builds {
        /// How many were given.
        given: u32,
    },
    /// A data directory that cannot be given to the engine.
    #[error("the data directory {path:?} {why}")]
    DataDirectory {
        /// What was given.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
}

impl Config {
    /// A worker for `queues` of the broker at `api`, with the defaults for all else.
    #[must_use]
    pub fn new(queues: Vec<QueueName>, api: ApiAddress, data_directory: PathBuf) -> Self {
        Self {
            queues,
            api,
            dialect: Dialect::default(),
            public_api: None,
            data_directory,
            id: Identity::Kept,
            cpus: 1,
            memory_bytes: None,
            gpus: GpuSpec::Count(0),
            tags: Vec::new(),
            max_job_duration_ms: JOB_DURATION_MS_DEFAULT,
            prepare_ms_max: PREPARE_MS_DEFAULT,
            limits: JobLimits::default(),
            isolation: Isolation::default(),
            network: None,
            docker_host: None,
            images: ImageConfig::default(),
            builds: BuildConfig::default(),
            listen_metrics: None,
            recent: crate::observe::Recent::default(),
            files: FileConfig::default(),
            min_free_disk_bytes: MIN_FREE_DISK_BYTES_DEFAULT,
        }
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for the first value that cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_queues(&self.queues)?;
        if self.cpus == 0 || self.cpus > CPUS_MAX {
            return Err(ConfigError::Cpus { given: self.cpus });
        }
        if self.max_job_duration_ms == 0 {
            return Err(ConfigError::Duration { text: "0".to_owned() });
        }
        if self.builds.at_once > BUILDS_MAX {
            return Err(ConfigError::Builds { given: self.builds.at_once });
        }
        let refuse = |why| Err(ConfigError::DataDirectory { path: self.data_directory.clone(), why });
        match self.data_directory.to_str() {
            None => refuse("must be UTF-8: the engine takes paths as text"),
            Some(path) if path.contains(':') => refuse("must not hold a colon: the engine splits its mounts there"),
            Some(_) if !self.data_directory.is_absolute() => {
                refuse("must be absolute: the engine has another working directory")
            }
            Some(_) => Ok(()),
        }
    }
}

/// Checks the queues of one worker.
///
/// # Errors
///
/// [`ConfigError::Queues`], [`ConfigError::QueueTwice`].
pub fn check_queues(queues: &[QueueName]) -> Result<(), ConfigError> {
    if queues.is_empty() || queues.len() > QUEUES_MAX {
        return Err(ConfigError::Queues { given: queues.len() });
    }
    for (at, queue) in queues.iter().enumerate() {
        if let Some(first) = queues.iter().take(at).position(|earlier| earlier == queue) {
            return Err(ConfigError::QueueTwice { place: at + 1, first: first + 1 });
        }
    }
    Ok(())
}

/// Reads a worker's time limit (`--max-job-duration`).
///
/// # Errors
///
/// [`ConfigError::Duration`].
pub fn parse_duration_ms(text: &str) -> Result<u64, ConfigError> {
    duration::limit_ms(text).ok_or_else(|| ConfigError::Duration { text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(queues: &[&str]) -> Result<(), ConfigError> {
        let queues = queues.iter().map(|name| name.parse().unwrap()).collect();
        Config::new(queues, "http://a.example".parse().unwrap(), "/d".into()).check()
    }

    #[test]
    fn a_worker_has_a_queue_and_not_too_many_and_none_twice() {
        assert_eq!(check(&["a"]), Ok(()));
        assert_eq!(check(&["a", "b", "A"]), Ok(()));
        assert_eq!(check(&[]), Err(ConfigError::Queues { given: 0 }));
        assert_eq!(check(&["a", "b", "a"]), Err(ConfigError::QueueTwice { place: 3, first: 1 }));
        let many: Vec<String> = (0..=QUEUES_MAX).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(check(&many), Err(ConfigError::Queues { given: QUEUES_MAX + 1 }));
        assert_eq!(check(&many[1..]), Ok(()));
    }
}
