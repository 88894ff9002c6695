//! What a build says, for all runs that wait for it: the last of it is kept, so that one that comes later sees it too.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use protocol::native::{LogLine, LogStep};
use tokio::sync::watch;

use crate::clock::unix_now;
use crate::logs::{RunLog, Tail};
use crate::sync::lock;

/// The most lines kept for runs that are slow or late, and the most bytes: as much as a result holds.
const LINES_MAX: usize = 10_000;
const BYTES_MAX: usize = 8 * 1024 * 1024;
/// How many lines a follower takes at a time.
const TAKE_MAX: usize = 256;

/// The log of one build. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct BuildLog {
    lines: Arc<Mutex<Lines>>,
    count: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Lines {
    /// The number of the oldest line kept.
    first: u64,
    kept: VecDeque<(LogStep, LogLine)>,
    bytes: usize,
}

/// Where one that follows a build's log stands.
#[derive(Debug)]
pub(super) struct Cursor {
    next: u64,
    count: watch::Receiver<u64>,
}

impl BuildLog {
    pub(super) fn new() -> Self {
        Self { lines: Arc::default(), count: watch::Sender::new(0) }
    }

    /// Adds a line; it needs no newline.
    pub(super) fn line(&self, step: LogStep, text: &str, stderr: bool) {
        let line = LogLine { text: format!("{}\n", text.trim_end_matches(['\n', '\r'])), at_ms: unix_now(), stderr };
        let mut lines = lock(&self.lines);
        lines.bytes += line.text.len();
        lines.kept.push_back((step, line));
        while lines.kept.len() > LINES_MAX || lines.bytes > BYTES_MAX {
            let Some((_, oldest)) = lines.kept.pop_front() else { break };
            lines.bytes -= oldest.text.len();
            lines.first += 1;
        }
        let count = lines.first + lines.kept.len() as u64;
        drop(lines);
        self.count.send_replace(count);
    }

    /// The start of the log, for one that follows it.
    pub(super) fn start(&self) -> Cursor {
        Cursor { next: 0, count: self.count.subscribe() }
    }

    /// Waits until there is more for `cursor`, and sends some of it on.
    pub(super) async fn follow(&self, cursor: &mut Cursor, to: &RunLog) {
        let next = cursor.next;
        // Open: the sender is here.
        let _ = cursor.count.wait_for(|count| *count > next).await;
        self.send_some(cursor, to).await;
    }

    /// Sends all there is for `cursor`.
    pub(super) async fn drain(&self, cursor: &mut Cursor, to: &RunLog) {
        while self.send_some(cursor, to).await {}
    }

    async fn send_some(&self, cursor: &mut Cursor, to: &RunLog) -> bool {
        let (missed, some) = self.after(cursor);
        if missed > 0 {
            let text = format!("[{missed} lines of the build are missing here]\n");
            to.send(LogStep::Build, vec![LogLine { text, at_ms: unix_now(), stderr: true }]).await;
        }
        let mut rest = some.into_iter().peekable();
        while let Some((step, first)) = rest.next() {
            let mut batch = vec![first];
            while let Some((_, line)) = rest.next_if(|(next, _)| *next == step) {
                batch.push(line);
            }
            to.send(step, batch).await;
        }
        *cursor.count.borrow() > cursor.next
    }

    fn after(&self, cursor: &mut Cursor) -> (u64, Vec<(LogStep, LogLine)>) {
        let lines = lock(&self.lines);
        let missed = lines.first.saturating_sub(cursor.next);
        let skip = usize::try_from(cursor.next.saturating_sub(lines.first)).unwrap_or(usize::MAX);
        let some: Vec<_> = lines.kept.iter().skip(skip).take(TAKE_MAX).cloned().collect();
        cursor.next += missed + some.len() as u64;
        (missed, some)
    }

    /// The lines for the result of a run whose image could not be built, with the cause as the last.
    pub(super) fn result(&self, why: &str) -> Vec<LogLine> {
        let mut tail = Tail::default();
        for (_, line) in &lock(&self.lines).kept {
            tail.push(line.clone());
        }
        tail.push(LogLine { text: format!("{why}\n"), at_ms: unix_now(), stderr: true });
        tail.into_lines()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_comes_late_sees_it_all_and_one_that_is_too_late_is_told_what_it_missed() {
        let log = BuildLog::new();
        (0..300).for_each(|n| log.line(LogStep::Build, &format!("{n}\n"), false));
        let mut cursor = log.start();
        let (missed, some) = log.after(&mut cursor);
        assert_eq!((missed, some.len()), (0, TAKE_MAX));
        assert_eq!(log.after(&mut cursor).1.len(), 300 - TAKE_MAX);
        assert_eq!(log.after(&mut cursor), (0, Vec::new()));
        (0..LINES_MAX).for_each(|n| log.line(LogStep::Clone, &format!("{n}"), true));
        assert_eq!(log.after(&mut log.start()).0, 300);
        assert_eq!(log.after(&mut cursor).1[0].1.text, "0\n");
    }

    #[test]
    fn memory_is_bounded_by_bytes_too() {
        let log = BuildLog::new();
        let long = "x".repeat(BYTES_MAX / 4);
        (0..9).for_each(|_| log.line(LogStep::Build, &long, false));
        assert!(lock(&log.lines).bytes <= BYTES_MAX);
        let result = log.result("no room");
        assert_eq!(result.last().unwrap().text, "no room\n");
    }
}
