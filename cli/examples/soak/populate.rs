//! A store that has been lived in: several queues and segments, jobs in every state, some that have left.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use broker::blobs::Blobs;
use broker::config::Config;
use broker::engine::{Engine, EngineConfig};
use broker::http::{self, AppState};
use broker::journal::{Journal, JournalConfig};
use broker::logs::LogStore;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::collector::Collector;
use crate::load::{Load, Shape};
use crate::told::Told;

/// The queues.
pub(crate) const QUEUES: [&str; 6] = ["flips-1", "flips-2", "flips-3", "flips-4", "flips-5", "flips-6"];

/// Bodies so small that a flip meets a record as often as a body.
const SHAPE: Shape = Shape { pace: Duration::from_millis(3), long_runs_percent: 10, body_bytes_max: 600 };
/// So small that there are several.
const SEGMENT_BYTES: u64 = 1024 * 1024;
/// How long jobs that have ended are shown: many leave while the load goes on.
const STAYS_MS: u64 = 500;
/// How long the load goes on.
const TIME: Duration = Duration::from_secs(6);

/// How a journal is opened here: nothing is read in the background, so that what is found is found when it is asked for.
pub(crate) fn journal_config(dir: &Path) -> JournalConfig {
    JournalConfig { scrub: false, segment_bytes_max: SEGMENT_BYTES, ..JournalConfig::new(dir.join("journal")) }
}

/// Starts an engine on the journal in `dir`.
pub(crate) async fn engine(dir: &Path, config: &Config, journal: Journal) -> anyhow::Result<Engine> {
    let logs = LogStore::open(dir.join("logs"), config.limits.logs)?;
    let mut rules = EngineConfig::default();
    rules.limits.success_stays_ms = STAYS_MS;
    Ok(Engine::start(journal, logs, rules))
}

/// Fills `dir`; says what was told meanwhile.
pub(crate) async fn populate(dir: &Path, seed: u64) -> anyhow::Result<(Vec<Told>, Vec<String>)> {
    let config = Config::new(dir);
    let (journal, _) = Journal::open(journal_config(dir))?;
    let engine = engine(dir, &config, journal).await?;
    let blobs = Blobs::open(&config.blobs, config.limits.blob_bytes_max).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(http::serve(listener, AppState::new(engine.clone(), blobs, config), shutdown.clone()));

    let collector = Arc::new(Collector::default());
    let stop = CancellationToken::new();
    let load = Load { address, shape: SHAPE, listener: collector.clone(), stop: stop.clone() };
    let mut tasks = load.start(&QUEUES.map(str::to_owned), &[], seed);
    tokio::time::sleep(TIME).await;
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    shutdown.cancel();
    engine.stop().await;
    serving.await?;
    Ok(collector.take())
}
