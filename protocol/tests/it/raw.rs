//! JSON text that crosses as it is.

use proptest::prelude::*;
use protocol::json;
use protocol::raw::RawJson;

/// What strangers put where a value belongs; most of it is no JSON.
const VALUES: [&str; 36] = [
    "1",
    "-0",
    "-",
    "01",
    "1.",
    ".5",
    "1e5",
    "1E+999",
    "-1e-999",
    "0x1",
    "NaN",
    "Infinity",
    "true",
    "nul",
    "null",
    "\"a\"",
    "\"\\ud800\"",
    "\"\\udc00\\ud800\"",
    "\"\\u0000\"",
    "\"\\u00\"",
    "\"\\x\"",
    "\"\\/\"",
    "\"\u{1}\"",
    "\"\u{7f}\u{2028}\"",
    "\"",
    "'a'",
    "[]",
    "{}",
    "[1,]",
    "{\"a\"}",
    "{\"a\":1,\"a\":2}",
    "{a:1}",
    "\u{feff}1",
    "1//c",
    "\u{a0}1",
    "\u{b}1",
];

proptest! {
    /// A definition that was taken in MessagePack goes out in the other encoding too: else a stranger's text could end the
    /// socket of a worker that speaks JSON.
    #[test]
    fn what_is_read_as_json_can_be_sent_as_json(
        values in proptest::collection::vec((0..VALUES.len(), 0..5_usize), 1..4),
        space in "[ \t\r\n]{0,2}",
    ) {
        let mut text = String::from("null");
        for (value, shape) in values {
            let value = VALUES[value];
            text = match shape {
                0 => value.to_owned(),
                1 => format!("[{text},{value}]"),
                2 => format!("{{\"k\":{value},\"l\":{text}}}"),
                3 => format!("{text}{space}"),
                _ => format!("{space}{text}"),
            };
        }
        let is_sendable = serde_json::to_string(&RawJson::new(text.as_str())).is_ok();
        prop_assert!(json::parse(text.as_bytes()).is_err() || is_sendable, "{text:?}");
    }
}
