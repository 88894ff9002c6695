//! What a successor has of its predecessor.

use bollard::models::{Mount, NetworkSettings, PortBinding, RestartPolicy, RestartPolicyNameEnum};

use super::*;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn list(words: &[&str]) -> Option<Vec<String>> {
    Some(words.iter().map(|&word| word.to_owned()).collect())
}

fn pairs(words: &[(&str, &str)]) -> Option<HashMap<String, String>> {
    Some(words.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}

/// As an engine tells of a container that was started with much said, from an image that says something, too.
fn old() -> ContainerInspectResponse {
    let config = ContainerConfig {
        image: Some("w:1".into()),
        hostname: Some(ID[..12].to_owned()),
        env: list(&["PATH=/bin", "METAPAGE_IO_WORKER_CPUS=4"]),
        cmd: list(&["run", "q"]),
        entrypoint: list(&["/gridsocket"]),
        labels: pairs(&[("by-image", "1"), ("mine", "2"), (LABEL_OF, "earlier")]),
        exposed_ports: list(&["8000/tcp", "9/tcp"]),
        working_dir: Some("/".into()),
        stop_timeout: Some(30),
        ..ContainerConfig::default()
    };
    let host = HostConfig {
        binds: list(&["/tmp:/tmp"]),
        mounts: Some(vec![Mount { target: Some("/m".into()), typ: Some(MountType::VOLUME), ..Mount::default() }]),
        network_mode: Some("lan".into()),
        port_bindings: Some(HashMap::from([("8000/tcp".to_owned(), Some(vec![PortBinding::default()]))])),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::ALWAYS), maximum_retry_count: None }),
        links: list(&["/db:/w/data"]),
        privileged: Some(true),
        ..HostConfig::default()
    };
    let volume = |name: &str, at: &str| MountPoint {
        typ: Some(VOLUME.into()),
        name: Some(name.into()),
        destination: Some(at.into()),
        rw: Some(true),
        ..MountPoint::default()
    };
    let endpoint =
        |aliases| EndpointSettings { aliases, ip_address: Some("10.0.0.2".into()), ..EndpointSettings::default() };
    let networks =
        HashMap::from([("lan".to_owned(), endpoint(list(&["w", &ID[..12]]))), ("wan".to_owned(), endpoint(None))]);
    ContainerInspectResponse {
        id: Some(ID.into()),
        image: Some("sha256:old".into()),
        config: Some(config),
        host_config: Some(host),
        mounts: Some(vec![volume("anonymous", "/data"), volume("nameless", "/m")]),
        network_settings: Some(NetworkSettings { networks: Some(networks), ..NetworkSettings::default() }),
        ..ContainerInspectResponse::default()
    }
}

fn image() -> ImageConfig {
    ImageConfig {
        env: list(&["PATH=/bin"]),
        entrypoint: list(&["/gridsocket"]),
        labels: pairs(&[("by-image", "1")]),
        exposed_ports: list(&["8000/tcp"]),
        working_dir: Some("/".into()),
        ..ImageConfig::default()
    }
}

#[test]
fn what_was_said_is_kept_and_what_the_image_said_is_left_to_the_next() {
    let Carried { body, .. } = carry(&old(), Some(&image()), "w:2");
    assert_eq!(body.image.as_deref(), Some("w:2"));
    assert_eq!(body.env, list(&["METAPAGE_IO_WORKER_CPUS=4"]));
    assert_eq!((body.cmd, body.entrypoint), (list(&["run", "q"]), None));
    assert_eq!(body.labels, pairs(&[("mine", "2")]));
    assert_eq!(body.exposed_ports, list(&["9/tcp"]));
    assert_eq!((body.working_dir, body.hostname, body.stop_timeout), (None, None, Some(30)));
    let (old, new) = (old().host_config.unwrap(), body.host_config.unwrap());
    assert_eq!(new.port_bindings, old.port_bindings);
    assert_eq!(new.restart_policy, old.restart_policy);
    assert_eq!(new.privileged, Some(true));
}

#[test]
fn nothing_is_taken_for_the_images_where_that_is_not_known() {
    let Carried { body, .. } = carry(&old(), None, "w:2");
    assert_eq!(body.env, list(&["PATH=/bin", "METAPAGE_IO_WORKER_CPUS=4"]));
    assert_eq!((body.cmd, body.entrypoint), (list(&["run", "q"]), list(&["/gridsocket"])));
}

#[test]
fn volumes_that_nobody_named_go_along() {
    let host = carry(&old(), Some(&image()), "w:2").body.host_config.unwrap();
    assert_eq!(host.binds, list(&["/tmp:/tmp", "anonymous:/data"]));
    assert_eq!(host.mounts.unwrap()[0].source.as_deref(), Some("nameless"));
}

#[test]
fn each_network_is_kept_without_what_the_engine_gave() {
    let Carried { body, networks } = carry(&old(), Some(&image()), "w:2");
    assert_eq!(body.host_config.unwrap().links, list(&["db:data"]));
    let first = body.networking_config.unwrap().endpoints_config.unwrap();
    assert_eq!(first["lan"], EndpointSettings { aliases: list(&["w"]), ..EndpointSettings::default() });
    assert_eq!(networks, [("wan".to_owned(), EndpointSettings::default())]);
    let mut host = old();
    host.host_config.as_mut().unwrap().network_mode = Some("host".into());
    let Carried { body, networks } = carry(&host, None, "w:2");
    assert!(body.networking_config.is_none() && networks.is_empty());
}

#[test]
fn a_successor_is_marked_and_its_own_successor_is_not_marked_as_that() {
    let labels = marked(carry(&old(), Some(&image()), "w:2").body, ID, "w").labels.unwrap();
    assert_eq!((labels[LABEL_OF].as_str(), labels[LABEL_NAME].as_str()), (ID, "w"));
    assert_eq!(kept(carry(&old(), None, "w:1").body, "w", "w:1").labels.unwrap()[LABEL_KEPT], "w");
}
