//! A disk that is full. A small one of its own is mounted for it, which only root can.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use worker::ShutdownMode;

use crate::support::{Site, job};

/// A file system of 64 MiB.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    /// `None` (and a word about it) where none can be mounted.
    fn mount(at: &'a Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64m", "gridsocket-test"]).arg(at).stderr(Stdio::null());
        if mount.status().is_ok_and(|status| status.success()) {
            return Some(Self(at));
        }
        println!("skipped: nothing can be mounted here");
        None
    }

    /// Takes so many MiB of it, or all that there are.
    fn fill(&self, mib: usize) {
        let file = std::fs::File::create(self.0.join("filler")).unwrap();
        for _ in 0..mib {
            if std::io::Write::write_all(&mut &file, &[1; 1 << 20]).is_err() {
                return;
            }
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_new_is_taken_while_the_disk_is_nearly_full_and_what_runs_goes_on() {
    let Some(mut site) = Site::new().await else { return };
    let data = site.config().data_directory;
    let Some(disk) = SmallDisk::mount(&data) else { return };
    let (worker, mut line) = site.started_with(|config| config.min_free_disk_bytes = 32 << 20).await;
    line.until(|line| line.claims.last().is_some_and(|free| free.cpus_milli == 2000)).await;
    let command = "echo up; while [ ! -e /outputs/go ]; do sleep 0.05; done";
    let run = line.grant(job(json!({"command": ["sh", "-c", command]}))).await;
    line.until(|line| line.logs.text(run, false) == "up\n").await;
    disk.fill(40);
    line.until(|line| line.claims.last().is_some_and(|free| free.cpus_milli == 0)).await;
    let late = line.grant(job(json!({"command": "echo late"}))).await;
    line.until(|line| !line.returned.is_empty()).await;
    assert_eq!(line.returned[0].0, late);
    assert!(line.returned[0].1.contains("--min-free-disk"), "{:?}", line.returned);
    let dir = std::fs::read_dir(data.join("j").join(run.job.to_string())).unwrap().next().unwrap();
    std::fs::write(dir.unwrap().path().join("outputs/go"), "").unwrap();
    assert_eq!(line.end(run).await.0.exit_code, Some(0));
    disk.empty();
    line.until(|line| line.claims.last().is_some_and(|free| free.cpus_milli == 2000)).await;
    worker.stop(ShutdownMode::Leave).await;
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_does_not_fit_on_the_disk_is_kept_as_a_container_until_the_broker_has_it() {
    let Some(mut site) = Site::new().await else { return };
    let data = site.config().data_directory;
    let Some(disk) = SmallDisk::mount(&data) else { return };
    let (worker, mut line) = site.started().await;
    // A large one: small files that go meanwhile leave room for a small one.
    let command = "echo up; while [ ! -e /outputs/go ]; do sleep 0.05; done; seq 1 9000";
    let run = line.grant(job(json!({"command": ["sh", "-c", command]}))).await;
    line.until(|line| line.logs.text(run, false) == "up\n").await;
    disk.fill(100);
    let dir = std::fs::read_dir(data.join("j").join(run.job.to_string())).unwrap().next().unwrap();
    std::fs::File::create(dir.unwrap().path().join("outputs/go")).unwrap();
    line.unanswered_end(run).await;
    // The worker goes, and comes again: the container is all that it has of the result.
    assert_eq!(worker.stop(ShutdownMode::Leave).await.unacknowledged, 1);
    assert_eq!(site.engine.containers(&site.queue).await.len(), 1);
    disk.empty();
    let (worker, mut line) = site.started().await;
    assert_eq!(line.holds(), [run]);
    assert_eq!(line.end(run).await.0.exit_code, Some(0));
    site.assert_clean().await;
    // One whose result cannot be kept either, but is taken, leaves nothing.
    disk.fill(60);
    let run = line.grant(job(json!({"command": "seq 1 9000"}))).await;
    line.end(run).await;
    site.assert_clean().await;
    worker.stop(ShutdownMode::Leave).await;
}
