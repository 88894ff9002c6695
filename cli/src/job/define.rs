//! A definition made of flags and files: pure, so that its id can be shown to be the one that everyone computes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use protocol::array::Indices;
use protocol::json::{self, Value};

use crate::args::job::{Build, Spec};

/// The largest file that travels inside a definition, in bytes; a larger one is a blob, named by its digest.
pub(crate) const INLINE_BYTES_MAX: u64 = 200;

/// A file for `/inputs`, ready to be named in a definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// At most [`INLINE_BYTES_MAX`] bytes, inside the definition.
    Inline(Vec<u8>),
    /// A blob.
    Blob {
        /// Its address.
        url: String,
        /// The digest of its bytes.
        sha256: String,
    },
}

impl Input {
    fn data_ref(&self) -> Value {
        match self {
            Self::Inline(bytes) => {
                Value::object([("type", Value::from("base64")), ("value", BASE64.encode(bytes).into())])
            }
            Self::Blob { url, sha256 } => Value::object([
                ("type", Value::from("url")),
                ("value", url.as_str().into()),
                // Not part of the id; lets a worker check what it fetches, and not fetch what it has.
                ("hash", sha256.as_str().into()),
            ]),
        }
    }
}

/// Makes the definition. What no flag asks for is not in it.
pub(crate) fn definition(spec: &Spec, inputs: &[(String, Input)]) -> Value {
    let mut fields = vec![match &spec.build {
        Some(build) => ("build", block(build)),
        None => ("image", Value::from(spec.image.as_str())),
    }];
    let texts = [
        ("command", &spec.command),
        ("entrypoint", &spec.entrypoint),
        ("workdir", &spec.workdir),
        ("maxDuration", &spec.max_duration),
        ("shmSize", &spec.shm_size),
    ];
    fields.extend(texts.into_iter().filter_map(|(name, text)| Some((name, Value::from(text.as_deref()?)))));
    if !spec.env.is_empty() {
        let env = spec.env.iter().map(|(name, value)| (name.as_str(), Value::from(value.as_str())));
        fields.push(("env", Value::object(env)));
    }
    if !inputs.is_empty() {
        let inputs = inputs.iter().map(|(name, input)| (name.as_str(), input.data_ref()));
        fields.push(("inputs", Value::object(inputs)));
    }
    let needs = [
        ("cpus", spec.cpus.map(Value::from)),
        ("gpus", spec.gpus.map(|gpus| Value::from(f64::from(gpus)))),
        ("memory", spec.memory.as_deref().map(Value::from)),
        // Also here, for workers that look only here: it is what the existing command line writes, and so the same id.
        ("maxDuration", spec.max_duration.as_deref().map(Value::from)),
    ];
    let needs: Vec<_> = needs.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    if !needs.is_empty() {
        fields.push(("requirements", Value::object(needs)));
    }
    Value::object(fields)
}

fn block(build: &Build) -> Value {
    let texts = build.fields.iter().map(|(name, text)| (*name, Value::from(text.as_str())));
    let args = (!build.args.is_empty()).then(|| {
        let args = build.args.iter().map(|arg| Value::from(arg.as_str()));
        ("buildArgs", Value::Array(args.collect()))
    });
    Value::object(texts.chain(args))
}

/// What goes with a definition.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct With<'a> {
    /// Under which namespace.
    pub(crate) namespace: Option<&'a str>,
    /// Whether debug output is wanted.
    pub(crate) debug: bool,
    /// Whether a job that has ended without success runs again.
    pub(crate) retry: bool,
}

impl With<'_> {
    fn control(self) -> Option<Value> {
        let namespace = self.namespace.map(|name| ("namespace", Value::from(name)));
        let fields: Vec<_> = namespace.into_iter().chain(self.retry.then(|| ("retry", true.into()))).collect();
        (!fields.is_empty()).then(|| Value::object(fields))
    }
}

/// The body of a submission. `definition` is JSON text and goes in as it is.
pub(crate) fn submission(id: &str, definition: &str, with: With<'_>) -> String {
    let id = json::to_json(&Value::from(id));
    let control = with.control().map(|control| format!(",\"control\":{}", json::to_json(&control)));
    let debug = if with.debug { ",\"debug\":true" } else { "" };
    format!("{{\"id\":{id},\"definition\":{definition}{}{debug}}}", control.unwrap_or_default())
}

/// A line that submits a job for each number.
pub(crate) fn template(array: &Indices, definition: &Value, with: With<'_>) -> String {
    let mut fields = vec![("array", array.to_value()), ("definition", definition.clone())];
    fields.extend(with.control().map(|control| ("control", control)));
    if with.debug {
        fields.push(("debug", true.into()));
    }
    json::to_json(&Value::object(fields))
}

#[cfg(test)]
mod tests {
    use protocol::canonical::job_id;

    use super::*;

    #[test]
    fn an_image_that_is_built_takes_the_place_of_one_that_has_a_name() {
        let fields = vec![("context", "https://h/x".to_owned())];
        let build = Some(Build { fields, args: vec!["A=1".to_owned()], dockerfile: None });
        let spec = Spec { build, shm_size: Some("1g".into()), ..spec("unused", "true") };
        let written = json::to_json(&definition(&spec, &[]));
        assert_eq!(
            written,
            r#"{"build":{"context":"https://h/x","buildArgs":["A=1"]},"command":"true","shmSize":"1g"}"#
        );
    }

    fn spec(image: &str, command: &str) -> Spec {
        Spec { image: image.into(), command: Some(command.into()), ..Spec::default() }
    }

    #[test]
    fn flags_give_the_id_that_everyone_computes() {
        let definition = definition(&spec("alpine:3.20", "echo hello"), &[]);
        assert_eq!(json::to_json(&definition), r#"{"image":"alpine:3.20","command":"echo hello"}"#);
        assert_eq!(job_id(&definition).to_string(), "84696046848ef38f50a2f6182fc7674eaee3d1fac23fe57466d6cb5f771794e4");
    }

    #[test]
    fn every_flag_is_in_the_definition_under_its_name() {
        let spec = Spec {
            image: "i".into(),
            command: Some("c".into()),
            entrypoint: Some("e".into()),
            workdir: Some("/w".into()),
            files: Vec::new(),
            env: vec![("A".into(), "1".into())],
            cpus: Some(0.5),
            gpus: Some(2),
            memory: Some("1g".into()),
            max_duration: Some("5m".into()),
            build: None,
            shm_size: None,
        };
        let inputs = [("a.txt".to_owned(), Input::Inline(b"hello\n".to_vec()))];
        assert_eq!(
            json::to_json(&definition(&spec, &inputs)),
            concat!(
                r#"{"image":"i","command":"c","entrypoint":"e","workdir":"/w","maxDuration":"5m","env":{"A":"1"},"#,
                r#""inputs":{"a.txt":{"type":"base64","value":"aGVsbG8K"}},"#,
                r#""requirements":{"cpus":0.5,"gpus":2,"memory":"1g","maxDuration":"5m"}}"#
            )
        );
    }

    #[test]
    fn a_blobs_digest_is_told_but_does_not_change_the_id() {
        let with = |sha256: &str| {
            let blob = Input::Blob { url: "http://h/f/abc".into(), sha256: sha256.into() };
            definition(&spec("i", "c"), &[("f".to_owned(), blob)])
        };
        assert!(json::to_json(&with("abc")).contains(r#""hash":"abc""#));
        assert_eq!(job_id(&with("abc")), job_id(&with("other")));
    }

    #[test]
    fn a_submission_carries_the_definition_as_it_was_written() {
        let plain = submission("ab", r#"{"image" :1.0}"#, With::default());
        assert_eq!(plain, r#"{"id":"ab","definition":{"image" :1.0}}"#);
        let with = With { namespace: Some("a\"b"), debug: true, retry: true };
        assert_eq!(
            submission("ab", "{}", with),
            r#"{"id":"ab","definition":{},"control":{"namespace":"a\"b","retry":true},"debug":true}"#
        );
    }

    #[test]
    fn a_template_is_one_line_with_its_numbers() {
        let array = Indices::parse_range("0-9:3").unwrap();
        let definition = definition(&spec("i", "c {{index}}\n"), &[]);
        assert_eq!(
            template(&array, &definition, With { namespace: Some("n"), debug: true, retry: true }),
            concat!(
                r#"{"array":{"from":0,"to":9,"step":3,"index":"index"},"definition":{"image":"i","command":"c {{index}}\n"},"#,
                r#""control":{"namespace":"n","retry":true},"debug":true}"#
            )
        );
    }
}
