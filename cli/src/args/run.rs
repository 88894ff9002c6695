//! `gridsocket run`: a worker for a broker elsewhere, by the names that existing deployments use.

use protocol::id::QueueName;
use worker::ShutdownMode;
use worker::config::{ApiAddress, Config, Identity, check_queues};

use super::serve::folder;
use super::setting::{Env, UsageError, setting};
use super::{local, worker as worker_args};

pub(super) const QUEUE: &str = "METAPAGE_IO_WORKER_QUEUE";
const MODE: &str = "METAPAGE_IO_WORKER_MODE";
const API_ADDRESS: &str = "METAPAGE_IO_WORKER_API_ADDRESS";
const ID: &str = "METAPAGE_IO_WORKER_ID";
const GENERATE_ID: &str = "METAPAGE_IO_WORKER_GENERATE_WORKER_ID";
/// What stands in the addresses of uploaded outputs, where the broker's address is not reachable for others.
const PUBLIC_API: &str = "DEV_ONLY_EXTERNAL_SERVER_ADDRESS";

/// The broker that workers of the existing system dial.
const API_ADDRESS_DEFAULT: &str = "https://container.mtfm.io";
/// The existing system's folder: it must have the same path for the container engine, and `/tmp` is what people mount.
pub(super) const DATA_DIRECTORY_DEFAULT: &str = "/tmp/worker-metapage-io";

/// Options of `gridsocket run`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The queues to work for, in turn; at least one unless `--mode=local` [env: METAPAGE_IO_WORKER_QUEUE, with commas between]
    #[arg(value_name = "QUEUE")]
    queues: Vec<String>,
    /// The same, as the oldest deployments say it
    #[arg(long = "queue", value_name = "QUEUE", hide = true)]
    queue_flags: Vec<String>,
    /// The broker's address [env: METAPAGE_IO_WORKER_API_ADDRESS] [default: https://container.mtfm.io]
    #[arg(short, long, value_name = "URL")]
    api_address: Option<String>,
    /// `remote`: work for a broker elsewhere; `local`: be the broker too, as `gridsocket local`, whose other options are then
    /// said by their variables [env: METAPAGE_IO_WORKER_MODE] [default: remote]
    #[arg(short, long, value_name = "MODE")]
    mode: Option<String>,
    /// Local mode: the port of page and interface [env: METAPAGE_IO_WORKER_PORT] [default: 8000]
    #[arg(short, long, value_name = "PORT")]
    port: Option<String>,
    /// Where inputs and outputs of jobs lie while they run, the mode's name is appended; the same path must be valid for the
    /// container engine [env: METAPAGE_IO_WORKER_DATA_DIRECTORY] [default: /tmp/worker-metapage-io, or as `local` has it]
    #[arg(short, long, value_name = "DIR")]
    data_directory: Option<String>,
    /// The worker's id, not kept for the next start [env: METAPAGE_IO_WORKER_ID] [default: one that is kept in the data folder]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    worker: worker_args::Args,
}

const EXAMPLES: &str = "\
Examples:
  gridsocket run my-secret-queue --api-address http://broker.example:8000
  gridsocket run my-secret-queue -a http://broker.example:8000 -c 4 -t 1h \
    --gpus device=0,1
  gridsocket run my-secret-queue our-queue -a http://broker.example:8000
  METAPAGE_IO_WORKER_QUEUE=my-secret-queue gridsocket run

Several queues share what the worker has: what is free goes to the one that
uses least of it. `gridsocket doctor` says whether a worker works here.

DOCKER_HOST names the container engine.
METAPAGE_IO_WORKER_GENERATE_WORKER_ID=true takes a new id at each start,
METAPAGE_IO_WORKER_RUN_STANDALONE=true starts an engine (dockerd) of the
worker's own.";

/// What `gridsocket run` is to be.
#[derive(Clone, Debug)]
pub(crate) enum Settings {
    /// A worker for a broker elsewhere.
    Remote(Box<Remote>),
    /// `gridsocket local`.
    Local(Box<local::Settings>),
}

/// Checked options of a worker for a broker elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    /// The worker.
    pub(crate) worker: Config,
    /// What happens to runs when the worker stops.
    pub(crate) on_exit: ShutdownMode,
    /// Whether to say more in the log.
    pub(crate) debug: bool,
    /// What is seen of it meanwhile.
    pub(crate) console: worker_args::Console,
}

#[derive(Clone, Copy)]
enum Mode {
    Remote,
    Local,
}

impl Args {
    /// Applies flag > variable > default.
    pub(crate) fn settings(&self, env: Env<'_>) -> Result<Settings, UsageError> {
        match setting("--mode", self.mode.as_deref(), MODE).or(env, Mode::Remote, mode)? {
            Mode::Remote => self.remote(env).map(|remote| Settings::Remote(Box::new(remote))),
            Mode::Local => self.local().settings(env).map(|local| Settings::Local(Box::new(local))),
        }
    }

    fn remote(&self, env: Env<'_>) -> Result<Remote, UsageError> {
        let queues = self.queues(env)?;
        let api = setting("--api-address", self.api_address.as_deref(), API_ADDRESS);
        let api = api.find(env, str::parse::<ApiAddress>)?.unwrap_or_else(api_address_default);
        let data = setting("--data-directory", self.data_directory.as_deref(), local::DATA_DIRECTORY);
        let data = data.or(env, DATA_DIRECTORY_DEFAULT.into(), folder)?.join("remote");
        let mut worker = Config::new(queues, api, data);
        worker.public_api = setting(PUBLIC_API, None, PUBLIC_API).find(env, str::parse)?;
        worker.id = self.identity(env)?;
        self.worker.apply(env, &mut worker)?;
        worker.check().map_err(|error| UsageError::new("--data-directory", error.to_string()))?;
        Ok(Remote {
            on_exit: self.worker.on_exit(env, worker.max_job_duration_ms)?,
            debug: self.worker.debug(env)?,
            console: self.worker.console(),
            worker,
        })
    }

    /// The words, else the variable's parts. A name with a comma in it can be given as a word only.
    fn queues(&self, env: Env<'_>) -> Result<Vec<QueueName>, UsageError> {
        let words = self.queues.iter().map(|word| ("queue", word));
        let words = words.chain(self.queue_flags.iter().map(|word| ("--queue", word)));
        let words = words.map(|(place, word)| setting(place, Some(word), QUEUE).find(env, str::parse));
        let given = words.filter_map(Result::transpose).collect::<Result<Vec<_>, _>>()?;
        let (place, queues) = if given.is_empty() {
            (QUEUE, setting("queue", None, QUEUE).or(env, Vec::new(), queues)?)
        } else {
            ("queue", given)
        };
        if queues.is_empty() {
            let how = format!("say which queue to work for: `gridsocket run <queue>`, or set {QUEUE}");
            return Err(UsageError::new("queue", how));
        }
        check_queues(&queues).map_err(|error| UsageError::new(place, error.to_string()))?;
        Ok(queues)
    }

    fn identity(&self, env: Env<'_>) -> Result<Identity, UsageError> {
        let given = setting("--id", self.id.as_deref(), ID).find(env, str::parse)?;
        let is_fresh = env(GENERATE_ID).is_some_and(|value| !value.is_empty());
        Ok(match (given, is_fresh) {
            (Some(id), _) => Identity::Given(id),
            (None, true) => Identity::Fresh,
            (None, false) => Identity::Kept,
        })
    }

    fn local(&self) -> local::Args {
        local::Args {
            port: self.port.clone(),
            data_directory: self.data_directory.clone(),
            worker: self.worker.clone(),
            ..local::Args::default()
        }
    }
}

fn api_address_default() -> ApiAddress {
    API_ADDRESS_DEFAULT.parse().expect("the default address is one")
}

fn queues(text: &str) -> Result<Vec<QueueName>, String> {
    let name =
        |part: &str| part.trim().parse().map_err(|error| format!("{error}; write names with commas between them"));
    text.split(',').map(name).collect()
}

fn mode(text: &str) -> Result<Mode, &'static str> {
    match text {
        "remote" => Ok(Mode::Remote),
        "local" => Ok(Mode::Local),
        _ => Err("write remote or local"),
    }
}

#[cfg(test)]
mod tests;
