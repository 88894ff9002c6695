//! What the parameters of a link mean. Every parameter that is not the page's own is an environment variable of the job.

use super::codec::{self, CodecError};
use super::fragment::Fragment;
use crate::canonical::is_foreign_env;
use crate::json::{Object, Value};

/// The page's own parameters. The list is what a page tells those that embed it (`hashParams` in `metaframe.json`).
pub const OWN_PARAMS: [&str; 14] = [
    "allowsetjob",
    "autostart",
    "config",
    "control",
    "debug",
    "definition",
    "ignoreQueueOverride",
    "inputs",
    "job",
    "maxJobDuration",
    "queue",
    "queueOverride",
    "resolverefs",
    "terminal",
];

/// A parameter that cannot be read. The rest of the link can be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the link's parameter {key:?}: {why}")]
pub struct ParamError {
    /// Which one.
    pub key: &'static str,
    /// What is wrong with it.
    pub why: ParamProblem,
}

/// What is wrong with a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamProblem {
    /// It cannot be decoded.
    #[error("{0}")]
    Code(#[from] CodecError),
    /// It is JSON, but of another kind.
    #[error("it must be a JSON object, not {0}")]
    NotAnObject(&'static str),
}

/// The parameters of a link, by meaning.
///
/// What is not there is what a page does without it, and what cannot be read counts as not there and is in `problems`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params {
    /// The job's definition (`job`), an object.
    pub job: Option<Value>,
    /// Texts of files by name (`inputs`), which take the place of the definition's config files.
    pub inputs: Option<Object>,
    /// What is said about the job without being part of it (`control`): namespace, callbacks.
    pub control: Option<Object>,
    /// What the page tells an editor of its inputs and outputs (`definition`).
    pub definition: Option<Object>,
    /// The queue's name or address.
    pub queue: String,
    /// The queue that an embedding page wants used.
    pub queue_override: String,
    /// Whether that is not to be followed.
    pub ignore_queue_override: bool,
    /// Whether the job is submitted without a click.
    pub autostart: bool,
    /// Whether the page starts with the logs alone.
    pub terminal: bool,
    /// Whether outputs are handed on as bytes, not as addresses.
    pub resolve_refs: bool,
    /// Whether an input called `job` may replace the definition.
    pub allow_set_job: bool,
    /// Whether debug output is wanted.
    pub debug: bool,
    /// A time limit that old pages kept and never sent.
    pub max_job_duration: Option<String>,
    /// All other parameters but those of an embedding page: environment variables of the job, as they stand in the link.
    pub env: Vec<(String, String)>,
    /// What could not be read.
    pub problems: Vec<ParamError>,
}

impl Params {
    /// Reads the parameters of a fragment. Total.
    #[must_use]
    pub fn of(fragment: &Fragment) -> Self {
        let mut problems = Vec::new();
        let mut object = |key: &'static str| {
            let why = match codec::decode(fragment.get(key)?) {
                Ok(Value::Object(object)) => return Some(object),
                Ok(Value::Null) => return None,
                Ok(other) => ParamProblem::NotAnObject(other.kind()),
                Err(error) => error.into(),
            };
            problems.push(ParamError { key, why });
            None
        };
        let (job, inputs, control, definition) =
            (object("job").map(Value::Object), object("inputs"), object("control"), object("definition"));
        let text = |key| fragment.get(key).unwrap_or_default().to_owned();
        let is_true = |key| fragment.get(key) == Some("true");
        let is_env = |key: &str| !OWN_PARAMS.contains(&key) && !is_foreign_env(key);
        let env = fragment.params().filter(|(key, _)| is_env(key));
        Self {
            job,
            inputs,
            control,
            definition,
            queue: text("queue"),
            queue_override: text("queueOverride"),
            ignore_queue_override: is_true("ignoreQueueOverride"),
            autostart: is_true("autostart"),
            terminal: is_true("terminal"),
            resolve_refs: is_true("resolverefs"),
            allow_set_job: is_true("allowsetjob"),
            debug: is_true("debug"),
            max_job_duration: fragment.get("maxJobDuration").map(str::to_owned),
            env: env.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            problems,
        }
    }

    /// The queue that the link leads to, as it is written there; empty for none.
    #[must_use]
    pub fn queue(&self) -> &str {
        if self.ignore_queue_override || self.queue_override.is_empty() { &self.queue } else { &self.queue_override }
    }

    /// The namespace of what is submitted; `_` unless `control` names another.
    #[must_use]
    pub fn namespace(&self) -> &str {
        let named = self.control.as_ref().and_then(|control| control.get("namespace")).and_then(Value::as_str);
        named.filter(|name| !name.is_empty()).unwrap_or("_")
    }
}
