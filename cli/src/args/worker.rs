//! The worker's options that `gridsocket run` and `gridsocket local` share, by the names that existing deployments use.

use std::net::SocketAddr;
use std::time::Duration;

use worker::ShutdownMode;
use worker::config::{
    CPUS_MAX, Config, GpuSpec, Isolation, JOB_DURATION_MS_DEFAULT, JobLimits, MIN_FREE_DISK_BYTES_DEFAULT, Ulimit,
    parse_duration_ms, parse_name,
};

use super::setting::{Env, UsageError, setting, truth};
use super::{files, images};
use crate::logging::LogFormat;

const CPUS: &str = "METAPAGE_IO_WORKER_CPUS";
const GPUS: &str = "METAPAGE_IO_WORKER_GPUS";
const MEMORY: &str = "METAPAGE_IO_WORKER_MEMORY";
const TAGS: &str = "METAPAGE_IO_WORKER_TAGS";
const MAX_DURATION: &str = "METAPAGE_IO_WORKER_JOB_MAX_DURATION";
const JOB_CPUS: &str = "METAPAGE_IO_WORKER_JOB_CPUS";
const JOB_MEMORY: &str = "METAPAGE_IO_WORKER_JOB_MEMORY";
const JOB_PIDS: &str = "METAPAGE_IO_WORKER_JOB_PIDS";
const JOB_SHM: &str = "METAPAGE_IO_WORKER_JOB_SHM";
const JOB_DISK: &str = "METAPAGE_IO_WORKER_JOB_DISK";
const JOB_CACHE: &str = "METAPAGE_IO_WORKER_JOB_CACHE";
const JOB_ULIMITS: &str = "METAPAGE_IO_WORKER_JOB_ULIMITS";
const NO_NEW_PRIVILEGES: &str = "METAPAGE_IO_WORKER_NO_NEW_PRIVILEGES";
const DROP_CAPABILITIES: &str = "METAPAGE_IO_WORKER_DROP_CAPABILITIES";
const WRITABLE_INPUTS: &str = "METAPAGE_IO_WORKER_WRITABLE_INPUTS";
const USER: &str = "METAPAGE_IO_WORKER_USER";
const RUNTIME: &str = "METAPAGE_IO_WORKER_RUNTIME";
const CGROUP_PARENT: &str = "METAPAGE_IO_WORKER_CGROUP_PARENT";
const NETWORK: &str = "METAPAGE_IO_WORKER_NETWORK";
const ON_EXIT: &str = "METAPAGE_IO_WORKER_ON_EXIT";
const DRAIN_TIMEOUT: &str = "METAPAGE_IO_WORKER_DRAIN_TIMEOUT";
const MIN_FREE_DISK: &str = "METAPAGE_IO_WORKER_MIN_FREE_DISK";
const LISTEN_METRICS: &str = "METAPAGE_IO_WORKER_LISTEN_METRICS";
const DEBUG: &str = "METAPAGE_IO_WORKER_DEBUG";
const DOCKER_HOST: &str = "DOCKER_HOST";

/// How the help groups what a worker can be told; what it offers comes first, without a heading of its own.
const LIMITS: &str = "Limits of one job";
const ISOLATION: &str = "Isolation of jobs";
const ENDING: &str = "When it ends";
const WATCHING: &str = "Watching it";

/// Jobs at once, unless told otherwise.
const CPUS_DEFAULT: u32 = 1;
/// The fewest bytes of memory that an engine gives a container: 6 MiB.
const MEMORY_BYTES_MIN: u64 = 6 * 1024 * 1024;

/// Options of a worker, wherever its broker is.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// The CPUs to offer. A job that states what it needs takes that, and is held to it; one that states nothing takes one, so
    /// that at most N of these run at once, and may use all that the machine has [env: METAPAGE_IO_WORKER_CPUS] [default: 1]
    #[arg(short, long, value_name = "N")]
    cpus: Option<String>,
    /// GPUs to offer: a number (the first so many), `all`, `none`, or `device=` with indices, ids (`GPU-…`) or names that the
    /// container engine has discovered (`amd.com/gpu=0`) [env: METAPAGE_IO_WORKER_GPUS] [default: 0]
    #[arg(short, long, value_name = "SPEC", num_args = 0..=1, default_missing_value = "")]
    gpus: Option<String>,
    /// The longest that a job may run, such as `5m` or `1h30` [env: METAPAGE_IO_WORKER_JOB_MAX_DURATION] [default: 5m]
    #[arg(short = 't', long, value_name = "DURATION")]
    max_job_duration: Option<String>,
    /// Memory to offer to all jobs together that state what they need, such as `8g` [env: METAPAGE_IO_WORKER_MEMORY] [default:
    /// not counted]
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Take only jobs with one of these tags, separated by commas [env: METAPAGE_IO_WORKER_TAGS] [default: any job]
    #[arg(long, value_name = "TAGS")]
    tags: Option<String>,
    /// Take no new jobs while less than this is free on the disk of the data directory, or of the container engine; 0: never mind
    /// [env: METAPAGE_IO_WORKER_MIN_FREE_DISK] [default: 1g]
    #[arg(long, value_name = "SIZE")]
    min_free_disk: Option<String>,
    /// The most CPUs one job's container may use, fractions allowed [env: METAPAGE_IO_WORKER_JOB_CPUS]
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    job_cpus: Option<String>,
    /// The most memory one job's container may use [env: METAPAGE_IO_WORKER_JOB_MEMORY]
    #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
    job_memory: Option<String>,
    /// The most processes and threads in one job's container [env: METAPAGE_IO_WORKER_JOB_PIDS]
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    job_pids: Option<String>,
    /// The most of `/dev/shm` that a job gets which asks for some [env: METAPAGE_IO_WORKER_JOB_SHM]
    #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
    job_shm: Option<String>,
    /// The most disk one job may take: outputs, log and changes to its image's files [env: METAPAGE_IO_WORKER_JOB_DISK]
    #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
    job_disk: Option<String>,
    /// The most that a queue's jobs may leave to each other in `/job-cache`; beyond it they get a new one
    /// [env: METAPAGE_IO_WORKER_JOB_CACHE]
    #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
    job_cache: Option<String>,
    /// What one process in a container may take, such as `nofile=1024:4096,core=0` [env: METAPAGE_IO_WORKER_JOB_ULIMITS]
    #[arg(long, value_name = "LIST", help_heading = LIMITS)]
    job_ulimits: Option<String>,
    /// Start containers so that set-uid programs in them, such as `sudo`, give nobody more rights
    /// [env: METAPAGE_IO_WORKER_NO_NEW_PRIVILEGES] [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = ISOLATION)]
    no_new_privileges: Option<String>,
    /// Capabilities that containers are started without: names with commas between, `none` or `all`
    /// [env: METAPAGE_IO_WORKER_DROP_CAPABILITIES] [default: MKNOD,NET_RAW]
    #[arg(long, value_name = "LIST", help_heading = ISOLATION)]
    drop_capabilities: Option<String>,
    /// Let jobs change their copies of the inputs, below `/inputs` [env: METAPAGE_IO_WORKER_WRITABLE_INPUTS] [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = ISOLATION)]
    writable_inputs: Option<String>,
    /// Whom jobs run as: `worker` (as this process does), `image` (as the image says) or UID:GID
    /// [env: METAPAGE_IO_WORKER_USER] [default: worker]
    #[arg(long, value_name = "USER", help_heading = ISOLATION)]
    user: Option<String>,
    /// The container engine's runtime for jobs, such as `runsc` [env: METAPAGE_IO_WORKER_RUNTIME] [default: the engine's]
    #[arg(long, value_name = "NAME", help_heading = ISOLATION)]
    runtime: Option<String>,
    /// The control group to start containers in, which can hold all of them together to a limit
    /// [env: METAPAGE_IO_WORKER_CGROUP_PARENT] [default: the engine's]
    #[arg(long, value_name = "NAME", help_heading = ISOLATION)]
    cgroup_parent: Option<String>,
    /// The network for jobs: `default` (a bridge of the workers' own), `none`, `internet-only` (nothing on the host, its
    /// neighbours or the cloud's metadata service; needs root and iptables), or one of the container engine by its name
    /// [env: METAPAGE_IO_WORKER_NETWORK] [default: default]
    #[arg(long, value_name = "NAME", help_heading = ISOLATION)]
    network: Option<String>,
    #[command(flatten)]
    images: images::Args,
    #[command(flatten)]
    files: files::Args,
    /// Running jobs at SIGTERM: `leave` (a restarted worker takes them over), `drain` or `drain=DURATION` (wait for them), or
    /// `kill` (hand them back) [env: METAPAGE_IO_WORKER_ON_EXIT] [default: leave]
    #[arg(long, value_name = "WHAT", help_heading = ENDING)]
    on_exit: Option<String>,
    /// Short for --on-exit=drain
    #[arg(long, conflicts_with_all = ["on_exit", "kill_on_exit"], help_heading = ENDING)]
    drain: bool,
    /// The longest that draining may take; then what still runs is left, as with `leave`. Given alone, the same as --drain too
    /// [env: METAPAGE_IO_WORKER_DRAIN_TIMEOUT] [default: as --max-job-duration]
    #[arg(long, value_name = "DURATION", conflicts_with = "kill_on_exit", help_heading = ENDING)]
    drain_timeout: Option<String>,
    /// Short for --on-exit=kill
    #[arg(long, conflicts_with = "on_exit", help_heading = ENDING)]
    kill_on_exit: bool,
    /// Tell numbers (`/metrics`, for Prometheus) and health (`/healthz`) at this address, such as `127.0.0.1:9464`; a port alone is
    /// this machine's [env: METAPAGE_IO_WORKER_LISTEN_METRICS] [default: nowhere]
    #[arg(long, value_name = "ADDR", help_heading = WATCHING)]
    listen_metrics: Option<String>,
    /// Show in the terminal what the worker does, as `gridsocket top`, instead of its log
    #[arg(long, help_heading = WATCHING)]
    tui: bool,
    /// How the log is written: `text`, or `json` with one object in each line [env: GRIDSOCKET_LOG_FORMAT] [default: text]
    #[arg(long, value_name = "FORMAT", help_heading = WATCHING)]
    log_format: Option<LogFormat>,
    /// Say more in the log [env: METAPAGE_IO_WORKER_DEBUG]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = WATCHING)]
    debug: Option<String>,
}

impl Args {
    /// Writes the options into `config`, by flag > variable > default.
    pub(super) fn apply(&self, env: Env<'_>, config: &mut Config) -> Result<(), UsageError> {
        config.cpus = setting("--cpus", self.cpus.as_deref(), CPUS).or(env, CPUS_DEFAULT, cpus)?;
        // The flag without a value leaves the word to the variable.
        let gpus = self.gpus.as_deref().filter(|given| !given.is_empty());
        config.gpus = setting("--gpus", gpus, GPUS).or(env, GpuSpec::Count(0), str::parse)?;
        config.max_job_duration_ms = setting("--max-job-duration", self.max_job_duration.as_deref(), MAX_DURATION).or(
            env,
            JOB_DURATION_MS_DEFAULT,
            parse_duration_ms,
        )?;
        config.memory_bytes = setting("--memory", self.memory.as_deref(), MEMORY).find(env, memory)?;
        config.tags = setting("--tags", self.tags.as_deref(), TAGS).or(env, Vec::new(), tags)?;
        config.limits = JobLimits {
            cpus_milli: setting("--job-cpus", self.job_cpus.as_deref(), JOB_CPUS).find(env, cpus_milli)?,
            memory_bytes: setting("--job-memory", self.job_memory.as_deref(), JOB_MEMORY).find(env, memory)?,
            pids: setting("--job-pids", self.job_pids.as_deref(), JOB_PIDS).find(env, pids)?,
            shm_bytes: setting("--job-shm", self.job_shm.as_deref(), JOB_SHM).find(env, size)?,
            disk_bytes: setting("--job-disk", self.job_disk.as_deref(), JOB_DISK).find(env, size)?,
            cache_bytes: setting("--job-cache", self.job_cache.as_deref(), JOB_CACHE).find(env, size)?,
            ulimits: setting("--job-ulimits", self.job_ulimits.as_deref(), JOB_ULIMITS).or(env, Vec::new(), ulimits)?,
        };
        config.isolation = self.isolation(env)?;
        config.network = setting("--network", self.network.as_deref(), NETWORK).or(env, None, network)?;
        config.images = self.images.images(env)?;
        config.builds = self.images.builds(env)?;
        config.files = self.files.files(env)?;
        let min_free = setting("--min-free-disk", self.min_free_disk.as_deref(), MIN_FREE_DISK);
        config.min_free_disk_bytes = min_free.or(env, MIN_FREE_DISK_BYTES_DEFAULT, free_disk)?;
        let listen = setting("--listen-metrics", self.listen_metrics.as_deref(), LISTEN_METRICS);
        config.listen_metrics = listen.find(env, listen_address)?;
        config.docker_host = env(DOCKER_HOST).filter(|host| !host.trim().is_empty());
        Ok(())
    }

    fn isolation(&self, env: Env<'_>) -> Result<Isolation, UsageError> {
        let defaults = Isolation::default();
        let no_new = setting("--no-new-privileges", self.no_new_privileges.as_deref(), NO_NEW_PRIVILEGES);
        let dropped = setting("--drop-capabilities", self.drop_capabilities.as_deref(), DROP_CAPABILITIES);
        let writable = setting("--writable-inputs", self.writable_inputs.as_deref(), WRITABLE_INPUTS);
        let cgroup_parent = setting("--cgroup-parent", self.cgroup_parent.as_deref(), CGROUP_PARENT);
        Ok(Isolation {
            no_new_privileges: no_new.or(env, defaults.no_new_privileges, truth)?,
            drop_capabilities: dropped.or(env, defaults.drop_capabilities, str::parse)?,
            has_writable_inputs: writable.or(env, defaults.has_writable_inputs, truth)?,
            user: setting("--user", self.user.as_deref(), USER).or(env, defaults.user, str::parse)?,
            runtime: setting("--runtime", self.runtime.as_deref(), RUNTIME).find(env, parse_name)?,
            cgroup_parent: cgroup_parent.find(env, parse_name)?,
        })
    }

    /// What happens to runs when the worker stops.
    pub(super) fn on_exit(&self, env: Env<'_>, max_job_duration_ms: u64) -> Result<ShutdownMode, UsageError> {
        let given = match (self.drain, self.kill_on_exit) {
            (true, _) => Some("drain"),
            (false, true) => Some("kill"),
            (false, false) => self.on_exit.as_deref().or(self.drain_timeout.is_some().then_some("drain")),
        };
        // No job runs longer than that.
        let limit = setting("--drain-timeout", self.drain_timeout.as_deref(), DRAIN_TIMEOUT);
        let limit_ms = limit.or(env, max_job_duration_ms, parse_duration_ms)?;
        let read = |text: &str| on_exit(text, limit_ms);
        setting("--on-exit", given, ON_EXIT).or(env, ShutdownMode::Leave, read)
    }

    /// What is seen of the worker meanwhile.
    pub(super) const fn console(&self) -> Console {
        Console { is_view: self.tui, format: self.log_format }
    }

    /// Whether to say more in the log.
    pub(super) fn debug(&self, env: Env<'_>) -> Result<bool, UsageError> {
        setting("--debug", self.debug.as_deref(), DEBUG).or(env, false, truth)
    }
}

/// What is seen of a worker while it works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Console {
    /// Whether a view is wanted, where there is a terminal for it.
    pub(crate) is_view: bool,
    /// How the log is written, if that was said here.
    pub(crate) format: Option<LogFormat>,
}

fn listen_address(text: &str) -> Result<SocketAddr, &'static str> {
    let port = text.parse().map(|port: u16| SocketAddr::from(([127, 0, 0, 1], port)));
    port.or_else(|_| text.parse()).map_err(|_| "write an address with its port, such as 127.0.0.1:9464")
}

fn cpus(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| (1..=CPUS_MAX).contains(number));
    number.ok_or_else(|| format!("it is the number of jobs that run at once, a whole number from 1 to {CPUS_MAX}"))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
fn cpus_milli(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number: &f64| *number >= 0.01 && *number <= f64::from(CPUS_MAX));
    let rule = || format!("write a number of CPUs from 0.01 to {CPUS_MAX}, such as 2 or 0.5");
    number.map(|number| (number * 1000.0).round() as u32).ok_or_else(rule)
}

fn memory(text: &str) -> Result<u64, String> {
    let bytes = protocol::size::parse_size_bytes(text).map_err(|error| error.to_string())?;
    if bytes < MEMORY_BYTES_MIN {
        Err("a container needs 6m or more; write a size such as 512m or 8g".into())
    } else {
        Ok(bytes)
    }
}

fn pids(text: &str) -> Result<u32, &'static str> {
    text.parse().ok().filter(|&pids| pids > 0).ok_or("write a whole number above zero, such as 1024")
}

fn tags(text: &str) -> Result<Vec<String>, &'static str> {
    let tags: Vec<String> = text.split(',').map(|tag| tag.trim().to_owned()).collect();
    if tags.iter().any(String::is_empty) {
        Err("write tags with commas between them, such as gpu,eu")
    } else {
        Ok(tags)
    }
}

fn size(text: &str) -> Result<u64, String> {
    protocol::size::parse_size_bytes(text).map_err(|error| error.to_string())
}

fn free_disk(text: &str) -> Result<u64, String> {
    if text.trim() == "0" { Ok(0) } else { size(text) }
}

fn ulimits(text: &str) -> Result<Vec<Ulimit>, &'static str> {
    text.split(',').map(str::parse).collect()
}

fn network(text: &str) -> Result<Option<String>, &'static str> {
    match text {
        "" => Err("write default, none, internet-only, or the name of a network of the container engine"),
        "default" => Ok(None),
        name => Ok(Some(name.to_owned())),
    }
}

fn on_exit(text: &str, limit_ms: u64) -> Result<ShutdownMode, &'static str> {
    const RULE: &str = "write leave, drain, drain=10m or kill";
    match text.split_once('=') {
        None if text == "leave" => Ok(ShutdownMode::Leave),
        None if text == "kill" => Ok(ShutdownMode::Kill),
        None if text == "drain" => Ok(ShutdownMode::Drain { limit: Duration::from_millis(limit_ms) }),
        Some(("drain", limit)) => {
            let limit = parse_duration_ms(limit).map_err(|_| RULE)?;
            Ok(ShutdownMode::Drain { limit: Duration::from_millis(limit) })
        }
        Some(_) | None => Err(RULE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_at_the_end_can_be_said_in_four_ways() {
        let drain = |ms| ShutdownMode::Drain { limit: Duration::from_millis(ms) };
        assert_eq!(on_exit("leave", 7), Ok(ShutdownMode::Leave));
        assert_eq!(on_exit("kill", 7), Ok(ShutdownMode::Kill));
        assert_eq!(on_exit("drain", 7), Ok(drain(7)));
        assert_eq!(on_exit("drain=10s", 7), Ok(drain(10_000)));
        for bad in ["", "drain=", "drain=never", "stop", "kill=1"] {
            assert!(on_exit(bad, 7).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_are_in_range() {
        assert_eq!(cpus_milli("0.5"), Ok(500));
        assert!(cpus_milli("0").is_err() && cpus_milli("nan").is_err() && cpus_milli("1e9").is_err());
        assert_eq!(memory("8g"), Ok(8 << 30));
        assert!(memory("1k").is_err() && memory("much").is_err());
        assert!(pids("0").is_err() && pids("1024").is_ok());
        assert_eq!(tags("a, b"), Ok(vec!["a".into(), "b".into()]));
        assert!(tags("a,,b").is_err());
        assert_eq!(ulimits("nofile=1:2,core=0").unwrap().len(), 2);
        assert_eq!((free_disk("0"), free_disk("1g")), (Ok(0), Ok(1 << 30)));
        assert!(free_disk("much").is_err());
        assert!(ulimits("").is_err() && ulimits("nofile=1,").is_err());
        assert_eq!((network("default"), network("none")), (Ok(None), Ok(Some("none".to_owned()))));
        assert!(network("").is_err());
        let address = |text| listen_address(text).map(|address| address.to_string());
        assert_eq!(address("9464").unwrap(), "127.0.0.1:9464");
        assert_eq!(address("[::]:1").unwrap(), "[::]:1");
        assert!(address("localhost:1").is_err() && address("0.0.0.0").is_err() && address("70000").is_err());
    }
}
