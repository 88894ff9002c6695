//! From what a link says to the job that it describes: the same definition, and so the same id, on every page and command line.

use super::params::Params;
use super::upload::{self, Upload};
use crate::json::{JsString, Object, Value};

/// A job that can be submitted once its uploads are there.
#[derive(Clone, Debug, PartialEq)]
pub struct Assembled {
    /// The definition, with addresses in place of large files.
    pub definition: Value,
    /// What these addresses have to lead to.
    pub uploads: Vec<Upload>,
}

/// The job that `source` (the link's own definition, or the one that a short link leads to) becomes with the link's parameters
/// and with `inputs`, files by name that came from elsewhere. Large files get addresses below `origin`.
///
/// `None` when there is neither an image nor a build: that is no job yet.
#[must_use]
pub fn assemble(
    source: Option<&Value>,
    params: &Params,
    inputs: &[(String, Value)],
    origin: &str,
) -> Option<Assembled> {
    let source = source.and_then(Value::as_object).cloned().unwrap_or_default();
    if !["image", "build"].iter().any(|field| source.get(field).is_some_and(is_truthy)) {
        return None;
    }
    let mut fields = Fields(source);
    fields.env(params);
    fields.substitute(params);
    if let Some(texts) = &params.inputs {
        let files = texts.iter().map(|(name, text)| (name.clone(), config_file(text)));
        fields.set("configFiles", Some(Value::Object(Object::from_pairs(files.collect()))));
    }
    if !inputs.is_empty() {
        let own = fields
            .object("inputs")
            .into_iter()
            .flat_map(|own| own.iter().map(|(name, file)| (name.clone(), file.clone())));
        let given = inputs.iter().filter(|(name, _)| name != "job");
        let given = given.map(|(name, file)| (name.strip_prefix('/').unwrap_or(name).into(), file.clone()));
        let all = own.collect::<Vec<_>>().into_iter().chain(given).collect();
        fields.set("inputs", Some(Value::Object(Object::from_pairs(all))));
    }
    let mut uploads = Vec::new();
    for field in ["inputs", "configFiles"] {
        if let Some(files) = fields.object(field) {
            let files = upload::outsource(files, origin, &mut uploads);
            fields.set(field, (!files.is_empty()).then_some(Value::Object(files)));
        }
    }
    Some(Assembled { definition: Value::Object(fields.0), uploads })
}

/// A definition in the making.
struct Fields(Object);

impl Fields {
    fn object(&self, field: &str) -> Option<&Object> {
        self.0.get(field)?.as_object()
    }

    fn set(&mut self, field: &str, value: Option<Value>) {
        let others = self.0.iter().filter(|(name, _)| name.as_str() != Some(field));
        let others = others.map(|(name, value)| (name.clone(), value.clone()));
        self.0 = Object::from_pairs(others.chain(value.map(|value| (field.into(), value))).collect());
    }

    /// The link's own variables win over the definition's.
    fn env(&mut self, params: &Params) {
        if params.env.is_empty() {
            return;
        }
        let own =
            self.object("env").into_iter().flat_map(Object::iter).map(|(key, value)| (key.clone(), value.clone()));
        let given = params.env.iter().map(|(key, value)| (key.as_str().into(), Value::from(value.as_str())));
        let all = own.chain(given).collect();
        self.set("env", Some(Value::Object(Object::from_pairs(all))));
    }

    /// Puts each variable of the link where the command, and the address of what is built, first name it as `${NAME}`.
    fn substitute(&mut self, params: &Params) {
        let replaced = |text: &JsString| {
            let whole = text.as_str()?.to_owned();
            let new =
                params.env.iter().fold(whole, |text, (key, value)| text.replacen(&format!("${{{key}}}"), value, 1));
            (Some(new.as_str()) != text.as_str()).then(|| Value::from(new))
        };
        let text = |value: Option<&Value>| value.and_then(Value::as_js_string).and_then(replaced);
        if let Some(command) = text(self.0.get("command")) {
            self.set("command", Some(command));
        }
        let build = self.object("build").cloned();
        if let Some((build, context)) =
            build.and_then(|build| text(build.get("context")).map(|context| (build, context)))
        {
            let mut build = Self(build);
            build.set("context", Some(context));
            self.set("build", Some(Value::Object(build.0)));
        }
    }
}

/// A link has texts; what is a reference already stays one.
fn config_file(text: &Value) -> Value {
    if text.get("value").is_some() {
        return text.clone();
    }
    Value::object([("type", Value::from("utf8")), ("value", text.clone())])
}

/// JavaScript's idea of whether there is something.
fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => *number != 0.0 && !number.is_nan(),
        Value::String(text) => !text.is_empty(),
        Value::Array(_) | Value::Object(_) => true,
    }
}
