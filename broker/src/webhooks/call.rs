//! The names of webhooks and of their calls.

use std::fmt;
use std::str::FromStr;

use protocol::id::{JobId, Namespace, QueueKey, UnixMillis};
use serde::{Deserialize, Serialize};

/// The id of a webhook: what one submission asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HookId([u8; 16]);

impl HookId {
    #[cfg(test)]
    pub(super) const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// A new one. `number` tells apart what came in the same millisecond.
    pub(super) fn new(queue: QueueKey, job: JobId, namespace: &Namespace, at: UnixMillis, number: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("gridsocket 2026 webhook id");
        hasher.update(queue.as_bytes()).update(job.as_bytes());
        hasher.update(&at.0.to_le_bytes()).update(&number.to_le_bytes()).update(namespace.as_str().as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(id)
    }

    /// A number that differs between webhooks.
    pub(super) fn salt(self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Display for HookId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for HookId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HookId({self})")
    }
}

impl FromStr for HookId {
    type Err = NotACall;

    fn from_str(text: &str) -> Result<Self, NotACall> {
        let key: QueueKey = text.parse().map_err(|_| NotACall)?;
        Ok(Self(*key.as_bytes()))
    }
}

/// What a call tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The submission made a job wait.
    Queued,
    /// The job is over.
    Finished,
}

impl Kind {
    /// Both, in the order in which they happen.
    pub(super) const ALL: [Self; 2] = [Self::Queued, Self::Finished];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Finished => "finished",
        }
    }
}

/// One of a webhook's calls. Written, it is the id that receivers see, the same for every try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId {
    pub(super) hook: HookId,
    pub(super) kind: Kind,
}

/// Not the id of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a webhook's id is 32 lower-case hex digits, a dash, and queued or finished")]
pub struct NotACall;

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.hook, self.kind.name())
    }
}

impl FromStr for CallId {
    type Err = NotACall;

    fn from_str(text: &str) -> Result<Self, NotACall> {
        let (hook, kind) = text.split_once('-').ok_or(NotACall)?;
        let kind = Kind::ALL.into_iter().find(|known| known.name() == kind).ok_or(NotACall)?;
        Ok(Self { hook: hook.parse()?, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_calls_id_is_read_as_it_is_written() {
        let call = CallId { hook: HookId::from_bytes([0xab; 16]), kind: Kind::Finished };
        assert_eq!(call.to_string(), format!("{}-finished", "ab".repeat(16)));
        assert_eq!(call.to_string().parse(), Ok(call));
        for bad in ["", "ab-finished", &format!("{}-ended", "ab".repeat(16)), &"ab".repeat(16)] {
            assert_eq!(bad.parse::<CallId>(), Err(NotACall), "{bad}");
        }
    }
}
