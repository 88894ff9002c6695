//! The submitting half of a load: pipelined over a websocket, with cancels among it, and one at a time over REST, with uploads.
#![allow(dead_code, reason = "each example uses its part")]

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, bail};
use protocol::id::{Digest, Head, JobId, QueueKey};
use protocol::native::{Callbacks, FromBroker, RequestId, Submission, ToBroker};
use protocol::raw::RawJson;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep_until};

use crate::client::{client_hello, connect};
use crate::load::{Load, Unanswered, definition, padding};
use crate::random::Random;
use crate::told::{Fact, Told};

/// How many commands wait for an answer at once.
const WINDOW: usize = 32;
/// How many of 100 commands are cancels.
const CANCELS_PERCENT: u64 = 8;
/// How many acknowledged jobs are remembered to be cancelled.
const CANCELLABLE_MAX: usize = 64;
/// How many of 100 REST requests are uploads.
const UPLOADS_PERCENT: u64 = 15;
/// How many of 100 uploads are so large that the broker takes them in parts.
const LARGE_UPLOADS_PERCENT: u64 = 20;
/// A request that takes this long is tried again.
const REST_WITHIN: Duration = Duration::from_secs(20);

enum Asked {
    Submit { definition: RawJson, body: Digest },
    Cancel { job: JobId },
}

impl Asked {
    fn message(&self, req: RequestId) -> ToBroker {
        match self {
            Self::Submit { definition, .. } => ToBroker::Submit { req, job: submission(definition.clone()) },
            Self::Cancel { job } => {
                ToBroker::Cancel { req, job: *job, namespace: None, message: Some("not wanted any more".to_owned()) }
            }
        }
    }
}

/// A submission of a definition and nothing else.
pub(crate) const fn submission(definition: RawJson) -> Submission {
    Submission {
        id: None,
        definition,
        namespace: None,
        priority: 0,
        debug: false,
        retry: false,
        callbacks: Callbacks { queued: None, finished: None },
    }
}

struct Submitter {
    load: Load,
    queue: String,
    random: Random,
    label: String,
    last_req: RequestId,
    unanswered: Unanswered<Asked>,
    cancellable: VecDeque<JobId>,
}

/// Submits and cancels over a websocket until the load stops.
pub(crate) async fn over_socket(load: Load, queue: String, random: Random, label: String) {
    let (unanswered, cancellable) = (Unanswered::new(), VecDeque::new());
    let mut submitter = Submitter { load: load.clone(), queue, random, label, last_req: 0, unanswered, cancellable };
    load.keep(&mut submitter, Submitter::connection).await;
}

impl Submitter {
    async fn connection(&mut self) -> anyhow::Result<()> {
        let (mut sender, mut receiver, welcome) = connect(&self.load.address, &self.queue, client_hello(false)).await?;
        // Whether these were carried out before the connection was lost is not known; doing them twice is the same as once.
        for (req, asked) in &self.unanswered {
            sender.feed(&asked.message(*req)).await?;
        }
        sender.flush().await?;
        let mut next = Instant::now();
        loop {
            tokio::select! {
                message = receiver.next() => self.hear(welcome.queue, message?)?,
                () = sleep_until(next), if self.unanswered.len() < WINDOW => {
                    let (req, asked) = self.make();
                    let message = asked.message(req);
                    self.unanswered.insert(req, asked);
                    sender.send(&message).await?;
                    next = Instant::now() + self.load.shape.pace;
                }
            }
        }
    }

    fn make(&mut self) -> (RequestId, Asked) {
        self.last_req += 1;
        let req = self.last_req;
        if self.random.percent(CANCELS_PERCENT) && !self.cancellable.is_empty() {
            let at = self.random.index(0, self.cancellable.len());
            if let Some(job) = self.cancellable.remove(at) {
                return (req, Asked::Cancel { job });
            }
        }
        let label = format!("{}-{req}", self.label);
        let (definition, body) = definition(&mut self.random, self.load.shape.body_bytes_max, &label);
        (req, Asked::Submit { definition, body })
    }

    fn hear(&mut self, queue: QueueKey, message: FromBroker) -> anyhow::Result<()> {
        match message {
            FromBroker::Ok { req, head: at, job: answered } => {
                let fact = match (self.unanswered.remove(&req), answered) {
                    (Some(Asked::Submit { body, .. }), Some(job)) => {
                        self.cancellable.push_back(job);
                        if self.cancellable.len() > CANCELLABLE_MAX {
                            self.cancellable.pop_front();
                        }
                        Fact::Queued { at, job, body }
                    }
                    (Some(Asked::Cancel { job }), _) => Fact::Cancelled { at, job },
                    (asked, _) => {
                        let what = if asked.is_some() { "without a job" } else { "that was answered already" };
                        self.load.listener.wrong(format!("an answer to request {req}, {what}"));
                        return Ok(());
                    }
                };
                self.load.listener.told(Told { queue, fact });
            }
            FromBroker::Rejected { code, message, req } => {
                // A broker that stops says so; everything here is to be accepted.
                if code != "stopping" {
                    self.load.listener.wrong(format!("request {req:?} was refused: {code}: {message}"));
                }
                bail!("{code}: {message}");
            }
            FromBroker::Welcome { .. }
            | FromBroker::Snapshot { .. }
            | FromBroker::Events { .. }
            | FromBroker::Presence { .. }
            | FromBroker::Granted { .. }
            | FromBroker::Stop { .. }
            | FromBroker::Claimed { .. }
            | FromBroker::Definitions { .. }
            | FromBroker::Explained { .. }
            | FromBroker::Logs { .. } => self.load.listener.wrong("a message that was not asked for".to_owned()),
        }
        Ok(())
    }
}

struct RestSubmitter {
    load: Load,
    queue: String,
    random: Random,
    label: String,
    count: u64,
    unanswered: Option<Posted>,
    http: reqwest::Client,
}

#[derive(Clone)]
enum Posted {
    Submission { definition: RawJson, body: Digest },
    Upload { key: String, content: String },
}

/// Submits over REST, one after the other, until the load stops.
pub(crate) async fn over_rest(load: Load, queue: String, random: Random, label: String) {
    let http = reqwest::Client::builder().timeout(REST_WITHIN).build().expect("the settings are good");
    let mut submitter = RestSubmitter { load: load.clone(), queue, random, label, count: 0, unanswered: None, http };
    load.keep(&mut submitter, RestSubmitter::requests).await;
}

impl RestSubmitter {
    async fn requests(&mut self) -> anyhow::Result<()> {
        loop {
            if self.unanswered.is_none() {
                self.unanswered = Some(self.make());
            }
            let told = match self.unanswered.clone() {
                Some(Posted::Submission { definition, body }) => self.submit(definition, body).await?,
                Some(Posted::Upload { key, content }) => self.upload(key, content).await?,
                None => continue,
            };
            self.unanswered = None;
            self.load.listener.told(told);
            tokio::time::sleep(self.load.shape.pace).await;
        }
    }

    fn make(&mut self) -> Posted {
        self.count += 1;
        if self.random.percent(UPLOADS_PERCENT) {
            let is_large = self.random.percent(LARGE_UPLOADS_PERCENT);
            let bytes = if is_large { self.random.index(1 << 20, 3 << 19) } else { self.random.index(1, 300_000) };
            let content = padding(&mut self.random, bytes.min(self.load.shape.body_bytes_max));
            let key = Sha256::digest(content.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
            return Posted::Upload { key, content };
        }
        let label = format!("{}-{}", self.label, self.count);
        let (definition, body) = definition(&mut self.random, self.load.shape.body_bytes_max, &label);
        Posted::Submission { definition, body }
    }

    async fn upload(&self, key: String, content: String) -> anyhow::Result<Told> {
        let bytes = content.len() as u64;
        let answer = self.http.put(format!("http://{}/f/{key}", self.load.address)).body(content).send().await?;
        let status = answer.status();
        if !status.is_success() {
            let text = answer.text().await?;
            if status.as_u16() != 503 {
                self.load.listener.wrong(format!("an upload was answered {status}: {text}"));
            }
            bail!("{status}: {text}");
        }
        Ok(Told { queue: QueueKey::of(&self.queue.parse()?), fact: Fact::Stored { key, bytes } })
    }

    async fn submit(&self, text: RawJson, body: Digest) -> anyhow::Result<Told> {
        let url = format!("http://{}/q/{}", self.load.address, self.queue);
        let request = format!("{{\"definition\":{}}}", text.as_str());
        let answer = self.http.post(url).header("content-type", "application/json").body(request).send().await?;
        let (status, head) = (answer.status(), answer.headers().get("gridsocket-head").cloned());
        let text = answer.text().await?;
        if !status.is_success() {
            if status.as_u16() != 503 {
                self.load.listener.wrong(format!("a submission over REST was answered {status}: {text}"));
            }
            bail!("{status}: {text}");
        }
        let at = head.as_ref().and_then(|head| read_head(head.to_str().ok()?)).context("no head in the answer")?;
        let answer: serde_json::Value = serde_json::from_str(&text)?;
        let job: JobId = answer["jobId"].as_str().context("no job in the answer")?.parse()?;
        let queue = QueueKey::of(&self.queue.parse()?);
        Ok(Told { queue, fact: Fact::Queued { at, job, body } })
    }
}

fn read_head(text: &str) -> Option<Head> {
    let (seq, hash) = text.split_once(' ')?;
    Some(Head { seq: seq.parse().ok()?, hash: hash.parse().ok()? })
}
