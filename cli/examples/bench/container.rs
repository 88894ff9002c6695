//! A real container job, submitted and finished, beside `docker run --rm` of the same container: alternating, medians.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use protocol::event::{Event, RunOutcome};
use protocol::id::JobId;
use protocol::native::{FromBroker, Submission, ToBroker};
use protocol::raw::RawJson;
use protocol::record::Record;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

use crate::Bench;
use crate::http::{Latencies, ms};
use crate::process::Served;
use crate::report::{Row, Target};
use crate::socket::Native;

/// The target: not slower than docker's own client.
const RATIO: f64 = 1.0;

/// How long anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The bridge that workers make for their jobs when they are told no other network.
pub(crate) const WORKERS_NETWORK: &str = "metaframe-container-worker-network";

/// What both ways give the container: one CPU, this much memory, no swap.
const MEMORY: &str = "64m";

pub(crate) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    if let Err(why) = is_usable(&bench.image).await {
        bench.report.skipped("container", &format!("{why:#}"));
        return Ok(());
    }
    for network in ["none", WORKERS_NETWORK] {
        pairs(bench, network).await?;
    }
    Ok(())
}

/// Whether an engine answers and has the image.
pub(crate) async fn is_usable(image: &str) -> anyhow::Result<()> {
    for words in [&["version", "--format", "{{.Server.Version}}"][..], &["image", "inspect", image]] {
        let mut command = Command::new("docker");
        command.args(words).stdin(Stdio::null());
        let output = timeout(PATIENCE, command.output()).await.context("docker does not answer")?;
        let output = output.context("no docker command")?;
        if !output.status.success() {
            bail!("docker {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    Ok(())
}

async fn pairs(bench: &mut Bench, network: &str) -> anyhow::Result<()> {
    let folder = bench.fresh_folder("container")?;
    let broker = Served::broker(&bench.binary, &folder.join("broker")).await?;
    let mut grid = Grid::start(&bench.binary, &broker, &folder, network, &bench.image).await?;
    let pairs = bench.scale.pick(6, 30, 30);
    let (mut ours, mut dockers) = (Vec::new(), Vec::new());
    for number in 0..=pairs {
        let our = grid.job(number).await?;
        let docker = grid.docker_run(number).await?;
        // The first of each makes folders, networks and caches.
        if number > 0 {
            ours.push(our);
            dockers.push(docker);
        }
    }
    grid.stop().await?;
    let (ours, dockers) = (Latencies::new(ours), Latencies::new(dockers));
    let (our, docker) = (ms(ours.at(50)), ms(dockers.at(50)));
    let kind = if network == WORKERS_NETWORK { "bridge" } else { network };
    let what = format!("container job, network {kind}, submit to finished, median of {pairs}");
    let note = format!("ours {}; docker run {}", ours.text(), dockers.text());
    bench.report.add(
        Row::new("container", what, our, "ms")
            .target(Target::AtMost(docker * RATIO))
            .floor("docker run --rm", docker)
            .note(note),
    );
    Ok(())
}

/// A worker of the broker, a client that watches, and the folders that both ways mount.
struct Grid<'a> {
    worker: Child,
    client: Native,
    folder: &'a Path,
    network: &'a str,
    image: &'a str,
}

impl<'a> Grid<'a> {
    async fn start(
        binary: &Path,
        broker: &Served,
        folder: &'a Path,
        network: &'a str,
        image: &'a str,
    ) -> anyhow::Result<Self> {
        let queue = format!("container-{network}");
        for name in ["inputs", "outputs"] {
            std::fs::create_dir_all(folder.join(name))?;
        }
        let (worker, client) = start_worker(binary, broker, folder, &queue, network, 1).await?;
        Ok(Self { worker, client, folder, network, image })
    }

    /// A job, from its submission to the record that it finished.
    async fn job(&mut self, number: u64) -> anyhow::Result<Duration> {
        let definition = RawJson::new(format!(
            r#"{{"image":"{}","command":"echo hello","env":{{"N":"{number}"}},"requirements":{{"cpus":1,"memory":"{MEMORY}"}}}}"#,
            self.image
        ));
        let job = Submission {
            id: None,
            definition,
            namespace: None,
            priority: 0,
            debug: false,
            retry: false,
            callbacks: protocol::native::Callbacks::default(),
        };
        let started = Instant::now();
        self.client.send(&ToBroker::Submit { req: number, job }).await?;
        timeout(PATIENCE, self.finished(number)).await.context("the job does not finish; see worker.log")??;
        Ok(started.elapsed())
    }

    async fn finished(&mut self, number: u64) -> anyhow::Result<()> {
        let mut id: Option<JobId> = None;
        let mut ended = Vec::new();
        loop {
            match self.client.next().await?.0 {
                FromBroker::Ok { req, job, .. } if req == number => id = job,
                FromBroker::Rejected { code, message, .. } => bail!("refused: {code}: {message}"),
                FromBroker::Events { records, .. } => {
                    for record in records {
                        match Record::decode(&record.0)?.event {
                            Event::RunFinished { job, outcome: RunOutcome::Success, exit_code: Some(0), .. } => {
                                ended.push(job)
                            }
                            failed @ (Event::RunFinished { .. } | Event::RunLost { .. }) => {
                                bail!("the job failed: {failed:?}")
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
            if id.is_some_and(|id| ended.contains(&id)) {
                return Ok(());
            }
        }
    }

    /// The same container by docker's own client.
    async fn docker_run(&self, number: u64) -> anyhow::Result<Duration> {
        let mount = |name: &str| format!("{}:/{name}", self.folder.join(name).display());
        let mut command = Command::new("docker");
        command.args([
            "run",
            "--rm",
            "--network",
            self.network,
            "--cpus",
            "1",
            "--memory",
            MEMORY,
            "--memory-swap",
            MEMORY,
        ]);
        command.args(["--env", &format!("N={number}"), "-v", &mount("inputs"), "-v", &mount("outputs")]);
        command.args(["-v", "metaframe-container-worker-cache:/job-cache", self.image, "echo", "hello"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let output = timeout(PATIENCE, command.output()).await.context("docker run hangs")??;
        let took = started.elapsed();
        if output.stdout != b"hello\n" {
            bail!("docker run: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(took)
    }

    async fn stop(&mut self) -> anyhow::Result<()> {
        stop_worker(&mut self.worker).await
    }
}

/// Starts a worker of the broker, and a client that watches the queue and has seen the worker come.
pub(crate) async fn start_worker(
    binary: &Path,
    broker: &Served,
    folder: &Path,
    queue: &str,
    network: &str,
    cpus: usize,
) -> anyhow::Result<(Child, Native)> {
    let log = std::fs::File::create(folder.join("worker.log"))?;
    let worker = Command::new(binary)
        .args(["run", queue, "--api-address", &format!("http://127.0.0.1:{}", broker.port)])
        .args(["--network", network, "--cpus", &cpus.to_string(), "--kill-on-exit", "--data-directory"])
        .arg(folder.join("worker"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()?;
    let mut client = Native::client(broker.port, queue, true).await?;
    let there = async {
        loop {
            if let FromBroker::Presence { workers, .. } = client.next().await?.0
                && !workers.is_empty()
            {
                return anyhow::Ok(());
            }
        }
    };
    timeout(PATIENCE, there).await.context("the worker does not connect; see worker.log")??;
    Ok((worker, client))
}

/// Lets a worker take its leave, so that no container of it stays.
pub(crate) async fn stop_worker(worker: &mut Child) -> anyhow::Result<()> {
    if let Some(pid) = worker.id() {
        Command::new("kill").arg(pid.to_string()).status().await?;
        if timeout(PATIENCE, worker.wait()).await.is_err() {
            worker.kill().await?;
        }
    }
    Ok(())
}
