//! Bytes that travel as they are: JSON text in both encodings, and encoded records and states inside messages.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use crate::queue::QueueState;
use crate::record::Record;

/// JSON text exactly as a peer sent it: a value in the JSON encoding, a string in MessagePack.
///
/// It is not parsed on the way: a definition may hold what no JSON library keeps (lone surrogates, numbers beyond a double).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawJson(Arc<str>);

impl RawJson {
    /// Takes `text`, which the caller has checked to be one JSON value or is about to check.
    #[must_use]
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Serialize for RawJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            let value: &serde_json::value::RawValue = serde_json::from_str(&self.0).map_err(ser::Error::custom)?;
            value.serialize(serializer)
        } else {
            serializer.serialize_str(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for RawJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let value = Box::<serde_json::value::RawValue>::deserialize(deserializer)?;
            Ok(Self(value.get().into()))
        } else {
            String::deserialize(deserializer).map(|text| Self(text.into()))
        }
    }
}

macro_rules! encoded {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name(pub Arc<[u8]>);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    <$inner>::decode(&self.0).map_err(ser::Error::custom)?.serialize(serializer)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let value = <$inner>::deserialize(deserializer)?;
                    Ok(Self(value.encode().into()))
                } else {
                    let bytes = serde_bytes::ByteBuf::deserialize(deserializer).map_err(de::Error::custom)?;
                    Ok(Self(bytes.into_vec().into()))
                }
            }
        }
    };
}

encoded!(
    /// A record's bytes, verbatim, so that whoever receives them can check the chain. In the JSON encoding: the record.
    RecordBytes, Record
);
encoded!(
    /// A state's canonical encoding; its blake3 is the state hash. In the JSON encoding: the state.
    StateBytes, QueueState
);
