//! A broker as a process, where its machine fails it.

use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::grid::{DEADLINE, Serving};
use crate::run::{Said, run};

#[tokio::test]
async fn on_a_full_disk_the_broker_says_so_and_stops_and_with_room_again_all_that_was_acknowledged_is_there() {
    let Some(disk) = SmallDisk::mount("24m") else { return };
    let broker = Serving::start(disk.path(), "127.0.0.1:0").await;
    let mut acknowledged = Vec::new();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let filler = "x".repeat(60_000);
    let refused = loop {
        let body = serde_json::json!({ "definition": { "image": acknowledged.len().to_string(), "filler": filler } });
        let sent = http.post(format!("{}/q/q", broker.api)).body(body.to_string()).send().await.unwrap();
        let status = sent.status().as_u16();
        let told: serde_json::Value = serde_json::from_str(&sent.text().await.unwrap()).unwrap();
        if status != 200 {
            break (status, told);
        }
        acknowledged.push(told["jobId"].as_str().unwrap().to_owned());
        assert!(acknowledged.len() < 2_000, "the disk must be full by now");
    };
    assert_eq!(refused.0, 503, "{}", refused.1);
    assert!(refused.1["error"].as_str().is_some_and(|text| !text.is_empty()), "{}", refused.1);
    let ended = tokio::time::timeout(DEADLINE, broker.child.wait_with_output()).await.unwrap().unwrap();
    let said = Said::from(ended);
    assert!(said.code.is_some_and(|code| code != 0), "{said:?}");
    assert!(said.err.to_lowercase().contains("no space") || said.err.contains("full"), "{said:?}");

    disk.grow("64m");
    let broker = Serving::start(disk.path(), "127.0.0.1:0").await;
    for job in &acknowledged {
        let url = format!("{}/q/q/j/{job}/definition.json", broker.api);
        assert_eq!(http.get(url).send().await.unwrap().status(), 200, "{job}");
    }
    assert_eq!(broker.end("-TERM").await, Some(0));
    let verified = run(&["audit", "verify", "--data", disk.path().to_str().unwrap()]).await;
    assert_eq!(verified.code, Some(0), "{verified:?}");
}

#[tokio::test]
async fn connections_cannot_take_the_open_files_that_the_journal_needs() {
    let data = tempfile::tempdir().unwrap();
    let binary = env!("CARGO_BIN_EXE_gridsocket");
    let words = format!("ulimit -n 256; exec {binary} serve --listen 127.0.0.1:0 --data {}", data.path().display());
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", &words]).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let broker = Serving::of(command, data.path()).await;
    let address = broker.listen();
    let mut first = TcpStream::connect(&address).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..300 {
        held.push(TcpStream::connect(&address).await.unwrap());
    }
    // The last ones are turned away, and everything before them was seen.
    let mut told = String::new();
    let _ = tokio::time::timeout(DEADLINE, held[299].read_to_string(&mut told)).await.unwrap();
    assert!(told.contains("too_many_connections"), "{told}");
    // Too large for a segment, so it needs a file of its own.
    let body = serde_json::json!({ "definition": { "image": "a", "filler": "x".repeat(100_000) } }).to_string();
    let head = format!("POST /q/q HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    first.write_all((head + &body).as_bytes()).await.unwrap();
    let mut answer = [0; 15];
    tokio::time::timeout(DEADLINE, first.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    drop(held);
    assert_eq!(broker.end("-TERM").await, Some(0));
}

/// A small file system of its own, where this process may make one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None`, and says so, where it may not.
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={size}");
        let mounted =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).output();
        let is_mounted = mounted.is_ok_and(|mounted| mounted.status.success());
        if !is_mounted {
            eprintln!("skipped: this process may not mount a small tmpfs");
        }
        is_mounted.then_some(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn grow(&self, size: &str) {
        let size = format!("remount,size={size}");
        assert!(std::process::Command::new("mount").args(["-o", &size]).arg(self.path()).status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.path()).output();
    }
}
