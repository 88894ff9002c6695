//! Writes to a real broker until the power is cut: `powercut_writer [--unsynced] DIR`, to be started by `deploy/powercut`.
//!
//! After each acknowledgement it prints what was acknowledged, as a line of JSON, and how many there were over the life of the
//! store. `--unsynced` takes the sync out of each write, to show that the rig can fail.

#[path = "support/client.rs"]
mod client;
#[path = "support/load.rs"]
mod load;
#[path = "support/random.rs"]
mod random;
#[path = "support/submitters.rs"]
mod submitters;
#[path = "support/told.rs"]
mod told;
#[path = "support/workers.rs"]
mod workers;

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use broker::Broker;
use broker::config::{Config, Durability};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::load::{Listener, Load, Shape};
use crate::random::Random;
use crate::told::Told;

/// What earlier rounds on this store were told; the checker writes it when it has found all of it.
const LEDGER: &str = "told.jsonl";

const QUEUES: [&str; 4] = ["power-1", "power-2", "power-3", "power-4"];

/// As fast as it goes, definitions and results of all sizes, and some runs that outlast a round.
const SHAPE: Shape = Shape { pace: Duration::ZERO, long_runs_percent: 3, body_bytes_max: usize::MAX };

/// Prints what is told.
struct Printer(Mutex<u64>);

impl Listener for Printer {
    fn told(&self, told: Told) {
        let mut acknowledged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = told.line();
        if told.is_acknowledgement() {
            *acknowledged += 1;
            text.push_str(&format!("\n{acknowledged}"));
        }
        text.push('\n');
        // One write, so that the cut finds whole lines; without a reader there is nobody to tell.
        let mut out = std::io::stdout().lock();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            std::process::exit(1);
        }
    }

    fn wrong(&self, text: String) {
        // Ends the writer, which the rig reports with this line.
        eprintln!("wrong: {text}");
        std::process::exit(1);
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let unsynced = arguments.first().is_some_and(|first| first == "--unsynced");
    if unsynced {
        arguments.remove(0);
    }
    let [dir] = arguments.as_slice() else { anyhow::bail!("usage: powercut_writer [--unsynced] DIR") };
    // Nothing here speaks TLS, but the HTTP client asks for a provider when it is made.
    let _ = rustls::crypto::ring::default_provider().install_default();

    let dir = PathBuf::from(dir);
    let before: Vec<Told> = match std::fs::read_to_string(dir.join(LEDGER)) {
        Ok(text) => text.lines().filter_map(Told::parse).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).context("reading the ledger"),
    };
    let acknowledged = before.iter().filter(|told| told.is_acknowledgement()).count() as u64;

    let mut config = Config::new(dir.join("data"));
    config.durability = if unsynced { Durability::Interval } else { Durability::Fsync };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let broker = Broker::start(config, listener).await?;

    let load = Load {
        address: broker.addr().to_string(),
        shape: SHAPE,
        listener: Arc::new(Printer(Mutex::new(acknowledged))),
        stop: CancellationToken::new(),
    };
    let seed = Random::seed();
    eprintln!("seed {seed}");
    let _tasks = load.start(&QUEUES.map(str::to_owned), &before, seed);
    Err(broker.failed().await.into())
}
