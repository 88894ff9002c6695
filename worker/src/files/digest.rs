//! SHA-256 as blobs are named by.

use std::fmt;
use std::io::{self, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// How much is read at once when a file is hashed.
const READ_BYTES: usize = 128 * 1024;
const BYTES: usize = 32;

/// The SHA-256 of a blob's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct BlobHash([u8; BYTES]);

impl BlobHash {
    /// Reads 64 lower-case hex digits; `None` for anything else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 2 * BYTES {
            return None;
        }
        let mut bytes = [0; BYTES];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (hex(pair[0])? << 4) | hex(pair[1])?;
        }
        Some(Self(bytes))
    }

    pub(super) fn finish(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// As S3 has it in its headers.
    pub(super) fn to_base64(self) -> String {
        STANDARD.encode(self.0)
    }

    /// Hashes all of `source` and counts its bytes; gives up once nobody waits for it any more, as `goes_on` says.
    pub(super) fn of_reader(mut source: impl Read, goes_on: impl Fn() -> bool) -> io::Result<(Self, u64)> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; READ_BYTES];
        let mut bytes = 0;
        loop {
            if !goes_on() {
                return Err(io::Error::other("nobody waits for it any more"));
            }
            match source.read(&mut buffer) {
                Ok(0) => return Ok((Self::finish(hasher), bytes)),
                Ok(read) => {
                    hasher.update(&buffer[..read]);
                    bytes += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

const fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_input_has_the_known_hash() {
        let (hash, bytes) = BlobHash::of_reader(io::empty(), || true).unwrap();
        assert_eq!(hash.to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(bytes, 0);
        assert_eq!(hash.to_base64(), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
        assert_eq!(BlobHash::parse(&hash.to_string()), Some(hash));
        assert_eq!(BlobHash::parse(&hash.to_string().to_uppercase()), None);
        assert_eq!(BlobHash::parse("../../../etc/passwd"), None);
    }
}
