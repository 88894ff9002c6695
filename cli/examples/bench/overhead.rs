//! What our worker adds to a container: jobs beside `docker run --rm` of the same container with the same settings on the same
//! network, alternating; one alone, eight at once, and a line of them; and where the milliseconds go, by the engine's own word.

mod engine;
mod ours;

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::try_join_all;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use self::engine::{Steps, Told, now_ns};
use self::ours::{Grid, Seen};
use crate::Bench;
use crate::container::{PATIENCE, WORKERS_NETWORK, is_usable};
use crate::http::{Latencies, ms};
use crate::process::Served;
use crate::report::{Row, Target};

/// The target: not slower than docker's own client.
const RATIO: f64 = 1.0;

/// How many run side by side.
const SIDE_BY_SIDE: usize = 8;

/// What names a container of docker's own client among the engine's events.
const TAG: &str = "gridsocket.bench/run";

/// What the command prints.
const SAID: &[u8] = b"hello\n";

/// How long one container took, from whoever asked for it, and when.
#[derive(Clone, Copy)]
struct Took {
    asked_ns: u64,
    done_ns: u64,
}

impl Took {
    const fn time(self) -> Duration {
        Duration::from_nanos(self.done_ns.saturating_sub(self.asked_ns))
    }
}

pub(crate) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    if let Err(why) = is_usable(&bench.image).await {
        bench.report.skipped("overhead", &format!("{why:#}"));
        return Ok(());
    }
    let folder = bench.fresh_folder("overhead")?;
    let broker = Served::broker(&bench.binary, &folder.join("broker")).await?;
    let told = Told::listen().await?;
    let mut grid = Grid::start(&bench.binary, &broker, &folder, &bench.image, SIDE_BY_SIDE).await?;
    let image = bench.image.clone();
    let docker = Docker { folder: &folder, image: &image };
    docker.prepare()?;
    let mut numbers = 0..;
    let pairs = bench.scale.pick(6, 60, 120);
    alone(bench, &mut grid, &docker, &told, &mut numbers, pairs).await?;
    let rounds = bench.scale.pick(2, 10, 20);
    at_once(bench, &mut grid, &docker, &told, &mut numbers, rounds).await?;
    let each = bench.scale.pick(2, 10, 20);
    in_line(bench, &mut grid, &docker, &told, &mut numbers, each).await?;
    grid.stop().await
}

type Numbers = std::ops::RangeFrom<u64>;

fn next(numbers: &mut Numbers) -> u64 {
    numbers.next().unwrap_or_default()
}

/// One at a time, taking turns at going first.
async fn alone(
    bench: &mut Bench,
    grid: &mut Grid,
    docker: &Docker<'_>,
    told: &Told,
    numbers: &mut Numbers,
    pairs: u64,
) -> anyhow::Result<()> {
    let (mut ours, mut dockers) = (Vec::new(), Vec::new());
    for pair in 0..=pairs {
        for is_ours in [pair % 2 == 0, pair % 2 == 1] {
            let number = next(numbers);
            let keep = pair > 0; // The first of each makes folders, networks and caches.
            if is_ours {
                let seen = grid.jobs(&[number]).await?;
                told.all_gone(seen.iter().map(|seen| seen.job.to_string()).collect()).await?;
                ours.extend(seen.into_iter().filter(|_| keep));
            } else {
                let took = docker.run(number).await?;
                told.all_gone(vec![number.to_string()]).await?;
                dockers.extend(Some((number, took)).filter(|_| keep));
            }
        }
    }
    let what = format!("one job at a time, submit to finished, median of {pairs}");
    compare(bench, what, &ours, &dockers);
    steps(bench, "alone", told, &ours, &dockers);
    Ok(())
}

/// Eight asked for in the same moment, again and again.
async fn at_once(
    bench: &mut Bench,
    grid: &mut Grid,
    docker: &Docker<'_>,
    told: &Told,
    numbers: &mut Numbers,
    rounds: u64,
) -> anyhow::Result<()> {
    let (mut ours, mut dockers) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        for is_ours in [round % 2 == 0, round % 2 == 1] {
            let batch: Vec<u64> = (0..SIDE_BY_SIDE).map(|_| next(numbers)).collect();
            if is_ours {
                let seen = grid.jobs(&batch).await?;
                told.all_gone(seen.iter().map(|seen| seen.job.to_string()).collect()).await?;
                ours.extend(seen);
            } else {
                let took = try_join_all(batch.iter().map(|&number| docker.run(number))).await?;
                told.all_gone(batch.iter().map(u64::to_string).collect()).await?;
                dockers.extend(batch.into_iter().zip(took));
            }
        }
    }
    let what = format!("{SIDE_BY_SIDE} jobs at once, submit to finished, median of {}", ours.len());
    compare(bench, what, &ours, &dockers);
    steps(bench, "side by side", told, &ours, &dockers);
    Ok(())
}

/// A line of jobs through eight places, until the last container is gone; and eight shells that run one after the other.
async fn in_line(
    bench: &mut Bench,
    grid: &mut Grid,
    docker: &Docker<'_>,
    told: &Told,
    numbers: &mut Numbers,
    each: usize,
) -> anyhow::Result<()> {
    let count = each * SIDE_BY_SIDE;
    let (mut ours, mut dockers) = (Vec::new(), Vec::new());
    for round in 0..4 {
        let batch: Vec<u64> = (0..count).map(|_| next(numbers)).collect();
        let started = Instant::now();
        if round % 2 == 0 {
            let seen = grid.jobs(&batch).await?;
            told.all_gone(seen.iter().map(|seen| seen.job.to_string()).collect()).await?;
            ours.push(started.elapsed());
        } else {
            let shell = async |batch: &[u64]| {
                for &number in batch {
                    docker.run(number).await?;
                }
                anyhow::Ok(())
            };
            try_join_all(batch.chunks(each).map(shell)).await?;
            told.all_gone(batch.iter().map(u64::to_string).collect()).await?;
            dockers.push(started.elapsed());
        }
    }
    let rate = |times: &[Duration]| {
        let seconds: f64 = times.iter().map(Duration::as_secs_f64).sum();
        (count * times.len()) as f64 / seconds
    };
    let (our, docker) = (rate(&ours), rate(&dockers));
    bench.report.add(
        Row::new(
            "overhead",
            format!("a line of {count} jobs, {SIDE_BY_SIDE} at a time, until all are gone"),
            our,
            "jobs/s",
        )
        .target(Target::AtLeast(docker / RATIO))
        .floor("docker run --rm", docker),
    );
    Ok(())
}

fn compare(bench: &mut Bench, what: String, ours: &[Seen], dockers: &[(u64, Took)]) {
    let ours = Latencies::new(ours.iter().map(|seen| seen.took.time()).collect());
    let dockers = Latencies::new(dockers.iter().map(|(_, took)| took.time()).collect());
    let (our, docker) = (ms(ours.at(50)), ms(dockers.at(50)));
    bench.report.add(
        Row::new("overhead", what, our, "ms")
            .target(Target::AtMost(docker * RATIO))
            .floor("docker run --rm", docker)
            .note(format!("ours {}; docker run {}", ours.text(), dockers.text())),
    );
}

/// Medians of the parts between what the engine and the broker said.
fn steps(bench: &mut Bench, how: &str, told: &Told, ours: &[Seen], dockers: &[(u64, Took)]) {
    let median = |each: &mut dyn Iterator<Item = Option<(u64, u64)>>| {
        let spans = each.flatten().map(|(from, to)| Duration::from_nanos(to.saturating_sub(from)));
        ms(Latencies::new(spans.collect()).at(50))
    };
    let ours: Vec<(Seen, Steps)> = ours.iter().map(|seen| (seen.clone(), told.steps(&seen.job.to_string()))).collect();
    let dockers: Vec<(Took, Steps)> =
        dockers.iter().map(|(number, took)| (*took, told.steps(&number.to_string()))).collect();
    let our =
        |span: fn(&Seen, &Steps) -> Option<(u64, u64)>| median(&mut ours.iter().map(|(seen, steps)| span(seen, steps)));
    let docker = |span: fn(&Took, &Steps) -> Option<(u64, u64)>| {
        median(&mut dockers.iter().map(|(took, steps)| span(took, steps)))
    };
    let rows = [
        (
            "asked, until the worker has the run",
            Some(our(|seen, _| Some((seen.took.asked_ns, seen.claimed_ns?)))),
            None,
        ),
        (
            "then until the container is made",
            Some(our(|seen, steps| Some((seen.claimed_ns?, steps.create?)))),
            Some(docker(|took, steps| Some((took.asked_ns, steps.create?)))),
        ),
        (
            "then until it is started",
            Some(our(|_, steps| Some((steps.create?, steps.start?)))),
            Some(docker(|_, steps| Some((steps.create?, steps.start?)))),
        ),
        (
            "then until it has ended",
            Some(our(|_, steps| Some((steps.start?, steps.die?)))),
            Some(docker(|_, steps| Some((steps.start?, steps.die?)))),
        ),
        (
            "then until whoever asked knows it",
            Some(our(|seen, steps| Some((steps.die?, seen.took.done_ns)))),
            Some(docker(|took, steps| Some((steps.die?, took.done_ns)))),
        ),
        (
            "from its end until it is removed",
            Some(our(|_, steps| Some((steps.die?, steps.destroy?)))),
            Some(docker(|_, steps| Some((steps.die?, steps.destroy?)))),
        ),
    ];
    for (what, our, docker) in rows {
        let row = Row::new("overhead", format!("{how}: {what}"), our.unwrap_or_default(), "ms");
        bench.report.add(match docker {
            Some(docker) => row.floor("docker run --rm", docker),
            None => row,
        });
    }
}

/// Docker's own client.
struct Docker<'a> {
    folder: &'a Path,
    image: &'a str,
}

impl Docker<'_> {
    fn prepare(&self) -> anyhow::Result<()> {
        for name in ["inputs", "outputs"] {
            std::fs::create_dir_all(self.folder.join(name))?;
        }
        Ok(())
    }

    /// The container that a worker makes for such a job: the same rights, mounts, network, and as many variables and labels.
    async fn run(&self, number: u64) -> anyhow::Result<Took> {
        let mount = |name: &str, how: &str| format!("{}:/{name}{how}", self.folder.join(name).display());
        let mut command = Command::new("docker");
        command.args(["run", "--rm", "--network", WORKERS_NETWORK, "--user", "0:0"]);
        command.args(["--security-opt", "no-new-privileges", "--cap-drop", "MKNOD", "--cap-drop", "NET_RAW"]);
        command.args(["-v", &mount("inputs", ":ro"), "-v", &mount("outputs", "")]);
        command.args(["-v", "gridsocket-bench-cache:/job-cache", "--label", &format!("{TAG}={number}")]);
        for variable in 0..8 {
            command.args(["--env", &format!("VARIABLE_{variable}={number}")]);
        }
        for label in 0..5 {
            command.args(["--label", &format!("gridsocket.bench/label-{label}={number}")]);
        }
        command.args([self.image, "echo", "hello"]);
        let asked_ns = now_ns();
        let output = timeout(PATIENCE, command.stdin(std::process::Stdio::null()).output()).await;
        let output = output.context("docker run hangs")??;
        let done_ns = now_ns();
        anyhow::ensure!(output.stdout == SAID, "docker run: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(Took { asked_ns, done_ns })
    }
}

/// Asks again and again until it is so.
async fn until(mut is_so: impl FnMut() -> bool, what: &str) -> anyhow::Result<()> {
    let wait = async {
        while !is_so() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, wait).await.with_context(|| format!("{what}: not within {} s", PATIENCE.as_secs()))
}
