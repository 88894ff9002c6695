//! Why a worker cannot start or go on.

use std::path::PathBuf;

/// Why [`crate::run`] ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The container engine did not answer at start.
    #[error(
        "no container engine answers at {address} after {tries} tries: {source}; start it, or set DOCKER_HOST to where it listens"
    )]
    EngineDown {
        /// Where it was looked for.
        address: String,
        /// How often.
        tries: u32,
        /// What the last try said.
        source: bollard::errors::Error,
    },
    /// The engine answered but refused what every run needs.
    #[error("the container engine refused to {what}: {source}")]
    Engine {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        source: bollard::errors::Error,
    },
    /// The engine has other files under the data directory's path.
    #[error(
        "the container engine does not see the data directory {}: {why}, so that jobs would get no inputs and leave no outputs. \
         Mount a folder of the engine's machine under the path that it has there (docker run -v /tmp:/tmp …), and choose one in it \
         with --data-directory (/tmp/worker)",
        .path.display()
    )]
    NotShared {
        /// The directory.
        path: PathBuf,
        /// What the engine found.
        why: String,
    },
    /// Nothing keeps jobs from the host's neighbours, though that was asked for.
    #[error(
        "jobs cannot be kept to the internet: {why}; run the worker as root in the network namespace of the container engine, \
         with iptables (in a container: --network host --cap-add NET_ADMIN), or choose another --network"
    )]
    Egress {
        /// What is missing.
        why: String,
    },
    /// The address for metrics cannot be listened on.
    #[error("cannot listen on {address} for metrics: {source}; choose another address with --listen-metrics")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The engine has a network of our name that is none of ours.
    #[error("{why}")]
    Network {
        /// Which, what is wrong with it, and what to do.
        why: String,
    },
    /// Another process works with this data directory.
    #[error("the data directory {} is in use by another worker; give each its own with --data-directory", .path.display())]
    DataDirectoryInUse {
        /// The directory.
        path: PathBuf,
    },
    /// The data directory cannot be used.
    #[error("cannot use {}: {source}", .path.display())]
    DataDirectory {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A value that is not usable on this machine.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// TLS or the HTTP client could not be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

impl WorkerError {
    pub(crate) fn disk(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::DataDirectory { path, source }
    }
}
