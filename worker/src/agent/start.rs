//! From checked values to a worker that works, and what an earlier process left.

use std::sync::Arc;

use protocol::id::{QueueKey, QueueName, WorkerId};
use protocol::native::{FinishedRun, HeldRun, WorkerHello};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::lane::{Lane, Links};
use super::{Agent, ExitSummary};
use crate::adopt;
use crate::builds::{Builds, Held};
use crate::config::{Config, ConfigError, DOCKER_HOST_DEFAULT, Isolation};
use crate::container::{Engine, Facts, Surroundings, SurroundingsError, cache_volume};
use crate::context::Context;
use crate::error::WorkerError;
use crate::files::Files;
use crate::gpus::{self, Gpus};
use crate::identity::{DataLock, worker_id};
use crate::images::Images;
use crate::link::{self, EVENTS_MAX, LinkConfig, Report};
use crate::shutdown::Shutdown;
use crate::state_machine::slots::Slots;
use crate::state_machine::{QueueIndex, QueueRun};
use crate::tls;
use crate::unacknowledged::Unacknowledged;

/// Works until `shutdown` asks for an end.
///
/// # Errors
///
/// [`WorkerError`] when it cannot start: no engine, a data directory in use, values that cannot be used here.
pub async fn run(config: Config, mut shutdown: Shutdown) -> Result<ExitSummary, WorkerError> {
    config.check()?;
    let _lock = DataLock::take(&config.data_directory)?;
    let worker = worker_id(&config.id, &config.data_directory)?;
    let tls = tls::client_config().map_err(|error| WorkerError::Tls(error.to_string()))?;
    let host = config.docker_host.as_deref().unwrap_or(DOCKER_HOST_DEFAULT);
    let engine = tokio::select! {
        engine = Engine::connect(host) => engine?,
        _ = shutdown.requested() => return Ok(ExitSummary::default()),
    };
    // Another machine's devices are not those of this one's driver.
    let driver = if host.starts_with("unix:") { gpus::listed() } else { Vec::new() };
    let machine = gpus::Machine { driver, cdi: engine.facts().devices.clone() };
    let gpus = Arc::new(Gpus::choose(&config.gpus, machine)?);
    let job_user = check_isolation(&config.isolation, engine.facts())?;
    let surroundings = Surroundings::new(config.network.clone(), config.limits.cache_bytes);
    surroundings.ensure_network(&engine).await.map_err(|error| match error {
        SurroundingsError::Engine(source) => WorkerError::Engine { what: "make the network for jobs", source },
        SurroundingsError::Egress(why) => WorkerError::Egress { why: why.to_string() },
    })?;
    let slots = Slots::new(config.cpus, config.memory_bytes, gpus.offered().to_vec(), config.limits.memory_bytes);
    info!(
        worker.id = %worker,
        "worker {worker} offers {} CPUs and {} GPUs to {} at {}",
        config.cpus, slots.total().gpus, in_words(config.queues.len()), config.api
    );
    let hello = hello(&config, &worker, &slots);
    let (lanes, kept): (Vec<_>, Vec<_>) =
        lanes(config, worker, engine, (gpus, job_user), surroundings, &tls)?.into_iter().unzip();
    let mut agent = Agent::new(lanes, slots);
    let images = agent.lanes.first().map(|lane| Arc::clone(&lane.context.images));
    let _prepulling = images.as_ref().map(Images::prepull);
    for (index, kept) in kept.into_iter().enumerate() {
        agent.take_up(QueueIndex(index), kept).await?;
    }
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let mut links = Links::default();
    for (index, lane) in agent.lanes.iter().enumerate() {
        let (context, worker, tls) = (&lane.context, hello.clone(), Arc::clone(&tls));
        let index = QueueIndex(index);
        let link = LinkConfig { api: context.config.api.clone(), queue: context.queue.clone(), index, worker, tls };
        links.start(index, link::keep_connected(link, Arc::clone(&context.outbox), sender.clone()));
    }
    drop(sender);
    agent.work(events, &mut links, &mut shutdown).await;
    if let Some(images) = images {
        images.save().await;
    }
    Ok(agent.close(links).await)
}

/// Refuses what the engine cannot do, and tells as whom jobs run.
fn check_isolation(isolation: &Isolation, facts: &Facts) -> Result<Option<(u32, u32)>, ConfigError> {
    if let Some(name) = isolation.runtime.as_ref().filter(|name| !facts.runtimes.contains(name)) {
        return Err(ConfigError::Runtime { name: name.clone(), known: facts.runtimes.clone() });
    }
    if !facts.has_seccomp {
        warn!("the container engine does not limit the system calls of containers: it has no seccomp");
    }
    let own = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    isolation.user.in_containers(own, facts.is_rootless)
}

/// One for each queue, with the results that an earlier process kept.
fn lanes(
    config: Config,
    worker: WorkerId,
    engine: Engine,
    (gpus, job_user): (Arc<Gpus>, Option<(u32, u32)>),
    surroundings: Surroundings,
    tls: &rustls::ClientConfig,
) -> Result<Vec<(Lane, Vec<FinishedRun>)>, WorkerError> {
    let keys: Vec<QueueKey> = config.queues.iter().map(QueueKey::of).collect();
    let stores = Unacknowledged::open(&config.data_directory, &keys)?;
    let (api, public_api) = (config.api.clone(), config.public_api.clone());
    let first = keys.first().copied().ok_or(ConfigError::Queues { given: 0 })?;
    let files = Files::open(&config.data_directory, first, api, public_api, tls)?;
    let (config, surroundings) = (Arc::new(config), Arc::new(surroundings));
    let images = Arc::new(Images::new(&engine, config.images.clone(), &config.data_directory)?);
    let held = Held {
        builder: config.builds.builder,
        limits: config.limits.clone(),
        network: surroundings.network().to_owned(),
        platform: config.images.platform.clone(),
    };
    let builds = Builds::open(&config.data_directory, Arc::clone(&images), config.builds.clone(), held, tls)?;
    let builds = Arc::new(builds);
    let lane = |((queue, key), (store, kept)): ((&QueueName, QueueKey), _)| {
        let context = Context {
            config: Arc::clone(&config),
            worker: worker.clone(),
            engine: engine.clone(),
            surroundings: Arc::clone(&surroundings),
            images: Arc::clone(&images),
            builds: Arc::clone(&builds),
            gpus: Arc::clone(&gpus),
            job_user,
            queue: queue.clone(),
            key,
            cache: cache_volume(&key),
            files: files.of(key),
            outbox: Arc::default(),
        };
        (Lane::new(Arc::new(context), store), kept)
    };
    Ok(config.queues.iter().zip(keys).zip(stores).map(lane).collect())
}

fn in_words(queues: usize) -> String {
    if queues == 1 { "a queue".to_owned() } else { format!("{queues} queues") }
}

fn hello(config: &Config, worker: &WorkerId, slots: &Slots) -> WorkerHello {
    WorkerHello {
        id: worker.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        total: slots.total(),
        tags: config.tags.clone(),
        max_duration_ms: Some(config.max_job_duration_ms),
        holds: Vec::new(),
    }
}

impl Agent {
    /// Goes on with what an earlier process left of a queue.
    async fn take_up(&mut self, queue: QueueIndex, kept: Vec<FinishedRun>) -> Result<(), WorkerError> {
        let context = Arc::clone(&self.lane(queue).context);
        let ended: Vec<HeldRun> = kept.iter().map(|run| HeldRun { job: run.job, run: run.run }).collect();
        for (run, finished) in ended.iter().zip(kept) {
            context.outbox.report(*run, Report::Finish(finished));
        }
        let left = adopt::look(&context, &ended).await?;
        let held: Vec<HeldRun> = ended.iter().copied().chain(left.adopted.iter().map(|adopted| adopted.run)).collect();
        for remains in left.remains {
            let of = remains.ended.map(|run| QueueRun { queue, run });
            if let Some(own) = of {
                // Its result is known, but perhaps it still runs.
                self.slots.keep_gpus(own, remains.gpus);
            }
            self.clearing.remains(&context, of, remains.container);
        }
        for adopted in left.adopted {
            info!(job.id = %adopted.run.job, "adopts run {} of job {}", adopted.run.run, adopted.run.job);
            self.adopt(queue, adopted);
        }
        let left_over = context.files.left_over(held).await;
        self.clearing.sweep(&context, left_over);
        Ok(())
    }
}
