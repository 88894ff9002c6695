//! The rules: what a command does to a queue. Pure and synchronous: no clock, no IO, no tasks.
//!
//! [`Core::handle`](core::Core::handle) takes a command and the time and gives back records to store and effects to carry out
//! once they are stored. `decide` says which facts a command makes, `settle` what follows from the state by itself (namespaces,
//! grants), `due` what follows from time alone.

pub mod command;
pub mod core;
mod decide;
mod due;
pub mod limits;
pub mod presence;
mod settle;
#[cfg(test)]
mod tests;
