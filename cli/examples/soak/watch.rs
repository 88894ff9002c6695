//! `soak watch`: a thousand subscribers on one long queue while it changes: each is shown everything, soon, in few bytes, and the
//! broker's memory stays as it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use broker::audit::{self, At};
use protocol::id::{QueueKey, WorkerId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::changes::Changes;
use crate::collector::Collector;
use crate::history::{Histories, Losses};
use crate::load::{Load, Shape};
use crate::open_files;
use crate::process::Process;
use crate::random::Random;
use crate::subject::Subject;
use crate::subscribers::{Agreed, Subscribers};
use crate::workers;

const QUEUE: &str = "soak-watch";

/// What the queue's worker is like.
const SHAPE: Shape = Shape { pace: Duration::ZERO, long_runs_percent: 0, body_bytes_max: 400 };

/// The targets: bytes per change and subscriber, and the delay of all but one in a hundred.
const BYTES_PER_CHANGE: u64 = 200;
const DELAY_P99_MS: u64 = 100;

/// How much more memory than in the middle the broker may have at the end: what an allocator and caches do by themselves.
const GROWTH_MIB: u64 = 16;
const GROWTH_PERCENT: u64 = 10;

/// Options of `soak watch`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) crowd: Crowd,
    /// How long the queue changes
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Who watches what.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Crowd {
    /// How many subscribe
    #[arg(long, default_value_t = 1_000)]
    pub(crate) subscribers: usize,
    /// How many of them fold what they are shown into the whole state; the others chain the records' bytes
    #[arg(long, default_value_t = 100)]
    pub(crate) folds: usize,
    /// How many jobs wait in the queue
    #[arg(long, default_value_t = 10_000)]
    pub(crate) jobs: usize,
    /// Changes (records) per second
    #[arg(long, default_value_t = 100.0)]
    pub(crate) rate: f64,
    /// The seed of all random choices [default: another each time]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Keep the data in this folder instead of a temporary one
    #[arg(long)]
    pub(crate) keep: Option<PathBuf>,
}

/// A broker with a long queue, a worker, and whoever changes it.
pub(crate) struct Scene {
    pub(crate) soak: Subject,
    pub(crate) broker: Process,
    pub(crate) collector: Arc<Collector>,
    pub(crate) subscribers: Subscribers,
    queue: String,
    stop: CancellationToken,
    changing: tokio::task::JoinHandle<(Changes, anyhow::Result<()>)>,
    working: tokio::task::JoinHandle<()>,
    since: Instant,
}

/// What is left of a scene that has ended.
pub(crate) struct Ended {
    pub(crate) agreed: Agreed,
    pub(crate) changes: Changes,
    pub(crate) took: Duration,
    pub(crate) resident_mib: u64,
    /// Metrics of the broker's last life.
    pub(crate) lag_snapshots: u64,
}

impl Scene {
    /// Fills the queue, connects all, and begins to change it.
    pub(crate) async fn start(crowd: &Crowd, queue: &str, dir: &Path, seed: u64) -> anyhow::Result<Self> {
        ensure!(crowd.rate > 0.0, "the rate is more than nothing");
        let room = open_files::allow_all();
        ensure!(room > crowd.subscribers + 100, "this process may have {room} open files, too few for the subscribers");
        let soak = Subject::new(dir)?;
        let broker = soak.start()?;
        soak.ready().await?;
        let (collector, stop) = (Arc::new(Collector::default()), CancellationToken::new());
        let mut changes = Changes::new(&soak.address, queue, seed, collector.clone());
        let started = Instant::now();
        changes.fill(crowd.jobs).await?;
        let filled = started.elapsed();
        let empty_mib = broker.resident_mib()?;
        let started = Instant::now();
        let subscribers = Subscribers::start(&soak.address, queue, crowd.subscribers, crowd.folds).await?;
        println!(
            "  {} jobs queued within {} ms; {} subscribers connected within {} ms, {} of them fold, all chain; broker {empty_mib} MiB before, {} MiB with them",
            crowd.jobs,
            filled.as_millis(),
            crowd.subscribers,
            started.elapsed().as_millis(),
            crowd.folds.min(crowd.subscribers),
            broker.resident_mib()?
        );
        let load =
            Load { address: soak.address.clone(), shape: SHAPE, listener: collector.clone(), stop: stop.clone() };
        let id: WorkerId = format!("{queue}-worker").parse().context("a worker's id")?;
        let working = tokio::spawn(workers::work(load, queue.to_owned(), id, Random::new(seed), Vec::new()));
        let (rate, until) = (crowd.rate, stop.child_token());
        let since = Instant::now();
        let changing = tokio::spawn(async move {
            let ended = changes.run(rate, &until).await;
            (changes, ended)
        });
        let queue = queue.to_owned();
        Ok(Self { soak, broker, collector, subscribers, queue, stop, changing, working, since })
    }

    /// Ends the changes, compares all subscribers with the broker, stops it, and compares everything with the journal.
    pub(crate) async fn end(self) -> anyhow::Result<Ended> {
        let Self { soak, broker, collector, subscribers, queue, stop, changing, working, since } = self;
        let took = since.elapsed();
        let resident_mib = broker.resident_mib()?;
        stop.cancel();
        let (changes, ended) = changing.await?;
        ended?;
        working.await?;
        let wrong = &subscribers.seen.wrong;
        let agreed = subscribers.agree().await?;
        let lag_snapshots = soak.metric("gridsocket_lag_snapshots_total").await?;
        let ended = broker.stop().await?;
        if !ended.success() {
            wrong.say(format!("asked to stop, the broker ended with {ended}"));
        }
        soak.audit_verify()?;
        let (told, told_wrong) = collector.take();
        wrong.say_all(told_wrong);
        let mut found = Vec::new();
        let histories = soak.compare(&told, Losses::None, &mut found)?;
        found.extend(differs(&soak.journal(), &queue, &agreed, &histories)?);
        wrong.say_all(found);
        Ok(Ended { agreed, changes, took, resident_mib, lag_snapshots })
    }
}

/// Whether what the broker served last is what its journal folds to.
fn differs(journal: &Path, queue: &str, agreed: &Agreed, histories: &Histories) -> anyhow::Result<Option<String>> {
    let key = QueueKey::of(&queue.parse()?);
    let history = histories.get(&key).context("the queue is not in the journal")?;
    if history.hash_at(agreed.head.seq) != Some(agreed.head.hash) {
        return Ok(Some(format!("the journal has another record {} than all were shown", agreed.head.seq)));
    }
    let folded = audit::state_at(journal, key, At::Seq(agreed.head.seq))?.hash();
    Ok((folded != agreed.state_hash)
        .then(|| format!("the journal folds to state {folded}, the broker served {}", agreed.state_hash)))
}

/// Runs it; whether all was well.
pub(crate) async fn run(args: Args) -> anyhow::Result<bool> {
    let seed = args.crowd.seed.unwrap_or_else(Random::seed);
    let Args { crowd, seconds } = args;
    let (count, rate) = (crowd.subscribers, crowd.rate);
    println!("watch: {count} subscribers, {} jobs, {rate} changes/s for {seconds} s, seed {seed}", crowd.jobs);
    let temporary = tempfile::tempdir()?;
    let scene = Scene::start(&crowd, QUEUE, crowd.keep.as_deref().unwrap_or(temporary.path()), seed).await?;
    let half = Duration::from_secs(seconds) / 2;
    tokio::time::sleep(half).await;
    let middle_mib = scene.broker.resident_mib()?;
    println!("  in the middle: {} shown, broker {middle_mib} MiB", scene.subscribers.seen.records.get());
    tokio::time::sleep(half).await;

    let seen = scene.subscribers.seen.clone();
    let Ended { agreed, changes, took, resident_mib, lag_snapshots } = scene.end().await?;
    let records = seen.records.get() / count.max(1) as u64;
    let bytes = seen.bytes.get() / seen.records.get().max(1);
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
    let made = changes.made as f64 / took.as_secs_f64();
    println!(
        "  {:.0} changes/s made, answered after {}; each subscriber was shown {records} records in {} messages",
        made,
        changes.delays.text(),
        seen.messages.get() / count.max(1) as u64
    );
    let verdict = |met: bool| if met { "met" } else { "MISSED" };
    println!(
        "  delivery, from decision to subscriber (in steps of 1 ms): {} (target p99 ≤ {DELAY_P99_MS} ms: {})",
        seen.delays.text(),
        verdict(seen.delays.at(990) <= DELAY_P99_MS)
    );
    println!(
        "  {bytes} bytes per change and subscriber on the wire (target ≤ {BYTES_PER_CHANGE}: {}), and {} bytes of presence in all for each",
        verdict(bytes <= BYTES_PER_CHANGE),
        seen.other_bytes.get() / count.max(1) as u64
    );
    println!(
        "  broker: {middle_mib} MiB in the middle, {resident_mib} MiB at the end; {lag_snapshots} snapshots for lag"
    );
    let wrong = &seen.wrong;
    if bytes > BYTES_PER_CHANGE {
        wrong.say(format!("a change costs each subscriber {bytes} bytes"));
    }
    if lag_snapshots > 0 {
        wrong.say(format!("{lag_snapshots} subscribers fell behind and were given snapshots"));
    }
    if resident_mib > middle_mib + GROWTH_MIB.max(middle_mib * GROWTH_PERCENT / 100) {
        wrong.say(format!("the broker grew from {middle_mib} to {resident_mib} MiB in half the time"));
    }
    if made < rate * 0.9 {
        wrong.say(format!("only {made:.0} changes/s were made"));
    }
    if seen.snapshots.get() != count as u64 {
        wrong.say(format!("{} snapshots were given to {count} subscribers", seen.snapshots.get()));
    }
    let (head, hash, jobs) = (agreed.head, short(agreed.state_hash), agreed.jobs);
    let promise = format!(
        "all {count} subscribers were shown all records up to {} (chain {}), {} of them fold to the broker's and the journal's state {hash} of {jobs} jobs; audit verify: good",
        head.seq,
        short(head.hash),
        agreed.folds
    );
    println!("watch: seed {seed}: {}", wrong.verdict(&promise));
    Ok(wrong.count() == 0)
}

/// Enough of a hash to compare by eye.
pub(crate) fn short(hash: protocol::id::Digest) -> String {
    hash.to_string().chars().take(12).collect()
}
