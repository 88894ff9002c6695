//! The numbers that webhooks go by.

use std::time::Duration;

use protocol::id::UnixMillis;

/// The longest address, in bytes: what servers commonly take.
pub const URL_BYTES_MAX: usize = 2048;

/// Bounds on webhooks.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How often a call is tried before it is put away as a dead letter. Default: 5.
    pub tries_max: u32,
    /// How long one try may take, redirects included. Default: 10 s.
    pub timeout: Duration,
    /// The wait after the first try; the later ones are 10, 60, 600 and 3,600 times that, each up to a quarter longer.
    /// Default: 1 s, so that five tries span about 11 minutes, which a restarted receiver needs.
    pub wait: Duration,
    /// The largest payload of one call, in bytes. Default: 64 KiB; it is a reminder of what to do next, not data.
    pub payload_bytes_max: usize,
    /// The most webhooks that wait in all queues, dead letters included. Default: 50,000, about 30 MB of memory.
    pub count_max: usize,
    /// The most that wait in one queue. Default: 10,000, so that five queues cannot take everyone's room.
    pub per_queue_max: usize,
    /// The most bytes of their files. Default: 1 GiB.
    pub bytes_max: u64,
    /// The most dead letters that a queue keeps; the oldest go. Default: 1,000, more than anyone reads.
    pub dead_per_queue_max: usize,
    /// How long dead letters are kept. Default: 28 days, as long as results.
    pub dead_stays: Duration,
    /// The most calls under way at once. Default: 32.
    pub at_once_max: usize,
    /// The most of them to one host: a slow one must leave room for others. Default: 2.
    pub per_host_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tries_max: 5,
            timeout: Duration::from_secs(10),
            wait: Duration::from_secs(1),
            payload_bytes_max: 64 * 1024,
            count_max: 50_000,
            per_queue_max: 10_000,
            bytes_max: 1024 * 1024 * 1024,
            dead_per_queue_max: 1000,
            dead_stays: Duration::from_secs(28 * 24 * 60 * 60),
            at_once_max: 32,
            per_host_max: 2,
        }
    }
}

/// How many times the first wait each wait is.
const WAITS: [u64; 5] = [1, 10, 60, 600, 3600];

impl Limits {
    /// When to try again after so many tries. `salt` makes calls that failed together come back apart.
    pub(super) fn next_try(&self, now: UnixMillis, tries: u32, salt: u64) -> UnixMillis {
        let index = usize::try_from(tries.saturating_sub(1)).unwrap_or(usize::MAX).min(WAITS.len() - 1);
        let first_ms = u64::try_from(self.wait.as_millis()).unwrap_or(u64::MAX);
        let wait_ms = first_ms.saturating_mul(WAITS[index]);
        let jitter_ms = (wait_ms / 4).checked_mul(salt % 1024).map_or(0, |jitter| jitter / 1024);
        now.plus(wait_ms.saturating_add(jitter_ms))
    }

    /// How long dead letters are kept, in milliseconds.
    pub(super) fn dead_stays_ms(&self) -> u64 {
        u64::try_from(self.dead_stays.as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_are_at_most_a_quarter_longer_than_said() {
        let limits = Limits::default();
        let wait = |tries, salt| limits.next_try(UnixMillis(0), tries, salt).0;
        for (tries, expected) in [(1, 1_000), (2, 10_000), (3, 60_000), (4, 600_000), (5, 3_600_000), (9, 3_600_000)] {
            for salt in [0, 1, 511, 1023, u64::MAX] {
                assert!((expected..=expected + expected / 4).contains(&wait(tries, salt)), "{tries} {salt}");
            }
        }
        assert_ne!(wait(3, 1), wait(3, 900), "those that failed together come back apart");
    }
}
