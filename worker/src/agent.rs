//! The one task that owns the slots: it takes grants, starts runs, and sees each to its acknowledged end. Runs are tasks of
//! their own; one that panics ends as an error, and the worker goes on. So is each queue's line to its broker: one queue's
//! trouble is not the others'.

mod attend;
mod clearing;
mod ended;
mod execute;
mod fitness;
mod image;
mod lane;
mod runs;
mod start;
mod stopping;

pub use start::run;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use protocol::native::{HeldRun, StopReason};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use crate::clock::unix_now;
use crate::link::{LinkEvent, Report};
use crate::outcome::Ending;
use crate::shutdown::Shutdown;
use crate::state_machine::offers::Offers;
use crate::state_machine::slots::Slots;
use crate::state_machine::{QueueIndex, QueueRun};
use clearing::Clearing;
use ended::Ended;
use fitness::Fitness;
use lane::{Lane, Links};
use stopping::Mode;

/// What a worker did, told when it stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitSummary {
    /// Runs that ended here, acknowledged or not.
    pub finished: u64,
    /// Runs handed back.
    pub handed_back: u64,
    /// Runs whose containers were left running.
    pub left_running: usize,
    /// Runs whose end is kept on disk, because the broker has not acknowledged it.
    pub unacknowledged: usize,
}

/// A run whose task goes on.
#[derive(Debug)]
struct Live {
    stop: watch::Sender<Option<StopReason>>,
    task: tokio::task::AbortHandle,
    /// Whether there is, or may be, a container.
    has_container: Arc<AtomicBool>,
    /// Whether it is to be handed back once it is stopped.
    is_to_return: bool,
}

struct Agent {
    /// By [`QueueIndex`].
    lanes: Vec<Lane>,
    slots: Slots,
    offers: Offers,
    /// Since when [`Offers`] counts its milliseconds.
    started: Instant,
    live: HashMap<QueueRun, Live>,
    tasks: JoinSet<Ended>,
    runs: HashMap<Id, QueueRun>,
    clearing: Clearing,
    /// Ends of runs that the broker has not taken: what waits for that is told by their removal.
    untaken: HashMap<QueueRun, oneshot::Sender<()>>,
    fitness: Fitness,
    mode: Mode,
    /// There is no more time.
    is_over: bool,
    summary: ExitSummary,
}

impl Agent {
    fn new(lanes: Vec<Lane>, slots: Slots, fitness: Fitness) -> Self {
        Self {
            offers: Offers::new(lanes.len()),
            lanes,
            slots,
            started: Instant::now(),
            live: HashMap::new(),
            tasks: JoinSet::new(),
            runs: HashMap::new(),
            clearing: Clearing::default(),
            untaken: HashMap::new(),
            fitness,
            mode: Mode::Working,
            is_over: false,
            summary: ExitSummary::default(),
        }
    }

    async fn work(
        &mut self,
        mut events: mpsc::Receiver<(QueueIndex, LinkEvent)>,
        links: &mut Links,
        shutdown: &mut Shutdown,
    ) {
        while !self.is_done() {
            let deadline = self.mode.deadline();
            let offers_due = self.offers_due();
            tokio::select! {
                // None is told from a link that still works, and one that panicked is told below.
                Some((queue, event)) = events.recv() => self.on_event(queue, event).await,
                Some(queue) = links.failed() => self.on_link_failed(queue),
                Some(ended) = self.tasks.join_next_with_id() => self.on_task_end(ended).await,
                Some(cleared) = self.clearing.next() => {
                    if let Some(run) = cleared
                        && self.slots.release(run)
                    {
                        self.claim();
                    }
                }
                mode = shutdown.requested() => self.on_shutdown(mode),
                () = deadline => self.on_deadline(),
                () = offers_due => self.claim(),
                () = self.fitness.looked() => if self.fitness.update() {
                    self.claim();
                },
            }
        }
    }

    async fn on_event(&mut self, queue: QueueIndex, event: LinkEvent) {
        let own = |run| QueueRun { queue, run };
        match event {
            LinkEvent::Welcomed { epoch, gone, dialect } => {
                self.lane_mut(queue).epoch = Some(epoch);
                let context = &self.lane(queue).context;
                context.board.connected(context.key, dialect);
                self.offers.connected(queue);
                for run in gone {
                    self.on_stop(own(run), StopReason::Superseded).await;
                }
                self.claim();
            }
            LinkEvent::Lost { epoch } => {
                if self.lane(queue).epoch == Some(epoch) {
                    self.lane_mut(queue).epoch = None;
                    let context = &self.lane(queue).context;
                    context.board.lost(context.key);
                    self.offers.lost(queue);
                    self.claim();
                }
            }
            LinkEvent::Granted { epoch, run, definition } => {
                let is_counted = self.lane(queue).epoch == Some(epoch);
                self.on_grant(own(run), definition, is_counted);
                self.claim();
            }
            LinkEvent::Claimed { epoch, ask, granted } => {
                if self.lane(queue).epoch == Some(epoch) {
                    self.offers.answered(queue, ask, granted);
                    self.claim();
                }
            }
            LinkEvent::Stop { run, why } => self.on_stop(own(run), why).await,
            LinkEvent::Settled { run } => {
                if !self.live.contains_key(&own(run)) {
                    self.forget(own(run)).await;
                }
            }
            LinkEvent::ResultRefused { run, why } => self.on_result_refused(queue, run, &why).await,
        }
    }

    /// The job must end all the same, or it would be run again to the same result.
    async fn on_result_refused(&mut self, queue: QueueIndex, run: HeldRun, why: &str) {
        let lane = self.lane(queue);
        let ending = Ending::bad_input(format!("the broker refused the job's result: {why}"), unix_now());
        let report = ending.report(run, &lane.context.worker, unix_now());
        // In place of the one that was kept; nobody has to wait for it.
        drop(lane.store.keep(report.clone()).await);
        lane.context.outbox.report(run, Report::Finish(report));
    }

    /// The run is over for the broker.
    async fn forget(&mut self, run: QueueRun) {
        let lane = &self.lanes[run.queue.0];
        lane.context.outbox.forget(run.run);
        lane.store.forget(run.run).await;
        self.untaken.remove(&run);
        self.clearing.files(&lane.context, run.run);
    }
}

#[cfg(test)]
mod tests;
