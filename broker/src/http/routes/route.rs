//! What a route is: how it is served, and what is said of it. One cannot be made without the other.

use axum::routing::MethodRouter;

use crate::http::app::AppState;

/// How a route is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Verb {
    Get,
    Put,
    Post,
}

impl Verb {
    pub(in crate::http) const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
        }
    }
}

/// What a route is about; the document groups by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Tag {
    Jobs,
    Results,
    Logs,
    Queues,
    Blobs,
    Broker,
}

impl Tag {
    pub(in crate::http) const fn name(self) -> &'static str {
        match self {
            Self::Jobs => "jobs",
            Self::Results => "results",
            Self::Logs => "logs",
            Self::Queues => "queues",
            Self::Blobs => "blobs",
            Self::Broker => "broker",
        }
    }
}

/// A parameter after the `?`.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Query {
    pub(in crate::http) name: &'static str,
    pub(in crate::http) says: &'static str,
    /// Its type, as JSON Schema names it.
    pub(in crate::http) kind: &'static str,
    pub(in crate::http) example: Option<&'static str>,
}

/// A body, in or out.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) enum Content {
    /// None.
    Nothing,
    /// JSON of the component of that name.
    Json(&'static str),
    /// One JSON value a line.
    JsonLines(&'static str),
    /// Text, HTML, events, bytes: of that content type.
    Of(&'static str),
}

/// What is sent and what comes back, as it happens when the example job is there.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Example {
    pub(in crate::http) body: Option<&'static str>,
    pub(in crate::http) status: u16,
    /// The answer; `None` when it is no text to show.
    pub(in crate::http) answer: Option<&'static str>,
}

/// A route. Its parts are all given when it is made; see [`Route::get`] and its kin.
#[derive(Clone, Debug)]
pub(in crate::http) struct Route {
    pub(in crate::http) verb: Verb,
    /// As the router reads it: `{name}`, and `{*name}` for all that follows.
    pub(in crate::http) path: String,
    /// How it is served; `None` when another route of the router answers it as well.
    pub(in crate::http) serve: Option<fn() -> MethodRouter<AppState>>,
    pub(in crate::http) tag: Tag,
    pub(in crate::http) summary: String,
    pub(in crate::http) query: Vec<Query>,
    pub(in crate::http) takes: Content,
    pub(in crate::http) gives: Content,
    pub(in crate::http) example: Example,
    /// Kept for old clients.
    pub(in crate::http) is_deprecated: bool,
}

impl Route {
    /// A route that only reads.
    pub(in crate::http) fn get(
        path: &str,
        serve: fn() -> MethodRouter<AppState>,
        tag: Tag,
        summary: &str,
        gives: Content,
        answer: (u16, Option<&'static str>),
    ) -> Self {
        Self {
            verb: Verb::Get,
            path: path.to_owned(),
            serve: Some(serve),
            tag,
            summary: summary.to_owned(),
            query: Vec::new(),
            takes: Content::Nothing,
            gives,
            example: Example { body: None, status: answer.0, answer: answer.1 },
            is_deprecated: false,
        }
    }

    /// The same as a change: what it takes, and an example of that.
    pub(in crate::http) fn taking(mut self, verb: Verb, takes: Content, body: Option<&'static str>) -> Self {
        (self.verb, self.takes, self.example.body) = (verb, takes, body);
        self
    }

    pub(in crate::http) fn with(mut self, name: &'static str, kind: &'static str, says: &'static str) -> Self {
        self.query.push(Query { name, says, kind, example: None });
        self
    }

    pub(in crate::http) fn with_example(
        mut self,
        name: &'static str,
        kind: &'static str,
        says: &'static str,
        example: &'static str,
    ) -> Self {
        self.query.push(Query { name, says, kind, example: Some(example) });
        self
    }

    pub(in crate::http) const fn deprecated(mut self) -> Self {
        self.is_deprecated = true;
        self
    }

    /// A route that another one's handler answers.
    pub(in crate::http) const fn within(mut self) -> Self {
        self.serve = None;
        self
    }

    /// The same elsewhere.
    pub(in crate::http) fn at(&self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }

    /// The path as documents show it.
    pub(in crate::http) fn shown_path(&self) -> String {
        self.path.replace("{*", "{")
    }
}
