//! Who is a worker, which image is next, and what things are called while they are exchanged.

use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, ContainerSummary};
use bollard::query_parameters::ListContainersOptionsBuilder;

use super::Target;
use crate::container::{Engine, LABEL_ID};

/// The id of the container that a new one is to replace.
pub(super) const LABEL_OF: &str = "container.mtfm.io/upgrade.of";
/// The name that is passed on.
pub(super) const LABEL_NAME: &str = "container.mtfm.io/upgrade.name";
/// The name of a container that removes itself, on one that was made to come back in its place.
pub(super) const LABEL_KEPT: &str = "container.mtfm.io/upgrade.kept";
/// By which name its image was known then: it is made from the image's id, as the name may mean the next one already.
pub(super) const LABEL_IMAGE: &str = "container.mtfm.io/upgrade.image";
/// What our image says of itself; containers have the labels of their images.
const LABEL_WORKERS: (&str, &str) = ("container.mtfm.io", "worker");
/// Images that hold workers: the original's, and ours.
const REPOSITORIES: [&str; 2] = ["metapage/metaframe-docker-worker", "gridsocket/worker"];
/// The variant of the original's image that brings an engine along.
const STANDALONE: &str = "-standalone";

/// What the new one is called until the old one has stopped.
pub(super) fn successor(name: &str) -> String {
    format!("{name}-upgrade")
}

/// What the old one is called until the new one is well.
pub(super) fn predecessor(name: &str) -> String {
    format!("{name}-before-upgrade")
}

/// A container's name; the engine writes a slash before it.
pub(super) fn plain(container: &ContainerInspectResponse) -> &str {
    container.name.as_deref().unwrap_or_default().trim_start_matches('/')
}

/// Whether this process runs in it: the engine calls a container's host by its id.
pub(super) fn is_own(container: &ContainerInspectResponse) -> bool {
    const HOST: &str = "/proc/sys/kernel/hostname";
    const SHORT_ID: usize = 12;
    let host = std::fs::read_to_string(HOST).unwrap_or_default();
    let host = host.trim();
    host.len() >= SHORT_ID && container.id.as_deref().is_some_and(|id| id.starts_with(host))
}

/// The names of the running workers, or those that were given.
pub(super) async fn workers(engine: &Engine, given: &[String]) -> Result<Vec<String>, Error> {
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    let options = ListContainersOptionsBuilder::default().build();
    let running = engine.docker().list_containers(Some(options)).await?;
    let mut names: Vec<String> = running.iter().filter(|one| is_worker(one)).filter_map(name_of).collect();
    names.sort_unstable();
    Ok(names)
}

fn name_of(container: &ContainerSummary) -> Option<String> {
    // Links of others give it further names, with a slash in them.
    let names = container.names.iter().flatten().map(|name| name.trim_start_matches('/'));
    names.filter(|name| !name.contains('/')).map(str::to_owned).next()
}

fn is_worker(container: &ContainerSummary) -> bool {
    let label = |name: &str| container.labels.as_ref().and_then(|labels| labels.get(name)).map(String::as_str);
    let (repository, _) = split(container.image.as_deref().unwrap_or_default());
    let is_known = REPOSITORIES.iter().any(|known| repository == *known || repository.ends_with(&format!("/{known}")));
    // A job may be a worker's image, too.
    label(LABEL_ID).is_none() && (is_known || label(LABEL_WORKERS.0) == Some(LABEL_WORKERS.1))
}

/// The name of the image that a container was started from.
pub(super) fn image_of(container: &ContainerInspectResponse) -> String {
    let config = container.config.as_ref();
    let image = config.and_then(|config| config.image.clone()).unwrap_or_default();
    let known = config.and_then(|config| config.labels.as_ref()?.get(LABEL_IMAGE).cloned());
    known.filter(|_| is_digest(&image)).unwrap_or(image)
}

/// Repository, and tag.
fn split(image: &str) -> (&str, Option<&str>) {
    let (name, _) = image.split_once('@').unwrap_or((image, ""));
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        Some(_) | None => (name, None),
    }
}

/// The image that comes after `current`.
pub(super) fn target(current: &str, target: &Target) -> Result<String, String> {
    let (repository, tag) = split(current);
    let is_named = !repository.is_empty() && !repository.starts_with("sha256") && !is_digest(current);
    match target {
        Target::Image(image) => Ok(image.clone()),
        Target::Same if is_named && !current.contains('@') => Ok(format!("{repository}:{}", tag.unwrap_or("latest"))),
        Target::Version(version) if is_named => {
            let is_standalone = tag.is_some_and(|tag| tag.ends_with(STANDALONE)) && !version.ends_with(STANDALONE);
            Ok(format!("{repository}:{version}{}", if is_standalone { STANDALONE } else { "" }))
        }
        Target::Same | Target::Version(_) => {
            Err(format!("it was started by {current}, which names one image for ever: say the next one with --image"))
        }
    }
}

/// An image's id alone, with or without its first word.
fn is_digest(text: &str) -> bool {
    const ID_CHARS: [usize; 2] = [12, 64];
    let text = text.strip_prefix("sha256:").unwrap_or(text);
    ID_CHARS.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn the_next_image_has_the_same_name_unless_another_is_said() {
        let same = |current| target(current, &Target::Same);
        assert_eq!(same("gridsocket/worker").as_deref(), Ok("gridsocket/worker:latest"));
        assert_eq!(same("r:5000/worker:1").as_deref(), Ok("r:5000/worker:1"));
        assert!(same("gridsocket/worker@sha256:00").is_err() && same("0123456789ab").is_err() && same("").is_err());
        let version = |current| target(current, &Target::Version("2.0.0".into()));
        assert_eq!(version("r:5000/worker").as_deref(), Ok("r:5000/worker:2.0.0"));
        assert_eq!(version("w:1@sha256:00").as_deref(), Ok("w:2.0.0"));
        assert_eq!(version("w:1.0.0-standalone").as_deref(), Ok("w:2.0.0-standalone"));
        let other = Target::Image("o:3".into());
        assert_eq!(target("sha256:00", &other).as_deref(), Ok("o:3"));
    }

    #[test]
    fn workers_are_known_by_image_or_by_label_and_jobs_are_none() {
        let of = |image: &str, labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let labels: HashMap<_, _> = labels.collect();
            is_worker(&ContainerSummary { image: Some(image.into()), labels: Some(labels), ..Default::default() })
        };
        assert!(of("metapage/metaframe-docker-worker:0.54.40", &[]));
        assert!(of("docker.io/gridsocket/worker:1", &[]));
        assert!(of("my/own", &[("container.mtfm.io", "worker")]));
        assert!(!of("my/own", &[("container.mtfm.io", "true")]));
        assert!(!of("gridsocket/worker:1", &[(LABEL_ID, "84")]));
        assert!(!of("notgridsocket/worker:1", &[]));
    }
}
