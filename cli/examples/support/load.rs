//! A mixed load on a broker: submitters over websocket and REST, cancels, workers and watchers, on several queues.
//!
//! All of them come back when the broker was gone, with what was not answered, and tell a [`Listener`] what they were told.
#![allow(dead_code, reason = "each example uses its part")]

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use protocol::id::{Digest, QueueKey, WorkerId};
use protocol::native::HeldRun;
use protocol::raw::RawJson;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::random::Random;
use crate::told::{self, Told};
use crate::{submitters, workers};

/// How long to wait before the next try when the broker is not there.
const RETRY: Duration = Duration::from_millis(20);

/// Workers on each queue.
const WORKERS_PER_QUEUE: usize = 2;

/// Who hears what the broker tells.
pub(crate) trait Listener: Send + Sync {
    /// The broker told this.
    fn told(&self, told: Told);
    /// The broker did something that it must never do.
    fn wrong(&self, text: String);
}

/// What the load looks like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// The pause between two submissions of one submitter.
    pub(crate) pace: Duration,
    /// How many of 100 runs take seconds, and so outlast a broker.
    pub(crate) long_runs_percent: u64,
    /// The most bytes of what pads a body; small ones are far more frequent than large ones.
    pub(crate) body_bytes_max: usize,
}

/// What every part of a load knows.
#[derive(Clone)]
pub(crate) struct Load {
    /// The broker's `host:port`.
    pub(crate) address: String,
    /// What the load looks like.
    pub(crate) shape: Shape,
    /// Who hears what is told.
    pub(crate) listener: Arc<dyn Listener>,
    /// Cancelled to end all of it.
    pub(crate) stop: CancellationToken,
}

impl Load {
    /// Starts everything on each of the queues; workers take up the runs that `before` says they hold.
    pub(crate) fn start(&self, queues: &[String], before: &[Told], seed: u64) -> JoinSet<()> {
        let mut random = Random::new(seed);
        let mut tasks = JoinSet::new();
        for queue in queues {
            let label = |part: &str| format!("{seed}-{queue}-{part}");
            tasks.spawn(submitters::over_socket(self.clone(), queue.clone(), random.fork(), label("socket")));
            tasks.spawn(submitters::over_rest(self.clone(), queue.clone(), random.fork(), label("rest")));
            tasks.spawn(workers::watch(self.clone(), queue.clone()));
            for number in 1..=WORKERS_PER_QUEUE {
                let id: WorkerId = format!("{queue}-worker-{number}").parse().expect("a short printable name");
                let held =
                    queue.parse().map(|name| told::held_by(before, QueueKey::of(&name), &id)).unwrap_or_default();
                tasks.spawn(workers::work(self.clone(), queue.clone(), id, random.fork(), held));
            }
        }
        tasks
    }

    /// Runs one connection after the other until the load is stopped.
    pub(crate) async fn keep<S>(&self, state: &mut S, connection: impl AsyncFn(&mut S) -> anyhow::Result<()>) {
        while !self.stop.is_cancelled() {
            let lost = tokio::select! {
                () = self.stop.cancelled() => return,
                ended = connection(state) => ended.is_err(),
            };
            if lost {
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Waits until `ready` holds, for at most `within`.
    pub(crate) async fn wait_for<F: Future<Output = bool>>(within: Duration, ready: impl Fn() -> F) -> bool {
        let deadline = tokio::time::Instant::now() + within;
        while !ready().await {
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(RETRY).await;
        }
        true
    }
}

/// How many bytes pad a body: mostly few, some up to what fits into a segment, a few more than that.
fn padding_bytes(random: &mut Random, bytes_max: usize) -> usize {
    let bytes = match random.between(0, 100) {
        0..=74 => random.index(0, 2_000),
        75..=96 => random.index(2_000, 60 * 1024),
        _ => random.index(60 * 1024, 300 * 1024),
    };
    bytes.min(bytes_max)
}

/// Text of that many bytes, which does not compress.
pub(crate) fn padding(random: &mut Random, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 16);
    while text.len() < bytes {
        text.push_str(&format!("{:016x}", random.next()));
    }
    text.truncate(bytes);
    text
}

/// A definition that no other has, and the blake3 of its text.
pub(crate) fn definition(random: &mut Random, bytes_max: usize, label: &str) -> (RawJson, Digest) {
    let bytes = padding_bytes(random, bytes_max);
    let pad = padding(random, bytes);
    let inputs = json!({ "data": { "type": "utf8", "value": pad } });
    let text =
        json!({ "image": "nothing", "command": "true", "env": { "LABEL": label }, "inputs": inputs }).to_string();
    let digest = Digest::of(text.as_bytes());
    (RawJson::new(text), digest)
}

/// A result of a run in the shape that clients know, and the blake3 of its text.
pub(crate) fn result(random: &mut Random, bytes_max: usize, run: HeldRun, worker: &WorkerId) -> (RawJson, Digest) {
    let bytes = padding_bytes(random, bytes_max);
    let logs = json!([[padding(random, bytes), 0]]);
    let inner = json!({ "StatusCode": 0, "logs": logs, "outputs": {}, "run": run.run });
    let text =
        json!({ "type": "Finished", "reason": "Success", "worker": worker, "time": 0, "result": inner }).to_string();
    let digest = Digest::of(text.as_bytes());
    (RawJson::new(text), digest)
}

/// A map of what was asked and not answered, by request number.
pub(crate) type Unanswered<T> = BTreeMap<protocol::native::RequestId, T>;
