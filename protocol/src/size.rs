//! Sizes as people write them: `2g`, `512 MB`, `1.5gib`, `1048576` (bytes).

/// Why a text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with an optional unit.
    #[error("not a size; write a number and b, k, m, g, t or p, such as 512m")]
    Unreadable,
    /// Zero, negative or less than one byte.
    #[error("a size must be at least one byte")]
    NotPositive,
    /// More than [`SIZE_BYTES_MAX`].
    #[error("a size must be below 8 EiB")]
    TooLarge,
}

/// The largest size: what a signed 64-bit integer holds, as the container engine takes sizes.
pub const SIZE_BYTES_MAX: u64 = i64::MAX as u64;

/// Reads a decimal number and a unit in any case: `b`, or `k m g t p` with nothing, `b`, `i` or `ib` behind it. All are
/// powers of 1024; without a unit it is bytes. Fractions of a byte are dropped.
///
/// # Errors
///
/// [`SizeError`]. The caller decides what stands instead; for a job that is the default, with a word to its owner.
pub fn parse_size_bytes(text: &str) -> Result<u64, SizeError> {
    let text = text.trim();
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    if !number.starts_with(|c: char| c.is_ascii_digit()) && !number.starts_with('.') {
        return Err(SizeError::Unreadable);
    }
    let number: f64 = number.parse().map_err(|_| SizeError::Unreadable)?;
    let unit = unit_bytes(&unit.trim_start().to_ascii_lowercase()).ok_or(SizeError::Unreadable)?;
    size_from_bytes(if negative { -number } else { number } * unit)
}

/// Checks a number of bytes.
///
/// # Errors
///
/// As [`parse_size_bytes`].
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
#[expect(clippy::cast_precision_loss, reason = "2^63 is exact")]
pub fn size_from_bytes(bytes: f64) -> Result<u64, SizeError> {
    if bytes.is_nan() {
        Err(SizeError::Unreadable)
    } else if bytes < 1.0 {
        Err(SizeError::NotPositive)
    } else if bytes >= SIZE_BYTES_MAX as f64 {
        Err(SizeError::TooLarge)
    } else {
        Ok(bytes as u64)
    }
}

fn unit_bytes(unit: &str) -> Option<f64> {
    let scale = match unit.chars().next() {
        None => return Some(1.0),
        Some('b') if unit.len() == 1 => return Some(1.0),
        Some('k') => 1,
        Some('m') => 2,
        Some('g') => 3,
        Some('t') => 4,
        Some('p') => 5,
        Some(_) => return None,
    };
    matches!(&unit[1..], "" | "b" | "i" | "ib").then(|| 1024_f64.powi(scale))
}
