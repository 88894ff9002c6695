//! How many requests each address may make: a steady rate with room for bursts, in a bounded table.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::time::Instant;

use super::error::ApiError;

/// How much may come at once, in seconds' worth: a page that loads, a script that starts.
const BURST: Duration = Duration::from_secs(5);

/// The most addresses that are remembered. Those that have been quiet go first; were all of them busy, no limit per address
/// would help any more.
const ADDRESSES_MAX: usize = 65_536;

/// The requests of all addresses.
#[derive(Debug)]
pub(super) struct Rates {
    per_second: u32,
    /// When each address will have used up no more than its due: the further ahead, the more it has asked lately.
    even_at: Mutex<HashMap<IpAddr, Instant>>,
}

impl Rates {
    pub(super) fn new(per_second: u32) -> Self {
        Self { per_second: per_second.max(1), even_at: Mutex::default() }
    }

    /// Counts one more request of an address.
    ///
    /// # Errors
    ///
    /// 429 when there were too many; this one is not counted then.
    pub(super) fn count(&self, address: IpAddr, now: Instant) -> Result<(), ApiError> {
        let mut even_at = self.even_at.lock().unwrap_or_else(PoisonError::into_inner);
        if even_at.len() >= ADDRESSES_MAX && !even_at.contains_key(&address) {
            even_at.retain(|_, even_at| *even_at > now);
            if even_at.len() >= ADDRESSES_MAX {
                return Ok(());
            }
        }
        let even = even_at.entry(address).or_insert(now);
        let next = (*even).max(now) + Duration::from_secs(1) / self.per_second;
        if next.duration_since(now) > BURST {
            let message = format!(
                "this address makes more than {} requests a second, which is the limit; wait, and behind a proxy see --trusted-proxy",
                self.per_second
            );
            return Err(ApiError::request(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", message));
        }
        *even = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_taken_then_the_rate_holds() {
        let rates = Rates::new(10);
        let now = Instant::now();
        let [one, other]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        let taken = |address, at: Instant| (0..1000).take_while(|_| rates.count(address, at).is_ok()).count();
        assert_eq!(taken(one, now), 50);
        assert_eq!(taken(one, now + Duration::from_millis(100)), 1);
        assert_eq!(taken(one, now + Duration::from_millis(1100)), 10);
        assert_eq!(taken(other, now), 50, "others are not held up");
        assert_eq!(taken(one, now + Duration::from_secs(100)), 50);
    }

    #[test]
    fn addresses_that_have_been_quiet_are_forgotten() {
        let rates = Rates::new(10);
        let now = Instant::now();
        for number in 0..ADDRESSES_MAX {
            let address = std::net::Ipv4Addr::from_bits(u32::try_from(number).unwrap());
            rates.count(address.into(), now).unwrap();
        }
        rates.count("192.0.2.1".parse().unwrap(), now + Duration::from_secs(1)).unwrap();
        assert_eq!(rates.even_at.lock().unwrap().len(), 1);
    }
}
