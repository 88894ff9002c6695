//! A `dockerd` of this soak's own, with one image, that is killed and restarted while workers use it.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Troubles;
use crate::load::Load;
use crate::random::Random;

/// How long the daemon may take to answer, and docker's client for anything.
const UP_WITHIN: Duration = Duration::from_secs(90);
/// How long it may take to stop: it gives each container ten seconds.
const STOPS_WITHIN: Duration = Duration::from_secs(90);
/// How many of 100 restarts are orderly.
const ORDERLY_PERCENT: u64 = 30;
/// How long it is away, in milliseconds.
const AWAY_MS: (u64, u64) = (0, 3_000);

/// The image that jobs use, on the engine of the machine and on this one.
pub(crate) fn image() -> String {
    std::env::var("GRIDSOCKET_TEST_IMAGE").unwrap_or_else(|_| "gridsocket/busybox:local".to_owned())
}

/// See the module.
pub(crate) struct Daemon {
    /// Short: a socket's path has 108 bytes at most.
    folder: TempDir,
    daemon: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts one and gives it the image; `None` where that cannot be.
    pub(crate) async fn start(log: &Path) -> anyhow::Result<Option<Self>> {
        let folder = TempDir::with_prefix("e")?;
        let Ok(daemon) = spawn(folder.path(), log) else { return Ok(None) };
        let mut started = Self { folder, daemon, log: log.to_owned() };
        if started.is_up().await.is_err() {
            return Ok(None);
        }
        let archive = started.folder.path().join("image.tar");
        let path = archive.to_str().context("a path of this program's own")?;
        let image = image();
        let saved = Command::new("docker").args(["save", "-o", path, &image]).output().await?;
        ensure!(saved.status.success(), "docker save {image}: {}", String::from_utf8_lossy(&saved.stderr));
        started.docker(&["load", "-q", "-i", path]).await?;
        std::fs::remove_file(&archive)?;
        Ok(Some(started))
    }

    /// Its address.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}/s", self.folder.path().display())
    }

    /// Where everything of it lies.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What docker's client says about it.
    pub(crate) async fn docker(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("docker");
        command.args(["-H", &self.host()]).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let said =
            timeout(UP_WITHIN, command.output()).await.with_context(|| format!("docker {arguments:?} hangs"))??;
        ensure!(said.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&said.stderr).trim());
        Ok(String::from_utf8_lossy(&said.stdout).into_owned())
    }

    async fn is_up(&mut self) -> anyhow::Result<()> {
        let answers = async || self.docker(&["version", "--format", "{{.Server.Version}}"]).await.is_ok();
        ensure!(Load::wait_for(UP_WITHIN, answers).await, "the dockerd does not answer; see {}", self.log.display());
        Ok(())
    }

    /// It is gone, from one moment to the next or in order, and comes back.
    async fn restart(&mut self, orderly: bool, away: Duration) -> anyhow::Result<()> {
        if orderly {
            self.terminate().await?;
        } else {
            self.daemon.kill().await?;
            // Its containerd goes with it, but where nobody reaps that, its number looks alive.
            let _ = std::fs::remove_file(self.folder.path().join("x/containerd/containerd.pid"));
        }
        tokio::time::sleep(away).await;
        self.daemon = spawn(self.folder.path(), &self.log)?;
        self.is_up().await
    }

    async fn terminate(&mut self) -> anyhow::Result<()> {
        let pid = self.daemon.id().context("the dockerd ended by itself")?.to_string();
        Command::new("kill").args(["-TERM", &pid]).status().await?;
        timeout(STOPS_WITHIN, self.daemon.wait()).await.context("the dockerd does not stop")??;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(pid) = self.daemon.id() else { return };
        let _ = std::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status();
        for _ in 0..300 {
            if !matches!(self.daemon.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        // It mounts its root over itself.
        let root = self.folder.path().join("d");
        let _ = std::process::Command::new("umount").arg(root).stderr(Stdio::null()).status();
    }
}

fn spawn(folder: &Path, log: &Path) -> anyhow::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(log)?;
    let path = std::env::var("PATH").unwrap_or_default();
    // Without a bridge of its own a daemon removes the machine's, which belongs to the machine's daemon: it gets another network.
    let mut command = Command::new("unshare");
    command
        .args(["--net", "dockerd"])
        .arg("--data-root")
        .arg(folder.join("d"))
        .arg("--exec-root")
        .arg(folder.join("x"))
        .arg("--pidfile")
        .arg(folder.join("p"))
        .args(["-H", &format!("unix://{}/s", folder.display()), "--bridge", "none", "--iptables=false"])
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command.spawn()?)
}

/// Restarts it once in `every_s` seconds on average, until it is calm; gives it back running.
pub(crate) async fn trouble(
    mut daemon: Daemon,
    mut random: Random,
    every_s: u64,
    calm: CancellationToken,
    troubles: Arc<Troubles>,
) -> anyhow::Result<Daemon> {
    loop {
        let pause = match every_s {
            0 => Duration::MAX,
            every => random.millis(every * 500, every * 1_500),
        };
        tokio::select! {
            () = calm.cancelled() => return Ok(daemon),
            () = tokio::time::sleep(pause) => {}
        }
        let from_ms = broker::clock::now().0;
        let orderly = random.percent(ORDERLY_PERCENT);
        troubles.is_engine_away.store(true, Ordering::Relaxed);
        daemon.restart(orderly, random.millis(AWAY_MS.0, AWAY_MS.1)).await?;
        troubles.add(from_ms, None);
        troubles.is_engine_away.store(false, Ordering::Relaxed);
    }
}
