//! The part of `soak kill` with a real worker and a real Docker Engine: its containers must not notice that the broker died.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use protocol::id::{JobId, QueueKey};
use protocol::queue::Status;
use serde_json::json;
use tokio::process::Command;

use crate::history::Histories;
use crate::load::Load;
use crate::process::{Process, path_text};

const QUEUE: &str = "soak-containers";
/// Containers that run for as long as this test.
const LONG: usize = 3;
/// Containers that end in the middle of it.
const SHORT: usize = 3;
/// Their time: a few rounds.
const SHORT_SECONDS: usize = 8;
/// How long containers may take to come, go or be reported.
const WITHIN: Duration = Duration::from_secs(60);

/// Removes what is left of a worker's containers, however this ends.
pub(crate) struct Sweep(pub(crate) String);

impl Drop for Sweep {
    fn drop(&mut self) {
        let filter = format!("label=container.mtfm.io/worker={}", self.0);
        let left = std::process::Command::new("docker").args(["ps", "-aq", "--filter", &filter]).output();
        let left = left.map(|said| String::from_utf8_lossy(&said.stdout).into_owned()).unwrap_or_default();
        if !left.trim().is_empty() {
            let _ = std::process::Command::new("docker").args(["rm", "-f"]).args(left.split_whitespace()).output();
        }
    }
}

/// A worker with its containers.
pub(crate) struct Containers {
    worker: Process,
    sweep: Sweep,
    http: reqwest::Client,
    address: String,
    long: BTreeMap<JobId, String>,
    short: Vec<JobId>,
}

/// What ran, to be found in the journal.
pub(crate) struct Runs {
    long: Vec<JobId>,
    short: Vec<JobId>,
}

impl Containers {
    /// Starts a worker and its containers; `None` where no Engine answers.
    pub(crate) async fn start(
        binary: &Path,
        http: &reqwest::Client,
        address: &str,
        dir: &Path,
        seed: u64,
    ) -> anyhow::Result<Option<Self>> {
        let engine = Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]).output().await;
        let Some(version) = engine.ok().filter(|said| said.status.success()) else {
            println!("  containers: skipped, no Docker Engine answers");
            return Ok(None);
        };
        println!("  containers: Docker Engine {}", String::from_utf8_lossy(&version.stdout).trim());
        let worker_id = format!("soak-{seed}");
        let (api, files, log) = (format!("http://{address}"), dir.join("worker"), dir.join("worker.log"));
        let arguments = [
            "run",
            QUEUE,
            "--api-address",
            &api,
            "--id",
            &worker_id,
            "--cpus",
            "8",
            "-t",
            "1h",
            "--data-directory",
            path_text(&files)?,
        ];
        let worker = Process::start(binary, &arguments, &log)?;
        let (http, address) = (http.clone(), address.to_owned());
        let sweep = Sweep(worker_id);
        let mut containers = Self { worker, sweep, http, address, long: BTreeMap::new(), short: Vec::new() };
        let mut wanted = Vec::new();
        for number in 0..LONG {
            wanted.push(containers.submit(&format!("sleep {}", 3600 + number)).await?);
        }
        for number in 0..SHORT {
            let job = containers.submit(&format!("sleep {}", SHORT_SECONDS + number)).await?;
            containers.short.push(job);
        }
        let all_run =
            async || containers.running().await.is_ok_and(|running| wanted.iter().all(|job| running.contains_key(job)));
        ensure!(Load::wait_for(WITHIN, all_run).await, "the containers do not start; see {}", log.display());
        let running = containers.running().await?;
        containers.long = running.into_iter().filter(|(job, _)| wanted.contains(job)).collect();
        Ok(Some(containers))
    }

    async fn submit(&self, command: &str) -> anyhow::Result<JobId> {
        let image = std::env::var("GRIDSOCKET_TEST_IMAGE").unwrap_or_else(|_| "gridsocket/busybox:local".to_owned());
        let body = json!({ "definition": { "image": image, "command": command } });
        let answer = self.http.post(format!("http://{}/q/{QUEUE}", self.address)).json(&body).send().await?;
        let answer: serde_json::Value = answer.error_for_status()?.json().await?;
        Ok(answer["jobId"].as_str().context("no job in the answer")?.parse()?)
    }

    /// The running containers of this worker: the id of each, by its job.
    async fn running(&self) -> anyhow::Result<BTreeMap<JobId, String>> {
        let filter = format!("label=container.mtfm.io/worker={}", self.sweep.0);
        let format = "{{.Label \"container.mtfm.io/id\"}} {{.ID}}";
        let said =
            Command::new("docker").args(["ps", "--no-trunc", "--filter", &filter, "--format", format]).output().await?;
        ensure!(said.status.success(), "docker ps: {}", String::from_utf8_lossy(&said.stderr));
        let text = String::from_utf8_lossy(&said.stdout);
        let pair = |line: &str| line.split_once(' ').and_then(|(job, id)| Some((job.parse().ok()?, id.to_owned())));
        Ok(text.lines().filter_map(pair).collect())
    }

    /// Whether the long containers are still the same.
    pub(crate) async fn check(&self) -> anyhow::Result<()> {
        let running = self.running().await?;
        for (job, id) in &self.long {
            let now = running.get(job);
            ensure!(now == Some(id), "the container of job {job} was {id} and is now {now:?}");
        }
        Ok(())
    }

    /// Waits for the short ones, sees the long ones once more, cancels them, and stops the worker.
    pub(crate) async fn finish(self) -> anyhow::Result<Runs> {
        for job in &self.short {
            let url = format!("http://{}/q/{QUEUE}/j/{job}/result.json", self.address);
            let has_result = async || match self.http.get(&url).send().await {
                Ok(answer) => answer.text().await.is_ok_and(|text| text.contains("Finished")),
                Err(_) => false,
            };
            ensure!(Load::wait_for(WITHIN, has_result).await, "job {job}, which slept for some seconds, has no result");
        }
        self.check().await?;
        for job in self.long.keys() {
            let url = format!("http://{}/q/{QUEUE}/j/{job}/cancel", self.address);
            self.http.post(url).send().await?.error_for_status()?;
        }
        let none_runs = async || self.running().await.is_ok_and(|running| running.is_empty());
        ensure!(Load::wait_for(WITHIN, none_runs).await, "cancelled containers still run");
        let runs = Runs { long: self.long.into_keys().collect(), short: self.short };
        self.worker.stop().await?;
        Ok(runs)
    }
}

impl Runs {
    /// Whether each of them had exactly one run, which was never given up; says so.
    pub(crate) fn check(&self, histories: &Histories, wrong: &mut Vec<String>) -> String {
        let history = QUEUE.parse().ok().and_then(|name| histories.get(&QueueKey::of(&name)));
        for job in self.long.iter().chain(&self.short) {
            let (claimed, lost) = history.map(|history| history.runs_of(*job)).unwrap_or_default();
            if claimed != [1] || !lost.is_empty() {
                wrong
                    .push(format!("container job {job} was claimed as {claimed:?} and lost as {lost:?}, not run once"));
            }
        }
        for job in &self.short {
            let status = history.and_then(|history| history.state.job(*job)).map(|job| &job.status);
            // One that ended more than a minute ago has left the queue.
            if !matches!(status, None | Some(Status::Finished { exit_code: Some(0), .. })) {
                wrong.push(format!("container job {job} ended as {status:?}"));
            }
        }
        format!("{} containers kept running, {} ended meanwhile, each one run", self.long.len(), self.short.len())
    }
}
