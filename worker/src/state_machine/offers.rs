//! Which of the worker's queues is offered how much of what is free. Pure: time and capacity come in, claims come out.
//!
//! A worker for one queue claims all that is free, always. With several, what is free is offered to one at a time: the one
//! that uses least of the worker is *asked*, and its broker says when it has granted what it has. A queue that had nothing
//! is *dry*, and the next one is asked. When all are dry, everything is open to all of them at once, so that whatever comes
//! first starts without delay; what then was granted twice is handed back.
//!
//! While others have work, an asked queue is offered no more than its fair level, so that many slots that come free at
//! once do not all go to one; only when it has nothing that small is it offered everything.

use protocol::native::Capacity;

use super::QueueIndex;
use super::capacity::{NOTHING, at_most, capped, has_grown, less, level};

/// The shortest time that a dry queue is not asked again while others have work. Asking costs a round trip of idle
/// capacity, which must not be paid for each job that ends; and nobody notices a job that waits so long for its turn.
const DRY_MS: u64 = 250;
/// A dry queue is left alone for so many times as long as its answer took: a slow broker costs a tenth of the capacity.
const DRY_PER_ANSWER: u64 = 10;
/// How long an answer is waited for: brokers answer after a sync of their disk. One that takes longer is in trouble, or too
/// old to answer at all.
const ANSWER_MS: u64 = 3_000;
/// How many runs without room a queue may have granted in a row: as many as a broker grants unseen. More is no race between
/// two queues, and is handed back as what does not fit here.
const BUSY_MAX: u32 = 1_024;

/// The number of an ask: an answer to an older one says nothing.
pub(crate) type AskNumber = u64;

/// A claim to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) queue: QueueIndex,
    pub(crate) free: Capacity,
    pub(crate) grants_seen: u64,
    /// Whether an answer is wanted, and to be told by which number.
    pub(crate) ask: Option<AskNumber>,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Offers {
    queues: Vec<Queue>,
    /// What was free when everything was last open to all; absent while queues are asked.
    open: Option<Capacity>,
    next_ask: AskNumber,
    grants: u64,
}

#[derive(Clone, Debug, Default)]
struct Queue {
    line: Option<Line>,
    /// When it last granted something that had room, counted in grants.
    last_grant: u64,
    /// Runs in a row that had no room.
    busy: u32,
}

/// A connection to a queue's broker.
#[derive(Clone, Debug)]
struct Line {
    grants_seen: u64,
    /// What the broker counts on: what it was told, less what it has granted since.
    told: Capacity,
    /// How many grants were seen when it was told.
    told_after: u64,
    supply: Supply,
    is_mute: bool,
    ask: Option<Ask>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Supply {
    /// It was not asked yet, or it had something the last time.
    Hopeful,
    /// It had nothing the last time, and is not asked before this while others have work.
    Dry { until_ms: u64 },
}

#[derive(Clone, Debug)]
struct Ask {
    number: AskNumber,
    since_ms: u64,
    offered: Capacity,
    /// Whether more is free than was offered.
    is_capped: bool,
    is_sent: bool,
    grants_before: u64,
    /// How many grants there have been, by the broker's answer.
    granted: Option<u64>,
}

impl Offers {
    /// For so many queues, none connected.
    pub(crate) fn new(queues: usize) -> Self {
        Self { queues: vec![Queue::default(); queues], open: None, next_ask: 0, grants: 0 }
    }

    /// A connection to the queue's broker stands.
    pub(crate) fn connected(&mut self, queue: QueueIndex) {
        self.queues[queue.0].line = Some(Line {
            grants_seen: 0,
            told: NOTHING,
            told_after: 0,
            supply: Supply::Hopeful,
            is_mute: false,
            ask: None,
        });
    }

    /// The connection broke.
    pub(crate) fn lost(&mut self, queue: QueueIndex) {
        self.queues[queue.0].line = None;
    }

    /// A run was granted on the connection that stands. Says whether it is to be handed back as one that another queue was
    /// faster than, when there is no room for it.
    pub(crate) fn granted(&mut self, queue: QueueIndex, needs: Capacity, has_room: bool) -> bool {
        self.grants += 1;
        let (grants, is_shared) = (self.grants, self.queues.len() > 1);
        let queue = &mut self.queues[queue.0];
        if has_room {
            (queue.last_grant, queue.busy) = (grants, 0);
        } else {
            queue.busy = queue.busy.saturating_add(1);
        }
        if let Some(line) = &mut queue.line {
            line.grants_seen += 1;
            line.told = less(line.told, needs);
            line.supply = Supply::Hopeful;
        }
        is_shared && !has_room && queue.busy <= BUSY_MAX
    }

    /// A broker answered: it has granted so many runs on this connection.
    pub(crate) fn answered(&mut self, queue: QueueIndex, number: AskNumber, granted: u64) {
        let Some(line) = &mut self.queues[queue.0].line else { return };
        line.is_mute = false;
        if let Some(ask) = line.ask.as_mut().filter(|ask| ask.number == number) {
            ask.granted = Some(granted);
        }
    }

    /// When [`Self::plan`] is to be called again at the latest.
    pub(crate) fn due_ms(&self) -> Option<u64> {
        self.lines().filter_map(|(_, line)| line.ask.as_ref()).map(|ask| ask.since_ms + ANSWER_MS).min()
    }

    /// The claims to be sent, now that something may have changed. `used` says how many thousandths of a CPU a queue's runs
    /// hold.
    pub(crate) fn plan(&mut self, now_ms: u64, free: Capacity, used: impl Fn(QueueIndex) -> u32) -> Vec<Offer> {
        if let [Queue { line, .. }] = &mut self.queues[..] {
            return line.iter_mut().map(|line| line.tell(QueueIndex(0), free, None)).collect();
        }
        if free.cpus_milli == 0 {
            self.open = None;
            self.lines_mut().for_each(|(_, line)| line.ask = None);
        } else {
            self.settle(now_ms, free);
            let is_open = match &mut self.open {
                Some(open) => !(has_grown(open, &free) && self.queues.iter().any(Queue::is_hopeful)),
                None => self.lines().any(|(_, line)| line.ask.is_some()),
            };
            if !is_open {
                self.open = None;
                self.start(now_ms, free, used);
            } else if let Some(open) = &mut self.open {
                *open = free;
            }
        }
        let (open, next_ask) = (self.open, &mut self.next_ask);
        let lines = self.queues.iter_mut().enumerate().filter_map(|(at, queue)| Some((at, queue.line.as_mut()?)));
        lines.filter_map(|(at, line)| line.offer(QueueIndex(at), open, free, next_ask)).collect()
    }

    fn lines(&self) -> impl Iterator<Item = (QueueIndex, &Line)> {
        self.queues.iter().enumerate().filter_map(|(at, queue)| Some((QueueIndex(at), queue.line.as_ref()?)))
    }

    fn lines_mut(&mut self) -> impl Iterator<Item = (QueueIndex, &mut Line)> {
        self.queues.iter_mut().enumerate().filter_map(|(at, queue)| Some((QueueIndex(at), queue.line.as_mut()?)))
    }

    /// Ends the asks that have their answer, or waited too long for it.
    fn settle(&mut self, now_ms: u64, free: Capacity) {
        for (_, line) in self.lines_mut() {
            line.settle(now_ms, free);
        }
    }

    /// Nobody is asked: chooses who is, or opens everything to all.
    fn start(&mut self, now_ms: u64, free: Capacity, used: impl Fn(QueueIndex) -> u32) {
        if !self.queues.iter().any(Queue::is_hopeful) {
            self.open = Some(free);
            return;
        }
        let rank = |at: QueueIndex| (used(at), self.queues[at.0].last_grant, at);
        let may_be_asked = self.lines().filter(|(_, line)| line.may_be_asked(now_ms));
        let mut candidates: Vec<_> = may_be_asked.map(|(at, line)| (rank(at), line.supply)).collect();
        candidates.sort_unstable_by_key(|(rank, _)| *rank);
        // Dry ones in a row are asked together: most probably none has anything, and each alone would cost a round trip.
        let dry = candidates.iter().take_while(|(_, supply)| *supply != Supply::Hopeful).count();
        let asked = dry.max(1);
        let contending =
            candidates.iter().enumerate().filter(|(at, (_, supply))| *at < asked || *supply == Supply::Hopeful);
        let level = level(free.cpus_milli, contending.map(|(_, ((used, ..), _))| u64::from(*used)));
        for ((used, _, at), _) in candidates.into_iter().take(asked) {
            let offered = capped(free, level.saturating_sub(used.into()));
            if let Some(line) = &mut self.queues[at.0].line {
                line.ask(now_ms, offered, free);
            }
        }
    }
}

impl Queue {
    fn is_hopeful(&self) -> bool {
        self.line.as_ref().is_some_and(|line| line.supply == Supply::Hopeful)
    }
}

impl Line {
    fn may_be_asked(&self, now_ms: u64) -> bool {
        match self.supply {
            Supply::Hopeful => true,
            Supply::Dry { until_ms } => now_ms >= until_ms,
        }
    }

    fn ask(&mut self, now_ms: u64, offered: Capacity, free: Capacity) {
        self.ask = Some(Ask {
            number: AskNumber::MAX,
            since_ms: now_ms,
            offered,
            is_capped: offered.cpus_milli < free.cpus_milli,
            is_sent: false,
            grants_before: self.grants_seen,
            granted: None,
        });
    }

    fn settle(&mut self, now_ms: u64, free: Capacity) {
        let Some(ask) = self.ask.as_ref().filter(|ask| ask.is_sent) else { return };
        let had_something = self.grants_seen > ask.grants_before;
        let is_answered = ask.granted.is_some_and(|granted| self.grants_seen >= granted);
        let took_ms = now_ms.saturating_sub(ask.since_ms);
        let is_late = took_ms >= ANSWER_MS;
        if is_late && ask.granted.is_none() {
            self.is_mute = true;
        }
        if had_something {
            // A mute one will not say whether that was all.
            if is_answered || is_late || self.is_mute || self.told.cpus_milli == 0 {
                self.ask = None;
            }
        } else if is_answered && ask.is_capped {
            self.ask(now_ms, free, free);
        } else if is_answered || is_late {
            self.supply = Supply::Dry { until_ms: now_ms + DRY_MS.max(took_ms.min(ANSWER_MS) * DRY_PER_ANSWER) };
            self.ask = None;
        }
    }

    /// The claim to be sent, unless the broker has been told already.
    fn offer(
        &mut self,
        queue: QueueIndex,
        open: Option<Capacity>,
        free: Capacity,
        next: &mut AskNumber,
    ) -> Option<Offer> {
        let Some(ask) = &mut self.ask else {
            let wanted = open.unwrap_or(NOTHING);
            let is_told = match open {
                Some(open) => self.told == open && self.told_after == self.grants_seen,
                None => self.told.cpus_milli == 0,
            };
            return (!is_told).then(|| self.tell(queue, wanted, None));
        };
        // Never more while it is asked: each change wants another answer, and there might be no end of it.
        let wanted = if ask.is_sent { at_most(self.told, free) } else { ask.offered };
        if ask.is_sent && wanted == self.told {
            return None;
        }
        (ask.number, ask.is_sent, ask.granted) = (*next, true, None);
        *next += 1;
        let number = ask.number;
        Some(self.tell(queue, wanted, Some(number)))
    }

    fn tell(&mut self, queue: QueueIndex, free: Capacity, ask: Option<AskNumber>) -> Offer {
        (self.told, self.told_after) = (free, self.grants_seen);
        Offer { queue, free, grants_seen: self.grants_seen, ask }
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
