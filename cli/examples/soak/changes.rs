//! Changes of a long queue at a steady rate: jobs come and are cancelled, namespaces join and leave them, and some are run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use protocol::id::{Digest, JobId, Namespace, QueueKey};
use protocol::native::{FromBroker, RequestId, Submission, ToBroker};
use protocol::raw::RawJson;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::client::{Sender, client_hello, connect};
use crate::collector::Collector;
use crate::load::Listener;
use crate::random::Random;
use crate::submitters::submission;
use crate::tally::Delays;
use crate::told::{Fact, Told};

/// Commands that may be unanswered while a queue is filled: what the broker takes of one socket at once.
const FILL_WINDOW: usize = 512;
/// The same while changes are made; more means that the broker does not keep up, and the rate falls.
const WINDOW: usize = 256;
/// How long the last commands may take to be answered.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);
/// How long to wait before the next try when the broker is not there.
const RETRY: Duration = Duration::from_millis(20);

/// No worker here has a GPU.
const NEVER_FITS: &str = r#","requirements":{"gpus":1}"#;

enum Asked {
    /// A job that no worker can run.
    Filler { number: u64, body: Digest },
    /// A job that the queue's worker runs.
    Life { body: Digest },
    /// Another namespace for a job.
    Join { job: JobId, namespace: Namespace },
    /// A namespace's wish, or the job's last.
    Cancel,
}

/// Whoever makes the changes.
pub(crate) struct Changes {
    address: String,
    queue: String,
    random: Random,
    listener: Arc<Collector>,
    label: String,
    last_req: RequestId,
    last_job: u64,
    unanswered: BTreeMap<RequestId, (ToBroker, Asked, Instant)>,
    /// Jobs that no worker can run, with the numbers in their definitions.
    fillers: Vec<(JobId, u64)>,
    joined: Vec<(JobId, Namespace)>,
    /// How many records those commands make that were sent.
    pub(crate) made: u64,
    /// From sending a command to its answer.
    pub(crate) delays: Delays,
}

impl Changes {
    pub(crate) fn new(address: &str, queue: &str, seed: u64, listener: Arc<Collector>) -> Self {
        Self {
            address: address.to_owned(),
            queue: queue.to_owned(),
            random: Random::new(seed),
            listener,
            label: format!("{seed}"),
            last_req: 0,
            last_job: 0,
            unanswered: BTreeMap::new(),
            fillers: Vec::new(),
            joined: Vec::new(),
            made: 0,
            delays: Delays::default(),
        }
    }

    /// Puts that many jobs into the queue that no worker can run.
    pub(crate) async fn fill(&mut self, count: usize) -> anyhow::Result<()> {
        let (mut sender, mut receiver, welcome) = connect(&self.address, &self.queue, client_hello(false)).await?;
        while self.fillers.len() < count {
            let room = FILL_WINDOW.min(count - self.fillers.len()) - self.unanswered.len();
            if room > FILL_WINDOW / 2 || self.unanswered.is_empty() {
                for _ in 0..room {
                    let (message, asked) = self.filler();
                    self.feed(&mut sender, message, asked).await?;
                }
                sender.flush().await?;
            }
            self.hear(welcome.queue, receiver.next().await?)?;
        }
        (self.made, self.delays) = (0, Delays::default());
        Ok(())
    }

    /// Makes changes that come to `rate` records a second, until it is stopped; then waits for the last answers. When the
    /// broker is gone it comes back with what was not answered.
    pub(crate) async fn run(&mut self, rate: f64, stop: &CancellationToken) -> anyhow::Result<()> {
        let started = Instant::now();
        let (mut gone_since, mut before) = (None, 0);
        loop {
            match self.connection(rate, started, stop).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    // One that was away for long is an error, whatever came between.
                    let since = match gone_since {
                        Some(since) if self.delays.count() == before => since,
                        _ => Instant::now(),
                    };
                    (gone_since, before) = (Some(since), self.delays.count());
                    ensure!(since.elapsed() < ANSWERED_WITHIN, "no change was answered for long: {error:#}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn connection(&mut self, rate: f64, started: Instant, stop: &CancellationToken) -> anyhow::Result<()> {
        let (mut sender, mut receiver, welcome) = connect(&self.address, &self.queue, client_hello(false)).await?;
        // Whether these were carried out is not known; twice is the same as once.
        for (message, _, _) in self.unanswered.values() {
            sender.feed(message).await?;
        }
        sender.flush().await?;
        let mut deadline = None;
        loop {
            if stop.is_cancelled() {
                if self.unanswered.is_empty() {
                    return Ok(());
                }
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + ANSWERED_WITHIN);
                ensure!(Instant::now() < deadline, "{} commands are not answered", self.unanswered.len());
            }
            #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
            let due = started + Duration::from_secs_f64(self.made as f64 / rate);
            tokio::select! {
                message = receiver.next() => self.hear(welcome.queue, message?)?,
                () = stop.cancelled(), if !stop.is_cancelled() => {}
                () = sleep_until(due), if !stop.is_cancelled() && self.unanswered.len() < WINDOW => {
                    let (message, asked) = self.choose();
                    self.feed(&mut sender, message, asked).await?;
                    sender.flush().await?;
                }
            }
        }
    }

    async fn feed(&mut self, sender: &mut Sender, message: ToBroker, asked: Asked) -> anyhow::Result<()> {
        let req = self.last_req;
        self.unanswered.insert(req, (message, asked, Instant::now()));
        match self.unanswered.get(&req) {
            Some((message, _, _)) => sender.feed(message).await,
            None => Ok(()),
        }
    }

    /// The next command, so that as many jobs come as go.
    fn choose(&mut self) -> (ToBroker, Asked) {
        let kind = self.random.between(0, 100);
        if kind >= 66 && !self.fillers.is_empty() {
            let at = self.random.index(0, self.fillers.len());
            if kind < 84 {
                let (job, number) = self.fillers[at];
                return self.join(job, number);
            }
            // Its wish is withdrawn, and it is cancelled: two records.
            self.made += 2;
            let (job, _) = self.fillers.swap_remove(at);
            return self.cancel(job, None);
        }
        if kind >= 50 && !self.joined.is_empty() {
            self.made += 1;
            let at = self.random.index(0, self.joined.len());
            let (job, namespace) = self.joined.swap_remove(at);
            return self.cancel(job, Some(namespace));
        }
        if kind < 8 {
            // Queued, claimed, finished.
            self.made += 3;
            self.last_job += 1;
            let definition = self.definition(self.last_job, "");
            let body = Digest::of(definition.as_str().as_bytes());
            return self.submit(submission(definition), Asked::Life { body });
        }
        self.filler()
    }

    fn filler(&mut self) -> (ToBroker, Asked) {
        self.made += 1;
        self.last_job += 1;
        let number = self.last_job;
        let definition = self.definition(number, NEVER_FITS);
        let body = Digest::of(definition.as_str().as_bytes());
        self.submit(submission(definition), Asked::Filler { number, body })
    }

    fn definition(&self, number: u64, needs: &str) -> RawJson {
        let label = &self.label;
        RawJson::new(format!(r#"{{"image":"nothing","command":"true","env":{{"LABEL":"{label}-{number}"}}{needs}}}"#))
    }

    fn submit(&mut self, job: Submission, asked: Asked) -> (ToBroker, Asked) {
        self.last_req += 1;
        (ToBroker::Submit { req: self.last_req, job }, asked)
    }

    /// The same definition under a namespace of its own.
    fn join(&mut self, job: JobId, number: u64) -> (ToBroker, Asked) {
        self.made += 1;
        let name = format!("namespace-{}", self.last_req + 1);
        let namespace: Namespace = name.parse().expect("a short printable name");
        let definition = self.definition(number, NEVER_FITS);
        let of = Submission { namespace: Some(namespace.clone()), ..submission(definition) };
        self.submit(of, Asked::Join { job, namespace })
    }

    fn cancel(&mut self, job: JobId, namespace: Option<Namespace>) -> (ToBroker, Asked) {
        self.last_req += 1;
        (ToBroker::Cancel { req: self.last_req, job, namespace, message: None }, Asked::Cancel)
    }

    fn hear(&mut self, queue: QueueKey, message: FromBroker) -> anyhow::Result<()> {
        let (req, at, job) = match message {
            FromBroker::Ok { req, head, job } => (req, head, job),
            FromBroker::Rejected { code, message, .. } => {
                if code != "stopping" {
                    self.listener.wrong(format!("a change was refused: {code}: {message}"));
                }
                bail!("{code}: {message}");
            }
            other => bail!("a message that was not asked for: {other:?}"),
        };
        let Some((_, asked, sent)) = self.unanswered.remove(&req) else { bail!("request {req} is answered twice") };
        self.delays.add(u64::try_from(sent.elapsed().as_millis()).unwrap_or(u64::MAX));
        match asked {
            Asked::Filler { body, .. } | Asked::Life { body } => {
                let job = job.context("a submission is answered without a job")?;
                self.listener.told(Told { queue, fact: Fact::Queued { at, job, body } });
                if let Asked::Filler { number, .. } = asked {
                    self.fillers.push((job, number));
                }
            }
            Asked::Join { job, namespace } => self.joined.push((job, namespace)),
            Asked::Cancel => {}
        }
        Ok(())
    }
}
