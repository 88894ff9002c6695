//! `soak worker`: thousands of short jobs of all kinds through real workers that are killed and started again, on an engine of
//! its own that is killed and started again, with cancels, deletes and retries. Every job ends once and for the right reason, and
//! nothing is left.

mod crew;
pub(crate) mod daemon;
mod driver;
mod judge;
mod kinds;
mod left;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use tokio_util::sync::CancellationToken;

use self::crew::Crew;
use self::daemon::Daemon;
use self::driver::Driver;
use crate::open_files;
use crate::random::Random;
use crate::subject::Subject;
use crate::tally::Wrong;

/// The jobs' queue.
const QUEUE: &str = "soak-worker";

/// How long the rest may take to end once it is calm: the longest job, three leases, and an engine that has to come back.
const ENDS_WITHIN: Duration = Duration::from_secs(240);

/// How much larger than early on a worker may be at the end.
const GROWTH_MIB: u64 = 24;

/// Options of `soak worker`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many jobs are submitted
    #[arg(long, default_value_t = 5_000)]
    jobs: u64,
    /// The seed of all random choices [default: another each time]
    #[arg(long)]
    seed: Option<u64>,
    /// How often the engine is killed or restarted, once in so many seconds on average; 0: never
    #[arg(long, default_value_t = 60)]
    engine_every: u64,
    /// Kill no worker
    #[arg(long)]
    no_kills: bool,
    /// Keep the data in this folder instead of a temporary one
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// What was done to the engine and to workers, and when.
#[derive(Debug, Default)]
pub(crate) struct Troubles {
    all: Mutex<Vec<Trouble>>,
    is_engine_away: AtomicBool,
    /// What nobody did on purpose.
    strange: Mutex<Vec<String>>,
}

/// Something that was done on purpose; times in milliseconds since 1970.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) from_ms: u64,
    pub(crate) to_ms: u64,
    /// The worker that was killed; `None`: the engine.
    pub(crate) worker: Option<String>,
}

impl Troubles {
    fn add(&self, from_ms: u64, worker: Option<String>) {
        let trouble = Trouble { from_ms, to_ms: broker::clock::now().0, worker };
        self.all.lock().unwrap_or_else(PoisonError::into_inner).push(trouble);
    }

    /// Whether the engine is away just now, or was a moment ago.
    fn is_engine_away(&self) -> bool {
        const JUST_NOW_MS: u64 = 2_000;
        let now = broker::clock::now().0;
        let was_away = |trouble: &Trouble| trouble.worker.is_none() && trouble.to_ms + JUST_NOW_MS > now;
        self.is_engine_away.load(Ordering::Relaxed) || self.all().iter().any(was_away)
    }

    fn strange(&self, what: String) {
        self.strange.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    fn all(&self) -> Vec<Trouble> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Runs it; whether all was well.
pub(crate) async fn run(args: Args) -> anyhow::Result<bool> {
    let seed = args.seed.unwrap_or_else(Random::seed);
    println!("worker: {} jobs, seed {seed}", args.jobs);
    open_files::allow_all();
    let temporary = tempfile::tempdir()?;
    let dir = args.keep.as_deref().unwrap_or(temporary.path());
    std::fs::create_dir_all(dir)?;
    let Some(daemon) = Daemon::start(&dir.join("dockerd.log")).await? else {
        println!("worker: skipped, no dockerd can be started here");
        return Ok(true);
    };
    let soak = Subject::new(dir)?;
    let mut random = Random::new(seed);
    let broker = soak.start()?;
    soak.ready().await?;
    let troubles = Arc::new(Troubles::default());
    let calm = CancellationToken::new();
    let host = daemon.host();
    let mut crew = Crew::start(&soak, dir, seed, &host)?;
    let mut driver = Driver::connect(&soak.address, seed, random.fork(), crew.size()).await?;
    let before = left::Before::look(&daemon, &crew.steady).await?;
    if !args.no_kills {
        crew.trouble(&mut random, &calm, &troubles);
    }
    let engine =
        tokio::spawn(daemon::trouble(daemon, random.fork(), args.engine_every, calm.clone(), Arc::clone(&troubles)));

    let early = driver.submit(args.jobs, &crew.steady).await?;
    calm.cancel();
    let daemon = engine.await??;
    crew.calm().await?;
    println!("  calm: {}; waiting for the rest", crew::told(&troubles.all()));
    let all = Wrong::default();
    if let Err(error) = driver.rest(ENDS_WITHIN).await {
        all.say(error.to_string());
    }
    let restarts = troubles.all().iter().filter(|trouble| trouble.worker.is_none()).count();
    let mut left = left::look(&daemon, &crew, &before, restarts).await?;
    let end_mib = crew.steady.resident_mib()?;
    if end_mib > early.resident_mib + GROWTH_MIB {
        left.wrong.push(format!(
            "the worker that was never killed had {} MiB after {} ends and {end_mib} MiB at the end",
            early.resident_mib, early.ends
        ));
    }
    left.wrong.extend(crew.stop().await?);
    left.wrong.extend(left::folders(dir, &crew.names)?);
    all.say_all(left.wrong);
    all.say_all(std::mem::take(&mut *troubles.strange.lock().unwrap_or_else(PoisonError::into_inner)));
    let plans = driver.into_plans();
    let ended = broker.stop().await?;
    ensure!(ended.success(), "asked to stop, the broker ended with {ended}");
    soak.audit_verify()?;
    let mut wrong = Vec::new();
    let histories = soak.compare(&[], crate::history::Losses::Some, &mut wrong)?;
    let lives = crate::lives::Lives::read(&histories);
    wrong.extend(lives.wrong);
    let judged = judge::all(&soak.journal(), &plans, &troubles.all(), &mut wrong)?;
    all.say_all(wrong);
    println!("  {}", judged.text());
    println!(
        "  {} runs, {} lost (at most {} of one job), {} taken up again, {} jobs given up",
        lives.claimed, lives.lost, lives.lost_most, lives.resumed, lives.abandoned
    );
    println!("  at the end: {}", left.said);
    drop(daemon);
    let promise = format!(
        "{} jobs, {}: each life ended once and for the right reason, nothing left; a worker {} MiB after {} ends, {end_mib} MiB after {}; audit verify: good",
        args.jobs,
        crew::told(&troubles.all()),
        early.resident_mib,
        early.ends,
        lives.finished,
    );
    println!("worker: seed {seed}: {}", all.verdict(&promise));
    Ok(all.count() == 0)
}
