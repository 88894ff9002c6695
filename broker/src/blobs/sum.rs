//! The sha256 of a blob's bytes, and how it comes about.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::error::BlobError;

/// A sha256. Shown as keys show it: 64 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum([u8; 32]);

impl Sum {
    /// Reads it as the header `x-amz-checksum-sha256` has it; `None` for anything else.
    #[must_use]
    pub fn from_base64(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok()?.try_into().ok().map(Self)
    }

    pub(super) fn to_base64(self) -> String {
        STANDARD.encode(self.0)
    }
}

impl From<Sha256> for Sum {
    fn from(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What has come of a blob so far.
pub(super) struct Seen {
    hasher: Sha256,
    bytes: u64,
    bytes_max: u64,
}

impl Seen {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { hasher: Sha256::new(), bytes: 0, bytes_max }
    }

    pub(super) fn take(&mut self, bytes: &Bytes) -> Result<(), BlobError> {
        self.bytes += bytes.len() as u64;
        if self.bytes > self.bytes_max {
            return Err(BlobError::TooLarge(self.bytes_max));
        }
        self.hasher.update(bytes);
        Ok(())
    }

    /// How many bytes there were, and their digest.
    pub(super) fn end(self) -> (u64, Sum) {
        (self.bytes, self.hasher.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_read_as_headers_have_it_and_shown_as_keys_do() {
        let sum = Sum::from_base64("47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=").unwrap();
        assert_eq!(sum.to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(sum, Seen::new(0).end().1);
        assert_eq!(sum.to_base64(), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
        for bad in ["", "47DEQpj8", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "\u{e9}"] {
            assert_eq!(Sum::from_base64(bad), None, "{bad}");
        }
    }
}
