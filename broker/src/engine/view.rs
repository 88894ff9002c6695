//! Looking at a queue's jobs without waking the queue: for whoever looks at all queues, slowly.

use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use protocol::id::{Digest, JobId, QueueKey, UnixMillis};
use protocol::queue::{Job, QueueState};

use super::{Engine, QueueHandle, blocking};
use crate::journal::result_of;
use crate::refusal::Refusal;

/// What a queue's state says of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The job.
    pub(crate) job: JobId,
    /// Its definition.
    pub(crate) body: Digest,
    /// Its result, when it ended with one.
    pub(crate) result: Option<Digest>,
    /// Whether it waits or runs.
    pub(crate) is_live: bool,
    /// When its status last changed.
    pub(crate) changed_at_ms: UnixMillis,
}

impl Standing {
    fn of((job, found): (&JobId, &Job)) -> Self {
        Self {
            job: *job,
            body: found.body,
            result: result_of(&found.status),
            is_live: found.is_live(),
            changed_at_ms: found.changed_at_ms,
        }
    }
}

/// A queue's state: the live task's, or as it is on disk when no task is running. What happens in a queue after it was read
/// from disk is not seen; what was decided before is, in either.
pub(crate) enum View {
    /// A task has it.
    Live(QueueHandle),
    /// It was read.
    Stored(Arc<QueueState>),
}

impl Engine {
    /// A view of a queue.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the queue cannot be read.
    pub(crate) async fn view(&self, queue: QueueKey) -> Result<View, Refusal> {
        // A task that ended before this look has put everything on disk; one that begins after it reads what is there.
        let is_live = self.live().get(&queue).is_some_and(|mailbox| !mailbox.is_closed());
        if is_live {
            return Ok(View::Live(self.queue_by_key(queue)));
        }
        let journal = self.0.journal.clone();
        let state = blocking(move || journal.load(queue)).await?;
        Ok(View::Stored(Arc::new(state)))
    }
}

impl View {
    /// What the state says of the jobs after `after`, at most so many.
    pub(crate) async fn page(&self, after: Option<JobId>, count_max: usize) -> Result<Vec<Standing>, Refusal> {
        let look = move |state: &QueueState| -> Vec<Standing> {
            let from = after.map_or(Unbounded, Excluded);
            state.jobs().range((from, Unbounded)).take(count_max).map(Standing::of).collect()
        };
        self.look(look).await
    }

    /// What the state says of these jobs; those that are not in it are left out.
    pub(crate) async fn of(&self, jobs: Vec<JobId>) -> Result<Vec<Standing>, Refusal> {
        let look = move |state: &QueueState| -> Vec<Standing> {
            jobs.iter().filter_map(|job| state.job(*job).map(|found| Standing::of((job, found)))).collect()
        };
        self.look(look).await
    }

    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&QueueState) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        match self {
            Self::Live(queue) => queue.read(move |core| look(core.state())).await,
            Self::Stored(state) => Ok(look(state)),
        }
    }
}
