//! The worker's rules, pure: no clock, no IO, no async.

pub(crate) mod capacity;
pub(crate) mod offers;
pub(crate) mod run;
pub(crate) mod slots;

use protocol::native::HeldRun;

/// One of the queues that the worker serves, by its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct QueueIndex(pub(crate) usize);

/// A run and the queue it is of: two queues may hold the same job, and each counts its runs from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct QueueRun {
    pub(crate) queue: QueueIndex,
    pub(crate) run: HeldRun,
}
