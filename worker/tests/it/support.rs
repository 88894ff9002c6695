//! What the tests share: an Engine if there is one, a scripted broker, a worker with a data directory of its own.

pub(crate) mod engine;
pub(crate) mod grid;
pub(crate) mod original_server;
pub(crate) mod own_engine;
pub(crate) mod peer;
pub(crate) mod registry;

use std::path::PathBuf;

use protocol::definition::Definition;
use protocol::id::{JobId, QueueName};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use worker::config::FetchPrivate;
use worker::{Config, ExitSummary, ShutdownHandle, ShutdownMode, WorkerError, shutdown_pair};

pub(crate) use engine::TestEngine;
pub(crate) use grid::Grid;
pub(crate) use peer::{Line, Peer};

/// A queue with a worker that is started and stopped against it.
pub(crate) struct Site {
    pub(crate) engine: TestEngine,
    pub(crate) peer: Peer,
    pub(crate) queue: QueueName,
    pub(crate) data: TempDir,
}

/// A worker that runs.
pub(crate) struct Running {
    shutdown: ShutdownHandle,
    task: JoinHandle<Result<ExitSummary, WorkerError>>,
}

impl Site {
    /// `None` (and a word about it) without an Engine.
    pub(crate) async fn new() -> Option<Self> {
        let engine = TestEngine::find().await?;
        let queue = format!("test-{}", uuid::Uuid::new_v4()).parse().unwrap();
        Some(Self { engine, peer: Peer::start().await, queue, data: TempDir::new().unwrap() })
    }

    pub(crate) fn config(&self) -> Config {
        let data: PathBuf = self.data.path().join("remote");
        let mut config = Config::new(vec![self.queue.clone()], self.peer.address().parse().unwrap(), data);
        config.docker_host = Some(self.engine.host.clone());
        // Without a bridge a container starts in half the time.
        config.network = Some("none".to_owned());
        // What jobs name is on this machine.
        config.files.fetch_private = FetchPrivate::Allow;
        config.cpus = 2;
        // Other tests fill the disk.
        config.min_free_disk_bytes = 0;
        config
    }

    pub(crate) fn start(&self) -> Running {
        self.start_with(|_| {})
    }

    pub(crate) fn start_with(&self, change: impl FnOnce(&mut Config)) -> Running {
        let mut config = self.config();
        change(&mut config);
        run_worker(config)
    }

    /// Starts a worker and lets it in.
    pub(crate) async fn started(&mut self) -> (Running, Line) {
        self.started_with(|_| {}).await
    }

    pub(crate) async fn started_with(&mut self, change: impl FnOnce(&mut Config)) -> (Running, Line) {
        let running = self.start_with(change);
        let mut line = self.peer.line().await;
        line.welcome(Vec::new()).await;
        (running, line)
    }

    /// No container of this queue is left; nor is what its jobs shared.
    pub(crate) async fn assert_clean(&self) {
        self.engine.until_clean(&self.queue).await;
    }
}

pub(crate) fn run_worker(config: Config) -> Running {
    let (shutdown, asked) = shutdown_pair();
    Running { shutdown, task: tokio::spawn(worker::run(config, asked)) }
}

impl Running {
    pub(crate) fn ask(&self, mode: ShutdownMode) {
        self.shutdown.request(mode);
    }

    pub(crate) async fn stop(self, mode: ShutdownMode) -> ExitSummary {
        self.shutdown.request(mode);
        self.ended().await.unwrap()
    }

    pub(crate) async fn ended(self) -> Result<ExitSummary, WorkerError> {
        peer::soon("the worker ends", self.task).await.unwrap()
    }
}

/// A definition over the test image.
pub(crate) fn job(mut fields: Value) -> (JobId, String) {
    fields["image"] = engine::IMAGE.into();
    with_id(&fields)
}

pub(crate) fn with_id(definition: &Value) -> (JobId, String) {
    let text = definition.to_string();
    (Definition::parse(text.as_bytes()).unwrap().job_id(), text)
}
