//! The worker's rules, pure: no clock, no IO, no async.

pub(crate) mod run;
pub(crate) mod slots;
