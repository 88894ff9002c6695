//! The only reader of the wall clock; everything else is given a time.

use protocol::id::UnixMillis;

/// Now, in milliseconds since 1970-01-01 UTC. Not monotonic: whoever stores times keeps them from going back.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place that asks the system")]
pub fn now() -> UnixMillis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
