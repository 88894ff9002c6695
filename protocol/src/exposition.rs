//! Prometheus's text format, as brokers and workers tell their numbers: each series with its help and its type.

use std::fmt::{Display, Write as _};

/// What an answer in this format is.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a series is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A value that goes up and down.
    Gauge,
    /// A count since the start.
    Counter,
}

/// What a histogram holds at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// How many took at most so many microseconds, step by step, each with those of the steps before.
    pub steps: Vec<(u64, u64)>,
    /// How many there were.
    pub count: u64,
    /// How long they took together, in microseconds.
    pub sum_us: u64,
}

/// A text that is being written. Names and labels are ours and need no escaping.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// The text.
    #[must_use]
    pub fn into_text(self) -> String {
        self.0
    }

    /// An empty line.
    pub fn empty_line(&mut self) {
        self.0.push('\n');
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A series of one value.
    pub fn metric(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.head(name, kind_name(kind), help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    /// A series of a value for each value of a label.
    pub fn labelled<'a>(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) {
        self.head(name, kind_name(kind), help);
        for (of, value) in values {
            let _ = writeln!(self.0, "{name}{{{label}=\"{of}\"}} {value}");
        }
    }

    /// A histogram, in seconds.
    pub fn histogram(&mut self, name: &str, help: &str, times: &Times) {
        self.head(name, "histogram", help);
        for (max_us, count) in &times.steps {
            let _ = writeln!(self.0, "{name}_bucket{{le=\"{}\"}} {count}", Seconds(*max_us));
        }
        let _ = writeln!(self.0, "{name}_bucket{{le=\"+Inf\"}} {}", times.count);
        let _ = writeln!(self.0, "{name}_sum {}\n{name}_count {}", Seconds(times.sum_us), times.count);
    }
}

const fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Gauge => "gauge",
        Kind::Counter => "counter",
    }
}

/// Microseconds, written exactly as seconds.
struct Seconds(u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whole, rest) = (self.0 / 1_000_000, self.0 % 1_000_000);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        let rest = format!("{rest:06}");
        write!(f, "{whole}.{}", rest.trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_written_in_seconds() {
        let mut text = Exposition::default();
        text.histogram("x", "Help", &Times { steps: vec![(500, 1), (1_000_000, 3)], count: 4, sum_us: 2_000_100 });
        let expected = "# HELP x Help\n# TYPE x histogram\nx_bucket{le=\"0.0005\"} 1\nx_bucket{le=\"1\"} 3\n\
                        x_bucket{le=\"+Inf\"} 4\nx_sum 2.0001\nx_count 4\n";
        assert_eq!(text.into_text(), expected);
    }
}
