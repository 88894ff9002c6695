//! Workers of the original's kind: they take waiting jobs by themselves and say so afterwards, so this accepts or ignores.
//!
//! Their attempts have no numbers; the worker and the time at which it says it began stand for one. Both ends apply the same
//! rule when two of them took the same job. A run that was granted is never given to one of them.

use protocol::event::{Event, LostReason};
use protocol::id::{JobId, UnixMillis, WorkerId};
use protocol::native::{HeldRun, WorkerHello};
use protocol::original::preferred;
use protocol::queue::{Job, Status};

use super::Core;
use crate::rules::command::{Effect, Rejection, SessionId};
use crate::rules::core::Step;

impl Core {
    /// A worker said who it is. Which of its runs go on it says right after, so none is lost by this.
    pub(super) fn register(&mut self, session: SessionId, hello: WorkerHello, now: UnixMillis, step: &mut Step) {
        let worker = hello.id.clone();
        if self.presence.worker_of(session) == Some(&worker) {
            return;
        }
        let version = hello.version.chars().take(64).collect();
        if let Some(older) = self.presence.connect(session, hello) {
            step.effects.push(Effect::Replace { session: older });
        }
        self.presence.takes_by_itself(&worker);
        step.effects.push(Effect::PresenceChanged);
        if !self.state.connected().contains(&worker) {
            self.record(vec![Event::WorkerJoined { worker: worker.clone(), version }].into(), now, step);
        }
        let its = self.state.running().filter(|(_, job)| job.worker.as_ref() == Some(&worker));
        let runs: Vec<_> = its.map(|(job, found)| HeldRun { job, run: found.run }).collect();
        runs.into_iter().for_each(|run| self.presence.hear(run, now));
    }

    /// A worker says that it runs a job since `at`.
    pub(super) fn claim_job(
        &mut self,
        session: SessionId,
        id: JobId,
        at: UnixMillis,
        now: UnixMillis,
        step: &mut Step,
    ) -> Result<(), Rejection> {
        let worker = self.worker_of(session)?.clone();
        let Some(job) = self.state.job(id) else { return Ok(()) };
        let newest = HeldRun { job: id, run: job.run };
        // Nothing is known of it after a restart; then it is taken for the attempt that is under way.
        let is_same = self.presence.began(newest).is_none_or(|began| began == at);
        match &job.status {
            Status::Queued { .. } if job.holds(job.run, &worker) && is_same => {
                self.record(vec![Event::RunResumed { job: id, run: newest.run }].into(), now, step);
                self.presence.begin(newest, at);
            }
            Status::Queued { .. } => self.begin(id, worker, at, now, step),
            Status::Running {} if job.worker.as_ref() == Some(&worker) => {
                if is_same {
                    self.presence.begin(newest, at);
                    self.presence.renew(newest, now);
                } else {
                    // It started anew: what it had begun before is gone.
                    self.lose(id, LostReason::Forgotten, now, step);
                    if self.state.job(id).is_some_and(Job::is_live) {
                        self.begin(id, worker, at, now, step);
                    }
                }
            }
            Status::Running {} if self.gives_way(job.worker.as_ref(), &worker) => self.begin(id, worker, at, now, step),
            Status::Running {}
            | Status::Finished { .. }
            | Status::Cancelled { .. }
            | Status::Replaced { .. }
            | Status::Deleted {} => {}
        }
        Ok(())
    }

    fn begin(&mut self, job: JobId, worker: WorkerId, at: UnixMillis, now: UnixMillis, step: &mut Step) {
        let run = self.state.job(job).map_or(0, |job| job.run) + 1;
        self.record(vec![Event::RunClaimed { job, run, worker }].into(), now, step);
        self.presence.begin(HeldRun { job, run }, at);
    }

    /// Whether the worker that has a run lets go of it when `other` says that it has the job too.
    fn gives_way(&self, holder: Option<&WorkerId>, other: &WorkerId) -> bool {
        holder.is_some_and(|holder| {
            let by_itself = self.presence.worker(holder).is_some_and(|worker| worker.takes_by_itself);
            by_itself && preferred::goes_before(other.as_str(), holder.as_str())
        })
    }
}
