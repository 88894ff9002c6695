//! From checked values to a worker that works, and what an earlier process left.

use std::sync::Arc;

use protocol::id::{QueueKey, QueueName, WorkerId};
use protocol::native::{FinishedRun, HeldRun, WorkerHello};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::clearing::Leftover;
use super::fitness::Fitness;
use super::lane::{Lane, Links};
use super::{Agent, ExitSummary};
use crate::adopt;
use crate::builds::{Builds, Held};
use crate::clock::{self, unix_now};
use crate::config::{Config, ConfigError, DOCKER_HOST_DEFAULT, INTERNET_ONLY, Isolation};
use crate::container::{Engine, Facts, Surroundings, SurroundingsError, cache_volume, ensure_shared};
use crate::context::Context;
use crate::doctor::{gpus_doubt, others_than};
use crate::error::WorkerError;
use crate::files::Files;
use crate::gpus::{self, Gpus};
use crate::identity::{DataLock, worker_id};
use crate::images::Images;
use crate::link::{self, EVENTS_MAX, LinkConfig, Report};
use crate::observe::{self, Board, Observed, Observer};
use crate::outcome::Ending;
use crate::quarantine::{Crashed, Quarantine};
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
    ensure_shared(&engine, host, &config.data_directory, &worker).await?;
    // Another machine's devices are not those of this one's driver.
    let driver = if host.starts_with("unix:") { gpus::listed() } else { Vec::new() };
    let machine = gpus::Machine { driver, cdi: engine.facts().devices.clone() };
    if let Some(doubt) = gpus_doubt(&config.gpus, &machine.driver, engine.facts()) {
        warn!("{doubt}; `gridsocket doctor` says what to do");
    }
    let gpus = Arc::new(Gpus::choose(&config.gpus, machine)?);
    check_network(&engine, config.network.as_deref()).await?;
    let job_user = check_isolation(&config.isolation, engine.facts())?;
    let surroundings = Surroundings::new(config.network.clone(), config.limits.cache_bytes);
    surroundings.ensure_network(&engine).await.map_err(|error| match error {
        SurroundingsError::Engine(source) => WorkerError::Engine { what: "make the network for jobs", source },
        SurroundingsError::Egress(why) => WorkerError::Egress { why: why.to_string() },
        other @ SurroundingsError::Network(_) => WorkerError::Network { why: other.to_string() },
    })?;
    let slots = Slots::new(config.cpus, config.memory_bytes, gpus.offered().to_vec(), config.limits.memory_bytes);
    info!(
        worker.id = %worker,
        "worker {worker} offers {} CPUs and {} GPUs to {} at {}",
        config.cpus, slots.total().gpus, in_words(config.queues.len()), config.api
    );
    let hello = hello(&config, &worker, &slots);
    let (quarantine, crashed) = Quarantine::open(&config.data_directory, clock::boot())?;
    let own = (worker, Arc::new(quarantine));
    let (lanes, kept): (Vec<_>, Vec<_>) =
        lanes(config, own, engine, (gpus, job_user), surroundings, &tls)?.into_iter().unzip();
    let fitness = fitness(&lanes);
    let mut agent = Agent::new(lanes, slots, fitness);
    let _observing = observe::start(observer(&agent.lanes), agent.lanes[0].context.config.listen_metrics).await?;
    let images = agent.lanes.first().map(|lane| Arc::clone(&lane.context.images));
    let _prepulling = images.as_ref().map(Images::prepull);
    for (index, kept) in kept.into_iter().enumerate() {
        agent.take_up(QueueIndex(index), kept, &crashed).await?;
    }
    agent.end_strays().await?;
    let _guarding = {
        let context = &agent.lanes[0].context;
        context.surroundings.guard(&context.engine)
    };
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let mut links = Links::default();
    for (index, lane) in agent.lanes.iter().enumerate() {
        let (context, worker, tls) = (&lane.context, hello.clone(), Arc::clone(&tls));
        let index = QueueIndex(index);
        let (api, dialect, queue) = (context.config.api.clone(), context.config.dialect, context.queue.clone());
        let link = LinkConfig { api, dialect, queue, index, worker, tls, asleep_ms: clock::asleep_ms };
        let (outbox, sender) = (Arc::clone(&context.outbox), sender.clone());
        links.start(index, move || link::keep_connected(link.clone(), Arc::clone(&outbox), sender.clone()));
    }
    drop(sender);
    agent.work(events, &mut links, &mut shutdown).await;
    if let Some(images) = images {
        images.save().await;
    }
    Ok(agent.close(links).await)
}

/// Refuses a network that somebody else was to make and has not: each job would fail on it.
async fn check_network(engine: &Engine, name: Option<&str>) -> Result<(), WorkerError> {
    let Some(name) = name.filter(|name| *name != INTERNET_ONLY) else { return Ok(()) };
    match others_than(engine, name).await {
        Ok(None) => Ok(()),
        Ok(Some(known)) => Err(ConfigError::Network { name: name.to_owned(), known }.into()),
        Err(source) => Err(WorkerError::Engine { what: "tell of the network for jobs", source }),
    }
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
pub(super) fn lanes(
    config: Config,
    (worker, quarantine): (WorkerId, Arc<Quarantine>),
    engine: Engine,
    (gpus, job_user): (Arc<Gpus>, Option<(u32, u32)>),
    surroundings: Surroundings,
    tls: &rustls::ClientConfig,
) -> Result<Vec<(Lane, Vec<FinishedRun>)>, WorkerError> {
    let keys: Vec<QueueKey> = config.queues.iter().map(QueueKey::of).collect();
    let stores = Unacknowledged::open(&config.data_directory, &keys)?;
    let data = std::fs::canonicalize(&config.data_directory).map_err(WorkerError::disk(&config.data_directory))?;
    let data = data.to_string_lossy().into_owned();
    let first = keys.first().copied().ok_or(ConfigError::Queues { given: 0 })?;
    let files = Files::open(&config, first, tls)?;
    let (config, surroundings) = (Arc::new(config), Arc::new(surroundings));
    let images = Arc::new(Images::new(&engine, config.images.clone(), &config.data_directory)?);
    let held = Held {
        builder: config.builds.builder,
        limits: config.limits.clone(),
        network: surroundings.network().to_owned(),
        platform: config.images.platform.clone(),
    };
    let builds = Arc::new(Builds::open(&config, Arc::clone(&images), held, tls)?);
    let board = Arc::new(Board::new(&config.queues));
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
            data: data.clone(),
            quarantine: Arc::clone(&quarantine),
            board: Arc::clone(&board),
        };
        (Lane::new(Arc::new(context), store), kept)
    };
    Ok(config.queues.iter().zip(keys).zip(stores).map(lane).collect())
}

/// Looks at the engine, and at the disks of the data directory and of an engine on this machine.
fn fitness(lanes: &[Lane]) -> Fitness {
    let Context { config, engine, .. } = &*lanes[0].context;
    let is_here = config.docker_host.as_deref().unwrap_or(DOCKER_HOST_DEFAULT).starts_with("unix:");
    let root = engine.facts().root.clone().filter(|_| is_here);
    let places = root.into_iter().chain([config.data_directory.clone()]).collect();
    Fitness::start(engine.clone(), places, config.min_free_disk_bytes)
}

/// What is shown of the worker.
fn observer(lanes: &[Lane]) -> Observer {
    let context = &lanes[0].context;
    let config = &context.config;
    Observer::new(Observed {
        worker: context.worker.clone(),
        board: Arc::clone(&context.board),
        engine: context.engine.clone(),
        engine_address: config.docker_host.as_deref().unwrap_or(DOCKER_HOST_DEFAULT).to_owned(),
        images: Arc::clone(&context.images),
        builds: Arc::clone(&context.builds),
        outboxes: lanes.iter().map(|lane| Arc::clone(&lane.context.outbox)).collect(),
        data_directory: config.data_directory.clone(),
        recent: config.recent.clone(),
    })
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
    async fn take_up(
        &mut self,
        queue: QueueIndex,
        kept: Vec<FinishedRun>,
        crashed: &[Crashed],
    ) -> Result<(), WorkerError> {
        let context = Arc::clone(&self.lane(queue).context);
        let ended: Vec<HeldRun> = kept.iter().map(|run| HeldRun { job: run.job, run: run.run }).collect();
        for (run, finished) in ended.iter().zip(kept) {
            context.outbox.report(*run, Report::Finish(finished));
        }
        let mut left = adopt::look(&context, &ended).await?;
        let crashed = crashed.iter().filter(|crashed| crashed.queue == context.key && !ended.contains(&crashed.run));
        for Crashed { run, .. } in crashed.copied() {
            if let Some(why) = context.quarantine.refuses(context.key, run.job) {
                let adopted = left.adopted.extract_if(.., |adopted| adopted.run == run).next();
                let own = QueueRun { queue, run };
                if let Some(adopted) = &adopted {
                    self.slots.adopt(own, &adopted.needs(), adopted.gpus.clone());
                    self.slots.release_all_but_gpus(own);
                }
                let ending = Ending::bad_input(why, unix_now());
                let leftover = Leftover::of(adopted.map(|adopted| adopted.container), true);
                self.on_finished(own, ending, leftover).await;
            }
        }
        let held: Vec<HeldRun> = ended.iter().copied().chain(left.adopted.iter().map(|adopted| adopted.run)).collect();
        for remains in left.remains {
            // Perhaps it still runs.
            let holder = self.slots.keep_remains(remains.run, remains.gpus);
            self.clearing.remains(&context, holder, remains.container);
        }
        for adopted in left.adopted {
            info!(job.id = %adopted.run.job, "adopts run {} of job {}", adopted.run.run, adopted.run.job);
            self.adopt(queue, adopted);
        }
        let left_over = context.files.left_over(held).await;
        self.clearing.sweep(&context, left_over);
        Ok(())
    }

    /// Ends what earlier processes started under other names.
    async fn end_strays(&mut self) -> Result<(), WorkerError> {
        let Some(context) = self.lanes.first().map(|lane| Arc::clone(&lane.context)) else { return Ok(()) };
        let strays = adopt::strays(&context, &context.config.queues).await?;
        for stray in strays {
            let holder = self.slots.keep_remains(stray.run, stray.gpus);
            self.clearing.remains(&context, holder, stray.container);
        }
        let served = self.lanes.iter().map(|lane| lane.context.key).collect();
        let left_over = context.files.left_by_other_queues(served).await;
        self.clearing.sweep(&context, left_over);
        Ok(())
    }
}
