//! A snapshot: what is on the board, and what is only looked at when somebody asks. Answers are kept for a moment, so that many who
//! ask cost no more than one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protocol::id::{UnixMillis, WorkerId};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::board::{Board, tidy};
use super::lines::Recent;
use super::snapshot::{Disk, EngineView, Process, Snapshot};
use crate::builds::Builds;
use crate::clock::unix_now;
use crate::container::Engine;
use crate::images::Images;
use crate::link::Outbox;

/// How long what was looked at serves all who ask.
const LOOK_EVERY: Duration = Duration::from_millis(900);
/// An engine that says nothing for so long does not answer.
const ENGINE_ANSWER: Duration = Duration::from_secs(3);
/// The longest that an error's text may be.
const WHY_CHARS_MAX: usize = 200;

/// What is looked at.
pub(crate) struct Observed {
    pub(crate) worker: WorkerId,
    pub(crate) board: Arc<Board>,
    pub(crate) engine: Engine,
    /// Where the engine listens.
    pub(crate) engine_address: String,
    pub(crate) images: Arc<Images>,
    pub(crate) builds: Arc<Builds>,
    /// One for each queue.
    pub(crate) outboxes: Vec<Arc<Outbox>>,
    pub(crate) data_directory: PathBuf,
    pub(crate) recent: Recent,
}

/// See the module.
pub(crate) struct Observer {
    observed: Observed,
    started: UnixMillis,
    metrics: Option<SocketAddr>,
    seen: Mutex<Option<Seen>>,
}

#[derive(Clone)]
struct Seen {
    at: Instant,
    engine: EngineView,
    disk: Option<Disk>,
    process: Process,
}

impl Observer {
    pub(crate) fn new(observed: Observed) -> Self {
        Self { observed, started: unix_now(), metrics: None, seen: Mutex::default() }
    }

    pub(super) fn with_metrics(self, metrics: Option<SocketAddr>) -> Self {
        Self { metrics, ..self }
    }

    pub(super) fn data_directory(&self) -> &Path {
        &self.observed.data_directory
    }

    /// How the worker stands.
    pub(super) async fn snapshot(&self) -> Snapshot {
        let Observed { worker, board, images, builds, outboxes, recent, .. } = &self.observed;
        let seen = self.seen().await;
        let mut snapshot = Snapshot {
            worker: worker.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_ms: self.started.0,
            at_ms: unix_now().0,
            engine: seen.engine,
            disk: seen.disk,
            process: seen.process,
            metrics: self.metrics.map(|at| at.to_string()),
            unacknowledged: outboxes.iter().map(|outbox| outbox.unsettled() as u64).sum(),
            lines: recent.lines(),
            ..Snapshot::default()
        };
        board.copy_to(&mut snapshot);
        let counts = &mut snapshot.counts;
        (counts.pulls, counts.pull_failures) = images.tally().get();
        (counts.builds, counts.build_failures) = builds.tally().get();
        counts.log_lines_dropped = outboxes.iter().map(|outbox| outbox.lines_dropped()).sum();
        snapshot
    }

    /// What costs a look. Who asks while somebody looks waits for that look.
    async fn seen(&self) -> Seen {
        let mut kept = self.seen.lock().await;
        if let Some(seen) = &*kept
            && seen.at.elapsed() < LOOK_EVERY
        {
            return seen.clone();
        }
        let known_version = kept.take().and_then(|seen| seen.engine.version);
        let folder = self.observed.data_directory.clone();
        let own = tokio::task::spawn_blocking(move || (disk(&folder), process()));
        let (engine, own) = tokio::join!(self.engine(known_version), own);
        let (disk, process) = own.unwrap_or_default();
        let seen = Seen { at: Instant::now(), engine, disk, process };
        kept.insert(seen).clone()
    }

    async fn engine(&self, known_version: Option<String>) -> EngineView {
        let Observed { engine, engine_address: address, .. } = &self.observed;
        let (version, why) = match timeout(ENGINE_ANSWER, engine.docker().version()).await {
            Ok(Ok(version)) => (version.version, None),
            Ok(Err(error)) => (known_version, Some(tidy(&crate::outcome::with_sources(&error), WHY_CHARS_MAX))),
            Err(_) => (known_version, Some(format!("no answer within {} s", ENGINE_ANSWER.as_secs()))),
        };
        EngineView { address: address.clone(), is_reachable: why.is_none(), version, why }
    }
}

fn disk(folder: &Path) -> Option<Disk> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(Disk {
        path: folder.display().to_string(),
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
    })
}

fn process() -> Process {
    let resident_bytes = || {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    // One of them is open for this look.
    let open_files = std::fs::read_dir("/proc/self/fd").ok().map(|files| files.count().saturating_sub(1) as u64);
    Process { pid: std::process::id(), resident_bytes: resident_bytes(), open_files }
}
