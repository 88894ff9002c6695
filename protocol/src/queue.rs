//! A queue's state: the fold of its records, and nothing else.
//!
//! The broker, recovery, `audit`, the simulator and the page share [`QueueState::apply`]. It cannot fail on a record that
//! [`QueueState::apply_bytes`] has checked: the event already happened. What lives only in memory (connected sockets, leases,
//! parked claims) is not here.

mod job;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::definition::Needs;
use crate::event::{Event, LostReason, RunOutcome};
use crate::id::{Digest, Head, JobId, Namespace, QueueKey, Seq, UnixMillis, WorkerId};
use crate::record::{Record, RecordError, chain};

use self::job::Shelf;
pub use self::job::{Job, Joined, Place, Status, Stay};

/// The version of the state's encoding; part of it, so that a state hash names what it hashes.
pub const STATE_VERSION: u16 = 1;

/// What can be found without a walk over all jobs; derived, never stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Index {
    waiting: BTreeSet<Place>,
    running: BTreeSet<JobId>,
    /// Jobs that are neither waiting nor running: those that the sweep looks at, those that rest longest first.
    ended: BTreeSet<(Stay, UnixMillis, JobId)>,
    /// Live jobs of each namespace but the default one, in the order they joined.
    wanted: BTreeMap<Namespace, BTreeMap<Seq, JobId>>,
    /// Those of them with more than one.
    contested: BTreeSet<Namespace>,
}

/// The state of one queue at one seq.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct QueueState {
    v: u16,
    queue: QueueKey,
    seq: Seq,
    head: Digest,
    at_ms: UnixMillis,
    jobs: BTreeMap<JobId, Job>,
    connected: BTreeSet<WorkerId>,
    #[serde(skip)]
    index: Index,
}

/// The stored shape: what is derived is left out and made again on reading.
#[derive(Deserialize)]
struct Stored {
    v: u16,
    queue: QueueKey,
    seq: Seq,
    head: Digest,
    at_ms: UnixMillis,
    jobs: BTreeMap<JobId, Job>,
    connected: BTreeSet<WorkerId>,
}

impl From<Stored> for QueueState {
    fn from(stored: Stored) -> Self {
        let Stored { v, queue, seq, head, at_ms, jobs, connected } = stored;
        let mut index = Index::default();
        jobs.iter().for_each(|(id, job)| index.insert(*id, job));
        Self { v, queue, seq, head, at_ms, jobs, connected, index }
    }
}

/// Why a record does not continue a state.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The bytes are not a record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A record is missing or repeated.
    #[error("record {found} where {expected} must come")]
    WrongSeq {
        /// The next seq.
        expected: Seq,
        /// The record's.
        found: Seq,
    },
}

/// Why bytes are not a state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not MessagePack of the right shape.
    #[error("not a queue state")]
    Malformed(#[source] rmp_serde::decode::Error),
    /// Of another version; states are made again from records, so there is no upcast.
    #[error("state version {0}, this build reads {STATE_VERSION}")]
    Version(u16),
}

impl QueueState {
    /// The state before the first record.
    #[must_use]
    pub fn new(queue: QueueKey) -> Self {
        Self {
            v: STATE_VERSION,
            queue,
            seq: 0,
            head: queue.genesis(),
            at_ms: UnixMillis(0),
            jobs: BTreeMap::new(),
            connected: BTreeSet::new(),
            index: Index::default(),
        }
    }

    /// The queue.
    #[must_use]
    pub const fn queue(&self) -> QueueKey {
        self.queue
    }

    /// Position and chain hash of the last record folded in.
    #[must_use]
    pub const fn head(&self) -> Head {
        Head { seq: self.seq, hash: self.head }
    }

    /// The time of the last record; no later record may be earlier.
    #[must_use]
    pub const fn at_ms(&self) -> UnixMillis {
        self.at_ms
    }

    /// All jobs, live ones and finished ones that have not left.
    #[must_use]
    pub const fn jobs(&self) -> &BTreeMap<JobId, Job> {
        &self.jobs
    }

    /// One job.
    #[must_use]
    pub fn job(&self, job: JobId) -> Option<&Job> {
        self.jobs.get(&job)
    }

    /// Waiting jobs, in the order in which they are to be served.
    pub fn waiting(&self) -> impl Iterator<Item = (JobId, &Job)> {
        self.index.waiting.iter().filter_map(|place| self.jobs.get(&place.job()).map(|job| (place.job(), job)))
    }

    /// Waiting jobs that stand before a place, the first in line first.
    pub fn before(&self, place: Place) -> impl Iterator<Item = (JobId, &Job)> {
        self.index.waiting.range(..place).filter_map(|place| self.jobs.get(&place.job()).map(|job| (place.job(), job)))
    }

    /// How many jobs wait.
    #[must_use]
    pub fn waiting_count(&self) -> usize {
        self.index.waiting.len()
    }

    /// Jobs with a live run.
    pub fn running(&self) -> impl Iterator<Item = (JobId, &Job)> {
        self.index.running.iter().filter_map(|id| self.jobs.get(id).map(|job| (*id, job)))
    }

    /// How many jobs run.
    #[must_use]
    pub fn running_count(&self) -> usize {
        self.index.running.len()
    }

    /// Jobs that are over but have not left, the one that ended first first.
    pub fn ended(&self, stay: Stay) -> impl Iterator<Item = (JobId, &Job)> {
        let range = match stay {
            Stay::Short => self.index.ended.range(..(Stay::Long, UnixMillis(0), JobId::from_bytes([0; 32]))),
            Stay::Long => self.index.ended.range((Stay::Long, UnixMillis(0), JobId::from_bytes([0; 32]))..),
        };
        range.filter_map(|(_, _, id)| self.jobs.get(id).map(|job| (*id, job)))
    }

    /// Namespaces with more than one live job: the jobs in the order they joined; the last is to stay.
    pub fn contested(&self) -> impl Iterator<Item = (&Namespace, impl DoubleEndedIterator<Item = JobId>)> {
        let wanted = |namespace| self.index.wanted.get_key_value(namespace);
        self.index.contested.iter().filter_map(wanted).map(|(namespace, jobs)| (namespace, jobs.values().copied()))
    }

    /// The live jobs of one namespace other than the default one, in the order they joined.
    pub fn live_in(&self, namespace: &Namespace) -> impl DoubleEndedIterator<Item = JobId> {
        self.index.wanted.get(namespace).into_iter().flat_map(|jobs| jobs.values().copied())
    }

    /// Workers that joined and have not left, as far as the journal knows.
    #[must_use]
    pub const fn connected(&self) -> &BTreeSet<WorkerId> {
        &self.connected
    }

    /// The state's canonical encoding: MessagePack with named fields, maps in key order.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(self).expect("a state is maps, integers, bytes and text")
    }

    /// Reads [`QueueState::encode`]'s bytes.
    ///
    /// # Errors
    ///
    /// [`StateError`] when they are something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let state: Self = rmp_serde::from_slice(bytes).map_err(StateError::Malformed)?;
        if state.v == STATE_VERSION { Ok(state) } else { Err(StateError::Version(state.v)) }
    }

    /// The blake3 of the canonical encoding: equal states have equal hashes, wherever they were folded.
    #[must_use]
    pub fn hash(&self) -> Digest {
        Digest::of(&self.encode())
    }

    /// Checks that `bytes` are the record that comes next, and folds it. Whether they are the right record shows in the head's
    /// hash, which whoever knows it compares: a record of another queue gives another one.
    ///
    /// # Errors
    ///
    /// [`ApplyError`] when they are not; the state is then unchanged.
    pub fn apply_bytes(&mut self, bytes: &[u8]) -> Result<Record, ApplyError> {
        let record = Record::decode(bytes)?;
        if record.seq != self.seq + 1 {
            return Err(ApplyError::WrongSeq { expected: self.seq + 1, found: record.seq });
        }
        self.apply(&record, chain(&self.head, bytes));
        Ok(record)
    }

    /// Folds one record, whose chain hash is `hash`. No clock, no IO, no failure: it already happened.
    pub fn apply(&mut self, record: &Record, hash: Digest) {
        debug_assert_eq!(record.seq, self.seq + 1, "records come in order");
        self.seq = record.seq;
        self.head = hash;
        self.at_ms = record.at_ms;
        self.fold(&record.event, record.at_ms);
    }

    fn fold(&mut self, event: &Event, at_ms: UnixMillis) {
        let joined = Joined { seq: self.seq, at_ms };
        match event {
            Event::JobQueued { job, body, namespace, via: _, needs, priority, debug, runs_before } => {
                self.put(
                    *job,
                    Job {
                        body: *body,
                        queued_at_ms: at_ms,
                        queued_seq: self.seq,
                        changed_at_ms: at_ms,
                        namespaces: BTreeMap::from([(namespace.clone(), joined)]),
                        needs: needs.clone(),
                        priority: *priority,
                        debug: *debug,
                        run: *runs_before,
                        worker: None,
                        lost: 0,
                        status: Status::Queued { front: false },
                    },
                );
            }
            Event::JobRecalled {
                job,
                body,
                namespace,
                queued_at_ms,
                finished_at_ms,
                run,
                worker,
                outcome,
                result,
                exit_code,
            } => {
                self.put(
                    *job,
                    Job {
                        body: *body,
                        queued_at_ms: *queued_at_ms,
                        queued_seq: self.seq,
                        changed_at_ms: *finished_at_ms,
                        namespaces: BTreeMap::from([(namespace.clone(), joined)]),
                        needs: Needs::default(),
                        priority: 0,
                        debug: false,
                        run: *run,
                        worker: worker.clone(),
                        lost: 0,
                        status: Status::Finished {
                            outcome: *outcome,
                            result: *result,
                            exit_code: *exit_code,
                            abandoned: worker.is_none(),
                        },
                    },
                );
            }
            Event::NamespaceJoined { job, namespace } => self.change(*job, |job| {
                job.namespaces.insert(namespace.clone(), joined);
            }),
            Event::NamespaceLeft { job, namespace } => self.change(*job, |job| {
                job.namespaces.remove(namespace);
            }),
            Event::RunClaimed { job, run, worker } => self.change(*job, |job| {
                job.run = *run;
                job.worker = Some(worker.clone());
                job.changed_at_ms = at_ms;
                job.status = Status::Running {};
            }),
            Event::RunFinished { job, outcome, result, exit_code, .. } => {
                let (outcome, result, exit_code) = (*outcome, *result, *exit_code);
                self.end(*job, at_ms, Status::Finished { outcome, result, exit_code, abandoned: false });
            }
            Event::RunLost { job, why, .. } => self.change(*job, |job| match why {
                LostReason::HandedBack => {}
                LostReason::LeaseExpired | LostReason::Forgotten => job.lost += 1,
            }),
            Event::RunResumed { job, .. } => self.change(*job, |job| {
                job.changed_at_ms = at_ms;
                job.status = Status::Running {};
            }),
            Event::JobRequeued { job } => self.change(*job, |job| {
                job.changed_at_ms = at_ms;
                job.status = Status::Queued { front: true };
            }),
            Event::JobAbandoned { job, result } => {
                let (outcome, result) = (RunOutcome::Error, *result);
                self.end(*job, at_ms, Status::Finished { outcome, result, exit_code: None, abandoned: true });
            }
            Event::JobCancelled { job, message } => {
                self.end(*job, at_ms, Status::Cancelled { message: message.clone() });
            }
            Event::JobReplaced { job, by } => self.end(*job, at_ms, Status::Replaced { by: *by }),
            Event::JobDeleted { job } => self.end(*job, at_ms, Status::Deleted {}),
            Event::JobRemoved { job } => {
                self.take(*job);
            }
            Event::WorkerJoined { worker, .. } => {
                self.connected.insert(worker.clone());
            }
            Event::WorkerLeft { worker } => {
                self.connected.remove(worker);
            }
            Event::PresenceReset {} => self.connected.clear(),
            Event::Checkpoint { .. } => {}
        }
    }

    fn end(&mut self, job: JobId, at_ms: UnixMillis, status: Status) {
        self.change(job, |job| {
            job.changed_at_ms = at_ms;
            job.status = status;
        });
    }

    /// Changes a job and what is derived from it. A job that is not there is left so: only `decide` judges.
    fn change(&mut self, id: JobId, change: impl FnOnce(&mut Job)) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        self.index.remove(id, job);
        change(job);
        self.index.insert(id, job);
    }

    fn put(&mut self, id: JobId, job: Job) {
        self.take(id);
        self.index.insert(id, &job);
        self.jobs.insert(id, job);
    }

    fn take(&mut self, id: JobId) {
        if let Some(job) = self.jobs.remove(&id) {
            self.index.remove(id, &job);
        }
    }
}

impl Index {
    fn insert(&mut self, id: JobId, job: &Job) {
        match job.shelf(id) {
            Shelf::Waiting(place) => {
                self.waiting.insert(place);
            }
            Shelf::Running => {
                self.running.insert(id);
            }
            Shelf::Ended(stay, at) => {
                self.ended.insert((stay, at, id));
                return;
            }
        }
        for (namespace, joined) in job.namespaces.iter().filter(|(namespace, _)| !namespace.is_default()) {
            match self.wanted.get_mut(namespace) {
                Some(jobs) => {
                    jobs.insert(joined.seq, id);
                    if jobs.len() == 2 {
                        self.contested.insert(namespace.clone());
                    }
                }
                None => {
                    self.wanted.insert(namespace.clone(), BTreeMap::from([(joined.seq, id)]));
                }
            }
        }
    }

    fn remove(&mut self, id: JobId, job: &Job) {
        match job.shelf(id) {
            Shelf::Waiting(place) => {
                self.waiting.remove(&place);
            }
            Shelf::Running => {
                self.running.remove(&id);
            }
            Shelf::Ended(stay, at) => {
                self.ended.remove(&(stay, at, id));
                return;
            }
        }
        for (namespace, joined) in job.namespaces.iter().filter(|(namespace, _)| !namespace.is_default()) {
            if let Some(jobs) = self.wanted.get_mut(namespace) {
                jobs.remove(&joined.seq);
                if jobs.len() == 1 {
                    self.contested.remove(namespace);
                }
                if jobs.is_empty() {
                    self.wanted.remove(namespace);
                }
            }
        }
    }
}
