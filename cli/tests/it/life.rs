//! Signals.

use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;

use crate::run::gridsocket;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn send(signal: &str, to: &tokio::process::Child) {
    let pid = to.id().expect("it runs").to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

#[tokio::test]
async fn a_hangup_ends_nothing_and_sigterm_ends_in_order() {
    let data = tempfile::tempdir().unwrap();
    let data = data.path().to_str().unwrap();
    let mut running = gridsocket(&["serve", "--listen", "127.0.0.1:0", "--data", data]).spawn().unwrap();
    let mut out = BufReader::new(running.stdout.take().unwrap()).lines();
    let up = timeout(PATIENCE, out.next_line()).await.expect("it is up").unwrap().unwrap();
    assert!(up.contains("broker at"), "{up}");
    send("-HUP", &running);
    let mut said = BufReader::new(running.stderr.take().unwrap()).lines();
    loop {
        let line = timeout(PATIENCE, said.next_line()).await.expect("it says something").unwrap();
        if line.expect("it goes on").contains("SIGHUP") {
            break;
        }
    }
    send("-TERM", &running);
    assert!(timeout(PATIENCE, running.wait()).await.expect("it ends").unwrap().success());
}
