//! Text as JavaScript holds it: UTF-16 code units, lone surrogates allowed.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

/// A JavaScript string: nearly always plain text, but any sequence of UTF-16 code units.
///
/// Equal strings have equal code units; the order is by code units, as JavaScript sorts (so U+1F600 comes before
/// U+E000, other than in UTF-8).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct JsString(Repr);

/// Invariant: `Units` holds at least one lone surrogate, so that each string has one representation.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Repr {
    Text(String),
    Units(Vec<u16>),
}

impl JsString {
    /// Makes a string of any code units.
    #[must_use]
    pub fn from_utf16(units: Vec<u16>) -> Self {
        match String::from_utf16(&units) {
            Ok(text) => Self(Repr::Text(text)),
            Err(_) => Self(Repr::Units(units)),
        }
    }

    /// The text, unless there is a lone surrogate in it.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match &self.0 {
            Repr::Text(text) => Some(text),
            Repr::Units(_) => None,
        }
    }

    /// The text with U+FFFD for each lone surrogate, which is what JavaScript makes of it when it encodes UTF-8.
    #[must_use]
    pub fn to_string_lossy(&self) -> Cow<'_, str> {
        match &self.0 {
            Repr::Text(text) => Cow::Borrowed(text),
            Repr::Units(units) => Cow::Owned(String::from_utf16_lossy(units)),
        }
    }

    /// The code units.
    pub fn units(&self) -> impl Iterator<Item = u16> + '_ {
        let (text, units) = match &self.0 {
            Repr::Text(text) => (text.as_str(), &[][..]),
            Repr::Units(units) => ("", units.as_slice()),
        };
        text.encode_utf16().chain(units.iter().copied())
    }

    /// JavaScript's `length`: the number of code units.
    #[must_use]
    pub fn utf16_len(&self) -> usize {
        match &self.0 {
            Repr::Text(text) => text.encode_utf16().count(),
            Repr::Units(units) => units.len(),
        }
    }

    /// Whether there is no code unit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.as_str() == Some("")
    }

    /// The part before the first occurrence of `needle`, which must be ASCII; `None` when it does not occur.
    pub(crate) fn before(&self, needle: &str) -> Option<Self> {
        match &self.0 {
            Repr::Text(text) => text.split_once(needle).map(|(head, _)| head.into()),
            Repr::Units(units) => {
                let needle: Vec<u16> = needle.encode_utf16().collect();
                let at = units.windows(needle.len()).position(|window| window == needle)?;
                Some(Self::from_utf16(units[..at].to_vec()))
            }
        }
    }
}

impl From<&str> for JsString {
    fn from(text: &str) -> Self {
        Self(Repr::Text(text.to_owned()))
    }
}

impl From<String> for JsString {
    fn from(text: String) -> Self {
        Self(Repr::Text(text))
    }
}

impl PartialOrd for JsString {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for JsString {
    fn cmp(&self, other: &Self) -> Ordering {
        self.units().cmp(other.units())
    }
}

/// Shows the text as JSON, so that lone surrogates are visible.
impl fmt::Debug for JsString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        super::write_string(self, &mut out);
        f.write_str(&out)
    }
}
