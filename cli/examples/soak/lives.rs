//! What may happen in the life of a job, read from the journal: one end to a life, no run after it, and no more lost runs than
//! are allowed. Written apart from the broker's rules, so that it does not repeat their mistakes.

use protocol::event::{Event, LostReason};
use protocol::id::{JobId, RunNumber, Seq};

use crate::history::Histories;

/// After how many lost runs a job is given up, and not before.
const LOST_MAX: u32 = 3;

/// What was found.
#[derive(Default)]
pub(crate) struct Lives {
    pub(crate) lives: u64,
    pub(crate) claimed: u64,
    pub(crate) finished: u64,
    pub(crate) lost: u64,
    pub(crate) resumed: u64,
    pub(crate) abandoned: u64,
    /// The most runs that one life lost.
    pub(crate) lost_most: u32,
    pub(crate) wrong: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Not in the queue, or not any more.
    Away,
    Waiting,
    Running,
    /// Its run was lost a moment ago: it is queued again or given up next.
    Lost,
    Over,
}

struct Life {
    stage: Stage,
    run: RunNumber,
    lost: u32,
}

impl Lives {
    /// Reads all lives of all jobs.
    pub(crate) fn read(histories: &Histories) -> Self {
        let mut found = Self::default();
        for (queue, history) in histories {
            for job in history.jobs() {
                found.read_job(&queue.short(), job, history.of(job));
            }
        }
        found
    }

    fn read_job(&mut self, queue: &str, job: JobId, events: &[(Seq, Event)]) {
        let mut life = Life { stage: Stage::Away, run: 0, lost: 0 };
        for (seq, event) in events {
            if let Err(text) = self.step(&mut life, event) {
                self.wrong.push(format!("queue {queue}, record {seq}: {} of job {job} {text}", event.name()));
            }
        }
        if !matches!(life.stage, Stage::Away | Stage::Over) {
            self.wrong.push(format!("queue {queue}: job {job} has not ended, it is {:?}", life.stage));
        }
    }

    fn step(&mut self, life: &mut Life, event: &Event) -> Result<(), String> {
        let before = life.stage;
        let from = |allowed: &[Stage]| {
            if allowed.contains(&before) { Ok(()) } else { Err(format!("while it is {before:?}")) }
        };
        let newest = |run: RunNumber, life: &Life| {
            if run == life.run { Ok(()) } else { Err(format!("is about run {run}, the newest is {}", life.run)) }
        };
        match event {
            Event::JobQueued { .. } => {
                self.lives += 1;
                (life.stage, life.lost) = (Stage::Waiting, 0);
                from(&[Stage::Away, Stage::Over])
            }
            Event::JobRecalled { .. } => {
                life.stage = Stage::Over;
                from(&[Stage::Away])
            }
            Event::RunClaimed { run, .. } => {
                self.claimed += 1;
                let rises = *run > life.run;
                (life.stage, life.run) = (Stage::Running, *run);
                from(&[Stage::Waiting])?;
                if rises { Ok(()) } else { Err(format!("is about run {run}, which was there before")) }
            }
            Event::RunResumed { run, .. } => {
                self.resumed += 1;
                life.stage = Stage::Running;
                from(&[Stage::Waiting])?;
                newest(*run, life)
            }
            // Also of a run that was lost, while no newer one is claimed.
            Event::RunFinished { run, .. } => {
                self.finished += 1;
                life.stage = Stage::Over;
                from(&[Stage::Running, Stage::Waiting])?;
                newest(*run, life)
            }
            Event::RunLost { run, why, .. } => {
                if *why != LostReason::HandedBack {
                    self.lost += 1;
                    life.lost += 1;
                    self.lost_most = self.lost_most.max(life.lost);
                }
                life.stage = Stage::Lost;
                from(&[Stage::Running])?;
                newest(*run, life)
            }
            Event::JobRequeued { .. } => {
                life.stage = Stage::Waiting;
                from(&[Stage::Lost])?;
                if life.lost < LOST_MAX { Ok(()) } else { Err(format!("after {} lost runs", life.lost)) }
            }
            Event::JobAbandoned { .. } => {
                self.abandoned += 1;
                life.stage = Stage::Over;
                from(&[Stage::Lost])?;
                if life.lost == LOST_MAX { Ok(()) } else { Err(format!("after {} lost runs", life.lost)) }
            }
            Event::JobCancelled { .. } | Event::JobReplaced { .. } => {
                life.stage = Stage::Over;
                from(&[Stage::Waiting, Stage::Running])
            }
            Event::JobDeleted { .. } => {
                life.stage = Stage::Over;
                from(&[Stage::Waiting, Stage::Running, Stage::Over])
            }
            Event::JobRemoved { .. } => {
                life.stage = Stage::Away;
                from(&[Stage::Over])
            }
            Event::NamespaceJoined { .. }
            | Event::NamespaceLeft { .. }
            | Event::WorkerJoined { .. }
            | Event::WorkerLeft { .. }
            | Event::PresenceReset {}
            | Event::Checkpoint { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::event::RunOutcome;
    use protocol::id::Digest;

    use super::*;

    const JOB: JobId = JobId::from_bytes([1; 32]);

    fn wrong(events: &[Event]) -> usize {
        let mut lives = Lives::default();
        let events: Vec<_> = (1..).zip(events.iter().cloned()).collect();
        lives.read_job("q", JOB, &events);
        lives.wrong.len()
    }

    fn queued() -> Event {
        Event::JobQueued {
            job: JOB,
            body: Digest::of(b""),
            namespace: protocol::id::Namespace::default(),
            via: protocol::event::Via::Socket,
            needs: protocol::definition::Needs::default(),
            priority: 0,
            debug: false,
            runs_before: 0,
        }
    }

    fn claimed(run: RunNumber) -> Event {
        Event::RunClaimed { job: JOB, run, worker: "worker".parse().unwrap() }
    }

    fn lost(run: RunNumber) -> Event {
        Event::RunLost { job: JOB, run, why: LostReason::LeaseExpired }
    }

    fn finished(run: RunNumber) -> Event {
        let (outcome, result) = (RunOutcome::Success, Digest::of(b""));
        Event::RunFinished { job: JOB, run, outcome, result, exit_code: None, image: None, duration_ms: None }
    }

    #[test]
    fn good_lives_are_good() {
        let requeued = || Event::JobRequeued { job: JOB };
        assert_eq!(wrong(&[queued(), claimed(1), finished(1), Event::JobRemoved { job: JOB }]), 0);
        assert_eq!(wrong(&[queued(), claimed(1), lost(1), requeued(), finished(1)]), 0, "a late finish");
        assert_eq!(wrong(&[queued(), claimed(1), lost(1), requeued(), claimed(2), finished(2)]), 0);
        let abandoned = Event::JobAbandoned { job: JOB, result: Digest::of(b"") };
        let all = [queued(), claimed(1), lost(1), requeued(), claimed(2), lost(2), requeued(), claimed(3), lost(3)];
        assert_eq!(wrong(&[all.to_vec(), vec![abandoned]].concat()), 0);
    }

    #[test]
    fn each_broken_promise_is_found() {
        let requeued = || Event::JobRequeued { job: JOB };
        let abandoned = || Event::JobAbandoned { job: JOB, result: Digest::of(b"") };
        assert_eq!(wrong(&[queued()]), 1, "no end");
        assert_eq!(wrong(&[queued(), claimed(1), finished(1), finished(1)]), 1, "two finishes");
        assert_eq!(wrong(&[queued(), claimed(1), finished(1), claimed(2), finished(2)]), 1, "a run after the end");
        assert_eq!(
            wrong(&[queued(), claimed(1), lost(1), requeued(), claimed(2), finished(1)]),
            1,
            "an old run's finish"
        );
        assert_eq!(wrong(&[queued(), claimed(1), lost(1), abandoned()]), 1, "given up too early");
        let all = [queued(), claimed(1), lost(1), requeued(), claimed(2), lost(2), requeued(), claimed(3), lost(3)];
        assert_eq!(wrong(&[all.to_vec(), vec![requeued(), claimed(4), finished(4)]].concat()), 1, "one more try");
        assert_eq!(wrong(&[queued(), queued(), claimed(1), finished(1)]), 1, "queued twice");
        assert_eq!(wrong(&[queued(), claimed(1), lost(1), requeued(), claimed(1), finished(1)]), 1, "a number again");
    }
}
