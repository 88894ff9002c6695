//! `soak grid`: a broker and fifty workers, all of them killed at random for ten minutes under load. Nothing acknowledged is
//! lost, nothing ends twice, and when it is over every job comes to an end.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, ensure};
use broker::config::Config;
use protocol::id::WorkerId;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::collector::Collector;
use crate::history::Losses;
use crate::kill::summary;
use crate::lives::Lives;
use crate::load::{Listener, Load, Shape};
use crate::random::Random;
use crate::real::{self, Real};
use crate::subject::Subject;
use crate::subscribers::Subscribers;
use crate::tally::Wrong;
use crate::told::Fact;
use crate::workers::{self, Deaths, Mortality};
use crate::{blobs, open_files, submitters};

const QUEUES: [&str; 4] = ["soak-grid-1", "soak-grid-2", "soak-grid-3", "soak-grid-4"];

/// Some hundred commands a second; runs that outlast their workers and brokers.
const SHAPE: Shape = Shape { pace: Duration::from_millis(25), long_runs_percent: 15, body_bytes_max: 4_000 };

/// How long a worker lives, in milliseconds.
const WORKER_LIVES_MS: (u64, u64) = (2_000, 40_000);
/// How long a broker lives, in milliseconds, and how many of 100 die while they start.
const BROKER_LIVES_MS: (u64, u64) = (1_000, 10_000);
const EARLY_MS: (u64, u64) = (0, 150);
const EARLY_PERCENT: u64 = 15;
/// Subscribers of each queue, all of which fold.
const SUBSCRIBERS: usize = 5;
/// How long the grid may take to bring all jobs to an end: leases, three times over, and the runs.
const ENDS_WITHIN: Duration = Duration::from_secs(240);
/// How often something is said.
const SAY_EVERY: Duration = Duration::from_secs(30);

/// Options of `soak grid`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long everything is killed
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// How many simulated workers there are
    #[arg(long, default_value_t = 50)]
    workers: usize,
    /// The seed of all random choices [default: another each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Keep the data in this folder instead of a temporary one
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// Runs it; whether all was well.
pub(crate) async fn run(args: Args) -> anyhow::Result<bool> {
    let seed = args.seed.unwrap_or_else(Random::seed);
    println!("grid: {} workers, {} minutes, seed {seed}", args.workers, args.minutes);
    let time = Duration::try_from_secs_f64(args.minutes * 60.0).context("--minutes")?;
    open_files::allow_all();
    let temporary = tempfile::tempdir()?;
    let dir = args.keep.as_deref().unwrap_or(temporary.path());
    std::fs::create_dir_all(dir)?;
    let soak = Subject::new(dir)?;
    let mut random = Random::new(seed);
    let mut broker = soak.start()?;
    soak.ready().await?;

    let collector = Arc::new(Collector::default());
    let (submitting, working, calm) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let load = |stop: &CancellationToken| Load {
        address: soak.address.clone(),
        shape: SHAPE,
        listener: collector.clone(),
        stop: stop.clone(),
    };
    let mut submitters = JoinSet::new();
    let mut watching = Vec::new();
    for queue in QUEUES {
        let label = |part: &str| format!("{seed}-{queue}-{part}");
        let queue = queue.to_owned();
        submitters.spawn(submitters::over_socket(load(&submitting), queue.clone(), random.fork(), label("socket")));
        submitters.spawn(submitters::over_rest(load(&submitting), queue.clone(), random.fork(), label("rest")));
        watching.push(Subscribers::start(&soak.address, &queue, SUBSCRIBERS, SUBSCRIBERS).await?);
    }
    let deaths = Arc::new(Deaths::default());
    let mortality = Mortality { lives_ms: WORKER_LIVES_MS, calm: calm.clone(), deaths: deaths.clone() };
    let mut workers = JoinSet::new();
    for number in 0..args.workers {
        let queue = QUEUES[number % QUEUES.len()].to_owned();
        let id: WorkerId = format!("{queue}-worker-{number:02}").parse().context("a worker's id")?;
        workers.spawn(workers::work_and_die(load(&working), queue, id, random.fork(), mortality.clone()));
    }
    let mut real = Real::start(&soak, dir, seed, &mut random, &calm).await?;

    let started = Instant::now();
    let (mut kills, mut said) = (0_u64, started);
    while started.elapsed() < time {
        let early = random.percent(EARLY_PERCENT);
        let (from, to) = if early { EARLY_MS } else { BROKER_LIVES_MS };
        tokio::time::sleep(random.millis(from, to).min(time)).await;
        broker.kill_in_place().await.context("killing the broker")?;
        kills += 1;
        tokio::time::sleep(random.millis(0, 300)).await;
        broker = soak.start()?;
        if !random.percent(EARLY_PERCENT) {
            soak.ready().await?;
        }
        if said.elapsed() > SAY_EVERY {
            said = Instant::now();
            println!(
                "  {} s: {kills} kills of the broker, {} of workers, {} acknowledged",
                started.elapsed().as_secs(),
                dead(&deaths),
                collector.acknowledged()
            );
        }
    }
    soak.ready().await?;
    calm.cancel();
    submitting.cancel();
    while submitters.join_next().await.is_some() {}
    let calm_since = Instant::now();
    let (real_workers, real_jobs) = match &mut real {
        Some(real) => real.calm().await?,
        None => (Vec::new(), Vec::new()),
    };
    println!("  calm: {kills} kills of the broker, {} of workers; waiting for all jobs to end", dead(&deaths));
    for queue in QUEUES.into_iter().chain(real.as_ref().map(|_| real::QUEUE)) {
        let is_empty = async || soak.queue_length(queue).await.is_ok_and(|length| length == 0);
        if !Load::wait_for(ENDS_WITHIN, is_empty).await {
            collector.wrong(format!("jobs of {queue} still wait or run {ENDS_WITHIN:?} after everything was calm"));
        }
    }
    println!("  every job has ended {} s after the last kill", calm_since.elapsed().as_secs());
    for worker in real_workers {
        worker.stop().await.context("stopping a real worker")?;
    }
    working.cancel();
    while workers.join_next().await.is_some() {}
    let (mut resumes, mut shown) = (0, 0);
    for subscribers in &watching {
        subscribers.agree().await?;
        resumes += subscribers.seen.resumes.get();
        shown += subscribers.seen.records.get();
    }
    let ended = broker.stop().await?;

    let (told, mut wrong) = collector.take();
    if !ended.success() {
        wrong.push(format!("asked to stop, the broker ended with {ended}"));
    }
    soak.audit_verify()?;
    let histories = soak.compare(&told, Losses::Some, &mut wrong)?;
    wrong.extend(blobs::check(&Config::new(&soak.data), &told).await?);
    let lives = Lives::read(&histories);
    let real_said = match &real {
        Some(real) => real.check(&real_jobs, &histories, &mut wrong),
        None => "real workers: skipped, no Docker Engine answers".to_owned(),
    };
    let Lives { lives: count, claimed, finished, lost, resumed, abandoned, lost_most, wrong: of_lives } = lives;
    wrong.extend(of_lives);
    let kept = told.iter().filter(|one| matches!(one.fact, Fact::Resumed { .. })).count();
    ensure!(lost > 0 && kept > 0, "{lost} runs were lost and {kept} kept over a death: this has shown nothing");
    println!(
        "  deaths of workers: {} for a moment, {} for longer than a lease, {} with their machine",
        deaths.short.load(Ordering::Relaxed),
        deaths.long.load(Ordering::Relaxed),
        deaths.machines.load(Ordering::Relaxed)
    );
    println!(
        "  {count} lives of jobs: {claimed} runs, {finished} finished, {lost} lost (at most {lost_most} of one job), {resumed} taken up again after they were lost, {kept} times one was kept over a death; {abandoned} jobs abandoned after 3 lost runs"
    );
    println!(
        "  {} subscribers resumed {resumes} times and were shown {shown} records, none twice",
        SUBSCRIBERS * QUEUES.len()
    );
    println!("  {real_said}");
    let promise = format!(
        "{kills} kills of the broker and {} of workers: {}; every job ended, each life once; audit verify: good",
        dead(&deaths),
        summary(&told, &histories)
    );
    let all = Wrong::default();
    all.say_all(wrong);
    watching.iter().for_each(|subscribers| all.add(subscribers.seen.wrong.count()));
    println!("grid: seed {seed}: {}", all.verdict(&promise));
    Ok(all.count() == 0)
}

fn dead(deaths: &Deaths) -> u64 {
    [&deaths.short, &deaths.long, &deaths.machines].iter().map(|count| count.load(Ordering::Relaxed)).sum()
}
