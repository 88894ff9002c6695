//! Job arrays: a definition with a placeholder, and a range of numbers to put in its place, one job for each.
//!
//! The placeholder is the index's name in double braces, `{{index}}` unless another name is given. It is replaced in every text of
//! the definition and in the names of its files, nowhere else; what comes out is a definition like any other, with the id that it
//! would have if it had been written by hand.

use crate::canonical::job_id;
use crate::json::{self, JsString, Object, Value};

/// How many jobs one template may make: a tenth of what a queue holds, so that one line cannot fill it.
pub const ARRAY_JOBS_MAX: u64 = 10_000;

/// How many bytes of definitions one template may make, 64 MiB: without this a line of a few megabytes would fill a disk. What is
/// large belongs into a blob.
pub const ARRAY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The placeholder's name when none is given.
pub const INDEX_NAME: &str = "index";

/// The longest name of an index: longer than anyone types.
const NAME_BYTES_MAX: usize = 64;

/// The largest number that JavaScript and we count to without rounding.
const NUMBER_MAX: u64 = (1 << 53) - 1;

/// The fields of a definition whose keys are names of files, and so texts that a placeholder may stand in.
const FILE_FIELDS: [&str; 2] = ["inputs", "configFiles"];

/// Why a template makes no jobs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArrayError {
    /// Not an object.
    #[error("array must be an object such as {{\"from\": 0, \"to\": 99}}, not {found}")]
    NotAnObject {
        /// What it is instead.
        found: &'static str,
    },
    /// A field that means nothing here, a slip most likely.
    #[error("array has no field {field:?}; it has from, to, step and index")]
    UnknownField {
        /// The field.
        field: String,
    },
    /// A field that is missing or no such number.
    #[error("array.{field} must be a whole number from {least} to {NUMBER_MAX}")]
    NotANumber {
        /// The field.
        field: &'static str,
        /// The least number that it may be.
        least: u64,
    },
    /// The range ends before it begins.
    #[error("array.from is {from} and array.to is {to}: from must not be larger")]
    Backwards {
        /// Where it begins.
        from: u64,
        /// Where it ends.
        to: u64,
    },
    /// Too many numbers.
    #[error("the array has {count} jobs, the limit is {ARRAY_JOBS_MAX}: make several arrays of it")]
    TooMany {
        /// How many.
        count: u64,
    },
    /// The index's name cannot stand in a placeholder.
    #[error(
        "array.index must be a name of letters, digits and underscores, at most {NAME_BYTES_MAX}, not beginning with a digit"
    )]
    BadName,
    /// The definition is no object.
    #[error("the definition must be a JSON object, not {found}")]
    NoDefinition {
        /// What it is instead.
        found: &'static str,
    },
    /// There is nothing to replace.
    #[error("{{{{{name}}}}} stands in no text of the definition, so all {count} jobs would be the same one")]
    Unused {
        /// The index's name.
        name: String,
        /// How many jobs were asked for.
        count: u64,
    },
    /// What is replaced does not tell jobs apart.
    #[error(
        "{{{{{name}}}}} stands only where it does not change a job's id, so all {count} jobs would be the same one; put it into the \
         command, a variable or an input"
    )]
    Same {
        /// The index's name.
        name: String,
        /// How many jobs were asked for.
        count: u64,
    },
    /// All definitions together are too large.
    #[error(
        "the array's definitions have {bytes} bytes together, the limit is {ARRAY_BYTES_MAX}; upload large inputs with PUT /f/<sha256> \
         and refer to them"
    )]
    TooLarge {
        /// How many bytes, about.
        bytes: u64,
    },
    /// Two files would have one name.
    #[error("two of {field} would be named {name:?}")]
    SameName {
        /// `inputs` or `configFiles`.
        field: &'static str,
        /// The name.
        name: String,
    },
    /// A range that is not written as one.
    #[error("write a range such as 0-99, or 0-99:2 for every second number")]
    BadRange,
}

/// The numbers of an array, and what they are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indices {
    from: u64,
    to: u64,
    step: u64,
    name: String,
}

impl Indices {
    /// The numbers from `from` to `to`, both included, in steps of `step`.
    ///
    /// # Errors
    ///
    /// [`ArrayError`] when there are none or too many of them, or the name is none.
    pub fn new(from: u64, to: u64, step: u64, name: &str) -> Result<Self, ArrayError> {
        for (field, number, least) in [("from", from, 0), ("to", to, 0), ("step", step, 1)] {
            if !(least..=NUMBER_MAX).contains(&number) {
                return Err(ArrayError::NotANumber { field, least });
            }
        }
        if from > to {
            return Err(ArrayError::Backwards { from, to });
        }
        let is_name = name.len() <= NAME_BYTES_MAX
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && name.bytes().next().is_some_and(|first| !first.is_ascii_digit());
        if !is_name {
            return Err(ArrayError::BadName);
        }
        let indices = Self { from, to, step, name: name.to_owned() };
        if indices.count() > ARRAY_JOBS_MAX {
            return Err(ArrayError::TooMany { count: indices.count() });
        }
        Ok(indices)
    }

    /// Reads `{"from": 0, "to": 99, "step": 1, "index": "i"}`; only `to` must be there.
    ///
    /// # Errors
    ///
    /// [`ArrayError`] for anything else.
    pub fn read(array: &Value) -> Result<Self, ArrayError> {
        let object = array.as_object().ok_or(ArrayError::NotAnObject { found: array.kind() })?;
        if let Some((field, _)) =
            object.iter().find(|(key, _)| !matches!(key.as_str(), Some("from" | "to" | "step" | "index")))
        {
            return Err(ArrayError::UnknownField { field: field.to_string_lossy().into_owned() });
        }
        let number = |field, least| match object.get(field) {
            None => Ok(None),
            Some(value) => whole(value).map(Some).ok_or(ArrayError::NotANumber { field, least }),
        };
        let from = number("from", 0)?.unwrap_or(0);
        let to = number("to", 0)?.ok_or(ArrayError::NotANumber { field: "to", least: 0 })?;
        let step = number("step", 1)?.unwrap_or(1);
        let name = match object.get("index") {
            None => INDEX_NAME,
            Some(name) => name.as_str().ok_or(ArrayError::BadName)?,
        };
        Self::new(from, to, step, name)
    }

    /// Reads `0-99` or `0-99:2`, as command lines write it.
    ///
    /// # Errors
    ///
    /// [`ArrayError`] for anything else.
    pub fn parse_range(text: &str) -> Result<Self, ArrayError> {
        let number = |text: &str| {
            let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| is_number).ok_or(ArrayError::BadRange)
        };
        let (range, step) = text.split_once(':').map_or((text, None), |(range, step)| (range, Some(step)));
        let (from, to) = range.split_once('-').ok_or(ArrayError::BadRange)?;
        Self::new(number(from)?, number(to)?, step.map_or(Ok(1), number)?, INDEX_NAME)
    }

    /// As [`Indices::read`] reads it.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "numbers above 2^53 are refused")]
    pub fn to_value(&self) -> Value {
        let number = |number: u64| Value::from(number as f64);
        Value::object([
            ("from", number(self.from)),
            ("to", number(self.to)),
            ("step", number(self.step)),
            ("index", self.name.as_str().into()),
        ])
    }

    /// How many there are; at least one.
    #[must_use]
    pub const fn count(&self) -> u64 {
        (self.to - self.from) / self.step + 1
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + use<> {
        let Self { from, step, .. } = *self;
        (0..self.count()).map(move |at| from + at * step)
    }
}

/// A definition with a placeholder, of which jobs are made.
#[derive(Clone, Debug)]
pub struct Template {
    indices: Indices,
    definition: Value,
    placeholder: String,
}

impl Template {
    /// Takes a definition as a template.
    ///
    /// # Errors
    ///
    /// [`ArrayError`] when it would not make as many different jobs as there are numbers, or more bytes than may be.
    pub fn new(indices: Indices, definition: Value) -> Result<Self, ArrayError> {
        if definition.as_object().is_none() {
            return Err(ArrayError::NoDefinition { found: definition.kind() });
        }
        let placeholder = format!("{{{{{}}}}}", indices.name);
        let (count, name) = (indices.count(), indices.name.clone());
        let bytes = (json::to_json(&definition).len() as u64).saturating_mul(count);
        let template = Self { indices, definition, placeholder };
        if bytes > ARRAY_BYTES_MAX {
            return Err(ArrayError::TooLarge { bytes });
        }
        let mut made = template.indices.iter().map(|index| template.definition(index));
        // Two files that come to have one name are told of the job that would have them; here they show that something is replaced.
        let first = made.next().and_then(Result::ok);
        if first.as_ref() == Some(&template.definition) {
            return Err(ArrayError::Unused { name, count });
        }
        // What tells two jobs apart tells all: each number is put into the same places.
        let second = made.next().and_then(Result::ok);
        if let (Some(first), Some(second)) = (first, second)
            && job_id(&first) == job_id(&second)
        {
            return Err(ArrayError::Same { name, count });
        }
        drop(made);
        Ok(template)
    }

    /// The numbers.
    #[must_use]
    pub const fn indices(&self) -> &Indices {
        &self.indices
    }

    /// The definition for one number.
    ///
    /// # Errors
    ///
    /// [`ArrayError::SameName`] when two files would have one name.
    pub fn definition(&self, index: u64) -> Result<Value, ArrayError> {
        let number = index.to_string();
        let Value::Object(fields) = &self.definition else { return Ok(self.definition.clone()) };
        let filled = fields.iter().map(|(key, value)| {
            let files = FILE_FIELDS.iter().find(|field| key.as_str() == Some(**field));
            match (files, value) {
                (Some(field), Value::Object(files)) => Ok((key.clone(), self.files(field, files, &number)?)),
                (_, value) => Ok((key.clone(), self.value(value, &number))),
            }
        });
        Ok(Value::Object(Object::from_pairs(filled.collect::<Result<_, ArrayError>>()?)))
    }

    fn files(&self, field: &'static str, files: &Object, number: &str) -> Result<Value, ArrayError> {
        let filled: Vec<_> =
            files.iter().map(|(name, value)| (self.text(name, number), self.value(value, number))).collect();
        let mut names: Vec<_> = filled.iter().map(|(name, _)| name).collect();
        names.sort();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ArrayError::SameName { field, name: twice[0].to_string_lossy().into_owned() });
        }
        Ok(Value::Object(Object::from_pairs(filled)))
    }

    /// Recurses as deep as the JSON reader lets values nest.
    fn value(&self, value: &Value, number: &str) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text, number)),
            Value::Array(items) => Value::Array(items.iter().map(|item| self.value(item, number)).collect()),
            Value::Object(object) => Value::Object(Object::from_pairs(
                object.iter().map(|(key, value)| (key.clone(), self.value(value, number))).collect(),
            )),
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }

    fn text(&self, text: &JsString, number: &str) -> JsString {
        if let Some(text) = text.as_str() {
            return text.replace(&self.placeholder, number).into();
        }
        let placeholder: Vec<u16> = self.placeholder.encode_utf16().collect();
        let units: Vec<u16> = text.units().collect();
        let (mut filled, mut rest) = (Vec::with_capacity(units.len()), units.as_slice());
        while let Some(at) = rest.windows(placeholder.len()).position(|window| window == placeholder) {
            filled.extend_from_slice(&rest[..at]);
            filled.extend(number.encode_utf16());
            rest = &rest[at + placeholder.len()..];
        }
        filled.extend_from_slice(rest);
        JsString::from_utf16(filled)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be a whole number in range")]
fn whole(value: &Value) -> Option<u64> {
    let number = value.as_f64()?;
    // The bound is a power of two, so the comparison is exact.
    (number >= 0.0 && number.fract() == 0.0 && number < 9_007_199_254_740_992.0).then_some(number as u64)
}
