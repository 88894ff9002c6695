//! Random numbers from a seed that is printed, so that a bad run can be had again.
#![allow(dead_code, reason = "each example uses its part")]

use std::time::Duration;

/// SplitMix64: small, fast, good enough to choose loads with.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A seed from the process and the time, for when none is given.
    pub(crate) fn seed() -> u64 {
        let now = broker::clock::now().0;
        Self(now ^ (u64::from(std::process::id()) << 40)).next() % 1_000_000_000
    }

    /// The next number.
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A generator of its own, for one task among many.
    pub(crate) const fn fork(&mut self) -> Self {
        Self(self.next())
    }

    /// A number from `from` up to and without `to`, which is larger.
    pub(crate) const fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from)
    }

    /// As [`Random::between`], for sizes and positions.
    pub(crate) fn index(&mut self, from: usize, to: usize) -> usize {
        usize::try_from(self.between(from as u64, to as u64)).unwrap_or(from)
    }

    /// True in that many of 100 cases.
    pub(crate) const fn percent(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    /// A time from `from` up to and without `to` milliseconds.
    pub(crate) const fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.between(from, to))
    }
}
