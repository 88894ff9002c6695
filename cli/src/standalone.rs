//! An engine of the worker's own, for images and machines that are nothing but a worker: `dockerd` is started before it, watched
//! beside it and stopped after it.

use std::io;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::args::standalone::{Settings, VARIABLE};
use crate::progress::say;

/// On a machine's first start, with a slow disk, an engine takes its time.
const START_MAX: Duration = Duration::from_secs(120);
/// It ends its containers and takes its networks down; then it is killed.
const STOP_MAX: Duration = Duration::from_secs(30);
/// How often it is looked whether it listens.
const PAUSE: Duration = Duration::from_millis(100);
const PROGRAM: &str = "dockerd";

/// Works with an engine of its own where one is asked for; else it just works.
pub(crate) async fn around(
    settings: Option<Settings>,
    work: impl Future<Output = anyhow::Result<ExitCode>>,
) -> anyhow::Result<ExitCode> {
    let Some(Settings { socket }) = settings else { return work.await };
    let mut engine = start(&socket).await?;
    let ended = tokio::select! {
        ended = work => ended,
        status = engine.wait() => Err(gone(status)),
    };
    stop(engine).await;
    ended
}

async fn start(socket: &str) -> anyhow::Result<Child> {
    if UnixStream::connect(socket).await.is_ok() {
        bail!("a container engine listens at {socket} already: unset {VARIABLE}");
    }
    // Beside its socket, as it is by default. One that a stopped container left names some other process by now.
    let pid_file = Path::new(socket).with_file_name("docker.pid");
    match std::fs::remove_file(&pid_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            say(&format!("cannot remove {}: {error}", pid_file.display()));
        }
        Ok(()) | Err(_) => {}
    }
    say(&format!("starting {PROGRAM}"));
    let mut command = Command::new(PROGRAM);
    command.arg("--pidfile").arg(pid_file).args(["--host", &format!("unix://{socket}")]).kill_on_drop(true);
    let started = command.spawn();
    let mut engine =
        started.with_context(|| format!("cannot start {PROGRAM}, as {VARIABLE} asks; is it installed?"))?;
    let listens = async {
        while UnixStream::connect(socket).await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = listens => Ok(engine),
        status = engine.wait() => Err(gone(status)),
        () = tokio::time::sleep(START_MAX) => bail!("{PROGRAM} does not listen at {socket} after {} s", START_MAX.as_secs()),
    }
}

fn gone(status: io::Result<ExitStatus>) -> anyhow::Error {
    match status {
        Ok(status) => anyhow::anyhow!("{PROGRAM} ended ({status}); what it said is above"),
        Err(error) => anyhow::Error::new(error).context(format!("cannot wait for {PROGRAM}")),
    }
}

/// Asks, waits, then insists.
async fn stop(mut engine: Child) {
    let pid = engine.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    // Without a number it has ended.
    let Some(pid) = pid else { return };
    let _ = kill_process(pid, Signal::TERM);
    if tokio::time::timeout(STOP_MAX, engine.wait()).await.is_err() {
        say(&format!("{PROGRAM} does not stop, so it is killed"));
        let _ = engine.kill().await;
    }
}
