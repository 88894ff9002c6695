//! Which files of a definition are too large to travel in it, and what they are uploaded as.

use sha2::{Digest as _, Sha256};

use super::codec;
use crate::json::{self, JsString, Object, Value};

/// The longest text that stays inside a definition, in UTF-16 code units: of base64, of JSON or of plain text, as it is written
/// there. Ids depend on it: it is for ever.
pub const INLINE_UNITS_MAX: usize = 200;

/// Bytes that have to be on the server before the job is submitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// Their digest, as 64 hex digits: the blob's key, below `/f/`.
    pub sha256: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// The files with addresses below `origin` in place of what is too large, and what is to be uploaded.
pub(super) fn outsource(files: &Object, origin: &str, uploads: &mut Vec<Upload>) -> Object {
    let outsourced = files.iter().map(|(name, data_ref)| (name.clone(), file(data_ref, origin, uploads)));
    Object::from_pairs(outsourced.collect())
}

fn file(data_ref: &Value, origin: &str, uploads: &mut Vec<Upload>) -> Value {
    let Some(bytes) = large(data_ref) else { return data_ref.clone() };
    let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let url = format!("{origin}/f/{sha256}");
    if uploads.iter().all(|upload| upload.sha256 != sha256) {
        uploads.push(Upload { sha256: sha256.clone(), bytes });
    }
    Value::object([("type", Value::from("url")), ("value", url.into()), ("hash", sha256.into())])
}

/// The bytes of a file, if they do not stay inside.
fn large(data_ref: &Value) -> Option<Vec<u8>> {
    let value = data_ref.get("value")?;
    let text = |value: &Value| value.as_js_string().filter(|text| text.utf16_len() > INLINE_UNITS_MAX).map(lossy);
    match data_ref.get("type").and_then(Value::as_str) {
        Some("json") => (json::utf16_len_of_json(value) > INLINE_UNITS_MAX).then(|| json::to_json(value).into_bytes()),
        // What is not base64 stays where it is: the broker says what is wrong with it.
        Some("base64") => codec::decode_base64(&text(value)?).ok(),
        Some("utf8") | None => text(value).map(String::into_bytes),
        Some(_) => None,
    }
}

fn lossy(text: &JsString) -> String {
    text.to_string_lossy().into_owned()
}
