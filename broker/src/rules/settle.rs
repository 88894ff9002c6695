//! What follows from the state by itself after any change: superseded jobs leave their namespace, waiting jobs are granted.

use protocol::event::Event;
use protocol::id::{JobId, Namespace, UnixMillis};
use protocol::queue::{Job, QueueState, Status};

use super::command::Grant;
use super::presence::Presence;

/// A superseded job of at most this age goes at once, in milliseconds: a user is typing. The original's number.
const YOUNG_MS: u64 = 20_000;
/// One older than this gets [`GRACE_OLD_MS`]. The original's number.
const OLD_MS: u64 = 60_000;
/// The grace of a job that is neither young nor old: it may be nearly done.
const GRACE_MS: u64 = 4_000;
/// The grace of an old job.
const GRACE_OLD_MS: u64 = 8_000;

/// When `superseded` must leave a namespace that `keeper_joined_at` took: at once, or after the grace that its age gives it.
fn leaves_at(superseded: &Job, keeper_joined_at: UnixMillis) -> UnixMillis {
    let age_ms = keeper_joined_at.since(superseded.queued_at_ms);
    keeper_joined_at.plus(match age_ms {
        0..=YOUNG_MS => 0,
        _ if age_ms <= OLD_MS => GRACE_MS,
        _ => GRACE_OLD_MS,
    })
}

/// Every superseded job with its namespace, the job that supersedes it, and when it must leave.
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

/// The next superseded job that must leave its namespace now, as events.
pub(super) fn eviction(state: &QueueState, now: UnixMillis) -> Option<Vec<Event>> {
    let (job, namespace, by, _) = superseded(state).find(|(_, _, _, at)| *at <= now)?;
    let mut events = vec![Event::NamespaceLeft { job, namespace: namespace.clone() }];
    if state.job(job).is_some_and(|job| job.namespaces.len() == 1) {
        events.push(Event::JobReplaced { job, by });
    }
    Some(events)
}

/// When the next superseded job must leave.
pub(super) fn eviction_due(state: &QueueState) -> Option<UnixMillis> {
    superseded(state).map(|(_, _, _, at)| at).min()
}

/// Which waiting jobs may have become grantable since everything was last settled.
#[derive(Clone, Debug, Default)]
pub(super) enum Look {
    /// None: nothing came to wait and nothing became free.
    #[default]
    Nowhere,
    /// These came to wait; all others have been looked at with what is free.
    At(Vec<JobId>),
    /// Any: something became free.
    Everywhere,
}

impl Look {
    pub(super) fn also_at(&mut self, job: JobId) {
        match self {
            Self::Nowhere => *self = Self::At(vec![job]),
            Self::At(jobs) => jobs.push(job),
            Self::Everywhere => {}
        }
    }
}

/// The first waiting job that a worker takes now: the order of the line, jobs that do not fit are passed by.
pub(super) fn grant(state: &QueueState, presence: &Presence, look: &Look, now: UnixMillis) -> Option<Grant> {
    let free: Vec<_> =
        presence.workers().filter(|(_, worker)| worker.session.is_some() && worker.free.cpus_milli > 0).collect();
    if free.is_empty() {
        return None;
    }
    let granted = |(job, waiting): (JobId, &Job)| {
        let takers = free.iter().filter(|(_, worker)| worker.takes(job, &waiting.needs, now));
        // The one with the most room, so that work spreads over machines.
        let (id, _) = takers.max_by_key(|(_, worker)| worker.free.cpus_milli)?;
        Some(Grant { job, run: waiting.run + 1, worker: (*id).clone() })
    };
    match look {
        Look::Nowhere => None,
        Look::At(jobs) => jobs
            .iter()
            .filter_map(|id| state.job(*id).map(|job| (*id, job)))
            .filter(|(_, job)| matches!(job.status, Status::Queued { .. }))
            .find_map(granted),
        // The first of each kind that someone takes; of those the first in line.
        Look::Everywhere => {
            let mut of_each_kind: Vec<_> = state
                .waiting_alike()
                .filter(|(needs, _)| free.iter().any(|(_, worker)| worker.fits_now(needs)))
                .filter_map(|(_, mut jobs)| {
                    jobs.find_map(|(place, job)| granted((place.job(), job)).map(|grant| (place, grant)))
                })
                .collect();
            of_each_kind.sort_unstable_by_key(|(place, _)| *place);
            of_each_kind.into_iter().next().map(|(_, grant)| grant)
        }
    }
}
