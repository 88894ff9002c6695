//! Submits, cancels, deletes and asks again, over one socket, and hears how jobs end.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use protocol::event::{Event, RunOutcome};
use protocol::id::JobId;
use protocol::native::{Callbacks, FromBroker, RequestId, Submission, ToBroker};
use protocol::raw::RawJson;
use protocol::record::Record;
use tokio::time::Instant;

use super::QUEUE;
use super::crew::PLACES;
use super::kinds::{Fate, Plan};
use crate::client::{Receiver, Sender, client_hello, connect};
use crate::process::Process;
use crate::random::Random;

/// How long all may be silent while jobs are live: an engine may be away for a minute, and jobs last two at most.
const SILENCE: Duration = Duration::from_secs(300);
/// How often something is said.
const SAY_EVERY: Duration = Duration::from_secs(30);
/// How many jobs wait beside those that run, so that workers never idle.
const WAITING: usize = 10;
/// When the memory is looked at for the first time, in parts of all jobs, and at most after so many ends.
const EARLY_PART: u64 = 4;
const EARLY_MAX: u64 = 1_000;

/// A worker's memory when not much had happened.
pub(super) struct Early {
    pub(super) ends: u64,
    pub(super) resident_mib: u64,
}

/// To be done later.
#[derive(Clone, Copy)]
enum Later {
    Cancel(JobId),
    Delete(JobId),
    Retry(JobId),
}

pub(super) struct Driver {
    sender: Sender,
    receiver: Receiver,
    random: Random,
    seed: u64,
    next_req: RequestId,
    /// Submissions that were not answered.
    asked: HashMap<RequestId, Plan>,
    plans: HashMap<JobId, Plan>,
    /// Jobs asked for once more.
    retried: HashSet<JobId>,
    /// Jobs whose last life has ended.
    ended: HashSet<JobId>,
    live_max: usize,
    ends: u64,
    later: BTreeMap<(Instant, u64), Later>,
}

impl Driver {
    pub(super) async fn connect(address: &str, seed: u64, random: Random, workers: usize) -> anyhow::Result<Self> {
        let (sender, receiver, _) = connect(address, QUEUE, client_hello(true)).await?;
        let mut driver = Self {
            sender,
            receiver,
            random,
            seed,
            next_req: 0,
            asked: HashMap::new(),
            plans: HashMap::new(),
            retried: HashSet::new(),
            ended: HashSet::new(),
            live_max: workers * PLACES + WAITING,
            ends: 0,
            later: BTreeMap::new(),
        };
        let all_there = async {
            loop {
                if let FromBroker::Presence { workers: there, .. } = driver.receiver.next().await?
                    && there.len() == workers
                {
                    return anyhow::Ok(());
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), all_there).await.context("the workers do not connect")??;
        Ok(driver)
    }

    fn live(&self) -> usize {
        self.asked.len() + self.plans.len() - self.ended.len()
    }

    /// Submits all of them, never more at once than a few; tells what `steady` took when not much had happened.
    pub(super) async fn submit(&mut self, jobs: u64, steady: &Process) -> anyhow::Result<Early> {
        let (mut early, mut said) = (None, Instant::now());
        for number in 0..jobs {
            let plan = Plan::random(&mut self.random, format!("{}-{number}", self.seed));
            self.send_job(plan).await?;
            while self.live() >= self.live_max {
                self.step().await?;
            }
            if early.is_none() && self.ends >= (jobs / EARLY_PART).min(EARLY_MAX) {
                early = Some(Early { ends: self.ends, resident_mib: steady.resident_mib()? });
            }
            if said.elapsed() > SAY_EVERY {
                said = Instant::now();
                let mib = steady.resident_mib()?;
                println!("  {number} submitted, {} ends, a worker has {mib} MiB", self.ends);
            }
        }
        early.context("no job has ended")
    }

    /// Waits until all have ended.
    pub(super) async fn rest(&mut self, within: Duration) -> anyhow::Result<()> {
        let rest = async {
            while self.live() > 0 || !self.later.is_empty() {
                self.step().await?;
            }
            anyhow::Ok(())
        };
        if let Ok(done) = tokio::time::timeout(within, rest).await {
            return done;
        }
        let left: Vec<_> = self.plans.iter().filter(|(job, _)| !self.ended.contains(job)).take(5).collect();
        bail!("{} jobs have not ended, such as {left:?}", self.live());
    }

    pub(super) fn into_plans(self) -> HashMap<JobId, Plan> {
        self.plans
    }

    /// Does what is due, or takes in the next message.
    async fn step(&mut self) -> anyhow::Result<()> {
        let due = self.later.first_key_value().map(|((at, _), _)| *at);
        let silence = Instant::now() + SILENCE;
        tokio::select! {
            message = self.receiver.next() => self.take(message?).await,
            () = tokio::time::sleep_until(due.unwrap_or(silence)) => {
                ensure!(due.is_some(), "nothing was heard for {} s", SILENCE.as_secs());
                self.do_next().await
            }
        }
    }

    async fn do_next(&mut self) -> anyhow::Result<()> {
        let Some((_, later)) = self.later.pop_first() else { return Ok(()) };
        let req = self.req();
        match later {
            Later::Cancel(job) => {
                self.sender.send(&ToBroker::Cancel { req, job, namespace: None, message: None }).await
            }
            Later::Delete(job) => self.sender.send(&ToBroker::Delete { req, job, namespace: None }).await,
            Later::Retry(job) => {
                let Some(plan) = self.plans.get(&job).cloned() else { return Ok(()) };
                self.send(&plan, true).await?;
                // It lives again.
                self.ended.remove(&job);
                Ok(())
            }
        }
    }

    const fn req(&mut self) -> RequestId {
        self.next_req += 1;
        self.next_req
    }

    async fn send_job(&mut self, plan: Plan) -> anyhow::Result<()> {
        let req = self.send(&plan, false).await?;
        self.asked.insert(req, plan);
        Ok(())
    }

    async fn send(&mut self, plan: &Plan, retry: bool) -> anyhow::Result<RequestId> {
        let req = self.req();
        let job = Submission {
            id: None,
            definition: RawJson::new(plan.definition().to_string()),
            namespace: None,
            priority: 0,
            debug: false,
            retry,
            callbacks: Callbacks::default(),
        };
        self.sender.send(&ToBroker::Submit { req, job }).await?;
        Ok(req)
    }

    fn after(&mut self, ms: u64, later: Later) {
        let number = self.req();
        self.later.insert((Instant::now() + Duration::from_millis(ms), number), later);
    }

    async fn take(&mut self, message: FromBroker) -> anyhow::Result<()> {
        match message {
            FromBroker::Ok { req, job: Some(job), .. } => {
                if let Some(plan) = self.asked.remove(&req) {
                    match plan.fate {
                        Fate::Cancelled(ms) => self.after(ms, Later::Cancel(job)),
                        Fate::Deleted(ms) => self.after(ms, Later::Delete(job)),
                        Fate::Left | Fate::Retried(_) => {}
                    }
                    self.plans.insert(job, plan);
                }
            }
            FromBroker::Rejected { req: Some(req), code, message } if self.asked.contains_key(&req) => {
                bail!("a job was refused: {code}: {message}");
            }
            FromBroker::Events { records, .. } => {
                for record in records {
                    self.hear(Record::decode(&record.0)?.event);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn hear(&mut self, event: Event) {
        let (job, failed) = match event {
            Event::RunFinished { job, outcome, exit_code, .. } => {
                (job, outcome != RunOutcome::Success || exit_code != Some(0))
            }
            Event::JobAbandoned { job, .. } => (job, true),
            Event::JobCancelled { job, .. } | Event::JobDeleted { job } => (job, false),
            _ => return,
        };
        self.ends += u64::from(self.ended.insert(job));
        let retry = self.plans.get(&job).and_then(|plan| match plan.fate {
            Fate::Retried(ms) if failed => Some(ms),
            _ => None,
        });
        if let Some(ms) = retry
            && self.retried.insert(job)
        {
            self.after(ms, Later::Retry(job));
        }
    }
}
