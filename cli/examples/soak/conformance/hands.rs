//! What the original's worker makes of the jobs that it is told of: it claims, holds, lets go, reports.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use protocol::original::preferred::goes_before;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::http::Http;
use super::jobs::{change, kills, now};
use super::run::{Event, Run};
use super::scene::{Scene, Seen, millis};
use super::worker::SLOTS;

/// The original's numbers: how long it thinks before it lets go of a job, how often and how many times it looks for a
/// definition that it has asked for.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(6);
const DEFINITION_LOOK_EVERY: Duration = Duration::from_secs(1);
const DEFINITION_LOOKS: u32 = 12;

/// How soon after a cancel or deletion the container is dead, at the latest, with the original broker: a whole state within
/// 10 s, and the time to think.
const KILLED_WITHIN: Duration = Duration::from_secs(16);

/// A job that it holds.
struct Held {
    claimed: u64,
    killed: CancellationToken,
    wiped: CancellationToken,
    look_again_at: Option<Instant>,
}

/// A walk over the jobs that wait; those at the end, the newest, come first.
struct Claim {
    candidates: Vec<String>,
    looks: u32,
    look_at: Option<Instant>,
}

pub(super) struct Hands {
    scene: Arc<Scene>,
    seen: Arc<Seen>,
    http: Http,
    events: mpsc::Sender<Event>,
    /// What is to be sent.
    pub(super) frames: VecDeque<String>,
    mine: BTreeMap<String, Held>,
    definitions: HashMap<String, Value>,
    /// When a definition was asked for.
    asked: HashMap<String, Instant>,
    claim: Option<Claim>,
    claims_again: bool,
    /// Deleted jobs of which it does not know what they were, and since when.
    unknown_deleted: HashMap<String, Instant>,
}

impl Hands {
    pub(super) fn new(scene: Arc<Scene>, seen: Arc<Seen>, http: Http, events: mpsc::Sender<Event>) -> Self {
        Self {
            scene,
            seen,
            http,
            events,
            frames: VecDeque::new(),
            mine: BTreeMap::new(),
            definitions: HashMap::new(),
            asked: HashMap::new(),
            claim: None,
            claims_again: false,
            unknown_deleted: HashMap::new(),
        }
    }

    pub(super) fn has_free_slot(&self) -> bool {
        self.mine.len() < SLOTS
    }

    /// One frame for each job that it holds: it is told again after each registration.
    pub(super) fn claims(&self) -> Vec<String> {
        self.mine.iter().map(|(job, held)| self.running(job, held.claimed)).collect()
    }

    fn running(&self, job: &str, claimed: u64) -> String {
        let value = json!({ "type": "Running", "worker": self.seen.name, "time": claimed });
        change(&self.seen.name, job, "Running", &value)
    }

    /// Takes in one message.
    pub(super) fn hear(&mut self, kind: &str, payload: &Value) -> anyhow::Result<()> {
        match kind {
            "JobStates" => self.seen.view().replace(payload)?,
            "JobStateUpdates" => self.seen.view().update(payload)?,
            "BroadcastJobDefinitions" => {
                let definitions = payload["definitions"].as_object().context("definitions are no object")?;
                for (job, definition) in definitions {
                    if let Some(why) = kills(definition) {
                        self.scene.wrong.say(format!("worker {} dies of job {job:.8}: {why}", self.seen.name));
                    }
                    self.definitions.insert(job.clone(), definition.clone());
                }
                return Ok(());
            }
            "StatusRequest" => {
                self.answer_status();
                return Ok(());
            }
            "ClearJobCache" => {
                let job = payload["jobId"].as_str().context("no jobId")?.to_owned();
                self.clear(&job);
                return Ok(());
            }
            _ => return Ok(()),
        }
        self.reconcile();
        self.start_claim();
        Ok(())
    }

    fn answer_status(&mut self) {
        let entry = |job: &String| json!({ "jobId": job, "finished": true, "definition": self.definitions.get(job) });
        let queue: BTreeMap<&String, Value> = self.mine.keys().map(|job| (job, entry(job))).collect();
        let payload = json!({ "time": now(), "id": self.seen.name, "cpus": SLOTS, "gpus": 0, "queue": queue });
        self.frames.push_back(json!({ "type": "WorkerStatusResponse", "payload": payload }).to_string());
    }

    /// Wipes what there is of a job; it looks up first what the job was, and dies when nobody tells it.
    fn clear(&mut self, job: &str) {
        if !self.definitions.contains_key(job) {
            self.ask(job);
            self.unknown_deleted.insert(job.to_owned(), Instant::now());
        }
        if let Some(held) = self.mine.get(job) {
            held.wiped.cancel();
        }
    }

    /// Compares what it holds with what it is shown.
    fn reconcile(&mut self) {
        let view = self.seen.view();
        let (again_at, mut begin) = (Instant::now() + LOOK_AGAIN_AFTER, Vec::new());
        for (job, held) in &mut self.mine {
            match view.state(job) {
                Some("Queued") => {
                    let value = json!({ "worker": self.seen.name, "time": held.claimed });
                    self.frames.push_back(change(&self.seen.name, job, "Running", &value));
                }
                Some("Running") if !self.seen.is_to_let_go(view.owner(job)) => {}
                _ => {
                    held.look_again_at.get_or_insert(again_at);
                }
            }
        }
        for job in view.jobs.keys() {
            let is_mine = self.mine.contains_key(job);
            if !is_mine && view.state(job) == Some("Running") && view.owner(job) == self.seen.name {
                begin.push(job.clone());
            }
            if !self.definitions.contains_key(job) && !self.asked.contains_key(job) {
                begin.push(job.clone());
            }
        }
        drop(view);
        for job in begin {
            if !self.definitions.contains_key(&job) {
                self.ask(&job);
                continue;
            }
            // As after a restart: no matter how many it holds.
            self.scene.deeds.begun_again.add(1);
            self.start(&job);
        }
    }

    fn ask(&mut self, job: &str) {
        self.asked.insert(job.to_owned(), Instant::now());
        self.scene.deeds.definitions_asked.add(1);
        let payload = json!({ "jobIds": [job] });
        self.frames.push_back(json!({ "type": "RequestJobDefinitions", "payload": payload }).to_string());
    }

    /// What is due: second looks, and the walk over what waits.
    pub(super) fn go_on(&mut self) {
        let now = Instant::now();
        let asked_for = DEFINITION_LOOK_EVERY * DEFINITION_LOOKS;
        self.asked.retain(|_, asked| asked.elapsed() < asked_for);
        let (definitions, name) = (&self.definitions, &self.seen.name);
        self.unknown_deleted.retain(|job, since| {
            let is_open = !definitions.contains_key(job);
            if is_open && since.elapsed() > asked_for {
                self.scene.wrong.say(format!("worker {name} dies: nobody says what the deleted job {job:.8} was"));
                return false;
            }
            is_open
        });
        let due = |held: &Held| held.look_again_at.is_some_and(|at| at <= now);
        let due: Vec<String> = self.mine.iter().filter(|(_, held)| due(held)).map(|(job, _)| job.clone()).collect();
        for job in due {
            self.look_again(&job);
        }
        self.walk();
    }

    fn look_again(&mut self, job: &str) {
        let (is_gone, lets_go) = {
            let view = self.seen.view();
            let state = view.state(job);
            let is_gone = matches!(state, None | Some("Finished"));
            (is_gone, state == Some("Running") && self.seen.is_to_let_go(view.owner(job)))
        };
        if !is_gone && !lets_go {
            if let Some(held) = self.mine.get_mut(job) {
                held.look_again_at = None;
            }
            return;
        }
        if lets_go {
            self.scene.deeds.let_go.add(1);
        } else if let Some(withdrawn) = self.scene.withdrawn(&self.seen.queue, job) {
            let took = withdrawn.elapsed();
            self.scene.deeds.killed.add(millis(took));
            if took > KILLED_WITHIN {
                let (name, took) = (&self.seen.name, took.as_secs());
                self.scene.wrong.say(format!("worker {name} killed job {job:.8} only {took} s after its cancel"));
            }
        }
        if let Some(held) = self.mine.remove(job) {
            held.killed.cancel();
        }
    }

    fn start_claim(&mut self) {
        if self.claim.is_some() {
            self.claims_again = true;
            return;
        }
        let view = self.seen.view();
        let waits =
            |job: &Value| job["state"] == "Queued" && job["requirements"]["gpus"].as_u64().is_none_or(|gpus| gpus == 0);
        let mut waiting: Vec<_> = view.jobs.iter().filter(|(_, job)| waits(job)).collect();
        waiting.sort_by_key(|(_, job)| job["queuedTime"].as_u64());
        let candidates = waiting.into_iter().map(|(job, _)| job.clone()).collect();
        self.claim = Some(Claim { candidates, looks: 0, look_at: None });
    }

    /// Walks on until it has to wait for a definition.
    fn walk(&mut self) {
        let now = Instant::now();
        while let Some(claim) = &mut self.claim {
            let Some(job) = claim.candidates.last().cloned() else {
                self.claim = None;
                if std::mem::take(&mut self.claims_again) {
                    self.start_claim();
                }
                continue;
            };
            let has = self.definitions.contains_key(&job);
            match claim.look_at {
                _ if self.mine.contains_key(&job) => {}
                // It looks once a second, and not when it comes.
                Some(at) if at > now => return,
                Some(_) | None if has => {}
                Some(_) if claim.looks < DEFINITION_LOOKS => {
                    claim.looks += 1;
                    claim.look_at = Some(now + DEFINITION_LOOK_EVERY);
                    return;
                }
                Some(_) => {
                    self.scene.deeds.definitions_given_up.add(1);
                    let is_shown = self.seen.view().state(&job) == Some("Queued");
                    if is_shown && !self.scene.is_not_for_originals(&job) {
                        self.scene.wrong.say(format!("worker {} got no definition of job {job:.8}", self.seen.name));
                    }
                }
                None => {
                    claim.look_at = Some(now + DEFINITION_LOOK_EVERY);
                    claim.looks = 1;
                    if !self.asked.contains_key(&job) {
                        self.ask(&job);
                    }
                    return;
                }
            }
            claim_next(&mut self.claim);
            if has && !self.mine.contains_key(&job) && self.has_free_slot() {
                self.scene.deeds.claims.add(1);
                self.start(&job);
            }
        }
    }

    /// Says that it runs a job, and begins at once.
    fn start(&mut self, job: &str) {
        let Some(definition) = self.definitions.get(job).cloned() else { return };
        let (claimed, killed, wiped) = (now(), CancellationToken::new(), CancellationToken::new());
        let run = Run {
            scene: self.scene.clone(),
            http: self.http.clone(),
            worker: self.seen.name.clone(),
            job: job.to_owned(),
            claimed,
            definition,
            killed: killed.clone(),
            wiped: wiped.clone(),
            events: self.events.clone(),
        };
        self.frames.push_back(self.running(job, claimed));
        self.mine.insert(job.to_owned(), Held { claimed, killed, wiped, look_again_at: None });
        tokio::spawn(run.run());
    }

    /// A container has ended: reported once and forgotten, or thrown away when the job is somebody else's by now.
    pub(super) fn ended(&mut self, job: &str, claimed: u64, value: &Value) {
        if self.mine.get(job).is_none_or(|held| held.claimed != claimed) {
            return;
        }
        let is_its = {
            let view = self.seen.view();
            match view.state(job) {
                Some("Queued") => true,
                Some("Running" | "Finished") => view.owner(job) == self.seen.name,
                _ => false,
            }
        };
        if !is_its {
            return self.scene.deeds.discarded.add(1);
        }
        self.mine.remove(job);
        self.scene.deeds.ended.add(1);
        self.frames.push_back(change(&self.seen.name, job, "Finished", value));
    }
}

fn claim_next(claim: &mut Option<Claim>) {
    if let Some(claim) = claim {
        claim.candidates.pop();
        (claim.looks, claim.look_at) = (0, None);
    }
}

impl Seen {
    /// Whether a worker lets go of a job that is shown as another's.
    fn is_to_let_go(&self, owner: &str) -> bool {
        owner != self.name && goes_before(owner, &self.name)
    }
}
