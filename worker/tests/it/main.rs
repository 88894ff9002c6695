//! The worker against a real Engine and a real socket; the broker at the other end is scripted, but for `end_to_end`.
#![expect(clippy::unwrap_used, reason = "a helper that panics fails its test, as it should")]

mod adoption;
mod attacks;
mod bad_input;
mod bucket;
mod builds;
mod cancelling;
mod end_to_end;
mod engine_gone;
mod extremes;
mod files;
mod gpus;
mod hostile;
mod images;
mod isolation;
mod life;
mod link;
mod network;
mod observe;
mod original;
mod pulling;
mod queues;
mod running;
#[path = "../../../broker/tests/it/s3.rs"]
#[allow(dead_code, reason = "the broker's tests look at more of it")]
mod s3;
mod support;
mod upgrade;
