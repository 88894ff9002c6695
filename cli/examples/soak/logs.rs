//! `soak logs`: a million lines go in over a worker's socket and come out again: to those who poll, to those who follow, to those who come
//! late, come back, or do not read for a while. Each gets every line once and in order, and the broker's memory stays as it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use protocol::event::RunOutcome;
use protocol::id::{JobId, UnixMillis};
use protocol::native::{FinishedRun, FromBroker, HeldRun, LogKind, LogLine, LogStep, ToBroker};
use protocol::raw::RawJson;
use serde_json::Value;
use tokio::time::Instant;

use crate::client::{Receiver, Sender, capacity, client_hello, connect, worker_hello};
use crate::process::Process;
use crate::subject::Subject;

const QUEUE: &str = "soak-logs";
/// Lines of one message, about as many as a worker gathers when a program prints as fast as it can.
const LINES_PER_MESSAGE: u64 = 500;
/// What is written before memory is first looked at: by then everything that is kept for a log is there.
const WARM_LINES: u64 = 20_000;
/// How long the other ends may take for something when nothing is wrong.
const WITHIN: Duration = Duration::from_secs(600);
/// How often somebody who polls asks.
const POLL_EVERY: Duration = Duration::from_millis(200);
/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Options of `soak logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many lines the job prints
    #[arg(long, default_value_t = 1_000_000)]
    lines: u64,
    /// How long a line is
    #[arg(long, default_value_t = 64)]
    line_bytes: usize,
    /// How much more memory than after the first lines the broker may have
    #[arg(long, default_value_t = 48)]
    growth_mib: u64,
    /// Keep the data in this folder instead of a temporary one
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// What a reader has seen: each line once, in order. A gap is allowed only where the broker says that there is one.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    next: u64,
    gone: u64,
}

impl Seen {
    fn from(next: u64) -> Self {
        Self { next, gone: 0 }
    }

    fn take(&mut self, text: &str) -> anyhow::Result<()> {
        if let Some(rest) = text.strip_prefix("[gridsocket: ") {
            let count: u64 =
                rest.split(' ').next().and_then(|count| count.parse().ok()).context("a gap of how many?")?;
            (self.next, self.gone) = (self.next + count, self.gone + count);
            return Ok(());
        }
        let number: u64 = text.split(' ').nth(1).and_then(|number| number.parse().ok()).context("a line's number")?;
        ensure!(number == self.next, "line {number} came where {} was to come", self.next);
        self.next += 1;
        Ok(())
    }

    fn take_all(&mut self, lines: &Value) -> anyhow::Result<()> {
        let lines = lines.as_array().context("lines")?;
        lines.iter().try_for_each(|line| self.take(line[0].as_str().context("a line's text")?))
    }
}

/// Runs `soak logs`; says whether all was well.
pub(crate) async fn run(args: Args) -> anyhow::Result<bool> {
    let folder = tempfile::tempdir()?;
    let dir: &Path = args.keep.as_deref().unwrap_or(folder.path());
    let soak = Arc::new(Subject::new(dir)?);
    let broker = Arc::new(soak.start()?);
    soak.ready().await?;
    let (mut sender, mut receiver, run) = begin(&soak).await?;
    let job = run.job;
    write(&mut sender, run, 0..WARM_LINES, args.line_bytes).await?;
    // The last of them are taken in when they can be read.
    let mut poller = Poller { soak: Arc::clone(&soak), job, seen: Seen::default() };
    poller.until(WARM_LINES).await?;
    let before_mib = broker.resident_mib()?;
    let peak_mib = Arc::new(AtomicU64::new(before_mib));
    let looking = tokio::spawn(look(Arc::clone(&broker), Arc::clone(&peak_mib)));

    // One follows as it is written, one polls, one by the native dialect, and one opens and does not read until all is over.
    let live = tokio::spawn(follow(events(&soak, job, None).await?, Seen::default()));
    let native = tokio::spawn(follow_natively(soak.address.clone(), job));
    let slow = events(&soak, job, None).await?;
    let polling = tokio::spawn(async move { poller.until(args.lines).await.map(|()| poller.seen) });
    let started = Instant::now();
    write(&mut sender, run, WARM_LINES..args.lines, args.line_bytes).await?;
    finish(&mut sender, &mut receiver, run).await?;
    let written = started.elapsed();
    let mut ends = vec![
        ("polled as it was written", within(polling).await?),
        ("followed as it was written", within(live).await?),
        ("followed by the native dialect", within(native).await?),
    ];
    let started = Instant::now();
    ends.push(("opened early, read late", follow(slow, Seen::default()).await?));
    ends.push(("read from the start", follow(events(&soak, job, None).await?, Seen::default()).await?));
    let middle = args.lines / 2;
    let id = format!("0-{middle}");
    ends.push(("came back in the middle", follow(events(&soak, job, Some(&id)).await?, Seen::from(middle)).await?));
    let mut whole = Poller { soak: Arc::clone(&soak), job, seen: Seen::default() };
    whole.until(args.lines).await?;
    ends.push(("asked for all at once", whole.seen));
    let read = started.elapsed();
    looking.abort();
    let _ = looking.await;
    let (peak_mib, bytes) = (peak_mib.load(Ordering::Relaxed), stored_bytes(&soak)?);
    let status = Arc::into_inner(broker).context("nobody looks any more")?.stop().await?;
    ensure!(status.success(), "the broker ended with {status}");

    let is_whole = |seen: &Seen| seen.next == args.lines;
    for (who, seen) in &ends {
        println!("  {who}: {} lines, {} of them told as not kept any more", seen.next - seen.gone, seen.gone);
    }
    let good = ends.iter().all(|(_, seen)| is_whole(seen)) && peak_mib <= before_mib + args.growth_mib;
    println!(
        "{}: {} lines written in {:.1} s ({} MiB on disk), read {} times, the last four in {:.1} s; memory {before_mib} MiB after the first {WARM_LINES}, at most {peak_mib} MiB from then on (allowed: {} more)",
        if good { "ok" } else { "WRONG" },
        args.lines,
        written.as_secs_f64(),
        bytes >> 20,
        ends.len(),
        read.as_secs_f64(),
        args.growth_mib,
    );
    Ok(good)
}

async fn within<T>(task: tokio::task::JoinHandle<anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::time::timeout(WITHIN, task).await.context("a reader does not come to the end")??
}

async fn look(broker: Arc<Process>, peak_mib: Arc<AtomicU64>) {
    while let Ok(mib) = broker.resident_mib() {
        peak_mib.fetch_max(mib, Ordering::Relaxed);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A job and the worker that runs it.
async fn begin(soak: &Subject) -> anyhow::Result<(Sender, Receiver, HeldRun)> {
    let url = format!("http://{}/q/{QUEUE}", soak.address);
    let body = r#"{"definition":{"image":"a","command":"yes"}}"#;
    soak.http.post(url).body(body).send().await?.error_for_status()?;
    let hello = worker_hello("w".parse()?, 1, Vec::new());
    let (mut sender, mut receiver, _) = connect(&soak.address, QUEUE, hello).await?;
    sender.send(&ToBroker::Claim { free: capacity(1), grants_seen: 0, req: None }).await?;
    loop {
        if let FromBroker::Granted { run, .. } = receiver.next().await? {
            return Ok((sender, receiver, run));
        }
    }
}

async fn write(
    sender: &mut Sender,
    run: HeldRun,
    numbers: std::ops::Range<u64>,
    line_bytes: usize,
) -> anyhow::Result<()> {
    let mut first = numbers.start;
    while first < numbers.end {
        let end = numbers.end.min(first + LINES_PER_MESSAGE);
        let line = |number: u64| {
            let mut text = format!("line {number} ");
            text.extend(std::iter::repeat_n('.', line_bytes.saturating_sub(text.len() + 1)));
            text.push('\n');
            LogLine { text, at_ms: UnixMillis(1_790_000_000_000 + number), stderr: false }
        };
        let lines = (first..end).map(line).collect();
        sender.send(&ToBroker::RunLogs { run, step: LogStep::Run, first, lines }).await?;
        first = end;
    }
    Ok(())
}

async fn finish(sender: &mut Sender, receiver: &mut Receiver, run: HeldRun) -> anyhow::Result<()> {
    let finished =
        RawJson::new(r#"{"type":"Finished","reason":"Success","worker":"w","time":1,"result":{"StatusCode":0}}"#);
    let run = FinishedRun {
        job: run.job,
        run: run.run,
        outcome: RunOutcome::Success,
        exit_code: Some(0),
        image: None,
        duration_ms: None,
        finished,
    };
    sender.send(&ToBroker::Finish { req: 1, run }).await?;
    loop {
        match receiver.next().await? {
            FromBroker::Ok { req: 1, .. } => return Ok(()),
            FromBroker::Rejected { message, .. } => bail!("the end is refused: {message}"),
            _ => {}
        }
    }
}

/// Somebody who asks for what is new, as scripts do.
struct Poller {
    soak: Arc<Subject>,
    job: JobId,
    seen: Seen,
}

impl Poller {
    async fn until(&mut self, count: u64) -> anyhow::Result<()> {
        let by = Instant::now() + WITHIN;
        while self.seen.next < count {
            ensure!(Instant::now() < by, "line {} does not come", self.seen.next);
            let since = self.seen.next;
            let Subject { address, http, .. } = &*self.soak;
            let url = format!("http://{address}/q/{QUEUE}/j/{}/run-logs.json?since={since}", self.job);
            let page: Value = serde_json::from_slice(&http.get(url).send().await?.error_for_status()?.bytes().await?)?;
            self.seen.take_all(&page["data"])?;
            ensure!(page["sliceStart"] == since, "it starts at {}", page["sliceStart"]);
            ensure!(page["nextCursor"] == self.seen.next, "{} after line {}", page["nextCursor"], self.seen.next);
            if self.seen.next == since {
                tokio::time::sleep(POLL_EVERY).await;
            }
        }
        Ok(())
    }
}

async fn events(soak: &Subject, job: JobId, last: Option<&str>) -> anyhow::Result<reqwest::Response> {
    let mut request = soak.http.get(format!("http://{}/q/{QUEUE}/j/{job}/stream", soak.address));
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    Ok(request.send().await?.error_for_status()?)
}

/// Reads server-sent events up to the final one.
async fn follow(mut answer: reqwest::Response, mut seen: Seen) -> anyhow::Result<Seen> {
    let mut text = Vec::new();
    loop {
        text.extend_from_slice(&answer.chunk().await?.context("it ends without a final event")?);
        while let Some(end) = text.windows(2).position(|two| two == b"\n\n") {
            let event = String::from_utf8(text.drain(..end + 2).collect())?;
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
            match field("event: ") {
                Some("run-log") => {
                    let data: Value = serde_json::from_str(field("data: ").context("data")?)?;
                    seen.take_all(&data["lines"])?;
                    ensure!(data["cursor"] == seen.next, "cursor {} after line {}", data["cursor"], seen.next);
                    ensure!(field("id: ") == Some(&*format!("0-{}", seen.next)), "{:?}", field("id: "));
                }
                Some("final") => return Ok(seen),
                Some(_) | None => {}
            }
        }
    }
}

async fn follow_natively(address: String, job: JobId) -> anyhow::Result<Seen> {
    let (mut sender, mut receiver, _) = connect(&address, QUEUE, client_hello(false)).await?;
    sender.send(&ToBroker::FollowLogs { req: 1, job, kind: LogKind::Run, since: 0 }).await?;
    let mut seen = Seen::default();
    loop {
        if let FromBroker::Logs { from, lines, is_final, .. } = receiver.next().await? {
            // A gap's only line stands for its last number.
            ensure!(from >= seen.next, "lines from {from} on came twice");
            lines.iter().try_for_each(|line| seen.take(&line.text))?;
            if is_final {
                return Ok(seen);
            }
        }
    }
}

fn stored_bytes(soak: &Subject) -> anyhow::Result<u64> {
    let mut bytes = 0;
    let mut folders = vec![soak.data.join("logs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            bytes += metadata.len() * u64::from(metadata.is_file());
            folders.extend(metadata.is_dir().then(|| entry.path()));
        }
    }
    Ok(bytes)
}
