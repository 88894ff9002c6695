//! The engine's networks that jobs are on: made when they are missing, and never taken for what others made under their names.

use std::collections::HashMap;

use bollard::errors::Error;
use bollard::models::{NetworkCreateRequest, NetworkInspect};
use bollard::query_parameters::ListNetworksOptionsBuilder;
use tracing::warn;

use super::engine::{Engine, is_ambiguous, is_not_found};
use super::names::LABEL;

/// What kind of network jobs are on, and what the options of that kind begin with.
const DRIVER: &str = "bridge";
const OPTIONS: &str = "com.docker.network.bridge";

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error(transparent)]
    Engine(#[from] Error),
    #[error(
        "the container engine has a network {name:?} that is not as jobs need it ({why}), and it is in use: stop what is on it, then remove it with `docker network rm {name}`"
    )]
    Foreign { name: &'static str, why: String },
}

/// A bridge from which its containers get out, and not to each other. One of that name that is something else is made anew.
pub(super) async fn ensure(engine: &Engine, name: &'static str, bridge: Option<&str>) -> Result<(), NetworkError> {
    let found = match engine.docker().inspect_network(name, None).await {
        Ok(found) => found,
        Err(error) if is_not_found(&error) => return Ok(create_network(engine, name, bridge).await?),
        Err(error) if is_ambiguous(&error) => {
            leave_one(engine, name).await?;
            engine.docker().inspect_network(name, None).await?
        }
        Err(error) => return Err(error.into()),
    };
    let Some(why) = difference(&found, bridge) else { return Ok(()) };
    // By its id: another worker may have made a right one of that name meanwhile.
    let id = found.id.as_deref().unwrap_or(name);
    match engine.docker().remove_network(id).await {
        Ok(()) => warn!("made the network {name} anew: {why}"),
        Err(error) if is_not_found(&error) => {}
        Err(refused @ Error::DockerResponseServerError { .. }) => {
            return Err(NetworkError::Foreign { name, why: format!("{why}; {}", words(&refused)) });
        }
        Err(error) => return Err(error.into()),
    }
    create_network(engine, name, bridge).await?;
    let made = engine.docker().inspect_network(name, None).await?;
    match difference(&made, bridge) {
        None => Ok(()),
        Some(why) => Err(NetworkError::Foreign { name, why }),
    }
}

fn words(error: &Error) -> String {
    if let Error::DockerResponseServerError { message, .. } = error {
        message.trim().to_owned()
    } else {
        error.to_string()
    }
}

/// What a network has that ours must not have, or the other way round.
fn difference(found: &NetworkInspect, bridge: Option<&str>) -> Option<String> {
    let option = |name: &str| {
        let options = found.options.as_ref();
        options.and_then(|options| options.get(&format!("{OPTIONS}.{name}"))).map(String::as_str)
    };
    let driver = found.driver.as_deref().unwrap_or_default();
    if driver != DRIVER {
        return Some(format!("its driver is {driver:?}"));
    }
    // Some engines do not tell the options; then it is believed to be as it was made.
    let is_ours = found.labels.as_ref().is_some_and(|labels| labels.contains_key(LABEL));
    match option("enable_icc") {
        Some("false") => {}
        None if is_ours => {}
        Some(_) | None => return Some("its containers reach each other".to_owned()),
    }
    if found.internal == Some(true) || option("enable_ip_masquerade") == Some("false") {
        return Some("nothing on it reaches the internet".to_owned());
    }
    if found.enable_ipv6 == Some(true) {
        return Some("it has IPv6".to_owned());
    }
    match bridge {
        Some(bridge) if option("name") != Some(bridge) => Some("its bridge is another".to_owned()),
        Some(_) | None => None,
    }
}

async fn create_network(engine: &Engine, name: &str, bridge: Option<&str>) -> Result<(), Error> {
    let option = |name: &str, value: &str| (format!("{OPTIONS}.{name}"), value.to_owned());
    let mut options = HashMap::from([option("enable_ip_masquerade", "true"), option("enable_icc", "false")]);
    options.extend(bridge.map(|bridge| option("name", bridge)));
    let created = engine
        .docker()
        .create_network(NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some(DRIVER.to_owned()),
            enable_ipv6: Some(false),
            options: Some(options),
            labels: Some(HashMap::from([(LABEL.to_owned(), "true".to_owned())])),
            ..NetworkCreateRequest::default()
        })
        .await;
    match created {
        Ok(_) => leave_one(engine, name).await,
        // Another worker was faster.
        Err(Error::DockerResponseServerError { status_code: 409, .. }) => Ok(()),
        // Or it has the bridge.
        Err(error) => engine.docker().inspect_network(name, None).await.map(drop).map_err(|_| error),
    }
}

/// Older engines make two networks of one name when two workers ask at once, and then find neither by name. Whoever sees several
/// leaves the one whose id sorts first, or that which containers are on, which there can only be one of; whoever made the last sees all.
async fn leave_one(engine: &Engine, name: &str) -> Result<(), Error> {
    let filters = HashMap::from([("name".to_owned(), vec![name.to_owned()])]);
    let options = ListNetworksOptionsBuilder::default().filters(&filters).build();
    let networks = engine.docker().list_networks(Some(options)).await?;
    let same = networks.iter().filter(|network| network.name.as_deref() == Some(name));
    let mut same: Vec<&str> = same.filter_map(|network| network.id.as_deref()).collect();
    same.sort_unstable();
    let mut same = same.into_iter();
    let Some(mut left) = same.next() else { return Ok(()) };
    for other in same {
        if remove_network(engine, other).await.is_err() {
            remove_network(engine, left).await?;
            left = other;
        }
    }
    Ok(())
}

async fn remove_network(engine: &Engine, id: &str) -> Result<(), Error> {
    match engine.docker().remove_network(id).await {
        Err(error) if is_not_found(&error) => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(driver: &str, options: &[(&str, &str)]) -> NetworkInspect {
        let option = |(name, value): &(&str, &str)| (format!("{OPTIONS}.{name}"), (*value).to_owned());
        let (driver, options) = (Some(driver.to_owned()), Some(options.iter().map(option).collect()));
        NetworkInspect { driver, options, ..NetworkInspect::default() }
    }

    #[test]
    fn a_network_that_lets_more_through_than_ours_is_told_from_it() {
        let ours = [("enable_icc", "false"), ("enable_ip_masquerade", "true")];
        assert_eq!(difference(&network(DRIVER, &ours), None), None);
        assert_eq!(difference(&network(DRIVER, &ours[..1]), None), None, "masquerading is the engine's default");
        let named = [&ours[..], &[("name", "gsi01")]].concat();
        assert_eq!(difference(&network(DRIVER, &named), Some("gsi01")), None);
        assert!(difference(&network(DRIVER, &ours), Some("gsi01")).is_some(), "another bridge has no rules");
        for other in [
            network(DRIVER, &[]),
            network(DRIVER, &[("enable_icc", "true")]),
            network("macvlan", &ours),
            NetworkInspect { enable_ipv6: Some(true), ..network(DRIVER, &ours) },
            NetworkInspect { internal: Some(true), ..network(DRIVER, &ours) },
        ] {
            assert!(difference(&other, None).is_some(), "{other:?}");
        }
        let labels = Some(HashMap::from([(LABEL.to_owned(), "true".to_owned())]));
        assert_eq!(difference(&NetworkInspect { labels, ..network(DRIVER, &[]) }, None), None, "of what is not told");
    }
}
