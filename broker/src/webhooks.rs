//! Webhooks: addresses that a submission names, to be called when its job was queued and when it is over.
//!
//! What a submission asks for is a file of its own, on disk before the submission reaches the queue (`stored`). What became
//! of the submission is a fold of its job's records (`fate`), which come from the queue's task as they are stored, or from
//! the journal after a restart (`look`): a crash at any moment loses no call. Calls are delivered at least once, under an id
//! that stays the same (`send`, `sign`), and never on the way of a submission (`dispatch`).

mod address;
mod body;
mod book;
mod call;
mod dispatch;
mod fate;
pub mod limits;
mod line;
mod look;
mod read;
mod send;
mod sign;
mod state;
mod stored;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::address::Policy;
pub(crate) use self::book::Ticket;
pub use self::book::{Book, Listing, Shown, Stats};
pub use self::call::{CallId, HookId, Kind, NotACall};
pub use self::limits::Limits;
pub(crate) use self::read::read_callbacks;
pub use self::sign::Secret;
use crate::config::AddressRange;
use crate::engine::Engine;

/// Which addresses may be called.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// Whether addresses of the broker's own network may be called: a stranger could then reach through the broker what it
    /// cannot reach itself. Default: no.
    pub allows_private: bool,
    /// What of the broker's own network may be called otherwise. Default: nothing.
    pub exceptions: Vec<AddressRange>,
    /// Names whose addresses are known without asking, as in `/etc/hosts`. Default: none.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
}

/// The webhooks of a broker that is being started.
pub struct Webhooks {
    book: Book,
    sender: send::Sender,
}

/// The tasks that make calls.
pub struct Dispatch {
    stop: CancellationToken,
    tasks: [JoinHandle<()>; 2],
}

impl Webhooks {
    /// Opens what is stored in a folder.
    ///
    /// # Errors
    ///
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path, limits: &Limits, reach: &Reach) -> io::Result<Self> {
        let policy = Policy {
            allows_private: reach.allows_private,
            exceptions: reach.exceptions.clone().into(),
            hosts: Arc::new(reach.hosts.clone()),
        };
        let sender = send::Sender::new(policy.clone(), limits.timeout).map_err(io::Error::other)?;
        Ok(Self { book: Book::open(folder, limits.clone(), policy)?, sender })
    }

    /// What the engine is given.
    #[must_use]
    pub fn book(&self) -> Book {
        self.book.clone()
    }

    /// Starts making calls.
    #[must_use]
    pub fn start(self, engine: Engine, public_url: Option<String>) -> Dispatch {
        let stop = CancellationToken::new();
        let looking = tokio::spawn(dispatch::look_up(self.book.clone(), engine, stop.clone()));
        let delivering = tokio::spawn(dispatch::deliver(self.book, self.sender, public_url, stop.clone()));
        Dispatch { stop, tasks: [looking, delivering] }
    }
}

impl Dispatch {
    /// Interrupts calls under way and notes what those that are done came to.
    pub async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            let _ = task.await;
        }
    }
}
