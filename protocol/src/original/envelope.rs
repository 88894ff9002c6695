//! What every message of the dialect is wrapped in, written and read; and the one payload that travels both ways alike.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::id::JobId;
use crate::native::{LogLine, LogStep};

/// A message, read. What is in it depends on its kind.
#[derive(Deserialize)]
pub(super) struct Envelope<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) payload: Option<&'a RawValue>,
}

/// A message's text.
pub(super) fn message(kind: &'static str, payload: impl Serialize) -> String {
    #[derive(Serialize)]
    struct Message<P> {
        #[serde(rename = "type")]
        kind: &'static str,
        payload: P,
    }
    serde_json::to_string(&Message { kind, payload }).expect("messages are plain data")
}

/// Lines of a run: from its worker under one name, to pages under another.
pub(super) fn logs(kind: &'static str, job: JobId, step: LogStep, logs: &[LogLine]) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Logs<'a> {
        job_id: JobId,
        step: LogStep,
        logs: &'a [LogLine],
    }
    message(kind, Logs { job_id: job, step, logs })
}
