//! `gridsocket job …`: the options of the commands that submit jobs and look after them.

mod add;
mod build;

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use protocol::id::{JobId, Namespace, QueueName};

pub(crate) use add::{Add, AddSettings, Source, Spec};
pub(crate) use build::Build;

use super::local::PORT_DEFAULT;
use super::setting::{Env, UsageError, base_url, setting};

const API: &str = "GRIDSOCKET_API";
const QUEUE: &str = "GRIDSOCKET_QUEUE";
/// What earlier command lines call the same.
const APIS: [&str; 3] = [API, "API_SERVER_ADDRESS", "CQ_API"];
const QUEUES: [&str; 2] = [QUEUE, "CQ_QUEUE"];

/// Options of `gridsocket job`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The job commands.
#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, and clap fills it")]
pub(crate) enum Command {
    /// Submit a job; prints its id, or with `--wait` its output
    #[command(alias = "submit")]
    Add(Add),
    /// Wait for a job's end; shows its output and ends with its exit code
    #[command(alias = "wait")]
    Await(Await),
    /// Print a job's log
    Logs(Logs),
    /// Print a job's result as JSON
    #[command(alias = "get")]
    Result(One),
    /// Cancel a job
    Cancel(Cancel),
    /// Say why a job stands where it stands: its place in line, the workers, what they lack
    Explain(Explain),
    /// List a queue's jobs
    #[command(alias = "list")]
    Ls(Ls),
    #[command(hide = true)]
    Run(Elsewhere),
    #[command(hide = true)]
    Outputs(Elsewhere),
    #[command(hide = true)]
    Upload(Elsewhere),
    #[command(hide = true)]
    Status(Elsewhere),
    #[command(hide = true)]
    Url(Elsewhere),
}

const EXAMPLES: &str = "\
Examples:
  gridsocket job add local -c 'echo hello' --wait
  gridsocket job add local --image python:3.12-slim --file main.py \\
      --file data.csv=./2026.csv -c 'python /inputs/main.py' -w --output-dir out
  id=$(gridsocket job add my-queue -c 'sleep 60')
  gridsocket job logs my-queue $id --follow
  gridsocket job add my-queue -c 'run --seed {{index}}' --array 0-99 --wait
  gridsocket job add my-queue -c 'sleep 60' --retry    # once more, if it failed
  gridsocket job add my-queue --from jobs.jsonl        # {\"definition\": {…}} each
  gridsocket job explain my-queue $id
  gridsocket job ls my-queue

A job finds its files in /inputs and leaves its results in /outputs. Equal
definitions are one job with one result. With GRIDSOCKET_QUEUE and
GRIDSOCKET_API set, queue and --api may be left out.";

/// Where the broker is.
#[derive(Debug, clap::Args)]
struct Api {
    /// The broker's address [env: GRIDSOCKET_API] [default: http://localhost:8000]
    #[arg(long, value_name = "URL")]
    api: Option<String>,
}

impl Api {
    fn settings(&self, env: Env<'_>) -> Result<String, UsageError> {
        api_address(self.api.as_deref(), env)
    }
}

/// The broker's address: by default the one that `gridsocket local` and `gridsocket serve` listen on.
pub(super) fn api_address(given: Option<&str>, env: Env<'_>) -> Result<String, UsageError> {
    setting("--api", given, first_set(&APIS, env)).or(env, format!("http://localhost:{PORT_DEFAULT}"), base_url)
}

/// The first of several names of a variable that is set.
fn first_set(names: &[&'static str], env: Env<'_>) -> &'static str {
    let is_set = |name: &&&str| env(name).is_some_and(|value| !value.trim().is_empty());
    names.iter().find(is_set).or(names.first()).copied().unwrap_or_default()
}

fn queue_name(given: Option<&str>, env: Env<'_>) -> Result<QueueName, UsageError> {
    setting("queue", given, first_set(&QUEUES, env)).find(env, str::parse)?.ok_or_else(|| {
        UsageError::new("queue", format!("say which queue, or set {QUEUE}; `gridsocket local` has the queue `local`"))
    })
}

/// Where a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The broker's address, without a trailing slash.
    pub(crate) api: String,
    /// The queue.
    pub(crate) queue: QueueName,
}

/// A job that is there already.
#[derive(Debug, clap::Args)]
#[command(allow_missing_positional = true)]
pub(crate) struct One {
    /// The queue [env: GRIDSOCKET_QUEUE]
    queue: Option<String>,
    /// The job's id, 64 hex digits
    #[arg(value_name = "JOB")]
    job: String,
    /// The queue, as an earlier command line says it
    #[arg(long = "queue", value_name = "QUEUE", hide = true, conflicts_with = "queue")]
    queue_flag: Option<String>,
    #[command(flatten)]
    api: Api,
}

impl One {
    /// Applies flag > variable > default.
    pub(crate) fn settings(&self, env: Env<'_>) -> Result<(Target, JobId), UsageError> {
        let queue = self.queue.as_deref().or(self.queue_flag.as_deref());
        let target = Target { api: self.api.settings(env)?, queue: queue_name(queue, env)? };
        let job = self.job.parse().map_err(|error| UsageError::new(format!("{:?}", self.job), format!("{error}")))?;
        Ok((target, job))
    }
}

/// Options of `job await`.
#[derive(Debug, clap::Args)]
#[command(allow_missing_positional = true)]
pub(crate) struct Await {
    #[command(flatten)]
    pub(crate) one: One,
    /// Where result files go
    #[arg(short, long, alias = "outputs", value_name = "DIR")]
    pub(crate) output_dir: Option<PathBuf>,
}

/// Which lines of a job's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Pulling or building the image.
    Build,
    /// The container's output.
    Run,
    /// Both, each with its own count of lines.
    Both,
}

/// Options of `job logs`.
#[derive(Debug, clap::Args)]
#[command(allow_missing_positional = true)]
pub(crate) struct Logs {
    #[command(flatten)]
    pub(crate) one: One,
    /// Which lines: those of getting the image, or those of the container
    #[arg(long, value_enum, default_value = "run")]
    pub(crate) kind: Kind,
    /// Go on until the job is over
    #[arg(long)]
    pub(crate) follow: bool,
    /// Leave out the first N lines
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) since: u64,
}

/// Options of `job cancel`.
#[derive(Debug, clap::Args)]
#[command(allow_missing_positional = true)]
pub(crate) struct Cancel {
    #[command(flatten)]
    pub(crate) one: One,
    /// Withdraw only this namespace's wish for the job; `*` for everyone's [default: the default namespace]
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Option<Namespace>,
    /// Why, for whoever asks later
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
}

/// Options of `job explain`.
#[derive(Debug, clap::Args)]
#[command(allow_missing_positional = true)]
pub(crate) struct Explain {
    #[command(flatten)]
    pub(crate) one: One,
    /// The whole explanation as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `job ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct Ls {
    /// The queue [env: GRIDSOCKET_QUEUE]
    queue: Option<String>,
    /// JSON, one job a line, instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    api: Api,
}

impl Ls {
    /// Applies flag > variable > default.
    pub(crate) fn settings(&self, env: Env<'_>) -> Result<Target, UsageError> {
        Ok(Target { api: self.api.settings(env)?, queue: queue_name(self.queue.as_deref(), env)? })
    }
}

/// What earlier command lines call otherwise: refused, with the words that do it.
#[derive(Debug, clap::Args)]
pub(crate) struct Elsewhere {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    words: Vec<String>,
}

impl Elsewhere {
    /// Says what to write instead of `command`.
    pub(crate) fn refusal(&self, command: &str, instead: &str) -> UsageError {
        let rest = if self.words.is_empty() { "" } else { " …" };
        UsageError::new(format!("job {command}{rest}"), format!("there is no such command; {instead}"))
    }
}

#[cfg(test)]
mod tests;
