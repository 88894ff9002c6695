//! A job's identity: which parts of a definition count, and the text whose sha256 is the job's id.
//!
//! The rules are fixed for ever: they give the ids of every link and stored result. They are total: whatever
//! JSON value is given has an id, and one that is not an object counts as an empty definition.

mod url;

use sha2::{Digest, Sha256};

use crate::id::JobId;
use crate::json::{JsString, Value, write_canonical, write_string};

/// Fields that count as they are, unless null.
const PLAIN_FIELDS: [&str; 8] = ["v", "image", "command", "entrypoint", "workdir", "shmSize", "maxDuration", "tags"];
/// The parts of `build` that count.
const BUILD_FIELDS: [&str; 7] =
    ["context", "buildContext", "filename", "target", "dockerfile", "buildArgs", "platform"];
/// The parts of `requirements` that count.
const REQUIREMENT_FIELDS: [&str; 4] = ["cpus", "gpus", "maxDuration", "memory"];
/// Environment names that the page around a job injects; they say nothing about the job.
const FOREIGN_ENV: [&str; 6] = ["channel", "CHANNEL", "readonly", "edit", "parent-metapage-id", "fs-path"];
/// Environment names that start so are injected too.
const FOREIGN_ENV_PREFIXES: [&str; 2] = ["mp-", "mp_"];
/// What stands between a blob's address and its signature.
const PRESIGNED: &str = "/presignedurl/";

/// The id of the job that `definition` describes: sha256 of [`canonical_json`].
#[must_use]
pub fn job_id(definition: &Value) -> JobId {
    JobId::from_bytes(Sha256::digest(canonical_json(definition)).into())
}

/// The text that is hashed: the parts of `definition` that count, compact, keys sorted by UTF-16 code units.
#[must_use]
pub fn canonical_json(definition: &Value) -> String {
    let mut out = String::new();
    hashed_part(definition).write(&mut out);
    out
}

/// A tree over borrowed parts of the definition, so that large values are not copied before they are written.
enum Part<'a> {
    Whole(&'a Value),
    Text(JsString),
    Map(Vec<(JsString, Self)>),
}

impl Part<'_> {
    /// Recurses three levels at most; the values below are bounded by the JSON reader.
    fn write(self, out: &mut String) {
        match self {
            Self::Whole(value) => write_canonical(value, out),
            Self::Text(text) => write_string(&text, out),
            Self::Map(mut entries) => {
                entries.sort_by(|a, b| a.0.cmp(&b.0));
                out.push('{');
                for (index, (key, part)) in entries.into_iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    write_string(&key, out);
                    out.push(':');
                    part.write(out);
                }
                out.push('}');
            }
        }
    }
}

fn hashed_part(definition: &Value) -> Part<'_> {
    let mut entries = set_fields(definition, &PLAIN_FIELDS);
    let part = |field| definition.get(field).unwrap_or(&Value::Null);
    let groups = [
        ("build", set_fields(part("build"), &BUILD_FIELDS)),
        ("requirements", set_fields(part("requirements"), &REQUIREMENT_FIELDS)),
        ("env", own_env(part("env"))),
        ("inputs", refs(part("inputs"))),
        ("configFiles", refs(part("configFiles"))),
    ];
    for (field, group) in groups {
        if !group.is_empty() {
            entries.push((field.into(), Part::Map(group)));
        }
    }
    Part::Map(entries)
}

fn set_fields<'a>(value: &'a Value, fields: &[&str]) -> Vec<(JsString, Part<'a>)> {
    let set = |&field: &&str| match value.get(field) {
        None | Some(Value::Null) => None,
        Some(value) => Some((field.into(), Part::Whole(value))),
    };
    fields.iter().filter_map(set).collect()
}

fn own_env(env: &Value) -> Vec<(JsString, Part<'_>)> {
    members(env).into_iter().filter(|(key, _)| !is_foreign_env(&key.to_string_lossy())).collect()
}

/// Whether a variable of that name is one that the page around a job injects.
pub(crate) fn is_foreign_env(key: &str) -> bool {
    FOREIGN_ENV.contains(&key) || FOREIGN_ENV_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

fn refs(files: &Value) -> Vec<(JsString, Part<'_>)> {
    let reduced = |part| match part {
        Part::Whole(data_ref) => reduced_ref(data_ref),
        Part::Text(_) | Part::Map(_) => Vec::new(),
    };
    members(files).into_iter().map(|(name, part)| (name, Part::Map(reduced(part)))).collect()
}

/// A file's value, and its type unless that is null; whatever else is written there (a digest, say) does not count.
fn reduced_ref(data_ref: &Value) -> Vec<(JsString, Part<'_>)> {
    let mut entries = set_fields(data_ref, &["type"]);
    if let Some(value) = data_ref.get("value") {
        let part = match (data_ref.get("type").and_then(Value::as_str), value) {
            (Some("url"), Value::String(address)) => Part::Text(stable_url(address)),
            _ => Part::Whole(value),
        };
        entries.push(("value".into(), part));
    }
    entries
}

/// The address without what changes from signature to signature.
fn stable_url(address: &JsString) -> JsString {
    address
        .before(PRESIGNED)
        .or_else(|| url::without_query(&address.to_string_lossy()).map(JsString::from))
        .unwrap_or_else(|| address.clone())
}

/// JavaScript's own enumerable properties: an array and a string have theirs under `"0"`, `"1"`, ….
fn members(value: &Value) -> Vec<(JsString, Part<'_>)> {
    let index = |i: usize| JsString::from(i.to_string());
    match value {
        Value::Object(object) => object.iter().map(|(key, value)| (key.clone(), Part::Whole(value))).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(i, item)| (index(i), Part::Whole(item))).collect(),
        Value::String(text) => {
            text.units().enumerate().map(|(i, unit)| (index(i), Part::Text(JsString::from_utf16(vec![unit])))).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}
