//! Clearing away what runs leave, beside the work: containers and files.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use protocol::definition::Definition;
use protocol::native::HeldRun;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tracing::{debug, error, warn};

use crate::container::{Standing, is_not_found, standing};
use crate::context::Context;
use crate::state_machine::QueueRun;

/// How often a container's removal is tried, with [`REMOVE_PAUSE`] between: mounts stay busy for seconds at times.
const REMOVE_TRIES: u32 = 6;
const REMOVE_PAUSE: Duration = Duration::from_secs(2);
/// How often one is tried after that which still runs: something holds it in the kernel, or the engine is away.
const STUCK_PAUSE: Duration = Duration::from_secs(30);

/// What is being cleared away.
#[derive(Default)]
pub(super) struct Clearing {
    /// Each ends with the run whose container is gone, if it was of one: its GPUs may be given to others.
    tasks: JoinSet<Option<QueueRun>>,
}

impl Clearing {
    /// Waits for the next removal to end and names the run whose container is gone; `None` when nothing is under way.
    pub(super) async fn next(&mut self) -> Option<Option<QueueRun>> {
        self.tasks.join_next().await.map(|done| done.ok().flatten())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Leaves the rest to the next start.
    pub(super) fn give_up(&mut self) {
        self.tasks.abort_all();
    }

    /// Removes a container that no run here had; `holder` has its GPUs.
    pub(super) fn remains(&mut self, context: &Arc<Context>, holder: QueueRun, container: String) {
        let context = Arc::clone(context);
        self.tasks.spawn(async move {
            despite_panics(|| remove_container(&context, Some(container.clone()))).await;
            Some(holder)
        });
    }

    /// Removes a run's container once its result is on disk, or was taken by the broker (then `taken` ends): until then it is
    /// the only other copy of it.
    pub(super) fn container_once_kept(
        &mut self,
        context: &Arc<Context>,
        run: QueueRun,
        container: Leftover,
        kept: oneshot::Receiver<bool>,
        taken: oneshot::Receiver<()>,
    ) {
        let context = Arc::clone(context);
        self.tasks.spawn(async move {
            if !kept.await.unwrap_or(false) {
                let _ = taken.await;
            }
            remove_leftover(&context, run, container).await;
            Some(run)
        });
    }

    /// Removes a run's files.
    pub(super) fn files(&mut self, context: &Context, run: HeldRun) {
        let files = context.files.clone();
        self.tasks.spawn(async move {
            files.remove(run).await;
            None
        });
    }

    /// Removes all that a run has here.
    pub(super) fn run(&mut self, context: &Arc<Context>, run: QueueRun, container: Leftover) {
        let context = Arc::clone(context);
        self.tasks.spawn(async move {
            remove_leftover(&context, run, container).await;
            context.files.remove(run.run).await;
            Some(run)
        });
    }

    /// The same for a run whose job was deleted: the image that was built for it goes too.
    pub(super) fn deleted(&mut self, context: &Arc<Context>, run: QueueRun, container: Leftover) {
        let context = Arc::clone(context);
        self.tasks.spawn(async move {
            remove_leftover(&context, run, container).await;
            discard_image(&context, run.run).await;
            context.files.remove(run.run).await;
            Some(run)
        });
    }

    /// Removes directories that earlier processes left.
    pub(super) fn sweep(&mut self, context: &Context, left_over: Vec<PathBuf>) {
        let files = context.files.clone();
        self.tasks.spawn(async move {
            files.sweep(left_over).await;
            None
        });
    }
}

/// What a run may have left at the engine.
#[derive(Clone, Debug)]
pub(super) enum Leftover {
    Nothing,
    Container(String),
    /// Perhaps a container, which nobody knows the id of.
    Unknown,
}

impl Leftover {
    pub(super) fn of(container: Option<String>, may_have_one: bool) -> Self {
        match container {
            Some(container) => Self::Container(container),
            None if may_have_one => Self::Unknown,
            None => Self::Nothing,
        }
    }
}

/// Comes back once nothing of it runs.
async fn remove_leftover(context: &Context, run: QueueRun, leftover: Leftover) {
    despite_panics(async || match leftover.clone() {
        Leftover::Nothing => {}
        Leftover::Container(container) => remove_container(context, Some(container)).await,
        Leftover::Unknown => {
            for container in containers_of(context, run.run).await {
                remove_container(context, Some(container)).await;
            }
        }
    })
    .await;
}

/// What holds GPUs until it is done is done, whatever happens on the way.
async fn despite_panics<F: Future<Output = ()>>(mut work: impl FnMut() -> F) {
    while std::panic::AssertUnwindSafe(work()).catch_unwind().await.is_err() {
        error!("clearing away a container made the worker panic; it is tried again");
        tokio::time::sleep(STUCK_PAUSE).await;
    }
}

/// The image that was built for a job that is deleted goes with it.
async fn discard_image(context: &Context, run: HeldRun) {
    let path = context.files.dirs(run).definition;
    let Ok(text) = tokio::fs::read(&path).await else { return };
    if let Some(build) = Definition::parse(&text).ok().and_then(|definition| definition.build) {
        context.builds.discard(&build).await;
    }
}

/// A run's containers, as soon as the engine can be asked.
async fn containers_of(context: &Context, run: HeldRun) -> Vec<String> {
    loop {
        match context.engine.own(&context.worker, &context.queue, Some(&run)).await {
            Ok(found) => return found.into_iter().filter_map(|summary| summary.id).collect(),
            Err(away) => debug!(job.id = %run.job, "cannot ask for the container of a run of job {}: {away}", run.job),
        }
        tokio::time::sleep(REMOVE_PAUSE).await;
    }
}

/// Removes a container, also when the engine is busy or away for a moment. Comes back once nothing of it runs: what it was
/// given must not be given to others before.
async fn remove_container(context: &Context, container: Option<String>) {
    let Some(container) = container else { return };
    for _ in 1..REMOVE_TRIES {
        match context.engine.remove(&container).await {
            Ok(()) => return,
            Err(error) => debug!(container.id = container, "cannot remove container {container} yet: {error}"),
        }
        tokio::time::sleep(REMOVE_PAUSE).await;
    }
    loop {
        let Err(error) = context.engine.remove(&container).await else { return };
        match context.engine.inspect(&container).await {
            Err(gone) if is_not_found(&gone) => return,
            Ok(found) if standing(&found) != Standing::Running => {
                warn!(container.id = container, "cannot remove container {container}, the next start will: {error}");
                return;
            }
            Ok(_) => warn!(container.id = container, "container {container} cannot be ended: {error}"),
            Err(away) => warn!(container.id = container, "cannot ask for container {container}: {away}"),
        }
        tokio::time::sleep(STUCK_PAUSE).await;
    }
}
