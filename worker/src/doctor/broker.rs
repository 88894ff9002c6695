//! The broker: whether its name is known, whether it is reached, what it speaks, and what time it has.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use protocol::codec::{Encoding, FRAME_BYTES_MAX};
use protocol::id::UnixMillis;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::{Error as SocketError, ProtocolError, SubProtocolError};
use tokio_tungstenite::tungstenite::http::header::{DATE, HeaderMap, LOCATION, SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::http::{HeaderValue, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{Connector, client_async_tls_with_config};

use super::{Finding, QUESTION, date};
use crate::clock::unix_now;
use crate::config::{ApiAddress, Config};
use crate::outcome::with_sources;
use crate::tls;

const CHECK: &str = "broker";
/// Clocks that are further apart than this are not only late.
const APART_MS_MAX: u64 = 30_000;
/// An answer over the line within this is no trouble for a worker.
const SLOW: Duration = Duration::from_secs(1);
/// How much of a refusal is shown.
const SHOWN_CHARS: usize = 120;

/// What came of the handshake.
enum Shaken {
    /// It speaks as we do.
    Native,
    /// It took the socket, but not our subprotocol.
    Foreign,
    /// It answered something else.
    Refused { status: u16, location: Option<String>, body: String },
    /// The line broke before an answer.
    Broken(String),
    /// No answer.
    Late,
}

pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let url = config.api.url();
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = url.port_or_known_default().unwrap_or(80);
    let addresses = match timeout(QUESTION, lookup_host((host.as_str(), port))).await {
        Ok(Ok(found)) => found.collect::<Vec<_>>(),
        Ok(Err(error)) => return vec![unknown_name(&host, &error.to_string())],
        Err(_) => return vec![unknown_name(&host, &format!("no answer within {} s", QUESTION.as_secs()))],
    };
    if addresses.is_empty() {
        return vec![unknown_name(&host, "it has no address")];
    }
    let before = Instant::now();
    let stream = match timeout(QUESTION, TcpStream::connect(&addresses[..])).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return vec![not_reached(&config.api, &addresses, &error.to_string())],
        Err(_) => {
            let said = format!("no answer within {} s", QUESTION.as_secs());
            return vec![not_reached(&config.api, &addresses, &said)];
        }
    };
    let way = before.elapsed();
    let (shaken, headers) = shake(config, stream).await;
    let time = headers.get(DATE).and_then(|value| value.to_str().ok()).and_then(date::parse);
    let mut findings = vec![about(&config.api, &shaken, way)];
    findings.extend(time.map(|theirs| about_clock(theirs, unix_now())));
    findings
}

/// Opens a socket as a worker does, and says nothing on it: nobody hears of it.
async fn shake(config: &Config, stream: TcpStream) -> (Shaken, HeaderMap) {
    let broken = |error: &dyn std::error::Error| (Shaken::Broken(with_sources(error)), HeaderMap::new());
    let Some(queue) = config.queues.first() else { return (Shaken::Late, HeaderMap::new()) };
    let mut request = match config.api.worker_socket(queue).into_client_request() {
        Ok(request) => request,
        Err(error) => return broken(&error),
    };
    let ours = Encoding::MessagePack.subprotocol();
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(ours));
    let tls = match tls::client_config() {
        Ok(tls) => Connector::Rustls(Arc::clone(&tls)),
        Err(error) => return broken(&error),
    };
    let limits =
        WebSocketConfig::default().max_message_size(Some(FRAME_BYTES_MAX)).max_frame_size(Some(FRAME_BYTES_MAX));
    match timeout(QUESTION, client_async_tls_with_config(request, stream, Some(limits), Some(tls))).await {
        Ok(Ok((mut socket, response))) => {
            let _ = timeout(Duration::from_secs(1), socket.close(None)).await;
            (Shaken::Native, response.headers().clone())
        }
        Ok(Err(SocketError::Protocol(ProtocolError::SecWebSocketSubProtocolError(
            SubProtocolError::NoSubProtocol,
        )))) => (Shaken::Foreign, HeaderMap::new()),
        Ok(Err(SocketError::Http(response))) => (refused(&response), response.headers().clone()),
        Ok(Err(error)) => broken(&error),
        Err(_) => (Shaken::Late, HeaderMap::new()),
    }
}

fn refused(response: &Response<Option<Vec<u8>>>) -> Shaken {
    let body = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
    let shown = |c: &char| !c.is_control();
    Shaken::Refused {
        status: response.status().as_u16(),
        location: response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned),
        body: body.chars().filter(shown).take(SHOWN_CHARS).collect(),
    }
}

fn unknown_name(host: &str, said: &str) -> Finding {
    let advice =
        "see that the name in --api-address is right, and that this machine can look up names (`getent hosts` it)";
    Finding::fail(CHECK, format!("the name {host} is not known: {said}"), advice)
}

fn not_reached(api: &ApiAddress, addresses: &[SocketAddr], said: &str) -> Finding {
    let at: Vec<String> = addresses.iter().take(3).map(ToString::to_string).collect();
    Finding::fail(
        CHECK,
        format!("nothing answers for {api} ({}): {said}", at.join(", ")),
        "see that the broker runs, that --api-address has the right port, and that no firewall is in between. In a container, \
         `localhost` is the container itself: write the machine's address",
    )
}

fn about(api: &ApiAddress, shaken: &Shaken, way: Duration) -> Finding {
    let fail = |seen: String, advice: &str| Finding::fail(CHECK, seen, advice);
    match shaken {
        Shaken::Native => taken(api, &format!("speaks {}", Encoding::MessagePack.subprotocol()), way),
        Shaken::Foreign => taken(api, "takes workers in the original's dialect", way),
        Shaken::Refused { status: status @ 300..=399, location: Some(location), .. } => fail(
            format!("{api} sends elsewhere ({status}): {location}"),
            "write that address (up to its path) after --api-address",
        ),
        Shaken::Refused { status: 421, .. } => fail(
            format!("{api} does not answer to that name (421)"),
            "call it by a name that it knows, or tell it this one: `gridsocket serve --public-url`, or `local --public-url`",
        ),
        Shaken::Refused { status: status @ (401 | 403 | 407), body, .. } => fail(
            format!("{api} refuses workers ({status}): {body}"),
            "something before the broker wants a login, or it refuses this machine: ask who runs it",
        ),
        Shaken::Refused { status: status @ (502..=504), body, .. } => fail(
            format!("something before the broker answers that it is away ({status}): {body}"),
            "see that the broker runs behind that address; try again in a while",
        ),
        Shaken::Refused { status, body, .. } => fail(
            format!("{api} is no broker, or something in between takes no websockets: it answers {status} {body}"),
            "see that --api-address is a broker's; a proxy before it has to pass `Upgrade: websocket` on",
        ),
        Shaken::Broken(said) if api.as_str().starts_with("https:") => fail(
            format!("no safe line to {api}: {said}"),
            "see that its certificate is of a public authority, for that name and of today (look at the clock, too); if it speaks \
             no TLS, write http://",
        ),
        Shaken::Broken(said) => fail(
            format!("{api} breaks the line: {said}"),
            "see that --api-address is a broker's; if it speaks TLS, write https://",
        ),
        Shaken::Late => fail(
            format!("{api} is reached, but does not answer within {} s", QUESTION.as_secs()),
            "see that the broker is well (`GET /healthz`), and that a proxy before it passes `Upgrade: websocket` on",
        ),
    }
}

fn taken(api: &ApiAddress, speaks: &str, way: Duration) -> Finding {
    let seen = format!("{api} {speaks}, {} ms away", way.as_millis());
    if way > SLOW {
        return Finding::warn(
            CHECK,
            seen,
            "the line is slow: jobs start and report late; take a broker that is nearer",
        );
    }
    Finding::ok(CHECK, seen)
}

/// Both are told in milliseconds, theirs in whole seconds.
fn about_clock(theirs: UnixMillis, ours: UnixMillis) -> Finding {
    const CHECK: &str = "clock";
    let apart = theirs.0.abs_diff(ours.0);
    if apart <= APART_MS_MAX {
        return Finding::ok(CHECK, "as the broker's");
    }
    let (seconds, side) = (apart / 1000, if ours.0 > theirs.0 { "ahead of" } else { "behind" });
    Finding::warn(
        CHECK,
        format!(
            "this machine's clock is {seconds} s {side} the broker's: times of jobs will be wrong, and certificates may be refused"
        ),
        "set it by the network: `sudo timedatectl set-ntp true`",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn finding(shaken: &Shaken) -> Finding {
        about(&"http://b.example".parse().unwrap(), shaken, Duration::from_millis(3))
    }

    fn status(status: u16, location: Option<&str>) -> Finding {
        finding(&Shaken::Refused { status, location: location.map(str::to_owned), body: "text".into() })
    }

    #[test]
    fn each_way_of_not_being_a_broker_has_its_own_way_out() {
        assert_eq!(finding(&Shaken::Native).level, Level::Ok);
        assert_eq!(finding(&Shaken::Foreign).level, Level::Ok);
        for (found, words) in [
            (status(301, Some("https://b.example/q/x/worker")), "https://b.example/q/x/worker"),
            (status(421, None), "--public-url"),
            (status(403, None), "login"),
            (status(502, None), "behind that address"),
            (status(404, None), "Upgrade: websocket"),
            (finding(&Shaken::Broken("bytes".into())), "https://"),
            (finding(&Shaken::Late), "healthz"),
        ] {
            assert_eq!(found.level, Level::Fail);
            let all = format!("{} {}", found.seen, found.advice.as_deref().unwrap());
            assert!(all.contains(words), "{all}");
        }
        let slow = about(&"http://b.example".parse().unwrap(), &Shaken::Native, Duration::from_secs(3));
        assert_eq!(slow.level, Level::Warn);
    }

    #[test]
    fn clocks_may_differ_by_what_an_answer_takes() {
        let level = |theirs, ours| about_clock(UnixMillis(theirs), UnixMillis(ours)).level;
        assert_eq!(level(1_000_000, 1_002_500), Level::Ok);
        assert_eq!(level(1_000_000, 1_031_000), Level::Warn);
        assert!(about_clock(UnixMillis(9_000_000), UnixMillis(0)).seen.contains("9000 s behind"));
    }
}
