//! The names of blobs.

use std::fmt;
use std::str::FromStr;

use object_store::path::Path as ObjectPath;

use super::BLOBS;
use super::error::BlobError;
use super::sum::Sum;

/// The longest key: what file systems take as a name.
pub(super) const KEY_BYTES_MAX: usize = 255;

/// A blob's name: a letter or digit, then letters, digits, `.`, `_`, `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BlobKey(String);

impl BlobKey {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the key claims to be the sha256 of its bytes.
    #[must_use]
    pub fn is_digest(&self) -> bool {
        self.0.len() == 64 && self.0.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    /// Whether there can be bytes that the key is the sha256 of: they are told in lower case.
    pub(super) fn names_bytes(&self) -> bool {
        self.is_digest() && !self.0.bytes().any(|byte| byte.is_ascii_uppercase())
    }

    /// Whether these bytes may be stored under it, as far as the key itself says.
    pub(super) fn allows(&self, sum: Sum) -> Result<(), BlobError> {
        let found = sum.to_string();
        if self.is_digest() && self.0 != found {
            return Err(BlobError::WrongDigest { expected: self.0.clone(), found });
        }
        Ok(())
    }

    pub(super) fn path(&self) -> ObjectPath {
        ObjectPath::from_iter([BLOBS, self.0.as_str()])
    }
}

impl fmt::Display for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BlobKey {
    type Err = BlobError;

    fn from_str(text: &str) -> Result<Self, BlobError> {
        let rest_is_plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
        let is_key = text.len() <= KEY_BYTES_MAX
            && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
            && text.bytes().all(rest_is_plain);
        if is_key { Ok(Self(text.to_owned())) } else { Err(BlobError::BadKey) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_plain_file_name() {
        for good in ["a", "0", "abc.tar.gz", "1730000000000-x7-my_file.txt", &"a".repeat(255), &"0".repeat(64)] {
            assert!(good.parse::<BlobKey>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "-x", "_x", "a/b", "../x", "a b", "a#1", "é", "a\0", &"a".repeat(256)] {
            assert!(bad.parse::<BlobKey>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn any_64_hex_digits_claim_to_be_a_digest() {
        let key = |text: &str| text.parse::<BlobKey>().unwrap();
        assert!(key(&"a".repeat(64)).is_digest());
        assert!(key(&"A".repeat(64)).is_digest());
        assert!(!key(&"g".repeat(64)).is_digest());
        assert!(!key(&"a".repeat(63)).is_digest());
    }
}
