//! What became of a submission: a fold over its job's records, which come from the queue's task as they are stored, or after
//! a restart from the journal.

use protocol::event::{Event, RunOutcome};
use protocol::id::{JobId, Namespace, RunNumber, UnixMillis, WorkerId};
use protocol::queue::{Job, Status};
use protocol::record::Record;
use serde::{Deserialize, Serialize};

/// How a job ended for a namespace. The words are the original's, and one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reason {
    /// Its container ran to its end, whatever the exit code.
    Success,
    /// It could not be run, or was given up.
    Error,
    /// It ran out of time.
    TimedOut,
    /// Nobody wanted it any more.
    Cancelled,
    /// A newer job took its place.
    JobReplacedByClient,
    /// It was deleted.
    Deleted,
    /// This namespace does not want it any more; it goes on for others.
    Withdrawn,
}

/// How and when it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ending {
    /// How.
    pub reason: Reason,
    /// When.
    pub at_ms: UnixMillis,
    /// The number of its newest run, when it ended with a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunNumber>,
    /// The worker of that run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    /// The container's exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// What the canceller said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The job that took its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_by: Option<JobId>,
}

impl Ending {
    const fn bare(reason: Reason, at_ms: UnixMillis) -> Self {
        Self { reason, at_ms, run: None, worker: None, exit_code: None, message: None, replaced_by: None }
    }

    /// How a job ended, as the queue shows it; `None` while it is live.
    pub(super) fn of(job: &Job) -> Option<Self> {
        let bare = |reason| Self::bare(reason, job.changed_at_ms);
        match &job.status {
            Status::Queued { .. } | Status::Running {} => None,
            Status::Finished { outcome, exit_code, .. } => Some(Self {
                run: Some(job.run),
                worker: job.worker.clone(),
                exit_code: *exit_code,
                ..bare(reason_of(*outcome))
            }),
            Status::Cancelled { message } => Some(Self { message: message.clone(), ..bare(Reason::Cancelled) }),
            Status::Replaced { by } => Some(Self { replaced_by: Some(*by), ..bare(Reason::JobReplacedByClient) }),
            Status::Deleted {} => Some(bare(Reason::Deleted)),
        }
    }
}

const fn reason_of(outcome: RunOutcome) -> Reason {
    match outcome {
        RunOutcome::Success => Reason::Success,
        RunOutcome::Error => Reason::Error,
        RunOutcome::TimedOut => Reason::TimedOut,
    }
}

/// What a job's records, in their order, say about one namespace's submission.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fate {
    /// The namespace's submission is among them.
    pub(super) is_submitted: bool,
    /// It made the job wait anew.
    pub(super) is_new: bool,
    /// How the job ended, if it is over.
    pub(super) ending: Option<Ending>,
    /// The worker of the newest run.
    pub(super) worker: Option<WorkerId>,
}

impl Fate {
    /// Takes the next record of the job in.
    pub(super) fn fold(&mut self, namespace: &Namespace, record: &Record) {
        let bare = |reason| Ending::bare(reason, record.at_ms);
        match &record.event {
            Event::JobQueued { namespace: of, .. } => {
                self.ending = None;
                self.is_new |= of == namespace;
                self.is_submitted |= of == namespace;
            }
            Event::JobRecalled { namespace: of, finished_at_ms, run, worker, outcome, exit_code, .. } => {
                self.is_submitted |= of == namespace;
                self.ending = Some(Ending {
                    run: Some(*run),
                    worker: worker.clone(),
                    exit_code: *exit_code,
                    ..Ending::bare(reason_of(*outcome), *finished_at_ms)
                });
            }
            Event::NamespaceJoined { namespace: of, .. } if of == namespace => {
                self.is_submitted = true;
                self.ending.take_if(|ending| ending.reason == Reason::Withdrawn);
            }
            Event::NamespaceLeft { namespace: of, .. } if of == namespace => {
                self.is_submitted = true;
                // If it was the last, the job's own end comes next.
                if self.ending.is_none() {
                    self.ending = Some(bare(Reason::Withdrawn));
                }
            }
            Event::RunClaimed { worker, .. } => self.worker = Some(worker.clone()),
            Event::RunFinished { run, outcome, exit_code, .. } => {
                self.end(Ending {
                    run: Some(*run),
                    worker: self.worker.clone(),
                    exit_code: *exit_code,
                    ..bare(reason_of(*outcome))
                });
            }
            Event::JobAbandoned { .. } => {
                let message = Some("given up: its workers vanished without a result too often".to_owned());
                self.end(Ending { message, ..bare(Reason::Error) });
            }
            Event::JobCancelled { message, .. } => {
                self.end(Ending { message: message.clone(), ..bare(Reason::Cancelled) });
            }
            Event::JobReplaced { by, .. } => {
                self.end(Ending { replaced_by: Some(*by), ..bare(Reason::JobReplacedByClient) });
            }
            Event::JobDeleted { .. } => self.end(bare(Reason::Deleted)),
            Event::NamespaceJoined { .. }
            | Event::NamespaceLeft { .. }
            | Event::RunLost { .. }
            | Event::RunResumed { .. }
            | Event::JobRequeued { .. }
            | Event::JobRemoved { .. }
            | Event::WorkerJoined { .. }
            | Event::WorkerLeft { .. }
            | Event::PresenceReset {}
            | Event::Checkpoint { .. } => {}
        }
    }

    /// The same, when nothing is known of the newest run's worker yet.
    pub(super) fn with_worker(mut self, worker: Option<WorkerId>) -> Self {
        self.worker = self.worker.or(worker);
        self
    }

    /// The first end counts: a result that is deleted later was a result.
    fn end(&mut self, ending: Ending) {
        match &self.ending {
            Some(Ending { reason: Reason::Withdrawn, .. }) | None => self.ending = Some(ending),
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::definition::Needs;
    use protocol::event::Via;
    use protocol::id::Digest;
    use protocol::record::RECORD_VERSION;

    use super::*;

    const JOB: JobId = JobId::from_bytes([1; 32]);

    fn named(name: &str) -> Namespace {
        name.parse().unwrap()
    }

    fn queued(name: &str) -> Event {
        Event::JobQueued {
            job: JOB,
            body: Digest::of(b"x"),
            namespace: named(name),
            via: Via::Http,
            needs: Needs::default(),
            priority: 0,
            debug: false,
            runs_before: 0,
        }
    }

    fn joined(name: &str) -> Event {
        Event::NamespaceJoined { job: JOB, namespace: named(name) }
    }

    fn left(name: &str) -> Event {
        Event::NamespaceLeft { job: JOB, namespace: named(name) }
    }

    fn cancelled() -> Event {
        Event::JobCancelled { job: JOB, message: Some("enough".to_owned()) }
    }

    fn finished() -> Event {
        let (outcome, result) = (RunOutcome::Success, Digest::of(b"r"));
        Event::RunFinished { job: JOB, run: 1, outcome, result, exit_code: Some(3), image: None, duration_ms: None }
    }

    fn claimed() -> Event {
        Event::RunClaimed { job: JOB, run: 1, worker: "w".parse().unwrap() }
    }

    fn fate(events: Vec<Event>) -> Fate {
        let mut fate = Fate::default();
        for (seq, event) in (1..).zip(events) {
            fate.fold(&named("a"), &Record { v: RECORD_VERSION, seq, at_ms: UnixMillis(seq), event });
        }
        fate
    }

    fn reason(events: Vec<Event>) -> Option<Reason> {
        fate(events).ending.map(|ending| ending.reason)
    }

    #[test]
    fn only_the_submission_that_made_the_job_wait_is_new() {
        let told = |events| {
            let fate = fate(events);
            (fate.is_submitted, fate.is_new)
        };
        assert_eq!(told(vec![queued("a")]), (true, true));
        assert_eq!(told(vec![queued("b"), joined("a")]), (true, false));
        assert_eq!(told(vec![queued("b")]), (false, false));
    }

    #[test]
    fn a_finished_job_says_how_and_where() {
        let ending = fate(vec![queued("a"), claimed(), finished()]).ending.unwrap();
        assert_eq!((ending.reason, ending.at_ms, ending.exit_code), (Reason::Success, UnixMillis(3), Some(3)));
        assert_eq!((ending.run, ending.worker), (Some(1), Some("w".parse().unwrap())));
    }

    #[test]
    fn who_leaves_last_cancels_and_who_leaves_others_withdraws() {
        assert_eq!(reason(vec![queued("a"), left("a"), cancelled()]), Some(Reason::Cancelled));
        assert_eq!(reason(vec![queued("a"), joined("b"), left("a")]), Some(Reason::Withdrawn));
        assert_eq!(reason(vec![queued("a"), joined("b"), left("b")]), None);
        assert_eq!(reason(vec![queued("a"), joined("b"), left("a"), joined("a")]), None);
    }

    #[test]
    fn an_end_before_the_submission_is_not_its_end() {
        assert_eq!(reason(vec![left("b"), cancelled(), queued("a")]), None);
        let again = fate(vec![cancelled(), queued("a"), claimed(), finished()]).ending.unwrap();
        assert_eq!(again.reason, Reason::Success);
    }

    #[test]
    fn a_result_that_is_deleted_later_was_a_result() {
        assert_eq!(
            reason(vec![queued("a"), finished(), left("a"), Event::JobDeleted { job: JOB }]),
            Some(Reason::Success)
        );
    }
}
