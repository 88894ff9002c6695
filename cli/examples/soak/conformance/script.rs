//! What scripts do over HTTP, a queue each: status and lists all the time; under load jobs of several namespaces, copies,
//! polled jobs, and jobs that the original's workers would die of.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::http::Http;
use super::jobs::{Job, simple};
use super::page::SHOWN_WITHIN;
use super::scene::{Phase, Role, Scene, Seen};
use crate::random::Random;

/// How often a script does something.
const ROUND_EVERY: Duration = Duration::from_secs(10);

/// A status is waited for: workers have 2 s to answer.
const STATUS_WITHIN: Duration = Duration::from_millis(2_500);

/// How long a job of a script may take to end, with all that comes before it.
const ENDS_WITHIN: Duration = Duration::from_secs(240);

/// Every so many rounds of load a job that the original's workers would die of comes to a queue where others can run it.
const DEADLY_EVERY: u32 = 8;

pub(super) struct Script {
    pub(super) scene: Arc<Scene>,
    pub(super) http: Http,
    pub(super) queue: String,
    /// Where jobs are copied to.
    pub(super) other: String,
    /// Whether workers of our own kind are there.
    pub(super) is_mixed: bool,
    pub(super) peers: Arc<Vec<Arc<Seen>>>,
    pub(super) random: Random,
}

impl Script {
    pub(super) async fn run(mut self) {
        let stop = self.scene.stop.clone();
        let mut round = 0;
        while self.scene.phase() != Phase::Calm {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(ROUND_EVERY) => {}
            }
            if let Err(error) = self.watch().await {
                self.say(&error);
            }
            if self.scene.phase() == Phase::Load {
                round += 1;
                if let Err(error) = self.act(round).await {
                    self.say(&error);
                }
            }
        }
    }

    fn say(&self, error: &anyhow::Error) {
        self.scene.wrong.say(format!("script at {}: {error:#}", self.queue));
    }

    /// What monitors ask for.
    async fn watch(&self) -> anyhow::Result<()> {
        let queue = &self.queue;
        let is_here = |seen: &&Arc<Seen>| seen.queue == *queue && seen.role == Role::Worker;
        let before: Vec<_> = self.peers.iter().filter(is_here).map(|seen| (seen, seen.is_connected())).collect();
        let started = Instant::now();
        let status = self.http.json(&format!("/q/{queue}/status")).await?;
        ensure!(started.elapsed() < STATUS_WITHIN, "a status took {:?}", started.elapsed());
        self.scene.deeds.statuses.add(1);
        for (worker, was_connected) in before {
            // Of one that came or went meanwhile nothing can be said.
            if was_connected && worker.is_connected() && status["localWorkers"][&worker.name].is_null() {
                let still = async {
                    sleep(ROUND_EVERY).await;
                    worker.is_connected()
                };
                ensure!(!still.await, "worker {} is missing from the status", worker.name);
            }
        }
        let metrics = self.http.text(&format!("/q/{queue}/metrics")).await?;
        ensure!(metrics.lines().any(|line| line.starts_with("queue_length ")), "no queue_length: {metrics:.80}");
        Ok(())
    }

    async fn act(&mut self, round: u32) -> anyhow::Result<()> {
        if self.is_mixed && round % DEADLY_EVERY == 1 {
            self.deadly(round).await?;
        }
        match round % 4 {
            0 => self.shared().await,
            1 => self.polled().await,
            2 => self.copied().await,
            _ => Ok(()),
        }
    }

    async fn submit(&self, job: &Job) -> anyhow::Result<()> {
        self.scene.deeds.submitted.add(1);
        self.scene.wants(&self.queue, &job.id);
        let answer = self.http.post(&format!("/q/{}", self.queue), &job.body()).await?;
        ensure!(answer["success"] == true && answer["jobId"] == job.id.as_str(), "a submission is answered {answer}");
        Ok(())
    }

    async fn cancel(&self, job: &Job, namespace: &str) -> anyhow::Result<()> {
        self.scene.deeds.cancelled.add(1);
        let path = format!("/q/{}/j/{}/cancel?namespace={namespace}", self.queue, job.id);
        let answer = self.http.post(&path, &Value::Null).await?;
        ensure!(answer["success"] == true, "a cancel is answered {answer}");
        Ok(())
    }

    async fn namespaces(&self, job: &Job) -> anyhow::Result<Value> {
        Ok(self.http.json(&format!("/q/{}/j/{}/namespaces.json", self.queue, job.id)).await?["data"].take())
    }

    /// One job for two: the first one's cancel leaves it to the second, whose cancel ends it.
    async fn shared(&mut self) -> anyhow::Result<()> {
        self.scene.deeds.shared.add(1);
        let number = self.random.next();
        let [one, other] = ["one", "other"].map(|name| format!("{name}-{number}"));
        let job = Job::of(simple("plain", 20_000), Some(one.clone()))?;
        self.submit(&job).await?;
        self.submit(&Job { namespace: Some(other.clone()), ..job.clone() }).await?;
        ensure!(self.namespaces(&job).await? == json!([one, other]), "it is not both namespaces'");
        self.cancel(&job, &one).await?;
        ensure!(self.namespaces(&job).await? == json!([other]), "it is not the other's alone");
        let list = self.http.json(&format!("/q/{}", self.queue)).await?;
        let state = &list["data"][&job.id]["state"];
        ensure!(state == "Queued" || state == "Running", "the job of the other is {state}");
        self.scene.withdraws(&self.queue, &job.id);
        self.cancel(&job, &other).await?;
        let list = self.http.json(&format!("/q/{}", self.queue)).await?;
        ensure!(list["data"][&job.id].is_null(), "a cancelled job is listed");
        Ok(())
    }

    /// A job that is asked for until it has a result, and its logs.
    async fn polled(&mut self) -> anyhow::Result<()> {
        let namespace = format!("poll-{}", self.random.next());
        let job = Job::random(&mut self.random, Some(namespace))?;
        self.submit(&job).await?;
        self.scene.deeds.over_http.add(1);
        let path = format!("/q/{}/j/{}", self.queue, job.id);
        let ended = async {
            loop {
                let answer = self.http.json(&path).await?;
                if !answer["data"]["results"].is_null() {
                    return anyhow::Ok(answer);
                }
                sleep(Duration::from_secs(1)).await;
            }
        };
        let answer = timeout(ENDS_WITHIN, ended).await.with_context(|| format!("job {:.8} does not end", job.id))??;
        ensure!(answer["data"]["definition"] == job.definition, "it has another definition");
        let logs = self.http.json(&format!("{path}/run-logs.json")).await?;
        ensure!(logs["isFinal"] == true, "logs of an ended job are not final");
        let kept: Vec<&Value> = logs["data"].as_array().into_iter().flatten().collect();
        let finished = &answer["data"]["results"]["finished"];
        for line in finished["result"]["logs"].as_array().into_iter().flatten() {
            ensure!(kept.contains(&line), "line {line} of job {:.8} is in its result and not in its log", job.id);
        }
        Ok(())
    }

    /// An ended job is copied to the other queue and shown there.
    async fn copied(&self) -> anyhow::Result<()> {
        let list = self.http.json(&format!("/q/{}", self.queue)).await?;
        let jobs = list["data"].as_object().context("no list")?;
        let may_be = |id: &str, job: &Value| job["finishedReason"] == "Success" && !self.scene.is_not_for_originals(id);
        let Some((job, _)) = jobs.iter().find(|(id, job)| may_be(id, job)) else { return Ok(()) };
        self.scene.deeds.copied.add(1);
        self.scene.wants(&self.other, job);
        let body = json!({ "queue": self.other, "control": { "namespace": "copies" } });
        self.http.post(&format!("/j/{job}/copy"), &body).await?;
        // Any page there: one of them may lose its connection just now.
        let is_page = |seen: &&Arc<Seen>| seen.queue == self.other && seen.role == Role::Page;
        let started = Instant::now();
        while !self.peers.iter().filter(is_page).any(|page| page.view().state(job).is_some()) {
            ensure!(started.elapsed() < SHOWN_WITHIN, "a copied job is not shown to pages of the other queue");
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// A job that the original's workers would die of, if they were sent it.
    async fn deadly(&mut self, round: u32) -> anyhow::Result<()> {
        let mut definition = simple("plain", 1_500);
        if round % (2 * DEADLY_EVERY) == 1 {
            definition["command"] = format!("echo ${{A {round}").into();
        } else {
            definition["command"] = "x".repeat(70_000).into();
        }
        let job = Job::of(definition, Some(format!("deadly-{}", self.random.next())))?;
        self.scene.keep_from_originals(&job.id);
        self.submit(&job).await
    }
}
