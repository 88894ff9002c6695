//! Ids and names: newtypes that cannot be mixed up, with one spelling each.
//!
//! Byte ids serialise as raw bytes in binary formats and as lower-case hex in text formats.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not an id or a name; says the rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not the right number of lower-case hex digits.
    #[error("{what} must be {digits} lower-case hex digits")]
    NotHex {
        /// What was being read.
        what: &'static str,
        /// How many digits it has.
        digits: usize,
    },
    /// Empty, too long, or with a byte that names may not have.
    #[error("{what} must be 1 to {bytes_max} bytes of printable text{without}")]
    NotAName {
        /// What was being read.
        what: &'static str,
        /// The longest allowed, in bytes of UTF-8.
        bytes_max: usize,
        /// What else it may not have, as the end of the sentence.
        without: &'static str,
    },
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Takes the bytes as they are.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                parse_hex(text).map(Self).ok_or(IdError::NotHex { what: $what, digits: 2 * $len })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                    text.parse().map_err(de::Error::custom)
                } else {
                    let bytes: [u8; $len] = serde_bytes::deserialize(deserializer)?;
                    Ok(Self(bytes))
                }
            }
        }
    };
}

byte_id!(
    /// A job's id: the SHA-256 of its canonical definition, the same in every queue and in the original system.
    JobId, 32, "a job id"
);
byte_id!(
    /// A blake3 hash: of a body's bytes, of a state, or of a chain up to a record.
    Digest, 32, "a digest"
);
byte_id!(
    /// What everything stored about a queue is keyed by, so that its name, which is its secret, never touches the disk.
    QueueKey, 16, "a queue key"
);
byte_id!(
    /// The id of a container image: the SHA-256 of its configuration, as the Engine names it after `sha256:`.
    ImageId, 32, "an image id"
);

impl ImageId {
    /// Reads the Engine's spelling, `sha256:<hex>`.
    #[must_use]
    pub fn of_engine(name: &str) -> Option<Self> {
        name.strip_prefix("sha256:").and_then(parse_hex).map(Self)
    }
}

fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
    }
    Some(bytes)
}

/// Upper case is refused: an id has one spelling, so that it can be a file name and a map key.
const fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl Digest {
    /// Hashes `bytes` with blake3.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl QueueKey {
    /// The key of the queue of that name. One way: the name cannot be read back from it.
    #[must_use]
    pub fn of(name: &QueueName) -> Self {
        let hash = blake3::derive_key("gridsocket 2026 queue key", name.as_str().as_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&hash[..16]);
        Self(key)
    }

    /// The chain hash before the queue's first record.
    #[must_use]
    pub fn genesis(&self) -> Digest {
        Digest(blake3::derive_key("gridsocket 2026 genesis", &self.0))
    }

    /// The first 8 hex digits: enough to tell queues apart in a log line, useless as a way in.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr, $without:literal, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let allowed: fn(char) -> bool = $allowed;
                if text.is_empty() || text.len() > $max || !text.chars().all(|c| !c.is_control() && allowed(c)) {
                    return Err(IdError::NotAName { what: $what, bytes_max: $max, without: $without });
                }
                Ok(Self(text.to_owned()))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

/// The longest queue name, in bytes: any path segment a proxy is sure to pass.
pub const QUEUE_NAME_BYTES_MAX: usize = 256;
/// The longest worker id, in bytes: a UUID is 36; people also use host names (253).
pub const WORKER_ID_BYTES_MAX: usize = 256;
/// The longest namespace, in bytes: people put `user/document` paths there.
pub const NAMESPACE_BYTES_MAX: usize = 256;

name_type!(
    /// A queue's name. It is the secret that grants everything in the queue: never logged, never stored.
    QueueName, "a queue name", QUEUE_NAME_BYTES_MAX, " without `/`", |c| c != '/'
);
name_type!(
    /// A worker's own name for itself, kept over its restarts.
    WorkerId, "a worker id", WORKER_ID_BYTES_MAX, "", |_| true
);
name_type!(
    /// A namespace: all but the default one hold at most one live job.
    Namespace, "a namespace", NAMESPACE_BYTES_MAX, "", |_| true
);

impl Namespace {
    /// The name of the default namespace, in which any number of jobs may live.
    pub const DEFAULT: &'static str = "_";

    /// Whether this is the default namespace.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.0 == Self::DEFAULT
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

/// A point in time: milliseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// This time and `ms` milliseconds more, at the end of time at most.
    #[must_use]
    pub const fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this; 0 when it is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a run: 1 for a job's first, one more for each claim. It is the fencing token of the claim.
pub type RunNumber = u32;

/// The position of an event in its queue: 1 for the first; 0 stands for "before the first".
pub type Seq = u64;

/// Where a queue's chain stands: the position of the last event, and the hash that vouches for everything up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The position of the last event; 0 when there is none.
    pub seq: Seq,
    /// The chain hash up to and including that event.
    pub hash: Digest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        let hex = "84696046848ef38f50a2f6182fc7674eaee3d1fac23fe57466d6cb5f771794e4";
        let id: JobId = hex.parse().unwrap();
        assert_eq!(id.to_string(), hex);
        assert!(hex.to_uppercase().parse::<JobId>().is_err());
        assert!(hex[1..].parse::<JobId>().is_err());
        assert!("../../../../etc/passwd".parse::<JobId>().is_err());
    }

    #[test]
    fn an_id_is_hex_in_json_and_bytes_in_messagepack() {
        let id = JobId::from_bytes([7; 32]);
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<JobId>(&format!("\"{id}\"")).unwrap(), id);
        let packed = rmp_serde::to_vec_named(&id).unwrap();
        assert_eq!(packed.len(), 34);
        assert_eq!(rmp_serde::from_slice::<JobId>(&packed).unwrap(), id);
    }

    #[test]
    fn names_are_bounded_printable_text() {
        assert!("".parse::<QueueName>().is_err());
        assert!("a/b".parse::<QueueName>().is_err());
        assert!("a\nb".parse::<QueueName>().is_err());
        assert!("é ok".parse::<QueueName>().is_ok());
        assert!("x".repeat(QUEUE_NAME_BYTES_MAX + 1).parse::<QueueName>().is_err());
        assert!("alice/doc1".parse::<Namespace>().is_ok());
    }

    #[test]
    fn a_queue_key_and_its_genesis_are_frozen() {
        let key = QueueKey::of(&"public1".parse().unwrap());
        assert_eq!(key.to_string().len(), 32);
        assert_ne!(key, QueueKey::of(&"public2".parse().unwrap()));
        assert_eq!(key.genesis(), QueueKey::of(&"public1".parse().unwrap()).genesis());
    }
}
