//! Lines of a job's logs, and which of its two logs they belong to.

use serde::{Deserialize, Serialize};

use crate::id::UnixMillis;

/// Whether lines come from making the image or from running the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LogKind {
    /// Pulling, cloning, building, pushing.
    Build,
    /// The container's output.
    Run,
}

/// What a line comes from. The texts are the original's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LogStep {
    /// Pulling the image.
    #[serde(rename = "docker image pull")]
    Pull,
    /// Fetching a build context.
    #[serde(rename = "cloning repo")]
    Clone,
    /// Building the image.
    #[serde(rename = "docker build")]
    Build,
    /// Pushing the image.
    #[serde(rename = "docker image push")]
    Push,
    /// The container's output.
    #[serde(rename = "Running")]
    Run,
}

impl LogStep {
    /// Which log the step's lines belong to.
    #[must_use]
    pub const fn kind(self) -> LogKind {
        match self {
            Self::Pull | Self::Clone | Self::Build | Self::Push => LogKind::Build,
            Self::Run => LogKind::Run,
        }
    }
}

/// A piece of output: the original's `[text, time]` or `[text, time, true]` for standard error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// The text, with its newline where there was one.
    pub text: String,
    /// When it was read.
    pub at_ms: UnixMillis,
    /// Whether it came from standard error.
    pub stderr: bool,
}

impl Serialize for LogLine {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.stderr {
            (&self.text, self.at_ms, true).serialize(serializer)
        } else {
            (&self.text, self.at_ms).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for LogLine {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Parts;
        impl<'de> serde::de::Visitor<'de> for Parts {
            type Value = LogLine;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("[text, time] or [text, time, is stderr]")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut parts: A) -> Result<LogLine, A::Error> {
                let missing = |at| serde::de::Error::invalid_length(at, &self);
                let text = parts.next_element()?.ok_or_else(|| missing(0))?;
                let at_ms = parts.next_element()?.ok_or_else(|| missing(1))?;
                let stderr = parts.next_element::<Option<bool>>()?.flatten().unwrap_or(false);
                Ok(LogLine { text, at_ms, stderr })
            }
        }
        deserializer.deserialize_seq(Parts)
    }
}
