//! Waiting for the ends of many jobs of one queue over the native dialect: a machine from acknowledgements and messages to ends. No
//! IO, no clock. Holds an id for each job that has not ended, and the queue's folded state.

use std::collections::{BTreeMap, BTreeSet};

use protocol::event::RunOutcome;
use protocol::id::{JobId, Seq};
use protocol::native::{FromBroker, ToBroker};
use protocol::queue::Status;

use super::fold::{Fold, FollowError};
use super::follow::View;
use crate::progress::one_line;

/// A job that is not waited for any more.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum End {
    /// It ended so.
    Ended(JobId, View),
    /// It is not in the queue any more; how it ended has to be asked for.
    Left(JobId),
}

/// Jobs whose ends are waited for.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    fold: Fold,
    /// The jobs, each with the seq at which it was acknowledged: a state before that says nothing of it, for it may have ended earlier
    /// and been queued again.
    waiting: BTreeMap<JobId, Seq>,
    /// Those of them that no state was late enough for.
    unseen: BTreeSet<(Seq, JobId)>,
    ended: Vec<End>,
}

impl Crowd {
    /// Waits for a job that was acknowledged at `seq`; answers whether it was not waited for already.
    pub(super) fn add(&mut self, job: JobId, seq: Seq) -> bool {
        let earlier = self.waiting.insert(job, seq);
        if let Some(earlier) = earlier {
            self.unseen.remove(&(earlier, job));
        }
        self.unseen.insert((seq, job));
        self.look_at_unseen();
        earlier.is_none()
    }

    /// How many are waited for.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// What to say on a new socket.
    pub(super) fn opening(&self) -> [ToBroker; 1] {
        [self.fold.hello()]
    }

    /// Forgets the folded state, so that the next socket starts from a snapshot.
    pub(super) fn start_afresh(&mut self) {
        self.fold.forget();
    }

    /// The ends since the last call, those before an error included.
    pub(super) fn take_ended(&mut self) -> Vec<End> {
        std::mem::take(&mut self.ended)
    }

    /// Takes a message in.
    pub(super) fn on(&mut self, message: FromBroker) -> Result<(), FollowError> {
        match message {
            FromBroker::Welcome { version, queue, head, .. } => self.fold.welcomed(version, queue, head),
            FromBroker::Snapshot { state, .. } => {
                self.fold.snapshot(&state)?;
                // What happened in between is not told: any of them may have ended.
                self.unseen = self.waiting.iter().map(|(job, seq)| (*seq, *job)).collect();
                self.look_at_unseen();
                Ok(())
            }
            FromBroker::Events { from_seq, records } => {
                for (seq, record) in (from_seq..).zip(&records) {
                    if let Some(job) = self.fold.record(seq, record)?.and_then(|event| event.job()) {
                        self.look(job);
                    }
                    self.look_at_unseen();
                }
                Ok(())
            }
            FromBroker::Rejected { code, message, .. } => Err(FollowError::Rejected { code, message }),
            FromBroker::Presence { .. }
            | FromBroker::Claimed { .. }
            | FromBroker::Definitions { .. }
            | FromBroker::Explained { .. }
            | FromBroker::Logs { .. }
            | FromBroker::Ok { .. }
            | FromBroker::Granted { .. }
            | FromBroker::Stop { .. } => Ok(()),
        }
    }

    fn look_at_unseen(&mut self) {
        let Some(now) = self.fold.state().map(|state| state.head().seq) else { return };
        while self.unseen.first().is_some_and(|(seq, _)| *seq <= now) {
            let Some((_, job)) = self.unseen.pop_first() else { return };
            self.look(job);
        }
    }

    fn look(&mut self, job: JobId) {
        let (Some(state), Some(seq)) = (self.fold.state(), self.waiting.get(&job)) else { return };
        if state.head().seq < *seq {
            return;
        }
        let end = match state.job(job).map(View::of) {
            Some(view) if view.is_live() => return,
            Some(view) => End::Ended(job, view),
            None => End::Left(job),
        };
        self.waiting.remove(&job);
        self.ended.push(end);
    }
}

/// What went wrong with a job, for people; `None` when nothing did.
pub(super) fn failure(view: &View) -> Option<String> {
    match &view.status {
        Status::Finished { abandoned: true, .. } => Some("was given up after runs that were lost".to_owned()),
        Status::Finished { outcome: RunOutcome::Success, exit_code: None | Some(0), .. } => None,
        Status::Finished { outcome: RunOutcome::Success, exit_code: Some(code), .. } => {
            Some(format!("finished with exit code {code}"))
        }
        Status::Finished { outcome: RunOutcome::Error, .. } => Some("could not be run".to_owned()),
        Status::Finished { outcome: RunOutcome::TimedOut, .. } => Some("ran into its time limit".to_owned()),
        Status::Cancelled { message: Some(message) } => Some(format!("was cancelled: {}", one_line(message))),
        Status::Cancelled { message: None } => Some("was cancelled".to_owned()),
        Status::Replaced { by } => Some(format!("was replaced in its namespace by {by}")),
        Status::Deleted {} => Some("was deleted".to_owned()),
        Status::Queued { .. } | Status::Running {} => Some("has not ended".to_owned()),
    }
}

#[cfg(test)]
mod tests;
