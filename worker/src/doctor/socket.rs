//! Why nothing answers at an engine's socket.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::Finding;

const CHECK: &str = "engine";

/// What there is where the engine should listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Socket {
    /// It is not a path of this machine.
    Elsewhere,
    /// Nothing has that path.
    Missing,
    /// Something else.
    OtherFile,
    /// One that this user may not use; the group that may.
    NotOurs(Option<String>),
    /// One that nobody listens at.
    Silent,
    /// One that somebody listens at.
    Answers,
}

/// Looks at the socket of `host`.
pub(super) fn look(host: &str) -> Socket {
    let Some(path) = host.strip_prefix("unix://") else { return Socket::Elsewhere };
    let about = match std::fs::metadata(path) {
        Ok(about) => about,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Socket::NotOurs(None),
        Err(_) => return Socket::Missing,
    };
    if !about.file_type().is_socket() {
        return Socket::OtherFile;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Socket::Answers,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Socket::NotOurs(group(about.gid())),
        Err(_) => Socket::Silent,
    }
}

/// The name of a group that people are put into; root's is not one.
fn group(id: u32) -> Option<String> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    let mut entries = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = entries.find(|entry| entry.get(2).and_then(|text| text.parse().ok()) == Some(id))?;
    Some((*found.first()?).to_owned()).filter(|_| id != 0)
}

/// Other places where engines listen, of those that are there.
pub(super) fn others(user: u32) -> Option<String> {
    let usual = [
        "/var/run/docker.sock".to_owned(),
        format!("/run/user/{user}/docker.sock"),
        format!("/run/user/{user}/podman/podman.sock"),
        "/run/podman/podman.sock".to_owned(),
    ];
    usual.into_iter().find(|path| look(&format!("unix://{path}")) == Socket::Answers)
}

/// What is to be told of an engine that does not answer.
pub(super) fn finding(host: &str, socket: &Socket, said: &str, other: Option<&str>) -> Finding {
    let start = "start it (`sudo systemctl start docker`), or install it (https://docs.docker.com/engine/install/)";
    let elsewhere = match other {
        Some(path) => format!("another one answers: set DOCKER_HOST=unix://{path}"),
        None => "if it listens elsewhere, set DOCKER_HOST to that place".to_owned(),
    };
    match socket {
        Socket::Elsewhere => Finding::fail(
            CHECK,
            format!("no container engine answers at {host}: {said}"),
            "see that DOCKER_HOST is right (unix:///path or tcp://host:port), and that the engine listens there",
        ),
        Socket::Missing => Finding::fail(
            CHECK,
            format!("there is no container engine at {host}: nothing has that path"),
            format!("{start}; {elsewhere}"),
        ),
        Socket::OtherFile => Finding::fail(
            CHECK,
            format!("what is at {host} is no socket"),
            format!("in a container, mount the engine's: -v /var/run/docker.sock:/var/run/docker.sock; {elsewhere}"),
        ),
        Socket::NotOurs(Some(group)) => Finding::fail(
            CHECK,
            format!("this user may not use the container engine at {host}: it is for the group `{group}`"),
            format!("join it with `sudo usermod -aG {group} $USER` and log in anew; its members are as good as root"),
        ),
        Socket::NotOurs(None) => Finding::fail(
            CHECK,
            format!("this user may not use the container engine at {host}: it is for its owner alone"),
            "run as that user (`sudo`), or have the engine's socket given to a group of yours",
        ),
        Socket::Silent => Finding::fail(
            CHECK,
            format!("nobody listens at {host}: the container engine does not run"),
            format!("{start}; {elsewhere}"),
        ),
        Socket::Answers => Finding::fail(
            CHECK,
            format!("what listens at {host} does not answer as a container engine: {said}"),
            "look into its log (`journalctl -u docker`), and restart it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_at_a_sockets_path_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let host = |name: &str| format!("unix://{}", folder.path().join(name).display());
        assert_eq!(look("tcp://engine:2375"), Socket::Elsewhere);
        assert_eq!(look(&host("missing")), Socket::Missing);
        std::fs::write(folder.path().join("file"), "x").unwrap();
        assert_eq!(look(&host("file")), Socket::OtherFile);
        let listener = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
        assert_eq!(look(&host("socket")), Socket::Answers);
        drop(listener);
        assert_eq!(look(&host("socket")), Socket::Silent);
    }

    #[test]
    fn each_way_of_not_answering_has_its_own_way_out() {
        let advice = |socket: Socket, other| finding("unix:///s", &socket, "said", other).advice.unwrap();
        assert!(advice(Socket::NotOurs(Some("docker".into())), None).contains("usermod -aG docker"));
        assert!(advice(Socket::NotOurs(None), None).contains("sudo"));
        assert!(advice(Socket::Missing, None).contains("install"));
        assert!(advice(Socket::Missing, Some("/run/x.sock")).contains("DOCKER_HOST=unix:///run/x.sock"));
        assert!(advice(Socket::Silent, None).contains("systemctl start"));
        assert!(advice(Socket::OtherFile, None).contains("-v /var/run/docker.sock"));
        assert!(finding("tcp://e:1", &Socket::Elsewhere, "refused", None).seen.contains("refused"));
    }
}
