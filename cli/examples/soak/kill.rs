//! `soak kill`: the broker is killed at random moments while it serves a mixed load, and started again, round after round.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use broker::config::Config;
use tokio_util::sync::CancellationToken;

use crate::blobs;
use crate::collector::Collector;
use crate::containers::Containers;
use crate::history::{self, Histories, Losses};
use crate::load::{Load, Shape};
use crate::random::Random;
use crate::subject::Subject;
use crate::told::{Fact, Told};

const QUEUES: [&str; 4] = ["soak-1", "soak-2", "soak-3", "soak-4"];

/// Some hundred commands a second, and runs that outlast brokers.
const SHAPE: Shape = Shape { pace: Duration::from_millis(10), long_runs_percent: 10, body_bytes_max: usize::MAX };

/// How many of 100 kills come while the broker is starting.
const EARLY_KILLS_PERCENT: u64 = 20;

/// Options of `soak kill`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often the broker is killed
    #[arg(long, default_value_t = 20)]
    rounds: u32,
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
    println!("kill: {} rounds, seed {seed}", args.rounds);
    let temporary = tempfile::tempdir()?;
    let dir = args.keep.as_deref().unwrap_or(temporary.path());
    std::fs::create_dir_all(dir)?;
    let soak = Subject::new(dir)?;
    let collector = Arc::new(Collector::default());
    let mut random = Random::new(seed);
    let mut broker = soak.start()?;
    soak.ready().await?;
    let stop = CancellationToken::new();
    let load = Load { address: soak.address.clone(), shape: SHAPE, listener: collector.clone(), stop: stop.clone() };
    let mut tasks = load.start(&QUEUES.map(str::to_owned), &[], random.next());
    let containers = Containers::start(&soak.binary, &soak.http, &soak.address, dir, seed).await?;

    for round in 1..=args.rounds {
        let early = random.percent(EARLY_KILLS_PERCENT);
        let serving = if early { random.millis(0, 120) } else { random.millis(300, 2500) };
        if early {
            // This round's broker was started again a moment ago, and dies before or just after it answers.
            broker.kill().await.context("killing the broker")?;
            broker = soak.start()?;
        }
        tokio::time::sleep(serving).await;
        broker.kill().await.context("killing the broker")?;
        let acknowledged = collector.acknowledged();
        tokio::time::sleep(random.millis(0, 300)).await;
        let started = tokio::time::Instant::now();
        broker = soak.start()?;
        soak.ready().await?;
        let when = if early { "after its start" } else { "of serving" };
        println!(
            "  round {round}: killed {} ms {when}, {acknowledged} acknowledged so far, answers again after {} ms",
            serving.as_millis(),
            started.elapsed().as_millis()
        );
        if let Some(containers) = &containers {
            containers.check().await.with_context(|| format!("after round {round}"))?;
        }
    }
    let runs = match containers {
        Some(containers) => Some(containers.finish().await?),
        None => None,
    };
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    let ended = broker.stop().await?;
    let (told, mut wrong) = collector.take();
    if !ended.success() {
        wrong.push(format!("asked to stop, the broker ended with {ended}"));
    }
    soak.audit_verify()?;
    let histories = soak.compare(&told, Losses::None, &mut wrong)?;
    wrong.extend(blobs::check(&Config::new(&soak.data), &told).await?);
    let containers_said = match runs {
        Some(runs) => runs.check(&histories, &mut wrong),
        None => "containers: skipped, no Docker Engine answers".to_owned(),
    };
    wrong.iter().take(history::WRONG_MAX).for_each(|text| println!("  wrong: {text}"));
    let resumed = told.iter().filter(|one| matches!(one.fact, Fact::Resumed { .. })).count();
    ensure!(resumed > 0, "no worker ever came back with a run: this has shown nothing");
    println!(
        "kill: {} rounds, seed {seed}: {}; {resumed} runs resumed; audit verify: good; {containers_said}; {} wrong",
        args.rounds,
        summary(&told, &histories),
        wrong.len()
    );
    Ok(wrong.is_empty())
}

/// What was told, counted.
pub(crate) fn summary(told: &[Told], histories: &Histories) -> String {
    let count = |is_it: fn(&Fact) -> bool| told.iter().filter(|one| is_it(&one.fact)).count();
    let records: u64 = histories.values().map(|history| history.state.head().seq).sum();
    let shown = match count(|fact| matches!(fact, Fact::Shown { .. })) {
        0 => String::new(),
        heads => format!("; {heads} shown heads too"),
    };
    format!(
        "acknowledged {} submissions, {} claims, {} finishes, {} cancels, {} uploads, all there, in {records} records{shown}",
        count(|fact| matches!(fact, Fact::Queued { .. })),
        count(|fact| matches!(fact, Fact::Claimed { .. })),
        count(|fact| matches!(fact, Fact::Finished { .. })),
        count(|fact| matches!(fact, Fact::Cancelled { .. })),
        count(|fact| matches!(fact, Fact::Stored { .. })),
    )
}
