//! Simulated workers that take time and no CPU: a run is granted, some milliseconds pass, its end is reported.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;
use futures_util::FutureExt;
use protocol::event::RunOutcome;
use protocol::id::{JobId, WorkerId};
use protocol::native::{FinishedRun, FromBroker, HeldRun, RequestId, ToBroker};
use protocol::raw::RawJson;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::client::{Receiver, Sender, capacity, connect, worker_hello};
use crate::random::Random;
use crate::tally::Wrong;

/// Well within a lease.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// When nothing is to be done.
const FAR: Duration = Duration::from_secs(3600);

/// A run that was granted.
#[derive(Clone, Copy)]
pub(crate) struct Granted {
    pub(crate) run: HeldRun,
    pub(crate) worker: usize,
    pub(crate) at: Instant,
}

/// What all workers of a queue share.
pub(crate) struct Hands {
    pub(crate) address: String,
    pub(crate) queue: String,
    /// Runs that each takes at once.
    pub(crate) slots: u32,
    /// How long a run takes, in milliseconds: from this up to and without that; 0, 0 is no time at all.
    pub(crate) takes_ms: (u64, u64),
    /// Hears which job's end was acknowledged.
    pub(crate) finished: mpsc::Sender<JobId>,
    pub(crate) granted: Mutex<Vec<Granted>>,
    pub(crate) wrong: Arc<Wrong>,
    pub(crate) stop: CancellationToken,
}

struct Worker<'a> {
    hands: &'a Hands,
    number: usize,
    random: Random,
    sender: Sender,
    /// Runs under way, those that end first first.
    running: BTreeMap<(Instant, HeldRun), ()>,
    reported: BTreeMap<RequestId, JobId>,
    grants: u64,
    last_req: RequestId,
}

impl Hands {
    /// Everything that was granted so far.
    pub(crate) fn granted(&self) -> Vec<Granted> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One worker, until all are stopped or something is wrong.
    pub(crate) async fn work(&self, number: usize, random: Random) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            Err(error) = self.connection(number, random) => self.wrong.say(format!("worker {number}: {error:#}")),
        }
    }

    async fn connection(&self, number: usize, random: Random) -> anyhow::Result<()> {
        let id: WorkerId = format!("{}-worker-{number:03}", self.queue).parse()?;
        let hello = worker_hello(id, self.slots, Vec::new());
        let (sender, receiver, _) = connect(&self.address, &self.queue, hello).await?;
        let (running, reported) = (BTreeMap::new(), BTreeMap::new());
        let mut worker = Worker { hands: self, number, random, sender, running, reported, grants: 0, last_req: 0 };
        worker.serve(receiver).await
    }
}

impl Worker<'_> {
    async fn serve(&mut self, mut receiver: Receiver) -> anyhow::Result<()> {
        self.claim().await?;
        self.sender.flush().await?;
        let mut renew = tokio::time::interval(RENEW_EVERY);
        loop {
            let next = self.running.first_key_value().map(|((ends, _), ())| *ends);
            tokio::select! {
                message = receiver.next() => {
                    self.hear(message?).await?;
                    // Whatever else has come is answered together.
                    while let Some(message) = receiver.next().now_or_never() {
                        self.hear(message?).await?;
                    }
                }
                () = sleep_until(next.unwrap_or_else(|| Instant::now() + FAR)) => {}
                _ = renew.tick() => {
                    let runs = self.running.keys().map(|(_, run)| *run).collect();
                    self.sender.feed(&ToBroker::Renew { runs }).await?;
                }
            }
            self.report().await?;
            self.sender.flush().await?;
        }
    }

    async fn hear(&mut self, message: FromBroker) -> anyhow::Result<()> {
        match message {
            FromBroker::Granted { run, .. } => {
                let at = Instant::now();
                self.grants += 1;
                let granted = Granted { run, worker: self.number, at };
                self.hands.granted.lock().unwrap_or_else(PoisonError::into_inner).push(granted);
                let (from, to) = self.hands.takes_ms;
                let takes = if from < to { self.random.millis(from, to) } else { Duration::ZERO };
                self.running.insert((at + takes, run), ());
                if self.running.len() > usize::try_from(self.hands.slots)? {
                    let (number, running) = (self.number, self.running.len());
                    self.hands.wrong.say(format!("worker {number} was granted {running} runs at once"));
                }
                Ok(())
            }
            FromBroker::Ok { req, .. } => {
                let Some(job) = self.reported.remove(&req) else { bail!("request {req} was answered twice") };
                // Whoever waits for ends is always ready for more; it may have stopped waiting.
                let _ = self.hands.finished.send(job).await;
                Ok(())
            }
            other => bail!("a worker was told {other:?}"),
        }
    }

    /// Reports all runs that have ended, and asks for as many more.
    async fn report(&mut self) -> anyhow::Result<()> {
        let (now, mut ended) = (Instant::now(), false);
        while let Some(((_, run), ())) = self.running.first_key_value().filter(|((ends, _), ())| *ends <= now) {
            let run = *run;
            self.running.pop_first();
            self.last_req += 1;
            self.reported.insert(self.last_req, run.job);
            let finished = FinishedRun {
                job: run.job,
                run: run.run,
                outcome: RunOutcome::Success,
                exit_code: Some(0),
                image: None,
                duration_ms: None,
                finished: RawJson::new(r#"{"type":"Finished","reason":"Success","time":0,"result":{"StatusCode":0}}"#),
            };
            self.sender.feed(&ToBroker::Finish { req: self.last_req, run: finished }).await?;
            ended = true;
        }
        if ended { self.claim().await } else { Ok(()) }
    }

    async fn claim(&mut self) -> anyhow::Result<()> {
        let used = u32::try_from(self.running.len())?;
        let free = capacity(self.hands.slots.saturating_sub(used));
        self.sender.feed(&ToBroker::Claim { free, grants_seen: self.grants, req: None }).await
    }
}
