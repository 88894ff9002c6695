//! A page as the original is one: its heartbeat, how it comes back, what it fetches, and somebody who clicks.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval};

use super::http::Http;
use super::jobs::{Job, simple};
use super::scene::{Order, Phase, Pulse, Role, Scene, Seen, Sockets, millis};
use super::wire::{PING, PONG, Wire, message};
use super::worker::hear;
use crate::random::Random;

/// The original's numbers.
const PING_AFTER: Duration = Duration::from_secs(5);
const PONG_WITHIN: Duration = Duration::from_secs(10);
const CONNECT_WITHIN: Duration = Duration::from_secs(4);
const RETRY_MS: (u64, u64) = (1_000, 5_000);
const RETRY_MAX: Duration = Duration::from_secs(10);
const ASK_AFTER: Duration = Duration::from_millis(200);

/// How exactly it keeps time.
const TICK: Duration = Duration::from_millis(100);

/// How often somebody clicks.
const CLICK_MS: (u64, u64) = (15_000, 40_000);

/// How soon a submission is shown to whoever submitted it.
pub(super) const SHOWN_WITHIN: Duration = Duration::from_secs(5);

/// How many of its own jobs somebody remembers.
const OWN_MAX: usize = 8;

/// The size of an input that is uploaded: over the 200 bytes that travel with a definition.
const INPUT_BYTES: usize = 3_000;

/// How long a job would take that is stopped before: longer than a worker thinks before it lets go.
const STOPPED_MS: u64 = 40_000;

/// What a click does, in steps.
enum Step {
    Submit(Job),
    Cancel(Job),
    Delete(Job),
    Query(String),
}

pub(super) struct Page {
    scene: Arc<Scene>,
    seen: Arc<Seen>,
    http: Http,
    orders: mpsc::Receiver<Order>,
    random: Random,
    /// Who it submits for; absent: the default.
    namespace: Option<String>,
    /// Whether it submits its job again whenever it connects.
    autostart: bool,
    wire: Option<Wire>,
    pulse: Pulse,
    ping_at: Option<Instant>,
    pong_by: Option<Instant>,
    connect_at: Instant,
    retry: Duration,
    /// What was submitted last without a socket: only that is remembered.
    remembered: Option<Job>,
    /// The jobs somebody knows of, the newest last.
    own: VecDeque<Job>,
    steps: VecDeque<(Instant, Step)>,
    click_at: Option<Instant>,
    /// Submitted, and not shown yet.
    expected: HashMap<String, Instant>,
    /// Ended jobs whose results it has.
    results: HashMap<String, Value>,
}

impl Page {
    pub(super) fn new(
        scene: Arc<Scene>,
        seen: Arc<Seen>,
        http: Http,
        orders: mpsc::Receiver<Order>,
        mut random: Random,
        (namespace, autostart): (Option<String>, bool),
    ) -> Self {
        let retry = random.millis(RETRY_MS.0, RETRY_MS.1);
        Self {
            scene,
            seen,
            http,
            orders,
            random,
            namespace,
            autostart,
            wire: None,
            pulse: Pulse::new(),
            ping_at: None,
            pong_by: None,
            connect_at: Instant::now(),
            retry,
            remembered: None,
            own: VecDeque::new(),
            steps: VecDeque::new(),
            click_at: None,
            expected: HashMap::new(),
            results: HashMap::new(),
        }
    }

    /// Is there until the run is over.
    pub(super) async fn run(mut self) {
        let (stop, mut ticks) = (self.scene.stop.clone(), interval(TICK));
        loop {
            let done = tokio::select! {
                () = stop.cancelled() => break,
                text = hear(&mut self.wire) => match text {
                    Ok(text) => self.hear(&text).await,
                    Err(error) => Err(self.lost(error)),
                },
                Some(order) = self.orders.recv() => self.order(order).await,
                _ = ticks.tick() => self.on_time().await,
            };
            if let Err(error) = done {
                self.scene.wrong.say(format!("page {}: {error:#}", self.seen.name));
            }
            self.seen.set_connected(self.wire.is_some());
            self.seen.set_busy(!self.steps.is_empty());
        }
        for job in self.expected.keys() {
            self.scene.wrong.say(format!("page {} was never shown job {job:.8}", self.seen.name));
        }
        self.pulse.cut(self.scene.sockets(Role::Page));
    }

    fn sockets(&self) -> &Sockets {
        self.scene.sockets(Role::Page)
    }

    async fn on_time(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        if self.wire.is_none() {
            return if self.connect_at <= now { self.connect().await } else { Ok(()) };
        }
        if self.pong_by.is_some_and(|by| by <= now) {
            self.sockets().watchdogs.add(1);
            self.close(Duration::ZERO);
            anyhow::bail!("reconnects: no PONG for 10 s");
        }
        if self.ping_at.is_some_and(|at| at <= now) {
            self.ping().await?;
        }
        let late = self.expected.iter().find(|(_, since)| since.elapsed() > SHOWN_WITHIN);
        if let Some(job) = late.map(|(job, _)| job.clone()) {
            self.expected.remove(&job);
            anyhow::bail!("job {job:.8} was not shown within {} s", SHOWN_WITHIN.as_secs());
        }
        while self.steps.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, step)) = self.steps.pop_front() else { break };
            self.step(step).await?;
        }
        match (self.scene.phase(), self.click_at) {
            (Phase::Load, Some(at)) if at <= now && self.steps.is_empty() => {
                self.click_at = Some(now + self.random.millis(CLICK_MS.0, CLICK_MS.1));
                self.click().await?;
            }
            (Phase::Load, None) => self.click_at = Some(now + self.random.millis(0, CLICK_MS.0)),
            (Phase::Load | Phase::Idle | Phase::Calm, _) => {}
        }
        Ok(())
    }

    async fn connect(&mut self) -> anyhow::Result<()> {
        let path = format!("/q/{}/client", self.seen.queue);
        let wire = match Wire::open(&self.scene.address, &path, CONNECT_WITHIN).await {
            Ok(wire) => wire,
            Err(error) => {
                self.connect_at = Instant::now() + self.retry;
                self.retry = (self.retry * 13 / 10).min(RETRY_MAX);
                return Err(error.context("cannot connect"));
            }
        };
        self.wire = Some(wire);
        self.sockets().opened.add(1);
        self.pulse = self.pulse.on_new_socket();
        let remembered = self.remembered.take();
        let started = if self.autostart { self.own.back().cloned() } else { None };
        if let Some(job) = remembered.or(started) {
            self.submit(job).await?;
        }
        self.ping().await
    }

    async fn ping(&mut self) -> anyhow::Result<()> {
        self.ping_at = None;
        // Nothing would notice that the first one is not answered: the original's flaw, which a page here does not have.
        self.pong_by = Some(Instant::now() + PONG_WITHIN);
        self.pulse.pinged(self.scene.sockets(Role::Page));
        self.send(PING).await
    }

    async fn send(&mut self, frame: &str) -> anyhow::Result<()> {
        let Some(wire) = &mut self.wire else { return Ok(()) };
        let sent = wire.send(frame).await;
        sent.map_err(|error| self.lost(error))
    }

    async fn hear(&mut self, text: &str) -> anyhow::Result<()> {
        self.pulse.heard(self.scene.sockets(Role::Page), text);
        if text.starts_with(PONG) {
            self.ping_at = Some(Instant::now() + PING_AFTER);
            self.pong_by = None;
            return self.pulse.ponged(self.scene.sockets(Role::Page));
        }
        let (kind, payload) = message(text)?;
        match kind.as_str() {
            "JobStates" | "JobStateUpdates" => {
                self.pulse.told_jobs(self.scene.sockets(Role::Page));
                self.fetch(&payload).await?;
                let mut view = self.seen.view();
                if kind == "JobStates" {
                    view.replace(&payload)?
                } else {
                    view.update(&payload)?
                }
                drop(view);
                for job in payload["state"]["jobs"].as_object().into_iter().flat_map(|jobs| jobs.keys()) {
                    if let Some(since) = self.expected.remove(job) {
                        self.scene.deeds.shown.add(millis(since.elapsed()));
                    }
                }
                Ok(())
            }
            "JobStatusPayload" => {
                let job = payload["jobId"].as_str().context("logs of no job")?;
                let is_its = self.own.back().is_some_and(|own| own.id == job);
                if is_its && payload["step"] == "Running" && self.seen.view().state(job) == Some("Running") {
                    let lines = payload["logs"].as_array().context("no lines")?.len();
                    self.scene.deeds.log_lines_seen.add(lines as u64);
                }
                Ok(())
            }
            "Workers" => {
                let workers = payload["workers"].as_array().context("no workers")?;
                let mut ids = Vec::new();
                for worker in workers {
                    ids.push(worker["id"].as_str().context("a worker without an id")?.to_owned());
                }
                self.seen.view().workers = ids;
                Ok(())
            }
            "StatusRequest" | "ClearJobCache" | "BroadcastJobDefinitions" => {
                anyhow::bail!("it is told {kind}, which is for workers");
            }
            _ => anyhow::bail!("it is told {kind}"),
        }
    }

    /// Fetches the results of ended jobs that came without, one after the other, before it shows anything.
    async fn fetch(&mut self, payload: &Value) -> anyhow::Result<()> {
        for (id, job) in payload["state"]["jobs"].as_object().context("no jobs")? {
            if job["state"] != "Finished" || self.results.get(id) == Some(&job["time"]) {
                continue;
            }
            if job["finished"].is_null() {
                self.scene.deeds.results_got.add(1);
                let result = self.http.json(&format!("/j/{id}/result.json")).await?;
                if result["data"].is_null() {
                    self.scene.deeds.results_null.add(1);
                }
            }
            self.results.insert(id.clone(), job["time"].clone());
        }
        Ok(())
    }

    async fn step(&mut self, step: Step) -> anyhow::Result<()> {
        match step {
            Step::Submit(job) => self.submit(job).await,
            Step::Cancel(job) => {
                self.scene.deeds.cancelled.add(1);
                self.scene.withdraws(&self.seen.queue, &job.id);
                self.send(&job.cancelled()).await
            }
            Step::Delete(job) => {
                self.scene.deeds.deleted.add(1);
                self.scene.withdraws(&self.seen.queue, &job.id);
                self.send(&job.deleted()).await
            }
            Step::Query(job) => {
                self.send(&json!({ "type": "QueryJob", "payload": { "jobId": job } }).to_string()).await
            }
        }
    }

    async fn submit(&mut self, job: Job) -> anyhow::Result<()> {
        self.own.retain(|own| own.id != job.id);
        self.own.push_back(job.clone());
        if self.own.len() > OWN_MAX {
            self.own.pop_front();
        }
        if self.wire.is_none() {
            self.remembered = Some(job);
            return Ok(());
        }
        self.scene.deeds.submitted.add(1);
        self.scene.wants(&self.seen.queue, &job.id);
        self.results.remove(&job.id);
        self.expected.entry(job.id.clone()).or_insert_with(Instant::now);
        self.then(ASK_AFTER, Step::Query(job.id.clone()));
        self.send(&job.queued()).await
    }

    /// Adds a step, so long after the last.
    fn then(&mut self, after: Duration, step: Step) {
        let last = self.steps.back().map_or_else(Instant::now, |(at, _)| *at);
        self.steps.push_back((last + after, step));
    }

    /// Somebody does something.
    async fn click(&mut self) -> anyhow::Result<()> {
        let (at_once, second) = (Duration::ZERO, Duration::from_secs(1));
        let last = self.own.back().cloned();
        let state = |job: &Job| self.seen.view().state(&job.id).map(str::to_owned);
        let is_ended = |job: &&Job| state(job).as_deref() == Some("Finished");
        let ended = self.own.iter().rev().find(is_ended).cloned();
        let live = last.filter(|job| matches!(state(job).as_deref(), Some("Queued" | "Running")));
        match (self.random.between(0, 100), live, ended) {
            (0..40, Some(live), _) => self.then(at_once, Step::Cancel(live)),
            // Its delete button, and run again.
            (15..32, _, Some(ended)) => {
                self.then(at_once, Step::Delete(ended.clone()));
                self.then(second / 2, Step::Delete(ended.clone()));
                self.then(second, Step::Submit(ended));
            }
            (32..50, _, Some(ended)) => {
                self.scene.deeds.resubmitted_finished.add(1);
                self.then(at_once, Step::Submit(ended));
            }
            // One document, and then the first again: only the last is to run.
            (50..66, _, _) if self.namespace.is_some() => {
                self.scene.deeds.replaced_back.add(1);
                let [one, other] = [self.job()?, self.job()?];
                self.then(at_once, Step::Submit(one.clone()));
                self.then(second * 2, Step::Submit(other));
                self.then(second * 2, Step::Submit(one));
            }
            // It takes too long, or was the wrong one.
            (66..80, _, _) => {
                let job = Job::of(simple("plain", STOPPED_MS), self.namespace.clone())?;
                self.then(at_once, Step::Submit(job.clone()));
                let stop = if self.random.percent(70) { Step::Cancel(job) } else { Step::Delete(job) };
                let after = self.random.millis(2_000, 8_000);
                self.then(after, stop);
            }
            (80..90, _, _) => {
                let text: String = (0..INPUT_BYTES / 20).map(|_| format!("{:020}", self.random.next())).collect();
                let url = self.http.upload(text.into_bytes(), false).await?;
                self.scene.deeds.blobs_put.add(1);
                let mut definition = simple("plain", 2_000);
                let hash = super::http::digest_of(&url).to_owned();
                definition["inputs"] = json!({ "data.txt": { "type": "url", "value": url, "hash": hash } });
                self.then(at_once, Step::Submit(Job::of(definition, self.namespace.clone())?));
            }
            _ => {
                let job = self.job()?;
                self.then(at_once, Step::Submit(job));
            }
        }
        Ok(())
    }

    fn job(&mut self) -> anyhow::Result<Job> {
        Job::random(&mut self.random, self.namespace.clone())
    }

    async fn order(&mut self, order: Order) -> anyhow::Result<()> {
        match order {
            Order::Drop(away) if self.wire.is_some() => {
                self.sockets().dropped.add(1);
                self.close(away);
                Ok(())
            }
            Order::Drop(_) => Ok(()),
            Order::AskWhole => self.send(r#"{"type":"QueryJobStates"}"#).await,
        }
    }

    fn close(&mut self, away: Duration) {
        self.wire = None;
        self.pulse.cut(self.scene.sockets(Role::Page));
        (self.ping_at, self.pong_by) = (None, None);
        // What it said may have been lost with the connection: nobody promised it anything yet.
        self.expected.clear();
        self.connect_at = Instant::now() + away + self.retry;
    }

    fn lost(&mut self, why: anyhow::Error) -> anyhow::Error {
        self.sockets().lost.add(1);
        self.close(Duration::ZERO);
        why.context("it lost its connection")
    }
}
