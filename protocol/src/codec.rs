//! One frame <-> one message, in either encoding of the native dialect.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest frame and message that the broker accepts, in bytes: a bulk of jobs with bodies fits, a memory attack does not.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The largest message that the broker sends, in bytes, as fragments of at most 64 KiB: the snapshot of a queue that is full
/// (100,000 jobs) is about 25 MB in MessagePack and 50 MB in JSON.
pub const MESSAGE_BYTES_MAX: usize = 128 * 1024 * 1024;

/// The subprotocol of the MessagePack encoding.
pub const SUBPROTOCOL_MESSAGEPACK: &str = "gridsocket.v1";
/// The subprotocol of the JSON encoding, for debugging and for pages without a decoder.
pub const SUBPROTOCOL_JSON: &str = "gridsocket.v1.json";

/// How messages become bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Binary frames: MessagePack with named fields.
    MessagePack,
    /// Text frames: JSON.
    Json,
}

/// Why a frame is not a message.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Larger than [`MESSAGE_BYTES_MAX`].
    #[error("message of {0} bytes, the limit is {MESSAGE_BYTES_MAX}")]
    TooLarge(usize),
    /// Not MessagePack of a known message.
    #[error("not a message of this dialect: {0}")]
    MessagePack(#[from] rmp_serde::decode::Error),
    /// Not JSON of a known message.
    #[error("not a message of this dialect: {0}")]
    Json(#[from] serde_json::Error),
}

impl Encoding {
    /// The encoding that a subprotocol names.
    #[must_use]
    pub fn of_subprotocol(name: &str) -> Option<Self> {
        match name {
            SUBPROTOCOL_MESSAGEPACK => Some(Self::MessagePack),
            SUBPROTOCOL_JSON => Some(Self::Json),
            _ => None,
        }
    }

    /// The subprotocol that names this encoding.
    #[must_use]
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Self::MessagePack => SUBPROTOCOL_MESSAGEPACK,
            Self::Json => SUBPROTOCOL_JSON,
        }
    }

    /// One message as one frame's payload.
    ///
    /// # Panics
    ///
    /// When `message` holds JSON text that is not JSON: whoever took it from a peer has checked it.
    pub fn encode<M: Serialize>(self, message: &M) -> Vec<u8> {
        match self {
            Self::MessagePack => rmp_serde::to_vec_named(message).expect("messages are plain data"),
            Self::Json => serde_json::to_vec(message).expect("messages are plain data"),
        }
    }

    /// Reads one frame's payload.
    ///
    /// # Errors
    ///
    /// [`CodecError`] when it is too large or not a message.
    pub fn decode<M: DeserializeOwned>(self, frame: &[u8]) -> Result<M, CodecError> {
        if frame.len() > MESSAGE_BYTES_MAX {
            return Err(CodecError::TooLarge(frame.len()));
        }
        match self {
            Self::MessagePack => Ok(rmp_serde::from_slice(frame)?),
            Self::Json => Ok(serde_json::from_slice(frame)?),
        }
    }
}
