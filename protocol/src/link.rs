//! Links to jobs: the address of a page that describes a job, or leads to one, and what is submitted from it.
//!
//! Links are written down in documents and pages that nobody will change, so that what they mean is for ever: the same link makes
//! the same job with the same id.
//!
//! | Link | Is |
//! | --- | --- |
//! | `https://host/#?job=…&queue=q&NAME=value` | The whole job |
//! | `https://host/j/<id>#?queue=q` | A job that the server knows |

mod address;
mod assemble;
pub mod codec;
mod fragment;
mod params;
#[cfg(test)]
mod tests;
mod upload;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

pub use address::{AddressError, QueueAddress};
pub use assemble::{Assembled, assemble};
pub use codec::CodecError;
pub use fragment::Fragment;
pub use params::{OWN_PARAMS, ParamError, ParamProblem, Params};
pub use upload::{INLINE_UNITS_MAX, Upload};

use crate::id::{JobId, QueueName};
use crate::json::Value;

/// What a browser percent-encodes in a fragment (WHATWG URL, "fragment percent-encode set"), besides what is not ASCII.
const FRAGMENT: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'`');

/// A link, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Scheme, host and port of the page.
    pub origin: String,
    /// The job that a short link leads to.
    pub job: Option<JobId>,
    /// What stands behind `#`.
    pub fragment: Fragment,
}

/// Why a text is no link to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// It does not start with `http://` or `https://` and a host.
    #[error("a link to a job starts with http:// or https:// and a host")]
    NoOrigin,
    /// It is the address of a page with an id that is none.
    #[error("what follows /j/ in the link is no job's id: it should be 64 hex digits")]
    NoJobId,
}

impl Link {
    /// Takes a link apart as a browser would that was given it: what may not stand in a fragment is percent-encoded first.
    ///
    /// # Errors
    ///
    /// [`LinkError`]. Parameters are not looked at: see [`Params::of`].
    pub fn parse(text: &str) -> Result<Self, LinkError> {
        let text: String = text.trim().chars().filter(|c| !matches!(c, '\t' | '\n' | '\r')).collect();
        let (address, fragment) = text.split_once('#').unwrap_or((&text, ""));
        let address = address.split('?').next().unwrap_or_default();
        let (scheme, rest) = address.split_once("://").ok_or(LinkError::NoOrigin)?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if !matches!(scheme, "http" | "https") || host.is_empty() {
            return Err(LinkError::NoOrigin);
        }
        let fragment = utf8_percent_encode(fragment, FRAGMENT).to_string();
        let job = short_id(path).map(|id| id.parse().map_err(|_| LinkError::NoJobId)).transpose()?;
        Ok(Self { origin: format!("{scheme}://{host}"), job, fragment: Fragment::parse(&fragment) })
    }

    /// The link that holds the whole job.
    #[must_use]
    pub fn whole(origin: &str, definition: &Value, queue: Option<&QueueName>) -> Self {
        let mut link = Self { origin: origin.to_owned(), job: None, fragment: Fragment::default() };
        link.fragment.set("job", Some(&codec::encode(definition)));
        link.with_queue(queue)
    }

    /// The link to a job that the server has.
    #[must_use]
    pub fn short(origin: &str, job: JobId, queue: Option<&QueueName>) -> Self {
        Self { origin: origin.to_owned(), job: Some(job), fragment: Fragment::default() }.with_queue(queue)
    }

    fn with_queue(mut self, queue: Option<&QueueName>) -> Self {
        let queue = queue.map(|queue| codec::encode_component(queue.as_str()));
        self.fragment.set("queue", queue.as_deref());
        self
    }
}

/// `j/<id>`, with or without `.json` or a slash behind it.
fn short_id(path: &str) -> Option<&str> {
    let id = path.strip_prefix("j/")?;
    let id = id.strip_suffix('/').unwrap_or(id);
    let id = id.strip_suffix(".json").unwrap_or(id);
    (!id.is_empty() && !id.contains('/')).then_some(id)
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.origin)?;
        match self.job {
            Some(job) => write!(f, "/j/{job}")?,
            None => f.write_str("/")?,
        }
        let fragment = self.fragment.to_string();
        if fragment.is_empty() { Ok(()) } else { write!(f, "#{fragment}") }
    }
}
