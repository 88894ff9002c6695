//! What the worker has for each queue that it serves, and the offers of what is free.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::error;

use super::fitness::Waiting;
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
}

impl Lane {
    pub(super) fn new(context: Arc<Context>, store: Unacknowledged) -> Self {
        Self { context, store, epoch: None }
    }
}

/// How long a line that panicked is left alone: what made it panic may come again at once.
const RESTART_PAUSE: Duration = Duration::from_secs(10);

/// The queues' lines, each a task.
#[derive(Default)]
pub(super) struct Links {
    tasks: JoinSet<()>,
    links: Vec<Link>,
}

struct Link {
    task: tokio::task::Id,
    queue: QueueIndex,
    start: Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>,
}

impl Links {
    /// `link` makes a line, now and each time that it has to be made again.
    pub(super) fn start<F>(&mut self, queue: QueueIndex, link: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = self.tasks.spawn(link()).id();
        self.links.push(Link { task, queue, start: Arc::new(move || Box::pin(link())) });
    }

    /// Waits for a line that panicked, and names its queue. It is made again, after a pause.
    pub(super) async fn failed(&mut self) -> Option<QueueIndex> {
        loop {
            // One that ended by itself was told to.
            let Err(error) = self.tasks.join_next_with_id().await? else { continue };
            let Some(link) = self.links.iter_mut().find(|link| link.task == error.id()) else { continue };
            if !error.is_panic() {
                continue;
            }
            let start = Arc::clone(&link.start);
            let again = self.tasks.spawn(async move {
                sleep(RESTART_PAUSE).await;
                start().await;
            });
            link.task = again.id();
            return Some(link.queue);
        }
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
        let obstacle = self.obstacle();
        let takes_new = matches!(self.mode, Mode::Working) && obstacle.is_none();
        self.lanes[0].context.board.room(&self.slots, self.mode.standing(), obstacle);
        let free = if takes_new { self.slots.free() } else { NOTHING };
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        for offer in self.offers.plan(now_ms, free, |queue| self.slots.used_cpus_milli(queue)) {
            let lane = &self.lanes[offer.queue.0];
            if let Some(epoch) = lane.epoch {
                lane.context.outbox.claim(epoch, &offer);
            }
        }
    }

    /// Why nothing new is to be taken, in words, although the worker works.
    pub(super) fn obstacle(&mut self) -> Option<String> {
        let outboxes = self.lanes.iter().map(|lane| &lane.context.outbox);
        let waiting = outboxes.fold(Waiting::default(), |sum, outbox| Waiting {
            results: sum.results + outbox.unsettled(),
            bytes: sum.bytes + outbox.unsettled_bytes(),
        });
        self.fitness.obstacle(waiting).map(str::to_owned)
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

    /// A link panicked. Its queue's runs go on, and their results wait, until it is there again.
    pub(super) fn on_link_failed(&mut self, queue: QueueIndex) {
        let lane = self.lane_mut(queue);
        error!(
            queue.key = lane.context.key.short(),
            "the link to the broker panicked; it is started again in {} s",
            RESTART_PAUSE.as_secs()
        );
        lane.epoch = None;
        lane.context.outbox.disconnected();
        lane.context.board.lost(lane.context.key);
        self.offers.lost(queue);
        self.claim();
    }

    /// How many ends of runs are not acknowledged and may still be.
    pub(super) fn unsettled(&self) -> usize {
        self.lanes.iter().map(|lane| lane.context.outbox.unsettled()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_link_that_panics_names_its_queue_and_is_made_again_and_the_others_go_on() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let mut links = Links::default();
        let made = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&made);
        links.start(QueueIndex(0), std::future::pending::<()>);
        links.start(QueueIndex(1), move || {
            let number = count.fetch_add(1, Ordering::Relaxed);
            async move { assert!(number >= 2, "on purpose") }
        });
        assert_eq!(links.failed().await, Some(QueueIndex(1)));
        assert_eq!(links.failed().await, Some(QueueIndex(1)), "the second one is made, and panics too");
        assert_eq!(links.tasks.len(), 2);
        // The third does not: nothing more is told.
        assert!(timeout(RESTART_PAUSE * 10, links.failed()).await.is_err());
        assert_eq!((made.load(Ordering::Relaxed), links.tasks.len()), (3, 1));
    }
}
