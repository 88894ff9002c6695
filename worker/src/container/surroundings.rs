//! What every container needs beside its image: a network and its queue's cache volume. Made once, and again when somebody
//! removed them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bollard::errors::Error;
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;
use tracing::error;

use super::cache::Volumes;
use super::egress::{self, EgressError};
use super::engine::Engine;
use super::names::{NETWORK, NETWORK_INTERNET, internet_bridge};
use super::network::{self, NetworkError};
use crate::config::INTERNET_ONLY;

/// How often the rules around a network are looked for while nothing is started: a firewall that is reloaded forgets them, and
/// jobs may run for days.
const GUARD_EVERY: Duration = Duration::from_secs(10);

/// Remembers what stands.
#[derive(Debug)]
pub(crate) struct Surroundings {
    network: Network,
    cache_bytes_max: Option<u64>,
    ready: Mutex<Ready>,
    /// Whether there are containers that are to be kept to the internet; also those of an earlier process.
    is_guarded: AtomicBool,
}

/// Which network containers are put on.
#[derive(Debug)]
enum Network {
    /// The workers' own bridge.
    Own,
    /// A bridge with nothing but the internet behind it.
    InternetOnly,
    /// One that somebody else looks after.
    Named(String),
}

#[derive(Debug, Default)]
struct Ready {
    network: bool,
    caches: HashMap<String, Volumes>,
}

/// Why containers cannot be given what they need.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SurroundingsError {
    #[error(transparent)]
    Engine(#[from] Error),
    #[error(transparent)]
    Egress(#[from] EgressError),
    #[error("{0}")]
    Network(NetworkError),
}

impl From<NetworkError> for SurroundingsError {
    fn from(error: NetworkError) -> Self {
        match error {
            NetworkError::Engine(error) => Self::Engine(error),
            other @ NetworkError::Foreign { .. } => Self::Network(other),
        }
    }
}

impl Surroundings {
    /// For containers on `network`; the workers' own bridge when `None`.
    pub(crate) fn new(network: Option<String>, cache_bytes_max: Option<u64>) -> Self {
        let network = match network {
            None => Network::Own,
            Some(name) if name == INTERNET_ONLY => Network::InternetOnly,
            Some(name) => Network::Named(name),
        };
        let is_guarded = matches!(network, Network::InternetOnly).into();
        Self { network, cache_bytes_max, ready: Mutex::default(), is_guarded }
    }

    /// Sees to it, beside the work, that what keeps running jobs to the internet stands; given up when the handle is dropped.
    pub(crate) fn guard(self: &Arc<Self>, engine: &Engine) -> AbortOnDropHandle<()> {
        let (surroundings, engine) = (Arc::clone(self), engine.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            let bridge = internet_bridge(&engine.facts().id);
            loop {
                tokio::time::sleep(GUARD_EVERY).await;
                if surroundings.is_guarded.load(Ordering::Relaxed) {
                    // One at a time with what a run does.
                    let _ready = surroundings.ready.lock().await;
                    if let Err(why) = egress::ensure(&bridge).await {
                        error!("running jobs may reach more than the internet: {why}");
                    }
                }
            }
        }))
    }

    /// A container of an earlier process stays on the network that it was started on. If that is the one with nothing but the
    /// internet behind it, what keeps it so has to stand, whatever this process was told.
    ///
    /// # Errors
    ///
    /// [`EgressError`]: it reaches more than it may.
    pub(crate) async fn adopt(&self, engine: &Engine, networks: &[String]) -> Result<(), EgressError> {
        if !networks.iter().any(|name| name == NETWORK_INTERNET) {
            return Ok(());
        }
        self.is_guarded.store(true, Ordering::Relaxed);
        let _ready = self.ready.lock().await;
        egress::ensure(&internet_bridge(&engine.facts().id)).await
    }

    pub(crate) fn network(&self) -> &str {
        match &self.network {
            Network::Own => NETWORK,
            Network::InternetOnly => NETWORK_INTERNET,
            Network::Named(name) => name,
        }
    }

    /// Makes the network if it is missing, the first time or after [`Self::doubt`]; sees each time that nothing leads out of
    /// it that must not.
    pub(crate) async fn ensure_network(&self, engine: &Engine) -> Result<(), SurroundingsError> {
        let mut ready = self.ready.lock().await;
        let bridge = internet_bridge(&engine.facts().id);
        if !ready.network {
            match self.network {
                Network::Own => network::ensure(engine, NETWORK, None).await?,
                Network::InternetOnly => network::ensure(engine, NETWORK_INTERNET, Some(&bridge)).await?,
                Network::Named(_) => {}
            }
        }
        if matches!(self.network, Network::InternetOnly) {
            egress::ensure(&bridge).await?;
        }
        ready.network = true;
        Ok(())
    }

    /// The same for the network and the volume of a queue whose volumes are called as `base`; tells the volume to take, and
    /// whether it is open for all users already.
    pub(crate) async fn ensure(&self, engine: &Engine, base: &str) -> Result<(String, bool), SurroundingsError> {
        self.ensure_network(engine).await?;
        let mut ready = self.ready.lock().await;
        let volumes = match ready.caches.get_mut(base) {
            Some(volumes) => volumes,
            None => {
                let made = Volumes::ready(engine, base, self.cache_bytes_max).await?;
                ready.caches.entry(base.to_owned()).or_insert(made)
            }
        };
        let bytes_max = self.cache_bytes_max.filter(|_| volumes.is_due());
        let mut volumes = volumes.clone();
        drop(ready);
        if let Some(bytes_max) = bytes_max
            && volumes.bound(engine, base, bytes_max).await?
        {
            self.ready.lock().await.caches.insert(base.to_owned(), volumes.clone());
        }
        Ok((volumes.name, volumes.is_open))
    }

    /// The volume of that name is open for all users now.
    pub(crate) async fn opened(&self, volume: &str) {
        let mut ready = self.ready.lock().await;
        if let Some(volumes) = ready.caches.values_mut().find(|volumes| volumes.name == volume) {
            volumes.is_open = true;
        }
    }

    /// Something was missing: look again next time.
    pub(crate) async fn doubt(&self) {
        *self.ready.lock().await = Ready::default();
    }
}
