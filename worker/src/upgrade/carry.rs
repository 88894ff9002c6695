//! From what a container is to what its successor is made of: all that somebody said when it was started, and nothing of what its
//! image said, which the next image says for itself.

use std::collections::{BTreeSet, HashMap};

use bollard::models::{
    ContainerConfig, ContainerCreateBody, ContainerInspectResponse, EndpointSettings, HostConfig, ImageConfig,
    MountPoint, MountType, NetworkingConfig,
};

use super::names::{LABEL_IMAGE, LABEL_KEPT, LABEL_NAME, LABEL_OF};

/// How many characters of its id a container is called by.
const SHORT_ID: usize = 12;
/// How the engine tells a volume from a folder of its machine.
const VOLUME: &str = "volume";

/// A network's name, and what is said of the container's place in it.
type Place = (String, EndpointSettings);

/// A container to be made, and the networks that it has to be connected to before it is started: older engines take one at once.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Carried {
    pub(super) body: ContainerCreateBody,
    pub(super) networks: Vec<Place>,
}

/// The successor of `old`, whose image said `before`, from `image`.
pub(super) fn carry(old: &ContainerInspectResponse, before: Option<&ImageConfig>, image: &str) -> Carried {
    let config = old.config.clone().unwrap_or_default();
    let before = before.cloned().unwrap_or_default();
    let id = old.id.clone().unwrap_or_default();
    let host = host_config(old);
    let mode = host.network_mode.clone().unwrap_or_default();
    let (first, networks) = networks(old, &mode, &id);
    let ContainerConfig { hostname, domainname, tty, open_stdin, stdin_once, network_disabled, stop_timeout, .. } =
        config;
    // An entrypoint of one's own leaves nothing of the image's command.
    let entrypoint = said(config.entrypoint, &before.entrypoint);
    let cmd = if entrypoint.is_some() { config.cmd } else { said(config.cmd, &before.cmd) };
    let is_own_host =
        |name: &String| !name.is_empty() && !id.starts_with(name.as_str()) && !shares_host_name(&mode, &host);
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        hostname: hostname.filter(is_own_host),
        domainname: domainname.filter(|name| !name.is_empty()),
        user: said(config.user, &before.user),
        exposed_ports: less(config.exposed_ports, before.exposed_ports.as_deref()),
        tty,
        open_stdin,
        stdin_once,
        env: less(config.env, before.env.as_deref()),
        cmd,
        entrypoint,
        healthcheck: said(config.healthcheck, &before.healthcheck),
        volumes: less(config.volumes, before.volumes.as_deref()),
        working_dir: said(config.working_dir, &before.working_dir),
        network_disabled,
        labels: Some(labels(config.labels.unwrap_or_default(), &before.labels.unwrap_or_default())),
        stop_signal: said(config.stop_signal, &before.stop_signal),
        stop_timeout,
        shell: said(config.shell, &before.shell),
        networking_config: first.map(|endpoint| NetworkingConfig { endpoints_config: Some(HashMap::from([endpoint])) }),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    };
    Carried { body, networks }
}

/// The same, marked as the successor of the container `old` under `name`.
pub(super) fn marked(mut body: ContainerCreateBody, old: &str, name: &str) -> ContainerCreateBody {
    let marks = [(LABEL_OF, old), (LABEL_NAME, name)].map(|(label, value)| (label.to_owned(), value.to_owned()));
    body.labels.get_or_insert_default().extend(marks);
    body
}

/// The same, marked as what comes back under `name`, from an image that was known as `image`.
pub(super) fn kept(mut body: ContainerCreateBody, name: &str, image: &str) -> ContainerCreateBody {
    let marks = [(LABEL_KEPT, name), (LABEL_IMAGE, image)].map(|(label, value)| (label.to_owned(), value.to_owned()));
    body.labels.get_or_insert_default().extend(marks);
    body
}

/// What the image did not say just so.
fn said<T: PartialEq>(value: Option<T>, by_image: &Option<T>) -> Option<T> {
    value.filter(|value| by_image.as_ref() != Some(value))
}

fn less(list: Option<Vec<String>>, by_image: Option<&[String]>) -> Option<Vec<String>> {
    let by_image = by_image.unwrap_or_default();
    let rest: Vec<String> = list?.into_iter().filter(|entry| !by_image.contains(entry)).collect();
    (!rest.is_empty()).then_some(rest)
}

fn labels(all: HashMap<String, String>, by_image: &HashMap<String, String>) -> HashMap<String, String> {
    let is_mark = |name: &str| [LABEL_OF, LABEL_NAME, LABEL_KEPT, LABEL_IMAGE].contains(&name);
    all.into_iter().filter(|(name, value)| by_image.get(name) != Some(value) && !is_mark(name)).collect()
}

/// Whether it is called as another is called, and may not be told a name.
fn shares_host_name(mode: &str, host: &HostConfig) -> bool {
    mode == "host" || mode.starts_with("container:") || host.uts_mode.as_deref() == Some("host")
}

fn host_config(old: &ContainerInspectResponse) -> HostConfig {
    let mut host = old.host_config.clone().unwrap_or_default();
    host.links = host.links.map(|links| links.iter().filter_map(|link| readable_link(link)).collect());
    let volumes: Vec<&MountPoint> = old
        .mounts
        .iter()
        .flatten()
        .filter(|mount| mount.typ.as_deref() == Some(VOLUME) && mount.name.is_some())
        .collect();
    // Volumes without a name of their own are carried by the one that the engine gave them.
    for mount in host.mounts.iter_mut().flatten() {
        let is_nameless = mount.typ == Some(MountType::VOLUME) && mount.source.as_ref().is_none_or(String::is_empty);
        if is_nameless && let Some(volume) = volumes.iter().find(|volume| volume.destination == mount.target) {
            mount.source.clone_from(&volume.name);
        }
    }
    let named: BTreeSet<&str> = {
        let binds = host.binds.iter().flatten().filter_map(|bind| bind.split(':').nth(1));
        binds.chain(host.mounts.iter().flatten().filter_map(|mount| mount.target.as_deref())).collect()
    };
    let nameless = volumes.into_iter().filter_map(|volume| {
        let (name, at) = (volume.name.as_deref()?, volume.destination.as_deref()?);
        let mode = if volume.rw == Some(false) { ":ro" } else { "" };
        (!named.contains(at)).then(|| format!("{name}:{at}{mode}"))
    });
    let nameless: Vec<String> = nameless.collect();
    if !nameless.is_empty() {
        host.binds.get_or_insert_default().extend(nameless);
    }
    host
}

/// The engine tells `/other:/this/alias`, and wants to hear `other:alias`.
fn readable_link(told: &str) -> Option<String> {
    let (other, alias) = told.split_once(':')?;
    Some(format!("{}:{}", other.trim_start_matches('/'), alias.rsplit('/').next()?))
}

/// The network to start with, and the others.
fn networks(old: &ContainerInspectResponse, mode: &str, id: &str) -> (Option<Place>, Vec<Place>) {
    let networks = old.network_settings.as_ref().and_then(|settings| settings.networks.clone()).unwrap_or_default();
    if matches!(mode, "host" | "none") || mode.starts_with("container:") {
        return (None, Vec::new());
    }
    let is_default = |name: &str| matches!(mode, "" | "default" | "bridge") && name == "bridge";
    let is_first =
        |name: &str, endpoint: &EndpointSettings| name == mode || endpoint.network_id.as_deref() == Some(mode);
    let (mut first, mut others) = (None, Vec::new());
    for (name, endpoint) in networks {
        if is_default(&name) {
            continue;
        }
        let place = place(&endpoint, id);
        if is_first(&name, &endpoint) { first = Some((mode.to_owned(), place)) } else { others.push((name, place)) }
    }
    others.sort_by(|(one, _), (other, _)| one.cmp(other));
    (first, others)
}

/// What somebody said of the place in a network; the rest is what the engine found.
fn place(endpoint: &EndpointSettings, id: &str) -> EndpointSettings {
    let is_own = |alias: &String| alias.len() == SHORT_ID && id.starts_with(alias.as_str());
    let aliases = endpoint.aliases.clone().map(|aliases| aliases.into_iter().filter(|alias| !is_own(alias)).collect());
    EndpointSettings {
        ipam_config: endpoint.ipam_config.clone(),
        links: endpoint.links.clone(),
        aliases,
        driver_opts: endpoint.driver_opts.clone(),
        gw_priority: endpoint.gw_priority,
        ..EndpointSettings::default()
    }
}

#[cfg(test)]
mod tests;
