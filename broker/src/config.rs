//! Checked settings of a broker: what flags and environment become before anything is opened.
//!
//! Nothing here reads flags, the environment or the clock; the binary does and fills this in.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use percent_encoding::percent_decode_str;

mod limits;
mod proxies;

pub use limits::{LimitError, Limits, NAMES as LIMIT_NAMES};
pub use proxies::{AddressRange, AddressRangeError};

pub use crate::journal::Durability;
pub use crate::logs::LogLimits;
use crate::original;

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
            limits: Limits::default(),
        }
    }

    /// The folder of the journal.
    #[must_use]
    pub fn journal_dir(&self) -> PathBuf {
        self.data.join("journal")
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

/// Where blobs are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobsUrl {
    /// A folder on this machine.
    Folder(PathBuf),
}

impl BlobsUrl {
    /// The folder, when blobs are on this machine.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(path) => Some(path),
        }
    }
}

/// Why a text does not say where to keep blobs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlobsUrlError {
    /// Nothing was said.
    #[error("the blob store is empty: give a folder or a file:///… address")]
    Empty,
    /// A store that this build cannot use.
    #[error(
        "blob stores of the kind {scheme}:// are not supported by this build; give a folder or a file:///… address"
    )]
    Unsupported {
        /// What stands before `://`.
        scheme: String,
    },
    /// A file address with a host or with escapes that are not text.
    #[error("a file address has three slashes and an absolute path: file:///var/lib/gridsocket/blobs")]
    BadFileUrl,
}

impl FromStr for BlobsUrl {
    type Err = BlobsUrlError;

    fn from_str(text: &str) -> Result<Self, BlobsUrlError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return if text.is_empty() { Err(BlobsUrlError::Empty) } else { Ok(Self::Folder(text.into())) };
        };
        if !scheme.eq_ignore_ascii_case("file") {
            return Err(BlobsUrlError::Unsupported { scheme: scheme.to_owned() });
        }
        let path = percent_decode_str(rest).decode_utf8().map_err(|_| BlobsUrlError::BadFileUrl)?;
        if path.starts_with('/') { Ok(Self::Folder(path.as_ref().into())) } else { Err(BlobsUrlError::BadFileUrl) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_go_to_a_folder_given_as_a_path_or_as_a_file_address() {
        assert_eq!("/srv/b".parse(), Ok(BlobsUrl::Folder("/srv/b".into())));
        assert_eq!("blobs".parse(), Ok(BlobsUrl::Folder("blobs".into())));
        assert_eq!("file:///srv/a%20b".parse(), Ok(BlobsUrl::Folder("/srv/a b".into())));
    }

    #[test]
    fn a_blob_store_that_cannot_be_used_is_refused_with_its_kind() {
        assert_eq!("".parse::<BlobsUrl>(), Err(BlobsUrlError::Empty));
        assert_eq!("file://host/b".parse::<BlobsUrl>(), Err(BlobsUrlError::BadFileUrl));
        let error = "s3://bucket".parse::<BlobsUrl>().unwrap_err();
        assert!(error.to_string().contains("s3://"), "{error}");
    }
}
