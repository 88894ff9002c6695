//! What every container needs beside its image: a network and its queue's cache volume. Made once, and again when somebody
//! removed them.

use std::collections::HashMap;

use bollard::errors::Error;
use bollard::models::NetworkCreateRequest;
use bollard::query_parameters::ListNetworksOptionsBuilder;
use tokio::sync::Mutex;

use super::cache::Volumes;
use super::egress::{self, EgressError};
use super::engine::{Engine, is_not_found};
use super::names::{LABEL, NETWORK, NETWORK_INTERNET, internet_bridge};
use crate::config::INTERNET_ONLY;

/// Remembers what stands.
#[derive(Debug)]
pub(crate) struct Surroundings {
    network: Network,
    cache_bytes_max: Option<u64>,
    ready: Mutex<Ready>,
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
}

impl Surroundings {
    /// For containers on `network`; the workers' own bridge when `None`.
    pub(crate) fn new(network: Option<String>, cache_bytes_max: Option<u64>) -> Self {
        let network = match network {
            None => Network::Own,
            Some(name) if name == INTERNET_ONLY => Network::InternetOnly,
            Some(name) => Network::Named(name),
        };
        Self { network, cache_bytes_max, ready: Mutex::default() }
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
                Network::Own => ensure_network(engine, NETWORK, None).await?,
                Network::InternetOnly => ensure_network(engine, NETWORK_INTERNET, Some(&bridge)).await?,
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

/// A bridge from which its containers get out, and not to each other.
async fn ensure_network(engine: &Engine, name: &str, bridge: Option<&str>) -> Result<(), Error> {
    match engine.docker().inspect_network(name, None).await {
        Ok(_) => return Ok(()),
        Err(error) if is_not_found(&error) => {}
        Err(error) => return Err(error),
    }
    let option = |name: &str, value: &str| (format!("com.docker.network.bridge.{name}"), value.to_owned());
    let mut options = HashMap::from([option("enable_ip_masquerade", "true"), option("enable_icc", "false")]);
    options.extend(bridge.map(|bridge| option("name", bridge)));
    let created = engine
        .docker()
        .create_network(NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".to_owned()),
            enable_ipv6: Some(false),
            options: Some(options),
            labels: Some(HashMap::from([(LABEL.to_owned(), "true".to_owned())])),
            ..NetworkCreateRequest::default()
        })
        .await;
    match created {
        Ok(created) => remove_if_second(engine, name, &created.id).await,
        // Another worker was faster.
        Err(Error::DockerResponseServerError { status_code: 409, .. }) => Ok(()),
        // Or it has the bridge.
        Err(error) => engine.docker().inspect_network(name, None).await.map(drop).map_err(|_| error),
    }
}

/// Older engines make two networks of one name when two workers ask at once, and then find neither by name. All agree on
/// the one whose id sorts first.
async fn remove_if_second(engine: &Engine, name: &str, made: &str) -> Result<(), Error> {
    let filters = HashMap::from([("name".to_owned(), vec![name.to_owned()])]);
    let options = ListNetworksOptionsBuilder::default().filters(&filters).build();
    let networks = engine.docker().list_networks(Some(options)).await?;
    let same = networks.iter().filter(|network| network.name.as_deref() == Some(name));
    match same.filter_map(|network| network.id.as_deref()).min() {
        Some(first) if first != made => engine.docker().remove_network(made).await,
        Some(_) | None => Ok(()),
    }
}
