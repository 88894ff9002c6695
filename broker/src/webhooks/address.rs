//! Where a call may go: the form of its address, and which machines are anyone's business.
//!
//! A stranger who may name an address must not reach through the broker what it could not reach itself. A name is judged by
//! the addresses that it leads to, when the connection is made, and the connection goes to one of those that were judged.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use protocol::reach::{is_public, is_this_machine};
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::limits::URL_BYTES_MAX;
use crate::config::AddressRange;

/// Why an address is not called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AddressError {
    /// Longer than anyone needs.
    #[error("is {0} bytes long, the limit is {URL_BYTES_MAX}")]
    TooLong(usize),
    /// No address at all.
    #[error("is no address; write one such as https://example.org/hook")]
    NotAnAddress,
    /// Something else than the web.
    #[error("must start with https:// or http://")]
    Scheme,
    /// An address of the broker's own network.
    #[error(
        "leads to a private address; this broker calls public ones, and others only if it was started with --allow-webhooks-to"
    )]
    Private,
    /// A redirect that gives up what TLS promised.
    #[error("redirects from https to http")]
    Downgrade,
    /// A name that leads nowhere.
    #[error("has a host that leads nowhere")]
    Nowhere,
}

/// Which addresses may be called.
#[derive(Clone, Debug, Default)]
pub(super) struct Policy {
    /// Whether the broker's own network may be called too.
    pub(super) allows_private: bool,
    /// What of it may be called otherwise.
    pub(super) exceptions: Arc<[AddressRange]>,
    /// Names that are known without asking.
    pub(super) hosts: Arc<BTreeMap<String, Vec<IpAddr>>>,
}

impl Policy {
    /// Reads an address and judges what can be judged without asking anyone.
    pub(super) fn read(&self, text: &str) -> Result<Url, AddressError> {
        if text.len() > URL_BYTES_MAX {
            return Err(AddressError::TooLong(text.len()));
        }
        let url = Url::parse(text).map_err(|_| AddressError::NotAnAddress)?;
        self.judge(&url)?;
        Ok(url)
    }

    /// Where a redirect leads.
    pub(super) fn follow(&self, from: &Url, location: &str) -> Result<Url, AddressError> {
        if location.len() > URL_BYTES_MAX {
            return Err(AddressError::TooLong(location.len()));
        }
        let to = from.join(location).map_err(|_| AddressError::NotAnAddress)?;
        self.judge(&to)?;
        // The body holds the queue's name.
        if from.scheme() == "https" && to.scheme() != "https" { Err(AddressError::Downgrade) } else { Ok(to) }
    }

    fn judge(&self, url: &Url) -> Result<(), AddressError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(AddressError::Scheme);
        }
        let host = host_of(url).ok_or(AddressError::NotAnAddress)?;
        if self.allows_private {
            return Ok(());
        }
        // However it was written: the parser knows 0x7f.1, 2130706433 and [::ffff:7f00:1] for what they are.
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let is_private = match literal {
            Ok(address) => !self.allows(address),
            Err(_) => is_this_machine(&host) && !self.allows_some_of_this_machine(),
        };
        if is_private { Err(AddressError::Private) } else { Ok(()) }
    }

    /// Whether there is an exception that a name of this machine can lead to; whether it does is judged when it is called.
    fn allows_some_of_this_machine(&self) -> bool {
        [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].into_iter().any(|address| self.allows(address))
    }

    fn allows(&self, address: IpAddr) -> bool {
        self.allows_private || is_public(address) || self.exceptions.iter().any(|range| range.contains(address))
    }

    /// Of the addresses that a name leads to, those that may be called.
    fn allowed(&self, found: impl Iterator<Item = IpAddr>) -> Result<Vec<IpAddr>, AddressError> {
        let mut led_somewhere = false;
        let found = found.inspect(|_| led_somewhere = true);
        let allowed: Vec<IpAddr> = found.filter(|address| self.allows(*address)).collect();
        match (allowed.is_empty(), led_somewhere) {
            (false, _) => Ok(allowed),
            (true, true) => Err(AddressError::Private),
            (true, false) => Err(AddressError::Nowhere),
        }
    }

    async fn look_up(self, name: String) -> Result<Vec<IpAddr>, Box<dyn std::error::Error + Send + Sync>> {
        if let Some(known) = self.hosts.get(name.trim_end_matches('.')) {
            return Ok(self.allowed(known.iter().copied())?);
        }
        let found = tokio::net::lookup_host((name, 0)).await?;
        Ok(self.allowed(found.map(|address| address.ip()))?)
    }
}

impl Resolve for Policy {
    fn resolve(&self, name: Name) -> Resolving {
        let looked_up = self.clone().look_up(name.as_str().to_owned());
        Box::pin(async move {
            let allowed = looked_up.await?;
            let addrs: Addrs = Box::new(allowed.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addrs)
        })
    }
}

/// The host of an address, as calls to it are counted.
pub(super) fn host_of(url: &Url) -> Option<Box<str>> {
    let host = url.host_str()?.trim_end_matches('.');
    (!host.is_empty()).then(|| host.to_ascii_lowercase().into())
}

/// The address without what may be a secret in it: user, password, query, fragment.
pub(super) fn shown(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return String::new() };
    url.set_query(None);
    url.set_fragment(None);
    // An address with a host takes both.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public() -> Policy {
        Policy::default()
    }

    #[test]
    fn what_is_of_the_public_internet_may_be_called() {
        for url in [
            "https://example.org/hook?k=1",
            "http://example.org:8080",
            "https://93.184.216.34/",
            "https://[2606:2800:220:1::1]/x",
            "http://[64:ff9b::5db8:d822]/",
            "http://172.32.0.1/",
            "http://100.128.0.1/",
            "https://user:secret@example.org/",
        ] {
            assert!(public().read(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn private_addresses_are_refused_in_every_spelling() {
        for host in [
            "127.0.0.1",
            "127.1",
            "0x7f.1",
            "0x7f000001",
            "2130706433",
            "017700000001",
            "0177.0.0.01",
            "127.0.0.1.",
            "%31%32%37.0.0.1",
            "①②⑦.0.0.1",
            "127。0。0。1",
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "0.0.0.0",
            "0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "169.254.169.254",
            "168.63.129.16",
            "0xa9fea9fe",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "[::]",
            "[::1]",
            "[::127.0.0.1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:a9fe:a9fe]",
            "[0:0:0:0:0:ffff:10.0.0.1]",
            "[64:ff9b::10.0.0.1]",
            "[64:ff9b:1::1]",
            "[100::1]",
            "[2001::1]",
            "[2001:db8::1]",
            "[2002:7f00:1::]",
            "[3fff::1]",
            "[fc00::1]",
            "[fd12:3456::1]",
            "[fe80::1]",
            "[fec0::1]",
            "[ff02::1]",
        ] {
            for url in [format!("http://{host}/"), format!("https://user:pw@{host}:8443/x")] {
                assert_eq!(public().read(&url), Err(AddressError::Private), "{url}");
                let open = Policy { allows_private: true, ..Policy::default() };
                assert!(open.read(&url).is_ok(), "{url}");
            }
        }
    }

    #[test]
    fn what_is_no_web_address_is_refused() {
        for (text, why) in [
            ("", AddressError::NotAnAddress),
            ("/hook", AddressError::NotAnAddress),
            ("example.org/hook", AddressError::NotAnAddress),
            ("http://", AddressError::NotAnAddress),
            ("ftp://example.org/", AddressError::Scheme),
            ("file:///etc/passwd", AddressError::Scheme),
            ("gopher://example.org/", AddressError::Scheme),
            ("javascript:alert(1)", AddressError::Scheme),
        ] {
            assert_eq!(public().read(text), Err(why), "{text}");
        }
        let long = |bytes: usize| format!("https://example.org/{}", "x".repeat(bytes - 20));
        assert!(public().read(&long(URL_BYTES_MAX)).is_ok());
        assert_eq!(public().read(&long(URL_BYTES_MAX + 1)), Err(AddressError::TooLong(URL_BYTES_MAX + 1)));
    }

    #[test]
    fn a_redirect_is_judged_like_an_address_and_keeps_to_tls() {
        let from = public().read("https://example.org/a/b").unwrap();
        assert_eq!(public().follow(&from, "../c").unwrap().as_str(), "https://example.org/c");
        assert_eq!(public().follow(&from, "https://other.org/").unwrap().as_str(), "https://other.org/");
        assert_eq!(public().follow(&from, "http://other.org/"), Err(AddressError::Downgrade));
        assert_eq!(public().follow(&from, "//169.254.169.254/latest"), Err(AddressError::Private));
        assert_eq!(public().follow(&from, "file:///etc/passwd"), Err(AddressError::Scheme));
    }

    #[test]
    fn a_name_may_lead_to_public_addresses_only() {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let allowed = |texts: &[&str]| public().allowed(addresses(texts).into_iter());
        assert_eq!(allowed(&["127.0.0.1", "93.184.216.34"]), Ok(addresses(&["93.184.216.34"])), "only those are left");
        assert_eq!(allowed(&["10.0.0.1", "::1"]), Err(AddressError::Private));
        assert_eq!(allowed(&[]), Err(AddressError::Nowhere));
    }

    #[test]
    fn what_the_operator_excepts_may_be_called_and_its_neighbours_may_not() {
        let exceptions = ["10.1.0.0/16", "::1"].map(|range| range.parse().unwrap());
        let policy = Policy { exceptions: Arc::new(exceptions), ..Policy::default() };
        for url in ["http://10.1.2.3/", "http://[::ffff:10.1.2.3]/", "http://[::1]:80/", "https://example.org/"] {
            assert!(policy.read(url).is_ok(), "{url}");
        }
        for url in ["http://10.2.0.1/", "http://127.0.0.1/"] {
            assert_eq!(policy.read(url), Err(AddressError::Private), "{url}");
        }
        assert!(policy.read("http://localhost/").is_ok(), "where it leads is judged when it is called");
        let led = policy.allowed(["127.0.0.1", "::1"].map(|address| address.parse().unwrap()).into_iter()).unwrap();
        assert_eq!(led, ["::1".parse::<IpAddr>().unwrap()], "to what is excepted, and to nothing else");
        let elsewhere = Policy { exceptions: Arc::new(["10.1.0.0/16".parse().unwrap()]), ..Policy::default() };
        assert_eq!(elsewhere.read("http://localhost/"), Err(AddressError::Private));
    }

    #[test]
    fn what_is_shown_of_an_address_holds_no_secret() {
        assert_eq!(shown("https://user:pw@example.org:8443/a/b?token=x#y"), "https://example.org:8443/a/b");
    }
}
