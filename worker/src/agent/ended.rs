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
    /// It was never started, and not for its own sake: somebody else is to run it.
    Unstarted(String),
}

impl Ended {
    pub(super) fn finished(ending: Ending, container: Option<String>) -> Self {
        Self { end: RunEnd::Finished(Box::new(ending)), container }
    }

    /// The engine was not there. `container`: one that was made for it and may still be there.
    pub(super) fn engine_away(container: Option<String>) -> Self {
        Self { end: RunEnd::Unstarted("the container engine is away".to_owned()), container }
    }

    pub(super) fn stopped(container: Option<String>) -> Self {
        Self { end: RunEnd::Stopped, container }
    }
}
