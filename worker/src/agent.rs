//! The one task that owns the slots: it takes grants, starts runs, and sees each to its acknowledged end. Runs are tasks of
//! their own; one that panics ends as an error, and the worker goes on.

mod attend;
mod clearing;
mod ended;
mod execute;
mod start;
mod stopping;

pub use start::run;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::definition::{Definition, Needs};
use protocol::native::{HeldRun, StopReason};
use protocol::raw::RawJson;
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tracing::{error, info, warn};

use crate::adopt::Adopted;
use crate::clock::unix_now;
use crate::context::Context;
use crate::link::{Epoch, LinkEvent, NOTHING, Report};
use crate::outcome::Ending;
use crate::shutdown::Shutdown;
use crate::state_machine::slots::Slots;
use crate::unacknowledged::Unacknowledged;
use clearing::Clearing;
use ended::{Ended, RunEnd};
use execute::Assignment;
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
    context: Arc<Context>,
    store: Unacknowledged,
    slots: Slots,
    live: HashMap<HeldRun, Live>,
    tasks: JoinSet<Ended>,
    runs: HashMap<Id, HeldRun>,
    clearing: Clearing,
    connection: Option<(Epoch, u64)>,
    mode: Mode,
    /// There is no more time.
    is_over: bool,
    summary: ExitSummary,
}

impl Agent {
    fn new(context: Arc<Context>, store: Unacknowledged, slots: Slots) -> Self {
        Self {
            clearing: Clearing::new(Arc::clone(&context)),
            context,
            store,
            slots,
            live: HashMap::new(),
            tasks: JoinSet::new(),
            runs: HashMap::new(),
            connection: None,
            mode: Mode::Working,
            is_over: false,
            summary: ExitSummary::default(),
        }
    }

    async fn work(&mut self, mut events: mpsc::Receiver<LinkEvent>, shutdown: &mut Shutdown) {
        let mut is_linked = true;
        while !self.is_done() {
            let deadline = self.mode.deadline();
            tokio::select! {
                event = events.recv(), if is_linked => match event {
                    Some(event) => self.on_event(event).await,
                    // It panicked: results wait on disk for the next start.
                    None => {
                        error!("the link to the broker ended; the worker finishes what it runs and stops");
                        is_linked = false;
                        self.on_link_lost();
                    }
                },
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
            }
        }
    }

    async fn on_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Welcomed { epoch, gone } => {
                self.connection = Some((epoch, 0));
                for run in gone {
                    self.on_stop(run, StopReason::Superseded).await;
                }
                self.claim();
            }
            LinkEvent::Granted { epoch, run, definition } => {
                if let Some((current, grants)) = &mut self.connection
                    && *current == epoch
                {
                    *grants += 1;
                }
                self.on_grant(run, definition);
                self.claim();
            }
            LinkEvent::Stop { run, why } => self.on_stop(run, why).await,
            LinkEvent::Settled { run } => {
                if !self.live.contains_key(&run) {
                    self.forget(run).await;
                }
            }
            LinkEvent::ResultRefused { run, why } => {
                // The job must end all the same, or it would be run again to the same result.
                let ending = Ending::bad_input(format!("the broker refused the job's result: {why}"), unix_now());
                let report = ending.report(run, &self.context.worker, unix_now());
                // In place of the one that was kept; nobody has to wait for it.
                drop(self.store.keep(report.clone()).await);
                self.context.outbox.report(run, Report::Finish(report));
            }
        }
    }

    fn on_grant(&mut self, run: HeldRun, definition: RawJson) {
        if self.live.contains_key(&run) {
            return;
        }
        if !matches!(self.mode, Mode::Working) {
            return self.hand_back(run, "the worker is stopping");
        }
        let parsed = Definition::parse(definition.as_str().as_bytes());
        let needs = parsed.as_ref().map_or_else(|_| Needs::default(), Definition::needs);
        let share = match self.slots.take(run, &needs) {
            Ok(share) => share,
            Err(why) => return self.hand_back(run, &why.to_string()),
        };
        info!(job.id = %run.job, "starts run {} of job {}", run.run, run.job);
        let context = Arc::clone(&self.context);
        self.spawn(run, |stop, has_container| async move {
            let assignment = Assignment { run, text: definition, definition: parsed, share };
            execute::execute(&context, assignment, stop, &has_container).await
        });
    }

    fn adopt(&mut self, adopted: Adopted) {
        let run = adopted.run;
        self.context.outbox.hold(run);
        self.slots.adopt(run, &adopted.needs(), adopted.gpus.clone());
        let context = Arc::clone(&self.context);
        self.spawn(run, |stop, has_container| async move {
            has_container.store(true, Ordering::Relaxed);
            attend::adopted(&context, adopted, stop).await
        });
    }

    fn spawn<F>(&mut self, run: HeldRun, task: impl FnOnce(watch::Receiver<Option<StopReason>>, Arc<AtomicBool>) -> F)
    where
        F: Future<Output = Ended> + Send + 'static,
    {
        let (stop, stopped) = watch::channel(None);
        let has_container = Arc::new(AtomicBool::new(false));
        let task = self.tasks.spawn(task(stopped, Arc::clone(&has_container)));
        self.runs.insert(task.id(), run);
        self.live.insert(run, Live { stop, task, has_container, is_to_return: false });
    }

    async fn on_stop(&mut self, run: HeldRun, why: StopReason) {
        match self.live.get(&run) {
            Some(live) => {
                info!(job.id = %run.job, "stops run {} of job {}: {why:?}", run.run, run.job);
                live.stop.send_replace(Some(why));
            }
            None => self.forget(run).await,
        }
    }

    async fn on_task_end(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let (id, ended) = match ended {
            Ok((id, ended)) => (id, Some(ended)),
            Err(error) if error.is_panic() => (error.id(), None),
            // Cut off on purpose: what became of it was settled then.
            Err(error) => {
                self.runs.remove(&error.id());
                return;
            }
        };
        let Some(run) = self.runs.remove(&id) else { return };
        let Some(live) = self.live.remove(&run) else { return };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                error!(job.id = %run.job, "run {} of job {} made the worker panic", run.run, run.job);
                let ending =
                    Ending::bad_input("the worker failed while it handled this job; its log says where", unix_now());
                Ended::finished(ending, self.container_of(run).await)
            }
        };
        self.slots.release_all_but_gpus(run);
        match ended.end {
            RunEnd::Finished(ending) => self.on_finished(run, *ending, ended.container).await,
            RunEnd::Stopped => {
                if live.is_to_return {
                    self.hand_back(run, "the worker is stopping");
                } else {
                    self.context.outbox.forget(run);
                }
                self.clearing.run(run, ended.container);
            }
        }
        self.claim();
    }

    async fn on_finished(&mut self, run: HeldRun, ending: Ending, container: Option<String>) {
        info!(
            job.id = %run.job, "run {} of job {} ended: {:?}, exit code {:?}",
            run.run, run.job, ending.outcome, ending.result.status_code
        );
        self.summary.finished += 1;
        let report = ending.report(run, &self.context.worker, unix_now());
        // Ordered before the report is out, so that its acknowledgement cannot overtake it.
        let kept = self.store.keep(report.clone()).await;
        self.context.outbox.report(run, Report::Finish(report));
        self.clearing.container_once_kept(run, container, kept);
    }

    fn hand_back(&mut self, run: HeldRun, why: &str) {
        warn!(job.id = %run.job, "hands run {} of job {} back: {why}", run.run, run.job);
        self.summary.handed_back += 1;
        self.context.outbox.report(run, Report::HandBack { why: why.to_owned() });
    }

    /// The run is over for the broker.
    async fn forget(&mut self, run: HeldRun) {
        self.context.outbox.forget(run);
        self.store.forget(run).await;
        self.clearing.files(run);
    }

    /// The container of a run whose task cannot say it.
    async fn container_of(&self, run: HeldRun) -> Option<String> {
        let found = self.context.engine.own(&self.context.worker, &self.context.config.queue, Some(&run)).await;
        found.ok()?.into_iter().find_map(|summary| summary.id)
    }

    /// Says what is free, now that it may have changed.
    fn claim(&self) {
        if let Some((epoch, grants_seen)) = self.connection {
            let free = if matches!(self.mode, Mode::Working) { self.slots.free() } else { NOTHING };
            self.context.outbox.claim(epoch, free, grants_seen);
        }
    }
}
