//! HyperQueue, a job system for clusters, beside our lives.
//!
//! It starts a process for each task and keeps no journal unless told; the Python package, which is what can be had from a package
//! registry, cannot tell it. So the rows stand beside what starting processes costs alone.

use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::time::{Instant, timeout};

use super::fetched;
use super::program::{Unavailable, find, says};
use crate::Bench;
use crate::process::{Meter, Usage};
use crate::report::{PeerRow, Side};

const NAME: &str = "HyperQueue";

/// A server, workers and a client in one process of Python.
const SCRIPT: &str = include_str!("hyperqueue.py");

/// How long the whole may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn measure(bench: &mut Bench, our_life: &Side) -> anyhow::Result<()> {
    let tasks: u32 = bench.scale.pick(500, 3_000, 6_000);
    match run(bench, tasks).await {
        Ok((version, theirs)) => {
            let name = format!("{NAME} {version}");
            let what = format!("jobs that do nothing, submission to end; {tasks} tasks in one submission there");
            let row = PeerRow::new(&name, what, "jobs/s", our_life.clone(), theirs);
            bench.report.add_peer(row.note(
                "theirs starts a process for each and stores nothing; ours starts none and stores three records",
            ));
            let processes = processes(Duration::from_secs(1)).await?;
            let what = "the same beside processes alone: /bin/true started and waited for, 2 at a time";
            bench.report.add_peer(PeerRow::new("floor", what, "jobs/s", our_life.clone(), processes));
            Ok(())
        }
        Err(why) => {
            super::unavailable(bench, NAME, &why);
            Ok(())
        }
    }
}

/// Its version, and what it does.
async fn run(bench: &Bench, tasks: u32) -> Result<(String, Side), Unavailable> {
    let packages = fetched().join("hyperqueue");
    let python = find("python3")?;
    if !packages.is_dir() {
        return Err(Unavailable("no Python package hyperqueue; deploy/bench-peers fetches it".to_owned()));
    }
    let said = says(&python, &["--version"])?;
    let folder = bench.fresh_folder("peer")?;
    let mut child = tokio::process::Command::new(python)
        .args(["-c", SCRIPT, &tasks.to_string()])
        .arg(&folder)
        .env("PYTHONPATH", packages)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(folder.with_extension("log"))?)
        .kill_on_drop(true)
        .spawn()?;
    let (Some(mut stdin), Some(stdout), Some(pid)) = (child.stdin.take(), child.stdout.take(), child.id()) else {
        return Err(Unavailable("it has no pipes".to_owned()));
    };
    let mut lines = BufReader::new(stdout).lines();
    let ended = || Unavailable(format!("it ended early ({said}); see {}", folder.with_extension("log").display()));
    let mut next = async || timeout(PATIENCE, lines.next_line()).await.ok().and_then(Result::ok).flatten();
    // Its own tables come first.
    let version = loop {
        let line = next().await.ok_or_else(ended)?;
        if let Some(version) = line.strip_prefix("ready ") {
            break version.to_owned();
        }
    };
    let meter = Meter::of(pid);
    stdin.write_all(b"go\n").await?;
    let seconds: f64 = loop {
        let line = next().await.ok_or_else(ended)?;
        if let Some(seconds) = line.strip_prefix("done ") {
            break seconds.parse().map_err(|_| ended())?;
        }
    };
    let side = Side::new(f64::from(tasks) / seconds, meter.read());
    stdin.write_all(b"end\n").await?;
    let _ = timeout(PATIENCE, child.wait()).await;
    Ok((version, side))
}

/// Processes per second, two at a time and nothing else.
async fn processes(time: Duration) -> anyhow::Result<Side> {
    let meter = Meter::of(std::process::id());
    let started = Instant::now();
    let one = move || {
        let mut count = 0_u32;
        while started.elapsed() < time {
            Command::new("/bin/true").stdin(Stdio::null()).status()?;
            count += 1;
        }
        std::io::Result::Ok(count)
    };
    let (one, other) = (tokio::task::spawn_blocking(one), tokio::task::spawn_blocking(one));
    let count = one.await?? + other.await??;
    let seconds = started.elapsed().as_secs_f64();
    // Nobody serves; what the processes took is among the others'.
    let Usage { client, others, .. } = meter.read();
    Ok(Side::new(f64::from(count) / seconds, Usage { broker: 0.0, client, others: others + client }))
}
