//! What follows from time alone: leases run out, workers are given up, ended jobs leave.

use protocol::event::{Event, LostReason};
use protocol::id::UnixMillis;
use protocol::native::HeldRun;
use protocol::queue::{Job, QueueState, Stay};

use super::limits::Limits;
use super::presence::Presence;

/// How many jobs leave in one step: bounds a batch; the rest follow in the next.
const REMOVED_MAX: usize = 1_000;

/// The runs whose lease has run out.
pub(super) fn lost_runs(state: &QueueState, presence: &Presence, limits: &Limits, now: UnixMillis) -> Vec<HeldRun> {
    let live = |run: &HeldRun| state.job(run.job).is_some_and(|job| job.run == run.run && job.is_live());
    presence.expired(limits.lease_ms, now).filter(live).collect()
}

/// Workers that left, and jobs that leave the queue.
pub(super) fn departures(state: &QueueState, presence: &Presence, limits: &Limits, now: UnixMillis) -> Vec<Event> {
    let left = presence.departed(limits.lease_ms, now).map(|worker| Event::WorkerLeft { worker: worker.clone() });
    let gone = |stay: Stay| {
        state
            .ended(stay)
            .take_while(move |(_, job)| stays_until(job, stay, limits) <= now)
            .map(|(job, _)| Event::JobRemoved { job })
            .take(REMOVED_MAX)
    };
    left.chain(gone(Stay::Short)).chain(gone(Stay::Long)).collect()
}

fn stays_until(job: &Job, stay: Stay, limits: &Limits) -> UnixMillis {
    job.rests_since().plus(match stay {
        Stay::Short => limits.success_stays_ms,
        Stay::Long => limits.failure_stays_ms,
    })
}

/// When time alone will next change something.
pub(super) fn next(state: &QueueState, presence: &Presence, limits: &Limits) -> Option<UnixMillis> {
    let leaves = |stay: Stay| state.ended(stay).next().map(|(_, job)| stays_until(job, stay, limits));
    [presence.due(limits.lease_ms), leaves(Stay::Short), leaves(Stay::Long)].into_iter().flatten().min()
}

/// What becomes of a job whose run is given up: it waits again, or is abandoned when that happened too often.
pub(super) fn after_loss(job: &Job, why: LostReason, limits: &Limits) -> bool {
    match why {
        LostReason::HandedBack => false,
        LostReason::LeaseExpired | LostReason::Forgotten => job.lost + 1 >= limits.lost_runs_max,
    }
}
