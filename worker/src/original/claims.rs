//! Which jobs are taken: those that wait longest in the namespaces that have least running, if there is room and their
//! definition says that they can run here. None is started before the server shows it as this worker's.

use std::collections::BTreeSet;

use protocol::definition::Needs;
use protocol::id::JobId;
use protocol::native::{Capacity, FromBroker};
use protocol::original::to_server;
use protocol::raw::RawJson;
use tracing::info;

use super::Now;
use super::definitions::{ASKED_MAX, Lookup};
use super::desk::Desk;
use super::mine::{Claiming, Mine};
use super::view::Turn;
use crate::state_machine::capacity::less;
use crate::state_machine::slots::CPUS_MILLI_UNSTATED;

/// How long it is waited for the server to show a claim: it tells of all jobs every ten seconds, and of a change at once.
pub(super) const CONFIRM_MS: u64 = 15_000;
/// How long room is kept for a job whose definition is on its way; after that those behind it go first.
const KEPT_ROOM_MS: u64 = 2_000;
/// How many jobs are looked at for one that fits now: a few that are too big must not stop the rest, and nobody waits for a
/// look at all of 100,000.
const LOOKED_AT_MAX: usize = 2_000;

impl Desk {
    /// Grants what is ours already, claims what there is room for, and answers whoever asked whether that is all.
    pub(super) fn claim(&mut self, now: Now) {
        let mut room = self.unseen.iter().fold(self.free, |room, (_, taken)| less(room, *taken));
        for mine in self.mine.values() {
            if let Mine::Claiming(claim) = mine {
                room = less(room, capacity(&claim.needs));
            }
        }
        let mut is_undecided = self.grant_parked(now, &mut room);
        is_undecided |= self.claim_waiting(now, room);
        is_undecided |= self.mine.values().any(|mine| matches!(mine, Mine::Claiming(_)));
        if !is_undecided && let Some(req) = self.ask.take() {
            let granted = self.granted;
            self.tell(FromBroker::Claimed { req, granted });
        }
    }

    /// Jobs that are ours, but of which there is no run: the oldest claim first.
    fn grant_parked(&mut self, now: Now, room: &mut Capacity) -> bool {
        let mut parked: Vec<_> = self
            .mine
            .iter()
            .filter_map(|(job, mine)| match mine {
                Mine::Parked(parked) if now.ms >= parked.not_before_ms => Some((parked.at, *job)),
                Mine::Parked(_) | Mine::Claiming(_) | Mine::Live(_) | Mine::Stopping { .. } | Mine::Reported(_) => None,
            })
            .collect();
        parked.sort_unstable();
        let mut is_undecided = false;
        for (at, job) in parked {
            match self.definitions.look_up(job, now.ms) {
                Lookup::Known(known) if fits(&known.needs, room) => {
                    let takes = capacity(&known.needs);
                    *room = less(*room, takes);
                    self.grant(now, job, at, known.text, takes);
                }
                Lookup::Pending(_) => is_undecided = true,
                Lookup::Unasked => is_undecided |= self.ask_for(now, job),
                Lookup::Known(known) if !fits(&known.needs, &self.me.total) => {
                    // An earlier process had more to give.
                    self.say(to_server::worker_lost(job, &self.me.id, now.at));
                    if let Some(Mine::Parked(parked)) = self.mine.get_mut(&job) {
                        parked.not_before_ms = now.ms + CONFIRM_MS;
                    }
                }
                Lookup::Known(_) | Lookup::Missing => {}
            }
        }
        is_undecided
    }

    fn claim_waiting(&mut self, now: Now, mut room: Capacity) -> bool {
        let (mut is_undecided, mut looked_at, mut unknown) = (false, 0, 0);
        let (mut wanted, mut to_ask) = (Vec::new(), Vec::new());
        let Self { view, definitions, mine, refused, unfit, me, .. } = self;
        if room.cpus_milli == 0 {
            return false;
        }
        view.in_turn(|job| {
            if unfit.contains(&job) {
                return Turn::Passed;
            }
            looked_at += 1;
            if room.cpus_milli == 0 || unknown >= ASKED_MAX || looked_at > LOOKED_AT_MAX {
                return Turn::Enough;
            }
            if mine.contains_key(&job) {
                // As good as running.
                return Turn::Taken;
            }
            if refused.get(&job).is_some_and(|until| *until > now.ms) {
                return Turn::Passed;
            }
            if let Some(needs) = definitions.needs(job) {
                if !(is_for(needs, me) && fits(needs, &me.total)) {
                    info!(job.id = %job, "job {job} needs what this worker has not: it is left to others");
                    unfit.insert(job);
                    return Turn::Passed;
                }
                if !fits(needs, &room) {
                    return Turn::Passed;
                }
            }
            match definitions.look_up(job, now.ms) {
                Lookup::Known(known) => {
                    room = less(room, capacity(&known.needs));
                    wanted.push((job, known.needs, known.text));
                    Turn::Taken
                }
                Lookup::Missing => Turn::Passed,
                Lookup::Pending(waited_ms) => {
                    (is_undecided, unknown) = (true, unknown + 1);
                    if waited_ms < KEPT_ROOM_MS {
                        room = less(room, UNSTATED);
                    }
                    Turn::Taken
                }
                Lookup::Unasked => {
                    (is_undecided, unknown) = (true, unknown + 1);
                    to_ask.push(job);
                    room = less(room, UNSTATED);
                    Turn::Taken
                }
            }
        });
        for job in to_ask {
            self.ask_for(now, job);
        }
        for (job, needs, text) in wanted {
            self.claim_one(now, job, needs, text);
        }
        is_undecided
    }

    fn claim_one(&mut self, now: Now, job: JobId, needs: Needs, text: RawJson) {
        let at = self.next_claim(now);
        info!(job.id = %job, "claims job {job}");
        self.say(to_server::running(job, &self.me.id, at));
        let claim = Claiming { at, since_ms: now.ms, said_ms: now.ms, needs, text };
        self.mine.insert(job, Mine::Claiming(claim));
    }

    /// Asks for a definition; `false` when too many are on their way.
    fn ask_for(&mut self, now: Now, job: JobId) -> bool {
        let may_ask = self.definitions.ask(job, now.ms);
        if may_ask {
            self.say(to_server::request_definitions(&[job]));
        }
        may_ask
    }
}

/// What a job takes of which nothing is known yet.
const UNSTATED: Capacity = Capacity { cpus_milli: CPUS_MILLI_UNSTATED, memory_bytes: Some(0), gpus: 0 };

/// What is counted for a run.
pub(super) fn capacity(needs: &Needs) -> Capacity {
    Capacity {
        cpus_milli: needs.cpus_milli.unwrap_or(CPUS_MILLI_UNSTATED),
        memory_bytes: Some(needs.memory_bytes.unwrap_or(0)),
        gpus: needs.gpus,
    }
}

fn fits(needs: &Needs, room: &Capacity) -> bool {
    let takes = capacity(needs);
    takes.cpus_milli <= room.cpus_milli
        && takes.gpus <= room.gpus
        && room.memory_bytes.is_none_or(|free| takes.memory_bytes.unwrap_or(0) <= free)
}

/// A worker started with tags takes only jobs that have one of them, as with a broker of ours.
fn is_for(needs: &Needs, worker: &protocol::native::WorkerHello) -> bool {
    let tags: BTreeSet<&String> = worker.tags.iter().collect();
    tags.is_empty() || needs.tags.iter().any(|tag| tags.contains(tag))
}
