//! Writing: `JSON.stringify` in property order, and the canonical form with sorted keys.

use std::fmt::Write as _;

use super::{JsString, Object, Value};

/// Writes `value` as `JSON.stringify(value)` does: compact, keys in property order.
#[must_use]
pub fn to_json(value: &Value) -> String {
    let mut out = String::new();
    write_value(value, Keys::InOrder, &mut out);
    out
}

/// Writes `value` compactly with the keys of every object sorted by UTF-16 code units.
#[must_use]
pub fn to_canonical_json(value: &Value) -> String {
    let mut out = String::new();
    write_canonical(value, &mut out);
    out
}

/// `JSON.stringify(value).length`: what clients compare with their limit for inline values.
#[must_use]
pub fn utf16_len_of_json(value: &Value) -> usize {
    to_json(value).encode_utf16().count()
}

/// Appends the canonical form of `value`.
pub(crate) fn write_canonical(value: &Value, out: &mut String) {
    write_value(value, Keys::Sorted, out);
}

#[derive(Clone, Copy)]
enum Keys {
    InOrder,
    Sorted,
}

fn write_value(value: &Value, keys: Keys, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) if number.is_finite() => write_finite(*number, out),
        Value::Number(_) => out.push_str("null"),
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_value(item, keys, out);
            }
            out.push(']');
        }
        Value::Object(object) => write_object(object, keys, out),
    }
}

fn write_object(object: &Object, keys: Keys, out: &mut String) {
    let mut entries: Vec<(&JsString, &Value)> = object.iter().collect();
    if matches!(keys, Keys::Sorted) {
        entries.sort_by(|a, b| a.0.cmp(b.0));
    }
    out.push('{');
    for (index, (key, value)) in entries.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write_string(key, out);
        out.push(':');
        write_value(value, keys, out);
    }
    out.push('}');
}

/// Appends `text` quoted: `"`, `\`, U+0000 to U+001F and lone surrogates are escaped, everything else stays as it is.
pub(crate) fn write_string(text: &JsString, out: &mut String) {
    out.push('"');
    if let Some(text) = text.as_str() {
        write_escaped(text, out);
    } else {
        for unit in char::decode_utf16(text.units()) {
            match unit {
                Ok(c) => write_escaped(c.encode_utf8(&mut [0; 4]), out),
                Err(lone) => write_unit(lone.unpaired_surrogate(), out),
            }
        }
    }
    out.push('"');
}

fn write_escaped(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(at) = rest.find(|c| c < ' ' || c == '"' || c == '\\') {
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        let mut chars = special.chars();
        match chars.next() {
            Some('"') => out.push_str("\\\""),
            Some('\\') => out.push_str("\\\\"),
            Some('\u{8}') => out.push_str("\\b"),
            Some('\t') => out.push_str("\\t"),
            Some('\n') => out.push_str("\\n"),
            Some('\u{c}') => out.push_str("\\f"),
            Some('\r') => out.push_str("\\r"),
            Some(control) => control.encode_utf16(&mut [0; 2]).iter().for_each(|&unit| write_unit(unit, out)),
            None => {}
        }
        rest = chars.as_str();
    }
    out.push_str(rest);
}

fn write_unit(unit: u16, out: &mut String) {
    let _ = write!(out, "\\u{unit:04x}"); // Writing to a String cannot fail.
}

/// ECMAScript's `String(number)`: `1`, `0.1`, `1e+21`, `5e-324`, `NaN`, `-Infinity`.
#[must_use]
pub fn number_to_string(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let mut out = String::new();
    write_finite(number, &mut out);
    out
}

/// ECMA-262 `Number::toString` for radix 10.
fn write_finite(number: f64, out: &mut String) {
    if number == 0.0 {
        out.push('0'); // Negative zero too.
        return;
    }
    if number < 0.0 {
        out.push('-');
    }
    let (digits, exponent) = shortest_digits(number.abs());
    let digit_count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    // The value is 0.DIGITS * 10^point.
    let point = exponent.saturating_add(1);
    match usize::try_from(point) {
        Ok(point_at) if digit_count <= point && point <= 21 => {
            out.push_str(&digits);
            out.extend(std::iter::repeat_n('0', point_at - digits.len()));
        }
        Ok(point_at) if 0 < point && point <= 21 => {
            let (whole, fraction) = digits.split_at(point_at);
            out.push_str(whole);
            out.push('.');
            out.push_str(fraction);
        }
        _ if -6 < point && point <= 0 => {
            out.push_str("0.");
            out.extend(std::iter::repeat_n('0', usize::try_from(-point).unwrap_or(0)));
            out.push_str(&digits);
        }
        _ => {
            let (first, rest) = digits.split_at(1);
            out.push_str(first);
            if !rest.is_empty() {
                out.push('.');
                out.push_str(rest);
            }
            let _ = write!(out, "e{exponent:+}"); // Writing to a String cannot fail.
        }
    }
}

/// The shortest digits that read back as `number` (above zero), and the power of ten of the first one.
///
/// Rust's `{:e}` finds them, but where two are equally near it need not take the even one as ECMAScript does:
/// 1020344032061911.25 is `…11.2` in JavaScript and `…11.3` in Rust.
fn shortest_digits(number: f64) -> (String, i32) {
    let (digits, exponent) = split_scientific(&format!("{number:e}"));
    let (longer, longer_exponent) = split_scientific(&format!("{number:.*e}", digits.len()));
    if longer.ends_with('5')
        && let Ok(half) = longer.parse::<u64>()
        && is_exactly(number, half, i32::try_from(digits.len()).unwrap_or(i32::MAX).saturating_sub(longer_exponent))
    {
        let below = half / 10;
        let even = (below + below % 2).to_string();
        // A carry, as from 9.5 to 10, would have been found as a shorter number.
        if even.len() == digits.len() {
            return (even, exponent);
        }
    }
    (digits, exponent)
}

/// Takes `1.25e7` apart into `125` and 7.
fn split_scientific(text: &str) -> (String, i32) {
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    (mantissa.replace('.', ""), exponent.parse().unwrap_or(0))
}

/// Whether `number` is `decimal` / 10^`places` with nothing rounded off.
///
/// Ties are fractions: a double so large that its shortest digits end before the point is nowhere near halfway.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be whole and below 2^53")]
fn is_exactly(number: f64, decimal: u64, places: i32) -> bool {
    const EXACT_BELOW: f64 = 9_007_199_254_740_992.0;
    let Ok(power) = u32::try_from(places) else { return false };
    // Scaling by a power of two is exact; what is whole then has that many binary places, hence decimal places.
    let scaled = number * 2_f64.powi(places);
    scaled < EXACT_BELOW
        && scaled.fract() == 0.0
        && 5_u64.checked_pow(power).and_then(|fives| fives.checked_mul(scaled as u64)) == Some(decimal)
}
