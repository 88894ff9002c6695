//! How long to wait before connecting again. Pure but for the seed it is given.

use std::time::Duration;

/// The first retry is fast: most breaks are a broker that restarts.
const FIRST_MS: u64 = 50;
/// Further ones start here …
const BASE_MS: u64 = 1_000;
/// … double up to here: a broker that was down for long is found again within half a minute.
const MAX_MS: u64 = 30_000;

/// Delays that double, with jitter so that workers do not come back all at once.
#[derive(Debug)]
pub(super) struct Backoff {
    tries: u32,
    seed: u64,
}

impl Backoff {
    pub(super) fn new(seed: u64) -> Self {
        Self { tries: 0, seed: seed | 1 }
    }

    /// The connection stood: the next retry is fast again.
    pub(super) fn reset(&mut self) {
        self.tries = 0;
    }

    /// The next delay: half fixed, half random.
    pub(super) fn next_delay(&mut self) -> Duration {
        let ceiling = match self.tries {
            0 => FIRST_MS,
            n => BASE_MS.saturating_mul(1 << (n - 1).min(16)).min(MAX_MS),
        };
        self.tries = self.tries.saturating_add(1);
        // xorshift64 (Marsaglia, "Xorshift RNGs").
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        Duration::from_millis(ceiling / 2 + self.seed % (ceiling / 2 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_from_fast_to_half_a_minute_and_start_over() {
        let mut backoff = Backoff::new(42);
        let delays: Vec<u64> = (0..20).map(|_| u64::try_from(backoff.next_delay().as_millis()).unwrap()).collect();
        assert!(delays[0] <= FIRST_MS);
        assert!((BASE_MS / 2..=BASE_MS).contains(&delays[1]));
        assert!(delays[10..].iter().all(|&delay| (MAX_MS / 2..=MAX_MS).contains(&delay)));
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(FIRST_MS));
    }

    #[test]
    fn two_workers_wait_differently() {
        let (mut one, mut other) = (Backoff::new(1), Backoff::new(12_345));
        let delays = |backoff: &mut Backoff| (0..8).map(|_| backoff.next_delay()).collect::<Vec<_>>();
        assert_ne!(delays(&mut one), delays(&mut other));
    }
}
