//! The broker's address.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use protocol::id::QueueName;

use super::ConfigError;

/// What needs no escape in a path segment (RFC 3986, unreserved).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The address of a broker: `http` or `https`, a host, an optional path prefix, no slash at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiAddress(String);

impl ApiAddress {
    /// The address as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where workers of `queue` connect.
    #[must_use]
    pub fn worker_socket(&self, queue: &QueueName) -> String {
        // The scheme is http or https: with its first four letters replaced it is ws or wss.
        format!("ws{}/q/{}/worker", &self.0[4..], segment(queue.as_str()))
    }

    /// Where the blob of `key` is.
    #[must_use]
    pub fn blob(&self, key: &str) -> String {
        format!("{}/f/{}", self.0, segment(key))
    }

    /// As a URL.
    pub(crate) fn url(&self) -> reqwest::Url {
        reqwest::Url::parse(&self.0).expect("invariant: it was parsed when it was made")
    }

    /// Whether `url` is below this address.
    pub(crate) fn serves(&self, url: &str) -> bool {
        url.strip_prefix(&self.0).is_some_and(|rest| rest.starts_with('/'))
    }
}

fn segment(text: &str) -> impl fmt::Display + '_ {
    utf8_percent_encode(text, SEGMENT)
}

impl fmt::Display for ApiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ApiAddress {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let refuse = |why: String| Err(ConfigError::Address { text: text.to_owned(), why });
        let url = match reqwest::Url::parse(text) {
            Ok(url) => url,
            Err(error) => return refuse(error.to_string()),
        };
        if !matches!(url.scheme(), "http" | "https") {
            return refuse("it does not start with http:// or https://".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return refuse("it has a query or a fragment".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("it holds a user name or a password".to_owned());
        }
        Ok(Self(url.as_str().trim_end_matches('/').to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_address_keeps_prefix_and_port_and_escapes_the_queue() {
        let socket = |api: &str, queue: &str| api.parse::<ApiAddress>().unwrap().worker_socket(&queue.parse().unwrap());
        assert_eq!(socket("http://localhost:8000/", "local"), "ws://localhost:8000/q/local/worker");
        assert_eq!(socket("https://a.example/grid", "a b?#%"), "wss://a.example/grid/q/a%20b%3F%23%25/worker");
    }

    #[test]
    fn what_is_no_broker_is_refused() {
        for text in ["", "localhost:8000", "ftp://x", "http://", "http://u:p@x", "http://x/?q=1", "http://x/#f"] {
            assert!(text.parse::<ApiAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_serves_what_is_below_it_and_nothing_that_only_begins_like_it() {
        let api: ApiAddress = "http://a.example".parse().unwrap();
        assert!(api.serves("http://a.example/f/x"));
        assert!(!api.serves("http://a.example.org/f/x"));
    }
}
