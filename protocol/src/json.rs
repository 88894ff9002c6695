//! JavaScript's JSON: the values, text and property order that `JSON.parse` and `JSON.stringify` agree on.
//!
//! A job's id is the digest of text that a JavaScript engine would write, so doubles, lone surrogates, duplicate keys
//! and the order of integer-like keys have to come out as they do there. No IO; nothing here panics on any input.

mod parse;
mod text;
mod write;

pub use parse::{DEPTH_MAX, JsonError, JsonErrorKind, parse};
pub use text::JsString;
pub use write::{number_to_string, to_canonical_json, to_json, utf16_len_of_json};
pub(crate) use write::{write_canonical, write_string};

/// One JSON value, as a JavaScript engine holds it.
///
/// What [`parse()`] returns nests at most [`DEPTH_MAX`] deep. Values built by hand should keep to that: writing and
/// dropping a value recurse.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    /// `null`
    #[default]
    Null,
    /// `true` or `false`
    Bool(bool),
    /// An IEEE double. `1e400` is read as infinity, which is written as `null`.
    Number(f64),
    /// Text, which may hold lone surrogates.
    String(JsString),
    /// An ordered list.
    Array(Vec<Self>),
    /// Named values in JavaScript's property order.
    Object(Object),
}

impl Value {
    /// The value under `key`, if this is an object that has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.as_object()?.get(key)
    }

    /// The object, if this is one.
    #[must_use]
    pub fn as_object(&self) -> Option<&Object> {
        if let Self::Object(object) = self { Some(object) } else { None }
    }

    /// The items, if this is an array.
    #[must_use]
    pub fn as_array(&self) -> Option<&[Self]> {
        if let Self::Array(items) = self { Some(items) } else { None }
    }

    /// The text, if this is a string.
    #[must_use]
    pub fn as_js_string(&self) -> Option<&JsString> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    /// The text, if this is a string without lone surrogates.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        self.as_js_string()?.as_str()
    }

    /// The number, if this is one.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        if let Self::Number(number) = self { Some(*number) } else { None }
    }

    /// The truth value, if this is one.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    /// Whether this is `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// What kind of value this is, for messages to people: `null`, `boolean`, `number`, `string`, `array` or `object`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "boolean",
            Self::Number(_) => "number",
            Self::String(_) => "string",
            Self::Array(_) => "array",
            Self::Object(_) => "object",
        }
    }

    /// Makes an object; see [`Object::from_pairs`].
    #[must_use]
    pub fn object<K: Into<JsString>>(pairs: impl IntoIterator<Item = (K, Self)>) -> Self {
        Self::Object(Object::from_pairs(pairs.into_iter().map(|(key, value)| (key.into(), value)).collect()))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Number(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.into())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::String(value.into())
    }
}

impl From<Vec<Self>> for Value {
    fn from(value: Vec<Self>) -> Self {
        Self::Array(value)
    }
}

/// Named values in JavaScript's property order: array indices ascending, then the other keys as they first came.
///
/// Each key is there once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object {
    entries: Vec<(JsString, Value)>,
}

impl Object {
    /// Orders `pairs` as JavaScript does; of a key given twice the last value stands, at the first one's place.
    #[must_use]
    pub fn from_pairs(pairs: Vec<(JsString, Value)>) -> Self {
        // Sorting finds duplicates without hashing, so no choice of keys makes this slower than n log n.
        let mut by_key: Vec<usize> = (0..pairs.len()).collect();
        by_key.sort_by(|&a, &b| pairs[a].0.cmp(&pairs[b].0).then(a.cmp(&b)));
        let mut places: Vec<(Place, usize)> = Vec::with_capacity(pairs.len());
        for group in by_key.chunk_by(|&a, &b| pairs[a].0 == pairs[b].0) {
            if let (Some(&first), Some(&last)) = (group.first(), group.last()) {
                places.push((Place::of(&pairs[first].0, first), last));
            }
        }
        places.sort();
        let mut slots: Vec<Option<(JsString, Value)>> = pairs.into_iter().map(Some).collect();
        let entries = places.into_iter().filter_map(|(_, index)| slots[index].take()).collect();
        Self { entries }
    }

    /// The value under `key`. Looks at one entry after the other.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(name, _)| name.as_str() == Some(key)).map(|(_, value)| value)
    }

    /// Keys and values in property order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&JsString, &Value)> {
        self.entries.iter().map(|(key, value)| (key, value))
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Where a key stands among its siblings; the order of the variants is the order of properties.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Index(u32),
    Named(usize),
}

impl Place {
    fn of(key: &JsString, position: usize) -> Self {
        array_index(key).map_or(Self::Named(position), Self::Index)
    }
}

/// Reads a key such as `"0"` or `"4294967294"`: decimal, no leading zero, below 2^32 - 1 (ECMA-262, "array index").
fn array_index(key: &JsString) -> Option<u32> {
    let text = key.as_str()?;
    let canonical =
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if canonical { text.parse().ok().filter(|&index| index != u32::MAX) } else { None }
}
