//! Integration tests of the broker: real files, real sockets.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(
    clippy::wildcard_enum_match_arm,
    clippy::cast_possible_truncation,
    reason = "tests look for one thing and know their numbers"
)]

mod attacks;
mod blobs;
mod blobs_s3;
mod bulk;
mod contract;
mod explain;
mod hostile;
mod http;
mod http_edges;
mod journal;
mod limits;
mod limits_named;
mod logs;
mod metrics;
mod named;
mod native;
mod openapi;
mod original;
mod retention;
mod retry;
mod routes;
mod s3;
mod sessions;
mod support;
mod webhooks;
