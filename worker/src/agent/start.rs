//! From checked values to a worker that works, and what an earlier process left.

use std::sync::Arc;

use protocol::id::QueueKey;
use protocol::native::{FinishedRun, HeldRun, WorkerHello};
use tracing::info;

use super::{Agent, ExitSummary};
use crate::adopt;
use crate::config::{self, Config, DOCKER_HOST_DEFAULT};
use crate::container::{Engine, Surroundings};
use crate::context::Context;
use crate::error::WorkerError;
use crate::files::Files;
use crate::identity::{DataLock, worker_id};
use crate::images::Images;
use crate::link::{self, LinkConfig, Report};
use crate::shutdown::Shutdown;
use crate::state_machine::slots::Slots;
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
    let gpus = config::gpu_devices(&config.gpus)?;
    let tls = tls::client_config().map_err(|error| WorkerError::Tls(error.to_string()))?;
    let host = config.docker_host.as_deref().unwrap_or(DOCKER_HOST_DEFAULT);
    let engine = tokio::select! {
        engine = Engine::connect(host) => engine?,
        _ = shutdown.requested() => return Ok(ExitSummary::default()),
    };
    let queue = QueueKey::of(&config.queue);
    let api = config.api.clone();
    let files = Files::open(&config.data_directory, queue, api, config.public_api.clone(), &tls)?;
    let (store, kept) = Unacknowledged::open(&config.data_directory, queue)?;
    let slots = Slots::new(config.cpus, config.memory_bytes, gpus, config.limits.memory_bytes);
    let context = Arc::new(Context {
        surroundings: Surroundings::new(config.network.clone()),
        images: Images::new(engine.clone()),
        outbox: Arc::default(),
        worker,
        engine,
        files,
        config,
    });
    let prepared = context.surroundings.ensure(&context.engine).await;
    prepared.map_err(|source| WorkerError::Engine { what: "make the network or the cache volume for jobs", source })?;
    info!(
        worker.id = %context.worker, queue.key = queue.short(),
        "worker {} offers {} CPUs and {} GPUs to a queue at {}",
        context.worker, context.config.cpus, slots.total().gpus, context.config.api
    );
    let link = LinkConfig {
        api: context.config.api.clone(),
        queue: context.config.queue.clone(),
        worker: hello(&context, &slots),
        tls,
    };
    let mut agent = Agent::new(context, store, slots);
    agent.take_up(kept).await?;
    let (events, link) = link::start(link, Arc::clone(&agent.context.outbox));
    agent.work(events, &mut shutdown).await;
    Ok(agent.close(link).await)
}

fn hello(context: &Context, slots: &Slots) -> WorkerHello {
    WorkerHello {
        id: context.worker.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        total: slots.total(),
        tags: context.config.tags.clone(),
        max_duration_ms: Some(context.config.max_job_duration_ms),
        holds: Vec::new(),
    }
}

impl Agent {
    /// Goes on with what an earlier process left.
    async fn take_up(&mut self, kept: Vec<FinishedRun>) -> Result<(), WorkerError> {
        let ended: Vec<HeldRun> = kept.iter().map(|run| HeldRun { job: run.job, run: run.run }).collect();
        for (run, finished) in ended.iter().zip(kept) {
            self.context.outbox.report(*run, Report::Finish(finished));
        }
        let left = adopt::look(&self.context, &ended).await?;
        let held: Vec<HeldRun> = ended.iter().copied().chain(left.adopted.iter().map(|adopted| adopted.run)).collect();
        for container in left.remains {
            self.clearing.remains(container);
        }
        for adopted in left.adopted {
            info!(job.id = %adopted.run.job, "adopts run {} of job {}", adopted.run.run, adopted.run.job);
            self.adopt(adopted);
        }
        self.clearing.sweep(self.context.files.left_over(held).await);
        Ok(())
    }
}
