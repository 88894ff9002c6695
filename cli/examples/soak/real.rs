//! The part of `soak grid` with real workers and a real Docker Engine: `gridsocket run` is killed at random and started again,
//! and takes over what its containers did meanwhile.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use protocol::id::{JobId, QueueKey};
use serde_json::json;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::containers::Sweep;
use crate::history::Histories;
use crate::process::{Process, path_text};
use crate::random::Random;
use crate::subject::Subject;

/// Their queue.
pub(crate) const QUEUE: &str = "soak-grid-real";

/// How many workers there are.
const WORKERS: usize = 2;
/// How long one lives, in milliseconds, and how long it is away when it was killed.
const LIVES_MS: (u64, u64) = (3_000, 12_000);
const AWAY_MS: (u64, u64) = (0, 2_000);
/// Between two jobs, in milliseconds: fewer than the workers can run.
const PACE_MS: (u64, u64) = (300, 1_500);
/// How long a job sleeps, in tenths of a second.
const SLEEPS: (u64, u64) = (0, 40);
/// When the broker is not there.
const RETRY: Duration = Duration::from_millis(100);

/// Real workers with jobs, while the storm lasts.
pub(crate) struct Real {
    submitted: Arc<Mutex<Vec<JobId>>>,
    kills: Arc<AtomicU64>,
    tasks: JoinSet<anyhow::Result<Option<Process>>>,
    _sweeps: Vec<Sweep>,
}

/// What one worker needs to be started.
struct Plan {
    binary: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
}

impl Plan {
    fn start(&self) -> anyhow::Result<Process> {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        Process::start(&self.binary, &arguments, &self.log)
    }
}

impl Real {
    /// Starts them; `None` where no Engine answers. Nobody is killed any more once it is calm.
    pub(crate) async fn start(
        soak: &Subject,
        dir: &Path,
        seed: u64,
        random: &mut Random,
        calm: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let engine = Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]).output().await;
        let Some(version) = engine.ok().filter(|said| said.status.success()) else {
            println!("  real workers: skipped, no Docker Engine answers");
            return Ok(None);
        };
        println!("  real workers: {WORKERS}, Docker Engine {}", String::from_utf8_lossy(&version.stdout).trim());
        let (submitted, kills) = (Arc::default(), Arc::new(AtomicU64::new(0)));
        let (mut tasks, mut sweeps) = (JoinSet::new(), Vec::new());
        for number in 1..=WORKERS {
            let id = format!("soak-grid-{seed}-{number}");
            let files = dir.join(&id);
            let api = format!("http://{}", soak.address);
            let arguments = ["run", QUEUE, "-a", &api, "--id", &id, "-c", "4", "-t", "5m", "-d", path_text(&files)?];
            let plan = Plan {
                binary: soak.binary.clone(),
                arguments: arguments.map(str::to_owned).to_vec(),
                log: dir.join(format!("{id}.log")),
            };
            sweeps.push(Sweep(id));
            tasks.spawn(live(plan, random.fork(), calm.clone(), Arc::clone(&kills)));
        }
        let url = format!("http://{}/q/{QUEUE}", soak.address);
        tasks.spawn(submit(soak.http.clone(), url, seed, random.fork(), calm.clone(), Arc::clone(&submitted)));
        Ok(Some(Self { submitted, kills, tasks, _sweeps: sweeps }))
    }

    /// Once it is calm: the workers, which go on, and the jobs that were acknowledged.
    pub(crate) async fn calm(&mut self) -> anyhow::Result<(Vec<Process>, Vec<JobId>)> {
        let mut workers = Vec::new();
        while let Some(ended) = self.tasks.join_next().await {
            workers.extend(ended??);
        }
        let submitted = std::mem::take(&mut *self.submitted.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((workers, submitted))
    }

    /// What came of the jobs, by the journal.
    pub(crate) fn check(&self, jobs: &[JobId], histories: &Histories, wrong: &mut Vec<String>) -> String {
        let history = QUEUE.parse().ok().and_then(|name| histories.get(&QueueKey::of(&name)));
        let (mut once, mut again) = (0, 0);
        for job in jobs {
            let (claimed, lost) = history.map(|history| history.runs_of(*job)).unwrap_or_default();
            if claimed.is_empty() {
                wrong.push(format!("container job {job} was acknowledged and never run"));
            } else if lost.is_empty() {
                once += 1;
            } else {
                again += 1;
            }
        }
        let kills = self.kills.load(Ordering::Relaxed);
        format!(
            "{WORKERS} real workers killed {kills} times: {once} container jobs run once, {again} again after a loss"
        )
    }
}

/// One worker's lives; gives the last.
async fn live(
    plan: Plan,
    mut random: Random,
    calm: CancellationToken,
    kills: Arc<AtomicU64>,
) -> anyhow::Result<Option<Process>> {
    loop {
        let mut worker = plan.start()?;
        tokio::select! {
            () = calm.cancelled() => return Ok(Some(worker)),
            () = tokio::time::sleep(random.millis(LIVES_MS.0, LIVES_MS.1)) => {}
        }
        worker.kill_in_place().await.with_context(|| format!("killing a worker; see {}", plan.log.display()))?;
        kills.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(random.millis(AWAY_MS.0, AWAY_MS.1)).await;
    }
}

/// Submits until it is calm.
async fn submit(
    http: reqwest::Client,
    url: String,
    seed: u64,
    mut random: Random,
    calm: CancellationToken,
    submitted: Arc<Mutex<Vec<JobId>>>,
) -> anyhow::Result<Option<Process>> {
    let image = std::env::var("GRIDSOCKET_TEST_IMAGE").unwrap_or_else(|_| "gridsocket/busybox:local".to_owned());
    for number in 0_u64.. {
        let tenths = random.between(SLEEPS.0, SLEEPS.1);
        let command = format!("sh -c 'sleep {}.{}; echo {seed}-{number}'", tenths / 10, tenths % 10);
        let body = json!({ "definition": { "image": image, "command": command } });
        let job = loop {
            if calm.is_cancelled() {
                return Ok(None);
            }
            // Nobody may be there; twice is the same as once.
            if let Ok(answer) = http.post(&url).json(&body).send().await {
                let status = answer.status();
                if let Ok(answer) = answer.json::<serde_json::Value>().await
                    && let Some(job) = answer["jobId"].as_str()
                {
                    break job.parse()?;
                }
                ensure!(status.as_u16() == 503, "a container job was answered {status}");
            }
            tokio::time::sleep(RETRY).await;
        };
        submitted.lock().unwrap_or_else(PoisonError::into_inner).push(job);
        tokio::select! {
            () = calm.cancelled() => return Ok(None),
            () = tokio::time::sleep(random.millis(PACE_MS.0, PACE_MS.1)) => {}
        }
    }
    Ok(None)
}
