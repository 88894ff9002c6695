//! The opening of a socket: the first message, the version that both ends speak, and what a worker may say of itself.

use std::ops::RangeInclusive;
use std::time::Duration;

use futures_util::StreamExt;
use protocol::PROTOCOL_VERSION;
use protocol::codec::Encoding;
use protocol::native::{Hello, ToBroker};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::Role;

/// The versions of the dialect that this broker speaks.
const SPOKEN: RangeInclusive<u16> = PROTOCOL_VERSION..=PROTOCOL_VERSION;

/// How long a new socket may take to say hello: longer than any honest peer on a bad line needs.
pub(super) const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// The largest hello, in bytes: some thousand runs held fit. It is kept for as long as the worker is known.
const HELLO_BYTES_MAX: usize = 1024 * 1024;

/// The longest version that a worker may state, in bytes: every watcher is told of it whenever anyone comes or goes.
const VERSION_BYTES_MAX: usize = 256;

/// The most bytes of all of a worker's tags, each counted with a few bytes on top.
const TAGS_BYTES_MAX: usize = 4 * 1024;

/// The first message, which says what the socket is for. Its version is the one that both ends use from here on.
pub(super) async fn read_hello<S>(
    socket: &mut WebSocketStream<S>,
    role: Role,
    encoding: Encoding,
) -> Result<Hello, (&'static str, String)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let expected =
        || ("hello_expected", format!("the first message must be Hello, within {} s", HELLO_WITHIN.as_secs()));
    // One deadline for all of it: pings do not make it longer.
    let first = tokio::time::timeout(HELLO_WITHIN, async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) => return Some(text.into()),
                Some(Ok(Message::Binary(bytes))) => return Some(bytes),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_) | Message::Frame(_)) | Err(_)) | None => return None,
            }
        }
    });
    let Ok(Some(frame)) = first.await else { return Err(expected()) };
    if frame.len() > HELLO_BYTES_MAX {
        return Err(("hello_too_large", format!("Hello is {} bytes, the limit is {HELLO_BYTES_MAX}", frame.len())));
    }
    let mut hello = match encoding.decode::<ToBroker>(&frame) {
        Ok(ToBroker::Hello(hello)) => hello,
        Ok(_) => return Err(expected()),
        Err(error) => return Err(("bad_message", error.to_string())),
    };
    hello.version = agree(hello.version_min.unwrap_or(hello.version)..=hello.version, SPOKEN)?;
    check_worker(&hello)?;
    match (role, &hello.worker) {
        (Role::Worker, None) => Err(("worker_expected", "Hello.worker must be there on a worker's socket".to_owned())),
        (Role::Client, Some(_)) => Err(("not_a_worker_socket", "workers connect to /q/<queue>/worker".to_owned())),
        (Role::Worker, Some(_)) | (Role::Client, None) => Ok(hello),
    }
}

/// What a worker says of itself is kept and told to others, so it must be short.
fn check_worker(hello: &Hello) -> Result<(), (&'static str, String)> {
    let Some(worker) = &hello.worker else { return Ok(()) };
    if worker.version.len() > VERSION_BYTES_MAX {
        let text = format!("worker.version is {} bytes, the limit is {VERSION_BYTES_MAX}", worker.version.len());
        return Err(("version_too_long", text));
    }
    let tags_bytes: usize = worker.tags.iter().map(|tag| tag.len() + size_of::<String>()).sum();
    if tags_bytes > TAGS_BYTES_MAX {
        let text = format!("worker.tags are {} texts, more than fit into {TAGS_BYTES_MAX} bytes", worker.tags.len());
        return Err(("tags_too_large", text));
    }
    Ok(())
}

/// The highest version that both ends speak.
fn agree(theirs: RangeInclusive<u16>, ours: RangeInclusive<u16>) -> Result<u16, (&'static str, String)> {
    let highest = *theirs.end().min(ours.end());
    if theirs.contains(&highest) && ours.contains(&highest) {
        return Ok(highest);
    }
    let older =
        if theirs.end() < ours.start() { "reload the page or upgrade the program" } else { "upgrade the broker" };
    let text = format!("the peer speaks {}, this broker speaks {}; {older}", spoken(&theirs), spoken(&ours));
    Err(("version", text))
}

fn spoken(versions: &RangeInclusive<u16>) -> String {
    match (versions.start(), versions.end()) {
        (from, to) if from == to => format!("version {to}"),
        (from, to) => format!("versions {from} to {to}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_that_both_speak_is_used() {
        assert_eq!(agree(1..=1, 1..=1), Ok(1));
        assert_eq!(agree(1..=3, 1..=1), Ok(1), "a newer peer that still speaks ours");
        assert_eq!(agree(1..=3, 2..=5), Ok(3), "an older peer that we still understand");
        assert_eq!(agree(2..=9, 3..=5), Ok(5));
    }

    #[test]
    fn without_a_version_in_common_both_ranges_are_named() {
        let text = |theirs, ours| agree(theirs, ours).expect_err("no overlap").1;
        assert_eq!(
            text(2..=3, 1..=1),
            "the peer speaks versions 2 to 3, this broker speaks version 1; upgrade the broker"
        );
        assert_eq!(
            text(1..=1, 2..=4),
            "the peer speaks version 1, this broker speaks versions 2 to 4; reload the page or upgrade the program"
        );
        assert!(agree(RangeInclusive::new(u16::MAX, 1), 1..=1).is_err(), "a range that is none");
    }
}
