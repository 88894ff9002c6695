//! A run as the original's worker does one, without a container: inputs, log lines, time, outputs, the end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::http::{Http, digest_of};
use super::jobs::{Kind, now, plan};
use super::scene::Scene;

/// How often a run prints a line.
const LINE_EVERY: Duration = Duration::from_millis(700);

/// How long the container of a deleted job takes to be gone.
const WIPED_WITHIN: Duration = Duration::from_millis(300);

/// The size of a large output: far over the 200 bytes that travel with a result.
const OUTPUT_BYTES: usize = 20_000;

/// What a run tells its worker.
pub(super) enum Event {
    /// A frame to be sent.
    Frame(String),
    /// It is over; the value is what would be reported.
    Ended {
        job: String,
        /// When it was claimed: this names the attempt.
        claimed: u64,
        value: Value,
    },
}

/// One run.
pub(super) struct Run {
    pub(super) scene: Arc<Scene>,
    pub(super) http: Http,
    pub(super) worker: String,
    pub(super) job: String,
    pub(super) claimed: u64,
    pub(super) definition: Value,
    /// The container is killed, and nothing reported.
    pub(super) killed: CancellationToken,
    /// Its files are taken away, of which it dies.
    pub(super) wiped: CancellationToken,
    pub(super) events: mpsc::Sender<Event>,
}

impl Run {
    /// Runs until the end or the kill.
    pub(super) async fn run(self) {
        let killed = self.killed.clone();
        tokio::select! {
            () = killed.cancelled() => {}
            value = self.value() => {
                let ended = Event::Ended { job: self.job.clone(), claimed: self.claimed, value };
                let _ = self.events.send(ended).await;
            }
        }
    }

    async fn value(&self) -> Value {
        let started = Instant::now();
        let mut lines = Vec::new();
        let (reason, result) = tokio::select! {
            done = self.steps(&mut lines) => done,
            () = async { self.wiped.cancelled().await; sleep(WIPED_WITHIN).await } => {
                ("Error", json!({ "error": "ENOENT: the outputs' folder is gone" }))
            }
        };
        let mut result = result;
        result["duration"] = json!(super::scene::millis(started.elapsed()));
        if result["logs"].is_null() {
            result["logs"] = Value::Array(lines);
        }
        json!({ "type": "Finished", "reason": reason, "worker": self.worker, "time": now(), "result": result })
    }

    async fn steps(&self, lines: &mut Vec<Value>) -> (&'static str, Value) {
        for (name, input) in self.definition["inputs"].as_object().into_iter().flatten() {
            let Some(url) = input["value"].as_str().filter(|_| input["type"] == "url") else { continue };
            match self.http.download(url, digest_of(url)).await {
                Ok(_) => self.scene.deeds.blobs_got.add(1),
                Err(error) => self.scene.wrong.say(format!("input {name} of job {:.8}: {error:#}", self.job)),
            }
        }
        self.tell("docker image pull", json!([["latest: Pulling from library/alpine", now()]])).await;
        let (kind, takes) = plan(&self.definition);
        let (until, mut next) = (Instant::now() + takes, Instant::now());
        loop {
            // The attempt is in each line, so that it can be told whose result and whose logs are kept.
            let line = json!([format!("{} {} {}\n", self.worker, self.claimed, lines.len()), now()]);
            self.tell("Running", json!([line])).await;
            self.scene.deeds.log_lines_sent.add(1);
            lines.push(line);
            next += LINE_EVERY;
            if next >= until {
                break;
            }
            sleep_until(next).await;
        }
        sleep_until(until).await;
        match kind {
            Kind::Plain => ("Success", json!({ "StatusCode": 0, "isTimedOut": false, "outputs": small() })),
            Kind::Exit => ("Success", json!({ "StatusCode": 3, "isTimedOut": false, "outputs": {} })),
            Kind::Error => ("Error", json!({ "error": "Error", "outputs": {} })),
            Kind::TimedOut => ("TimedOut", json!({ "StatusCode": 137, "isTimedOut": true, "outputs": {} })),
            Kind::Output => match self.output().await {
                Ok(outputs) => ("Success", json!({ "StatusCode": 0, "isTimedOut": false, "outputs": outputs })),
                Err(error) => {
                    self.scene.wrong.say(format!("an output of job {:.8} is not stored: {error:#}", self.job));
                    ("Error", json!({ "error": error.to_string() }))
                }
            },
        }
    }

    /// Uploads a file and names it.
    async fn output(&self) -> anyhow::Result<Value> {
        let line = format!("{} {}\n", self.worker, self.claimed);
        let url = self.http.upload(line.repeat(OUTPUT_BYTES / line.len()).into_bytes(), true).await?;
        self.scene.deeds.blobs_put.add(1);
        Ok(json!({ "plots/a.txt": { "type": "url", "value": url } }))
    }

    async fn tell(&self, step: &str, logs: Value) {
        let payload = json!({ "jobId": self.job, "step": step, "logs": logs });
        let frame = json!({ "type": "JobStatusLogs", "payload": payload }).to_string();
        let _ = self.events.send(Event::Frame(frame)).await;
    }
}

fn small() -> Value {
    json!({ "n.txt": { "type": "base64", "value": "NDIK" } })
}
