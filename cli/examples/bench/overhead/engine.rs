//! What the engine says of containers while they come and go, with its own times.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::{TAG, until};

/// What names a job's container.
const LABEL_ID: &str = "container.mtfm.io/id";

/// Nanoseconds since 1970, as the engine counts.
pub(super) fn now_ns() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "compared with the engine's own times on the same machine")]
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// When what happened to a container.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Steps {
    pub(super) create: Option<u64>,
    pub(super) start: Option<u64>,
    pub(super) die: Option<u64>,
    pub(super) destroy: Option<u64>,
}

/// Listens to the engine, as long as it lives.
pub(super) struct Told {
    _listener: Child,
    steps: Arc<Mutex<HashMap<String, Steps>>>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "Action")]
    action: String,
    #[serde(rename = "Actor")]
    actor: Actor,
    #[serde(rename = "timeNano")]
    time_ns: u64,
}

#[derive(Deserialize)]
struct Actor {
    #[serde(rename = "Attributes", default)]
    attributes: HashMap<String, String>,
}

impl Told {
    pub(super) async fn listen() -> anyhow::Result<Self> {
        let mut listener = Command::new("docker")
            .args(["events", "--filter", "type=container", "--format", "{{json .}}"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let lines = BufReader::new(listener.stdout.take().context("piped")?).lines();
        let steps: Arc<Mutex<HashMap<String, Steps>>> = Arc::default();
        let heard = Arc::clone(&steps);
        tokio::spawn(async move {
            let mut lines = lines;
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(event) = serde_json::from_str::<Event>(&line) {
                    note(&heard, &event);
                }
            }
        });
        Ok(Self { _listener: listener, steps })
    }

    /// What was heard of the container with that tag.
    pub(super) fn steps(&self, tag: &str) -> Steps {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).get(tag).copied().unwrap_or_default()
    }

    /// Waits until all of them are removed, so that no removal counts for what comes next.
    pub(super) async fn all_gone(&self, tags: Vec<String>) -> anyhow::Result<()> {
        until(|| tags.iter().all(|tag| self.steps(tag).destroy.is_some()), "containers are removed").await
    }
}

fn note(steps: &Mutex<HashMap<String, Steps>>, event: &Event) {
    let attributes = &event.actor.attributes;
    let Some(tag) = attributes.get(LABEL_ID).or_else(|| attributes.get(TAG)) else { return };
    let mut steps = steps.lock().unwrap_or_else(PoisonError::into_inner);
    let steps = steps.entry(tag.clone()).or_default();
    let at = match event.action.as_str() {
        "create" => &mut steps.create,
        "start" => &mut steps.start,
        "die" => &mut steps.die,
        "destroy" => &mut steps.destroy,
        _ => return,
    };
    *at = Some(event.time_ns);
}
