//! Peers in the same run: durable queues and a job system that others made, on the same disk, through loopback, measured by the
//! same client.
//!
//! `deploy/bench-peers` fetches them; one that is not there is a row that says so, and no failure.

mod drive;
mod hyperqueue;
mod line;
mod nats;
mod program;
mod redis;

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::SinkExt;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::drive::Link;
use self::program::{Program, Unavailable};
use crate::Bench;
use crate::definitions::{Fit, submit};
use crate::http::Latencies;
use crate::life::{self, Plan};
use crate::process::{Meter, Served};
use crate::report::{PeerRow, Side};
use crate::socket::{Native, fill, frame};

/// The same on each, one system right after the other, so that all have the same machine.
#[derive(Clone, Copy)]
enum Load {
    /// So many clients, each of which waits for its answer before it asks again.
    Waiting(usize),
    /// One connection with many unanswered.
    Pipelined,
    /// Published, taken, ended.
    Life,
}

const LOADS: [Load; 5] = [Load::Waiting(1), Load::Waiting(16), Load::Waiting(64), Load::Pipelined, Load::Life];

impl Load {
    fn what(self) -> String {
        match self {
            Self::Waiting(1) => "durable publish, one client that waits for each answer".to_owned(),
            Self::Waiting(clients) => format!("durable publish, {clients} clients that wait"),
            Self::Pipelined => "durable publish, one connection, pipelined".to_owned(),
            Self::Life => format!("whole life: published, taken, acknowledged; {WORKERS} workers"),
        }
    }
}

/// Workers of a life, and how many jobs each takes at once, ours and theirs.
pub(crate) const WORKERS: u32 = 4;
pub(crate) const SLOTS: u32 = 64;

/// Jobs in life at most, ours and theirs.
pub(crate) const IN_LIFE_MAX: u64 = 1_024;

pub(crate) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let broker = Served::broker(&bench.binary, &bench.fresh_folder("peer-ours")?).await?;
    let (nats, redis) = (begin::<nats::Nats>(bench).await?, begin::<redis::Redis>(bench).await?);
    let (mut nats_rows, mut redis_rows, mut life) = (Vec::new(), Vec::new(), None);
    for load in LOADS {
        let ours = on_ours(bench, &broker, load).await?;
        nats_rows.extend(beside::<nats::Nats>(bench, nats.as_ref(), load, &ours).await);
        redis_rows.extend(beside::<redis::Redis>(bench, redis.as_ref(), load, &ours).await);
        if let Load::Life = load {
            life = Some(ours);
        }
    }
    drop((broker, nats, redis));
    nats_rows.into_iter().chain(redis_rows).for_each(|row| bench.report.add_peer(row));
    match life {
        Some(life) => hyperqueue::measure(bench, &life).await,
        None => Ok(()),
    }
}

async fn begin<P: Link>(bench: &mut Bench) -> anyhow::Result<Option<Program>> {
    let folder = bench.fresh_folder(P::FOLDER)?;
    match P::start(&folder).await {
        Ok(program) => Ok(Some(program)),
        Err(why) => {
            unavailable(bench, P::NAME, &why);
            Ok(None)
        }
    }
}

/// A peer is never the reason why the rest is not measured.
fn unavailable(bench: &mut Bench, name: &str, why: &Unavailable) {
    bench.report.skipped("peers", &format!("{name} is not available: {why}"));
}

async fn beside<P: Link>(bench: &mut Bench, program: Option<&Program>, load: Load, ours: &Side) -> Option<PeerRow> {
    let program = program?;
    match on_theirs::<P>(bench, program, load).await {
        Ok(theirs) => {
            let row =
                PeerRow::new(&format!("{} {}", P::NAME, program.version), load.what(), "jobs/s", ours.clone(), theirs);
            Some(if let Load::Life = load { row.note(P::LIFE) } else { row })
        }
        Err(error) => {
            unavailable(bench, P::NAME, &error.context(load.what()).into());
            None
        }
    }
}

fn pipelined_jobs(bench: &Bench) -> u64 {
    bench.scale.pick(10_000, 60_000, 90_000)
}

fn point(bench: &Bench) -> Duration {
    bench.scale.pick(Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(4))
}

/// Over native sockets: the interface that programs would use, as theirs are.
async fn on_ours(bench: &Bench, broker: &Served, load: Load) -> anyhow::Result<Side> {
    let meter = Meter::start(broker);
    let side = match load {
        Load::Waiting(clients) => {
            let (per_second, each) = submit_waiting(broker.port, clients, point(bench)).await?;
            Side::new(per_second, meter.read()).note(each.text())
        }
        Load::Pipelined => {
            let count = pipelined_jobs(bench);
            let took = fill(broker.port, "pipelined", "pipelined", count, Fit::Plain).await?;
            Side::new(per_second(count, took), meter.read())
        }
        Load::Life => {
            let plan = Plan {
                port: broker.port,
                queue: "life".to_owned(),
                series: "life",
                workers: WORKERS,
                slots: SLOTS,
                in_life_max: IN_LIFE_MAX,
                time: point(bench),
                lives_max: u64::MAX,
            };
            Side::new(life::run(&plan).await?, meter.read())
        }
    };
    broker.quiet().await;
    Ok(side)
}

async fn on_theirs<P: Link>(bench: &Bench, program: &Program, load: Load) -> anyhow::Result<Side> {
    let meter = Meter::of(program.pid());
    Ok(match load {
        Load::Waiting(clients) => {
            let (per_second, each) = drive::waiting::<P>(program.port, clients, point(bench)).await?;
            Side::new(per_second, meter.read()).note(each.text())
        }
        Load::Pipelined => {
            let (count, took) = drive::pipelined::<P>(program.port, pipelined_jobs(bench), point(bench)).await?;
            Side::new(per_second(count, took), meter.read())
        }
        Load::Life => Side::new(drive::life::<P>(program.port, point(bench)).await?, meter.read()),
    })
}

#[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
fn per_second(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// Each client submits over a socket of its own and waits for the answer before the next.
async fn submit_waiting(port: u16, clients: usize, time: Duration) -> anyhow::Result<(f64, Latencies)> {
    let mut sockets = Vec::new();
    let queue = format!("waiting-{clients}");
    for _ in 0..clients {
        sockets.push(Native::client(port, &queue, false).await?);
    }
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for (client, mut native) in (0..).zip(sockets) {
        tasks.spawn(async move {
            let mut each = Vec::new();
            while started.elapsed() < time {
                let number = client * 1_000_000 + each.len() as u64;
                let sent = Instant::now();
                native.sink.send(frame(&submit(number, "waiting", number, Fit::Plain))).await?;
                native.accepted().await?;
                each.push(sent.elapsed());
            }
            anyhow::Ok(each)
        });
    }
    drive::gathered(tasks, started).await
}

/// Where `deploy/bench-peers` puts what it fetches.
fn fetched() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home).unwrap_or_default();
    cache.join("gridsocket/bench-peers")
}
