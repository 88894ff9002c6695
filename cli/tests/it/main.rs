//! The binary as people and scripts meet it: words in, words and codes out.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod bulk;
mod grid;
mod hostile;
mod job;
mod logs;
mod peer;
mod run;
mod usage;
