//! Programs of others: where they are, and one that runs.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

/// How long a program may take until it listens.
const LISTENS_WITHIN: Duration = Duration::from_secs(20);

/// Why a peer is not measured.
#[derive(Debug)]
pub(super) struct Unavailable(pub(super) String);

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<anyhow::Error> for Unavailable {
    fn from(error: anyhow::Error) -> Self {
        Self(format!("{error:#}"))
    }
}

impl From<std::io::Error> for Unavailable {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

/// A program that listens, ended when dropped.
pub(super) struct Program {
    child: Child,
    pub(super) port: u16,
    pub(super) version: String,
}

impl Program {
    /// Starts it and waits until it listens.
    pub(super) async fn start(mut command: Command, port: u16, version: String, folder: &Path) -> anyhow::Result<Self> {
        let log = folder.with_extension("log");
        let output = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let mut program = Self { child, port, version };
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if let Some(status) = program.child.try_wait()? {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                anyhow::bail!("it ended at once ({status}): {}", said.lines().last().unwrap_or_default());
            }
            anyhow::ensure!(started.elapsed() < LISTENS_WITHIN, "it does not listen");
            sleep(Duration::from_millis(5)).await;
        }
        Ok(program)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Finds a program: what was fetched for the bench first, then what the system has.
pub(super) fn find(name: &str) -> Result<PathBuf, Unavailable> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    std::iter::once(super::fetched().join("bin"))
        .chain(places)
        .map(|place| place.join(name))
        .find(|found| found.is_file())
        .ok_or_else(|| Unavailable(format!("no {name} here; deploy/bench-peers fetches it")))
}

/// What a program prints when asked.
pub(super) fn says(program: &Path, words: &[impl AsRef<OsStr>]) -> Result<String, Unavailable> {
    let output = Command::new(program).args(words).stdin(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
