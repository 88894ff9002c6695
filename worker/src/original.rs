//! Working for a server of the original's kind. It grants nothing: it shows its workers all jobs, they take some, and say so.
//!
//! [`Desk`] stands between it and the worker as a broker of ours would: what the worker says to a broker goes in, and so do
//! the server's frames; frames for the server and a broker's answers come out. So nobody else in the worker knows of this
//! dialect. Pure: no clock, no IO; `link::original` is the socket.
//!
//! Runs have no numbers there, so the desk gives them some, above [`FIRST_RUN`]: no broker of ours ever counts so far, and a
//! run is never taken for one of the same job that it granted.

mod claims;
mod definitions;
mod desk;
mod handling;
mod hearing;
mod logs;
mod mine;
mod view;

use protocol::id::{RunNumber, UnixMillis};

pub(crate) use desk::Desk;
pub(crate) use hearing::Heard;

/// The first number that a run may have here.
pub(crate) const FIRST_RUN: RunNumber = 1 << 31;

/// What time it is, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// Milliseconds that only go forward; from when is all the same.
    pub(crate) ms: u64,
    /// For the server.
    pub(crate) at: UnixMillis,
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
