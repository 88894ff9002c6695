//! A worker that brings its own engine: `METAPAGE_IO_WORKER_RUN_STANDALONE`.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use tempfile::TempDir;
use tokio::process::Command;

use crate::grid::Serving;
use crate::run::{finish, gridsocket};

/// `gridsocket local` with what is called `dockerd` in its path.
fn standalone(folder: &Path, dockerd: &str) -> Command {
    let bin = folder.join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("dockerd"), format!("#!/bin/sh\n{dockerd}\n")).unwrap();
    std::fs::set_permissions(bin.join("dockerd"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let data = folder.join("data");
    let mut command = gridsocket(&["local", "--port", "0", "--data-directory", data.to_str().unwrap()]);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}:/usr/sbin:/sbin", bin.display()));
    command.env("METAPAGE_IO_WORKER_RUN_STANDALONE", "true");
    command.env("DOCKER_HOST", format!("unix://{}", folder.join("s").display()));
    command
}

fn listens(folder: &Path) -> bool {
    UnixStream::connect(folder.join("s")).is_ok()
}

#[tokio::test]
async fn an_engine_is_started_before_the_worker_and_stopped_after_it() {
    // Short: a socket's path has 108 bytes at most.
    let folder = TempDir::with_prefix("s").unwrap();
    let at = folder.path().display();
    let Some(program) = real_dockerd() else {
        println!("skipped: no dockerd can be started here");
        return;
    };
    let more = format!("--data-root {at}/d --exec-root {at}/x --bridge none --iptables=false");
    // What a container that was killed leaves: the number of some process that is alive.
    std::fs::write(folder.path().join("docker.pid"), std::process::id().to_string()).unwrap();
    // In a network of its own it disturbs no other engine.
    let command = standalone(folder.path(), &format!("exec unshare --net {program} \"$@\" {more}"));
    let serving = Serving::of(command, &folder.path().join("data")).await;
    assert!(listens(folder.path()));
    assert_eq!(serving.end("-TERM").await, Some(0));
    assert!(!listens(folder.path()));
    let _ = std::process::Command::new("umount").arg(folder.path().join("d")).output();
}

/// Where it is, if this user may run it.
fn real_dockerd() -> Option<String> {
    let found = ["/usr/sbin/dockerd", "/usr/bin/dockerd", "/usr/local/bin/dockerd"];
    let program = found.into_iter().find(|path| Path::new(path).exists())?;
    let may =
        std::process::Command::new("unshare").args(["--net", "true"]).status().is_ok_and(|status| status.success());
    may.then(|| program.to_owned())
}

#[tokio::test]
async fn an_engine_that_does_not_start_is_the_end_and_says_so() {
    let folder = TempDir::with_prefix("s").unwrap();
    let said = finish(standalone(folder.path(), "echo no room for an engine >&2; exit 3")).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.err.contains("no room for an engine") && said.err.contains("dockerd ended (exit status: 3)"),
        "{said:?}"
    );
}

#[tokio::test]
async fn an_engine_that_is_there_already_is_not_started_again() {
    let folder = TempDir::with_prefix("s").unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(folder.path().join("s")).unwrap();
    let said = finish(standalone(folder.path(), "exit 3")).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("unset METAPAGE_IO_WORKER_RUN_STANDALONE"), "{said:?}");
}

#[tokio::test]
async fn an_image_without_an_engine_is_told_what_is_missing() {
    let folder = TempDir::with_prefix("s").unwrap();
    let mut command = standalone(folder.path(), "exit 3");
    command.env("PATH", folder.path().join("data"));
    let said = finish(command).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("cannot start dockerd") && said.err.contains("installed"), "{said:?}");
}
