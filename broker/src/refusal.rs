//! What a caller is told when the broker does not do what was asked.

use std::borrow::Cow;

/// What kind of refusal it is; HTTP makes a status of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The request is wrong and stays wrong.
    BadRequest,
    /// What it names is not there.
    NotFound,
    /// It contradicts what is there.
    Conflict,
    /// Over a size or count limit.
    TooLarge,
    /// Over a rate or queue limit: later may work.
    Busy,
    /// The broker cannot do it now: it is stopping, or the queue's journal is damaged.
    Unavailable,
}

/// A refusal: nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What kind.
    pub kind: RefusalKind,
    /// A word for programs.
    pub code: &'static str,
    /// A sentence for people: the field, the limit, what to do.
    pub message: Cow<'static, str>,
}

impl Refusal {
    /// A refusal of that kind.
    pub fn new(kind: RefusalKind, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, code, message: message.into() }
    }

    /// The broker is stopping, or its disk failed.
    #[must_use]
    pub fn stopping() -> Self {
        Self::new(RefusalKind::Unavailable, "stopping", "the broker is stopping; try again in a moment")
    }
}
