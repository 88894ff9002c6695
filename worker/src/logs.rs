//! A run's output on its way: bytes into lines, lines into batches for the broker, and the tail kept for the result.

mod split;
mod tail;

use std::sync::{Arc, Mutex, PoisonError};

use protocol::id::UnixMillis;
use protocol::native::{HeldRun, LogKind, LogLine, LogStep};

pub(crate) use split::Splitter;
pub(crate) use tail::{Tail, json_cost};

use crate::link::Outbox;

/// Lines are sent when there are so many bytes of them (the original's frame size) …
pub(crate) const BATCH_BYTES: usize = 16 * 1024;
/// … or when the first of them has waited so long: what a person reads as "at once".
pub(crate) const BATCH_WAIT_MS: u64 = 100;

/// A run's log: numbers the lines, hands them to the link, keeps the tail for the result.
#[derive(Clone, Debug)]
pub(crate) struct RunLog {
    run: HeldRun,
    outbox: Arc<Outbox>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    tail: Tail,
    next_build: u64,
    next_run: u64,
}

impl RunLog {
    /// An empty log. `next_run` is the number of its first container line: not 0 when an earlier process sent some.
    pub(crate) fn new(run: HeldRun, outbox: Arc<Outbox>, next_run: u64) -> Self {
        let state = State { next_run, ..State::default() };
        Self { run, outbox, state: Arc::new(Mutex::new(state)) }
    }

    /// Whose log it is.
    pub(crate) const fn run(&self) -> HeldRun {
        self.run
    }

    /// Keeps `lines` for the result (container output only) and sends them on; waits while the link is busy with others.
    pub(crate) async fn send(&self, step: LogStep, lines: Vec<LogLine>) {
        if lines.is_empty() {
            return;
        }
        if step.kind() == LogKind::Run {
            self.keep(&lines);
        }
        self.send_only(step, lines).await;
    }

    /// As [`Self::send`], for lines that an earlier process has sent: they only count for the result.
    pub(crate) fn keep(&self, lines: &[LogLine]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().for_each(|line| state.tail.push(line.clone()));
    }

    async fn send_only(&self, step: LogStep, lines: Vec<LogLine>) {
        let count = lines.len() as u64;
        let first = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let next = match step.kind() {
                LogKind::Build => &mut state.next_build,
                LogKind::Run => &mut state.next_run,
            };
            let first = *next;
            *next += count;
            first
        };
        self.outbox.push_logs(self.run, step, first, lines).await;
    }

    /// One line of the worker's own about the container's run, marked as standard error.
    pub(crate) async fn note(&self, text: impl Into<String>, at_ms: UnixMillis) {
        let line = LogLine { text: format!("{}\n", text.into()), at_ms, stderr: true };
        self.send(LogStep::Run, vec![line]).await;
    }

    /// The number that the next container line gets: how many were sent.
    pub(crate) fn run_lines(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).next_run
    }

    /// The lines for the result; the log is empty afterwards.
    pub(crate) fn take_result(&self) -> Vec<LogLine> {
        std::mem::take(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).tail).into_lines()
    }
}
