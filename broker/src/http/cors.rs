//! Which pages may talk to the broker.
//!
//! A remote broker lets every page in: the name of a queue is the key. A local one runs containers on the machine that it
//! is on and has no key, so only its own page, pages served from the same machine, and origins it was told of may use it.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;

use super::reply;
use crate::config::{Config, Flavour};

const ALLOW_ORIGIN: HeaderName = header::ACCESS_CONTROL_ALLOW_ORIGIN;
const ALLOW_HEADERS: HeaderName = header::ACCESS_CONTROL_ALLOW_HEADERS;

/// The rules of one broker.
pub(super) struct Cors {
    config: Arc<Config>,
}

/// Where a request comes from.
pub(super) enum Origin {
    /// Not from a page, or from one of any origin at a broker that takes all.
    Anyone,
    /// From a page that may use this broker.
    Allowed(HeaderValue),
    /// From a page that may not.
    Foreign,
}

impl Origin {
    pub(super) const fn is_foreign(&self) -> bool {
        matches!(self, Self::Foreign)
    }
}

impl Cors {
    pub(super) fn new(config: &Arc<Config>) -> Self {
        Self { config: Arc::clone(config) }
    }

    /// Judges where a request comes from.
    pub(super) fn origin(&self, headers: &HeaderMap) -> Origin {
        match (self.config.flavour, headers.get(header::ORIGIN)) {
            (Flavour::Remote, _) | (Flavour::Local, None) => Origin::Anyone,
            (Flavour::Local, Some(origin)) => {
                let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
                let allowed = origin.to_str().is_ok_and(|origin| self.allows(origin, host));
                if allowed { Origin::Allowed(origin.clone()) } else { Origin::Foreign }
            }
        }
    }

    /// Whether the request was sent to an address that is this broker's own.
    ///
    /// A page whose name was made to point at this machine sends its reads without an origin, for to the browser they are its
    /// own; only the name that it asked for gives it away.
    pub(super) fn knows_host(&self, peer: IpAddr, headers: &HeaderMap) -> bool {
        if self.config.flavour == Flavour::Remote {
            return true;
        }
        let Some(host) = headers.get(header::HOST) else { return true };
        let Ok(host) = host.to_str() else { return false };
        // Someone in the same network, or this machine through a published port of a container.
        if !peer.to_canonical().is_loopback() && is_private_name(host_of(host)) {
            return true;
        }
        let mut listed = self.config.allowed_origins.iter().chain(&self.config.public_url);
        let authority =
            |origin: &String| -> Option<String> { Some(origin.split_once("://")?.1.split('/').next()?.to_owned()) };
        is_this_machine(host)
            || is_address(host)
            // What Docker calls the machine that it is on, inside containers.
            || host_of(host).eq_ignore_ascii_case("host.docker.internal")
            || listed.any(|origin| authority(origin).is_some_and(|known| known.eq_ignore_ascii_case(host)))
    }

    fn allows(&self, origin: &str, host: Option<&str>) -> bool {
        let listed = self.config.allowed_origins.iter().chain(&self.config.public_url);
        if listed.map(|listed| listed.trim_end_matches('/')).any(|listed| listed.eq_ignore_ascii_case(origin)) {
            return true;
        }
        let Some((_, authority)) = origin.split_once("://") else { return false };
        // The page's own address counts only as a number: a name can be made to point here by whoever owns it.
        is_this_machine(authority) || (host == Some(authority) && is_address(authority))
    }

    /// Adds what lets the page read the answer.
    pub(super) fn allow(&self, origin: &Origin, headers: &mut HeaderMap) {
        match (self.config.flavour, origin) {
            (Flavour::Remote, _) => {
                headers.insert(ALLOW_ORIGIN, HeaderValue::from_static("*"));
                headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(reply::HEAD_NAME));
            }
            (Flavour::Local, Origin::Allowed(origin)) => {
                headers.insert(ALLOW_ORIGIN, origin.clone());
                headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
                headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(reply::HEAD_NAME));
                headers.append(header::VARY, HeaderValue::from_static("Origin"));
            }
            (Flavour::Local, Origin::Anyone | Origin::Foreign) => {}
        }
    }

    /// The answer to `OPTIONS`, whatever the address.
    pub(super) fn preflight(&self, origin: &Origin, asked: &HeaderMap) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        let wanted = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        match self.config.flavour {
            Flavour::Remote => {
                headers.insert(
                    header::ACCESS_CONTROL_ALLOW_METHODS,
                    HeaderValue::from_static("GET,HEAD,PUT,POST,DELETE,PATCH"),
                );
                if let Some(wanted) = wanted {
                    headers.insert(ALLOW_HEADERS, wanted);
                }
                headers.insert(header::VARY, HeaderValue::from_static("Access-Control-Request-Headers"));
            }
            Flavour::Local => {
                headers.insert(
                    header::ACCESS_CONTROL_ALLOW_METHODS,
                    HeaderValue::from_static("GET, HEAD, POST, PUT, OPTIONS"),
                );
                headers.insert(ALLOW_HEADERS, wanted.unwrap_or(HeaderValue::from_static("*")));
                headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
                // Browsers ask this of pages from the internet that reach into a private network.
                if matches!(origin, Origin::Allowed(_)) && asked.contains_key("access-control-request-private-network")
                {
                    headers.insert("access-control-allow-private-network", HeaderValue::from_static("true"));
                }
            }
        }
        response
    }
}

/// The host of `host` or `host:port`; empty when it is neither, for what only begins like a known host is not one.
fn host_of(authority: &str) -> &str {
    let (host, rest) = match authority.strip_prefix('[') {
        Some(inside) => inside.split_once(']').unwrap_or_default(),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_port = rest.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    if rest.is_empty() || is_port { host } else { "" }
}

/// Whether `authority` can only mean the machine that the browser is on.
pub(super) fn is_this_machine(authority: &str) -> bool {
    let host = host_of(authority);
    host.eq_ignore_ascii_case("localhost")
        || host.to_ascii_lowercase().ends_with(".localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a name means something only inside of a network: nobody on the internet can make it point somewhere.
fn is_private_name(host: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if host.is_empty() || !host.chars().all(is_plain) {
        return false;
    }
    let host = host.to_ascii_lowercase();
    !host.contains('.') || [".local", ".lan", ".internal", ".home.arpa"].iter().any(|ending| host.ends_with(ending))
}

fn is_address(authority: &str) -> bool {
    host_of(authority).parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(origin: &str, host: &str) -> bool {
        let mut config = Config::new("unused");
        config.allowed_origins.push("https://app.example/".to_owned());
        config.public_url = Some("http://grid.lan:8000".to_owned());
        Cors::new(&Arc::new(config)).allows(origin, Some(host))
    }

    #[test]
    fn a_local_broker_lets_in_pages_of_this_machine_and_of_listed_origins() {
        for origin in [
            "http://localhost:8000",
            "http://localhost:5173",
            "https://dev.localhost",
            "http://127.0.0.1:1",
            "http://[::1]:8000",
            "https://container.mtfm.io",
            "https://app.example",
            "http://grid.lan:8000",
        ] {
            assert!(allows(origin, "localhost:8000"), "{origin}");
        }
    }

    #[test]
    fn a_local_broker_keeps_out_other_pages() {
        for origin in [
            "https://evil.example",
            "null",
            "",
            "http://localhost.evil.example",
            "https://evil.example/localhost",
            "http://container.mtfm.io",
            "https://container.mtfm.io.evil.example",
        ] {
            assert!(!allows(origin, "localhost:8000"), "{origin}");
        }
    }

    #[test]
    fn a_page_whose_name_was_made_to_point_here_cannot_read() {
        let mut config = Config::new("unused");
        config.flavour = Flavour::Local;
        config.public_url = Some("http://grid.lan:8000/".to_owned());
        let cors = Cors::new(&Arc::new(config));
        let knows = |peer: &str, host: &str| {
            let headers = [(header::HOST, HeaderValue::from_str(host).unwrap())].into_iter().collect();
            cors.knows_host(peer.parse().unwrap(), &headers)
        };
        for host in ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "192.168.1.5", "grid.lan:8000", "a.localhost"] {
            assert!(knows("127.0.0.1", host), "{host}");
        }
        for host in ["evil.example:8000", "localhost.evil.example", "grid.lan:9000", ""] {
            assert!(!knows("127.0.0.1", host), "{host}");
            assert!(!knows("::ffff:127.0.0.1", host), "{host}");
        }
        for host in ["my-machine.lan:8000", "mypc:8000", "broker", "Laptop.local", "192.168.1.5:8000", "localhost:8000"]
        {
            assert!(knows("192.168.1.7", host), "{host}: it was meant to be reached from elsewhere");
        }
        for host in ["evil.example:8000", "lan.evil.example", "evil.lan.", "", "a b"] {
            assert!(!knows("192.168.1.7", host), "{host}: also a machine elsewhere can be a name that changes");
        }
        assert!(cors.knows_host("127.0.0.1".parse().unwrap(), &HeaderMap::new()), "no browser leaves it out");
    }

    #[test]
    fn its_own_page_is_let_in_by_number_but_not_by_a_name_that_anyone_can_point_here() {
        assert!(allows("http://192.168.1.5:8000", "192.168.1.5:8000"));
        assert!(!allows("http://192.168.1.6:8000", "192.168.1.5:8000"));
        assert!(!allows("http://evil.example:8000", "evil.example:8000"));
    }
}
