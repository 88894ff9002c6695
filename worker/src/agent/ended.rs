//! How a run's task ends.

use crate::outcome::Ending;

/// How a run's task ends.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) end: RunEnd,
    /// To be removed.
    pub(super) container: Option<String>,
}

#[derive(Debug)]
pub(super) enum RunEnd {
    /// There is a result.
    Finished(Box<Ending>),
    /// Because it was told to.
    Stopped,
}

impl Ended {
    pub(super) fn finished(ending: Ending, container: Option<String>) -> Self {
        Self { end: RunEnd::Finished(Box::new(ending)), container }
    }

    pub(super) fn stopped(container: Option<String>) -> Self {
        Self { end: RunEnd::Stopped, container }
    }
}
