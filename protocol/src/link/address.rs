//! Where the queue that a link names is: on the server of the page, on this machine, or on another server.

use super::codec;
use crate::id::{IdError, QueueName};

/// What a link says for the queue of this machine.
const LOCAL: &str = "local";
/// Where a worker in local mode listens.
const LOCAL_ORIGIN: &str = "http://localhost:8000";

/// A queue and the server that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueAddress {
    /// The server, as scheme, host and port: below it are blobs, jobs and results.
    pub origin: String,
    /// The queue's name.
    pub name: QueueName,
}

/// Why a link leads to no queue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither a name nor an address.
    #[error("the link's queue: {0}")]
    Name(#[from] IdError),
    /// An address of a server, without a queue.
    #[error("the link's queue is an address without a queue's name; it should be like https://host/my-queue")]
    Nameless,
}

impl QueueAddress {
    /// Reads what a link says of its queue: a name on `server` (an origin; a slash at its end does not matter), `local`, or an address
    /// like `https://host/name` or `https://host/q/name`. `None` where it says nothing.
    ///
    /// # Errors
    ///
    /// [`AddressError`] when it is no queue.
    pub fn resolve(text: &str, server: &str) -> Result<Option<Self>, AddressError> {
        if text.is_empty() {
            return Ok(None);
        }
        if text == LOCAL {
            return Ok(Some(Self { origin: LOCAL_ORIGIN.to_owned(), name: LOCAL.parse()? }));
        }
        let Some((scheme, rest)) = text.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https"))
        else {
            let server = server.strip_suffix('/').unwrap_or(server);
            return Ok(Some(Self { origin: server.to_owned(), name: name(text)? }));
        };
        let (host, path) = rest.split_once('/').ok_or(AddressError::Nameless)?;
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let path = path.strip_suffix('/').unwrap_or(path);
        // A page's own addresses have the /q/ before the name; the original wanted them without.
        let bare = path.strip_prefix("q/").unwrap_or(path);
        if host.is_empty() || bare.is_empty() {
            return Err(AddressError::Nameless);
        }
        Ok(Some(Self { origin: format!("{scheme}://{host}"), name: name(bare)? }))
    }

    /// The address of the queue's socket for clients.
    #[must_use]
    pub fn socket(&self) -> String {
        let socket = self.origin.strip_prefix("http").map_or_else(|| self.origin.clone(), |rest| format!("ws{rest}"));
        format!("{socket}/q/{}/client", codec::encode_component(self.name.as_str()))
    }
}

/// A name is percent-encoded in a link, or is not; where it cannot be decoded it is meant as it stands.
fn name(text: &str) -> Result<QueueName, IdError> {
    codec::decode_component(text).as_deref().unwrap_or(text).parse()
}
