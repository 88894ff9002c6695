//! A laptop that was closed: its sockets are dead, but look alive for as long as silence is put up with. So sleep itself is
//! noticed, by the clock that counts it, and the line is made anew at once.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// How often it is looked for: what a person does not notice.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A shorter sleep breaks no line: the broker waits for longer than that.
const SLEPT_MS_MIN: u64 = 5_000;

/// Waits until the machine wakes up from a sleep; says how long that was. `asleep_ms` counts all sleep so far.
pub(super) async fn woke(asleep_ms: impl Fn() -> u64) -> Duration {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before_ms = asleep_ms();
    loop {
        tick.tick().await;
        let now_ms = asleep_ms();
        let slept_ms = now_ms.saturating_sub(before_ms);
        if slept_ms >= SLEPT_MS_MIN {
            return Duration::from_millis(slept_ms);
        }
        before_ms = now_ms;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sleep_is_noticed_within_a_second_of_waking_and_no_sleep_never() {
        let asleep = AtomicU64::new(1_000_000);
        let read = || asleep.load(Ordering::Relaxed);
        assert!(timeout(Duration::from_secs(3600), woke(read)).await.is_err(), "it was awake all the time");
        let mut woken = Box::pin(woke(read));
        assert!(timeout(Duration::from_millis(1500), &mut woken).await.is_err());
        asleep.fetch_add(8 * 3600 * 1000, Ordering::Relaxed);
        let waking = Instant::now();
        let slept = timeout(Duration::from_secs(60), woken).await;
        assert_eq!(slept, Ok(Duration::from_secs(8 * 3600)));
        assert!(waking.elapsed() <= LOOK_EVERY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_nap_breaks_no_line() {
        let asleep = AtomicU64::new(0);
        let mut woken = Box::pin(woke(|| asleep.load(Ordering::Relaxed)));
        for _ in 0..10 {
            assert!(timeout(Duration::from_secs(2), &mut woken).await.is_err());
            asleep.fetch_add(SLEPT_MS_MIN - 1, Ordering::Relaxed);
        }
    }
}
