//! The binary as people and scripts meet it: words in, words and codes out.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod bulk;
mod doctor;
mod grid;
mod hostile;
mod images;
mod job;
mod life;
mod local;
mod logs;
mod peer;
mod run;
mod spellings;
mod standalone;
mod top;
mod usage;
