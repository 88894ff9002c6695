//! The gate: batches on their way to disk, and everything that waits for them.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use protocol::id::UnixMillis;
use protocol::native::FromBroker;
use protocol::raw::RawJson;
use tracing::warn;

use super::Task;
use super::lane::{Pending, Reader};
use crate::engine::ask::{Done, Release, ReplyTo};
use crate::engine::outbox::Outgoing;
use crate::engine::stats::Counters;
use crate::journal::{Batch, EncodedRecord, JournalError, Tail};
use crate::refusal::Refusal;
use crate::rules::command::Effect;

/// About what a job takes in a snapshot, in bytes: what the next snapshot's size is guessed from.
const JOB_BYTES: u64 = 300;

/// A batch on its way to disk, and what may happen once it is there.
pub(super) struct InFlight {
    pub(super) commit: Pin<Box<dyn Future<Output = Result<(), JournalError>> + Send>>,
    pub(super) held: Held,
}

/// What waits for a batch.
#[derive(Default)]
pub(super) struct Held {
    pub(super) records: Vec<EncodedRecord>,
    pub(super) effects: Vec<Effect>,
    pub(super) replies: Vec<(ReplyTo, Result<Done, Refusal>)>,
    pub(super) releases: Vec<Release>,
}

impl Held {
    fn is_empty(&self) -> bool {
        self.records.is_empty() && self.effects.is_empty() && self.replies.is_empty() && self.releases.is_empty()
    }
}

impl Task {
    /// Sends the batch on its way; what rests on nothing new waits for the batch before it, or goes at once.
    pub(super) fn seal(&mut self) {
        let mut held = std::mem::take(&mut self.batch);
        if held.records.is_empty() {
            if held.is_empty() {
                return;
            }
            match self.in_flight.back_mut() {
                Some(last) => {
                    last.held.effects.extend(held.effects);
                    last.held.replies.extend(held.replies);
                    last.held.releases.extend(held.releases);
                }
                None => self.release(held),
            }
            return;
        }
        self.engine.0.counters.note(&self.core);
        self.snapshots.forget_newest();
        for record in &held.records {
            self.tail.add(record.bytes.len() as u64);
            self.recent.push(record);
        }
        held.releases.extend(self.snapshot_if_wanted());
        let batch = Batch {
            queue: self.core.queue(),
            records: held.records.clone(),
            bodies: std::mem::take(&mut self.bodies),
            archives: std::mem::take(&mut self.archives),
            due: self.restart_due(),
        };
        let commit = Box::pin(self.engine.0.journal.enqueue(batch));
        self.in_flight.push_back(InFlight { commit, held });
    }

    /// When a restarted broker must look at this queue: at once, if anything in it depends on time.
    fn restart_due(&self) -> Option<UnixMillis> {
        let state = self.core.state();
        let timed = state.jobs().len() > state.waiting_count()
            || !state.connected().is_empty()
            || state.contested().next().is_some();
        timed.then_some(UnixMillis(1))
    }

    /// A batch is on disk: everything that rests on it may go out.
    pub(super) fn release(&mut self, held: Held) {
        for effect in held.effects {
            self.carry_out(effect);
        }
        for (reply, result) in held.replies {
            reply.give(result);
        }
        for release in held.releases {
            release();
        }
        // After the replies: what a submission's webhook listens to is what comes after its answer.
        self.tell_webhooks(&held.records);
        self.news(held.records);
    }

    fn tell_webhooks(&self, records: &[EncodedRecord]) {
        let queue = self.core.queue();
        if let Some(book) = self.engine.webhooks().filter(|book| book.listens(queue)) {
            book.hear(queue, records.iter().map(|record| &*record.bytes));
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Grant { session, run, body, debug } => {
                Counters::count(&self.engine.0.counters.claims);
                let id = session;
                let Some(session) = self.sessions.get(&id) else { return };
                let lease_ms = self.engine.0.config.limits.lease_ms;
                let grant = Pending { session: id, run, body, lease_ms, debug };
                match self.fresh_bodies.get(body).filter(|_| session.lane.is_idle()).and_then(text_of) {
                    Some(definition) => session.outbox.must(grant.granted(definition)),
                    None => {
                        let queue = self.engine.queue_by_key(self.core.queue());
                        let reader = self.reader.get_or_insert_with(|| Reader::start(&self.engine, queue.key()));
                        reader.send(&session.lane, grant, &session.outbox, queue);
                    }
                }
            }
            Effect::Stop { session, run, why } => {
                if let Some(session) = self.sessions.get(&session) {
                    session.outbox.must(FromBroker::Stop { run, why });
                }
            }
            Effect::Replace { session } => {
                if let Some(session) = self.detach(session) {
                    let message = "another socket registered this worker's id";
                    session.outbox.must_out(Outgoing::Close { code: "replaced", message });
                }
            }
            Effect::Ended { job } => self.engine.0.logs.touch(self.core.queue(), job),
            Effect::ForgetLogs { job } => {
                let (logs, queue) = (self.engine.0.logs.clone(), self.core.queue());
                tokio::spawn(async move {
                    if let Err(failure) = logs.remove(queue, job).await {
                        warn!(job = %job, error = %failure, "cannot remove the logs of job {job}: {failure}");
                    }
                });
            }
            Effect::PresenceChanged => self.presence_changed(),
        }
    }

    /// Keeps a snapshot, off this task and once it is on disk, when replaying the tail would take too long.
    fn snapshot_if_wanted(&mut self) -> Option<Release> {
        if !self.tail.wants_snapshot() {
            return None;
        }
        let (journal, state) = (self.engine.0.journal.clone(), self.core.state().clone());
        self.tail = Tail { snapshot_bytes: JOB_BYTES * state.jobs().len() as u64, ..Tail::default() };
        Some(Box::new(move || {
            tokio::task::spawn_blocking(move || {
                if let Err(failure) = journal.save_snapshot(&state) {
                    warn!(error = %failure, "cannot store a snapshot: {failure}; loading this queue will take longer");
                }
            });
        }))
    }
}

/// The next batch that reached the disk, in order; never resolves while none is on its way.
pub(super) async fn next_commit(in_flight: &mut VecDeque<InFlight>) -> Result<Held, JournalError> {
    let Some(first) = in_flight.front_mut() else { return std::future::pending().await };
    let result = first.commit.as_mut().await;
    let held = in_flight.pop_front().map(|batch| batch.held).unwrap_or_default();
    result.map(|()| held)
}

fn text_of(bytes: Arc<[u8]>) -> Option<RawJson> {
    std::str::from_utf8(&bytes).ok().map(RawJson::new)
}
