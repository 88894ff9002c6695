//! What follows from the state by itself after any change: waiting jobs are granted.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;

use protocol::id::{UnixMillis, WorkerId};
use protocol::queue::QueueState;

use super::command::Grant;
use super::hold::Holds;
use super::line::{Kind, Line, Turn};
use super::presence::{Presence, Worker};

/// How many waiting jobs of one kind are looked at for one that its workers have not just handed back.
const HANDED_BACK_LOOKED_AT_MAX: usize = 1_024;
/// Which waiting jobs may have become grantable since everything was last settled.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    /// Jobs of these kinds came to wait: all workers are looked at for them.
    pub(super) kinds: Vec<Arc<Kind>>,
    /// These said what they have: all jobs are looked at for them.
    pub(super) workers: BTreeSet<WorkerId>,
    /// Anything may be: time has passed, or a worker is not kept any more.
    pub(super) everywhere: bool,
}

/// What a grant is chosen from.
pub(super) struct Grid<'a> {
    pub(super) state: &'a QueueState,
    pub(super) line: &'a Line,
    pub(super) presence: &'a Presence,
    pub(super) holds: &'a Holds,
}

/// One pass over the waiting jobs, in the order of the line; jobs that do not fit are passed by. Grants only take room away and
/// move turns back, so a kind that fits nobody stays out, and a turn that was seen can only have become later.
pub(super) struct Pass {
    turns: BinaryHeap<Reverse<(Turn, Arc<Kind>)>>,
    /// The kind that was granted last: its next turn is not in yet.
    granted: Option<Arc<Kind>>,
}

impl Pass {
    pub(super) fn begin(look: Look, grid: &Grid<'_>) -> Self {
        let Look { mut kinds, workers, everywhere } = look;
        if everywhere {
            kinds = grid.line.kinds().cloned().collect();
        } else if !workers.is_empty() {
            let workers: Vec<_> = workers.iter().filter_map(|id| grid.presence.worker(id)).collect();
            kinds.extend(grid.line.kinds().filter(|kind| workers.iter().any(|worker| worker.fits_now(kind))).cloned());
        }
        kinds.sort_unstable();
        kinds.dedup();
        let mut pass = Self { turns: BinaryHeap::with_capacity(kinds.len()), granted: None };
        kinds.into_iter().for_each(|kind| pass.enter(kind, grid));
        pass
    }

    fn enter(&mut self, kind: Arc<Kind>, grid: &Grid<'_>) {
        if let Some(turn) = grid.line.first(&kind)
            && grid.presence.with_room(&kind).next().is_some()
        {
            self.turns.push(Reverse((turn.clone(), kind)));
        }
    }

    /// The next grant. The caller carries it out before it asks again.
    pub(super) fn next(&mut self, grid: &Grid<'_>, now: UnixMillis) -> Option<Grant> {
        if let Some(kind) = self.granted.take() {
            self.enter(kind, grid);
        }
        while let Some(Reverse((turn, kind))) = self.turns.pop() {
            match grid.line.first(&kind) {
                Some(first) if *first > turn => self.enter(kind, grid),
                Some(_) => {
                    let Some((turn, grant)) = grid.grant(&kind, now) else { continue };
                    // Its first job may not be had yet, and others go before its next.
                    if self.turns.peek().is_some_and(|Reverse((next, _))| *next < turn) {
                        self.turns.push(Reverse((turn, kind)));
                        continue;
                    }
                    self.granted = Some(kind);
                    return Some(grant);
                }
                None => {}
            }
        }
        None
    }
}

impl Grid<'_> {
    /// The first job of a kind that a worker may have, with its turn and the worker.
    fn grant(&self, kind: &Kind, now: UnixMillis) -> Option<(Turn, Grant)> {
        // Workers are kept from whoever comes later in line: when all are kept from the first, they are kept from the others.
        let first = self.line.first(kind)?;
        self.presence.with_room(kind).find(|(id, _)| self.holds.admit(id, kind, first, self.line))?;
        let mut left = HANDED_BACK_LOOKED_AT_MAX;
        let mut best: Option<(Turn, WorkerId)> = None;
        for (lane, places) in self.line.lanes(kind) {
            // A namespace whose first job may not be had yet has a later turn with its next.
            if left == 0 || best.as_ref().is_some_and(|(best, _)| best <= lane) {
                break;
            }
            let found = places.take(left).find_map(|place| {
                left -= 1;
                let turn = lane.at(place);
                let may = |(id, worker): &(&WorkerId, &Worker)| {
                    worker.may_have(place.job(), now) && self.holds.admit(id, kind, &turn, self.line)
                };
                let worker = self.presence.with_room(kind).find(may)?.0.clone();
                Some((turn, worker))
            });
            best = match (best, found) {
                (Some(best), Some(found)) => Some(if found.0 < best.0 { found } else { best }),
                (best, found) => best.or(found),
            };
        }
        let (turn, worker) = best?;
        let job = turn.place.job();
        Some((turn, Grant { job, run: self.state.job(job)?.run + 1, worker }))
    }
}
