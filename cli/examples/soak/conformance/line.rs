//! A command line as the original's is one: it comes by the old address, sends its job every second until it is shown, says
//! nothing more, and waits for the end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::time::{Instant, interval_at, timeout};

use super::http::{Http, digest_of};
use super::jobs::Job;
use super::page::SHOWN_WITHIN;
use super::scene::{Phase, Role, Scene, Seen, millis};
use super::wire::{Wire, message};
use crate::random::Random;

/// The original's numbers.
const SEND_EVERY: Duration = Duration::from_secs(1);
const CONNECT_WITHIN: Duration = Duration::from_secs(6);

/// How long a job may take from submission to end, with all that comes before it.
const ENDS_WITHIN: Duration = Duration::from_secs(240);

/// From one job to the next.
const NEXT_MS: (u64, u64) = (2_000, 8_000);

pub(super) struct Line {
    pub(super) scene: Arc<Scene>,
    pub(super) seen: Arc<Seen>,
    pub(super) http: Http,
    pub(super) random: Random,
    /// A job that no worker can run: what it waits for while nothing happens.
    pub(super) stuck: Job,
}

impl Line {
    pub(super) async fn run(mut self) {
        let mut phase = self.scene.phase.clone();
        tokio::select! {
            _ = phase.wait_for(|phase| *phase != Phase::Idle) => {}
            ended = self.watch(self.stuck.clone()) => self.say(&format!("it waited for a job that cannot run: {ended:?}")),
        }
        self.seen.set_connected(false);
        while self.scene.phase() == Phase::Load {
            tokio::time::sleep(self.random.millis(NEXT_MS.0, NEXT_MS.1)).await;
            self.seen.set_busy(true);
            if let Err(error) = self.job().await {
                self.say(&format!("{error:#}"));
            }
            self.seen.set_busy(false);
        }
    }

    fn say(&self, text: &str) {
        self.scene.wrong.say(format!("command line {}: {text}", self.seen.name));
    }

    /// One job, from submission to its outputs.
    async fn job(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        let job = Job::random(&mut self.random, None)?;
        let watched = timeout(ENDS_WITHIN, self.watch(job.clone())).await;
        self.seen.set_connected(false);
        let reason = watched.with_context(|| format!("job {:.8} does not end", job.id))??;
        let queue = &self.seen.queue;
        // It asks at this address, and goes on only if what it gets is JSON.
        let result = self.http.json(&format!("/{queue}/j/{}/result.json", job.id)).await?;
        let finished = &result["data"]["finished"];
        ensure!(finished["reason"] == Value::String(reason), "job {:.8} ended otherwise than told: {finished}", job.id);
        for (name, output) in finished["result"]["outputs"].as_object().into_iter().flatten() {
            let Some(url) = output["value"].as_str().filter(|_| output["type"] == "url") else { continue };
            let served = format!("{}/q/{queue}/j/{}/outputs/{name}", self.http.base, job.id);
            self.http.download(&served, digest_of(url)).await.with_context(|| format!("output {name}"))?;
            self.scene.deeds.blobs_got.add(1);
        }
        self.scene.deeds.lines_done.add(1);
        self.scene.deeds.line_delays.add(millis(started.elapsed()));
        Ok(())
    }

    /// Submits a job, and waits until it has ended; how it did.
    async fn watch(&self, job: Job) -> anyhow::Result<String> {
        let sockets = self.scene.sockets(Role::Line);
        let path = format!("/{}/client", self.seen.queue);
        let mut wire = Wire::open(&self.scene.address, &path, CONNECT_WITHIN).await?;
        sockets.opened.add(1);
        self.seen.set_connected(true);
        *self.seen.view() = super::view::View::default();
        let (frame, started, mut is_shown) = (job.queued(), Instant::now(), false);
        let mut sends = interval_at(started, SEND_EVERY);
        loop {
            let text = tokio::select! {
                text = wire.next() => match text {
                    Ok(text) => text,
                    Err(error) => {
                        sockets.lost.add(1);
                        return Err(error.context("it lost its connection"));
                    }
                },
                _ = sends.tick(), if !is_shown => {
                    ensure!(started.elapsed() < SHOWN_WITHIN, "job {:.8} was not shown in time", job.id);
                    let sent = if started.elapsed() < SEND_EVERY / 2 { &self.scene.deeds.submitted } else { &self.scene.deeds.resent };
                    sent.add(1);
                    wire.send(&frame).await?;
                    continue;
                }
            };
            sockets.frames.add(1);
            sockets.bytes.add(text.len() as u64);
            let (kind, payload) = message(&text)?;
            let mut view = self.seen.view();
            match kind.as_str() {
                "JobStates" => view.replace(&payload)?,
                "JobStateUpdates" => view.update(&payload)?,
                _ => continue,
            }
            if !is_shown && view.state(&job.id).is_some() {
                is_shown = true;
                self.scene.deeds.shown.add(millis(started.elapsed()));
            }
            if view.state(&job.id) == Some("Finished") {
                let reason = view.reason(&job.id).context("an end without a reason")?.to_owned();
                drop(view);
                sockets.dropped.add(1);
                return Ok(reason);
            }
        }
    }
}
