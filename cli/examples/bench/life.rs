//! Whole no-op lives: a submitter and simulated workers over native sockets, in this process.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::{FutureExt, SinkExt, StreamExt};
use protocol::event::RunOutcome;
use protocol::native::{FinishedRun, FromBroker, HeldRun, ToBroker};
use protocol::raw::RawJson;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::definitions::{self, Fit, number_of};
use crate::http::Latencies;
use crate::socket::{FRAMES_PER_FLUSH, Native, Sink, UNANSWERED_MAX, binary, capacity, decode, frame};

/// A load of lives.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) port: u16,
    pub(crate) queue: String,
    pub(crate) series: &'static str,
    /// Simulated workers, and how many runs each takes at once.
    pub(crate) workers: u32,
    pub(crate) slots: u32,
    /// Jobs that are submitted and not finished, at most.
    pub(crate) in_life_max: u64,
    /// Ends after this time or this many lives.
    pub(crate) time: Duration,
    pub(crate) lives_max: u64,
}

#[derive(Default)]
struct Shared {
    finished: AtomicU64,
    news: Notify,
    over: CancellationToken,
}

/// Lives per second, each with its submission, claim and finish acknowledged.
pub(crate) async fn run(plan: &Plan) -> anyhow::Result<f64> {
    let shared = Arc::new(Shared::default());
    let mut tasks = JoinSet::new();
    let client = Native::client(plan.port, &plan.queue, false).await?;
    let mut workers = Vec::new();
    for number in 0..plan.workers {
        let mut worker = Native::worker(plan.port, &plan.queue, number, plan.slots).await?;
        worker.send(&ToBroker::Claim { free: capacity(plan.slots), grants_seen: 0, req: None }).await?;
        workers.push(worker);
    }
    let started = Instant::now();
    for worker in workers {
        tasks.spawn(work(worker, plan.slots, shared.clone()));
    }
    tasks.spawn(submit(client, plan.clone(), started, shared.clone()));
    let mut result = Ok(());
    while let Some(done) = tasks.join_next().await {
        let done = done.context("a task panicked").and_then(|done| done);
        shared.over.cancel();
        result = result.and(done);
    }
    result?;
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
    let finished = shared.finished.load(Ordering::Relaxed) as f64;
    Ok(finished / started.elapsed().as_secs_f64())
}

/// Submits while there is room in life, until time or lives are over.
async fn submit(client: Native, plan: Plan, started: Instant, shared: Arc<Shared>) -> anyhow::Result<()> {
    let Native { mut sink, mut stream, .. } = client;
    let (sent, answered) = (AtomicU64::new(0), AtomicU64::new(0));
    let deadline = started + plan.time;
    let send = async {
        loop {
            let finished = shared.finished.load(Ordering::Relaxed);
            if finished >= plan.lives_max || Instant::now() >= deadline {
                return anyhow::Ok(());
            }
            let so_far = sent.load(Ordering::Relaxed);
            let until = (finished + plan.in_life_max)
                .min(answered.load(Ordering::Relaxed) + UNANSWERED_MAX)
                .min(so_far + FRAMES_PER_FLUSH)
                .min(plan.lives_max);
            if until <= so_far {
                tokio::select! {
                    () = shared.news.notified() => {}
                    () = sleep_until(deadline) => {}
                }
                continue;
            }
            for number in so_far..until {
                sink.feed(frame(&definitions::submit(number, plan.series, number, Fit::Plain))).await?;
            }
            sink.flush().await?;
            sent.store(until, Ordering::Relaxed);
        }
    };
    let receive = async {
        loop {
            let Some(bytes) = binary(stream.next().await)? else { continue };
            match decode(&bytes)? {
                FromBroker::Ok { .. } => {
                    answered.fetch_add(1, Ordering::Relaxed);
                    shared.news.notify_one();
                }
                other => bail!("a submission was not accepted: {other:?}"),
            }
        }
    };
    tokio::select! {
        () = shared.over.cancelled() => Ok(()),
        done = send => done,
        failed = receive => failed,
    }
}

/// A worker whose runs end as they begin.
async fn work(worker: Native, slots: u32, shared: Arc<Shared>) -> anyhow::Result<()> {
    let Native { mut sink, mut stream, .. } = worker;
    let mut grants = 0;
    loop {
        let mut next = tokio::select! {
            () = shared.over.cancelled() => return Ok(()),
            next = stream.next() => Some(next),
        };
        let before = grants;
        while let Some(message) = next.take() {
            if let Some(bytes) = binary(message)? {
                match decode(&bytes)? {
                    FromBroker::Granted { run, definition, .. } => {
                        grants += 1;
                        finish(&mut sink, grants, run, &definition).await?;
                    }
                    FromBroker::Ok { .. } => {
                        shared.finished.fetch_add(1, Ordering::Relaxed);
                        shared.news.notify_one();
                    }
                    other => bail!("a worker was told: {other:?}"),
                }
            }
            next = stream.next().now_or_never();
        }
        if grants > before {
            sink.feed(frame(&ToBroker::Claim { free: capacity(slots), grants_seen: grants, req: None })).await?;
        }
        sink.flush().await?;
    }
}

async fn finish(sink: &mut Sink, req: u64, run: HeldRun, definition: &RawJson) -> anyhow::Result<()> {
    let number = number_of(definition.as_str()).unwrap_or_default();
    let finished = RawJson::new(format!(
        r#"{{"type":"Finished","reason":"Success","time":1700000000000,"result":{{"StatusCode":0,"duration":1,"logs":[["{number}\n",1700000000000]],"outputs":{{}}}}}}"#
    ));
    let run = FinishedRun {
        job: run.job,
        run: run.run,
        outcome: RunOutcome::Success,
        exit_code: Some(0),
        image: None,
        duration_ms: Some(1),
        finished,
    };
    Ok(sink.feed(frame(&ToBroker::Finish { req, run })).await?)
}

/// Submits at a steady rate and measures from each submission's sending to its grant's arrival.
pub(crate) async fn dispatch(port: u16, queue: &str, per_second: u32, time: Duration) -> anyhow::Result<Latencies> {
    const SLOTS: u32 = 100_000;
    let Native { mut sink, mut stream, .. } = Native::client(port, queue, false).await?;
    let mut worker = Native::worker(port, queue, 0, SLOTS).await?;
    worker.send(&ToBroker::Claim { free: capacity(SLOTS), grants_seen: 0, req: None }).await?;
    let (sent_at, over) = (RefCell::new(Vec::<Instant>::new()), Cell::new(false));
    let count = (f64::from(per_second) * time.as_secs_f64()).round();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few thousand")]
    let count = count as u64;
    let started = Instant::now();
    let submit = async {
        let mut ticks = interval(Duration::from_millis(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut sent = 0;
        while sent < count {
            ticks.tick().await;
            let due = started.elapsed().as_secs_f64() * f64::from(per_second);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few thousand")]
            let due = (due as u64).min(count);
            for number in sent..due {
                sink.feed(frame(&definitions::submit(number, "rate", number, Fit::Plain))).await?;
                sent_at.borrow_mut().push(Instant::now());
            }
            sent = due;
            sink.flush().await?;
        }
        anyhow::Ok(())
    };
    let answers = async {
        for _ in 0..count {
            while binary(stream.next().await)?.is_none() {}
        }
        anyhow::Ok(())
    };
    let grants = async {
        let mut each = Vec::new();
        let mut seen = 0;
        while (each.len() as u64) < count {
            let mut next = Some(worker.stream.next().await);
            while let Some(message) = next.take() {
                if let Some(bytes) = binary(message)?
                    && let FromBroker::Granted { run, definition, .. } = decode(&bytes)?
                {
                    let now = Instant::now();
                    let number = number_of(definition.as_str()).context("a job of another load")?;
                    let sent = sent_at
                        .borrow()
                        .get(usize::try_from(number)?)
                        .copied()
                        .context("granted before it was sent")?;
                    each.push(now - sent);
                    seen += 1;
                    finish(&mut worker.sink, seen, run, &definition).await?;
                }
                next = worker.stream.next().now_or_never();
            }
            worker.sink.feed(frame(&ToBroker::Claim { free: capacity(SLOTS), grants_seen: seen, req: None })).await?;
            worker.sink.flush().await?;
        }
        over.set(true);
        Ok(each)
    };
    let ((), (), each) = tokio::try_join!(submit, answers, grants)?;
    Ok(Latencies::new(each))
}
