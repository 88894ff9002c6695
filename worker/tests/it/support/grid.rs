//! A real broker and a worker for one or several of its queues.

use broker::config::Config as BrokerConfig;
use broker::{Broker, BrokerHandle};
use protocol::id::QueueName;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use worker::{Config, ShutdownMode};

use super::engine::{IMAGE, TestEngine};
use super::peer::{soon, until};
use super::{Running, run_worker};

pub(crate) struct Grid {
    pub(crate) engine: TestEngine,
    broker: BrokerHandle,
    broker_config: BrokerConfig,
    pub(crate) queues: Vec<QueueName>,
    pub(crate) http: reqwest::Client,
    worker: Option<Running>,
    folders: [TempDir; 2],
}

impl Grid {
    /// A broker, and a worker for a new queue of it.
    pub(crate) async fn start() -> Option<Self> {
        let mut grid = Self::without_worker(1).await?;
        grid.start_worker(|_| {});
        Some(grid)
    }

    /// A broker, and the names of so many queues.
    pub(crate) async fn without_worker(queues: usize) -> Option<Self> {
        Self::without_worker_with(queues, |_| {}).await
    }

    pub(crate) async fn without_worker_with(queues: usize, change: impl FnOnce(&mut BrokerConfig)) -> Option<Self> {
        let engine = TestEngine::find().await?;
        worker::install_tls();
        let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
        let mut broker_config = BrokerConfig::new(folders[0].path());
        change(&mut broker_config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let broker = Broker::start(broker_config.clone(), listener).await.unwrap();
        let queues = (0..queues).map(|_| format!("test-{}", uuid::Uuid::new_v4()).parse().unwrap()).collect();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Some(Self { engine, broker, broker_config, queues, http, worker: None, folders })
    }

    pub(crate) fn start_worker(&mut self, change: impl FnOnce(&mut Config)) {
        let api = format!("http://{}", self.broker.addr()).parse().unwrap();
        let mut config = Config::new(self.queues.clone(), api, self.folders[1].path().join("remote"));
        config.docker_host = Some(self.engine.host.clone());
        config.network = Some("none".to_owned());
        config.min_free_disk_bytes = 0;
        change(&mut config);
        self.worker = Some(run_worker(config));
    }

    /// The worker's.
    pub(crate) fn data_directory(&self) -> std::path::PathBuf {
        self.folders[1].path().join("remote")
    }

    pub(crate) async fn stop_worker(&mut self, mode: ShutdownMode) -> worker::ExitSummary {
        self.worker.take().unwrap().stop(mode).await
    }

    /// The first queue.
    pub(crate) fn queue(&self) -> &QueueName {
        &self.queues[0]
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.broker.addr())
    }

    pub(crate) async fn submit(&self, definition: Value) -> String {
        self.submit_to(self.queue(), definition).await
    }

    pub(crate) async fn submit_to(&self, queue: &QueueName, mut definition: Value) -> String {
        definition["image"] = IMAGE.into();
        let body = json!({ "definition": definition }).to_string();
        let answer = self.http.post(self.url(&format!("/q/{queue}"))).body(body).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        answer["jobId"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    async fn get(&self, queue: &QueueName, path: &str) -> Value {
        let answer = self.http.get(self.url(&format!("/q/{queue}/j/{path}"))).send().await.unwrap();
        answer.json::<Value>().await.unwrap_or_default()["data"].take()
    }

    pub(crate) async fn result(&self, job: &str) -> Value {
        self.result_in(self.queue(), job).await
    }

    pub(crate) async fn result_in(&self, queue: &QueueName, job: &str) -> Value {
        let mut found = Value::Null;
        until("the job has a result", async || {
            found = self.get(queue, &format!("{job}/result.json")).await;
            !found.is_null()
        })
        .await;
        found
    }

    pub(crate) async fn until_logged(&self, job: &str, text: &str) {
        self.until_logged_in(self.queue(), job, text).await;
    }

    pub(crate) async fn until_logged_in(&self, queue: &QueueName, job: &str, text: &str) {
        until("the line is in the log", async || {
            self.get(queue, &format!("{job}/run-logs.json")).await.to_string().contains(text)
        })
        .await;
    }

    pub(crate) async fn restart_broker(self) -> Self {
        self.restart_broker_after(async |_, _| {}).await
    }

    /// Restarts the broker, after something was done while it was away.
    pub(crate) async fn restart_broker_after(self, meanwhile: impl AsyncFnOnce(&TestEngine, &QueueName)) -> Self {
        let Self { engine, broker, broker_config, queues, http, worker, folders } = self;
        let address = broker.addr();
        soon("the broker stops", broker.shutdown()).await;
        meanwhile(&engine, &queues[0]).await;
        let mut listener = TcpListener::bind(address).await;
        until("the address is free", async || {
            if listener.is_err() {
                listener = TcpListener::bind(address).await;
            }
            listener.is_ok()
        })
        .await;
        let broker = Broker::start(broker_config.clone(), listener.unwrap()).await.unwrap();
        Self { engine, broker, broker_config, queues, http, worker, folders }
    }

    pub(crate) async fn stop(mut self) {
        let limit = std::time::Duration::from_secs(60);
        let summary = self.stop_worker(ShutdownMode::Drain { limit }).await;
        assert_eq!((summary.unacknowledged, summary.left_running), (0, 0));
        for queue in &self.queues {
            self.engine.until_clean(queue).await;
        }
        soon("the broker stops", self.broker.shutdown()).await;
    }
}
