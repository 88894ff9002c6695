//! The name of a built image: the same `build` block has the same name everywhere, for ever.

use protocol::definition::Build;
use protocol::json::{JsString, Value, to_canonical_json};
use sha2::{Digest, Sha256};

/// How much of the hash is in the name, in bytes.
const NAME_BYTES: usize = 16;
/// Host and tag that the existing system gives its images. Nothing is ever sent there or taken from there: it is only a
/// name, and one that workers on one machine share.
const HOST: &str = "ttl.sh";
const TAG: &str = "1d";

/// The name that the image of `build` has.
pub(crate) fn image_name(build: &Build) -> String {
    let mut name = format!("{HOST}/");
    for byte in Sha256::digest(to_canonical_json(&without_login(&build.value))).iter().take(NAME_BYTES) {
        name.push_str(&format!("{byte:02x}"));
    }
    name.push(':');
    name.push_str(TAG);
    name
}

/// The part of an image's name that is its own.
pub(super) fn hash_of(name: &str) -> Option<&str> {
    name.strip_prefix(HOST)?.strip_prefix('/')?.strip_suffix(TAG)?.strip_suffix(':')
}

/// The block as received, but for the login in a GitHub address: who fetches the files makes no other image.
fn without_login(build: &Value) -> Value {
    let Some(object) = build.as_object() else { return build.clone() };
    let part = |(key, value): (&JsString, &Value)| {
        let bare = (key.as_str() == Some("context")).then(|| value.as_str().and_then(bare_github)).flatten();
        (key.clone(), bare.map_or_else(|| value.clone(), |bare| Value::from(bare.as_str())))
    };
    Value::object(object.iter().map(part))
}

/// `https://<login>@github.com/…` without its login; `None` when there is none.
fn bare_github(context: &str) -> Option<String> {
    let rest = context.strip_prefix("https://")?;
    let (login, path) = rest.split_once("@github.com/")?;
    // Behind these an address has no host any more: what looks like one would give another's files this one's name.
    if login.contains(['/', '?', '#', '\\']) {
        return None;
    }
    Some(format!("https://github.com/{path}"))
}

#[cfg(test)]
mod tests {
    use protocol::definition::Definition;
    use serde_json::json;

    use super::*;

    fn name(build: serde_json::Value) -> String {
        let definition = Definition::parse(json!({ "build": build }).to_string().as_bytes()).unwrap();
        image_name(&definition.build.unwrap())
    }

    #[test]
    fn the_name_is_that_of_the_existing_system() {
        let build = json!({"dockerfile": "FROM alpine:3.19.1\nRUN true", "platform": "linux/amd64"});
        assert_eq!(name(build), "ttl.sh/b819c6555f37cbeb02b62361fc66ff9e:1d");
    }

    #[test]
    fn the_order_of_fields_and_the_login_to_github_do_not_count_and_unknown_fields_do() {
        let one = name(json!({"context": "https://github.com/a/b", "target": "x"}));
        assert_eq!(one, name(json!({"target": "x", "context": "https://github.com/a/b"})));
        assert_eq!(one, name(json!({"target": "x", "context": "https://user:token@github.com/a/b"})));
        assert_eq!(one, name(json!({"target": "x", "context": "https://token@github.com/a/b"})));
        assert_ne!(one, name(json!({"target": "x", "context": "https://github.com/a/b", "new": 1})));
        let other = name(json!({"context": "https://token@gitlab.com/a/b"}));
        assert_ne!(other, name(json!({"context": "https://gitlab.com/a/b"})));
    }

    #[test]
    fn files_of_another_host_never_have_the_name_of_a_repository_at_github() {
        let there = name(json!({"context": "https://github.com/a/b"}));
        for end in ["/", "?", "#", "\\"] {
            let elsewhere = format!("https://evil.example{end}x@github.com/a/b");
            assert_ne!(name(json!({ "context": elsewhere })), there, "{end}");
        }
    }
}
