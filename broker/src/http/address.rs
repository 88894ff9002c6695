//! What a websocket's address names: a queue and an end.

use axum::http::StatusCode;
use percent_encoding::percent_decode_str;
use protocol::id::QueueName;

use super::error::ApiError;
use super::params;
use crate::session::Role;

/// What a websocket's path names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) queue: QueueName,
    pub(super) role: Role,
}

impl Address {
    /// Reads `/q/<queue>/client|browser|worker`, or the same without `/q`; what follows is ignored.
    pub(super) fn parse(path: &str) -> Result<Self, ApiError> {
        let unknown = || {
            let message = "websockets are at /q/<queue>/client and /q/<queue>/worker";
            ApiError::request(StatusCode::NOT_FOUND, "no_such_socket", message)
        };
        let mut segments = path.strip_prefix('/').unwrap_or(path).split('/');
        let mut queue = segments.next().ok_or_else(unknown)?;
        let mut end = segments.next().ok_or_else(unknown)?;
        if queue == "q"
            && let Some(third) = segments.next()
        {
            (queue, end) = (end, third);
        }
        let role = match end {
            "client" | "browser" => Role::Client,
            "worker" => Role::Worker,
            _ => return Err(unknown()),
        };
        // What a page without a queue puts there; all of them would share one.
        if matches!(queue, "undefined" | "null") {
            return Err(ApiError::bad("bad_queue_name", "the page that connects here has no queue name"));
        }
        let queue = percent_decode_str(queue)
            .decode_utf8()
            .map_err(|_| ApiError::bad("not_utf8", "the queue's name has escapes that are not UTF-8"))?;
        Ok(Self { queue: params::queue(&queue)?, role })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(path: &str) -> Option<(String, Role)> {
        Address::parse(path).ok().map(|address| (address.queue.to_string(), address.role))
    }

    #[test]
    fn a_socket_address_names_a_queue_and_an_end() {
        let client = |queue: &str| Some((queue.to_owned(), Role::Client));
        assert_eq!(parsed("/q/abc/client"), client("abc"));
        assert_eq!(parsed("/q/abc/browser"), client("abc"));
        assert_eq!(parsed("/q/abc/worker/and/more"), Some(("abc".to_owned(), Role::Worker)));
        assert_eq!(parsed("/abc/worker"), Some(("abc".to_owned(), Role::Worker)));
        assert_eq!(parsed("/q/client"), client("q"));
        assert_eq!(parsed("/q/a%20b/client"), client("a b"));
    }

    #[test]
    fn other_addresses_are_no_sockets() {
        for path in [
            "",
            "/",
            "/q",
            "/abc",
            "/q/abc",
            "/q/abc/other",
            "/q//client",
            "/q/undefined/client",
            "/null/worker",
            "/q/%ff/client",
            "/q/a%2Fb/client",
        ] {
            assert_eq!(parsed(path), None, "{path}");
        }
    }
}
