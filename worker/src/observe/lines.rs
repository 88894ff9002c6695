//! What was logged of late: a bounded number of lines, for whoever looks. Whoever set up the logging writes them here.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::board::tidy;
use super::snapshot::Line;
use crate::clock::unix_now;
use crate::sync::lock;

/// How many lines are kept: more than fit on a screen.
const LINES_MAX: usize = 100;
/// The longest that a line may be: the rest is in the log itself.
const LINE_CHARS_MAX: usize = 400;

/// The last lines of the log. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Recent(Arc<Mutex<VecDeque<Line>>>);

impl Recent {
    /// Adds a line of the log.
    pub fn push(&self, level: &str, text: &str) {
        let line = Line { at_ms: unix_now().0, level: level.to_owned(), text: tidy(text.trim(), LINE_CHARS_MAX) };
        let mut lines = lock(&self.0);
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// The lines, the oldest first.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        lock(&self.0).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lines_are_kept_each_in_one_line() {
        let recent = Recent::default();
        for number in 0..LINES_MAX + 5 {
            recent.push("INFO", &format!("{number}\nsecond {}", "x".repeat(LINE_CHARS_MAX)));
        }
        let lines = recent.lines();
        assert_eq!(lines.len(), LINES_MAX);
        assert!(lines[0].text.starts_with("5 second"), "{:?}", lines[0]);
        assert!(lines.iter().all(|line| line.text.chars().count() <= LINE_CHARS_MAX && !line.text.contains('\n')));
    }
}
