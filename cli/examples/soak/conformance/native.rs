//! Our own workers and pages on a queue that the original's share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use protocol::event::RunOutcome;
use protocol::id::UnixMillis;
use protocol::native::{FinishedRun, FromBroker, HeldRun, LogLine, LogStep, ToBroker};
use protocol::original::job::is_shown;
use protocol::queue::QueueState;
use protocol::raw::RawJson;
use serde_json::{Value, json};
use tokio::time::{Instant, interval, sleep_until};

use super::jobs::{Job, now, plan};
use super::scene::{Phase, Scene, millis};
use super::worker::SLOTS;
use crate::client::{Receiver, Sender, capacity, client_hello, connect, worker_hello};
use crate::random::Random;
use crate::submitters::submission;

const RENEW_EVERY: Duration = Duration::from_secs(5);
const FAR: Duration = Duration::from_secs(3600);
const SUBMIT_MS: (u64, u64) = (10_000, 25_000);

/// A worker of our own kind.
pub(super) struct Worker {
    scene: Arc<Scene>,
    id: String,
    sender: Sender,
    receiver: Receiver,
    running: BTreeMap<HeldRun, (Instant, Value)>,
    grants: u64,
    last_req: u64,
}

impl Worker {
    pub(super) async fn new(scene: Arc<Scene>, queue: &str, id: String) -> anyhow::Result<Self> {
        let hello = worker_hello(id.parse()?, u32::try_from(SLOTS)?, Vec::new());
        let (sender, receiver, _) = connect(&scene.address, queue, hello).await?;
        Ok(Self { scene, id, sender, receiver, running: BTreeMap::new(), grants: 0, last_req: 0 })
    }

    pub(super) async fn run(mut self) {
        let (scene, id) = (self.scene.clone(), self.id.clone());
        tokio::select! {
            () = scene.stop.cancelled() => {}
            Err(error) = self.serve() => scene.wrong.say(format!("our worker {id}: {error:#}")),
        }
    }

    async fn serve(&mut self) -> anyhow::Result<()> {
        self.claim().await?;
        let mut renew = interval(RENEW_EVERY);
        loop {
            let next = self.running.values().map(|(ends, _)| *ends).min();
            tokio::select! {
                message = self.receiver.next() => self.hear(message?).await?,
                () = sleep_until(next.unwrap_or_else(|| Instant::now() + FAR)) => self.report().await?,
                _ = renew.tick() => {
                    let runs = self.running.keys().copied().collect();
                    self.sender.send(&ToBroker::Renew { runs }).await?;
                }
            }
        }
    }

    async fn hear(&mut self, message: FromBroker) -> anyhow::Result<()> {
        match message {
            FromBroker::Granted { run, definition, .. } => {
                self.grants += 1;
                let (kind, takes) = plan(&serde_json::from_str(definition.as_str())?);
                let text = format!("{} {} 0\n", self.id, run.run);
                let at = now();
                let line = LogLine { text: text.clone(), at_ms: UnixMillis(at), stderr: false };
                let logs = ToBroker::RunLogs { run, step: LogStep::Run, first: 0, lines: vec![line] };
                self.sender.send(&logs).await?;
                let result = json!({ "StatusCode": 0, "duration": millis(takes), "isTimedOut": false,
                    "logs": [[text, at]], "outputs": {}, "kind": format!("{kind:?}") });
                self.running.insert(run, (Instant::now() + takes, result));
                if self.running.len() > SLOTS {
                    bail!("it was granted {} runs at once", self.running.len());
                }
                Ok(())
            }
            FromBroker::Stop { run, .. } => {
                self.running.remove(&run);
                self.claim().await
            }
            FromBroker::Ok { .. } => Ok(()),
            // It ended while the order to stop it was on its way.
            FromBroker::Rejected { code, .. } if code == "stale_run" || code == "not_running" => Ok(()),
            other => bail!("it is told {other:?}"),
        }
    }

    async fn report(&mut self) -> anyhow::Result<()> {
        let due = |(ends, _): &(Instant, Value)| *ends <= Instant::now();
        let ended: Vec<HeldRun> = self.running.iter().filter(|(_, run)| due(run)).map(|(run, _)| *run).collect();
        for run in ended {
            let (_, result) = self.running.remove(&run).context("it was there")?;
            let finished =
                json!({ "type": "Finished", "reason": "Success", "worker": self.id, "time": now(), "result": result });
            let run = FinishedRun {
                job: run.job,
                run: run.run,
                outcome: RunOutcome::Success,
                exit_code: Some(0),
                image: None,
                duration_ms: None,
                finished: RawJson::new(finished.to_string()),
            };
            self.last_req += 1;
            self.sender.send(&ToBroker::Finish { req: self.last_req, run }).await?;
            self.scene.deeds.ended_native.add(1);
        }
        self.claim().await
    }

    async fn claim(&mut self) -> anyhow::Result<()> {
        let free = capacity(u32::try_from(SLOTS.saturating_sub(self.running.len()))?);
        self.sender.send(&ToBroker::Claim { free, grants_seen: self.grants, req: None }).await
    }
}

/// A page of our own kind: it folds the queue, and submits now and then.
pub(super) struct Page {
    pub(super) scene: Arc<Scene>,
    pub(super) queue: String,
    pub(super) name: String,
    pub(super) state: Arc<Mutex<Option<QueueState>>>,
    pub(super) random: Random,
}

impl Page {
    pub(super) async fn run(mut self) {
        let scene = self.scene.clone();
        let (queue, name) = (self.queue.clone(), self.name.clone());
        tokio::select! {
            () = scene.stop.cancelled() => {}
            Err(error) = self.serve(&queue) => scene.wrong.say(format!("our page {name}: {error:#}")),
        }
    }

    async fn serve(&mut self, queue: &str) -> anyhow::Result<()> {
        let (mut sender, mut receiver, _) = connect(&self.scene.address, queue, client_hello(true)).await?;
        let mut submit_at = Instant::now();
        let mut req = 0;
        loop {
            tokio::select! {
                message = receiver.next() => self.hear(message?)?,
                () = sleep_until(submit_at) => {
                    submit_at += self.random.millis(SUBMIT_MS.0, SUBMIT_MS.1);
                    if self.scene.phase() == Phase::Load {
                        let job = Job::random(&mut self.random, None)?;
                        req += 1;
                        let job = submission(RawJson::new(job.definition.to_string()));
                        sender.send(&ToBroker::Submit { req, job }).await?;
                        self.scene.deeds.submitted.add(1);
                    }
                }
            }
        }
    }

    fn hear(&self, message: FromBroker) -> anyhow::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match message {
            FromBroker::Snapshot { state: bytes, .. } => *state = Some(QueueState::decode(&bytes.0)?),
            FromBroker::Events { records, .. } => {
                let state = state.as_mut().context("news before the state")?;
                for record in records {
                    state.apply_bytes(&record.0)?;
                }
            }
            FromBroker::Presence { .. } | FromBroker::Ok { .. } => {}
            other => bail!("it is told {other:?}"),
        }
        Ok(())
    }
}

/// The jobs that a folded state shows, as the original's dialect writes them.
pub(super) fn shown(state: &QueueState) -> anyhow::Result<BTreeMap<String, Value>> {
    let jobs = state.jobs().iter().filter(|(_, job)| is_shown(&job.status));
    jobs.map(|(id, job)| Ok((id.to_string(), serde_json::to_value(protocol::original::JobEntry::new(job))?))).collect()
}
