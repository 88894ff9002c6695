//! Who asks: the address that limits are counted by, and the address under which the asker knows this broker.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::http::{HeaderMap, header};

use crate::config::{AddressRange, Config};

/// Where a request comes from. In the extensions of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Client {
    /// The peer, or whom a trusted proxy says that it speaks for.
    address: IpAddr,
    /// Whether what the peer says about its client is believed.
    is_by_proxy: bool,
    /// Whether the peer is on this machine and speaks for itself. An address of this machine that a proxy told of proves
    /// nothing: it may have passed on what its client made up.
    is_here: bool,
}

impl Client {
    /// Who asks, over a connection from `peer`: going back through `X-Forwarded-For` for as long as the next one is trusted.
    pub(super) fn of(peer: IpAddr, headers: &HeaderMap, trusted: &[AddressRange]) -> Self {
        let is_trusted = |address: IpAddr| trusted.iter().any(|range| range.contains(address));
        let mut address = peer.to_canonical();
        let is_by_proxy = is_trusted(address);
        let is_here = address.is_loopback() && !(is_by_proxy && headers.contains_key("x-forwarded-for"));
        if is_by_proxy {
            let said = headers.get_all("x-forwarded-for").iter().rev();
            let hops = said.flat_map(|value| value.to_str().unwrap_or("?").rsplit(','));
            for hop in hops {
                let Some(before) = read_address(hop.trim()) else { break };
                address = before;
                if !is_trusted(address) {
                    break;
                }
            }
        }
        Self { address, is_by_proxy, is_here }
    }

    /// What limits per address are counted by; `None` for this machine, which has none. An IPv6 network counts as one: whoever
    /// has one address of it has all.
    pub(super) const fn counted(&self) -> Option<IpAddr> {
        match self.address {
            _ if self.is_here => None,
            IpAddr::V6(address) => Some(IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64))),
            IpAddr::V4(_) => Some(self.address),
        }
    }

    /// The start of this broker's addresses as the asker reaches it, without a slash at the end.
    pub(super) fn base_url(&self, headers: &HeaderMap, config: &Config) -> String {
        if let Some(url) = &config.public_url {
            return url.trim_end_matches('/').to_owned();
        }
        let text = |name| headers.get(name).and_then(|value: &axum::http::HeaderValue| value.to_str().ok());
        let proto = text("x-forwarded-proto").filter(|proto| self.is_by_proxy && *proto == "https");
        let host = text(header::HOST.as_str()).unwrap_or("localhost");
        format!("{}://{host}", proto.unwrap_or("http"))
    }
}

/// An address, as proxies write it: some add a port.
fn read_address(text: &str) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn address(peer: &str, forwarded: &[&'static str], trusted: &[&str]) -> String {
        let headers = forwarded
            .iter()
            .map(|value| ("x-forwarded-for".parse().unwrap(), HeaderValue::from_static(value)))
            .collect();
        let trusted: Vec<AddressRange> = trusted.iter().map(|range| range.parse().unwrap()).collect();
        Client::of(peer.parse().unwrap(), &headers, &trusted).address.to_string()
    }

    #[test]
    fn a_proxy_is_believed_only_when_it_is_trusted() {
        assert_eq!(address("192.0.2.1", &["198.51.100.7"], &[]), "192.0.2.1");
        assert_eq!(address("192.0.2.1", &["198.51.100.7"], &["192.0.2.2"]), "192.0.2.1");
        assert_eq!(address("192.0.2.1", &["198.51.100.7"], &["192.0.2.1"]), "198.51.100.7");
        assert_eq!(address("::ffff:127.0.0.1", &["198.51.100.7:4711"], &["127.0.0.1"]), "198.51.100.7");
        assert_eq!(address("127.0.0.1", &[], &["127.0.0.1"]), "127.0.0.1");
    }

    #[test]
    fn what_a_client_made_up_before_it_reached_the_proxy_does_not_count() {
        assert_eq!(address("10.0.0.1", &["127.0.0.1, 203.0.113.9"], &["10.0.0.0/8"]), "203.0.113.9");
        assert_eq!(address("10.0.0.1", &["127.0.0.1", "203.0.113.9, 10.0.0.2"], &["10.0.0.0/8"]), "203.0.113.9");
        assert_eq!(address("10.0.0.1", &["203.0.113.9, nonsense"], &["10.0.0.0/8"]), "10.0.0.1");
        assert_eq!(address("10.0.0.1", &["nonsense, 203.0.113.9"], &["0.0.0.0/0"]), "203.0.113.9");
    }

    #[test]
    fn this_machine_is_not_counted_and_a_network_counts_as_one() {
        let counted = |text: &str| Client::of(text.parse().unwrap(), &HeaderMap::new(), &[]).counted();
        assert_eq!(counted("127.0.0.9"), None);
        assert_eq!(counted("::1"), None);
        assert_eq!(counted("192.0.2.1"), Some("192.0.2.1".parse().unwrap()));
        assert_eq!(counted("2001:db8:1:2:3:4:5:6"), Some("2001:db8:1:2::".parse().unwrap()));
    }

    #[test]
    fn whoever_is_forwarded_as_this_machine_is_counted() {
        let counted = |peer: &str, forwarded: &'static str, trusted: &str| {
            let headers =
                [("x-forwarded-for".parse().unwrap(), HeaderValue::from_static(forwarded))].into_iter().collect();
            Client::of(peer.parse().unwrap(), &headers, &[trusted.parse().unwrap()]).counted()
        };
        let here = Some("127.0.0.1".parse().unwrap());
        assert_eq!(counted("10.0.0.1", "127.0.0.1", "10.0.0.1"), here);
        assert_eq!(counted("127.0.0.1", "127.0.0.1", "127.0.0.1"), here);
        assert_eq!(counted("127.0.0.1", "nonsense", "127.0.0.1"), here);
        assert_eq!(counted("127.0.0.1", "203.0.113.9", "10.0.0.1"), None, "nobody is asked to believe this one");
    }

    #[test]
    fn the_brokers_own_address_is_what_was_asked_for_unless_it_is_set() {
        let mut config = Config::new("unused");
        let mut headers: HeaderMap =
            [(header::HOST, HeaderValue::from_static("grid.example:8000"))].into_iter().collect();
        headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
        let mut client = Client { address: "192.0.2.1".parse().unwrap(), is_by_proxy: false, is_here: false };
        assert_eq!(client.base_url(&headers, &config), "http://grid.example:8000");
        client.is_by_proxy = true;
        assert_eq!(client.base_url(&headers, &config), "https://grid.example:8000");
        config.public_url = Some("https://public.example/".to_owned());
        assert_eq!(client.base_url(&headers, &config), "https://public.example");
    }
}
