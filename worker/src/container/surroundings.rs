//! What every container needs beside its image: the workers' network and its queue's cache volume. Made once, and again when
//! somebody removed them.

use std::collections::{HashMap, HashSet};

use bollard::errors::Error;
use bollard::models::{NetworkCreateRequest, VolumeCreateRequest};
use bollard::query_parameters::ListNetworksOptionsBuilder;
use tokio::sync::Mutex;

use super::engine::{Engine, is_not_found};
use super::names::{LABEL, NETWORK};

/// Remembers what stands.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// The network that containers are put on.
    network: String,
    ready: Mutex<Ready>,
}

#[derive(Debug, Default)]
struct Ready {
    network: bool,
    caches: HashSet<String>,
}

impl Surroundings {
    /// For containers on `network`; the workers' own bridge when `None`.
    pub(crate) fn new(network: Option<String>) -> Self {
        Self { network: network.unwrap_or_else(|| NETWORK.to_owned()), ready: Mutex::default() }
    }

    pub(crate) fn network(&self) -> &str {
        &self.network
    }

    /// Makes the network if it is missing, the first time or after [`Self::doubt`].
    pub(crate) async fn ensure_network(&self, engine: &Engine) -> Result<(), Error> {
        let mut ready = self.ready.lock().await;
        if !ready.network && self.network == NETWORK {
            ensure_network(engine).await?;
        }
        ready.network = true;
        Ok(())
    }

    /// The same for the network and the cache volume of that name.
    pub(crate) async fn ensure(&self, engine: &Engine, cache: &str) -> Result<(), Error> {
        self.ensure_network(engine).await?;
        let mut ready = self.ready.lock().await;
        if !ready.caches.contains(cache) {
            let (name, labels) = (Some(cache.to_owned()), Some(labels()));
            engine
                .docker()
                .create_volume(VolumeCreateRequest { name, labels, ..VolumeCreateRequest::default() })
                .await?;
            ready.caches.insert(cache.to_owned());
        }
        Ok(())
    }

    /// Something was missing: look again next time.
    pub(crate) async fn doubt(&self) {
        *self.ready.lock().await = Ready::default();
    }
}

fn labels() -> HashMap<String, String> {
    HashMap::from([(LABEL.to_owned(), "true".to_owned())])
}

async fn ensure_network(engine: &Engine) -> Result<(), Error> {
    match engine.docker().inspect_network(NETWORK, None).await {
        Ok(_) => return Ok(()),
        Err(error) if is_not_found(&error) => {}
        Err(error) => return Err(error),
    }
    let option = |name: &str, value: &str| (format!("com.docker.network.bridge.{name}"), value.to_owned());
    let created = engine
        .docker()
        .create_network(NetworkCreateRequest {
            name: NETWORK.to_owned(),
            driver: Some("bridge".to_owned()),
            enable_ipv6: Some(false),
            options: Some(HashMap::from([option("enable_ip_masquerade", "true"), option("enable_icc", "false")])),
            labels: Some(labels()),
            ..NetworkCreateRequest::default()
        })
        .await;
    match created {
        Ok(created) => remove_if_second(engine, &created.id).await,
        // Another worker was faster.
        Err(Error::DockerResponseServerError { status_code: 409, .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Older engines make two networks of one name when two workers ask at once, and then find neither by name. All agree on
/// the one whose id sorts first.
async fn remove_if_second(engine: &Engine, made: &str) -> Result<(), Error> {
    let filters = HashMap::from([("name".to_owned(), vec![NETWORK.to_owned()])]);
    let options = ListNetworksOptionsBuilder::default().filters(&filters).build();
    let networks = engine.docker().list_networks(Some(options)).await?;
    let same = networks.iter().filter(|network| network.name.as_deref() == Some(NETWORK));
    match same.filter_map(|network| network.id.as_deref()).min() {
        Some(first) if first != made => engine.docker().remove_network(made).await,
        Some(_) | None => Ok(()),
    }
}
