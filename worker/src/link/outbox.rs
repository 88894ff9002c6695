//! What waits to be sent: log lines (bounded, see [`super::backlog`]), ends of runs (kept until the broker has them on disk),
//! the claim (only the newest counts), and which runs are held.
//!
//! Shared by the runs, the agent and the link. Nothing in it blocks but [`Outbox::push_logs`] on a line that stands but is
//! slow: then the container is slowed down instead of its output lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::native::{Capacity, FinishedRun, HeldRun, LogLine, LogStep, RequestId, ToBroker};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::backlog::{Backlog, Batch};
use super::event::Epoch;
use crate::state_machine::offers::{AskNumber, Offer};

/// How long after a passing refusal ("busy") a report is sent again.
const RETRY: Duration = Duration::from_secs(5);

/// How a run is given up, until the broker has acknowledged it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Report {
    /// It ended.
    Finish(FinishedRun),
    /// It was never started, or killed because the worker stops: somebody else is to run it.
    HandBack {
        /// For the broker's log.
        why: String,
        /// Whether there only was no room left, as another queue was faster.
        busy: bool,
    },
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Something may be sent.
    wake: Notify,
    /// Log lines were sent or the line broke.
    room: Notify,
    /// The outbox was closed.
    closed: Notify,
}

#[derive(Debug, Default)]
struct State {
    epoch: Option<Epoch>,
    is_closed: bool,
    backlog: Backlog,
    reports: BTreeMap<HeldRun, Pending>,
    next_req: RequestId,
    /// To be sent.
    claim: Option<Claim>,
    /// What was sent last.
    claimed: Option<Claim>,
    /// As which request an ask went out.
    asked: Option<(RequestId, AskNumber)>,
    holds: BTreeSet<HeldRun>,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    free: Capacity,
    grants_seen: u64,
    ask: Option<AskNumber>,
}

#[derive(Debug)]
struct Pending {
    report: Report,
    /// Where the log lines ended when it came: they go first, so that a run's log is complete when it ends.
    after: u64,
    /// As which request it went out on this connection.
    sent_as: Option<RequestId>,
    /// Not before.
    due: Option<Instant>,
}

impl Pending {
    fn is_due(&self, now: Instant) -> bool {
        self.sent_as.is_none() && self.due.is_none_or(|due| due <= now)
    }
}

impl Outbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds log lines; `first` is the number of the first one.
    pub(crate) async fn push_logs(&self, run: HeldRun, step: LogStep, first: u64, lines: Vec<LogLine>) {
        let batch = Batch::new(run, step, first, lines);
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            {
                let mut state = self.state();
                if state.epoch.is_none() || state.backlog.has_room_for(&batch) {
                    state.backlog.push(batch);
                    break;
                }
            }
            room.await;
        }
        self.wake.notify_one();
    }

    /// Adds a run's end, in place of an earlier one.
    pub(crate) fn report(&self, run: HeldRun, report: Report) {
        let mut state = self.state();
        state.holds.insert(run);
        let after = state.backlog.end();
        state.reports.insert(run, Pending { report, after, sent_as: None, due: None });
        drop(state);
        self.wake.notify_one();
    }

    /// Says what is free, for the connection `epoch` only; replaces what was said before.
    pub(crate) fn claim(&self, epoch: Epoch, offer: &Offer) {
        let mut state = self.state();
        if state.epoch == Some(epoch) {
            state.claim = Some(Claim { free: offer.free, grants_seen: offer.grants_seen, ask: offer.ask });
            drop(state);
            self.wake.notify_one();
        }
    }

    /// A run is held from now on.
    pub(crate) fn hold(&self, run: HeldRun) {
        self.state().holds.insert(run);
    }

    /// Forgets all about a run.
    pub(crate) fn forget(&self, run: HeldRun) {
        let mut state = self.state();
        state.holds.remove(&run);
        state.reports.remove(&run);
        let has_more_room = state.backlog.forget(run);
        drop(state);
        if has_more_room {
            self.room.notify_waiters();
        }
    }

    /// The runs held, ended and not acknowledged ones included.
    pub(crate) fn holds(&self) -> Vec<HeldRun> {
        self.state().holds.iter().copied().collect()
    }

    /// How many ends of runs are not acknowledged.
    pub(crate) fn unsettled(&self) -> usize {
        self.state().reports.len()
    }

    /// How many bytes their results have together.
    pub(crate) fn unsettled_bytes(&self) -> usize {
        let bytes = |pending: &Pending| match &pending.report {
            Report::Finish(finished) => finished.finished.as_str().len(),
            Report::HandBack { .. } => 0,
        };
        self.state().reports.values().map(bytes).sum()
    }

    /// Whether there is a connection.
    pub(super) fn is_connected(&self) -> bool {
        self.state().epoch.is_some()
    }

    /// How many log lines were lost since the start.
    pub(crate) fn lines_dropped(&self) -> u64 {
        self.state().backlog.dropped_ever()
    }

    /// Lets the link send what is here and then end.
    pub(crate) fn close(&self) {
        self.state().is_closed = true;
        self.closed.notify_waiters();
        self.wake.notify_one();
        self.room.notify_waiters();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().is_closed
    }

    pub(super) async fn closed(&self) {
        let closed = self.closed.notified();
        tokio::pin!(closed);
        closed.as_mut().enable();
        if !self.is_closed() {
            closed.await;
        }
    }

    /// A connection stands: what the last one may have lost goes out again.
    pub(super) fn connected(&self, epoch: Epoch) {
        let mut state = self.state();
        state.epoch = Some(epoch);
        (state.claim, state.claimed, state.asked) = (None, None, None);
        state.backlog.resend();
        for pending in state.reports.values_mut() {
            pending.sent_as = None;
            pending.due = None;
        }
    }

    /// There is no connection.
    pub(crate) fn disconnected(&self) {
        self.state().epoch = None;
        self.room.notify_waiters();
    }

    /// Waits until there may be something to send.
    pub(super) async fn wake(&self) {
        self.wake.notified().await;
    }

    /// The next message. Ends of runs go as soon as the lines that came before them are out, so that a run that prints
    /// without end holds up no other; a claim goes after the ends that make its room.
    pub(super) fn next_message(&self, now: Instant) -> Option<ToBroker> {
        let mut state = self.state();
        state.next_report(now).or_else(|| state.next_claim(now)).or_else(|| state.backlog.next())
    }

    /// The number of a ping to send when log lines of at least `bytes_min` were sent since the last one.
    pub(super) fn next_ping(&self, bytes_min: usize) -> Option<u64> {
        self.state().backlog.next_ping(bytes_min)
    }

    /// A ping was answered: whatever was sent before it has arrived.
    pub(super) fn on_pong(&self, ping: u64) {
        self.state().backlog.on_pong(ping);
        self.room.notify_waiters();
    }

    /// Which run's end a request number stands for.
    pub(super) fn run_of(&self, req: RequestId) -> Option<HeldRun> {
        self.state().reports.iter().find(|(_, pending)| pending.sent_as == Some(req)).map(|(run, _)| *run)
    }

    /// Which ask a request number stands for.
    pub(super) fn ask_of(&self, req: RequestId) -> Option<AskNumber> {
        self.state().asked.filter(|(asked, _)| *asked == req).map(|(_, ask)| ask)
    }

    /// A report was refused for now.
    pub(super) fn retry_later(&self, run: HeldRun, now: Instant) {
        if let Some(pending) = self.state().reports.get_mut(&run) {
            pending.sent_as = None;
            pending.due = Some(now + RETRY);
        }
    }

    #[cfg(test)]
    fn log_bytes(&self) -> usize {
        self.state().backlog.bytes()
    }
}

impl State {
    fn next_report(&mut self, now: Instant) -> Option<ToBroker> {
        let Self { reports, backlog, next_req, claim, claimed, .. } = self;
        let is_next = |pending: &Pending| pending.is_due(now) && backlog.is_sent_up_to(pending.after);
        let (&run, pending) = reports.iter_mut().find(|(_, pending)| is_next(pending))?;
        let req = *next_req;
        *next_req += 1;
        pending.sent_as = Some(req);
        Some(match &pending.report {
            Report::Finish(finished) => ToBroker::Finish { req, run: finished.clone() },
            Report::HandBack { why, busy } => {
                if pending.due.is_some() {
                    // Late: the claim that offers the run again must come after it.
                    *claim = claim.or(claimed.map(|claimed| Claim { ask: None, ..claimed }));
                }
                ToBroker::HandBack { req, run, why: why.clone(), busy: *busy }
            }
        })
    }

    fn next_claim(&mut self, now: Instant) -> Option<ToBroker> {
        if self.reports.values().any(|pending| pending.is_due(now)) {
            return None;
        }
        let claim = self.claim.take()?;
        self.claimed = Some(claim);
        let req = claim.ask.map(|ask| {
            let req = self.next_req;
            self.next_req += 1;
            self.asked = Some((req, ask));
            req
        });
        Some(ToBroker::Claim { free: claim.free, grants_seen: claim.grants_seen, req })
    }
}

#[cfg(test)]
mod tests;
