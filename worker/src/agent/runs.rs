//! Runs, from the grant to the report of their end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::definition::{Definition, Needs};
use protocol::native::{Capacity, StopReason};
use protocol::raw::RawJson;
use tokio::sync::watch;
use tokio::task::{Id, JoinError};
use tracing::{error, info, warn};

use super::ended::{Ended, RunEnd};
use super::execute::{self, Assignment};
use super::stopping::Mode;
use super::{Agent, Live, attend};
use crate::adopt::Adopted;
use crate::clock::unix_now;
use crate::link::Report;
use crate::outcome::Ending;
use crate::state_machine::slots::CPUS_MILLI_UNSTATED;
use crate::state_machine::{QueueIndex, QueueRun};

/// Why a run is handed back by a worker that stops.
const STOPPING: &str = "the worker is stopping";

impl Agent {
    /// `is_counted`: it came over the connection that stands.
    pub(super) fn on_grant(&mut self, own: QueueRun, definition: RawJson, is_counted: bool) {
        let QueueRun { queue, run } = own;
        let parsed = Definition::parse(definition.as_str().as_bytes());
        let needs = parsed.as_ref().map_or_else(|_| Needs::default(), Definition::needs);
        let is_wanted = !self.live.contains_key(&own) && matches!(self.mode, Mode::Working);
        let share = is_wanted.then(|| self.slots.take(own, &needs));
        let has_room = !matches!(share, Some(Err(_)));
        let is_busy = is_counted && self.offers.granted(queue, capacity(&needs), has_room);
        let share = match share {
            Some(Ok(share)) => share,
            Some(Err(why)) => return self.hand_back(own, &why.to_string(), is_busy),
            None if self.live.contains_key(&own) => return,
            None => return self.hand_back(own, STOPPING, false),
        };
        info!(job.id = %run.job, "starts run {} of job {}", run.run, run.job);
        let context = Arc::clone(&self.lane(queue).context);
        self.spawn(own, |stop, has_container| async move {
            let assignment = Assignment { run, text: definition, definition: parsed, share };
            execute::execute(&context, assignment, stop, &has_container).await
        });
    }

    pub(super) fn adopt(&mut self, queue: QueueIndex, adopted: Adopted) {
        let own = QueueRun { queue, run: adopted.run };
        let context = Arc::clone(&self.lane(queue).context);
        context.outbox.hold(adopted.run);
        self.slots.adopt(own, &adopted.needs(), adopted.gpus.clone());
        self.spawn(own, |stop, has_container| async move {
            has_container.store(true, Ordering::Relaxed);
            attend::adopted(&context, adopted, stop).await
        });
    }

    fn spawn<F>(&mut self, run: QueueRun, task: impl FnOnce(watch::Receiver<Option<StopReason>>, Arc<AtomicBool>) -> F)
    where
        F: Future<Output = Ended> + Send + 'static,
    {
        let (stop, stopped) = watch::channel(None);
        let has_container = Arc::new(AtomicBool::new(false));
        let task = self.tasks.spawn(task(stopped, Arc::clone(&has_container)));
        self.runs.insert(task.id(), run);
        self.live.insert(run, Live { stop, task, has_container, is_to_return: false });
    }

    pub(super) async fn on_stop(&mut self, own: QueueRun, why: StopReason) {
        let run = own.run;
        match self.live.get(&own) {
            Some(live) => {
                info!(job.id = %run.job, "stops run {} of job {}: {why:?}", run.run, run.job);
                live.stop.send_replace(Some(why));
            }
            None => self.forget(own).await,
        }
    }

    pub(super) async fn on_task_end(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let (id, ended) = match ended {
            Ok((id, ended)) => (id, Some(ended)),
            Err(error) if error.is_panic() => (error.id(), None),
            // Cut off on purpose: what became of it was settled then.
            Err(error) => {
                self.runs.remove(&error.id());
                return;
            }
        };
        let Some(own) = self.runs.remove(&id) else { return };
        let Some(live) = self.live.remove(&own) else { return };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                let run = own.run;
                error!(job.id = %run.job, "run {} of job {} made the worker panic", run.run, run.job);
                let ending =
                    Ending::bad_input("the worker failed while it handled this job; its log says where", unix_now());
                Ended::finished(ending, self.container_of(own).await)
            }
        };
        self.slots.release_all_but_gpus(own);
        match ended.end {
            RunEnd::Finished(ending) => self.on_finished(own, *ending, ended.container).await,
            RunEnd::Stopped => {
                if live.is_to_return {
                    self.hand_back(own, STOPPING, false);
                } else {
                    self.lane(own.queue).context.outbox.forget(own.run);
                }
                self.clearing.run(&self.lanes[own.queue.0].context, own, ended.container);
            }
        }
        self.claim();
    }

    async fn on_finished(&mut self, own: QueueRun, ending: Ending, container: Option<String>) {
        let run = own.run;
        info!(
            job.id = %run.job, "run {} of job {} ended: {:?}, exit code {:?}",
            run.run, run.job, ending.outcome, ending.result.status_code
        );
        self.summary.finished += 1;
        let lane = &self.lanes[own.queue.0];
        let report = ending.report(run, &lane.context.worker, unix_now());
        // Ordered before the report is out, so that its acknowledgement cannot overtake it.
        let kept = lane.store.keep(report.clone()).await;
        lane.context.outbox.report(run, Report::Finish(report));
        self.clearing.container_once_kept(&lane.context, own, container, kept);
    }

    /// `busy`: there is no room for it because another queue was faster.
    fn hand_back(&mut self, own: QueueRun, why: &str, busy: bool) {
        let run = own.run;
        warn!(job.id = %run.job, "hands run {} of job {} back: {why}", run.run, run.job);
        self.summary.handed_back += 1;
        self.lane(own.queue).context.outbox.report(run, Report::HandBack { why: why.to_owned(), busy });
    }

    /// Ends the tasks of some runs without a word: containers go on, and runs that have none yet are handed back.
    pub(super) fn let_go(&mut self, which: impl Fn(&QueueRun) -> bool) {
        for (own, live) in self.live.extract_if(|own, _| which(own)).collect::<Vec<_>>() {
            live.task.abort();
            if live.has_container.load(Ordering::Relaxed) {
                self.summary.left_running += 1;
            } else {
                self.hand_back(own, STOPPING, false);
                self.clearing.run(&self.lanes[own.queue.0].context, own, None);
            }
        }
    }

    /// The container of a run whose task cannot say it.
    async fn container_of(&self, own: QueueRun) -> Option<String> {
        let context = &self.lane(own.queue).context;
        let found = context.engine.own(&context.worker, &context.queue, Some(&own.run)).await;
        found.ok()?.into_iter().find_map(|summary| summary.id)
    }
}

/// What a broker counts for a run.
fn capacity(needs: &Needs) -> Capacity {
    Capacity {
        cpus_milli: needs.cpus_milli.unwrap_or(CPUS_MILLI_UNSTATED),
        memory_bytes: Some(needs.memory_bytes.unwrap_or(0)),
        gpus: needs.gpus,
    }
}
