//! Integration tests of the crate.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod array;
mod documented;
mod original;
mod raw;
mod shell;
mod text;
mod vectors;
mod wire;
