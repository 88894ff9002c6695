//! `soak flood`: jobs that print as fast as they can, a gigabyte of it: in lines, without a newline, and in lines of one byte. The
//! broker's and the worker's memory stays as it is, other jobs on the same worker go on as before, what is not kept is
//! announced, and nobody is disconnected.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use protocol::event::{Event, RunOutcome};
use protocol::id::JobId;
use protocol::native::{Callbacks, FromBroker, LogKind, Submission, ToBroker};
use protocol::raw::RawJson;
use protocol::record::Record;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::client::{Receiver, Sender, client_hello, connect};
use crate::containers::Sweep;
use crate::process::{Process, path_text};
use crate::random::Random;
use crate::subject::Subject;
use crate::tally::{Delays, Wrong};
use crate::worker::daemon::image;

const QUEUE: &str = "soak-flood";
/// How long one flood may take: a fraction of what two slow cores do.
const WITHIN: Duration = Duration::from_secs(900);
/// How long anything else may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Small jobs before each flood, to compare with and to warm up.
const CALM_JOBS: u64 = 8;
/// How much of the first flood goes before memory counts: by then everything is there that is kept for a log.
const WARM_MB: u64 = 150;

/// Options of `soak flood`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How much a job prints, in megabytes (of one-byte lines a fiftieth: the engine's own file of them is fifty times as large)
    #[arg(long, default_value_t = 1_000)]
    mb: u64,
    /// How much more memory than after the first flood the broker, and the worker, may have
    #[arg(long, default_value_t = 64)]
    growth_mib: u64,
    /// The longest that another job may take meanwhile, in milliseconds
    #[arg(long, default_value_t = 10_000)]
    others_ms: u64,
    /// Keep the data in this folder instead of a temporary one
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// What a job prints.
struct Flood {
    name: &'static str,
    script: String,
    bytes: u64,
    /// How many lines arrive; `None`: as many as somebody cuts them into.
    lines: Option<u64>,
}

fn floods(mb: u64) -> [Flood; 3] {
    // A line is 64 bytes with its newline.
    const LINE: u64 = 64;
    let bytes = mb * 1_000_000 / LINE * LINE;
    let small = mb * 1_000_000 / 50;
    let text = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.";
    [
        Flood { name: "lines", script: format!("yes {text} | head -c {bytes}"), bytes, lines: Some(bytes / LINE) },
        Flood { name: "no newline", script: format!("head -c {bytes} /dev/zero | tr '\\000' x"), bytes, lines: None },
        Flood { name: "empty lines", script: format!("yes '' | head -c {small}"), bytes: small, lines: Some(small) },
    ]
}

/// A client that submits and sees how jobs end.
struct Client {
    sender: Sender,
    receiver: Receiver,
    next: u64,
    /// No two clients' jobs are the same.
    number: u64,
}

impl Client {
    async fn connect(address: &str) -> anyhow::Result<Self> {
        let (sender, receiver, _) = connect(address, QUEUE, client_hello(true)).await?;
        static CLIENTS: AtomicU64 = AtomicU64::new(0);
        Ok(Self { sender, receiver, next: 0, number: CLIENTS.fetch_add(1, Ordering::Relaxed) })
    }

    async fn submit(&mut self, script: &str, seed: u64) -> anyhow::Result<JobId> {
        self.next += 1;
        let req = self.next;
        let definition = json!({ "image": image(), "command": ["sh", "-c", script], "env": { "SEED": format!("{seed}-{}-{req}", self.number) } });
        let job = Submission {
            id: None,
            definition: RawJson::new(definition.to_string()),
            namespace: None,
            priority: 0,
            debug: false,
            retry: false,
            callbacks: Callbacks::default(),
        };
        self.sender.send(&ToBroker::Submit { req, job }).await?;
        loop {
            match self.receiver.next().await? {
                FromBroker::Ok { req: answered, job: Some(job), .. } if answered == req => return Ok(job),
                FromBroker::Rejected { code, message, .. } => bail!("refused: {code}: {message}"),
                _ => {}
            }
        }
    }

    /// Waits until the job has ended, as it should.
    async fn ended(&mut self, job: JobId) -> anyhow::Result<()> {
        loop {
            let FromBroker::Events { records, .. } = self.receiver.next().await? else { continue };
            for record in records {
                match Record::decode(&record.0)?.event {
                    Event::RunFinished { job: ended, outcome, exit_code, .. } if ended == job => {
                        ensure!(
                            (outcome, exit_code) == (RunOutcome::Success, Some(0)),
                            "job {job} ended as {outcome:?} with {exit_code:?}"
                        );
                        return Ok(());
                    }
                    Event::RunLost { why, .. } => bail!("a run was lost: {why:?}"),
                    Event::WorkerLeft { worker, .. } => bail!("worker {worker} was disconnected"),
                    _ => {}
                }
            }
        }
    }
}

/// The most memory that both have had.
#[derive(Default)]
struct Peaks {
    broker_mib: AtomicU64,
    worker_mib: AtomicU64,
}

impl Peaks {
    fn text(&self) -> String {
        format!(
            "broker {} MiB, worker {} MiB",
            self.broker_mib.load(Ordering::Relaxed),
            self.worker_mib.load(Ordering::Relaxed)
        )
    }
}

struct Site {
    soak: Subject,
    broker: Arc<Process>,
    worker: Arc<Process>,
    seed: u64,
}

/// Runs it; whether all was well.
pub(crate) async fn run(args: Args) -> anyhow::Result<bool> {
    let seed = Random::seed();
    println!("flood: {} MB", args.mb);
    let temporary = tempfile::tempdir()?;
    let dir = args.keep.as_deref().unwrap_or(temporary.path());
    std::fs::create_dir_all(dir)?;
    let soak = Subject::new(dir)?;
    let broker = Arc::new(soak.start()?);
    soak.ready().await?;
    let name = format!("soak-flood-{seed}");
    let _sweep = Sweep(name.clone());
    let api = format!("http://{}", soak.address);
    let files = dir.join("worker");
    let arguments = ["run", QUEUE, "-a", &api, "--id", &name, "-c", "4", "-t", "1h", "-d", path_text(&files)?];
    let worker = Arc::new(Process::start(&soak.binary, &arguments, &dir.join("worker.log"))?);
    let site = Arc::new(Site { soak, broker, worker, seed });
    let wrong = Wrong::default();
    let mut client = Client::connect(&site.soak.address).await?;
    let calm = Delays::default();
    for _ in 0..CALM_JOBS {
        calm.add(small_job(&mut client, seed).await?);
    }
    // What is there anyway, and after a first flood; it may be no more from then on, however much comes.
    let first = Flood { name: "warming up", ..floods(WARM_MB.min(args.mb)).into_iter().next().context("three")? };
    let (before, _) = flood(&site, &first, &wrong).await?;
    println!("  other jobs when it is calm: {}; after {} MB: {}", calm.text(), first.bytes / 1_000_000, before.text());
    let mut said = Vec::new();
    for one in floods(args.mb) {
        let started = Instant::now();
        let (peaks, others) = flood(&site, &one, &wrong).await?;
        let rate = one.bytes as f64 / 1e6 / started.elapsed().as_secs_f64();
        println!(
            "  {}: {} MB at {rate:.1} MB/s: {}; other jobs {}",
            one.name,
            one.bytes / 1_000_000,
            peaks.text(),
            others.text()
        );
        for (who, before, after) in
            [("broker", &before.broker_mib, &peaks.broker_mib), ("worker", &before.worker_mib, &peaks.worker_mib)]
        {
            let (before, after) = (before.load(Ordering::Relaxed), after.load(Ordering::Relaxed));
            if after > before + args.growth_mib {
                wrong.say(format!("{}: the {who} had {before} MiB at first, and up to {after} MiB", one.name));
            }
        }
        if others.at(1_000) > args.others_ms {
            wrong.say(format!("{}: another job took {} ms", one.name, others.at(1_000)));
        }
        said.push(format!(
            "{} {rate:.1} MB/s ({}; others p50 {} ms, longest {} ms)",
            one.name,
            peaks.text(),
            others.at(500),
            others.at(1_000)
        ));
    }
    let Site { broker, worker, .. } = Arc::into_inner(site).context("nobody looks any more")?;
    for (who, process) in [("worker", worker), ("broker", broker)] {
        let ended = Arc::into_inner(process).context("nobody looks any more")?.stop().await?;
        if !ended.success() {
            wrong.say(format!("asked to stop, the {who} ended with {ended}"));
        }
    }
    println!(
        "flood: {}",
        wrong.verdict(&format!("{}; each ended, all that is not kept announced, nobody disconnected", said.join(", ")))
    );
    Ok(wrong.count() == 0)
}

/// One job that prints, with small ones beside it; tells the most memory and how long the small ones took.
async fn flood(site: &Arc<Site>, flood: &Flood, wrong: &Wrong) -> anyhow::Result<(Arc<Peaks>, Delays)> {
    let mut client = Client::connect(&site.soak.address).await?;
    let mut beside = Client::connect(&site.soak.address).await?;
    let mut reader = Client::connect(&site.soak.address).await?;
    let peaks = Arc::new(Peaks::default());
    let looking = tokio::spawn(look(Arc::downgrade(site), Arc::clone(&peaks)));
    let job = client.submit(&flood.script, site.seed).await?;
    let following = tokio::spawn(async move { follow(&mut reader, job).await });
    let others = Delays::default();
    let is_over = AtomicBool::new(false);
    let small_jobs = async {
        while !is_over.load(Ordering::Relaxed) {
            others.add(small_job(&mut beside, site.seed).await?);
        }
        anyhow::Ok(())
    };
    let ending = async {
        let ended = timeout(WITHIN, client.ended(job)).await.context("the job does not end")?;
        is_over.store(true, Ordering::Relaxed);
        ended
    };
    tokio::try_join!(ending, small_jobs).with_context(|| flood.name.to_owned())?;
    let followed = timeout(PATIENCE, following).await.context("the reader does not come to the end")???;
    looking.abort();
    let _ = looking.await;
    let kept = check_kept(site, job, flood).await?;
    if let Some(lines) = flood.lines
        && followed.next != lines
    {
        wrong.say(format!("{}: {} lines were told of, there were {lines}", flood.name, followed.next));
    }
    if followed.is_gap_silent {
        wrong.say(format!("{}: a reader missed lines and was not told", flood.name));
    }
    if let Err(error) = kept {
        wrong.say(format!("{}: {error}", flood.name));
    }
    Ok((peaks, others))
}

/// Submits one and waits for its end; how long that took, in milliseconds.
async fn small_job(client: &mut Client, seed: u64) -> anyhow::Result<u64> {
    let started = Instant::now();
    let job = client.submit("echo small", seed).await?;
    timeout(PATIENCE, client.ended(job)).await.context("a small job does not end")??;
    Ok(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// Keeps no process alive that nobody else has.
async fn look(site: Weak<Site>, peaks: Arc<Peaks>) {
    while let Some(site) = site.upgrade() {
        let (Ok(broker), Ok(worker)) = (site.broker.resident_mib(), site.worker.resident_mib()) else { return };
        drop(site);
        peaks.broker_mib.fetch_max(broker, Ordering::Relaxed);
        peaks.worker_mib.fetch_max(worker, Ordering::Relaxed);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What somebody who follows was told.
#[derive(Default)]
struct Followed {
    next: u64,
    is_gap_silent: bool,
}

async fn follow(client: &mut Client, job: JobId) -> anyhow::Result<Followed> {
    client.sender.send(&ToBroker::FollowLogs { req: 1 << 40, job, kind: LogKind::Run, since: 0 }).await?;
    let mut followed = Followed::default();
    loop {
        let FromBroker::Logs { from, lines, is_final, .. } = client.receiver.next().await? else { continue };
        let tells = lines.first().is_some_and(|line| line.text.contains("not kept here"));
        // A gap's only line stands for its last number.
        followed.is_gap_silent |= from > followed.next && !tells;
        followed.next = from + lines.len() as u64;
        if is_final {
            return Ok(followed);
        }
    }
}

/// Whether what is kept of a flood says that it is not all.
async fn check_kept(site: &Site, job: JobId, flood: &Flood) -> anyhow::Result<Result<(), String>> {
    /// What the broker keeps of a log, as it is set up here.
    const KEPT_BYTES: u64 = 100 << 20;
    let get = async |what: &str| {
        let url = format!("http://{}/q/{QUEUE}/j/{job}/{what}", site.soak.address);
        anyhow::Ok(site.soak.http.get(url).send().await?.error_for_status()?.json::<Value>().await?["data"].take())
    };
    let result = get("result.json").await?;
    let text = result.to_string();
    let first: String = text.chars().take(600).collect();
    if !text.contains("earlier lines are left out here") {
        return Ok(Err(format!("the result does not say that its log is not whole: {first}")));
    }
    let page = get("run-logs.json?since=0").await?;
    let first = page[0][0].as_str().unwrap_or_default().to_owned();
    if flood.bytes > KEPT_BYTES * 3 / 2 && !first.contains("not kept here") {
        return Ok(Err(format!("the log does not say that it is not whole: {first:?}")));
    }
    Ok(Ok(()))
}
