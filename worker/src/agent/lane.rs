//! What the worker has for each queue that it serves, and the offers of what is free.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::error;

use super::{Agent, stopping::Mode};
use crate::context::Context;
use crate::link::Epoch;
use crate::state_machine::QueueIndex;
use crate::state_machine::capacity::NOTHING;
use crate::unacknowledged::Unacknowledged;

/// One queue's side of the worker.
pub(super) struct Lane {
    pub(super) context: Arc<Context>,
    /// Results that its broker has not acknowledged.
    pub(super) store: Unacknowledged,
    /// The connection that stands.
    pub(super) epoch: Option<Epoch>,
    /// Whether its link's task has ended: nothing can be reported any more.
    pub(super) is_cut_off: bool,
}

impl Lane {
    pub(super) fn new(context: Arc<Context>, store: Unacknowledged) -> Self {
        Self { context, store, epoch: None, is_cut_off: false }
    }
}

/// The queues' lines, each a task.
#[derive(Default)]
pub(super) struct Links {
    tasks: JoinSet<()>,
    queues: Vec<(tokio::task::Id, QueueIndex)>,
}

impl Links {
    pub(super) fn start(&mut self, queue: QueueIndex, link: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(link);
        self.queues.push((task.id(), queue));
    }

    /// Waits for a link that ended, and names its queue. While the worker works, that is one that panicked.
    pub(super) async fn ended(&mut self) -> Option<QueueIndex> {
        let id = match self.tasks.join_next_with_id().await? {
            Ok((id, ())) => id,
            Err(error) => error.id(),
        };
        self.queues.iter().find(|(task, _)| *task == id).map(|(_, queue)| *queue)
    }

    /// Waits for all to end, at most `limit`.
    pub(super) async fn close(mut self, limit: Duration) {
        let all_ended = async { while self.tasks.join_next().await.is_some() {} };
        let _ = timeout(limit, all_ended).await;
    }
}

impl Agent {
    pub(super) fn lane(&self, queue: QueueIndex) -> &Lane {
        &self.lanes[queue.0]
    }

    pub(super) fn lane_mut(&mut self, queue: QueueIndex) -> &mut Lane {
        &mut self.lanes[queue.0]
    }

    /// Says what is free to whom, now that it may have changed.
    pub(super) fn claim(&mut self) {
        let free = if matches!(self.mode, Mode::Working) { self.slots.free() } else { NOTHING };
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        for offer in self.offers.plan(now_ms, free, |queue| self.slots.used_cpus_milli(queue)) {
            let lane = &self.lanes[offer.queue.0];
            if let Some(epoch) = lane.epoch {
                lane.context.outbox.claim(epoch, &offer);
            }
        }
    }

    /// Waits until an answer to an offer is overdue.
    pub(super) fn offers_due(&self) -> impl Future<Output = ()> + use<> {
        let due: Option<Instant> =
            self.offers.due_ms().and_then(|ms| self.started.checked_add(Duration::from_millis(ms)));
        async move {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        }
    }

    /// A link panicked: its queue is given up until the next start, where results wait on disk; the others go on.
    pub(super) fn on_link_lost(&mut self, queue: QueueIndex) {
        error!(queue.key = self.lane(queue).context.key.short(), "the link to the broker ended: its queue is given up");
        let lane = self.lane_mut(queue);
        (lane.epoch, lane.is_cut_off) = (None, true);
        self.offers.lost(queue);
        if self.lanes.iter().all(|lane| lane.is_cut_off) {
            self.leave();
        } else {
            self.let_go(|run| run.queue == queue);
            self.claim();
        }
    }

    /// How many ends of runs are not acknowledged and may still be.
    pub(super) fn unsettled(&self) -> usize {
        let connected = self.lanes.iter().filter(|lane| !lane.is_cut_off);
        connected.map(|lane| lane.context.outbox.unsettled()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_link_that_panics_names_its_queue_and_the_others_go_on() {
        let mut links = Links::default();
        links.start(QueueIndex(0), std::future::pending());
        links.start(QueueIndex(1), async { panic!("on purpose") });
        assert_eq!(links.ended().await, Some(QueueIndex(1)));
        assert_eq!(links.tasks.len(), 1);
    }
}
