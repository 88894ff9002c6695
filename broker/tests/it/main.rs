//! Integration tests of the broker: real files, real sockets.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(
    clippy::wildcard_enum_match_arm,
    clippy::cast_possible_truncation,
    reason = "tests look for one thing and know their numbers"
)]

mod blobs;
mod bulk;
mod explain;
mod hostile;
mod http;
mod http_edges;
mod journal;
mod limits;
mod logs;
mod metrics;
mod native;
mod openapi;
mod original;
mod routes;
mod sessions;
mod support;
