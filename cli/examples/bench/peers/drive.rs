//! The loads, the same for every peer: publishes that wait, publishes in a pipeline, and whole lives.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::Notify;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep};

use super::program::{Program, Unavailable};
use super::{IN_LIFE_MAX, SLOTS, WORKERS};
use crate::definitions::{Fit, definition};
use crate::http::Latencies;
use crate::socket::{FRAMES_PER_FLUSH, UNANSWERED_MAX};

/// How long a peer may take until a first life has ended there.
const FIRST_WITHIN: Duration = Duration::from_secs(10);

/// How often the time is looked at while nothing happens.
const TICK: Duration = Duration::from_millis(5);

/// A connection to a durable queue.
pub(super) trait Link: Sized + 'static {
    /// The system, and when it says that something is durable.
    const NAME: &str;
    /// Of its data.
    const FOLDER: &str;
    /// What a life is there.
    const LIFE: &str;

    /// Starts a server whose data are in that folder.
    fn start(folder: &Path) -> impl Future<Output = Result<Program, Unavailable>>;

    /// A connection that publishes to the queue of that name, which is made when it is not there.
    fn publisher(port: u16, queue: &str) -> impl Future<Output = anyhow::Result<Self>>;

    /// A connection that takes jobs from it, `slots` at once.
    fn worker(port: u16, queue: &str, number: u32, slots: u32) -> impl Future<Output = anyhow::Result<Self>>;

    /// Puts one publish in line.
    fn put(&mut self, payload: &str);

    /// Sends what is in line.
    fn flush(&mut self) -> impl Future<Output = anyhow::Result<()>>;

    /// Waits for answers to publishes and says how many came. May be dropped while it waits.
    fn answered(&mut self) -> impl Future<Output = anyhow::Result<u64>>;

    /// Waits for whatever comes, ends the jobs among it, asks for more, and says how many ends were acknowledged.
    fn work(&mut self) -> impl Future<Output = anyhow::Result<u64>>;
}

fn payload(number: u64) -> String {
    definition("peers", number, Fit::Plain)
}

/// Each client publishes over a connection of its own and waits for the answer before the next.
pub(super) async fn waiting<P: Link>(port: u16, clients: usize, time: Duration) -> anyhow::Result<(f64, Latencies)> {
    let mut links = Vec::new();
    for _ in 0..clients {
        links.push(P::publisher(port, &format!("waiting{clients}")).await?);
    }
    let local = LocalSet::new();
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for (client, mut link) in (0..).zip(links) {
        let publish = async move {
            let mut each = Vec::new();
            while started.elapsed() < time {
                let payload = payload(client * 1_000_000 + each.len() as u64);
                let sent = Instant::now();
                link.put(&payload);
                link.flush().await?;
                link.answered().await?;
                each.push(sent.elapsed());
            }
            anyhow::Ok(each)
        };
        tasks.spawn_local_on(publish, &local);
    }
    local.run_until(gathered(tasks, started)).await
}

/// The rate and the latencies of clients that each say how long their publishes took.
pub(super) async fn gathered(
    mut tasks: JoinSet<anyhow::Result<Vec<Duration>>>,
    started: Instant,
) -> anyhow::Result<(f64, Latencies)> {
    let mut each = Vec::new();
    while let Some(done) = tasks.join_next().await {
        each.extend(done.context("a client panicked")??);
    }
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
    let per_second = each.len() as f64 / started.elapsed().as_secs_f64();
    Ok((per_second, Latencies::new(each)))
}

/// Publishes over one connection until `count_max` or the time is reached; says how many and how long it took.
pub(super) async fn pipelined<P: Link>(port: u16, count_max: u64, time: Duration) -> anyhow::Result<(u64, Duration)> {
    let mut link = P::publisher(port, "pipelined").await?;
    // Made before, so that the clock is the peer's alone.
    let payloads: Vec<String> = (0..count_max).map(payload).collect();
    let started = Instant::now();
    let (mut sent, mut answered, mut count) = (0, 0, count_max);
    while answered < count {
        let until = (answered + UNANSWERED_MAX).min(sent + FRAMES_PER_FLUSH).min(count);
        for number in sent..until {
            link.put(&payloads[usize::try_from(number)?]);
        }
        if until > sent {
            link.flush().await?;
            sent = until;
        }
        if sent == count || sent - answered >= UNANSWERED_MAX {
            answered += link.answered().await?;
        }
        if started.elapsed() >= time {
            count = sent;
        }
    }
    Ok((count, started.elapsed()))
}

#[derive(Default)]
struct Shared {
    finished: Cell<u64>,
    /// When the first ended, and how many had by then.
    began: Cell<Option<(Instant, u64)>>,
    news: Notify,
}

/// Lives per second from the end of the first on, with as many in life as ours: one that takes in many before it gives out any is
/// measured at work.
pub(super) async fn life<P: Link>(port: u16, time: Duration) -> anyhow::Result<f64> {
    let mut publisher = P::publisher(port, "life").await?;
    let shared = Rc::new(Shared::default());
    let mut workers = Vec::new();
    for number in 0..WORKERS {
        workers.push(P::worker(port, "life", number, SLOTS).await?);
    }
    let local = LocalSet::new();
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    for mut worker in workers {
        let shared = shared.clone();
        let work = async move {
            loop {
                let ended = worker.work().await?;
                shared.finished.set(shared.finished.get() + ended);
                if ended > 0 && shared.began.get().is_none() {
                    shared.began.set(Some((Instant::now(), ended)));
                }
                shared.news.notify_one();
            }
        };
        tasks.spawn_local_on(work, &local);
    }
    let is_over = || match shared.began.get() {
        Some((began, _)) => began.elapsed() >= time,
        None => started.elapsed() >= FIRST_WITHIN,
    };
    let publish = async {
        let (mut sent, mut answered) = (0, 0);
        while !is_over() {
            let until =
                (shared.finished.get() + IN_LIFE_MAX).min(answered + UNANSWERED_MAX).min(sent + FRAMES_PER_FLUSH);
            for number in sent..until {
                publisher.put(&payload(number));
            }
            if until > sent {
                publisher.flush().await?;
                sent = until;
            }
            tokio::select! {
                more = publisher.answered(), if answered < sent => answered += more?,
                () = shared.news.notified() => {}
                () = sleep(TICK) => {}
            }
        }
        anyhow::Ok(())
    };
    let all = async {
        tokio::select! {
            done = publish => done,
            Some(ended) = tasks.join_next() => ended.context("a worker panicked").and_then(|ended: anyhow::Result<()>| ended),
        }
    };
    local.run_until(all).await?;
    let (began, first) = shared.began.get().context("no life has ended")?;
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
    let finished = (shared.finished.get() - first) as f64;
    Ok(finished / began.elapsed().as_secs_f64())
}
