//! A typed view of a job's definition, for the broker's scheduling and the worker's run.
//!
//! The JSON text as received stays the truth (its id depends on it); this view only reads it. It is lenient: a field of
//! a wrong type counts as absent and is told as a [`Problem`], unknown fields are ignored, nothing is refused that was
//! merely odd. What must be refused for safety, file names that lead elsewhere, is [`Definition::check_names`].

mod names;
mod needs;
mod read;

pub use names::{NameError, NameRule, check_relative_name};
pub use needs::Needs;

use crate::duration;
use crate::id::JobId;
use crate::json::{self, JsonError, Value};
use crate::{canonical, size};

/// What a definition asks for, as far as it could be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// The image to run.
    pub image: Option<String>,
    /// How to build the image, if it is to be built.
    pub build: Option<Build>,
    /// What to run; `None` for the image's own.
    pub command: Option<CommandLine>,
    /// What to run it with; `None` for the image's own.
    pub entrypoint: Option<CommandLine>,
    /// The working directory in the container.
    pub workdir: Option<String>,
    /// The size of `/dev/shm` as written; see [`Self::shm_bytes`].
    pub shm_size: Option<String>,
    /// The time limit as written; see [`Self::max_duration_ms`].
    pub max_duration: Option<String>,
    /// Environment variables in JavaScript's property order.
    pub env: Vec<(String, String)>,
    /// Files below `/inputs`, by relative name, in JavaScript's property order.
    pub inputs: Vec<(String, DataRef)>,
    /// Files below `/inputs` or, by absolute name, anywhere; in JavaScript's property order.
    pub config_files: Vec<(String, DataRef)>,
    /// What a worker must be tagged with.
    pub tags: Vec<String>,
    /// What the run needs.
    pub requirements: Requirements,
    /// What could not be read, field by field.
    pub problems: Vec<Problem>,
    value: Value,
}

/// How to build an image; every part as written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Build {
    /// Address of the files to build from.
    pub context: Option<String>,
    /// Directory of the build, below the context.
    pub build_context: Option<String>,
    /// Name of the Dockerfile.
    pub filename: Option<String>,
    /// Stage to build.
    pub target: Option<String>,
    /// Text of the Dockerfile.
    pub dockerfile: Option<String>,
    /// `NAME=value` pairs.
    pub build_args: Vec<String>,
    /// Platform to build for.
    pub platform: Option<String>,
    /// The whole block as received, unknown parts included; the image's tag is derived from it.
    pub value: Value,
}

/// A command or entrypoint: a line still to be split (see [`crate::shell`]), or arguments that pass as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandLine {
    /// One line of text.
    Text(String),
    /// Separate arguments.
    Argv(Vec<String>),
}

/// The content of a file, or where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct DataRef {
    /// How `value` is to be taken.
    pub kind: DataKind,
    /// Text for all kinds but [`DataKind::Json`].
    pub value: Value,
    /// The sha256 that the submitter claims for the content. Never trusted unchecked.
    pub hash: Option<String>,
}

/// How the value of a [`DataRef`] is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataKind {
    /// The value is the content; also when no type is given.
    Utf8,
    /// The value is the content in base64.
    Base64,
    /// The value, written as JSON, is the content.
    Json,
    /// The content is at that address.
    Url,
    /// The content is the broker's blob of that key.
    Key,
}

impl DataRef {
    /// The value's text; `None` when it is not a string.
    #[must_use]
    pub fn text(&self) -> Option<std::borrow::Cow<'_, str>> {
        self.value.as_js_string().map(json::JsString::to_string_lossy)
    }
}

/// What a run needs; `None` where nothing (readable) is asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Requirements {
    /// Processors; fractions allowed, above zero.
    pub cpus: Option<f64>,
    /// Graphics processors.
    pub gpus: Option<u32>,
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Time limit in milliseconds.
    pub max_duration_ms: Option<u64>,
}

/// Something in a definition that could not be read and is left out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {text}")]
pub struct Problem {
    /// Which field, as a path such as `requirements.memory`.
    pub field: String,
    /// What is wrong, for people.
    pub text: String,
}

/// Why a body is no definition at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// It is not JSON.
    #[error("the definition is not JSON: {0}")]
    Json(#[from] JsonError),
    /// It is JSON, but not an object.
    #[error("the definition must be a JSON object, not {found}")]
    NotAnObject {
        /// What it is instead.
        found: &'static str,
    },
}

impl Definition {
    /// Reads a definition from JSON text.
    ///
    /// # Errors
    ///
    /// [`DefinitionError`] only when the body is not a JSON object.
    pub fn parse(body: &[u8]) -> Result<Self, DefinitionError> {
        Self::from_value(json::parse(body)?)
    }

    /// Takes a definition that was read already.
    ///
    /// # Errors
    ///
    /// [`DefinitionError::NotAnObject`].
    pub fn from_value(value: Value) -> Result<Self, DefinitionError> {
        if value.as_object().is_none() {
            return Err(DefinitionError::NotAnObject { found: value.kind() });
        }
        Ok(read::definition(value))
    }

    /// The definition as received, unknown fields included.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The job's id.
    #[must_use]
    pub fn job_id(&self) -> JobId {
        canonical::job_id(&self.value)
    }

    /// What was wrong with `field` (a path such as `requirements.memory`), if anything was.
    #[must_use]
    pub fn problem_with(&self, field: &str) -> Option<&Problem> {
        self.problems.iter().find(|problem| problem.field == field)
    }

    /// The shorter of the definition's two time limits (its own and that of its requirements) that can be read.
    #[must_use]
    pub fn max_duration_ms(&self) -> Option<u64> {
        let own = self.max_duration.as_deref().and_then(duration::limit_ms);
        own.into_iter().chain(self.requirements.max_duration_ms).min()
    }

    /// The time limit that a run gets from a worker that allows `worker_limit_ms`.
    #[must_use]
    pub fn time_limit_ms(&self, worker_limit_ms: u64) -> u64 {
        self.max_duration_ms().map_or(worker_limit_ms, |ms| ms.min(worker_limit_ms))
    }

    /// The size of `/dev/shm` in bytes; `None` for the engine's default.
    #[must_use]
    pub fn shm_bytes(&self) -> Option<u64> {
        size::parse_size_bytes(self.shm_size.as_deref()?).ok()
    }

    /// What scheduling has to know.
    #[must_use]
    pub fn needs(&self) -> Needs {
        Needs::of(self)
    }

    /// Refuses names that would put a file elsewhere than where it belongs.
    ///
    /// # Errors
    ///
    /// [`NameError`] for the first bad name in `inputs` or `configFiles`.
    pub fn check_names(&self) -> Result<(), NameError> {
        names::check(self)
    }
}
