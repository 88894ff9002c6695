//! What is submitted: a definition made of flags, one that is there already, or many of them.

use std::path::PathBuf;

use protocol::array::Indices;
use protocol::id::Namespace;

use super::build::{Build, BuildArgs};
use super::{Api, Target, queue_name};
use crate::args::setting::{Env, UsageError, flag_only};

/// The image of a job that names none: small, and it has a shell.
const IMAGE_DEFAULT: &str = "alpine:latest";
/// What stands for "read it from standard input".
const STDIN: &str = "-";

/// Options of `job add`.
#[derive(Debug, clap::Args)]
pub(crate) struct Add {
    /// The queue [env: GRIDSOCKET_QUEUE]
    queue: Option<String>,
    /// `-` reads a whole definition as JSON from standard input
    #[arg(value_name = "-")]
    stdin: Option<String>,
    /// The same, as an earlier command line says it
    #[arg(long = "queue", value_name = "QUEUE", hide = true, conflicts_with = "queue")]
    queue_flag: Option<String>,
    /// The container image [default: alpine:latest]
    #[arg(short, long, short_alias = 'm', value_name = "IMAGE")]
    image: Option<String>,
    #[command(flatten)]
    build: BuildArgs,
    /// What to run in it, a program and its words; for several commands, `|` or `>` write `sh -c '…'` [default: what the image
    /// says]
    #[arg(short, long, value_name = "COMMAND", allow_hyphen_values = true)]
    command: Option<String>,
    /// The image's entrypoint, replaced
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// The folder to run it in
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,
    /// A file for the job's /inputs, under its own name or NAME; may be given again and again
    #[arg(short, long = "file", value_name = "[NAME=]PATH")]
    files: Vec<String>,
    /// An environment variable of the job; may be given again and again
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// CPUs it needs; fractions are allowed
    #[arg(long, value_name = "N")]
    cpus: Option<String>,
    /// GPUs it needs
    #[arg(long, value_name = "N")]
    gpus: Option<String>,
    /// Memory it needs, such as 512m or 2g
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// The longest that it may run, such as 90s, 5m or 1h30
    #[arg(long, value_name = "DURATION")]
    max_duration: Option<String>,
    /// The namespace: all but the default one hold one live job, so that a newer one replaces it
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Follow the job, print its output, and end with its exit code; of many jobs, wait for all and end with 0 if all succeeded
    #[arg(short, long)]
    wait: bool,
    /// Where result files go, with --wait
    #[arg(short, long, alias = "outputs", value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Shared memory (/dev/shm) it needs, such as 1g
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,
    /// Ask the worker for debug output
    #[arg(long)]
    debug: bool,
    /// Run the job again if it has ended without success; otherwise a job that has ended is answered with the result that is kept
    #[arg(long)]
    retry: bool,
    /// Submit a job for each number of a range, such as 0-99 or 0-99:2; {{index}} in the command, the variables, file names and
    /// other texts stands for the number
    #[arg(long, value_name = "FROM-TO[:STEP]", conflicts_with = "output_dir")]
    array: Option<String>,
    /// Submit each line of a file, or of standard input (`-`): {"definition": {…}}, with "control", "debug" or "array" if wanted;
    /// prints the ids
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output_dir", "array", "namespace", "debug"])]
    from: Option<PathBuf>,
    #[command(flatten)]
    api: Api,
}

/// What is to be submitted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Source {
    /// A definition on standard input.
    Stdin,
    /// A definition made of flags.
    Flags(Box<Spec>),
    /// Many submissions, a line each; `None`: on standard input.
    Lines(Option<PathBuf>),
}

/// A definition as flags give it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Spec {
    /// The image.
    pub(crate) image: String,
    /// What to run.
    pub(crate) command: Option<String>,
    /// What to run it with.
    pub(crate) entrypoint: Option<String>,
    /// Where to run it.
    pub(crate) workdir: Option<String>,
    /// How its image is built, instead of [`Self::image`].
    pub(crate) build: Option<Build>,
    /// Its shared memory, as written.
    pub(crate) shm_size: Option<String>,
    /// Files for `/inputs`: name and path.
    pub(crate) files: Vec<(String, PathBuf)>,
    /// Environment variables.
    pub(crate) env: Vec<(String, String)>,
    /// CPUs.
    pub(crate) cpus: Option<f64>,
    /// GPUs.
    pub(crate) gpus: Option<u32>,
    /// Memory, as written.
    pub(crate) memory: Option<String>,
    /// The time limit, as written.
    pub(crate) max_duration: Option<String>,
}

/// Checked options of `job add`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AddSettings {
    /// Where it goes.
    pub(crate) target: Target,
    /// What goes.
    pub(crate) source: Source,
    /// Under which namespace.
    pub(crate) namespace: Option<Namespace>,
    /// Whether to follow it to its end.
    pub(crate) wait: bool,
    /// Where result files go.
    pub(crate) output_dir: Option<PathBuf>,
    /// Whether debug output is wanted.
    pub(crate) debug: bool,
    /// Whether jobs that have ended without success run again.
    pub(crate) retry: bool,
    /// The numbers, when it is a template of many jobs.
    pub(crate) array: Option<Indices>,
}

impl Add {
    /// Applies flag > variable > default.
    pub(crate) fn settings(&self, env: Env<'_>) -> Result<AddSettings, UsageError> {
        let queue = self.queue.as_deref().or(self.queue_flag.as_deref());
        let (queue, stdin) = match (queue, self.stdin.as_deref()) {
            (Some(STDIN), None) => (None, true),
            (queue, Some(STDIN)) => (queue, true),
            (queue, None) => (queue, false),
            (_, Some(other)) => {
                return Err(UsageError::new(
                    format!("{other:?}"),
                    "only `-` (a definition on standard input) can follow the queue; a command goes behind -c",
                ));
            }
        };
        let source = match &self.from {
            Some(_) if stdin => {
                return Err(UsageError::new("-", "with --from, standard input is written as --from -"));
            }
            Some(from) => {
                self.no_definition("each line of --from is a definition of its own; put this into it")?;
                Source::Lines((from.as_os_str() != STDIN).then(|| from.clone()))
            }
            None if stdin => {
                self.no_definition("a definition on standard input is taken as it is; put this into it")?;
                Source::Stdin
            }
            None => Source::Flags(Box::new(self.spec(env)?)),
        };
        Ok(AddSettings {
            target: Target { api: self.api.settings(env)?, queue: queue_name(queue, env)? },
            source,
            array: flag_only("--array", self.array.as_deref()).find(env, Indices::parse_range)?,
            namespace: flag_only("--namespace", self.namespace.as_deref()).find(env, str::parse)?,
            wait: self.wait,
            output_dir: self.output_dir.clone(),
            debug: self.debug,
            retry: self.retry,
        })
    }

    /// Refuses flags that make a definition where there is one already.
    fn no_definition(&self, why: &str) -> Result<(), UsageError> {
        let given = [
            ("--image", self.image.is_some()),
            ("--git, or another option of a build", self.build.is_given()),
            ("--shm-size", self.shm_size.is_some()),
            ("--command", self.command.is_some()),
            ("--entrypoint", self.entrypoint.is_some()),
            ("--workdir", self.workdir.is_some()),
            ("--file", !self.files.is_empty()),
            ("--env", !self.env.is_empty()),
            ("--cpus", self.cpus.is_some()),
            ("--gpus", self.gpus.is_some()),
            ("--memory", self.memory.is_some()),
            ("--max-duration", self.max_duration.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(UsageError::new(*flag, why)),
            None => Ok(()),
        }
    }

    fn spec(&self, env: Env<'_>) -> Result<Spec, UsageError> {
        let files = self.files.iter().map(|given| flag_only("--file", Some(given)).find(env, file));
        let variables = self.env.iter().map(|given| flag_only("--env", Some(given)).find(env, variable));
        let spec = Spec {
            image: flag_only("--image", self.image.as_deref()).or(env, IMAGE_DEFAULT.to_owned(), image)?,
            command: self.command.clone(),
            entrypoint: self.entrypoint.clone(),
            workdir: self.workdir.clone(),
            build: self.build.build(env)?,
            shm_size: flag_only("--shm-size", self.shm_size.as_deref())
                .find(env, |text| protocol::size::parse_size_bytes(text).map(|_| text.to_owned()))?,
            files: files.filter_map(Result::transpose).collect::<Result<_, _>>()?,
            env: variables.filter_map(Result::transpose).collect::<Result<_, _>>()?,
            cpus: flag_only("--cpus", self.cpus.as_deref()).find(env, cpus)?,
            gpus: flag_only("--gpus", self.gpus.as_deref())
                .find(env, |text| text.parse().map_err(|_| "write a whole number, such as 1"))?,
            memory: flag_only("--memory", self.memory.as_deref())
                .find(env, |text| protocol::size::parse_size_bytes(text).map(|_| text.to_owned()))?,
            max_duration: flag_only("--max-duration", self.max_duration.as_deref()).find(env, duration)?,
        };
        if spec.build.is_some() && self.image.is_some() {
            return Err(UsageError::new(
                "--image",
                "a job has an image, or one is built for it; leave one of the two out",
            ));
        }
        for (at, (name, _)) in spec.files.iter().enumerate() {
            if spec.files[..at].iter().any(|(earlier, _)| earlier == name) {
                return Err(UsageError::new(
                    "--file",
                    format!("two files would be /inputs/{name}; give one of them as NAME=PATH"),
                ));
            }
        }
        Ok(spec)
    }
}

fn image(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() { Err("write an image such as alpine:3.20") } else { Ok(text.to_owned()) }
}

/// Reads `path` or `name=path`. What stands before the first `=` is a name, unless the whole text is a file's path.
fn file(text: &str) -> Result<(String, PathBuf), String> {
    const RULE: &str = "write a path, or NAME=PATH with the name that the job is to see below /inputs";
    let (name, path) = match text.split_once('=') {
        Some((name, path)) if !std::path::Path::new(text).exists() => (name.to_owned(), PathBuf::from(path)),
        Some(_) | None => {
            let path = PathBuf::from(text);
            let name = path.file_name().and_then(|name| name.to_str()).ok_or(RULE)?.to_owned();
            (name, path)
        }
    };
    if path.as_os_str().is_empty() {
        return Err(RULE.to_owned());
    }
    protocol::definition::check_relative_name("inputs", &name).map_err(|error| error.to_string())?;
    Ok((name, path))
}

fn variable(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err("write NAME=VALUE"),
    }
}

fn cpus(text: &str) -> Result<f64, &'static str> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    number.ok_or("write a number above zero, such as 2 or 0.5")
}

fn duration(text: &str) -> Result<String, &'static str> {
    protocol::duration::limit_ms(text)
        .map(|_| text.to_owned())
        .ok_or("write a duration above zero, such as 90s, 5m or 1h30")
}
