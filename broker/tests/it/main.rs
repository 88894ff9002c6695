//! Integration tests of the broker: real files, real sockets.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(
    clippy::wildcard_enum_match_arm,
    clippy::cast_possible_truncation,
    reason = "tests look for one thing and know their numbers"
)]

mod blobs;
mod hostile;
mod http;
mod http_edges;
mod journal;
mod logs;
mod sessions;
mod support;
