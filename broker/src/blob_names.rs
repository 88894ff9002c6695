//! Which blobs a text names: definitions and results, read as streams of JSON strings.
//!
//! Too many is no harm (a blob is then kept that could go), too few is: so any string that could name a blob names it, wherever
//! it stands. A blob is named by an address with `/f/` and its key (also those of the older routes), or by its key alone.

use percent_encoding::percent_decode;

/// What stands before a key in an address.
const BEFORE_KEY: [&[u8]; 3] = [b"f/", b"download/", b"upload/"];
/// The longest string that can be a key by itself.
const KEY_BYTES_MAX: usize = 255;

const fn is_of_key(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// Shows `visit` every text that could be the key of a blob that a definition or result names.
pub(crate) fn each(json: &[u8], visit: &mut impl FnMut(&str)) {
    strings(json, &mut |string| {
        if (1..=KEY_BYTES_MAX).contains(&string.len()) && string.iter().copied().all(is_of_key) {
            show(string, visit);
        }
        addressed(string, visit);
    });
}

/// As [`each`], without the strings that could be a key by themselves but are none by their look: 64 hex digits or an address.
pub(crate) fn each_likely(json: &[u8], visit: &mut impl FnMut(&str)) {
    strings(json, &mut |string| {
        if string.len() == 64 && string.iter().all(u8::is_ascii_hexdigit) {
            show(string, visit);
        }
        addressed(string, visit);
    });
}

/// The keys of the addresses in a string.
fn addressed(string: &[u8], visit: &mut impl FnMut(&str)) {
    keys_after(string, visit);
    if string.contains(&b'%') {
        let decoded: Vec<u8> = percent_decode(string).collect();
        keys_after(&decoded, visit);
    }
}

fn keys_after(string: &[u8], visit: &mut impl FnMut(&str)) {
    for before in BEFORE_KEY {
        for at in places_of(string, before) {
            let rest = &string[at + before.len()..];
            let length = rest.iter().position(|byte| !is_of_key(*byte)).unwrap_or(rest.len());
            let key = &rest[..length];
            show(key, visit);
            // At a sentence's end.
            if let Some(key) = key.strip_suffix(b".") {
                show(key, visit);
            }
        }
    }
}

/// Where `wanted`, which ends with a slash, stands in `text`: at its start or after a slash.
fn places_of<'a>(text: &'a [u8], wanted: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let slashes = text.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    slashes.filter_map(move |slash| {
        let start = (slash + 1).checked_sub(wanted.len())?;
        let is_there = &text[start..=slash] == wanted;
        let is_segment = start == 0 || text[start - 1] == b'/';
        (is_there && is_segment).then_some(start)
    })
}

fn show(key: &[u8], visit: &mut impl FnMut(&str)) {
    if let Ok(key) = std::str::from_utf8(key)
        && !key.is_empty()
    {
        visit(key);
    }
}

/// Shows the strings of a JSON text, escapes resolved as far as keys can have them. Does not mind what else the text is.
fn strings(json: &[u8], visit: &mut impl FnMut(&[u8])) {
    let mut string = Vec::new();
    let mut rest = json;
    while let Some(start) = rest.iter().position(|byte| *byte == b'"') {
        rest = &rest[start + 1..];
        string.clear();
        loop {
            let Some(end) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')) else {
                string.extend_from_slice(rest);
                rest = &[];
                break;
            };
            string.extend_from_slice(&rest[..end]);
            let is_end = rest[end] == b'"';
            rest = &rest[end + 1..];
            if is_end {
                break;
            }
            rest = unescape(rest, &mut string);
        }
        visit(&string);
    }
}

/// Takes what follows a backslash.
fn unescape<'a>(rest: &'a [u8], string: &mut Vec<u8>) -> &'a [u8] {
    match rest.split_first() {
        Some((b'u', after)) => {
            let digits = after.get(..4).and_then(|digits| std::str::from_utf8(digits).ok());
            let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
            // No key has other characters than these.
            string.push(code.and_then(|code| u8::try_from(code).ok()).filter(u8::is_ascii).unwrap_or(b' '));
            after.get(4..).unwrap_or_default()
        }
        Some((b'/', after)) => {
            string.push(b'/');
            after
        }
        Some((_, after)) => {
            string.push(b' ');
            after
        }
        None => rest,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn named(json: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        each(json.as_bytes(), &mut |key| {
            found.insert(key.to_owned());
        });
        found
    }

    #[test]
    fn every_way_to_name_a_blob_is_seen() {
        let digest = "ab".repeat(32);
        for text in [
            format!(r#"{{"inputs":{{"a":{{"type":"url","value":"https://grid.example/f/{digest}"}}}}}}"#),
            format!(r#"{{"inputs":{{"a":{{"type":"url","value":"http://grid.example/f/{digest}?filename=x#y"}}}}}}"#),
            format!(r#"{{"inputs":{{"a":{{"type":"url","value":"https:\/\/grid.example\/f\/{digest}"}}}}}}"#),
            format!(r#"{{"inputs":{{"a":{{"type":"url","value":"https://grid.example/\u0066/{digest}"}}}}}}"#),
            format!(
                r#"{{"inputs":{{"a":{{"type":"url","value":"https://grid.example/%66/{}%62{}"}}}}}}"#,
                &digest[..1],
                &digest[2..]
            ),
            format!(r#"{{"inputs":{{"a":{{"type":"key","value":"{digest}"}}}}}}"#),
            format!(r#"{{"configFiles":{{"/etc/a":{{"value":"x","hash":"{digest}"}}}}}}"#),
            format!(r#"{{"build":{{"context":"https://grid.example/api/v1/download/{digest}"}}}}"#),
            format!(r#"{{"command":"curl -s http://grid.example/f/{digest} | sh"}}"#),
            format!(r#"{{"result":{{"outputs":{{"o":{{"value":"/f/{digest}","type":"url"}}}}}}}}"#),
            format!(r#"["f/{digest}"]"#),
            format!(r#"{{"broken": "/f/{digest}"#),
        ] {
            assert!(named(&text).contains(&digest), "{text}");
        }
        assert!(named(r#"{"value":"http://x/f/my_file-1.txt, and more"}"#).contains("my_file-1.txt"));
        assert!(named(r#"{"type":"key","value":"1730-x.tar.gz"}"#).contains("1730-x.tar.gz"));
    }

    #[test]
    fn what_looks_like_no_blob_is_not_noted_as_one() {
        let mut likely = Vec::new();
        let digest = "ab".repeat(32);
        let text = format!(r#"{{"image":"busybox","command":"echo 7","hash":"{digest}","x":"/f/k.1","y":"/off/k"}}"#);
        each_likely(text.as_bytes(), &mut |key| likely.push(key.to_owned()));
        assert_eq!(likely, [digest.as_str(), "k.1"]);
    }

    proptest! {
        #[test]
        fn a_key_is_found_in_whatever_stands_around_it(
            before in "[^\"\\\\a-zA-Z0-9._/-]{0,8}",
            key in "[a-zA-Z0-9][a-zA-Z0-9._-]{0,40}",
            after in "([.]?[^a-zA-Z0-9._%-][^%]{0,8})?",
        ) {
            let string = format!("{before}/f/{key}{after}");
            let text = serde_json::json!({ "x": [{ "y": string }] }).to_string();
            prop_assert!(named(&text).contains(&key), "{}", text);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            each(&bytes, &mut |_| {});
        }
    }
}
