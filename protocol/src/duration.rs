//! Durations as people write them: `10m`, `1h30`, `2 days 4 hours`, `90` (milliseconds).
//!
//! [`parse_duration_ms`] reads exactly what the original's parser reads, junk between terms included. What is not a
//! usable limit, zero for one, is for the caller to judge: [`limit_ms`] is the reading for limits.

/// Milliseconds per unit, largest first: a bare number after a unit takes the next smaller one.
const UNITS: [(&[&str], f64); 10] = [
    (&["y", "yr", "year"], YEAR),
    (&["mo", "mth", "month"], YEAR / 12.0),
    (&["w", "wk", "week"], 7.0 * DAY),
    (&["d", "day"], DAY),
    (&["h", "hr", "hour"], 3_600_000.0),
    (&["m", "min", "minute"], 60_000.0),
    (&["s", "sec", "second"], 1_000.0),
    (&["ms", "millisec", "millisecond"], 1.0),
    (&["us", "µs", "microsec", "microsecond"], 1e-3),
    (&["ns", "nanosec", "nanosecond"], 1e-6),
];
const DAY: f64 = 86_400_000.0;
const YEAR: f64 = 365.25 * DAY;

/// The most digits before and after the point that the original's parser takes as one number.
const DIGITS_MAX: usize = 16;
/// The most digits it takes as an exponent.
const EXPONENT_DIGITS_MAX: usize = 4;
/// The most letters it takes as a unit.
const UNIT_LETTERS_MAX: usize = 14;

/// The sum of all `<number><unit>` terms in milliseconds, negative if the text starts with `-`; `None` if there is no
/// term with a known unit.
///
/// The result may be zero, fractional or infinite.
#[must_use]
pub fn parse_duration_ms(text: &str) -> Option<f64> {
    let chars = without_group_marks(text);
    let mut rest = chars.as_slice();
    let mut total = None;
    let mut last_unit = None;
    while !rest.is_empty() {
        let Some((number, after)) = take_number(rest) else {
            rest = &rest[1..];
            continue;
        };
        let after = match after.split_first() {
            Some((&c, tail)) if is_js_space(c) => tail,
            _ => after,
        };
        let letters = after.iter().take(UNIT_LETTERS_MAX).take_while(|c| c.is_alphabetic()).count();
        let (name, after) = after.split_at(letters);
        rest = after;
        last_unit = match (name, last_unit) {
            ([], None) => Some(1.0),
            ([], Some(previous)) => UNITS.iter().map(|unit| unit.1).find(|&ms| ms < previous),
            (name, _) => unit_ms(&name.iter().collect::<String>().to_lowercase()),
        };
        if let Some(unit) = last_unit {
            total = Some(total.unwrap_or(0.0) + number * unit);
        }
    }
    let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
    total.map(|ms| ms * sign)
}

/// The duration as a limit: whole milliseconds, at least one; `None` for what cannot be one (no duration in the text,
/// zero, negative).
#[must_use]
pub fn limit_ms(text: &str) -> Option<u64> {
    parse_duration_ms(text).and_then(limit_from_ms)
}

/// As [`limit_ms`], for a number of milliseconds.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positive, and casts saturate at the largest limit"
)]
pub fn limit_from_ms(ms: f64) -> Option<u64> {
    if ms > 0.0 { Some(ms.ceil() as u64) } else { None }
}

/// Takes the thousands mark out of `1,000` (also `_` and a blank): one mark between two digits, found left to right.
fn without_group_marks(text: &str) -> Vec<char> {
    let chars: Vec<char> = text.chars().collect();
    let mut out = Vec::with_capacity(chars.len());
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        out.push(c);
        at += 1;
        if let (true, Some(',' | '_' | ' '), Some(&digit)) = (c.is_ascii_digit(), chars.get(at), chars.get(at + 1))
            && digit.is_ascii_digit()
        {
            // The digit behind the mark is used up: it is not the first digit of another group.
            out.push(digit);
            at += 2;
        }
    }
    out
}

/// Reads `12`, `1.5`, `.5`, `1e3` at the start of `text`; what it leaves may be more digits.
fn take_number(text: &[char]) -> Option<(f64, &[char])> {
    let digits_at = |at: usize, max: usize| text.iter().skip(at).take(max).take_while(|c| c.is_ascii_digit()).count();
    let mut end = digits_at(0, DIGITS_MAX);
    if text.get(end) == Some(&'.') {
        let fraction = digits_at(end + 1, DIGITS_MAX);
        if fraction > 0 {
            end += 1 + fraction;
        }
    }
    if end == 0 {
        return None;
    }
    if matches!(text.get(end), Some('e' | 'E')) {
        let sign = usize::from(matches!(text.get(end + 1), Some('+' | '-')));
        let exponent = digits_at(end + 1 + sign, EXPONENT_DIGITS_MAX);
        if exponent > 0 {
            end += 1 + sign + exponent;
        }
    }
    let number = text[..end].iter().collect::<String>().parse().ok()?;
    Some((number, &text[end..]))
}

fn unit_ms(name: &str) -> Option<f64> {
    let find = |name: &str| UNITS.iter().find(|(names, _)| names.contains(&name)).map(|unit| unit.1);
    find(name).or_else(|| find(name.strip_suffix('s')?))
}

/// JavaScript's white space (`\s` in its regular expressions), which is not Unicode's.
pub(crate) fn is_js_space(c: char) -> bool {
    c == '\u{feff}' || (c.is_whitespace() && c != '\u{85}')
}
