//! Who is superseded in a namespace, and when each must leave it: at once, or after a grace that its age gives it.
//!
//! A grace is given once. What comes to the namespace later does not prolong it: whoever submits anew every few seconds would else
//! never be rid of a job that holds a worker.

use std::collections::BTreeMap;

use protocol::event::Event;
use protocol::id::{JobId, Namespace, UnixMillis};
use protocol::queue::{Job, QueueState};

/// A superseded job of at most this age goes at once, in milliseconds: a user is typing. The original's number.
const YOUNG_MS: u64 = 20_000;
/// One older than this gets [`GRACE_OLD_MS`]. The original's number.
const OLD_MS: u64 = 60_000;
/// The grace of a job that is neither young nor old: it may be nearly done.
const GRACE_MS: u64 = 4_000;
/// The grace of an old job.
const GRACE_OLD_MS: u64 = 8_000;

/// A job that is superseded in a namespace.
type Superseded = (Namespace, JobId);

/// A job that must leave a namespace, and the job that supersedes it there.
#[derive(Debug)]
pub(super) struct Leaving {
    job: JobId,
    namespace: Namespace,
    by: JobId,
}

impl Leaving {
    /// What that comes to: a job that nobody else wants goes with it.
    pub(super) fn events(self, state: &QueueState) -> Vec<Event> {
        let Self { job, namespace, by } = self;
        let is_last = state.job(job).is_some_and(|job| job.namespaces.len() == 1);
        let left = Event::NamespaceLeft { job, namespace };
        if is_last { vec![left, Event::JobReplaced { job, by }] } else { vec![left] }
    }
}

/// When each superseded job must leave its namespace. Kept in memory alone: after a restart graces begin anew.
#[derive(Clone, Debug, Default)]
pub(super) struct Graces(BTreeMap<Superseded, UnixMillis>);

impl Graces {
    pub(super) fn of(state: &QueueState) -> Self {
        let mut graces = Self::default();
        graces.follow(state);
        graces
    }

    /// Takes in who is superseded now, and forgets who is not any more. A grace that was given stays.
    pub(super) fn follow(&mut self, state: &QueueState) {
        let given = std::mem::take(&mut self.0);
        for (job, namespace, _, at) in superseded(state) {
            let who = (namespace.clone(), job);
            let at = given.get(&who).map_or(at, |given| at.min(*given));
            self.0.insert(who, at);
        }
    }

    /// Those that must leave now. That one leaves changes nothing about the others, so they are looked for once: they may be
    /// thousands.
    pub(super) fn over(&self, state: &QueueState, now: UnixMillis) -> Vec<Leaving> {
        if self.due().is_none_or(|due| due > now) {
            return Vec::new();
        }
        let found = superseded(state).map(|(job, namespace, by, _)| (by, (namespace.clone(), job)));
        let over = found.filter(|(_, who)| self.0.get(who).is_some_and(|at| *at <= now));
        over.map(|(by, (namespace, job))| Leaving { job, namespace, by }).collect()
    }

    /// When the next one must leave.
    pub(super) fn due(&self) -> Option<UnixMillis> {
        self.0.values().min().copied()
    }
}

/// When `superseded` must leave a namespace that `keeper_joined_at` took: at once, or after the grace that its age gives it.
fn leaves_at(superseded: &Job, keeper_joined_at: UnixMillis) -> UnixMillis {
    let age_ms = keeper_joined_at.since(superseded.queued_at_ms);
    keeper_joined_at.plus(match age_ms {
        0..=YOUNG_MS => 0,
        _ if age_ms <= OLD_MS => GRACE_MS,
        _ => GRACE_OLD_MS,
    })
}

/// Every superseded job with its namespace, the job that supersedes it, and when it must leave if it has no grace yet.
fn superseded(state: &QueueState) -> impl Iterator<Item = (JobId, &Namespace, JobId, UnixMillis)> {
    state.contested().flat_map(move |(namespace, mut jobs)| {
        let keeper = jobs.next_back();
        let joined_at =
            keeper.and_then(|keeper| state.job(keeper)?.namespaces.get(namespace).map(|joined| joined.at_ms));
        jobs.filter_map(move |id| {
            let at = leaves_at(state.job(id)?, joined_at?);
            Some((id, namespace, keeper?, at))
        })
    })
}
