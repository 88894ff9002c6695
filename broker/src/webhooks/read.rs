//! Reading what a submission's `control.callbacks` asks for.

use protocol::native::{Callback, Callbacks};
use protocol::raw::RawJson;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::call::Kind;
use crate::refusal::{Refusal, RefusalKind};

#[derive(Deserialize)]
struct Asked<'a> {
    #[serde(borrow, default)]
    queued: Option<&'a RawValue>,
    #[serde(borrow, default)]
    finished: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct One<'a> {
    #[serde(borrow, default)]
    url: Option<&'a RawValue>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
}

/// Reads `control.callbacks`. JavaScript's no is nothing asked, and so is a callback without an address, as the original has it.
///
/// # Errors
///
/// [`Refusal`] when it has another shape.
pub(crate) fn read_callbacks(callbacks: Option<&RawValue>) -> Result<Callbacks, Refusal> {
    let Some(callbacks) = callbacks.map(RawValue::get).filter(|text| !is_nothing(text)) else {
        return Ok(Callbacks::default());
    };
    let asked: Asked<'_> = object(callbacks, "control.callbacks")?;
    let one = |kind: Kind, asked: Option<&RawValue>| -> Result<Option<Callback>, Refusal> {
        let Some(text) = asked.map(RawValue::get).filter(|text| !is_nothing(text)) else { return Ok(None) };
        let field = format!("control.callbacks.{}", kind.name());
        let One { url, payload } = object(text, &field)?;
        let Some(url) = url.map(RawValue::get).filter(|url| !is_nothing(url)) else { return Ok(None) };
        let url: String = serde_json::from_str(url).map_err(|_| bad(format!("{field}.url must be text")))?;
        let payload = payload.map(RawValue::get).filter(|payload| *payload != "null").map(RawJson::new);
        Ok(Some(Callback { url, payload }))
    };
    Ok(Callbacks { queued: one(Kind::Queued, asked.queued)?, finished: one(Kind::Finished, asked.finished)? })
}

fn object<'a, T: Deserialize<'a>>(text: &'a str, field: &str) -> Result<T, Refusal> {
    let read = if text.starts_with('{') { serde_json::from_str(text).ok() } else { None };
    read.ok_or_else(|| bad(format!("{field} must be an object")))
}

fn bad(text: String) -> Refusal {
    Refusal::new(RefusalKind::BadRequest, "bad_callbacks", text)
}

/// Whether JavaScript takes the value of a JSON text for a no.
fn is_nothing(text: &str) -> bool {
    matches!(text, "null" | "false" | "\"\"" | "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Callbacks, String> {
        let raw: &RawValue = serde_json::from_str(text).unwrap();
        read_callbacks(Some(raw)).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn addresses_and_payloads_are_read_as_they_stand() {
        let read =
            read(r#" {"queued":{"url":"http:\/\/a\/","payload":{"k": 1e400}},"finished":{"url":"b"},"x":1}"#).unwrap();
        let queued = Callback { url: "http://a/".to_owned(), payload: Some(RawJson::new(r#"{"k": 1e400}"#)) };
        assert_eq!(
            read,
            Callbacks { queued: Some(queued), finished: Some(Callback { url: "b".to_owned(), payload: None }) }
        );
    }

    #[test]
    fn nothing_asked_is_nothing() {
        assert!(read_callbacks(None).unwrap().is_empty());
        for text in ["null", "false", "{}", r#"{"queued":null}"#, r#"{"queued":{}}"#, r#"{"finished":{"url":""}}"#] {
            assert!(read(text).unwrap().is_empty(), "{text}");
        }
    }

    #[test]
    fn another_shape_is_refused_with_the_field() {
        for (text, field) in [
            ("7", "control.callbacks must"),
            ("[]", "control.callbacks must"),
            (r#"{"queued":"http://a"}"#, "control.callbacks.queued must"),
            (r#"{"finished":{"url":7}}"#, "control.callbacks.finished.url must"),
        ] {
            let refused = read(text).unwrap_err();
            assert!(refused.starts_with(field), "{refused}");
        }
    }
}
