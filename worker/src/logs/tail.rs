//! The end of a log, for the result: bounded, with one line that says what is missing.

use std::collections::VecDeque;

use protocol::native::LogLine;

/// The most entries of a result's log.
pub(crate) const ENTRIES_MAX: usize = 10_000;
/// The most bytes of it, as JSON: with outputs and the rest it fits one frame of the socket.
pub(crate) const JSON_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Brackets, commas, the time and the flag of one entry.
const ENTRY_JSON_BYTES: usize = 28;

/// The last lines of a log.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    lines: VecDeque<LogLine>,
    bytes: usize,
    dropped: u64,
}

impl Tail {
    /// Adds a line, and drops the oldest ones when there are too many.
    pub(crate) fn push(&mut self, line: LogLine) {
        self.bytes += cost(&line);
        self.lines.push_back(line);
        while self.lines.len() > ENTRIES_MAX || self.bytes > JSON_BYTES_MAX {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= cost(&oldest);
            self.dropped += 1;
        }
    }

    /// The lines, after one about those dropped.
    pub(crate) fn into_lines(mut self) -> Vec<LogLine> {
        if self.dropped > 0 {
            let at_ms = self.lines.front().map(|line| line.at_ms).unwrap_or_default();
            let text = format!("[{} earlier lines are left out here; the job's log has them]\n", self.dropped);
            self.lines.push_front(LogLine { text, at_ms, stderr: true });
        }
        self.lines.into()
    }
}

fn cost(line: &LogLine) -> usize {
    json_cost(&line.text) + ENTRY_JSON_BYTES
}

/// How many bytes `text` has as a JSON string.
pub(crate) fn json_cost(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    };
    2 + text.bytes().map(escaped).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use protocol::id::UnixMillis;

    use super::*;

    fn line(text: impl Into<String>) -> LogLine {
        LogLine { text: text.into(), at_ms: UnixMillis(1_700_000_000_000), stderr: true }
    }

    #[test]
    fn a_short_log_is_whole() {
        let mut tail = Tail::default();
        tail.push(line("a\n"));
        assert_eq!(tail.into_lines(), [line("a\n")]);
    }

    #[test]
    fn a_long_log_keeps_its_end_and_says_so_once() {
        let mut tail = Tail::default();
        (0..ENTRIES_MAX + 5).for_each(|n| tail.push(line(format!("{n}\n"))));
        let lines = tail.into_lines();
        assert_eq!(lines.len(), ENTRIES_MAX + 1);
        assert!(lines[0].text.contains("5 earlier lines"));
        assert_eq!(lines[1].text, "5\n");
        assert_eq!(lines.last().unwrap().text, format!("{}\n", ENTRIES_MAX + 4));
    }

    #[test]
    fn the_bound_holds_for_the_json_however_hostile_the_bytes() {
        let mut tail = Tail::default();
        (0..1000).for_each(|_| tail.push(line("\u{1}\u{0}\"\\".repeat(1000))));
        let json = serde_json::to_string(&tail.into_lines()).unwrap();
        assert!(json.len() <= JSON_BYTES_MAX + 1024, "{}", json.len());
    }
}
