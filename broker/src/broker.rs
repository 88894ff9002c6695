//! A whole broker: opens what is stored, starts the engine, serves.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::blobs::{BlobError, Blobs};
use crate::config::Config;
use crate::engine::{Engine, EngineConfig};
use crate::http::{self, AppState};
use crate::journal::{Journal, JournalConfig, JournalError};
use crate::logs::LogStore;
use crate::retention::Retention;
use crate::webhooks::{Dispatch, Webhooks};

/// Why a broker does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The journal does not open.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The blob store does not open.
    #[error("cannot open the blob store")]
    Blobs(#[from] BlobError),
    /// The logs' folder cannot be made, or the listening address is not known.
    #[error("cannot use the data folder or the address")]
    Io(#[from] io::Error),
    /// A write failed while serving: what was acknowledged is safe, nothing more is acknowledged; to be started again.
    #[error(
        "a write to the journal failed; nothing acknowledged is lost; free disk space or replace the disk, then start again"
    )]
    WriteFailed,
}

/// Starts brokers.
#[derive(Debug)]
pub struct Broker;

/// A running broker.
pub struct BrokerHandle {
    addr: SocketAddr,
    engine: Engine,
    retention: Retention,
    dispatch: Dispatch,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Broker {
    /// Opens the data folder and serves on `listener`.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] when something does not open: the folder is in use, the disk is full, a setting is wrong.
    pub async fn start(config: Config, listener: TcpListener) -> Result<BrokerHandle, BrokerError> {
        let addr = listener.local_addr()?;
        let journal_config =
            JournalConfig { durability: config.durability, ..JournalConfig::new(config.journal_dir()) };
        let opened =
            tokio::task::spawn_blocking(move || Journal::open(journal_config)).await.map_err(io::Error::other)?;
        let (journal, report) = opened?;
        for line in report.lines() {
            warn!("journal: {line}");
        }
        private_folder(&config.logs_dir())?;
        if let Some(folder) = config.blobs.folder() {
            let failed = |source| BlobError::Folder { folder: folder.display().to_string(), source };
            private_folder(folder).map_err(failed)?;
        }
        let logs = LogStore::open(config.logs_dir(), config.limits.logs)?;
        let blobs = Blobs::open(&config.blobs, config.limits.blob_bytes_max).await?;
        let limits = config.limits.queue.clone();
        let blob_uses = blobs.uses().clone();
        let webhooks = Webhooks::open(&config.webhooks_dir(), &config.limits.webhooks, &config.webhooks)?;
        let engine = Engine::start(journal, logs, EngineConfig { limits, blob_uses, webhooks: Some(webhooks.book()) });
        let dispatch = webhooks.start(engine.clone(), config.public_url.clone());
        let stop = CancellationToken::new();
        let state = AppState::new(engine.clone(), blobs, config);
        let retention = state.retention().clone();
        tokio::spawn(retention.clone().run());
        let serving = tokio::spawn(http::serve(listener, state, stop.clone()));
        info!(%addr, "listening on {addr}");
        Ok(BrokerHandle { addr, engine, retention, dispatch, stop, serving })
    }
}

/// Makes a folder that only its owner may look into. One that exists is left as its owner has it.
fn private_folder(folder: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

impl BrokerHandle {
    /// Where it listens.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The engine.
    #[must_use]
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What removes what is kept no longer; it does so by itself.
    #[must_use]
    pub const fn retention(&self) -> &Retention {
        &self.retention
    }

    /// Resolves when a write has failed and the process must start again.
    pub async fn failed(&self) -> BrokerError {
        self.engine.failed().await;
        BrokerError::WriteFailed
    }

    /// Stops taking connections, ends sockets, writes what was begun, and closes the journal.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.dispatch.stop().await;
        self.engine.stop().await;
        let _ = self.serving.await;
    }
}
