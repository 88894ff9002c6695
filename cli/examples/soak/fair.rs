//! `soak fair`: many workers and many jobs that take no time, each granted once and in order; then a grid that is kept busy by
//! many namespaces, without and with one that floods it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use broker::audit;
use protocol::event::Event;
use protocol::id::{JobId, QueueKey, RunNumber};
use protocol::native::{FromBroker, HeldRun, Submission, ToBroker};
use protocol::queue::QueueState;
use protocol::record::{RECORD_VERSION, Record};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::{client_hello, connect};
use crate::hands::Hands;
use crate::history;
use crate::open_files;
use crate::random::Random;
use crate::subject::Subject;
use crate::submitters::submission;
use crate::tally::Wrong;
use crate::town::{self, Town};

const QUEUE: &str = "soak-fair";

/// Priorities of the jobs that take no time; most have the first.
const PRIORITIES: [i32; 4] = [0, 7, -3, 1];

/// Commands of one socket that may be unanswered.
const WINDOW: usize = 512;

/// How long all the jobs may take that take no time.
const ALL_WITHIN: Duration = Duration::from_secs(300);

/// How much longer, in percent, all but one in a hundred may wait because another floods.
const RISE_PERCENT_MAX: f64 = 10.0;

/// Options of `soak fair`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Workers that share the jobs that take no time
    #[arg(long, default_value_t = 100)]
    workers: usize,
    /// How many jobs those are, and how many jobs the flood has
    #[arg(long, default_value_t = 20_000)]
    jobs: usize,
    /// How long a grid is measured without the flood, and how long with it: over a minute, so that what was passed by for
    /// long has its say
    #[arg(long, default_value_t = 80)]
    seconds: u64,
    /// How often each of the two is measured, alternating
    #[arg(long, default_value_t = 2)]
    pairs: u32,
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
    println!(
        "fair: {} workers and {} jobs; then {} pairs of {} s and {} s, seed {seed}",
        args.workers, args.jobs, args.pairs, args.seconds, args.seconds
    );
    let room = open_files::allow_all();
    ensure!(room > args.workers + 100, "this process may have {room} open files, too few for the workers");
    let temporary = tempfile::tempdir()?;
    let soak = Subject::new(args.keep.as_deref().unwrap_or(temporary.path()))?;
    let broker = soak.start()?;
    soak.ready().await?;
    let wrong = Arc::new(Wrong::default());
    let mut random = Random::new(seed);
    let granted = each_once(&soak, &args, &mut random, &wrong).await?;

    println!("  waits from acknowledgement to grant: {}", town::describe(args.jobs));
    let time = Duration::from_secs(args.seconds);
    let mut measured = [town::Waits::default(), town::Waits::default()];
    for pair in 1..=args.pairs {
        // Whoever comes second may find a warmer or a fuller broker.
        let order = if pair % 2 == 1 { [false, true] } else { [true, false] };
        for flooded in order {
            let queue = format!("{QUEUE}-{pair}-{}", if flooded { "flooded" } else { "busy" });
            let flood = if flooded { args.jobs } else { 0 };
            let waits = Town::of(&soak.address, &queue, flood, random.fork()).measure(time, &wrong).await?;
            println!(
                "  pair {pair}, {}: {}",
                if flooded { "with the flood   " } else { "without the flood" },
                waits.text()
            );
            measured[usize::from(flooded)].add(waits);
        }
    }
    let ended = broker.stop().await?;
    if !ended.success() {
        wrong.say(format!("asked to stop, the broker ended with {ended}"));
    }
    soak.audit_verify()?;
    in_order(&soak.journal(), &granted, &wrong)?;
    let rises = if args.pairs > 0 { compare(&measured, &wrong) } else { "fairness not measured".to_owned() };
    let promise = format!(
        "{} jobs granted once each to {} workers, priorities first, each namespace in its order; {rises}; audit verify: good",
        granted.len(),
        args.workers
    );
    println!("fair: seed {seed}: {}", wrong.verdict(&promise));
    Ok(wrong.count() == 0)
}

/// Says how much longer was waited with the flood; too much is wrong.
fn compare([without, with]: &[town::Waits; 2], wrong: &Wrong) -> String {
    let mut said = Vec::new();
    for (who, without, with, is_judged) in [
        ("below its fair share", &without.below, &with.below, true),
        ("at its fair share (told, not judged)", &without.at, &with.at, false),
    ] {
        let (before, after) = (without.at(0.99), with.at(0.99));
        let rise = (after / before - 1.0) * 100.0;
        said.push(format!(
            "a namespace {who} waits p50 {:.1} ms and p99 {before:.1} ms without, p50 {:.1} ms and p99 {after:.1} ms with the flood ({rise:+.1} %)",
            without.at(0.5),
            with.at(0.5)
        ));
        if is_judged && (rise.is_nan() || rise > RISE_PERCENT_MAX) {
            wrong
                .say(format!("the p99 wait of a namespace {who} rises by {rise:.1} %, more than {RISE_PERCENT_MAX} %"));
        }
    }
    said.join("; ")
}

/// Lets many workers run many jobs that take no time; whom each was granted to.
async fn each_once(
    soak: &Subject,
    args: &Args,
    random: &mut Random,
    wrong: &Arc<Wrong>,
) -> anyhow::Result<BTreeMap<JobId, RunNumber>> {
    let (finished, mut ends) = mpsc::channel(1024);
    let hands = Arc::new(Hands {
        address: soak.address.clone(),
        queue: QUEUE.to_owned(),
        slots: 4,
        takes_ms: (0, 0),
        finished,
        granted: Mutex::default(),
        wrong: wrong.clone(),
        stop: CancellationToken::new(),
    });
    let mut tasks = JoinSet::new();
    for number in 0..args.workers {
        let (hands, random) = (hands.clone(), random.fork());
        tasks.spawn(async move { hands.work(number, random).await });
    }
    let started = Instant::now();
    let submitted = submit(&soak.address, QUEUE, args.jobs, |number| {
        let priority = if number % 5 == 0 { PRIORITIES[number / 5 % PRIORITIES.len()] } else { PRIORITIES[0] };
        Submission { priority, ..submission(town::definition("once", number as u64)) }
    });
    let all_end = async {
        for _ in 0..args.jobs {
            ends.recv().await.context("the workers have stopped")?;
        }
        anyhow::Ok(())
    };
    let both = async { tokio::try_join!(submitted, all_end) };
    let ended = tokio::time::timeout(ALL_WITHIN, both).await;
    let took = started.elapsed();
    let all = hands.granted();
    let (acknowledged, ()) =
        ended.with_context(|| format!("only {} of {} were granted in time", all.len(), args.jobs))??;
    hands.stop.cancel();
    while tasks.join_next().await.is_some() {}

    let mut granted = BTreeMap::new();
    let mut of_worker = vec![0_u64; args.workers];
    for one in &all {
        let HeldRun { job, run } = one.run;
        of_worker[one.worker] += 1;
        if let Some(before) = granted.insert(job, run) {
            wrong.say(format!("job {job} was granted twice, as run {before} and as run {run}"));
        }
    }
    for job in &acknowledged {
        if !granted.contains_key(job) {
            wrong.say(format!("job {job} was acknowledged and never granted"));
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
    let rate = all.len() as f64 / took.as_secs_f64();
    println!(
        "  {} grants of {} jobs to {} workers ({} to {} each) within {} ms, {rate:.0} jobs/s from submission to end",
        all.len(),
        acknowledged.len(),
        args.workers,
        of_worker.iter().min().unwrap_or(&0),
        of_worker.iter().max().unwrap_or(&0),
        took.as_millis()
    );
    Ok(granted)
}

/// Submits jobs over one socket; gives the ids that were acknowledged.
pub(crate) async fn submit(
    address: &str,
    queue: &str,
    count: usize,
    job: impl Fn(usize) -> Submission,
) -> anyhow::Result<Vec<JobId>> {
    let (mut sender, mut receiver, _) = connect(address, queue, client_hello(false)).await?;
    let (mut sent, mut jobs) = (0, Vec::new());
    while jobs.len() < count {
        let room = WINDOW - (sent - jobs.len());
        if sent < count && room > WINDOW / 2 {
            let until = count.min(sent + room);
            for number in sent..until {
                sender.feed(&ToBroker::Submit { req: number as u64, job: job(number) }).await?;
            }
            sent = until;
            sender.flush().await?;
        }
        match receiver.next().await? {
            FromBroker::Ok { job: Some(job), .. } => jobs.push(job),
            other => anyhow::bail!("a submission was answered {other:?}"),
        }
    }
    Ok(jobs)
}

/// Reads in the journal that each job was claimed, finished and never lost as it was told, and that each claim was of the
/// first in line: the highest priority of all that waited, and the oldest of its namespace at that priority.
fn in_order(journal: &Path, granted: &BTreeMap<JobId, RunNumber>, wrong: &Wrong) -> anyhow::Result<()> {
    let histories = history::read(journal)?;
    let once = QueueKey::of(&QUEUE.parse()?);
    let history = histories.get(&once).context("the queue is not in the journal")?;
    for (job, run) in granted {
        let (claimed, lost) = history.runs_of(*job);
        if claimed != [*run] || *run != 1 || !lost.is_empty() {
            wrong.say(format!("job {job} was told as run {run}, claimed as {claimed:?} and lost as {lost:?}"));
        }
        let ends = history.of(*job).iter().filter(|(_, event)| history::ends_job(event)).count();
        if ends != 1 {
            wrong.say(format!("job {job} ended {ends} times"));
        }
    }
    let mut states: BTreeMap<QueueKey, QueueState> = BTreeMap::new();
    let mut claims = 0_u64;
    for row in audit::log(journal, None)? {
        let audit::AuditRow { queue, seq, at_ms, event, hash, .. } = row?;
        let state = states.entry(queue).or_insert_with(|| QueueState::new(queue));
        if let Event::RunClaimed { job, .. } = &event {
            claims += 1;
            if let Err(text) = is_next(state, *job) {
                wrong.say(format!("queue {}, record {seq}: job {job} is claimed, {text}", queue.short()));
            }
        }
        state.apply(&Record { v: RECORD_VERSION, seq, at_ms, event }, hash);
    }
    ensure!(claims > 0, "nothing was claimed");
    Ok(())
}

/// Whether a job is first in line in its namespace, and none of higher priority waits. All jobs here fit all workers.
fn is_next(state: &QueueState, id: JobId) -> Result<(), String> {
    let Some(job) = state.job(id) else { return Err("and is not in the queue".to_owned()) };
    let mut waiting = state.waiting();
    if let Some((other, first)) = waiting.next()
        && first.priority > job.priority
    {
        return Err(format!("while job {other} waits, with priority {} and not {}", first.priority, job.priority));
    }
    let namespaces = &job.namespaces;
    let first = match namespaces.keys().next() {
        // All that wait are looked at until the first: of others there are few, and they hold one live job each.
        Some(namespace) if namespace.is_default() => {
            state.waiting().find(|(_, other)| other.namespaces.keys().eq(namespaces.keys())).map(|(first, _)| first)
        }
        Some(namespace) => {
            state.live_in(namespace).filter_map(|other| state.job(other)?.place(other)).min().map(|place| place.job())
        }
        None => None,
    };
    match first {
        Some(first) if first == id => Ok(()),
        Some(first) => Err(format!("while job {first} comes before it in its namespace")),
        None => Err("and does not wait".to_owned()),
    }
}
