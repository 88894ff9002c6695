//! One queue's state and presence, and the one way in: a command and the time go in, records and effects come out.

mod original;

use std::collections::BTreeSet;
use std::sync::Arc;

use protocol::event::{Event, LostReason};
use protocol::explain::Explanation;
use protocol::id::{Digest, JobId, QueueKey, UnixMillis, WorkerId};
use protocol::native::{Capacity, HeldRun, StopReason, WorkerHello};
use protocol::queue::{Job, QueueState, Status};
use protocol::record::{RECORD_VERSION, Record, chain};

use super::command::{Answer, CancelBefore, Command, Effect, Grant, Rejection, SessionId};
use super::decide::{self, Decision};
use super::due;
use super::explain;
use super::grace::Graces;
use super::hold::Holds;
use super::limits::Limits;
use super::line::{Kind, Line};
use super::presence::Presence;
use super::recent::RecentRuns;
use super::settle::{Grid, Look, Pass};
use crate::journal::{Archived, Body, EncodedRecord};

/// What a command came to: records to store, then effects to carry out, then the answer.
#[derive(Debug, Default)]
pub struct Step {
    /// The records, in order; the state has them already.
    pub records: Vec<EncodedRecord>,
    /// Bodies that the records name and that must be stored with them.
    pub bodies: Vec<Body>,
    /// What is kept of jobs that left.
    pub archives: Vec<(JobId, Archived)>,
    /// To be carried out once the records are on disk.
    pub effects: Vec<Effect>,
    /// To be given once the records are on disk.
    pub answer: Answer,
}

/// A queue's rules at work: the state that all stored and not yet stored records fold to, and who is there.
#[derive(Debug)]
pub struct Core {
    state: QueueState,
    presence: Presence,
    limits: Limits,
    line: Line,
    holds: Holds,
    look: Look,
    recent: RecentRuns,
    graces: Graces,
}

impl Core {
    /// Takes over a state that was loaded; running jobs get a full lease from `now`.
    #[must_use]
    pub fn new(state: QueueState, limits: Limits, now: UnixMillis) -> Self {
        let presence = Presence::after_restart(&state, now);
        let (line, holds, look, recent) = (Line::of(&state), Holds::default(), Look::default(), RecentRuns::default());
        let graces = Graces::of(&state);
        Self { state, presence, limits, line, holds, look, recent, graces }
    }

    /// The state, with everything decided so far.
    #[must_use]
    pub const fn state(&self) -> &QueueState {
        &self.state
    }

    /// Who is there.
    #[must_use]
    pub const fn presence(&self) -> &Presence {
        &self.presence
    }

    /// The queue.
    #[must_use]
    pub const fn queue(&self) -> QueueKey {
        self.state.queue()
    }

    /// When a [`Command::Tick`] will next do something.
    #[must_use]
    pub fn due(&self) -> Option<UnixMillis> {
        let hold = self.holds.due(&self.state, &self.line, &self.presence, &self.limits);
        due::next(&self.state, &self.presence, &self.limits).into_iter().chain(hold).chain(self.graces.due()).min()
    }

    /// Why a job stands where it stands; [`Standing::Unknown`](protocol::explain::Standing::Unknown) when it is not in the state.
    #[must_use]
    pub fn explain(&self, job: JobId, now: UnixMillis) -> Explanation {
        explain::explain(&self.grid(), &self.recent, job, now.max(self.state.at_ms()))
    }

    const fn grid(&self) -> Grid<'_> {
        Grid { state: &self.state, line: &self.line, presence: &self.presence, holds: &self.holds }
    }

    /// Carries a command out.
    ///
    /// # Errors
    ///
    /// [`Rejection`]; the state is then unchanged.
    pub fn handle(&mut self, command: Command, now: UnixMillis) -> Result<Step, Rejection> {
        // A clock that was set back must not make history go backwards.
        let now = now.max(self.state.at_ms());
        let mut step = Step::default();
        let mut claimed = None;
        match command {
            Command::Submit(submit) => {
                let decision = decide::submit(&self.state, &submit, &self.limits)?;
                if decision.events.iter().any(|event| matches!(event, Event::JobQueued { .. })) {
                    step.answer = Answer::Queued;
                }
                self.record(decision, now, &mut step);
            }
            Command::Cancel { job, scope, message } => {
                let (before, events) = match self.state.job(job) {
                    None => (CancelBefore::Unknown, Vec::new()),
                    Some(found) if !found.is_live() => (CancelBefore::Ended, Vec::new()),
                    Some(found) => (CancelBefore::Live, decide::cancel(job, found, &scope, message.as_deref())),
                };
                step.answer = Answer::Cancelled(before);
                self.record(events.into(), now, &mut step);
            }
            Command::Delete { job, scope, archived } => {
                let events = match (self.state.job(job), archived) {
                    (Some(found), _) => decide::delete(job, found, &scope),
                    (None, Some(kept)) => decide::delete_archived(job, &kept),
                    (None, None) => Vec::new(),
                };
                self.record(events.into(), now, &mut step);
            }
            Command::Connect { session, hello } => self.connect(session, hello, now, &mut step),
            Command::Register { session, hello } => self.register(session, hello, now, &mut step),
            Command::Disconnect { session } => {
                if self.presence.disconnect(session, now) {
                    step.effects.push(Effect::PresenceChanged);
                }
            }
            Command::Claim { session, free, grants_seen } => {
                claimed = Some(self.claim(session, free, grants_seen)?);
            }
            Command::ClaimJob { session, job, at } => self.claim_job(session, job, at, now, &mut step)?,
            Command::Renew { session, runs } => {
                let worker = self.worker_of(session)?.clone();
                for run in runs {
                    if self.state.job(run.job).is_some_and(|job| job.holds(run.run, &worker)) {
                        self.presence.renew(run, now);
                    }
                }
            }
            Command::Finish { session, finish } => {
                let worker = self.worker_of(session)?.clone();
                let decision = decide::finish(&self.state, &worker, &finish)?;
                self.record(decision, now, &mut step);
            }
            Command::HandBack { session, run, busy } => {
                let worker = self.worker_of(session)?.clone();
                let Some(job) = self.state.job(run.job).filter(|job| is_running(job) && job.holds(run.run, &worker))
                else {
                    return Err(Rejection::StaleRun(run));
                };
                let decision = decide::lose(run.job, job, LostReason::HandedBack, &self.limits, now);
                self.presence.hand_back(&worker, run.job, busy, now);
                self.record(decision, now, &mut step);
            }
            Command::Abandon { run, why } => {
                if let Some(found) = self.state.job(run.job).filter(|job| job.is_live() && job.run == run.run) {
                    let decision = decide::abandon(run.job, found, &why, now);
                    self.record(decision, now, &mut step);
                }
            }
            Command::Tick => self.tick(now, &mut step),
        }
        self.settle(now, &mut step);
        if let Some(worker) = claimed {
            step.answer = Answer::Claimed { granted: self.presence.granted(&worker) };
        }
        Ok(step)
    }

    /// Whether a finish of that run from that socket would be taken: for what has to be done before one is handed in.
    ///
    /// # Errors
    ///
    /// [`Rejection`] as [`Command::Finish`] would get it.
    pub fn may_finish(&self, session: SessionId, run: HeldRun) -> Result<(), Rejection> {
        let worker = self.worker_of(session)?;
        let is_its = |job: &Job| job.run == run.run && job.worker.as_ref() == Some(worker);
        self.state.job(run.job).filter(|job| is_its(job)).map(|_| ()).ok_or(Rejection::StaleRun(run))
    }

    fn worker_of(&self, session: SessionId) -> Result<&WorkerId, Rejection> {
        self.presence.worker_of(session).ok_or(Rejection::NotAWorker)
    }

    /// Takes a worker's word for what it has free; what that leads to follows when everything settles.
    fn claim(&mut self, session: SessionId, free: Capacity, grants_seen: u64) -> Result<WorkerId, Rejection> {
        let worker = self.worker_of(session)?.clone();
        self.presence.claim(&worker, free, grants_seen);
        // Who is kept from which worker may depend on any of them.
        self.look.everywhere |= !self.holds.is_empty();
        self.look.workers.insert(worker.clone());
        Ok(worker)
    }

    /// A worker came (back): its runs go on, those it does not know any more are lost at once.
    fn connect(&mut self, session: SessionId, mut hello: WorkerHello, now: UnixMillis, step: &mut Step) {
        let worker = hello.id.clone();
        let version = hello.version.chars().take(64).collect();
        let holds: BTreeSet<HeldRun> = std::mem::take(&mut hello.holds).into_iter().collect();
        if let Some(older) = self.presence.connect(session, hello) {
            step.effects.push(Effect::Replace { session: older });
        }
        step.effects.push(Effect::PresenceChanged);
        if !self.state.connected().contains(&worker) {
            self.record(vec![Event::WorkerJoined { worker: worker.clone(), version }].into(), now, step);
        }
        let mut gone = Vec::new();
        for run in &holds {
            match self.state.job(run.job).filter(|job| job.holds(run.run, &worker)) {
                Some(job) if is_running(job) => self.presence.hear(*run, now),
                Some(_) => self.record(vec![Event::RunResumed { job: run.job, run: run.run }].into(), now, step),
                None => gone.push(*run),
            }
        }
        let forgotten: Vec<JobId> = self
            .state
            .running()
            .filter(|(id, job)| {
                job.worker.as_ref() == Some(&worker) && !holds.contains(&HeldRun { job: *id, run: job.run })
            })
            .map(|(id, _)| id)
            .collect();
        for id in forgotten {
            self.lose(id, LostReason::Forgotten, now, step);
        }
        step.answer = Answer::Connected { gone };
    }

    fn tick(&mut self, now: UnixMillis, step: &mut Step) {
        for run in due::lost_runs(&self.state, &self.presence, &self.limits, now) {
            self.lose(run.job, LostReason::LeaseExpired, now, step);
        }
        let events = due::departures(&self.state, &self.presence, &self.limits, now);
        self.record(events.into(), now, step);
        self.presence.offer_again(now);
        self.look.everywhere = true;
        self.holds.keep(&self.state, &self.line, &self.presence, &self.limits, now);
    }

    fn lose(&mut self, id: JobId, why: LostReason, now: UnixMillis, step: &mut Step) {
        if let Some(job) = self.state.job(id).filter(|job| is_running(job)) {
            let decision = decide::lose(id, job, why, &self.limits, now);
            self.record(decision, now, step);
        }
    }

    /// Lets everything happen that follows from the state by itself.
    fn settle(&mut self, now: UnixMillis, step: &mut Step) {
        self.graces.follow(&self.state);
        let over = self.graces.over(&self.state, now);
        if !over.is_empty() {
            for leaving in over {
                self.record(leaving.events(&self.state).into(), now, step);
            }
            self.graces.follow(&self.state);
        }
        loop {
            let mut pass = Pass::begin(std::mem::take(&mut self.look), &self.grid());
            while let Some(Grant { job, run, worker }) = pass.next(&self.grid(), now) {
                self.record(vec![Event::RunClaimed { job, run, worker }].into(), now, step);
            }
            let Self { state, line, presence, limits, .. } = self;
            if self.holds.is_empty() || !self.holds.let_go(state, line, presence, limits, now) {
                break;
            }
            self.look.everywhere = true;
        }
    }

    /// Turns facts into records, folds them, and notes what is to be done about them.
    fn record(&mut self, decision: Decision, now: UnixMillis, step: &mut Step) {
        step.bodies.extend(decision.bodies);
        for event in decision.events {
            self.react_before(&event, now, step);
            let seq = self.state.head().seq + 1;
            let record = Record { v: RECORD_VERSION, seq, at_ms: now, event };
            let bytes: Arc<[u8]> = record.encode().into();
            let hash = chain(&self.state.head().hash, &bytes);
            self.fold(&record, hash);
            step.records.push(EncodedRecord { seq, hash, bytes });
            self.react_after(&record.event, now, step);
        }
    }

    /// Folds a record, and lets the line follow what it changes.
    fn fold(&mut self, record: &Record, hash: Digest) {
        let id = record.event.job();
        if let Some((id, job)) = id.and_then(|id| Some((id, self.state.job(id)?))) {
            // Who is kept from a worker may be first now. Grants only move others back.
            let is_granted = matches!(record.event, Event::RunClaimed { .. });
            self.look.everywhere |= job.is_live() && !is_granted && !self.holds.is_empty();
            self.line.remove(id, job);
            if matches!(record.event, Event::RunFinished { .. }) && is_running(job) {
                self.recent.push(record.at_ms.since(job.changed_at_ms));
            }
        }
        self.state.apply(record, hash);
        if let Some((id, job)) = id.and_then(|id| Some((id, self.state.job(id)?))) {
            self.line.insert(id, job);
            if matches!(record.event, Event::RunClaimed { .. }) {
                self.line.charge(job);
            }
        }
    }

    /// What an event ends, read from the state that it is about to change.
    fn react_before(&mut self, event: &Event, now: UnixMillis, step: &mut Step) {
        let Some((id, job)) = event.job().and_then(|id| self.state.job(id).map(|job| (id, job))) else { return };
        let newest = HeldRun { job: id, run: job.run };
        let holder = job.worker.as_ref().filter(|_| job.is_live()).and_then(|worker| self.presence.session_of(worker));
        let stop = |why| holder.map(|session| Effect::Stop { session, run: newest, why });
        match event {
            // Whoever had the run before (and lost it) must not go on.
            Event::RunClaimed { .. } => step.effects.extend(stop(StopReason::Superseded)),
            Event::JobCancelled { .. } => step.effects.extend(stop(StopReason::Cancelled)),
            Event::JobReplaced { .. } => step.effects.extend(stop(StopReason::Replaced)),
            Event::JobDeleted { .. } => step.effects.extend(stop(StopReason::Deleted)),
            Event::JobAbandoned { .. } => step.effects.extend(stop(StopReason::Superseded)),
            Event::JobRemoved { .. } => step.archives.push((id, Archived::of(job, now))),
            Event::RunFinished { .. }
            | Event::RunLost { .. }
            | Event::JobQueued { .. }
            | Event::JobRecalled { .. }
            | Event::NamespaceJoined { .. }
            | Event::NamespaceLeft { .. }
            | Event::RunResumed { .. }
            | Event::JobRequeued { .. }
            | Event::WorkerJoined { .. }
            | Event::WorkerLeft { .. }
            | Event::PresenceReset {}
            | Event::Checkpoint { .. } => return,
        }
        self.presence.end(newest);
        self.presence.forget_begin(id);
    }

    fn react_after(&mut self, event: &Event, now: UnixMillis, step: &mut Step) {
        match event {
            Event::JobQueued { job, .. } | Event::JobRequeued { job } => {
                let kind = self.state.job(*job).and_then(|job| self.line.kind(&Kind::of(&job.needs)));
                self.look.kinds.extend(kind.cloned());
            }
            Event::RunClaimed { job: id, run, worker } => {
                let Some(job) = self.state.job(*id) else { return };
                let run = HeldRun { job: *id, run: *run };
                self.presence.grant(worker, run, Kind::of(&job.needs), now);
                if let Some(session) = self.presence.session_of(worker) {
                    step.effects.push(Effect::Grant { session, run, body: job.body, debug: job.debug });
                }
            }
            Event::RunResumed { job, run } => self.presence.hear(HeldRun { job: *job, run: *run }, now),
            Event::RunLost { job, run, .. } => self.presence.end(HeldRun { job: *job, run: *run }),
            Event::RunFinished { job, run, .. } => {
                self.presence.end(HeldRun { job: *job, run: *run });
                self.presence.forget_begin(*job);
                step.effects.push(Effect::Ended { job: *job });
            }
            Event::JobAbandoned { job, .. } | Event::JobCancelled { job, .. } | Event::JobReplaced { job, .. } => {
                step.effects.push(Effect::Ended { job: *job })
            }
            Event::JobDeleted { job } => {
                step.effects.extend([Effect::ForgetLogs { job: *job }, Effect::Ended { job: *job }]);
            }
            Event::WorkerLeft { worker } => {
                self.presence.forget(worker);
                step.effects.push(Effect::PresenceChanged);
            }
            Event::JobRecalled { .. }
            | Event::NamespaceJoined { .. }
            | Event::NamespaceLeft { .. }
            | Event::JobRemoved { .. }
            | Event::WorkerJoined { .. }
            | Event::PresenceReset {}
            | Event::Checkpoint { .. } => {}
        }
    }

    /// What a restart did to who is there, as a fact: nobody is known to be connected.
    ///
    /// To be called once after loading, before any command.
    pub fn reset_presence(&mut self, now: UnixMillis) -> Option<Step> {
        if self.state.connected().is_empty() {
            return None;
        }
        let mut step = Step::default();
        self.record(vec![Event::PresenceReset {}].into(), now.max(self.state.at_ms()), &mut step);
        Some(step)
    }
}

#[cfg(test)]
impl Core {
    /// Whether the line holds what it would hold if it were made anew, turns aside.
    pub(super) fn line_follows_state(&self) -> bool {
        let shape = |line: &Line| {
            let jobs = |kind| line.lanes(kind).flat_map(|(_, places)| places).collect::<BTreeSet<_>>();
            line.kinds().map(|kind| (kind.clone(), jobs(kind))).collect::<Vec<_>>()
        };
        shape(&self.line) == shape(&Line::of(&self.state)) && self.line.is_sound()
    }

    /// A job that waits although a worker has room that is not kept from it.
    pub(super) fn left_waiting(&self, now: UnixMillis) -> Option<Grant> {
        Pass::begin(Look { everywhere: true, ..Look::default() }, &self.grid()).next(&self.grid(), now)
    }
}

const fn is_running(job: &Job) -> bool {
    matches!(job.status, Status::Running {})
}
