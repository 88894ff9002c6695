//! The summary of a definition that scheduling works on.

use serde::{Deserialize, Serialize};

use super::Definition;

/// What a job needs of a worker. Stored in events: add defaulted fields, never rename or reuse one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Needs {
    /// Processors in thousandths, rounded up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus_milli: Option<u32>,
    /// Memory in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Graphics processors.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gpus: u32,
    /// What a worker must be tagged with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The definition's own time limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_duration_ms: Option<u64>,
}

impl Needs {
    /// Whether any worker will do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn of(definition: &Definition) -> Self {
        let requirements = &definition.requirements;
        Self {
            cpus_milli: requirements.cpus.map(milli),
            memory_bytes: requirements.memory,
            gpus: requirements.gpus.unwrap_or(0),
            tags: definition.tags.clone(),
            max_duration_ms: definition.max_duration_ms(),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Thousandths, rounded up; what a double adds below a millionth (`0.1 * 1000` gives `100.00000000000001`) is not rounded up.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "above zero, and casts saturate")]
fn milli(cpus: f64) -> u32 {
    ((cpus * 1000.0 - 1e-6).ceil() as u32).max(1)
}
