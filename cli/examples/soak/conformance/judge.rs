//! Whether all is well: while it runs nobody starves, and when it is calm everybody knows the same, over sockets and HTTP.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use protocol::event::Event;
use protocol::queue::QueueState;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval};

use super::http::Http;
use super::native;
use super::scene::{Order, Role, Scene, Seen};
use super::view::{difference, essence};
use crate::history;

/// How long a job may wait while one and the same worker has a free slot: it looks for a definition for 12 s at the most.
const STARVES_AFTER: Duration = Duration::from_secs(20);

/// How long what is under way may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(300);

/// How long peers may take to know the same: jobs that left are told every 10 s, and one of them leaves now and then.
const AGREE_WITHIN: Duration = Duration::from_secs(90);

/// A queue and who is there.
pub(super) struct Stage {
    pub(super) queue: String,
    pub(super) peers: Vec<Arc<Seen>>,
    pub(super) orders: Vec<mpsc::Sender<Order>>,
    pub(super) native_workers: Vec<String>,
    pub(super) native_pages: Vec<Arc<Mutex<Option<QueueState>>>>,
}

impl Stage {
    pub(super) fn of(&self, role: Role) -> impl Iterator<Item = &Arc<Seen>> {
        self.peers.iter().filter(move |seen| seen.role == role)
    }

    /// Looks for jobs that starve, until the run is over; the longest that one waited while a worker had a free slot.
    pub(super) async fn watch_for_starving(&self, scene: &Scene) -> Duration {
        let mut waits: HashMap<String, Instant> = HashMap::new();
        let (mut told, mut longest) = (HashSet::new(), Duration::ZERO);
        let mut ticks = interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                () = scene.stop.cancelled() => return longest,
                _ = ticks.tick() => {}
            }
            let now = Instant::now();
            let queued: BTreeSet<String> = {
                let Some(page) = self.of(Role::Page).find(|page| page.is_connected()) else { continue };
                let view = page.view();
                let is_queued = |job: &&String| view.state(job) == Some("Queued") && !scene.is_not_for_originals(job);
                view.jobs.keys().filter(is_queued).cloned().collect()
            };
            waits.retain(|job, _| queued.contains(job));
            for job in queued {
                let since = *waits.entry(job.clone()).or_insert(now);
                for worker in self.of(Role::Worker) {
                    let Some(free) = worker.free_since() else { continue };
                    let starved = now.duration_since(since.max(free));
                    longest = longest.max(starved);
                    if starved > STARVES_AFTER && told.insert(job.clone()) {
                        let seconds = starved.as_secs();
                        scene
                            .wrong
                            .say(format!("job {job:.8} waits {seconds} s while {} has a free slot", worker.name));
                    }
                }
            }
        }
    }

    /// Waits until everyone is done with what was begun, and nothing waits or runs.
    pub(super) async fn calm(&self, http: &Http) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            if let Some(busy) = self.peers.iter().find(|seen| seen.is_busy() || !seen.is_here()) {
                ensure!(started.elapsed() < ENDS_WITHIN, "{} is never done", busy.name);
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
            let list = list(http, &self.queue).await?;
            let live = list.iter().find(|(_, job)| job["state"] != "Finished");
            let Some((job, entry)) = live else { return Ok(()) };
            if started.elapsed() > ENDS_WITHIN {
                let why = http.json(&format!("/q/{}/j/{job}/explain", self.queue)).await?;
                anyhow::bail!("job {job:.8} of {} does not end: {entry}; {why}", self.queue);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Everyone must know what the list says: first as told without asking, then asked.
    pub(super) async fn agrees(&self, scene: &Scene, http: &Http) -> anyhow::Result<usize> {
        self.agree(scene, http).await.context("told without asking")?;
        let wholes: Vec<u64> = self.of(Role::Page).map(|page| page.view().wholes).collect();
        for order in &self.orders {
            let _ = order.send(Order::AskWhole).await;
        }
        let started = Instant::now();
        for (page, before) in self.of(Role::Page).zip(wholes) {
            while page.view().wholes == before {
                ensure!(started.elapsed() < AGREE_WITHIN, "page {} asked for the whole state in vain", page.name);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        self.agree(scene, http).await.context("asked for the whole state")
    }

    async fn agree(&self, scene: &Scene, http: &Http) -> anyhow::Result<usize> {
        let started = Instant::now();
        loop {
            let list = essence(list(http, &self.queue).await?.iter());
            let Some(text) = self.disagreement(scene, &list)? else { return Ok(list.len()) };
            ensure!(started.elapsed() < AGREE_WITHIN, "at {}, {text}", self.queue);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn disagreement(&self, scene: &Scene, list: &BTreeMap<String, Value>) -> anyhow::Result<Option<String>> {
        for peer in self.peers.iter().filter(|peer| peer.role != Role::Line) {
            let (mut list, mut known) = (list.clone(), peer.view().essence());
            if peer.role == Role::Worker {
                // Workers may have been shown them until the broker looked at their definitions.
                list.retain(|job, _| !scene.is_not_for_originals(job));
                known.retain(|job, _| !scene.is_not_for_originals(job));
            }
            if let Some(text) = difference(&list, &known) {
                return Ok(Some(format!("the list and {}: {text}", peer.name)));
            }
        }
        for state in &self.native_pages {
            let state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let state = state.as_ref().context("a page of our own kind was told nothing")?;
            if let Some(text) = difference(list, &native::shown(state)?) {
                return Ok(Some(format!("the list and a page of our own kind: {text}")));
            }
        }
        let names = self.of(Role::Worker).map(|worker| worker.name.clone());
        let workers: BTreeSet<String> = names.chain(self.native_workers.iter().cloned()).collect();
        for page in self.of(Role::Page) {
            let told: BTreeSet<String> = page.view().workers.iter().cloned().collect();
            if told != workers {
                return Ok(Some(format!(
                    "{} is told of {} workers, {} are there",
                    page.name,
                    told.len(),
                    workers.len()
                )));
            }
        }
        Ok(None)
    }

    /// Every ended job has the result of the worker that it is shown with, and of nobody else.
    pub(super) async fn results(&self, scene: &Scene, http: &Http) -> anyhow::Result<usize> {
        let list = list(http, &self.queue).await?;
        for (job, entry) in &list {
            let result = http.json(&format!("/q/{}/j/{job}/result.json", self.queue)).await?;
            let finished = &result["data"]["finished"];
            let line = finished["result"]["logs"][0][0].as_str().unwrap_or_default();
            let worker = entry["worker"].as_str().unwrap_or_default();
            let is_its = finished["worker"] == entry["worker"] && line.split(' ').next() == Some(worker);
            if !is_its || finished["reason"] != entry["finishedReason"] {
                scene.wrong.say(format!("job {job:.8} is {entry} and has the result {finished}"));
            }
        }
        Ok(list.len())
    }
}

async fn list(http: &Http, queue: &str) -> anyhow::Result<BTreeMap<String, Value>> {
    let list = http.json(&format!("/q/{queue}")).await?;
    let jobs = list["data"].as_object().with_context(|| format!("the list is {list}"))?;
    Ok(jobs.clone().into_iter().collect())
}

/// Reads in the journal that no job ended twice for one submission, that each end is of its newest run, and that no worker
/// lost a run: all came back in time. How many ends there are.
pub(super) fn ends(scene: &Scene, journal: &Path) -> anyhow::Result<usize> {
    let mut count = 0;
    for (queue, history) in &history::read(journal)? {
        for job in history.jobs() {
            let (mut is_wanted, mut newest) = (false, 0);
            for (seq, event) in history.of(job) {
                let wrong = match event {
                    Event::JobQueued { .. } | Event::JobRequeued { .. } => {
                        is_wanted = true;
                        None
                    }
                    Event::RunClaimed { run, .. } => {
                        newest = *run;
                        None
                    }
                    Event::RunFinished { run, .. } => {
                        count += 1;
                        let was_wanted = std::mem::replace(&mut is_wanted, false);
                        (!was_wanted || *run != newest).then_some("ends again, or by an old run")
                    }
                    Event::RunLost { .. } => Some("was lost by a worker that came back in time"),
                    Event::JobAbandoned { .. } => Some("was given up"),
                    _ => None,
                };
                if let Some(wrong) = wrong {
                    scene.wrong.say(format!("queue {}, record {seq}: job {job:.8} {wrong}", queue.short()));
                }
            }
        }
    }
    ensure!(count > 0, "nothing ended");
    Ok(count)
}
