//! The text behind `#` of a link: what stands before its first `?`, and pairs joined by `&`, taken as they are.

use crate::json::JsString;

/// A fragment, taken apart.
///
/// Nothing is percent-decoded: what a browser shows in its address is what a parameter's value is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// What stands between `#` and `?`. It means nothing, and is kept when the link is written again: old links have it.
    pub pre: String,
    /// In JavaScript's order of properties: numbers first, then as they came.
    params: Vec<(String, String)>,
}

impl Fragment {
    /// Takes a fragment apart, with or without its `#`. Total: every text is a fragment.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let text = text.trim_start_matches('#');
        let Some((pre, pairs)) = text.split_once('?') else {
            return Self { pre: text.to_owned(), params: Vec::new() };
        };
        let pairs = pairs.split('&').filter(|piece| !piece.is_empty());
        let pairs = pairs.map(|piece| piece.split_once('=').unwrap_or((piece, "")));
        Self { pre: pre.to_owned(), params: in_property_order(pairs) }
    }

    /// The value of a parameter, as it stands in the link.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.params.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// All parameters, in JavaScript's order of properties.
    pub fn params(&self) -> impl Iterator<Item = (&str, &str)> {
        self.params.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Sets a parameter, or takes it out; whether that changed anything.
    pub fn set(&mut self, key: &str, value: Option<&str>) -> bool {
        if self.get(key) == value {
            return false;
        }
        let others =
            self.params.iter().filter(|(name, _)| name != key).map(|(name, value)| (name.as_str(), value.as_str()));
        self.params = in_property_order(others.chain(value.map(|value| (key, value))));
        true
    }
}

/// Of a key given twice the last value stands, at the first one's place, as in a JavaScript object.
fn in_property_order<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<(String, String)> {
    let pairs = pairs.map(|(key, value)| (JsString::from(key), value.into())).collect();
    let object = crate::json::Object::from_pairs(pairs);
    let text = |text: &JsString| text.to_string_lossy().into_owned();
    object.iter().map(|(key, value)| (text(key), value.as_js_string().map(text).unwrap_or_default())).collect()
}

/// The fragment without its `#`: keys sorted by UTF-16 code units, values verbatim. Without parameters there is no `?`.
impl std::fmt::Display for Fragment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.pre)?;
        let mut sorted: Vec<_> = self.params().map(|(key, value)| (JsString::from(key), key, value)).collect();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        for (index, (_, key, value)) in sorted.into_iter().enumerate() {
            write!(f, "{}{key}={value}", if index == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}
