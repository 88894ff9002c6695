//! Runs, from the grant to the report of their end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::definition::{Definition, Needs};
use protocol::native::{Capacity, StopReason};
use protocol::raw::RawJson;
use tokio::sync::{oneshot, watch};
use tokio::task::{Id, JoinError};
use tracing::{Instrument, error, info, info_span, warn};

use super::clearing::Leftover;
use super::ended::{Ended, RunEnd};
use super::execute::{self, Assignment};
use super::stopping::Mode;
use super::{Agent, Live, attend};
use crate::adopt::Adopted;
use crate::clock::unix_now;
use crate::link::Report;
use crate::observe::Finished;
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
        // What is left of an earlier attempt at it still holds its GPUs.
        let is_left = self.slots.holds(own).then(|| "its earlier container is not gone yet".to_owned());
        let passes = self.obstacle();
        let is_passing = passes.is_some();
        let obstacle = passes.or(is_left);
        let is_wanted = !self.live.contains_key(&own) && matches!(self.mode, Mode::Working) && obstacle.is_none();
        let share = is_wanted.then(|| self.slots.take(own, &needs));
        let has_room = !matches!(share, Some(Err(_)));
        let is_busy = is_counted && self.offers.granted(queue, capacity(&needs), has_room);
        let share = match share {
            Some(Ok(share)) => share,
            Some(Err(why)) => return self.hand_back(own, &why.to_string(), is_busy),
            None if self.live.contains_key(&own) => return,
            // What stands against it passes, and nothing is claimed until then.
            None => return self.hand_back(own, obstacle.as_deref().unwrap_or(STOPPING), is_passing),
        };
        let context = Arc::clone(&self.lane(queue).context);
        info!(job.id = %run.job, run = run.run, queue.key = context.key.short(), "starts run {} of job {}", run.run, run.job);
        context.board.came(context.key, run, parsed.as_ref().ok(), &share, false);
        self.spawn(own, |stop, has_container| async move {
            let assignment = Assignment { run, text: definition, definition: parsed, share };
            execute::execute(&context, assignment, stop, &has_container).await
        });
    }

    pub(super) fn adopt(&mut self, queue: QueueIndex, adopted: Adopted) {
        let own = QueueRun { queue, run: adopted.run };
        let context = Arc::clone(&self.lane(queue).context);
        context.outbox.hold(adopted.run);
        let share = self.slots.adopt(own, &adopted.needs(), adopted.gpus.clone());
        let definition = adopted.definition.as_ref().and_then(|text| Definition::parse(text.as_str().as_bytes()).ok());
        context.board.came(context.key, adopted.run, definition.as_ref(), &share, true);
        self.spawn(own, |stop, has_container| async move {
            has_container.store(true, Ordering::Relaxed);
            attend::adopted(&context, adopted, stop).await
        });
    }

    pub(super) fn spawn<F>(
        &mut self,
        run: QueueRun,
        task: impl FnOnce(watch::Receiver<Option<StopReason>>, Arc<AtomicBool>) -> F,
    ) where
        F: Future<Output = Ended> + Send + 'static,
    {
        let (stop, stopped) = watch::channel(None);
        let has_container = Arc::new(AtomicBool::new(false));
        let key = self.lane(run.queue).context.key.short();
        let span = info_span!("run", job.id = %run.run.job, run = run.run.run, queue.key = key);
        let task = self.tasks.spawn(task(stopped, Arc::clone(&has_container)).instrument(span));
        self.runs.insert(task.id(), run);
        self.live.insert(run, Live { stop, task, has_container, is_to_return: false });
    }

    pub(super) async fn on_stop(&mut self, own: QueueRun, why: StopReason) {
        let run = own.run;
        match self.live.get(&own) {
            Some(live) => {
                let key = self.lane(own.queue).context.key.short();
                info!(job.id = %run.job, run = run.run, queue.key = key, "stops run {} of job {}: {why:?}", run.run, run.job);
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
                let key = self.lane(own.queue).context.key.short();
                error!(job.id = %run.job, run = run.run, queue.key = key, "run {} of job {} made the worker panic", run.run, run.job);
                let ending =
                    Ending::bad_input("the worker failed while it handled this job; its log says where", unix_now());
                Ended::finished(ending, None)
            }
        };
        let leftover = Leftover::of(ended.container, live.has_container.load(Ordering::Relaxed));
        self.slots.release_all_but_gpus(own);
        match ended.end {
            RunEnd::Finished(ending) => self.on_finished(own, *ending, leftover).await,
            RunEnd::Stopped => {
                if live.is_to_return {
                    self.hand_back(own, STOPPING, false);
                } else {
                    let context = &self.lane(own.queue).context;
                    let why = live.stop.borrow().map_or("stopped", stop_word);
                    context.board.ended(context.key, own.run, Finished::stopped(why));
                    context.outbox.forget(own.run);
                }
                let context = &self.lanes[own.queue.0].context;
                match *live.stop.borrow() {
                    Some(StopReason::Deleted) => self.clearing.deleted(context, own, leftover),
                    Some(StopReason::Cancelled | StopReason::Replaced | StopReason::Superseded) | None => {
                        self.clearing.run(context, own, leftover);
                    }
                }
            }
            RunEnd::Unstarted(why) => {
                self.fitness.engine_failed();
                self.hand_back(own, &why, true);
                self.clearing.run(&self.lanes[own.queue.0].context, own, leftover);
            }
        }
        self.claim();
    }

    pub(super) async fn on_finished(&mut self, own: QueueRun, ending: Ending, container: Leftover) {
        let run = own.run;
        info!(
            job.id = %run.job, run = run.run, queue.key = self.lane(own.queue).context.key.short(),
            "run {} of job {} ended: {:?}{}",
            run.run, run.job, ending.outcome,
            ending.result.status_code.map(|code| format!(", exit code {code}")).unwrap_or_default()
        );
        self.summary.finished += 1;
        let lane = &self.lanes[own.queue.0];
        lane.context.board.ended(lane.context.key, run, Finished::of(&ending));
        let report = ending.report(run, &lane.context.worker, unix_now());
        // Ordered before the report is out, so that its acknowledgement cannot overtake it.
        let kept = lane.store.keep(report.clone()).await;
        lane.context.outbox.report(run, Report::Finish(report));
        lane.context.quarantine.ended(lane.context.key, run.job);
        let (waiting, taken) = oneshot::channel();
        self.untaken.insert(own, waiting);
        self.clearing.container_once_kept(&lane.context, own, container, kept, taken);
    }

    /// `busy`: there is no room for it because another queue was faster.
    fn hand_back(&mut self, own: QueueRun, why: &str, busy: bool) {
        let run = own.run;
        self.summary.handed_back += 1;
        let context = &self.lane(own.queue).context;
        let key = context.key.short();
        warn!(job.id = %run.job, run = run.run, queue.key = key, "hands run {} of job {} back: {why}", run.run, run.job);
        context.board.handed_back(context.key, run);
        context.outbox.report(run, Report::HandBack { why: why.to_owned(), busy });
    }

    /// Ends the tasks of some runs without a word: containers go on, and runs that have none yet are handed back.
    pub(super) fn let_go(&mut self, which: impl Fn(&QueueRun) -> bool) {
        for (own, live) in self.live.extract_if(|own, _| which(own)).collect::<Vec<_>>() {
            live.task.abort();
            if live.has_container.load(Ordering::Relaxed) {
                self.summary.left_running += 1;
                let context = &self.lane(own.queue).context;
                context.board.left(context.key, own.run);
            } else {
                self.hand_back(own, STOPPING, false);
                self.clearing.run(&self.lanes[own.queue.0].context, own, Leftover::Nothing);
            }
        }
    }
}

/// Why somebody wanted a run to end, in a word.
const fn stop_word(why: StopReason) -> &'static str {
    match why {
        StopReason::Cancelled => "cancelled",
        StopReason::Deleted => "deleted",
        StopReason::Replaced => "replaced by another job",
        StopReason::Superseded => "given to another worker",
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
