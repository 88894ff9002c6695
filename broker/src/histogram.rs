//! How long something took, counted in steps: little enough to keep for ever, enough to see the slow ones.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use protocol::exposition::Times;

/// Up to how many microseconds each step counts: from what the fastest disks need for a sync to what is alarming on any.
const STEPS_US: [u64; 14] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000];

/// Times since the start.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    steps: [AtomicU64; STEPS_US.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    pub(crate) fn add(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(step) = STEPS_US.iter().zip(&self.steps).find_map(|(max, step)| (us <= *max).then_some(step)) {
            step.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(us, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn times(&self) -> Times {
        let mut below = 0;
        let steps = STEPS_US
            .iter()
            .zip(&self.steps)
            .map(|(max, step)| {
                below += step.load(Ordering::Relaxed);
                (*max, below)
            })
            .collect();
        // One that was added meanwhile must not be missing from the whole while it is in a step.
        let count = self.count.load(Ordering::Relaxed).max(below);
        Times { steps, count, sum_us: self.sum_us.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_counts_what_took_no_longer() {
        let histogram = Histogram::default();
        for us in [50, 51, 1_000, 2_000_000] {
            histogram.add(Duration::from_micros(us));
        }
        let times = histogram.times();
        let up_to = |us| times.steps.iter().find(|(max, _)| *max == us).unwrap().1;
        assert_eq!([up_to(50), up_to(100), up_to(500), up_to(1_000), up_to(1_000_000)], [1, 2, 2, 3, 3]);
        assert_eq!((times.count, times.sum_us), (4, 2_001_101));
    }
}
