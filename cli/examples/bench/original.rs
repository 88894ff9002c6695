//! Rows about pages of the original's kind on a long queue: what a change costs when everybody is sent everything, as the
//! original does, when each change is told at once, and when changes are gathered.
//!
//! All three are servers of this program's own build, in processes of their own: the broker with two settings of its gathering,
//! and for the original's way a sender that knows the jobs and sends what the original sends, when it sends it, to the same
//! pages. The sender stores nothing, decides nothing and encodes each message once, so it is a floor for any server that
//! tells so much.

mod pages;
mod sender;

use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::net::TcpListener;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, interval, timeout};

use self::pages::{Tally, Worker};
use crate::Bench;
use crate::definitions::{Fit, submit};
use crate::http::Http;
use crate::process::{Meter, Served, Usage, free_port};
use crate::report::Row;
use crate::socket::{Native, fill};

pub(crate) use self::sender::serve as serve_as_the_original;

const QUEUE: &str = "original";

/// Workers that are there besides the one that works.
const IDLE_WORKERS: usize = 4;

/// A job's life is three changes: it is queued, it runs, it has ended.
const CHANGES_PER_JOB: u32 = 3;

/// Changes a second: a busy queue, and one that gathering is for.
const PER_SECOND: u32 = 20;
const PER_SECOND_BUSY: u32 = 200;

/// How long a success stays in a queue.
const SUCCESS_STAYS: Duration = Duration::from_secs(60);

/// How long all may take to have been told everything.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a server tells its pages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Everything, after each submission, each registration and every 10 s.
    Original,
    /// Each change when it comes.
    AtOnce,
    /// What changed within some milliseconds.
    Gathered,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Original => "all jobs after each submission, the original's way",
            Self::AtOnce => "each change at once",
            Self::Gathered => "changes gathered",
        }
    }
}

/// What was measured over some time.
struct Measured {
    changes: u64,
    seconds: f64,
    usage: Usage,
}

pub(crate) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let minute = Duration::from_secs(bench.scale.pick(4, 15, 60));
    let busy = Duration::from_secs(bench.scale.pick(3, 10, 20));
    for way in [Way::Original, Way::AtOnce, Way::Gathered] {
        LocalSet::new().run_until(one(bench, way, minute, busy)).await.context(way.name())?;
    }
    Ok(())
}

async fn one(bench: &mut Bench, way: Way, minute: Duration, busy: Duration) -> anyhow::Result<()> {
    let (count, jobs) = (bench.scale.pick(50, 200, 200), bench.scale.pick(1_000, 10_000, 10_000));
    let folder = bench.fresh_folder("original")?;
    let server = start(way, jobs, &folder).await?;
    if way != Way::Original {
        fill(server.port, QUEUE, "fill", jobs, Fit::Plain).await?;
        server.quiet().await;
    }
    let tally = Rc::new(Tally::default());
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        tasks.spawn_local(pages::page(server.port, tally.clone()));
    }
    for number in 0..=IDLE_WORKERS {
        // The sender makes the changes itself.
        let works = number == 0 && way != Way::Original;
        tasks.spawn_local(Worker { port: server.port, number, works }.run());
    }
    let told = async {
        while tally.wholes.get() < count as u64 {
            tally.news.notified().await;
        }
    };
    tokio::select! {
        all = timeout(PATIENCE, told) => all.context("pages are told nothing")?,
        Some(ended) = tasks.join_next() => anyhow::bail!("a socket ended: {ended:?}"),
    }
    server.quiet().await;
    let mut drive = Drive { way, port: server.port, jobs, submitted: 0 };
    let phases: &[(u32, Duration, &str)] = match way {
        Way::Original => &[(PER_SECOND, minute, "")],
        // After a minute ended jobs leave, as many as come.
        Way::AtOnce | Way::Gathered => {
            &[(PER_SECOND, minute, ""), (PER_SECOND, minute, ", while as many jobs leave"), (PER_SECOND_BUSY, busy, "")]
        }
    };
    let is_long = minute >= SUCCESS_STAYS;
    for (rate, time, meanwhile) in phases.iter().filter(|(_, _, meanwhile)| meanwhile.is_empty() || is_long) {
        tally.forget();
        let measured = tokio::select! {
            measured = drive.changes(&server, *rate, *time) => measured?,
            Some(ended) = tasks.join_next() => anyhow::bail!("a socket ended: {ended:?}"),
        };
        tell(bench, way, &tally, count, &measured, &format!("{jobs} jobs, {rate} changes/s{meanwhile}"));
    }
    tasks.shutdown().await;
    Ok(())
}

fn tell(bench: &mut Bench, way: Way, tally: &Tally, count: usize, measured: &Measured, what: &str) {
    let Measured { changes, seconds, usage } = measured;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let [changes, pages, bytes, whole_bytes, messages] =
        [*changes, count as u64, tally.bytes.get(), tally.whole_bytes.get(), tally.messages.get()]
            .map(|count| count as f64);
    let each = changes * pages;
    let note = format!(
        "{:.0} of them in {} whole states; {:.2} messages; {:.1} changes/s came about; {:.0} µs CPU per change, {:.1} µs per change and page",
        whole_bytes / each,
        tally.wholes.get(),
        messages / each,
        changes / seconds,
        usage.broker * seconds / changes * 1e6,
        usage.broker * seconds / each * 1e6,
    );
    let what = format!("{count} pages, {what}: {}", way.name());
    bench.report.add(Row::new("original", what, bytes / each, "bytes per change and page").usage(*usage).note(note));
}

async fn start(way: Way, jobs: u64, folder: &Path) -> anyhow::Result<Served> {
    let port = free_port()?;
    let mut command = Command::new(std::env::current_exe()?);
    match way {
        Way::Original => command.args(["--original-sender", &port.to_string(), &jobs.to_string()]),
        Way::AtOnce => command.args(["--original-broker", &port.to_string(), "0"]),
        Way::Gathered => {
            let usual = broker::original::Times::default().gather.as_millis();
            command.args(["--original-broker", &port.to_string(), &usual.to_string()])
        }
    };
    command.arg("--data").arg(folder).stdin(Stdio::null());
    Served::start(command, port).await
}

/// A broker whose changes are gathered for so long.
pub(crate) async fn serve_broker(port: u16, gather_ms: u16, folder: &Path) -> anyhow::Result<()> {
    let mut config = broker::config::Config::new(folder);
    config.original.gather = Duration::from_millis(gather_ms.into());
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let _broker = broker::Broker::start(config, listener).await?;
    std::future::pending().await
}

/// Makes changes.
struct Drive {
    way: Way,
    port: u16,
    /// What the queue has besides those that change.
    jobs: u64,
    submitted: u64,
}

impl Drive {
    /// So many changes a second for so long, or as many as the server takes; measured until all are told.
    async fn changes(&mut self, server: &Served, rate: u32, time: Duration) -> anyhow::Result<Measured> {
        let meter = Meter::start(server);
        let started = Instant::now();
        let changes = match self.way {
            Way::Original => self.sends(rate, time).await?,
            Way::AtOnce | Way::Gathered => self.lives(rate, time).await?,
        };
        let (usage, seconds) = (meter.read(), started.elapsed().as_secs_f64());
        Ok(Measured { changes, seconds, usage })
    }

    async fn sends(&self, rate: u32, time: Duration) -> anyhow::Result<u64> {
        let mut http = Http::connect(self.port).await?;
        let (mut ticks, started, mut changes) = (interval(Duration::from_secs(1) / rate), Instant::now(), 0);
        while started.elapsed() < time {
            ticks.tick().await;
            let answer = http.get("/change").await?;
            ensure!(answer.status == 200, "a change is answered {}", answer.status);
            changes += 1;
        }
        Ok(changes)
    }

    async fn lives(&mut self, rate: u32, time: Duration) -> anyhow::Result<u64> {
        let mut native = Native::client(self.port, QUEUE, false).await?;
        let (mut ticks, started) = (interval(Duration::from_secs(1) * CHANGES_PER_JOB / rate), Instant::now());
        let first = self.submitted;
        while started.elapsed() < time {
            ticks.tick().await;
            native.send(&submit(self.submitted, "change", self.submitted, Fit::Plain)).await?;
            native.accepted().await?;
            self.submitted += 1;
        }
        let mut http = Http::connect(self.port).await?;
        let ended = async {
            let wanted = format!("queue_length {}\n", self.jobs);
            loop {
                let answer = http.get(&format!("/q/{QUEUE}/metrics")).await?;
                if std::str::from_utf8(answer.body)?.contains(&wanted) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, ended).await.context("the jobs do not end")??;
        Ok((self.submitted - first) * u64::from(CHANGES_PER_JOB))
    }
}
