//! A grid that is kept busy by many namespaces, and how long each of their jobs waits from its acknowledgement to its grant.
//!
//! What is compared must be the same but for the flood, so the grid is full in both cases: waiting is for a slot, not for this
//! machine. Runs take time and no CPU. Two kinds of namespaces submit one job after the other, each waiting for the end of the
//! one before (a namespace holds one live job):
//! - those *at* their fair share submit the next at once. They alone ask for more than there is, so that they share what is there;
//! - those *below* it pause in between, so that they ask for about half of what they are entitled to, and never for more.
//!
//! A namespace below its share is to notice nothing of the flood. One at its share gives a part of it to the newcomer, which is
//! fair: that is told, not judged.
//!
//! The flood is 20,000 jobs in the default namespace, which holds any number, all waiting before the measuring begins.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use protocol::definition::Definition;
use protocol::id::{JobId, Namespace};
use protocol::native::{FromBroker, Submission, ToBroker};
use protocol::raw::RawJson;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::client::{client_hello, connect};
use crate::fair;
use crate::hands::Hands;
use crate::random::Random;
use crate::submitters::submission;
use crate::tally::Wrong;

/// Workers of one slot each.
const SLOTS: usize = 8;
/// How long a run takes, in milliseconds: much longer than a sync, so that a slot is what is waited for.
const TAKES_MS: (u64, u64) = (20, 80);
/// Namespaces that ask for half of their fair share.
const BELOW: usize = 24;
/// Namespaces that ask for all that they can get: more than there are slots.
const AT: usize = 24;
/// Until the grid runs as it will go on.
const WARM_UP: Duration = Duration::from_secs(3);
/// When nothing is to be done.
const FAR: Duration = Duration::from_secs(3600);

/// A small definition that no other has.
pub(crate) fn definition(series: &str, number: u64) -> RawJson {
    RawJson::new(format!(r#"{{"image":"nothing","command":"true","env":{{"SERIES":"{series}","JOB":"{number}"}}}}"#))
}

/// What is compared, in a sentence.
pub(crate) fn describe(flood: usize) -> String {
    let (from, to) = TAKES_MS;
    format!(
        "{SLOTS} slots, always busy; runs take {from} to {to} ms; {BELOW} namespaces ask for about half of their fair share, {AT} for all they get; without and with {flood} waiting jobs of one more"
    )
}

/// Waits in milliseconds.
#[derive(Default)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    /// The one that so many do not exceed.
    pub(crate) fn at(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a place in a list"
        )]
        let place = (sorted.len() as f64 * part).ceil() as usize;
        sorted.get(place.max(1) - 1).copied().unwrap_or(f64::NAN)
    }

    fn text(&self) -> String {
        format!("p50 {:.1} ms, p99 {:.1} ms of {}", self.at(0.5), self.at(0.99), self.0.len())
    }
}

/// How long was waited.
#[derive(Default)]
pub(crate) struct Waits {
    /// By namespaces that ask for less than their fair share.
    pub(crate) below: Sample,
    /// By those that take all they get.
    pub(crate) at: Sample,
    flood_grants: usize,
    grants: usize,
    busy_percent: f64,
}

impl Waits {
    pub(crate) fn add(&mut self, more: Self) {
        self.below.0.extend(more.below.0);
        self.at.0.extend(more.at.0);
    }

    pub(crate) fn text(&self) -> String {
        format!(
            "below the fair share {}; at it {}; {} of {} grants to the flood, slots {:.0} % busy",
            self.below.text(),
            self.at.text(),
            self.flood_grants,
            self.grants,
            self.busy_percent
        )
    }
}

/// A queue with its grid.
pub(crate) struct Town {
    address: String,
    queue: String,
    flood: usize,
    random: Random,
}

/// A submission that was acknowledged.
#[derive(Clone, Copy)]
struct Acknowledged {
    who: usize,
    at: Instant,
}

/// Who submits, and when.
struct Folk {
    random: Random,
    pause: Duration,
    last: u64,
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    /// Who waits for which job's end.
    waiting: BTreeMap<JobId, usize>,
    asked: BTreeMap<u64, (JobId, usize)>,
    acknowledged: Arc<Mutex<BTreeMap<JobId, Acknowledged>>>,
}

impl Town {
    pub(crate) fn of(address: &str, queue: &str, flood: usize, random: Random) -> Self {
        Self { address: address.to_owned(), queue: queue.to_owned(), flood, random }
    }

    /// Lets the grid run, and measures for that long.
    pub(crate) async fn measure(mut self, time: Duration, wrong: &Arc<Wrong>) -> anyhow::Result<Waits> {
        let (finished, ends) = mpsc::channel(1024);
        let hands = Arc::new(Hands {
            address: self.address.clone(),
            queue: self.queue.clone(),
            slots: 1,
            takes_ms: TAKES_MS,
            finished,
            granted: Mutex::default(),
            wrong: wrong.clone(),
            stop: CancellationToken::new(),
        });
        let mut tasks = JoinSet::new();
        for number in 0..SLOTS {
            let (hands, random) = (hands.clone(), self.random.fork());
            tasks.spawn(async move { hands.work(number, random).await });
        }
        let folk = Folk::new(self.random.fork());
        let acknowledged = folk.acknowledged.clone();
        let (address, queue) = (self.address.clone(), self.queue.clone());
        let folk = tokio::spawn(async move { folk.live(&address, &queue, ends).await });
        if self.flood > 0 {
            let job = |number| submission(definition("flood", number as u64));
            fair::submit(&self.address, &self.queue, self.flood, job).await?;
        }
        tokio::time::sleep(WARM_UP).await;
        let from = Instant::now();
        tokio::time::sleep(time).await;
        let until = Instant::now();
        hands.stop.cancel();
        while tasks.join_next().await.is_some() {}
        folk.abort();
        if let Ok(Err(error)) = folk.await {
            wrong.say(format!("submissions of the namespaces: {error:#}"));
        }
        let acknowledged = std::mem::take(&mut *acknowledged.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        Ok(waits(&hands, &acknowledged, from, until))
    }
}

/// How long those waited that were acknowledged between two times; those not granted by then waited at least until then.
fn waits(hands: &Hands, acknowledged: &BTreeMap<JobId, Acknowledged>, from: Instant, until: Instant) -> Waits {
    let granted: BTreeMap<JobId, Instant> = hands.granted().iter().map(|one| (one.run.job, one.at)).collect();
    let mut waits = Waits::default();
    for (job, Acknowledged { who, at }) in acknowledged.iter().filter(|(_, one)| (from..until).contains(&one.at)) {
        let granted_at = granted.get(job).copied().unwrap_or(until);
        let ms = granted_at.saturating_duration_since(*at).as_secs_f64() * 1_000.0;
        if *who < BELOW { waits.below.0.push(ms) } else { waits.at.0.push(ms) }
    }
    let meanwhile = granted.iter().filter(|(_, at)| (from..until).contains(at));
    for (job, _) in meanwhile {
        waits.grants += 1;
        waits.flood_grants += usize::from(!acknowledged.contains_key(job));
    }
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    {
        let mean_ms = (TAKES_MS.0 + TAKES_MS.1) as f64 / 2.0;
        let slots_ms = SLOTS as f64 * (until - from).as_secs_f64() * 1_000.0;
        waits.busy_percent = waits.grants as f64 * mean_ms / slots_ms * 100.0;
    }
    waits
}

impl Folk {
    fn new(mut random: Random) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let (slots, namespaces, takes_s) =
            (SLOTS as f64, (BELOW + AT + 1) as f64, (TAKES_MS.0 + TAKES_MS.1) as f64 / 2_000.0);
        // At its fair share a namespace runs this many a second, one at a time.
        let share_per_second = slots / namespaces / takes_s;
        let pause = Duration::from_secs_f64(2.0 / share_per_second - takes_s);
        let now = Instant::now();
        let due = (0..BELOW + AT).map(|who| Reverse((now + random.millis(0, 500), who))).collect();
        let (waiting, asked, acknowledged) = (BTreeMap::new(), BTreeMap::new(), Arc::default());
        Self { random, pause, last: 0, due, waiting, asked, acknowledged }
    }

    /// Submits for all namespaces over one socket, until something is wrong.
    async fn live(mut self, address: &str, queue: &str, mut ends: mpsc::Receiver<JobId>) -> anyhow::Result<()> {
        let (mut sender, mut receiver, _) = connect(address, queue, client_hello(false)).await?;
        loop {
            let due = self.due.peek().map_or_else(|| Instant::now() + FAR, |Reverse((at, _))| *at);
            tokio::select! {
                message = receiver.next() => match message? {
                    FromBroker::Ok { req, .. } => {
                        let (job, who) = self.asked.remove(&req).context("an answer to no request")?;
                        let at = Instant::now();
                        let mut all = self.acknowledged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        all.insert(job, Acknowledged { who, at });
                    }
                    other => bail!("a submission was answered {other:?}"),
                },
                job = ends.recv() => {
                    let job = job.context("the workers have stopped")?;
                    if let Some(who) = self.waiting.remove(&job) {
                        let pause = if who < BELOW { self.pause() } else { Duration::ZERO };
                        self.due.push(Reverse((Instant::now() + pause, who)));
                    }
                }
                () = sleep_until(due) => {
                    while let Some(Reverse((at, who))) = self.due.peek().copied() {
                        if at > Instant::now() {
                            break;
                        }
                        self.due.pop();
                        sender.feed(&self.submit(who)?).await?;
                    }
                    sender.flush().await?;
                }
            }
        }
    }

    /// At all moments, and never so short that the next comes before the namespace's turn does.
    fn pause(&mut self) -> Duration {
        let micros = u64::try_from(self.pause.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.random.between(micros / 2, micros / 2 * 3))
    }

    fn submit(&mut self, who: usize) -> anyhow::Result<ToBroker> {
        self.last += 1;
        let definition = definition("town", self.last);
        let job = Definition::parse(definition.as_str().as_bytes())?.job_id();
        self.waiting.insert(job, who);
        self.asked.insert(self.last, (job, who));
        let job = Submission { namespace: Some(namespace(who)), ..submission(definition) };
        Ok(ToBroker::Submit { req: self.last, job })
    }
}

fn namespace(who: usize) -> Namespace {
    format!("namespace-{who:03}").parse().expect("a short printable name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_wait_that_so_many_do_not_exceed() {
        let sample = Sample((1..=100).rev().map(f64::from).collect());
        assert_eq!([sample.at(0.0), sample.at(0.5), sample.at(0.99), sample.at(1.0)], [1.0, 50.0, 99.0, 100.0]);
        assert!(Sample::default().at(0.5).is_nan());
    }
}
