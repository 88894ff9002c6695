//! Workers kept free for jobs that were passed by for long: what bounds overtaking.
//!
//! A job that needs much of a worker does not fit while smaller ones keep taking what becomes free. Once it has waited for
//! [`Limits::overtaken_ms`](super::limits::Limits::overtaken_ms) at the head of its kind, one worker that could run it takes
//! nothing that comes after it in line, until enough has become free there. Only a worker that will have enough once this queue's
//! runs there have ended is kept: one that gives its room to other queues, or takes nothing new, would be kept for nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::id::{UnixMillis, WorkerId};
use protocol::queue::QueueState;

use super::limits::Limits;
use super::line::{Kind, Line, Turn};
use super::presence::{Presence, Worker, more};

/// How many kinds of waiting jobs are looked at for one that was passed by, those that need most first: a queue has a handful, and
/// one that has more must not make every tick long.
const KINDS_LOOKED_AT_MAX: usize = 1_000;

/// For how long a worker may seem not to have enough before it is let go, in milliseconds: between the end of a run and the claim
/// that says so it always does.
const LACKING_MS: u64 = 10_000;

/// A worker that is kept.
#[derive(Clone, Debug)]
struct Hold {
    kind: Arc<Kind>,
    /// Since when it would not have enough.
    lacking: Option<UnixMillis>,
}

/// Who is kept for whom. A worker is kept for one kind at most, and a kind has one worker at most.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holds {
    by_worker: BTreeMap<WorkerId, Hold>,
    by_kind: BTreeMap<Arc<Kind>, WorkerId>,
}

impl Holds {
    pub(crate) fn is_empty(&self) -> bool {
        self.by_worker.is_empty()
    }

    /// The kind that a worker is kept for.
    pub(crate) fn of(&self, worker: &WorkerId) -> Option<&Kind> {
        self.by_worker.get(worker).map(|hold| &*hold.kind)
    }

    /// Whether a worker may be given a job of that kind at that turn: it is not kept, or for this kind, or the job comes before
    /// those that it is kept for.
    pub(crate) fn admit(&self, worker: &WorkerId, kind: &Kind, turn: &Turn, line: &Line) -> bool {
        self.of(worker).is_none_or(|held| held == kind || line.first(held).is_none_or(|first| turn < first))
    }

    /// Lets go of workers that need not be kept any more; says whether there were any.
    pub(crate) fn let_go(
        &mut self,
        state: &QueueState,
        line: &Line,
        presence: &Presence,
        limits: &Limits,
        now: UnixMillis,
    ) -> bool {
        let before = self.by_worker.len();
        let reach = Reach::of(state, presence);
        self.by_worker.retain(|id, hold| {
            let is_due = passed_by_at(state, line, &hold.kind, limits).is_some_and(|at| at <= now);
            let has_enough = presence.worker(id).is_some_and(|worker| reach.fits(id, worker, &hold.kind));
            let since = *hold.lacking.get_or_insert(now);
            if has_enough {
                hold.lacking = None;
            }
            is_due && (has_enough || since.plus(LACKING_MS) > now)
        });
        if before != self.by_worker.len() {
            let by_worker = &self.by_worker;
            self.by_kind.retain(|kind, worker| by_worker.get(worker).is_some_and(|hold| hold.kind == *kind));
        }
        before != self.by_worker.len()
    }

    /// Keeps a worker for each kind that was passed by for too long and has none.
    pub(crate) fn keep(
        &mut self,
        state: &QueueState,
        line: &Line,
        presence: &Presence,
        limits: &Limits,
        now: UnixMillis,
    ) {
        let overdue: Vec<_> =
            self.candidates(state, line, limits).filter(|(_, at)| *at <= now).map(|(kind, _)| kind.clone()).collect();
        if overdue.is_empty() {
            return;
        }
        let reach = Reach::of(state, presence);
        for kind in overdue {
            // The one with the most free has the least to wait for.
            let could = presence
                .workers()
                .filter(|(id, worker)| !self.by_worker.contains_key(*id) && reach.fits(id, worker, &kind));
            let Some((worker, _)) =
                could.max_by_key(|(_, worker)| (worker.free.gpus.min(kind.gpus), worker.free.cpus_milli))
            else {
                continue;
            };
            self.by_worker.insert(worker.clone(), Hold { kind: kind.clone(), lacking: None });
            self.by_kind.insert(kind, worker.clone());
        }
    }

    /// When a worker must next be kept for a kind, or let go.
    pub(crate) fn due(
        &self,
        state: &QueueState,
        line: &Line,
        presence: &Presence,
        limits: &Limits,
    ) -> Option<UnixMillis> {
        let reach = std::cell::OnceCell::new();
        let could = |kind: &Kind| {
            let reach = reach.get_or_init(|| Reach::of(state, presence));
            presence.workers().any(|(id, worker)| !self.by_worker.contains_key(id) && reach.fits(id, worker, kind))
        };
        let lacking = self.by_worker.values().filter_map(|hold| hold.lacking.map(|since| since.plus(LACKING_MS)));
        let mut due = lacking.min();
        for (kind, at) in self.candidates(state, line, limits) {
            if due.is_none_or(|due| at < due) && could(kind) {
                due = Some(at);
            }
        }
        due
    }

    fn candidates<'a>(
        &'a self,
        state: &'a QueueState,
        line: &'a Line,
        limits: &'a Limits,
    ) -> impl Iterator<Item = (&'a Arc<Kind>, UnixMillis)> {
        let looked_at = line.kinds().rev().take(KINDS_LOOKED_AT_MAX).filter(|kind| !self.by_kind.contains_key(*kind));
        looked_at.filter_map(|kind| Some((kind, passed_by_at(state, line, kind, limits)?)))
    }
}

/// What each worker will have for this queue once this queue's runs there have ended.
struct Reach<'a>(BTreeMap<&'a WorkerId, protocol::native::Capacity>);

impl<'a> Reach<'a> {
    fn of(state: &'a QueueState, presence: &'a Presence) -> Self {
        let mut reach: BTreeMap<_, _> = presence.workers().map(|(id, worker)| (id, worker.free)).collect();
        for (_, job) in state.running() {
            if let Some(free) = job.worker.as_ref().and_then(|id| reach.get_mut(id)) {
                *free = more(free, &Kind::of(&job.needs));
            }
        }
        Self(reach)
    }

    fn fits(&self, id: &WorkerId, worker: &Worker, kind: &Kind) -> bool {
        worker.could_fit(kind) && self.0.get(id).is_some_and(|reach| super::presence::fits(kind, reach))
    }
}

/// When the first job of a kind will have waited for too long.
fn passed_by_at(state: &QueueState, line: &Line, kind: &Kind, limits: &Limits) -> Option<UnixMillis> {
    let first = state.job(line.first(kind)?.place.job())?;
    Some(first.changed_at_ms.plus(limits.overtaken_ms))
}
