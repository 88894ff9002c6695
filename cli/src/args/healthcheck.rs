//! `gridsocket healthcheck`: whom to ask.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::serve::{LISTEN_DEFAULT, listen};
use super::setting::{Env, UsageError, setting};

/// Options of `gridsocket healthcheck`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where it listens; `0.0.0.0` is asked at 127.0.0.1 [env: GRIDSOCKET_LISTEN] [default: 127.0.0.1:8000]
    #[arg(value_name = "ADDR:PORT")]
    address: Option<String>,
}

impl Args {
    /// Applies argument > variable > default.
    pub(crate) fn address(&self, env: Env<'_>) -> Result<SocketAddr, UsageError> {
        let given = setting("ADDR:PORT", self.address.as_deref(), "GRIDSOCKET_LISTEN");
        let mut address = given.or(env, LISTEN_DEFAULT, listen)?;
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            IpAddr::V4(_) | IpAddr::V6(_) => {}
        }
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_everywhere_is_asked_here() {
        let of = |given: Option<&str>, variable: &str| {
            let args = Args { address: given.map(str::to_owned) };
            args.address(&|name| (name == "GRIDSOCKET_LISTEN").then(|| variable.to_owned()))
        };
        assert_eq!(of(None, "0.0.0.0:8080").unwrap().to_string(), "127.0.0.1:8080");
        assert_eq!(of(None, "[::]:8080").unwrap().to_string(), "[::1]:8080");
        assert_eq!(of(None, "").unwrap(), LISTEN_DEFAULT);
        assert_eq!(of(Some("127.0.0.2:1"), "0.0.0.0:8080").unwrap().to_string(), "127.0.0.2:1");
        assert_eq!(of(Some("8080"), "").unwrap_err().place, "ADDR:PORT");
    }
}
