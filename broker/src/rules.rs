//! The rules: what a command does to a queue. Pure and synchronous: no clock, no IO, no tasks.
//!
//! [`Core::handle`](core::Core::handle) takes a command and the time and gives back records to store and effects to carry out
//! once they are stored. `decide` says which facts a command makes, `grace` who leaves a namespace and when,
//! `settle` which grants follow from the state by itself, `line` who is next, `hold` who is kept free for whom, `due` what follows from time alone, `explain` why a job waits.

pub mod command;
pub mod core;
mod decide;
mod due;
pub(crate) mod explain;
mod grace;
mod hold;
pub mod limits;
mod line;
pub mod presence;
mod recent;
mod settle;
#[cfg(test)]
mod tests;
