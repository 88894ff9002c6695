//! What many tasks count together: delays, bytes, and what was wrong.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::history::WRONG_MAX;

/// Delays in milliseconds, as many as there are, in little memory.
pub(crate) struct Delays(Vec<AtomicU64>);

/// Longer ones are counted as this long, in milliseconds: a minute is as bad as an hour here.
const DELAY_MAX_MS: usize = 60_000;

impl Default for Delays {
    fn default() -> Self {
        Self((0..=DELAY_MAX_MS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Delays {
    /// Counts one.
    pub(crate) fn add(&self, ms: u64) {
        let index = usize::try_from(ms).unwrap_or(DELAY_MAX_MS).min(DELAY_MAX_MS);
        self.0[index].fetch_add(1, Ordering::Relaxed);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// The shortest that `per_mille` of 1,000 do not exceed.
    pub(crate) fn at(&self, per_mille: u64) -> u64 {
        let wanted = (self.count() * per_mille).div_ceil(1_000);
        let mut seen = 0;
        for (ms, count) in self.0.iter().enumerate() {
            seen += count.load(Ordering::Relaxed);
            if seen >= wanted.max(1) {
                return ms as u64;
            }
        }
        0
    }

    /// Median, 99th percentile and longest, as text.
    pub(crate) fn text(&self) -> String {
        format!("p50 {} ms, p99 {} ms, longest {} ms", self.at(500), self.at(990), self.at(1_000))
    }
}

/// A number that many tasks add to.
#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// Adds to it.
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// What it is.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What was wrong: all of it is counted, the first is told and kept.
#[derive(Default)]
pub(crate) struct Wrong {
    count: Count,
    first: Mutex<Vec<String>>,
}

impl Wrong {
    /// Something was wrong.
    pub(crate) fn say(&self, text: String) {
        self.count.add(1);
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if first.len() < WRONG_MAX {
            println!("  wrong: {text}");
            first.push(text);
        }
    }

    /// The same, of a list.
    pub(crate) fn say_all(&self, texts: Vec<String>) {
        texts.into_iter().for_each(|text| self.say(text));
    }

    /// Counts what was said elsewhere.
    pub(crate) fn add(&self, more: u64) {
        self.count.add(more);
    }

    /// The last line: what was promised, if it is so.
    pub(crate) fn verdict(&self, promise: &str) -> String {
        match self.count() {
            0 => format!("{promise}; 0 wrong"),
            count => format!("BAD: {count} wrong; it should have been: {promise}"),
        }
    }

    /// How much was wrong.
    pub(crate) fn count(&self) -> u64 {
        self.count.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_delays_that_so_many_do_not_exceed() {
        let delays = Delays::default();
        assert_eq!(delays.at(990), 0, "of nothing");
        (1..=100).for_each(|ms| delays.add(ms));
        assert_eq!([delays.at(0), delays.at(500), delays.at(990), delays.at(1_000)], [1, 50, 99, 100]);
        delays.add(u64::MAX);
        assert_eq!(delays.at(1_000), 60_000);
    }
}
