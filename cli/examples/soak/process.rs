//! The real binary as a process: started, waited for, killed.

use std::fs::OpenOptions;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::{Child, Command};

use crate::load::Load;

/// How long a broker may take until it answers: it fills in what its event store lacks.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a process may take to end after it was asked to.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// A file that was built beside this example: in the build's folder, or in `examples`.
pub(crate) fn built(name: &str) -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe()?;
    let examples = here.parent().context("this program lies in a folder")?;
    let folder = if name.starts_with("examples/") || examples.ends_with("examples") {
        examples.parent()
    } else {
        Some(examples)
    };
    let path = folder.context("the build has a folder")?.join(name);
    ensure!(path.is_file(), "{} is not built; start this with `just soak`", path.display());
    Ok(path)
}

/// An address on this machine that nobody listens on just now.
pub(crate) fn free_address() -> anyhow::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// A running `gridsocket`.
pub(crate) struct Process(Child);

impl Process {
    /// Starts the binary; what it says is appended to `log`. It does not outlive this program.
    pub(crate) fn start(binary: &Path, arguments: &[&str], log: &Path) -> anyhow::Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new(binary);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        Ok(Self(command.spawn().with_context(|| format!("starting {}", binary.display()))?))
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        self.kill_in_place().await
    }

    /// The same, where another is to take its place.
    pub(crate) async fn kill_in_place(&mut self) -> anyhow::Result<()> {
        ensure!(self.0.try_wait()?.is_none(), "it has ended by itself");
        Ok(self.0.kill().await?)
    }

    /// Its number.
    pub(crate) fn pid(&self) -> anyhow::Result<u32> {
        self.0.id().context("it has ended by itself")
    }

    /// Waits until it has ended, by itself.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        Ok(self.0.wait().await?)
    }

    /// How much memory it has resident, in MiB.
    pub(crate) fn resident_mib(&self) -> anyhow::Result<u64> {
        let pid = self.0.id().context("it has ended by itself")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in its status")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
    }

    /// Asks it to end, as an init system does.
    pub(crate) async fn stop(mut self) -> anyhow::Result<ExitStatus> {
        self.stop_in_place().await
    }

    /// The same, of one that is kept.
    pub(crate) async fn stop_in_place(&mut self) -> anyhow::Result<ExitStatus> {
        let pid = self.0.id().context("it has ended by itself")?.to_string();
        ensure!(Command::new("kill").args(["-TERM", &pid]).status().await?.success(), "no SIGTERM could be sent");
        tokio::time::timeout(STOP_WITHIN, self.0.wait()).await.context("it did not end in time")?.map_err(Into::into)
    }
}

/// A path, as an argument.
pub(crate) fn path_text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// Waits until the broker answers.
pub(crate) async fn ready(http: &reqwest::Client, address: &str) -> anyhow::Result<()> {
    let url = format!("http://{address}/healthz");
    let is_ready = async || http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success());
    ensure!(
        Load::wait_for(READY_WITHIN, is_ready).await,
        "the broker does not answer within {} s",
        READY_WITHIN.as_secs()
    );
    Ok(())
}
