//! The rules as sentences, and the invariants over random commands.

mod invariants;
mod limits;
mod order;
mod original;
mod sentences;

use std::sync::Arc;

use protocol::definition::Needs;
use protocol::event::{Event, RunOutcome, Via};
use protocol::id::{Digest, JobId, Namespace, QueueKey, UnixMillis};
use protocol::native::{Capacity, HeldRun, WorkerHello};
use protocol::queue::{Job, QueueState, Status};
use protocol::record::Record;

use super::command::{Answer, CancelScope, Command, Effect, Finish, Rejection, SessionId, Submit};
use super::core::{Core, Step};
use super::limits::Limits;
use crate::journal::{Archived, EncodedRecord};

/// A queue under test: the core, a clock, and everything that would be on disk.
struct Bench {
    core: Core,
    now: UnixMillis,
    records: Vec<EncodedRecord>,
    archive: std::collections::BTreeMap<JobId, Archived>,
    limits: Limits,
}

fn job(number: u8) -> JobId {
    JobId::from_bytes([number; 32])
}

fn namespace(name: &str) -> Namespace {
    name.parse().unwrap()
}

fn text(number: u8) -> Arc<[u8]> {
    vec![number; 3].into()
}

impl Bench {
    fn new() -> Self {
        let limits = Limits { live_jobs_max: 20, namespaces_max: 3, ..Limits::default() };
        let now = UnixMillis(1_000_000);
        let core = Core::new(QueueState::new(QueueKey::from_bytes([7; 16])), limits.clone(), now);
        Self { core, now, records: Vec::new(), archive: Default::default(), limits }
    }

    fn handle(&mut self, command: Command) -> Result<Step, Rejection> {
        let step = self.core.handle(command, self.now)?;
        self.records.extend(step.records.iter().cloned());
        self.archive.extend(step.archives.iter().cloned());
        Ok(step)
    }

    fn submit_with(&mut self, number: u8, ns: &str, needs: Needs, priority: i32) -> Result<Step, Rejection> {
        self.submit_as(number, ns, needs, priority, false)
    }

    fn submit_as(&mut self, number: u8, ns: &str, needs: Needs, priority: i32, retry: bool) -> Result<Step, Rejection> {
        let archived = self.archive.get(&job(number)).filter(|_| self.core.state().job(job(number)).is_none()).cloned();
        self.handle(Command::Submit(Box::new(Submit {
            job: job(number),
            body: Digest::of(&text(number)),
            text: Some(text(number)),
            namespace: namespace(ns),
            needs,
            priority,
            debug: false,
            retry,
            via: Via::Http,
            archived,
        })))
    }

    fn submit(&mut self, number: u8, ns: &str) -> Step {
        self.submit_with(number, ns, Needs::default(), 0).unwrap()
    }

    fn connect_with(&mut self, session: u64, name: &str, cpus: u32, tags: &[&str], holds: Vec<HeldRun>) -> Step {
        let total = Capacity { cpus_milli: cpus * 1000, memory_bytes: None, gpus: 0 };
        let hello = WorkerHello {
            id: name.parse().unwrap(),
            version: "t".to_owned(),
            total,
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            max_duration_ms: None,
            holds,
        };
        self.handle(Command::Connect { session: SessionId(session), hello }).unwrap()
    }

    fn connect(&mut self, session: u64, name: &str) -> Step {
        self.connect_with(session, name, 1, &[], Vec::new())
    }

    fn claim(&mut self, session: u64, cpus: u32, grants_seen: u64) -> Step {
        let free = Capacity { cpus_milli: cpus * 1000, memory_bytes: None, gpus: 0 };
        self.handle(Command::Claim { session: SessionId(session), free, grants_seen }).unwrap()
    }

    fn finish(&mut self, session: u64, number: u8, run: u32) -> Result<Step, Rejection> {
        self.end(session, number, run, RunOutcome::Success, Some(0))
    }

    fn end(
        &mut self,
        session: u64,
        number: u8,
        run: u32,
        outcome: RunOutcome,
        exit_code: Option<i64>,
    ) -> Result<Step, Rejection> {
        let text: Arc<[u8]> = format!("{number} {run}").into_bytes().into();
        let finish = Finish {
            run: HeldRun { job: job(number), run },
            outcome,
            result: Digest::of(&text),
            text: Some(text),
            exit_code,
            image: None,
            duration_ms: Some(5),
        };
        self.handle(Command::Finish { session: SessionId(session), finish })
    }

    fn after(&mut self, ms: u64) -> Step {
        self.now = self.now.plus(ms);
        self.handle(Command::Tick).unwrap()
    }

    fn job(&self, number: u8) -> Option<&Job> {
        self.core.state().job(job(number))
    }

    fn status(&self, number: u8) -> Option<&Status> {
        self.job(number).map(|job| &job.status)
    }

    /// The broker dies and comes back: presence is gone, the state is folded from the records.
    fn restart(&mut self) {
        let mut state = QueueState::new(self.core.queue());
        for record in &self.records {
            state.apply_bytes(&record.bytes).unwrap();
        }
        assert_eq!(state.hash(), self.core.state().hash(), "replay gives the live state");
        self.core = Core::new(state, self.limits.clone(), self.now);
        let reset = self.core.reset_presence(self.now);
        self.records.extend(reset.into_iter().flat_map(|step| step.records));
    }
}

fn events(step: &Step) -> Vec<Event> {
    step.records.iter().map(|record| Record::decode(&record.bytes).unwrap().event).collect()
}

fn names(step: &Step) -> Vec<&'static str> {
    events(step).iter().map(Event::name).collect()
}

fn grants(step: &Step) -> Vec<(u64, HeldRun)> {
    let grant =
        |effect: &Effect| if let Effect::Grant { session, run, .. } = effect { Some((session.0, *run)) } else { None };
    step.effects.iter().filter_map(grant).collect()
}

fn one(ns: &str) -> CancelScope {
    CancelScope::One(namespace(ns))
}
