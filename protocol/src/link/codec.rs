//! How values stand in a link: JSON as base64 of percent-encoded text, as `btoa(encodeURIComponent(JSON.stringify(v)))` writes it.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::json::{self, JsonError, Value};

/// What `encodeURIComponent` leaves as it is (ECMA-262): letters, digits and these.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'!')
    .remove(b'~')
    .remove(b'*')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')');

/// Without padding, and not minding what the last bits are; padding is looked at before.
const FORGIVING: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// Why a value in a link is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A character that is not of base64, or one too few.
    #[error("it is not base64")]
    Base64,
    /// A `%` without two hex digits behind it, or percent-encoded bytes that are not UTF-8.
    #[error("what the base64 stands for is not percent-encoded text")]
    Percent,
    /// The text is not JSON.
    #[error("what it stands for is not JSON: {0}")]
    Json(#[from] JsonError),
}

/// Writes a value as it stands in a link. Keys are sorted, so that equal values make equal links.
#[must_use]
pub fn encode(value: &Value) -> String {
    let text = json::to_canonical_json(value);
    base64::engine::general_purpose::STANDARD.encode(encode_component(&text))
}

/// Reads a value from a link: as [`encode`] writes it, without its padding, with its padding percent-encoded, or
/// base64 of JSON that has no `%` in it.
///
/// # Errors
///
/// [`CodecError`] of the value as it stands there.
pub fn decode(text: &str) -> Result<Value, CodecError> {
    decode_once(text).or_else(|error| match decode_component(text) {
        Ok(inner) if inner != text => decode_once(&inner).map_err(|_| error),
        Ok(_) | Err(_) => Err(error),
    })
}

fn decode_once(text: &str) -> Result<Value, CodecError> {
    let bytes = decode_base64(text)?;
    // A JavaScript engine gets a character for each byte here, not UTF-8.
    let latin: String = bytes.into_iter().map(char::from).collect();
    Ok(json::parse(decode_component(&latin)?.as_bytes())?)
}

/// Reads base64 as `atob` does (WHATWG Infra, "forgiving-base64 decode"): ASCII white space is skipped, padding may be missing.
///
/// # Errors
///
/// [`CodecError::Base64`].
pub fn decode_base64(text: &str) -> Result<Vec<u8>, CodecError> {
    let mut text: String = text.chars().filter(|c| !matches!(c, '\t' | '\n' | '\x0c' | '\r' | ' ')).collect();
    if text.len().is_multiple_of(4) {
        let padded = text.strip_suffix("==").or_else(|| text.strip_suffix('=')).unwrap_or(&text).len();
        text.truncate(padded);
    }
    FORGIVING.decode(text).map_err(|_| CodecError::Base64)
}

/// `encodeURIComponent`.
#[must_use]
pub fn encode_component(text: &str) -> String {
    utf8_percent_encode(text, COMPONENT).to_string()
}

/// `decodeURIComponent`.
///
/// # Errors
///
/// [`CodecError::Percent`] where that would throw.
pub fn decode_component(text: &str) -> Result<String, CodecError> {
    let hex = |pair: &[u8]| pair.iter().take(2).filter(|digit| digit.is_ascii_hexdigit()).count() == 2;
    if text.split('%').skip(1).any(|behind| !hex(behind.as_bytes())) {
        return Err(CodecError::Percent);
    }
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    decoded.map(std::borrow::Cow::into_owned).map_err(|_| CodecError::Percent)
}
