//! Checked settings of a broker: what flags and environment become before anything is opened.
//!
//! Nothing here reads flags, the environment or the clock; the binary does and fills this in.

use std::path::PathBuf;

mod blobs;
mod limits;
mod proxies;

pub use blobs::{Access, BlobsUrl, BlobsUrlError, BucketUrl};
pub use limits::{LimitError, Limits, NAMES as LIMIT_NAMES};
pub use proxies::{AddressRange, AddressRangeError};

pub use crate::journal::Durability;
pub use crate::logs::LogLimits;
use crate::original;
use crate::webhooks;

/// Everything a broker is told at start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder that holds the journal, the logs and, unless said otherwise, the blobs. Made when it is missing.
    pub data: PathBuf,
    /// Where blobs are kept. Default: the folder `blobs` in `data`.
    pub blobs: BlobsUrl,
    /// When an acknowledgement may leave. Default: after its record is on disk.
    pub durability: Durability,
    /// Which of the two deployments this is. Default: [`Flavour::Remote`].
    pub flavour: Flavour,
    /// Web origins (`https://host[:port]`) whose pages may use a [`Flavour::Local`] broker, besides its own page and pages
    /// served from this machine. Not looked at in [`Flavour::Remote`], where knowing a queue's name is the only key.
    pub allowed_origins: Vec<String>,
    /// How others reach this broker (`https://grid.example`), when it can't be told from a request's `Host`.
    pub public_url: Option<String>,
    /// Proxies in front of this broker: what they say in `X-Forwarded-For` and `X-Forwarded-Proto` is believed, so that limits
    /// per address are their clients'. Default: none.
    pub trusted_proxies: Vec<AddressRange>,
    /// When sockets of the original's kind are told what. Default: as the original, where its peers rely on it.
    pub original: original::Times,
    /// Which addresses webhooks may call. Default: public ones only.
    pub webhooks: webhooks::Reach,
    /// Bounds on everything that a peer can make large.
    pub limits: Limits,
}

/// The page that embeds job frames lives here, so a local broker lets it in unless told otherwise.
pub const ALLOWED_ORIGINS: [&str; 1] = ["https://container.mtfm.io"];

impl Config {
    /// The defaults, with everything stored under `data`.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>) -> Self {
        let data = data.into();
        Self {
            blobs: BlobsUrl::Folder(data.join("blobs")),
            data,
            durability: Durability::default(),
            flavour: Flavour::Remote,
            allowed_origins: ALLOWED_ORIGINS.map(str::to_owned).to_vec(),
            public_url: None,
            trusted_proxies: Vec::new(),
            original: original::Times::default(),
            webhooks: webhooks::Reach::default(),
            limits: Limits::default(),
        }
    }

    /// The folder of the journal.
    #[must_use]
    pub fn journal_dir(&self) -> PathBuf {
        self.data.join("journal")
    }

    /// The folder of the webhooks.
    #[must_use]
    pub fn webhooks_dir(&self) -> PathBuf {
        self.data.join("webhooks")
    }

    /// The folder of the logs.
    #[must_use]
    pub fn logs_dir(&self) -> PathBuf {
        self.data.join("logs")
    }
}

/// The two deployments that clients know: they differ in CORS, redirects and what the routes without a queue mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// A broker that anyone may reach.
    Remote,
    /// A broker embedded beside one worker on a person's machine; routes without a queue mean the queue `local`.
    Local,
}

/// The queue of a [`Flavour::Local`] broker's own worker.
pub const LOCAL_QUEUE: &str = "local";
