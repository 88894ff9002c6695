//! The workers: one that is never killed, so that what it takes can be compared, and others that are.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{QUEUE, Trouble, Troubles};
use crate::process::{Process, path_text};
use crate::random::Random;
use crate::subject::Subject;

/// How many are killed.
const MORTALS: usize = 2;
/// How long one lives, in milliseconds, and how long it is away.
const LIVES_MS: (u64, u64) = (4_000, 20_000);
const AWAY_MS: (u64, u64) = (0, 2_000);
/// How soon one that gave up is started again.
const RESTART: Duration = Duration::from_secs(1);
/// The worker's own limit of a job's time.
const LIMIT: &str = "2m";
/// How many jobs one runs at a time.
pub(super) const PLACES: usize = 4;

/// Starts one worker, again and again.
#[derive(Clone)]
struct Plan {
    arguments: Vec<String>,
    log: PathBuf,
    name: String,
}

impl Plan {
    fn start(&self) -> anyhow::Result<Process> {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        // `env` becomes what it starts.
        Process::start(Path::new("/usr/bin/env"), &arguments, &self.log)
    }
}

/// All workers.
pub(super) struct Crew {
    pub(super) steady: Process,
    mortals: Vec<(Plan, Option<Process>)>,
    tasks: JoinSet<anyhow::Result<(Plan, Process)>>,
    /// What they are called; so are their folders.
    pub(super) names: Vec<String>,
}

impl Crew {
    pub(super) fn start(soak: &Subject, dir: &Path, seed: u64, host: &str) -> anyhow::Result<Self> {
        let api = format!("http://{}", soak.address);
        let mut plans = Vec::new();
        for number in 0..=MORTALS {
            let name = format!("soak-worker-{seed}-{number}");
            let (data, temporary) = (dir.join(&name), dir.join(format!("{name}.tmp")));
            std::fs::create_dir_all(&temporary)?;
            let environment = [format!("DOCKER_HOST={host}"), format!("TMPDIR={}", path_text(&temporary)?)];
            let places = PLACES.to_string();
            let run = [path_text(&soak.binary)?, "run", QUEUE, "-a", &api, "--id", &name, "-c", &places, "-t", LIMIT];
            let arguments = environment
                .into_iter()
                .chain(run.map(str::to_owned))
                .chain(["-d", path_text(&data)?].map(str::to_owned));
            plans.push(Plan { arguments: arguments.collect(), log: dir.join(format!("{name}.log")), name });
        }
        let names = plans.iter().map(|plan| plan.name.clone()).collect();
        let steady = plans.remove(0).start()?;
        let mut mortals = Vec::new();
        for plan in plans {
            let worker = plan.start()?;
            mortals.push((plan, Some(worker)));
        }
        Ok(Self { steady, mortals, tasks: JoinSet::new(), names })
    }

    pub(super) const fn size(&self) -> usize {
        MORTALS + 1
    }

    /// From now on they are killed, until it is calm.
    pub(super) fn trouble(&mut self, random: &mut Random, calm: &CancellationToken, troubles: &Arc<Troubles>) {
        for (plan, worker) in &mut self.mortals {
            if let Some(worker) = worker.take() {
                self.tasks.spawn(live(plan.clone(), worker, random.fork(), calm.clone(), Arc::clone(troubles)));
            }
        }
    }

    /// Once it is calm: takes them back.
    pub(super) async fn calm(&mut self) -> anyhow::Result<()> {
        while let Some(ended) = self.tasks.join_next().await {
            let (plan, worker) = ended??;
            self.mortals.retain(|(known, _)| known.name != plan.name);
            self.mortals.push((plan, Some(worker)));
        }
        Ok(())
    }

    /// The processes.
    pub(super) fn pids(&self) -> anyhow::Result<Vec<u32>> {
        let mortals = self.mortals.iter().filter_map(|(_, worker)| worker.as_ref());
        std::iter::once(&self.steady).chain(mortals).map(Process::pid).collect()
    }

    /// Asks all to end; what was wrong with that.
    pub(super) async fn stop(&mut self) -> anyhow::Result<Vec<String>> {
        let mut wrong = Vec::new();
        let mortals = self.mortals.iter_mut().filter_map(|(_, worker)| worker.as_mut());
        for worker in std::iter::once(&mut self.steady).chain(mortals) {
            let ended = worker.stop_in_place().await.context("stopping a worker")?;
            if !ended.success() {
                wrong.push(format!("asked to stop, a worker ended with {ended}"));
            }
        }
        Ok(wrong)
    }
}

/// One worker's lives; gives the last.
async fn live(
    plan: Plan,
    mut worker: Process,
    mut random: Random,
    calm: CancellationToken,
    troubles: Arc<Troubles>,
) -> anyhow::Result<(Plan, Process)> {
    loop {
        tokio::select! {
            () = calm.cancelled() => return Ok((plan, worker)),
            ended = worker.ended() => {
                // Without an engine at its start it gives up, and whoever looks after it starts it again.
                if !troubles.is_engine_away() {
                    troubles.strange(format!("{} ended by itself: {}", plan.name, ended?));
                }
                tokio::time::sleep(RESTART).await;
                worker = plan.start()?;
                continue;
            }
            () = tokio::time::sleep(random.millis(LIVES_MS.0, LIVES_MS.1)) => {}
        }
        let from_ms = broker::clock::now().0;
        worker.kill_in_place().await.with_context(|| format!("killing a worker; see {}", plan.log.display()))?;
        tokio::time::sleep(random.millis(AWAY_MS.0, AWAY_MS.1)).await;
        worker = plan.start()?;
        troubles.add(from_ms, Some(plan.name.clone()));
    }
}

/// How often what was done.
pub(super) fn told(troubles: &[Trouble]) -> String {
    let (kills, restarts): (Vec<_>, Vec<_>) = troubles.iter().partition(|trouble| trouble.worker.is_some());
    format!("{} kills of workers, {} of the engine", kills.len(), restarts.len())
}
