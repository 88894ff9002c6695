//! Times and tries, counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Up to how many microseconds each step counts: from a start without a network to an image that took half an hour.
pub(super) const STEPS_US: [u64; 13] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
];

/// How long something took, in steps.
#[derive(Debug, Default)]
pub(super) struct Steps {
    steps: [u64; STEPS_US.len()],
    pub(super) count: u64,
    pub(super) sum_us: u64,
}

impl Steps {
    pub(super) fn add(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(step) = STEPS_US.iter().position(|max| us <= *max) {
            self.steps[step] += 1;
        }
        self.count += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// How many took at most so long, each with those of the steps before.
    pub(super) fn cumulated(&self) -> Vec<(u64, u64)> {
        let mut below = 0;
        let with_those_before = |(max, count): (&u64, &u64)| {
            below += count;
            (*max, below)
        };
        STEPS_US.iter().zip(&self.steps).map(with_those_before).collect()
    }
}

/// How often something was tried, and how often it failed. Clones share the count.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Arc<[AtomicU64; 2]>);

impl Tally {
    /// Counts a try that came to its end.
    pub(crate) fn count<T, E>(&self, ended: &Result<T, E>) {
        self.0[0].fetch_add(1, Ordering::Relaxed);
        if ended.is_err() {
            self.0[1].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tries and failures.
    pub(crate) fn get(&self) -> (u64, u64) {
        (self.0[0].load(Ordering::Relaxed), self.0[1].load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_counts_what_took_no_longer() {
        let mut steps = Steps::default();
        for ms in [100, 101, 4_000, 3_600_000] {
            steps.add(Duration::from_millis(ms));
        }
        let of = |us| steps.cumulated().into_iter().find(|(max, _)| *max == us).unwrap().1;
        assert_eq!([of(100_000), of(250_000), of(5_000_000), of(1_800_000_000)], [1, 2, 3, 3]);
        assert_eq!((steps.count, steps.sum_us), (4, 3_604_201_000));
    }

    #[test]
    fn tries_and_failures_are_counted() {
        let tally = Tally::default();
        tally.clone().count(&Ok::<(), ()>(()));
        tally.count(&Err::<(), ()>(()));
        assert_eq!(tally.get(), (2, 1));
    }
}
