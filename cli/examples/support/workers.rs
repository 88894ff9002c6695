//! The working half of a load: workers that hold runs for a while and come back with them, and watchers that fold what they see.
#![allow(dead_code, reason = "each example uses its part")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::bail;
use protocol::event::RunOutcome;
use protocol::id::{Digest, JobId, QueueKey, WorkerId};
use protocol::native::{FinishedRun, FromBroker, HeldRun, RequestId, ToBroker};
use protocol::queue::QueueState;
use protocol::raw::RawJson;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::client::{Sender, capacity, client_hello, connect, worker_hello};
use crate::load::{Load, result};
use crate::random::Random;
use crate::told::{Fact, Told};

/// Runs that a worker has at once.
const SLOTS: u32 = 8;
/// Well within a lease.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// When nothing is to be done.
const FAR: Duration = Duration::from_secs(3600);

/// How many of 100 deaths take the machine with them, and how many last longer than a lease.
const MACHINE_DEATHS_PERCENT: u64 = 25;
const LONG_DEATHS_PERCENT: u64 = 15;
/// How long a dead worker stays away, in milliseconds, and how long when that is to outlast its leases (30 s).
const AWAY_MS: (u64, u64) = (0, 3_000);
const LONG_AWAY_MS: (u64, u64) = (31_000, 45_000);

/// One job in so many takes the machine down of every worker that runs it.
const POISON_EVERY: u16 = 1_024;

/// How workers die. Their process does: the socket breaks, while containers and results on disk stay and are taken over by the
/// next process; sometimes that comes only after the leases ran out; sometimes the machine is lost with everything on it,
/// and some jobs do that to every worker.
#[derive(Clone)]
pub(crate) struct Mortality {
    /// How long one lives, in milliseconds: from this up to and without that.
    pub(crate) lives_ms: (u64, u64),
    /// Cancelled when nobody is to die any more; who is away comes back then.
    pub(crate) calm: CancellationToken,
    /// What happened.
    pub(crate) deaths: Arc<Deaths>,
}

/// How often what happened.
#[derive(Default)]
pub(crate) struct Deaths {
    /// Away for a moment.
    pub(crate) short: AtomicU64,
    /// Away for longer than a lease.
    pub(crate) long: AtomicU64,
    /// Lost with all its runs.
    pub(crate) machines: AtomicU64,
}

struct Held {
    ends: Instant,
    /// What it is reported to have come to: the same every time it is reported.
    result: Option<(RawJson, Digest)>,
    /// The report that waits for an answer on this connection.
    reported: Option<RequestId>,
}

struct Worker {
    load: Load,
    queue: String,
    id: WorkerId,
    random: Random,
    held: BTreeMap<HeldRun, Held>,
    last_req: RequestId,
    mortality: Option<Mortality>,
    /// When it dies next, and when it is back after it did.
    dies: Instant,
    back: Option<Instant>,
    poisoned: bool,
}

impl Worker {
    fn new(load: &Load, queue: String, id: WorkerId, random: Random) -> Self {
        Self {
            load: load.clone(),
            queue,
            id,
            random,
            held: BTreeMap::new(),
            last_req: 0,
            mortality: None,
            dies: Instant::now() + FAR,
            back: None,
            poisoned: false,
        }
    }
}

/// Claims, holds and finishes runs until the load stops.
pub(crate) async fn work(load: Load, queue: String, id: WorkerId, mut random: Random, holds: Vec<HeldRun>) {
    let held = |run| (run, Held { ends: Instant::now() + random.millis(0, 500), result: None, reported: None });
    let held = holds.into_iter().map(held).collect();
    let mut worker = Worker { held, ..Worker::new(&load, queue, id, random) };
    load.keep(&mut worker, Worker::connection).await;
}

/// The same with a worker that dies now and then.
pub(crate) async fn work_and_die(load: Load, queue: String, id: WorkerId, mut random: Random, mortality: Mortality) {
    let dies = mortality.next(&mut random);
    let mut worker = Worker { mortality: Some(mortality), dies, ..Worker::new(&load, queue, id, random) };
    load.keep(&mut worker, Worker::connection).await;
}

impl Mortality {
    fn next(&self, random: &mut Random) -> Instant {
        Instant::now() + random.millis(self.lives_ms.0, self.lives_ms.1)
    }
}

impl Worker {
    async fn connection(&mut self) -> anyhow::Result<()> {
        if let (Some(back), Some(Mortality { calm, .. })) = (self.back, &self.mortality) {
            tokio::select! {
                () = sleep_until(back) => {}
                () = calm.cancelled() => {}
            }
            self.back = None;
        }
        let holds = self.held.keys().copied().collect();
        let hello = worker_hello(self.id.clone(), SLOTS, holds);
        let (mut sender, mut receiver, welcome) = connect(&self.load.address, &self.queue, hello).await?;
        let queue = welcome.queue;
        for run in welcome.gone {
            self.let_go(queue, run);
        }
        for (run, held) in &mut self.held {
            held.reported = None;
            self.load.listener.told(Told { queue, fact: Fact::Resumed { run: *run, worker: self.id.clone() } });
        }
        let mut seen = 0;
        self.claim(&mut sender, seen).await?;
        let mut renew = tokio::time::interval(RENEW_EVERY);
        loop {
            let next = self.held.values().filter(|held| held.reported.is_none()).map(|held| held.ends).min();
            tokio::select! {
                message = receiver.next() => match message? {
                    FromBroker::Granted { run, .. } => {
                        seen += 1;
                        self.take(queue, run);
                    }
                    FromBroker::Stop { run, .. } => {
                        self.let_go(queue, run);
                        self.claim(&mut sender, seen).await?;
                    }
                    FromBroker::Ok { req, head: at, .. } => {
                        self.done(queue, req, |run, worker, result| Fact::Finished { at, run, worker, result });
                        self.claim(&mut sender, seen).await?;
                    }
                    FromBroker::Rejected { req: Some(req), code, .. } if code == "stale_run" => {
                        self.done(queue, req, |run, worker, _| Fact::Gone { run, worker });
                        self.claim(&mut sender, seen).await?;
                    }
                    FromBroker::Rejected { code, message, .. } => {
                        if code != "stopping" {
                            self.load.listener.wrong(format!("a worker was refused: {code}: {message}"));
                        }
                        bail!("{code}: {message}");
                    }
                    other @ (FromBroker::Welcome { .. }
                    | FromBroker::Snapshot { .. }
                    | FromBroker::Events { .. }
                    | FromBroker::Presence { .. }
                    | FromBroker::Claimed { .. }
                    | FromBroker::Definitions { .. }
                    | FromBroker::Explained { .. }
                    | FromBroker::Logs { .. }) => self.load.listener.wrong(format!("a worker was told {other:?}")),
                },
                () = sleep_until(next.unwrap_or_else(|| Instant::now() + FAR)) => self.report(&mut sender).await?,
                () = sleep_until(self.dies), if self.is_mortal() => {
                    self.die();
                    bail!("it died");
                }
                _ = renew.tick() => sender.send(&ToBroker::Renew { runs: self.held.keys().copied().collect() }).await?,
            }
        }
    }

    async fn claim(&self, sender: &mut Sender, grants_seen: u64) -> anyhow::Result<()> {
        let used = u32::try_from(self.held.len()).unwrap_or(SLOTS);
        sender.send(&ToBroker::Claim { free: capacity(SLOTS.saturating_sub(used)), grants_seen, req: None }).await
    }

    fn is_mortal(&self) -> bool {
        self.mortality.as_ref().is_some_and(|mortality| !mortality.calm.is_cancelled())
    }

    fn die(&mut self) {
        let Some(mortality) = &self.mortality else { return };
        let Deaths { short, long, machines } = &*mortality.deaths;
        let kind = self.random.next() % 100;
        let ((from, to), counter) = if kind < MACHINE_DEATHS_PERCENT || self.poisoned {
            self.held.clear();
            (AWAY_MS, machines)
        } else if kind < MACHINE_DEATHS_PERCENT + LONG_DEATHS_PERCENT {
            (LONG_AWAY_MS, long)
        } else {
            (AWAY_MS, short)
        };
        self.poisoned = false;
        counter.fetch_add(1, Ordering::Relaxed);
        let back = Instant::now() + self.random.millis(from, to);
        (self.back, self.dies) = (Some(back), mortality.next(&mut self.random).max(back));
    }

    fn take(&mut self, queue: QueueKey, run: HeldRun) {
        if self.is_mortal() && is_poison(run.job) {
            (self.poisoned, self.dies) = (true, Instant::now());
        }
        if self.held.contains_key(&run) {
            self.load.listener.wrong(format!("run {} of job {} was granted again", run.run, run.job));
        }
        let is_long = self.random.percent(self.load.shape.long_runs_percent);
        let takes = if is_long { self.random.millis(500, 6_000) } else { self.random.millis(0, 20) };
        self.held.insert(run, Held { ends: Instant::now() + takes, result: None, reported: None });
        self.load.listener.told(Told { queue, fact: Fact::Claimed { run, worker: self.id.clone() } });
    }

    fn let_go(&mut self, queue: QueueKey, run: HeldRun) {
        if self.held.remove(&run).is_some() {
            self.load.listener.told(Told { queue, fact: Fact::Gone { run, worker: self.id.clone() } });
        }
    }

    /// Reports all runs that have ended.
    async fn report(&mut self, sender: &mut Sender) -> anyhow::Result<()> {
        let (now, bytes_max) = (Instant::now(), self.load.shape.body_bytes_max);
        for (run, held) in self.held.iter_mut().filter(|(_, held)| held.reported.is_none() && held.ends <= now) {
            let random = &mut self.random;
            let (finished, _) = held.result.get_or_insert_with(|| result(random, bytes_max, *run, &self.id));
            self.last_req += 1;
            held.reported = Some(self.last_req);
            let run = FinishedRun {
                job: run.job,
                run: run.run,
                outcome: RunOutcome::Success,
                exit_code: Some(0),
                image: None,
                duration_ms: None,
                finished: finished.clone(),
            };
            sender.feed(&ToBroker::Finish { req: self.last_req, run }).await?;
        }
        sender.flush().await
    }

    /// A report was answered.
    fn done(&mut self, queue: QueueKey, req: RequestId, fact: impl FnOnce(HeldRun, WorkerId, Digest) -> Fact) {
        // One that was stopped in the meantime is not looked for any more.
        let Some(run) = self.held.iter().find(|(_, held)| held.reported == Some(req)).map(|(run, _)| *run) else {
            return;
        };
        if let Some((_, digest)) = self.held.remove(&run).and_then(|held| held.result) {
            self.load.listener.told(Told { queue, fact: fact(run, self.id.clone(), digest) });
        }
    }
}

/// Chance by the job's id, so that it is so for every worker.
fn is_poison(job: JobId) -> bool {
    let [first, second, ..] = *job.as_bytes();
    u16::from_be_bytes([first, second]) % POISON_EVERY == 0
}

/// Watches a queue, folds what it is shown, and checks that it hangs together.
pub(crate) async fn watch(load: Load, queue: String) {
    let mut watcher = (load.clone(), queue);
    load.keep(&mut watcher, async |(load, queue)| watch_once(load, queue).await).await;
}

async fn watch_once(load: &Load, queue: &str) -> anyhow::Result<()> {
    // The sending half stays: dropping it would not close the socket, but nothing would answer pings.
    let (_sender, mut receiver, welcome) = connect(&load.address, queue, client_hello(true)).await?;
    let mut state = QueueState::new(welcome.queue);
    let wrong = |text: String| load.listener.wrong(format!("a watcher of {queue} was shown {text}"));
    loop {
        match receiver.next().await? {
            FromBroker::Snapshot { head, state: bytes } => {
                state = QueueState::decode(&bytes.0)?;
                if state.head() != head {
                    wrong(format!("a snapshot of {:?} as {head:?}", state.head()));
                }
            }
            FromBroker::Events { from_seq, records } => {
                for record in &records {
                    if let Err(error) = state.apply_bytes(&record.0) {
                        wrong(format!("events from {from_seq} that do not follow: {error}"));
                        bail!("{error}");
                    }
                }
            }
            FromBroker::Rejected { code, message, .. } => bail!("{code}: {message}"),
            FromBroker::Presence { .. } => continue,
            other @ (FromBroker::Welcome { .. }
            | FromBroker::Ok { .. }
            | FromBroker::Granted { .. }
            | FromBroker::Stop { .. }
            | FromBroker::Claimed { .. }
            | FromBroker::Definitions { .. }
            | FromBroker::Explained { .. }
            | FromBroker::Logs { .. }) => wrong(format!("{other:?}")),
        }
        load.listener.told(Told { queue: welcome.queue, fact: Fact::Shown { at: state.head() } });
    }
}
