//! The only reader of the wall clock, and the reading of the engine's timestamps.

use protocol::id::UnixMillis;

/// Now, by this machine's clock.
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub(crate) fn unix_now() -> UnixMillis {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
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
