//! Reading the view out of the JSON value: what has the wrong type is left out and told.

use super::{Build, CommandLine, DataKind, DataRef, Definition, Problem, Requirements};
use crate::json::{JsString, Value, number_to_string};
use crate::{duration, size};

pub(super) fn definition(value: Value) -> Definition {
    let mut reader = Reader { problems: Vec::new() };
    let field = |name| value.get(name);
    let view = Definition {
        image: reader.text("image", field("image")),
        build: reader.build(field("build")),
        command: reader.command("command", field("command")),
        entrypoint: reader.command("entrypoint", field("entrypoint")),
        workdir: reader.text("workdir", field("workdir")),
        shm_size: reader.measure("shmSize", field("shmSize")),
        max_duration: reader.measure("maxDuration", field("maxDuration")),
        env: reader.env(field("env")),
        inputs: reader.files("inputs", field("inputs")),
        config_files: reader.files("configFiles", field("configFiles")),
        tags: reader.texts("tags", field("tags")),
        requirements: reader.requirements(field("requirements")),
        problems: Vec::new(),
        value: Value::Null,
    };
    reader.check_measures(&view);
    Definition { problems: reader.problems, value, ..view }
}

/// Collects problems on the way.
struct Reader {
    problems: Vec<Problem>,
}

/// Null counts as absent everywhere.
fn set(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| !value.is_null())
}

fn plain(text: &JsString) -> String {
    text.to_string_lossy().into_owned()
}

impl Reader {
    fn problem<T>(&mut self, field: impl Into<String>, text: impl Into<String>) -> Option<T> {
        self.problems.push(Problem { field: field.into(), text: text.into() });
        None
    }

    fn wrong_type<T>(&mut self, field: impl Into<String>, wanted: &str, found: &Value) -> Option<T> {
        self.problem(field, format!("must be {wanted}, not {}", found.kind()))
    }

    fn text(&mut self, field: &str, value: Option<&Value>) -> Option<String> {
        let value = set(value)?;
        value.as_js_string().map(plain).or_else(|| self.wrong_type(field, "text", value))
    }

    /// Text or a number, as text.
    fn measure(&mut self, field: &str, value: Option<&Value>) -> Option<String> {
        match set(value)? {
            Value::Number(number) => Some(number_to_string(*number)),
            other @ (Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::Object(_)) => {
                self.text(field, Some(other))
            }
        }
    }

    fn texts(&mut self, field: &str, value: Option<&Value>) -> Vec<String> {
        let Some(value) = set(value) else { return Vec::new() };
        let Some(items) = value.as_array() else {
            return self.wrong_type(field, "a list of texts", value).unwrap_or_default();
        };
        let texts = items.iter().enumerate().map(|(index, item)| {
            let text = item.as_js_string().map(plain);
            text.or_else(|| self.wrong_type(format!("{field}[{index}]"), "text", item))
        });
        texts.collect::<Vec<_>>().into_iter().flatten().collect()
    }

    /// An argument list with a wrong item is no command at all: a part of one could do anything.
    fn command(&mut self, field: &str, value: Option<&Value>) -> Option<CommandLine> {
        match set(value)? {
            Value::String(text) if text.is_empty() => None,
            Value::String(text) => Some(CommandLine::Text(plain(text))),
            Value::Array(items) => {
                let argv: Option<Vec<String>> = items.iter().map(|item| item.as_js_string().map(plain)).collect();
                let argv = argv.or_else(|| self.problem(field, "every argument must be text"))?;
                if argv.is_empty() { None } else { Some(CommandLine::Argv(argv)) }
            }
            other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
                self.wrong_type(field, "text or a list of texts", other)
            }
        }
    }

    fn build(&mut self, value: Option<&Value>) -> Option<Build> {
        let value = set(value)?;
        if value.as_object().is_none() {
            return self.wrong_type("build", "an object", value);
        }
        Some(Build {
            context: self.text("build.context", value.get("context")),
            build_context: self.text("build.buildContext", value.get("buildContext")),
            filename: self.text("build.filename", value.get("filename")),
            target: self.text("build.target", value.get("target")),
            dockerfile: self.text("build.dockerfile", value.get("dockerfile")),
            build_args: self.texts("build.buildArgs", value.get("buildArgs")),
            platform: self.text("build.platform", value.get("platform")),
            value: value.clone(),
        })
    }

    fn env(&mut self, value: Option<&Value>) -> Vec<(String, String)> {
        let Some(value) = set(value) else { return Vec::new() };
        let Some(object) = value.as_object() else {
            return self.wrong_type("env", "an object", value).unwrap_or_default();
        };
        let mut env = Vec::with_capacity(object.len());
        for (name, value) in object.iter() {
            let text = match value {
                Value::String(text) => Some(plain(text)),
                Value::Number(number) => Some(number_to_string(*number)),
                Value::Bool(value) => Some(value.to_string()),
                Value::Null | Value::Array(_) | Value::Object(_) => {
                    self.wrong_type(format!("env.{}", name.to_string_lossy()), "text", value)
                }
            };
            env.extend(text.map(|text| (plain(name), text)));
        }
        env
    }

    fn files(&mut self, field: &str, value: Option<&Value>) -> Vec<(String, DataRef)> {
        let Some(value) = set(value) else { return Vec::new() };
        let Some(object) = value.as_object() else {
            return self.wrong_type(field, "an object", value).unwrap_or_default();
        };
        let mut files = Vec::with_capacity(object.len());
        for (name, value) in object.iter() {
            let path = format!("{field}.{}", name.to_string_lossy());
            files.extend(self.data_ref(path, value).map(|data_ref| (plain(name), data_ref)));
        }
        files
    }

    fn data_ref(&mut self, field: String, value: &Value) -> Option<DataRef> {
        if value.as_object().is_none() {
            return self.wrong_type(field, "an object", value);
        }
        let kind = match set(value.get("type")) {
            None => DataKind::Utf8,
            Some(kind) => match kind.as_str() {
                Some("utf8") => DataKind::Utf8,
                Some("base64") => DataKind::Base64,
                Some("json") => DataKind::Json,
                Some("url") => DataKind::Url,
                Some("key") => DataKind::Key,
                Some(_) | None => return self.problem(field, "the type must be utf8, base64, json, url or key"),
            },
        };
        let Some(content) = value.get("value") else {
            return self.problem(field, "there is no value");
        };
        if kind != DataKind::Json && content.as_js_string().is_none() {
            return self.wrong_type(field, "an object whose value is text", content);
        }
        let hash = self.text(&format!("{field}.hash"), value.get("hash"));
        Some(DataRef { kind, value: content.clone(), hash })
    }

    fn requirements(&mut self, value: Option<&Value>) -> Requirements {
        let Some(value) = set(value) else {
            return Requirements::default();
        };
        if value.as_object().is_none() {
            return self.wrong_type("requirements", "an object", value).unwrap_or_default();
        }
        Requirements {
            cpus: self.cpus(value.get("cpus")),
            gpus: self.gpus(value.get("gpus")),
            memory: self.memory(value.get("memory")),
            max_duration_ms: self.max_duration_ms(value.get("maxDuration")),
        }
    }

    /// A number or a text that is one.
    fn number(&mut self, field: &str, value: &Value) -> Option<f64> {
        let number = match value {
            Value::Number(number) => Some(*number),
            Value::String(text) => text.to_string_lossy().trim().parse().ok(),
            Value::Bool(_) | Value::Null | Value::Array(_) | Value::Object(_) => None,
        };
        number.filter(|number| number.is_finite()).or_else(|| self.problem(field, "must be a number"))
    }

    fn cpus(&mut self, value: Option<&Value>) -> Option<f64> {
        let field = "requirements.cpus";
        let cpus = self.number(field, set(value)?)?;
        if cpus > 0.0 { Some(cpus) } else { self.problem(field, "must be above zero") }
    }

    /// Parts of a device count as a whole one; `true` is one.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and casts saturate")]
    fn gpus(&mut self, value: Option<&Value>) -> Option<u32> {
        let field = "requirements.gpus";
        if let Value::Bool(wanted) = set(value)? {
            return Some(u32::from(*wanted));
        }
        let gpus = self.number(field, set(value)?)?;
        if gpus < 0.0 { self.problem(field, "must not be negative") } else { Some(gpus.ceil() as u32) }
    }

    fn memory(&mut self, value: Option<&Value>) -> Option<u64> {
        let bytes = match set(value)? {
            Value::Number(bytes) => size::size_from_bytes(*bytes),
            Value::String(text) => size::parse_size_bytes(&text.to_string_lossy()),
            other @ (Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) => {
                return self.wrong_type("requirements.memory", "a size", other);
            }
        };
        bytes.map_or_else(|error| self.problem("requirements.memory", error.to_string()), Some)
    }

    fn max_duration_ms(&mut self, value: Option<&Value>) -> Option<u64> {
        let field = "requirements.maxDuration";
        let text = self.measure(field, value)?;
        duration::limit_ms(&text).or_else(|| self.problem(field, NO_LIMIT))
    }

    /// Tells of texts that the view keeps as written but that will not be understood.
    fn check_measures(&mut self, view: &Definition) {
        if view.max_duration.is_some() && view.max_duration.as_deref().and_then(duration::limit_ms).is_none() {
            self.problem::<()>("maxDuration", NO_LIMIT);
        }
        if let Some(Err(error)) = view.shm_size.as_deref().map(size::parse_size_bytes) {
            self.problem::<()>("shmSize", error.to_string());
        }
    }
}

const NO_LIMIT: &str = "is not a duration above zero, such as 10m";
