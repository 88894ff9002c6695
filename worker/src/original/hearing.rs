//! What comes in at the desk: the server's frames, the worker's orders, and time.

use protocol::id::{JobId, QueueKey};
use protocol::native::{FinishedRun, FromBroker, HeldRun, LogLine, LogStep, RequestId, ToBroker};
use protocol::original::from_peer::ReadError;
use protocol::original::from_server::FromServer;
use protocol::original::to_server;
use tracing::{debug, warn};

use super::Now;
use super::desk::{Desk, HEAD, LEASE_MS};
use super::mine::{Doubt, Mine, Parked, Reported};

/// How often the worker says who it is, and which runs it has: the server may have dropped it together with an older socket.
const REGISTER_MS: u64 = 10_000;
/// A registration that the server does not know of is said again no sooner than this.
const REGISTER_AGAIN_MS: u64 = 1_000;
/// A run that another queue's was faster than is given back to whoever is free; one that cannot be started is not taken again
/// for so long.
const REFUSED_MS: u64 = 30_000;
/// How long it is waited, after a run was given back, until the server shows it waiting. One that does not know the word has
/// left it to us.
const GIVEN_BACK_MS: u64 = 3_000;
/// The most jobs that were given back and are remembered for that.
const REFUSED_MAX: usize = 4_096;
/// While so many frames wait, the server takes nothing, and questions are not answered: each answer is longer than its question.
pub(super) const UNANSWERED_FRAMES: usize = 1_000;

/// What a frame was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Pong,
    Jobs,
    Other,
}

impl Desk {
    /// Takes in what the server sent, but for its answers to heartbeats: those are [`Self::on_pong`]'s.
    ///
    /// # Errors
    ///
    /// [`ReadError`] when it says nothing; nothing has changed then.
    pub(crate) fn on_frame(&mut self, now: Now, frame: &str) -> Result<Heard, ReadError> {
        match FromServer::read(frame)? {
            FromServer::Pong { worker } => {
                self.on_pong(now, worker);
                return Ok(Heard::Pong);
            }
            FromServer::Jobs(jobs) => {
                let (is_first, unread, is_full) = (!self.view.is_known(), jobs.unread, jobs.is_full);
                let left_out = self.view.take_in(jobs);
                if is_full {
                    let view = &self.view;
                    self.unfit.retain(|job| view.get(*job).is_some());
                }
                if unread + left_out > 0 {
                    warn!("{unread} jobs that the server shows cannot be read, {left_out} are too many");
                }
                if is_first && self.view.is_known() {
                    let gone = std::mem::take(&mut self.outdated);
                    let (version, queue, head) = (protocol::PROTOCOL_VERSION, QueueKey::from_bytes([0; 16]), HEAD);
                    self.tell(FromBroker::Welcome { version, queue, head, lease_ms: LEASE_MS, gone });
                }
                self.reconcile(now);
                return Ok(Heard::Jobs);
            }
            FromServer::Definitions(definitions) => {
                for (job, text) in definitions {
                    if let Err(why) = self.definitions.answer(job, text.get(), now.ms) {
                        warn!(job.id = %job, "the server sent something else for the definition of job {job}: {why}");
                    }
                }
                self.reconcile(now);
            }
            FromServer::StatusRequest if self.waiting_frames() >= UNANSWERED_FRAMES => {}
            FromServer::StatusRequest => {
                let jobs: Vec<_> = self.mine.iter().map(|(job, mine)| (*job, mine.run().is_some())).collect();
                self.say(to_server::status(&self.me, &jobs, now.at));
            }
            FromServer::ClearJobCache { job } => {
                self.definitions.forget(job);
                // It may be shown as ours until the next message about it.
                self.view.remove(job);
                self.deleted(job);
            }
            FromServer::Other => {}
        }
        Ok(Heard::Other)
    }

    /// The server says which worker it takes this socket for.
    fn on_pong(&mut self, now: Now, worker: &str) {
        if worker != self.me.id.as_str() && now.ms.saturating_sub(self.registered_ms) >= REGISTER_AGAIN_MS {
            debug!("the server takes this worker for {worker:?}");
            self.register(now);
        }
    }

    /// Takes in what the worker would say to a broker.
    pub(crate) fn on_order(&mut self, now: Now, order: ToBroker) {
        match order {
            ToBroker::Claim { free, grants_seen, req } => {
                self.free = free;
                self.unseen.retain(|(number, _)| *number > grants_seen);
                self.ask = req;
            }
            ToBroker::Finish { req, run } => self.on_finish(req, run),
            ToBroker::HandBack { req, run, why, busy } => self.on_hand_back(now, req, run, &why, busy),
            // Nothing follows from lines, and there may be many.
            ToBroker::RunLogs { run, step, first: _, lines } => return self.on_logs(now, run, step, &lines),
            // A link says nothing else.
            ToBroker::Hello(_)
            | ToBroker::Submit { .. }
            | ToBroker::Cancel { .. }
            | ToBroker::Delete { .. }
            | ToBroker::FollowLogs { .. }
            | ToBroker::UnfollowLogs { .. }
            | ToBroker::GetDefinitions { .. }
            | ToBroker::Explain { .. }
            | ToBroker::Renew { .. } => {}
        }
        self.reconcile(now);
    }

    fn on_finish(&mut self, req: RequestId, finished: FinishedRun) {
        let FinishedRun { job, run, finished, .. } = finished;
        let (at, doubt) = match self.mine.get(&job) {
            Some(Mine::Live(live)) if live.run == run => (live.at, live.doubt),
            Some(Mine::Reported(reported)) if reported.run == run => (reported.at, reported.doubt),
            // It ended before it heard that it was to be stopped.
            Some(Mine::Stopping { run: stopping }) if *stopping == run => (None, Doubt::NONE),
            // An earlier attempt's, whose job has a newer one.
            Some(_) | None => return self.settled(req),
        };
        self.mine.insert(job, Mine::Reported(Reported { run, req, at, finished, sent_ms: None, doubt }));
    }

    /// The dialect has no word for it, but the server has one for workers that are gone.
    fn on_hand_back(&mut self, now: Now, req: RequestId, held: HeldRun, why: &str, busy: bool) {
        let HeldRun { job, run } = held;
        self.settled(req);
        let at = match self.mine.get(&job) {
            Some(Mine::Live(live)) if live.run == run => live.at,
            Some(Mine::Stopping { run: stopping }) if *stopping == run => {
                self.mine.remove(&job);
                return;
            }
            Some(_) | None => return,
        };
        if !busy && self.refused.len() < REFUSED_MAX {
            self.refused.insert(job, now.ms + REFUSED_MS);
        }
        // Whose it is otherwise must not lose it by our word.
        if !self.is_shown_as_ours(job) {
            self.mine.remove(&job);
            return;
        }
        debug!(job.id = %job, "gives job {job} back: {why}");
        self.say(to_server::worker_lost(job, &self.me.id, now.at));
        let refused_ms = if busy { GIVEN_BACK_MS } else { REFUSED_MS };
        let parked = Parked { at: at.unwrap_or(now.at), not_before_ms: now.ms + refused_ms };
        self.mine.insert(job, Mine::Parked(parked));
    }

    fn on_logs(&mut self, now: Now, run: HeldRun, step: LogStep, lines: &[LogLine]) {
        if self.mine.get(&run.job).and_then(Mine::run) != Some(run.run) {
            return;
        }
        let frame = to_server::logs(run.job, step, lines);
        if self.is_shown_as_ours(run.job) && !self.logs.holds(run) {
            self.say(frame);
        } else {
            self.logs.push(run, frame, now.ms);
        }
    }

    /// Time goes by: about once a second.
    pub(crate) fn tick(&mut self, now: Now, holds: &[HeldRun]) {
        if now.ms.saturating_sub(self.registered_ms) >= REGISTER_MS {
            self.register(now);
        }
        let holds = |job: &JobId, run| holds.contains(&HeldRun { job: *job, run });
        self.mine.retain(|job, mine| match mine {
            Mine::Stopping { run } => holds(job, *run),
            Mine::Live(live) => {
                let is_here = holds(job, live.run);
                let is_forgotten = live.is_held && !is_here;
                live.is_held |= is_here;
                !is_forgotten
            }
            Mine::Claiming(_) | Mine::Parked(_) | Mine::Reported(_) => true,
        });
        self.refused.retain(|_, until| *until > now.ms);
        self.reconcile(now);
    }
}
