//! What follows from what the server shows: runs that go on, that are to be stopped, that are settled.

use protocol::id::JobId;
use protocol::native::{FromBroker, HeldRun, StopReason};
use protocol::original::to_server;
use tracing::{info, warn};

use super::desk::Desk;
use super::mine::{Live, Mine, Parked, Reported, Word};
use super::{Now, claims};

/// A claim, or a reminder of one, is not said again sooner than this.
const SAY_AGAIN_MS: u64 = 1_000;

impl Desk {
    /// Brings what this worker has in line with what the server shows, and claims what there is room for.
    pub(super) fn reconcile(&mut self, now: Now) {
        if !self.view.is_known() {
            return;
        }
        for job in self.mine.keys().copied().collect::<Vec<_>>() {
            self.reconcile_one(now, job);
        }
        let lost: Vec<JobId> = self.view.own().filter(|job| !self.mine.contains_key(job)).collect();
        for job in lost {
            if let Word::Ours(at) = Word::of(self.view.get(job), &self.me.id) {
                self.mine.insert(job, Mine::Parked(Parked { at, not_before_ms: 0 }));
            }
        }
        let (view, mine) = (&self.view, &self.mine);
        let is_ours = |run: HeldRun| {
            let is_shown = matches!(Word::of(view.get(run.job), &self.me.id), Word::Ours(_));
            is_shown || mine.get(&run.job).and_then(Mine::run) != Some(run.run)
        };
        for frame in self.logs.release(now.ms, is_ours) {
            self.say(frame);
        }
        self.claim(now);
    }

    fn reconcile_one(&mut self, now: Now, job: JobId) {
        let word = Word::of(self.view.get(job), &self.me.id);
        let Some(mine) = self.mine.get_mut(&job) else { return };
        match mine {
            Mine::Claiming(_) => self.reconcile_claim(now, job, word),
            Mine::Parked(_) if !matches!(word, Word::Ours(_)) => {
                self.mine.remove(&job);
            }
            Mine::Live(live) => Self::reconcile_live(now, job, live, word).into_iter().for_each(|next| match next {
                Next::Say(at) => self.say(to_server::running(job, &self.me.id, at)),
                Next::Claim => self.claim_again(now, job),
                Next::Stop(why) => self.stop(job, why),
            }),
            Mine::Reported(reported) => {
                if Self::is_settled(now, job, reported, word) {
                    let req = reported.req;
                    self.mine.remove(&job);
                    self.settled(req);
                }
            }
            Mine::Parked(_) | Mine::Stopping { .. } => {}
        }
    }

    fn reconcile_claim(&mut self, now: Now, job: JobId, word: Word) {
        let Some(Mine::Claiming(claim)) = self.mine.get_mut(&job) else { return };
        let is_late = now.ms.saturating_sub(claim.since_ms) >= claims::CONFIRM_MS;
        match word {
            Word::Ours(at) => {
                let (text, takes) = (claim.text.clone(), claims::capacity(&claim.needs));
                self.grant(now, job, at, text, takes);
            }
            Word::Waits | Word::OursByOrder if !is_late => {
                if now.ms.saturating_sub(claim.said_ms) >= SAY_AGAIN_MS {
                    claim.said_ms = now.ms;
                    let at = claim.at;
                    self.say(to_server::running(job, &self.me.id, at));
                }
            }
            Word::Waits => {
                warn!(job.id = %job, "the server does not answer the claim of job {job}");
                self.mine.remove(&job);
                self.refused.insert(job, now.ms + claims::CONFIRM_MS);
            }
            Word::OursByOrder | Word::Others | Word::Over | Word::Gone => {
                self.mine.remove(&job);
            }
        }
    }

    fn reconcile_live(now: Now, job: JobId, live: &mut Live, word: Word) -> Option<Next> {
        if live.doubt.resolve(word, now.ms) {
            let why = match word {
                Word::Gone | Word::Over => StopReason::Cancelled,
                Word::Ours(_) | Word::Waits | Word::OursByOrder | Word::Others => StopReason::Superseded,
            };
            return Some(Next::Stop(why));
        }
        let may_say = now.ms.saturating_sub(live.said_ms) >= SAY_AGAIN_MS;
        match (word, live.at) {
            (Word::Ours(at), None) => {
                live.at = Some(at);
                None
            }
            (Word::Waits, Some(at)) if may_say => {
                info!(job.id = %job, "the server has queued job {job} again, which runs here: it is told so");
                live.said_ms = now.ms;
                Some(Next::Say(at))
            }
            (Word::Waits, None) => Some(Next::Claim),
            (Word::Ours(_) | Word::Waits | Word::OursByOrder | Word::Others | Word::Over | Word::Gone, _) => None,
        }
    }

    /// Claims a job whose run an earlier process began.
    fn claim_again(&mut self, now: Now, job: JobId) {
        let at = self.next_claim(now);
        if let Some(Mine::Live(live)) = self.mine.get_mut(&job) {
            (live.at, live.said_ms) = (Some(at), now.ms);
            self.say(to_server::running(job, &self.me.id, at));
        }
    }

    /// Whether nobody waits for the run's end any more.
    fn is_settled(now: Now, job: JobId, reported: &mut Reported, word: Word) -> bool {
        // What was not sent is not known there, but it is wanted nowhere either.
        if !(word == Word::Over || reported.doubt.resolve(word, now.ms)) {
            return false;
        }
        if word != Word::Over {
            warn!(job.id = %job, "the result of job {job} is dropped: the server does not have it as this worker's any more");
        }
        true
    }

    /// Whatever is here of the job has to go.
    pub(super) fn deleted(&mut self, job: JobId) {
        match self.mine.get(&job) {
            Some(Mine::Live(_)) => self.stop(job, StopReason::Deleted),
            Some(Mine::Reported(reported)) => {
                let req = reported.req;
                self.mine.remove(&job);
                self.settled(req);
            }
            Some(Mine::Claiming(_) | Mine::Parked(_)) => {
                self.mine.remove(&job);
            }
            Some(Mine::Stopping { .. }) | None => {}
        }
    }

    fn stop(&mut self, job: JobId, why: StopReason) {
        if let Some(run) = self.mine.get(&job).and_then(Mine::run) {
            self.mine.insert(job, Mine::Stopping { run });
            self.tell(FromBroker::Stop { run: HeldRun { job, run }, why });
        }
    }
}

/// What is to be done about a run.
enum Next {
    /// Remind the server of it.
    Say(protocol::id::UnixMillis),
    /// Claim it anew.
    Claim,
    Stop(StopReason),
}
