//! An Engine that goes away while a job runs. It needs one of its own, so it runs only where `dockerd` can be started.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use protocol::event::RunOutcome;
use serde_json::json;
use tempfile::TempDir;

use crate::support::peer::until;
use crate::support::{Site, TestEngine, job};

/// A `dockerd` in a folder of its own.
struct OwnEngine {
    /// Short: a socket's path has 108 bytes at most.
    folder: TempDir,
    daemon: Child,
}

impl OwnEngine {
    fn host(&self) -> String {
        format!("unix://{}/s", self.folder.path().display())
    }

    async fn start(folder: TempDir) -> Option<Self> {
        let daemon = spawn(folder.path())?;
        let mut engine = Self { folder, daemon };
        let mut is_up = false;
        until("the daemon answers or gives up", async || {
            is_up = TestEngine::at(&engine.host()).await.is_some();
            is_up || engine.daemon.try_wait().unwrap().is_some()
        })
        .await;
        is_up.then_some(engine)
    }

    /// It is gone from one moment to the next and starts again, which ends what it had started.
    fn crash_and_return(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        // Its containerd goes with it, but where nobody reaps that, its number looks alive.
        let _ = std::fs::remove_file(self.folder.path().join("x/containerd/containerd.pid"));
        self.daemon = spawn(self.folder.path()).unwrap();
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

fn spawn(folder: &Path) -> Option<Child> {
    Command::new("dockerd")
        .arg("--data-root")
        .arg(folder.join("d"))
        .arg("--exec-root")
        .arg(folder.join("x"))
        .arg("--pidfile")
        .arg(folder.join("p"))
        .args(["-H", &format!("unix://{}/s", folder.display()), "--bridge", "none", "--iptables=false"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_ends_with_a_word_about_it_when_the_engine_crashes() {
    let Some(mut site) = Site::new().await else { return };
    let Some(mut own) = OwnEngine::start(TempDir::with_prefix("e").unwrap()).await else {
        println!("skipped: no dockerd can be started here");
        return;
    };
    site.engine = TestEngine::at(&own.host()).await.unwrap();
    let (_worker, mut line) = site.started().await;
    let run = line.grant(job(json!({"command": "sh -c 'echo up; sleep 300'"}))).await;
    line.until(|line| line.logs.text(run, false) == "up\n").await;
    own.crash_and_return();
    let (finished, told) = line.end(run).await;
    // Its return ended the container: that is told with the code it left, or as a loss, never as a plain end.
    let text = told.to_string();
    assert!(text.contains("container engine"), "{text}");
    assert!(finished.exit_code != Some(0) && finished.outcome != RunOutcome::TimedOut, "{text}");
    // The worker goes on with the Engine that came back.
    let next = line.grant(job(json!({"command": "echo still here"}))).await;
    assert_eq!(line.end(next).await.0.exit_code, Some(0));
    site.assert_clean().await;
}
