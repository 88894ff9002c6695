//! What lives only in memory: connected workers, what they have free, and the leases of runs.
//!
//! A restart loses all of it and gives every running job a full lease, so that workers can come back and carry on.

use std::collections::{BTreeMap, VecDeque};

use protocol::definition::Needs;
use protocol::id::{JobId, UnixMillis, WorkerId};
use protocol::native::{Capacity, HeldRun, WorkerHello, WorkerView};
use protocol::queue::QueueState;

use super::command::SessionId;

/// Thousandths of a CPU that a job takes which states nothing: one whole CPU, so that `--cpus` bounds how many run at once.
pub const CPUS_MILLI_DEFAULT: u32 = 1000;

/// How long a worker is not offered a run that it handed back, in milliseconds: long enough for another to take it.
const HANDED_BACK_MS: u64 = 30_000;

/// How many handed-back jobs are remembered per worker; more means that the worker refuses everything anyway.
const HANDED_BACK_MAX: usize = 256;

/// How many grants a worker may be given that it has not seen: they wait in its socket's line, with their definitions.
pub(crate) const UNSEEN_GRANTS_MAX: usize = 512;

/// Whether a job fits into what is free.
#[must_use]
pub fn fits(needs: &Needs, free: &Capacity) -> bool {
    needs.cpus_milli.unwrap_or(CPUS_MILLI_DEFAULT) <= free.cpus_milli
        && needs.gpus <= free.gpus
        && match (needs.memory_bytes, free.memory_bytes) {
            (Some(needed), Some(free)) => needed <= free,
            (None, _) | (_, None) => true,
        }
}

fn less(free: &Capacity, needs: &Needs) -> Capacity {
    Capacity {
        cpus_milli: free.cpus_milli.saturating_sub(needs.cpus_milli.unwrap_or(CPUS_MILLI_DEFAULT)),
        memory_bytes: free.memory_bytes.map(|free| free.saturating_sub(needs.memory_bytes.unwrap_or(0))),
        gpus: free.gpus.saturating_sub(needs.gpus),
    }
}

/// A worker: connected, or silent and still within its lease.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    pub(crate) hello: WorkerHello,
    pub(crate) session: Option<SessionId>,
    pub(crate) silent_since: Option<UnixMillis>,
    /// What it said it has free, less what it was granted since.
    pub(crate) free: Capacity,
    grants: u64,
    unseen: VecDeque<(u64, Needs)>,
    handed_back: BTreeMap<JobId, UnixMillis>,
}

impl Worker {
    /// Whether it has room for such a job.
    pub(crate) fn fits_now(&self, needs: &Needs) -> bool {
        self.session.is_some()
            && self.unseen.len() < UNSEEN_GRANTS_MAX
            && fits(needs, &self.free)
            && self.tags_match(needs)
    }

    /// Whether it would run the job now.
    pub(crate) fn takes(&self, job: JobId, needs: &Needs, now: UnixMillis) -> bool {
        self.fits_now(needs) && self.handed_back.get(&job).is_none_or(|until| *until <= now)
    }

    /// A worker started with tags takes only jobs that have one of them; one without takes any, as in the original.
    fn tags_match(&self, needs: &Needs) -> bool {
        self.hello.tags.is_empty() || needs.tags.iter().any(|tag| self.hello.tags.contains(tag))
    }
}

/// Who is there.
#[derive(Clone, Debug, Default)]
pub struct Presence {
    workers: BTreeMap<WorkerId, Worker>,
    sessions: BTreeMap<SessionId, WorkerId>,
    /// When each live run was last heard of.
    heard: BTreeMap<HeldRun, UnixMillis>,
}

impl Presence {
    /// Presence right after a (re)start: nobody is connected, and every running job has a full lease from `now`.
    #[must_use]
    pub fn after_restart(state: &QueueState, now: UnixMillis) -> Self {
        let heard = state.running().map(|(job, running)| (HeldRun { job, run: running.run }, now)).collect();
        Self { heard, ..Self::default() }
    }

    /// The worker whose socket this is.
    pub(crate) fn worker_of(&self, session: SessionId) -> Option<&WorkerId> {
        self.sessions.get(&session)
    }

    /// The open socket of a worker.
    pub(crate) fn session_of(&self, worker: &WorkerId) -> Option<SessionId> {
        self.workers.get(worker)?.session
    }

    pub(crate) fn workers(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.workers.iter()
    }

    /// Whether anyone is connected or kept a place.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// A worker's socket opened; gives back its older socket, if that is still open.
    pub(crate) fn connect(&mut self, session: SessionId, hello: WorkerHello) -> Option<SessionId> {
        let id = hello.id.clone();
        let older = self.workers.get(&id).and_then(|worker| worker.session);
        if let Some(older) = older {
            self.sessions.remove(&older);
        }
        self.sessions.insert(session, id.clone());
        self.workers.insert(
            id,
            Worker {
                hello,
                session: Some(session),
                silent_since: None,
                free: Capacity::default(),
                grants: 0,
                unseen: VecDeque::new(),
                handed_back: BTreeMap::new(),
            },
        );
        older
    }

    /// A worker's socket closed; its runs keep their leases.
    pub(crate) fn disconnect(&mut self, session: SessionId, now: UnixMillis) -> bool {
        let Some(id) = self.sessions.remove(&session) else { return false };
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.session = None;
            worker.silent_since = Some(now);
            worker.free = Capacity::default();
        }
        true
    }

    pub(crate) fn forget(&mut self, id: &WorkerId) {
        if let Some(session) = self.workers.remove(id).and_then(|worker| worker.session) {
            self.sessions.remove(&session);
        }
    }

    /// Takes a worker's word for what it has free, less the grants that it had not seen when it said so.
    pub(crate) fn claim(&mut self, id: &WorkerId, free: Capacity, grants_seen: u64) {
        let Some(worker) = self.workers.get_mut(id) else { return };
        while worker.unseen.front().is_some_and(|(number, _)| *number <= grants_seen) {
            worker.unseen.pop_front();
        }
        worker.free = worker.unseen.iter().fold(free, |free, (_, needs)| less(&free, needs));
    }

    /// A run was granted.
    pub(crate) fn grant(&mut self, id: &WorkerId, run: HeldRun, needs: &Needs, now: UnixMillis) {
        self.heard.insert(run, now);
        if let Some(worker) = self.workers.get_mut(id) {
            worker.grants += 1;
            worker.unseen.push_back((worker.grants, needs.clone()));
            worker.free = less(&worker.free, needs);
        }
    }

    pub(crate) fn hand_back(&mut self, id: &WorkerId, job: JobId, now: UnixMillis) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.handed_back.retain(|_, until| *until > now);
            if worker.handed_back.len() < HANDED_BACK_MAX {
                worker.handed_back.insert(job, now.plus(HANDED_BACK_MS));
            }
        }
    }

    pub(crate) fn hear(&mut self, run: HeldRun, now: UnixMillis) {
        self.heard.insert(run, now);
    }

    /// Renews the lease of a run that has one.
    pub(crate) fn renew(&mut self, run: HeldRun, now: UnixMillis) {
        if let Some(heard) = self.heard.get_mut(&run) {
            *heard = now;
        }
    }

    pub(crate) fn end(&mut self, run: HeldRun) {
        self.heard.remove(&run);
    }

    /// Runs not heard of for longer than the lease, oldest silence first is not promised.
    pub(crate) fn expired(&self, lease_ms: u64, now: UnixMillis) -> impl Iterator<Item = HeldRun> {
        self.heard.iter().filter(move |(_, heard)| heard.plus(lease_ms) <= now).map(|(run, _)| *run)
    }

    /// Workers that have been silent for longer than the lease.
    pub(crate) fn departed(&self, lease_ms: u64, now: UnixMillis) -> impl Iterator<Item = &WorkerId> {
        let silent = move |worker: &Worker| worker.silent_since.is_some_and(|since| since.plus(lease_ms) <= now);
        self.workers.iter().filter(move |(_, worker)| silent(worker)).map(|(id, _)| id)
    }

    /// Forgets what was handed back long enough ago: it may be offered to the same worker again.
    pub(crate) fn offer_again(&mut self, now: UnixMillis) {
        for worker in self.workers.values_mut() {
            worker.handed_back.retain(|_, until| *until > now);
        }
    }

    /// When the next lease runs out, or something handed back may be offered again.
    pub(crate) fn due(&self, lease_ms: u64) -> Option<UnixMillis> {
        let runs = self.heard.values();
        let silent = self.workers.values().filter_map(|worker| worker.silent_since.as_ref());
        let lease = runs.chain(silent).min().map(|at| at.plus(lease_ms));
        let offer = self.workers.values().flat_map(|worker| worker.handed_back.values()).min().copied();
        lease.into_iter().chain(offer).min()
    }

    /// The workers as watchers see them.
    #[must_use]
    pub fn view(&self, state: &QueueState) -> Vec<WorkerView> {
        let mut running: BTreeMap<&WorkerId, u32> = BTreeMap::new();
        for (_, job) in state.running() {
            if let Some(worker) = &job.worker {
                *running.entry(worker).or_default() += 1;
            }
        }
        let view = |(id, worker): (&WorkerId, &Worker)| WorkerView {
            id: id.clone(),
            version: worker.hello.version.clone(),
            total: worker.hello.total,
            running: running.get(id).copied().unwrap_or(0),
            silent_since_ms: worker.silent_since,
        };
        self.workers.iter().map(view).collect()
    }
}
