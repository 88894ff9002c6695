//! Clearing away what runs leave, beside the work: containers and files.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use protocol::native::HeldRun;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tracing::{debug, warn};

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

    /// Removes a container that no run here had; it was `of` that run.
    pub(super) fn remains(&mut self, context: &Arc<Context>, of: Option<QueueRun>, container: String) {
        let context = Arc::clone(context);
        self.tasks.spawn(async move {
            remove_container(&context, Some(container)).await;
            of
        });
    }

    /// Removes a run's container once its result is on disk: until then it is the only other copy of it.
    pub(super) fn container_once_kept(
        &mut self,
        context: &Arc<Context>,
        run: QueueRun,
        container: Option<String>,
        kept: oneshot::Receiver<()>,
    ) {
        let context = Arc::clone(context);
        self.tasks.spawn(async move {
            // No answer: it cannot be kept, which was told.
            let _ = kept.await;
            remove_container(&context, container).await;
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
    pub(super) fn run(&mut self, context: &Arc<Context>, run: QueueRun, container: Option<String>) {
        let context = Arc::clone(context);
        self.tasks.spawn(async move {
            remove_container(&context, container).await;
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
