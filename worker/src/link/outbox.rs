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
    claim: Option<(Capacity, u64)>,
    holds: BTreeSet<HeldRun>,
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
    pub(crate) fn claim(&self, epoch: Epoch, free: Capacity, grants_seen: u64) {
        let mut state = self.state();
        if state.epoch == Some(epoch) {
            state.claim = Some((free, grants_seen));
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
        state.claim = None;
        state.backlog.resend();
        for pending in state.reports.values_mut() {
            pending.sent_as = None;
            pending.due = None;
        }
    }

    /// There is no connection.
    pub(super) fn disconnected(&self) {
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
        let Self { reports, backlog, next_req, .. } = self;
        let is_next = |pending: &Pending| pending.is_due(now) && backlog.is_sent_up_to(pending.after);
        let (&run, pending) = reports.iter_mut().find(|(_, pending)| is_next(pending))?;
        let req = *next_req;
        *next_req += 1;
        pending.sent_as = Some(req);
        Some(match &pending.report {
            Report::Finish(finished) => ToBroker::Finish { req, run: finished.clone() },
            Report::HandBack { why } => ToBroker::HandBack { req, run, why: why.clone() },
        })
    }

    fn next_claim(&mut self, now: Instant) -> Option<ToBroker> {
        if self.reports.values().any(|pending| pending.is_due(now)) {
            return None;
        }
        self.claim.take().map(|(free, grants_seen)| ToBroker::Claim { free, grants_seen })
    }
}

#[cfg(test)]
mod tests {
    use protocol::id::{JobId, UnixMillis};

    use super::*;
    use crate::link::backlog::LOG_BYTES_MAX;

    fn run(number: u32) -> HeldRun {
        HeldRun { job: JobId::from_bytes([2; 32]), run: number }
    }

    fn lines(count: usize, bytes: usize) -> Vec<LogLine> {
        vec![LogLine { text: "x".repeat(bytes), at_ms: UnixMillis(1), stderr: false }; count]
    }

    fn hand_back() -> Report {
        Report::HandBack { why: "test".to_owned() }
    }

    fn drain(outbox: &Outbox) -> Vec<ToBroker> {
        std::iter::from_fn(|| outbox.next_message(Instant::now())).collect()
    }

    #[tokio::test]
    async fn logs_go_before_the_end_of_their_run() {
        let outbox = Outbox::default();
        outbox.connected(1);
        outbox.push_logs(run(1), LogStep::Run, 0, lines(1, 1)).await;
        outbox.report(run(1), hand_back());
        let sent = drain(&outbox);
        assert!(matches!(sent[..], [ToBroker::RunLogs { .. }, ToBroker::HandBack { .. }]), "{sent:?}");
        // Both may be lost with the line, and go again in the same order.
        outbox.connected(2);
        let sent = drain(&outbox);
        assert!(matches!(sent[..], [ToBroker::RunLogs { .. }, ToBroker::HandBack { .. }]), "{sent:?}");
    }

    #[tokio::test]
    async fn an_end_and_then_the_claim_go_before_what_another_run_prints_later() {
        let outbox = Outbox::default();
        outbox.connected(1);
        outbox.push_logs(run(1), LogStep::Run, 0, lines(1, 1)).await;
        outbox.report(run(2), hand_back());
        outbox.claim(1, Capacity::default(), 0);
        outbox.push_logs(run(1), LogStep::Run, 1, lines(1, 1)).await;
        let sent = drain(&outbox);
        assert!(
            matches!(
                sent[..],
                [
                    ToBroker::RunLogs { first: 0, .. },
                    ToBroker::HandBack { .. },
                    ToBroker::Claim { .. },
                    ToBroker::RunLogs { first: 1, .. }
                ]
            ),
            "{sent:?}"
        );
    }

    #[tokio::test]
    async fn an_end_is_sent_again_on_each_connection_until_it_is_settled() {
        let outbox = Outbox::default();
        outbox.connected(1);
        outbox.report(run(1), hand_back());
        assert_eq!(drain(&outbox).len(), 1);
        assert_eq!(drain(&outbox).len(), 0);
        outbox.disconnected();
        outbox.connected(2);
        let sent = drain(&outbox);
        let [ToBroker::HandBack { req, .. }] = sent[..] else { panic!("{sent:?}") };
        assert_eq!(outbox.run_of(req), Some(run(1)));
        outbox.forget(run(1));
        outbox.connected(3);
        assert_eq!(drain(&outbox).len(), 0);
        assert_eq!(outbox.holds(), []);
    }

    #[tokio::test]
    async fn lines_that_a_broken_connection_may_have_lost_are_sent_again_and_those_that_arrived_are_not() {
        let outbox = Outbox::default();
        outbox.connected(1);
        outbox.push_logs(run(1), LogStep::Run, 0, lines(1, 1)).await;
        drain(&outbox);
        let ping = outbox.next_ping(0).unwrap();
        outbox.push_logs(run(1), LogStep::Run, 1, lines(1, 1)).await;
        drain(&outbox);
        outbox.on_pong(ping);
        outbox.disconnected();
        outbox.connected(2);
        let sent = drain(&outbox);
        assert!(matches!(sent[..], [ToBroker::RunLogs { first: 1, .. }]), "{sent:?}");
    }

    #[tokio::test]
    async fn without_a_connection_the_oldest_lines_go_and_a_line_says_so_but_ends_stay() {
        let outbox = Outbox::default();
        for batch in 0..20 {
            outbox.push_logs(run(1), LogStep::Run, batch, lines(1, LOG_BYTES_MAX / 10)).await;
        }
        outbox.report(run(1), hand_back());
        assert!(outbox.log_bytes() <= LOG_BYTES_MAX);
        outbox.connected(1);
        let sent = drain(&outbox);
        let ToBroker::RunLogs { first, lines, .. } = &sent[0] else { panic!("{sent:?}") };
        assert!(lines[0].text.contains("lines were lost"), "{}", lines[0].text);
        assert_eq!(lines.len(), 2);
        // The last batch is number 19, one line each.
        assert_eq!(*first + lines.len() as u64 + sent.len() as u64 - 2, 20);
        assert!(matches!(sent.last(), Some(ToBroker::HandBack { .. })));
    }

    #[tokio::test]
    async fn on_a_slow_connection_nothing_is_dropped_and_the_writer_waits() {
        let outbox = Outbox::default();
        outbox.connected(1);
        outbox.push_logs(run(1), LogStep::Run, 0, lines(1, LOG_BYTES_MAX - 100)).await;
        let second = outbox.push_logs(run(1), LogStep::Run, 1, lines(1, 1000));
        tokio::pin!(second);
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        drain(&outbox);
        outbox.on_pong(outbox.next_ping(0).unwrap());
        second.await;
        assert!(matches!(drain(&outbox)[..], [ToBroker::RunLogs { first: 1, .. }]));
    }

    #[tokio::test]
    async fn a_claim_belongs_to_its_connection_and_only_the_newest_is_sent() {
        let outbox = Outbox::default();
        outbox.connected(2);
        let free = |cpus_milli| Capacity { cpus_milli, ..Capacity::default() };
        outbox.claim(1, free(1), 0);
        assert_eq!(drain(&outbox).len(), 0);
        outbox.claim(2, free(1), 0);
        outbox.claim(2, free(2), 1);
        assert_eq!(drain(&outbox), [ToBroker::Claim { free: free(2), grants_seen: 1 }]);
    }
}
