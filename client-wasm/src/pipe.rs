//! What another frame of a metapage gives for a file, and what of it goes into the job.
//!
//! Bytes are never looked at here: what is an address stays one, so that only the worker that runs the job downloads it. Values that a
//! browser holds as binaries (`Blob`, `ArrayBuffer` …) are made into `data:` texts before they come here.

use protocol::json::{self, Value};
use protocol::link::codec;

/// The types of references that a value may already be.
const KINDS: [&str; 5] = ["utf8", "json", "base64", "url", "key"];

/// A value, seen as a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Piped {
    /// There is no file.
    Nothing,
    /// The reference to put into the definition.
    File(Value),
    /// The same, but not all was as it should be: say so.
    Doubtful(Value, &'static str),
}

/// What a pipe's value becomes as a file. Total: every value is some file, but nothing at all.
#[must_use]
pub fn file(value: &Value) -> Piped {
    match value {
        Value::Null => Piped::Nothing,
        Value::Bool(value) => Piped::File(reference("utf8", if *value { "true" } else { "false" }.into())),
        Value::Number(number) => Piped::File(reference("utf8", json::number_to_string(*number).into())),
        Value::String(text) => {
            match text.as_str().and_then(|text| text.strip_prefix("data:")).and_then(|data| data.split_once(',')) {
                Some((head, payload)) => data(head, payload),
                None => Piped::File(reference("utf8", value.clone())),
            }
        }
        Value::Array(_) => Piped::File(reference("json", value.clone())),
        Value::Object(_) => object(value),
    }
}

fn object(value: &Value) -> Piped {
    let field = |name| value.get(name);
    let text = |name| field(name).and_then(Value::as_str);
    // Two old forms of binaries, and references as they are.
    if field("_s") == Some(&Value::Bool(true)) || text("ref") == Some("base64") {
        return Piped::File(reference("base64", field("value").cloned().unwrap_or_default()));
    }
    if text("type").is_some_and(|kind| KINDS.contains(&kind)) && field("value").is_some_and(|value| !value.is_null()) {
        return Piped::File(value.clone());
    }
    Piped::File(reference("json", value.clone()))
}

/// RFC 2397, with the parameters that metaframes put into it.
fn data(head: &str, payload: &str) -> Piped {
    let mut parameters = head.split(';');
    let mime = parameters.next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_base64 = parameters.any(|parameter| parameter.trim().eq_ignore_ascii_case("base64"));
    if is_base64 && mime != "text/x-uri" {
        return Piped::File(reference("base64", payload.into()));
    }
    let decoded = codec::decode_component(payload);
    let whole = decoded.is_ok();
    let text = decoded.unwrap_or_else(|_| payload.to_owned());
    let (file, doubt) = match mime.as_str() {
        "text/x-uri" => (reference("url", text.into()), None),
        "application/json" => match json::parse(text.as_bytes()) {
            Ok(value) => (reference("json", value), None),
            Err(_) => (reference("utf8", text.into()), Some("it says that it is JSON and is not; it is taken as text")),
        },
        _ => (reference("utf8", text.into()), None),
    };
    let percent = (!whole).then_some("a % in it stands alone; it is taken as it is");
    match percent.or(doubt) {
        Some(doubt) => Piped::Doubtful(file, doubt),
        None => Piped::File(file),
    }
}

fn reference(kind: &str, value: Value) -> Value {
    Value::object([("type", Value::from(kind)), ("value", value)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Value {
        json::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn each_form_of_a_value_is_its_kind_of_file() {
        for (given, kind, content) in [
            (r#""text""#, "utf8", r#""text""#),
            (r#""""#, "utf8", r#""""#),
            ("1e21", "utf8", r#""1e+21""#),
            ("false", "utf8", r#""false""#),
            (r#"[1,"data:,x"]"#, "json", r#"[1,"data:,x"]"#),
            (r#"{"a":1}"#, "json", r#"{"a":1}"#),
            (r#"{"type":"html","value":"x"}"#, "json", r#"{"type":"html","value":"x"}"#),
            (r#"{"type":"json","value":null}"#, "json", r#"{"type":"json","value":null}"#),
            (r#"{"_s":true,"_c":"Blob","value":"QQ==","size":1}"#, "base64", r#""QQ==""#),
            (r#"{"ref":"base64","c":"Uint8Array","value":"QQ=="}"#, "base64", r#""QQ==""#),
            (r#""data:application/octet-stream;type=Float32Array;base64,QUFB""#, "base64", r#""QUFB""#),
            (r#""data:image/png;file=true;name=a%20b;lastModified=1;base64,QUFB""#, "base64", r#""QUFB""#),
            (r#""data:text/x-uri;charset=utf-8,https%3A%2F%2Fh%2Fx%3Fa%3D1""#, "url", r#""https://h/x?a=1""#),
            (r#""data:application/json;charset=utf-8,%7B%22n%22%3A3%7D""#, "json", r#"{"n":3}"#),
            (r#""data:text/plain;charset=utf-8,a%2Cb%20%C3%A9""#, "utf8", r#""a,b é""#),
            (r#""data:,""#, "utf8", r#""""#),
            (r#""data: without a comma""#, "utf8", r#""data: without a comma""#),
        ] {
            assert_eq!(file(&value(given)), Piped::File(reference(kind, value(content))), "{given}");
        }
        assert_eq!(file(&Value::Null), Piped::Nothing);
    }

    #[test]
    fn a_reference_stays_as_it_is() {
        for given in [
            r#"{"type":"url","value":"https://h","hash":"q"}"#,
            r#"{"type":"key","value":"k"}"#,
            r#"{"type":"utf8","value":""}"#,
        ] {
            assert_eq!(file(&value(given)), Piped::File(value(given)));
        }
    }

    #[test]
    fn what_is_not_what_it_says_is_text_and_told() {
        for (given, content) in
            [("data:application/json,%7B", "{"), ("data:text/plain,50%", "50%"), ("data:application/json,%zz", "%zz")]
        {
            let piped = file(&given.into());
            assert!(
                matches!(&piped, Piped::Doubtful(file, _) if *file == reference("utf8", content.into())),
                "{piped:?}"
            );
        }
    }
}
