//! The one storage host whose addresses lose query and fragment before they are hashed, written as the WHATWG URL
//! standard serialises them.
//!
//! Bounds: the authority is only normalised as far as that host needs (default port dropped, other ports written in
//! decimal); other hosts that merely start like it (`….com.example`) and user info keep their authority as it stands.

/// Addresses that start so are treated.
const HOST_PREFIX: &str = "https://metaframe-asman-test.s3.us-west-1.amazonaws.com";

/// The serialised address without query and fragment; `None` when it is not on that host.
pub(super) fn without_query(address: &str) -> Option<String> {
    let rest = address.strip_prefix(HOST_PREFIX)?;
    let rest: String = rest
        .trim_end_matches(|c| c <= ' ')
        .chars()
        .filter(|c| !matches!(c, '\t' | '\n' | '\r'))
        .take_while(|c| !matches!(c, '?' | '#'))
        .collect();
    let path_at = rest.find(['/', '\\']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(path_at);
    Some(format!("{HOST_PREFIX}{}{}", port(authority), normalised_path(path)))
}

fn port(authority: &str) -> String {
    match authority.strip_prefix(':') {
        Some("") => String::new(),
        Some(digits) => match digits.parse::<u16>() {
            Ok(443) => String::new(),
            Ok(number) if digits.bytes().all(|b| b.is_ascii_digit()) => format!(":{number}"),
            Ok(_) | Err(_) => authority.to_owned(),
        },
        None => authority.to_owned(),
    }
}

fn normalised_path(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let raw: Vec<&str> = path.split(['/', '\\']).skip(1).collect();
    for (index, segment) in raw.iter().enumerate() {
        let is_last = index + 1 == raw.len();
        let dots = segment.to_ascii_lowercase().replace("%2e", ".");
        match dots.as_str() {
            "." | ".." => {
                if dots == ".." {
                    segments.pop();
                }
                if is_last {
                    segments.push("");
                }
            }
            _ => segments.push(segment),
        }
    }
    if segments.is_empty() {
        segments.push("");
    }
    let mut out = String::with_capacity(path.len());
    for segment in segments {
        out.push('/');
        segment.chars().for_each(|c| push_encoded(c, &mut out));
    }
    out
}

/// The standard's path percent-encode set, without `^`, on which engines differ.
fn push_encoded(c: char, out: &mut String) {
    if c.is_ascii_graphic() && !matches!(c, '"' | '#' | '<' | '>' | '?' | '`' | '{' | '}') {
        out.push(c);
    } else {
        for byte in c.encode_utf8(&mut [0; 4]).bytes() {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}
