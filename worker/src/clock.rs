//! The only reader of the clocks, and the reading of the engine's timestamps.
//!
//! How long something took, or may take, is never counted by the wall clock, which people and servers set. `tokio::time::Instant`
//! and [`awake_ms`] stand still while the machine sleeps, as containers do.

use std::sync::OnceLock;

use protocol::id::UnixMillis;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Now, by this machine's clock.
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub(crate) fn unix_now() -> UnixMillis {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// How long ago, in milliseconds, a moment was that was noted down by the wall clock. One far in the future was noted before the
/// clock was set back: nobody knows how long ago it was, so it was too long.
pub(crate) fn age_ms(noted: UnixMillis, now: UnixMillis) -> u64 {
    /// Two machines' clocks may differ by so much.
    const AHEAD_MS_MAX: u64 = 3_600_000;
    if noted.since(now) > AHEAD_MS_MAX { u64::MAX } else { now.since(noted) }
}

/// Milliseconds that this machine has been awake since it was started. Nobody can set this clock.
pub(crate) fn awake_ms() -> u64 {
    millis(clock_gettime(ClockId::Monotonic))
}

/// Milliseconds that this machine has slept since it was started.
pub(crate) fn asleep_ms() -> u64 {
    let awake = clock_gettime(ClockId::Monotonic);
    millis(clock_gettime(ClockId::Boottime)).saturating_sub(millis(awake))
}

/// Names this start of the machine: [`awake_ms`] counts from it. `None` where the system does not tell.
pub(crate) fn boot() -> Option<&'static str> {
    static BOOT: OnceLock<Option<String>> = OnceLock::new();
    let read = || {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(text.trim().to_owned()).filter(|id| !id.is_empty())
    };
    BOOT.get_or_init(read).as_deref()
}

fn millis(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(time.tv_nsec).unwrap_or_default();
    seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}

/// Reads a timestamp as the engine writes it: RFC 3339, any precision, `Z` or an offset.
///
/// `None` for anything else, and for times before 1970 (the engine's "never" is year 1).
pub(crate) fn parse_rfc3339(text: &str) -> Option<UnixMillis> {
    let (date, rest) = text.split_once('T')?;
    let mut parts = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    let zone_at = rest.find(['Z', '+', '-'])?;
    let (time, zone) = rest.split_at(zone_at);
    let (hms, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut parts = hms.splitn(3, ':').map(str::parse::<i64>);
    let (hour, minute, second) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    let millis: i64 = format!("{:0<3.3}", fraction).parse().ok()?;
    let seconds =
        days_from_civil(year, month, day)? * 86_400 + hour * 3600 + minute * 60 + second - offset_seconds(zone)?;
    u64::try_from(seconds.checked_mul(1000)?.checked_add(millis)?).ok().map(UnixMillis)
}

fn offset_seconds(zone: &str) -> Option<i64> {
    if zone == "Z" {
        return Some(0);
    }
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let seconds = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
    Some(if zone.starts_with('-') { -seconds } else { seconds })
}

/// Days since 1970-01-01 of a Gregorian date (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn days_from_civil(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || !(0..=9999).contains(&year) {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_awake_does_not_sleep() {
        let (awake, asleep) = (awake_ms(), asleep_ms());
        let until = awake + 20;
        while awake_ms() < until {
            std::thread::yield_now();
        }
        assert!(asleep_ms() - asleep < 20, "the two clocks go on together");
        assert_eq!(boot(), boot());
    }

    #[test]
    fn what_was_noted_before_the_clock_was_set_back_is_too_long_ago() {
        let now = UnixMillis(1_700_000_000_000);
        assert_eq!(age_ms(UnixMillis(now.0 - 5), now), 5);
        assert_eq!(age_ms(UnixMillis(now.0 + 60_000), now), 0, "another machine's clock is a little ahead");
        assert_eq!(age_ms(UnixMillis(now.0 * 2), now), u64::MAX);
    }

    #[test]
    fn engine_timestamps_are_read() {
        let read = |text| parse_rfc3339(text).map(|at| at.0);
        assert_eq!(read("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(read("2026-11-20T14:08:07.123456789Z"), Some(1_795_183_687_123));
        assert_eq!(read("2026-11-20T16:08:07.1+02:00"), Some(1_795_183_687_100));
        assert_eq!(read("2024-02-29T23:59:59.999Z"), Some(1_709_251_199_999));
        assert_eq!(read("0001-01-01T00:00:00Z"), None);
        assert_eq!(read("yesterday"), None);
        assert_eq!(read("2026-13-01T00:00:00Z"), None);
    }
}
