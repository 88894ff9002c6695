//! A `dockerd` that belongs to one test: it can be killed, have a path of its own, or be in a network of its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::TestEngine;
use super::peer::until;

pub(crate) struct OwnEngine {
    /// Short: a socket's path has 108 bytes at most.
    folder: TempDir,
    daemon: Child,
    how: How,
}

/// How it is started.
#[derive(Clone, Default)]
pub(crate) struct How {
    /// Folders before those that programs are found in.
    pub(crate) path: Vec<String>,
    /// Whether it makes bridges and filters packets: only in a network of its own, where it disturbs nobody.
    pub(crate) has_bridges: bool,
    /// Whether containers go on while it is away.
    pub(crate) keeps_containers: bool,
}

impl OwnEngine {
    pub(crate) fn host(&self) -> String {
        format!("unix://{}/s", self.folder.path().display())
    }

    /// `None` (and a word about it) where none can be started.
    pub(crate) async fn start(how: How) -> Option<Self> {
        let started = Self::try_start(how).await;
        if started.is_none() {
            println!("skipped: no dockerd can be started here");
        }
        started
    }

    async fn try_start(how: How) -> Option<Self> {
        let folder = TempDir::with_prefix("e").unwrap();
        let daemon = spawn(folder.path(), &how)?;
        let mut engine = Self { folder, daemon, how };
        let mut is_up = false;
        until("the daemon answers or gives up", async || {
            is_up = TestEngine::at(&engine.host()).await.is_some();
            is_up || engine.daemon.try_wait().unwrap().is_some()
        })
        .await;
        is_up.then_some(engine)
    }

    pub(crate) async fn client(&self) -> TestEngine {
        TestEngine::at(&self.host()).await.unwrap()
    }

    /// The daemon's process, which is in its network.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.id()
    }

    /// It is gone from one moment to the next and starts again, which ends what it had started.
    pub(crate) fn crash_and_return(&mut self) {
        self.crash();
        self.comes_back();
    }

    /// It is gone from one moment to the next.
    pub(crate) fn crash(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        // Its containerd goes with it, but where nobody reaps that, its number looks alive.
        let _ = std::fs::remove_file(self.folder.path().join("x/containerd/containerd.pid"));
    }

    /// It is started again.
    pub(crate) fn comes_back(&mut self) {
        self.daemon = spawn(self.folder.path(), &self.how).unwrap();
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        let pid = i32::try_from(self.daemon.id()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.daemon.wait();
        // It mounts its root over itself.
        let _ = Command::new("umount").arg(self.folder.path().join("d")).stderr(Stdio::null()).status();
    }
}

fn spawn(folder: &Path, how: &How) -> Option<Child> {
    let path = std::env::var("PATH").unwrap_or_default();
    let path = how.path.iter().cloned().chain([path, "/usr/sbin:/sbin".to_owned()]).collect::<Vec<_>>().join(":");
    // Without a bridge of its own a daemon removes the machine's, which belongs to the machine's daemon: it gets another network.
    let mut command = Command::new(if how.has_bridges { "dockerd" } else { "unshare" });
    if !how.has_bridges {
        command.args(["--net", "dockerd"]);
    }
    command
        .arg("--data-root")
        .arg(folder.join("d"))
        .arg("--exec-root")
        .arg(folder.join("x"))
        .arg("--pidfile")
        .arg(folder.join("p"))
        .args(["-H", &format!("unix://{}/s", folder.display()), "--bridge", "none"])
        .env("PATH", path)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if how.keeps_containers {
        command.arg("--live-restore");
    }
    if !how.has_bridges {
        command.arg("--iptables=false");
    }
    command.spawn().ok()
}
