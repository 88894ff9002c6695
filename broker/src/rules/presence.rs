//! What lives only in memory: connected workers, what they have free, and the leases of runs.
//!
//! A restart loses all of it and gives every running job a full lease, so that workers can come back and carry on.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use protocol::id::{JobId, RunNumber, UnixMillis, WorkerId};
use protocol::native::{Capacity, HeldRun, WorkerHello, WorkerView};
use protocol::queue::QueueState;

use super::command::SessionId;
use super::line::Kind;

/// Thousandths of a CPU that a job takes which states nothing: one whole CPU, so that `--cpus` bounds how many run at once.
pub const CPUS_MILLI_DEFAULT: u32 = 1000;

/// How long a worker is not offered a run that it handed back, in milliseconds: long enough for another to take it.
const HANDED_BACK_MS: u64 = 30_000;

/// How many handed-back jobs are remembered per worker; more means that the worker refuses everything anyway.
const HANDED_BACK_MAX: usize = 256;

/// How many grants a worker may be given that it has not seen: they wait in its socket's line, with their definitions.
pub(crate) const UNSEEN_GRANTS_MAX: usize = 512;

/// Whether a job of that kind fits into what is free.
pub(crate) fn fits(kind: &Kind, free: &Capacity) -> bool {
    kind.cpus_milli <= free.cpus_milli
        && kind.gpus <= free.gpus
        && match (kind.memory_bytes, free.memory_bytes) {
            (Some(needed), Some(free)) => needed <= free,
            (None, _) | (_, None) => true,
        }
}

fn less(free: &Capacity, kind: &Kind) -> Capacity {
    Capacity {
        cpus_milli: free.cpus_milli.saturating_sub(kind.cpus_milli),
        memory_bytes: free.memory_bytes.map(|free| free.saturating_sub(kind.memory_bytes.unwrap_or(0))),
        gpus: free.gpus.saturating_sub(kind.gpus),
    }
}

/// What is free when a run has ended too.
pub(crate) fn more(free: &Capacity, kind: &Kind) -> Capacity {
    Capacity {
        cpus_milli: free.cpus_milli.saturating_add(kind.cpus_milli),
        memory_bytes: free.memory_bytes.map(|free| free.saturating_add(kind.memory_bytes.unwrap_or(0))),
        gpus: free.gpus.saturating_add(kind.gpus),
    }
}

/// A worker: connected, or silent and still within its lease.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    pub(crate) hello: WorkerHello,
    pub(crate) session: Option<SessionId>,
    pub(crate) silent_since: Option<UnixMillis>,
    /// It is of the original's kind: nothing is granted to it, it takes what waits.
    pub(crate) takes_by_itself: bool,
    /// What it said it has free, less what it was granted since.
    pub(crate) free: Capacity,
    grants: u64,
    unseen: VecDeque<(u64, Kind)>,
    handed_back: BTreeMap<JobId, HandedBack>,
}

impl Worker {
    /// Whether it has room for such a job.
    pub(crate) fn fits_now(&self, kind: &Kind) -> bool {
        self.session.is_some()
            && self.unseen.len() < UNSEEN_GRANTS_MAX
            && fits(kind, &self.free)
            && self.tags_match(kind)
    }

    /// Whether it would have room for such a job with nothing else to do.
    pub(crate) fn could_fit(&self, kind: &Kind) -> bool {
        self.session.is_some() && !self.takes_by_itself && fits(kind, &self.hello.total) && self.tags_match(kind)
    }

    /// Whether it may be offered the job, which it has not just handed back.
    pub(crate) fn may_have(&self, job: JobId, now: UnixMillis) -> bool {
        self.handed_back.get(&job).is_none_or(|handed_back| match handed_back {
            HandedBack::Until(until) => *until <= now,
            HandedBack::UntilClaim => false,
        })
    }

    fn forget_handed_back(&mut self, now: UnixMillis) {
        self.handed_back.retain(|_, handed_back| match handed_back {
            HandedBack::Until(until) => *until > now,
            HandedBack::UntilClaim => true,
        });
    }

    /// A worker started with tags takes only jobs that have one of them; one without takes any, as in the original.
    pub(crate) fn tags_match(&self, kind: &Kind) -> bool {
        self.hello.tags.is_empty() || kind.tags.iter().any(|tag| self.hello.tags.contains(tag))
    }
}

/// For how long a worker is not offered a job that it handed back.
#[derive(Clone, Copy, Debug)]
enum HandedBack {
    /// It could not start it.
    Until(UnixMillis),
    /// It only had no room left: until it says again what it has.
    UntilClaim,
}

/// Who is there.
#[derive(Clone, Debug, Default)]
pub struct Presence {
    workers: BTreeMap<WorkerId, Worker>,
    sessions: BTreeMap<SessionId, WorkerId>,
    /// Connected workers with something free, those with most of it first, so that work spreads over machines.
    free: BTreeSet<(Reverse<u32>, WorkerId)>,
    /// When each live run was last heard of.
    heard: BTreeMap<HeldRun, UnixMillis>,
    /// When the newest runs that workers took by themselves began, as those say. Kept until the job is over or claimed anew.
    began: BTreeMap<JobId, (RunNumber, UnixMillis)>,
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

    pub(crate) fn worker(&self, id: &WorkerId) -> Option<&Worker> {
        self.workers.get(id)
    }

    /// The workers with room for a job of that kind, those with the most free first.
    pub(crate) fn with_room(&self, kind: &Kind) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        let free = self.free.iter().take_while(|(Reverse(cpus), _)| *cpus >= kind.cpus_milli.max(1));
        free.filter_map(|(_, id)| Some((id, self.workers.get(id)?))).filter(|(_, worker)| worker.fits_now(kind))
    }

    /// Sets what a worker has free, and where it stands among those that have.
    fn set_free(&mut self, id: &WorkerId, free: Capacity) {
        let Some(worker) = self.workers.get_mut(id) else { return };
        if worker.free.cpus_milli > 0 {
            self.free.remove(&(Reverse(worker.free.cpus_milli), id.clone()));
        }
        worker.free = free;
        if free.cpus_milli > 0 && worker.session.is_some() {
            self.free.insert((Reverse(free.cpus_milli), id.clone()));
        }
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
        self.set_free(&id, Capacity::default());
        self.sessions.insert(session, id.clone());
        self.workers.insert(
            id,
            Worker {
                hello,
                session: Some(session),
                silent_since: None,
                takes_by_itself: false,
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
        self.set_free(&id, Capacity::default());
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.session = None;
            worker.silent_since = Some(now);
        }
        true
    }

    pub(crate) fn forget(&mut self, id: &WorkerId) {
        self.set_free(id, Capacity::default());
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
        worker.handed_back.retain(|_, handed_back| matches!(handed_back, HandedBack::Until(_)));
        let free = worker.unseen.iter().fold(free, |free, (_, kind)| less(&free, kind));
        self.set_free(id, free);
    }

    /// How many runs a worker was granted on its socket.
    pub(crate) fn granted(&self, id: &WorkerId) -> u64 {
        self.workers.get(id).map_or(0, |worker| worker.grants)
    }

    /// A run was granted.
    pub(crate) fn grant(&mut self, id: &WorkerId, run: HeldRun, kind: Kind, now: UnixMillis) {
        self.heard.insert(run, now);
        let Some(worker) = self.workers.get_mut(id).filter(|worker| !worker.takes_by_itself) else { return };
        worker.grants += 1;
        let free = less(&worker.free, &kind);
        worker.unseen.push_back((worker.grants, kind));
        self.set_free(id, free);
    }

    /// A worker handed a job back: because it cannot start it, or (`busy`) because it has no room left, whatever it claimed.
    pub(crate) fn hand_back(&mut self, id: &WorkerId, job: JobId, busy: bool, now: UnixMillis) {
        let Some(worker) = self.workers.get_mut(id) else { return };
        worker.forget_handed_back(now);
        if worker.handed_back.len() < HANDED_BACK_MAX {
            let until = if busy { HandedBack::UntilClaim } else { HandedBack::Until(now.plus(HANDED_BACK_MS)) };
            worker.handed_back.insert(job, until);
        }
        if busy {
            self.set_free(id, Capacity::default());
        }
    }

    /// The worker takes jobs by itself.
    pub(crate) fn takes_by_itself(&mut self, id: &WorkerId) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.takes_by_itself = true;
        }
    }

    /// A worker took a run by itself and says when that was.
    pub(crate) fn begin(&mut self, run: HeldRun, at: UnixMillis) {
        self.began.insert(run.job, (run.run, at));
    }

    /// When the worker of a run says that it began, if it took the run by itself.
    pub(crate) fn began(&self, run: HeldRun) -> Option<UnixMillis> {
        self.began.get(&run.job).filter(|(number, _)| *number == run.run).map(|(_, at)| *at)
    }

    pub(crate) fn forget_begin(&mut self, job: JobId) {
        self.began.remove(&job);
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
            worker.forget_handed_back(now);
        }
    }

    /// When the next lease runs out, or something handed back may be offered again.
    pub(crate) fn due(&self, lease_ms: u64) -> Option<UnixMillis> {
        let runs = self.heard.values();
        let silent = self.workers.values().filter_map(|worker| worker.silent_since.as_ref());
        let lease = runs.chain(silent).min().map(|at| at.plus(lease_ms));
        let until = |handed_back: &HandedBack| match handed_back {
            HandedBack::Until(until) => Some(*until),
            HandedBack::UntilClaim => None,
        };
        let offer = self.workers.values().flat_map(|worker| worker.handed_back.values()).filter_map(until).min();
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
