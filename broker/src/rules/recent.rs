//! How long runs took lately: what estimates are made of.

use std::collections::VecDeque;

/// How many runs are looked back at: enough for a median that one odd run does not move.
const RUNS_MAX: usize = 63;

/// The durations of the last runs, from claim to end, in milliseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct RecentRuns(VecDeque<u64>);

impl RecentRuns {
    pub(crate) fn push(&mut self, ms: u64) {
        if self.0.len() == RUNS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(ms);
    }

    /// The median, and of how many.
    pub(crate) fn median(&self) -> Option<(u64, u32)> {
        let mut sorted: Vec<_> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let median = *sorted.get(sorted.len() / 2)?;
        Some((median, u32::try_from(sorted.len()).ok()?))
    }
}
