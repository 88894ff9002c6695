//! The jobs of the run, what the simulated workers do with them, and the frames about them that pages and command lines send.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use protocol::definition::Definition;
use serde_json::{Value, json};

use crate::random::Random;

/// How long a run takes, in milliseconds; some outlast the time that a worker thinks before it lets go.
const TAKES_MS: (u64, u64) = (1_500, 6_000);
const TAKES_LONG_MS: (u64, u64) = (10_000, 20_000);
const LONG_PERCENT: u64 = 25;

/// The longest definition that the original's worker survives being sent, in bytes of its stored form.
const STORED_BYTES_MAX: usize = 65_536;

/// A job that somebody wants.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) id: String,
    pub(super) definition: Value,
    /// Absent: nobody said, as on a page without settings.
    pub(super) namespace: Option<String>,
}

/// What a simulated run of a job comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Exit code 0.
    Plain,
    /// Exit code 3: a success too, to the original.
    Exit,
    /// It cannot be run.
    Error,
    /// It takes too long.
    TimedOut,
    /// It writes a file that is too large to travel with the result.
    Output,
}

impl Job {
    /// A definition that is another each time, of a random kind.
    pub(super) fn random(random: &mut Random, namespace: Option<String>) -> anyhow::Result<Self> {
        let kind = match random.between(0, 20) {
            0 | 1 => "exit",
            2 => "error",
            3 => "timeout",
            4..=7 => "output",
            _ => "plain",
        };
        let (from, to) = if random.percent(LONG_PERCENT) { TAKES_LONG_MS } else { TAKES_MS };
        let takes = random.between(from, to);
        Self::of(simple(kind, takes), namespace)
    }

    /// The job of a definition.
    pub(super) fn of(definition: Value, namespace: Option<String>) -> anyhow::Result<Self> {
        let read = Definition::parse(definition.to_string().as_bytes()).context("a definition of our own")?;
        Ok(Self { id: read.job_id().to_string(), definition, namespace })
    }

    /// The frame that submits it.
    pub(super) fn queued(&self) -> String {
        let control = self.namespace.as_ref().map_or(json!({}), |namespace| json!({ "namespace": namespace }));
        let enqueued = json!({ "id": self.id, "definition": self.definition, "control": control });
        let value = json!({ "type": "Queued", "time": now(), "enqueued": enqueued });
        change("", &self.id, "Queued", &value)
    }

    /// The body that submits it over HTTP.
    pub(super) fn body(&self) -> Value {
        let control = self.namespace.as_ref().map_or(Value::Null, |namespace| json!({ "namespace": namespace }));
        json!({ "id": self.id, "definition": self.definition, "control": control })
    }

    /// The frame of a page's stop button, which names no namespace.
    pub(super) fn cancelled(&self) -> String {
        let value =
            json!({ "type": "Finished", "reason": "Cancelled", "message": "Job cancelled by client", "time": now() });
        change("", &self.id, "Finished", &value)
    }

    /// The frame of its delete button, which does.
    pub(super) fn deleted(&self) -> String {
        let namespace = self.namespace.as_deref().unwrap_or("_");
        let value = json!({ "type": "Finished", "reason": "Deleted", "time": now(), "namespace": namespace });
        change("", &self.id, "Finished", &value)
    }
}

/// A definition that is another each time.
pub(super) fn simple(kind: &str, takes_ms: u64) -> Value {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    json!({
        "image": "alpine:3.20",
        "command": format!("work {number}"),
        "env": { "KIND": kind, "MILLIS": takes_ms.to_string() },
    })
}

/// A state change as everybody sends it.
pub(super) fn change(tag: &str, job: &str, state: &str, value: &Value) -> String {
    let payload = json!({ "tag": tag, "state": state, "job": job, "value": value });
    json!({ "type": "StateChange", "payload": payload }).to_string()
}

/// What a definition asks a simulated worker to do, and for how long.
pub(super) fn plan(definition: &Value) -> (Kind, Duration) {
    let kind = match definition["env"]["KIND"].as_str() {
        Some("exit") => Kind::Exit,
        Some("error") => Kind::Error,
        Some("timeout") => Kind::TimedOut,
        Some("output") => Kind::Output,
        _ => Kind::Plain,
    };
    let takes = definition["env"]["MILLIS"].as_str().and_then(|millis| millis.parse().ok());
    (kind, Duration::from_millis(takes.unwrap_or(TAKES_MS.0)))
}

/// Whether the original's worker would die of a definition, and why: its store refuses large ones, its parser throws on others.
pub(super) fn kills(definition: &Value) -> Option<&'static str> {
    if definition.to_string().len() >= STORED_BYTES_MAX {
        return Some("it is too large for its store");
    }
    let throws = |field: &str| {
        let text = definition[field].as_str().unwrap_or_default();
        text.contains("${}") || text.match_indices("${").any(|(at, _)| !text[at..].contains('}'))
    };
    (throws("command") || throws("entrypoint")).then_some("its parser throws on the command")
}

/// The time as peers write it.
pub(super) fn now() -> u64 {
    broker::clock::now().0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kills_a_worker_is_known() {
        assert_eq!(kills(&simple("plain", 5)), None);
        assert!(
            kills(&json!({ "command": "echo ${A" })).is_some() && kills(&json!({ "command": "echo ${}" })).is_some()
        );
        assert_eq!(kills(&json!({ "command": "echo ${A}" })), None);
        assert!(kills(&json!({ "command": "x".repeat(STORED_BYTES_MAX) })).is_some());
    }

    #[test]
    fn each_job_is_another_and_says_what_it_comes_to() {
        let [one, other] = [(); 2].map(|()| Job::of(simple("exit", 7), None).unwrap());
        assert_ne!(one.id, other.id);
        assert_eq!(plan(&one.definition), (Kind::Exit, Duration::from_millis(7)));
    }
}
