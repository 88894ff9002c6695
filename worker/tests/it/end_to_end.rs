//! The worker and the real broker, over real sockets, with a real Engine.

use broker::config::Config as BrokerConfig;
use broker::{Broker, BrokerHandle};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use worker::{Config, ShutdownHandle, ShutdownMode, shutdown_pair};

use crate::support::engine::{IMAGE, TestEngine};
use crate::support::peer::{soon, until};

struct Grid {
    engine: TestEngine,
    broker: BrokerHandle,
    broker_config: BrokerConfig,
    queue: String,
    http: reqwest::Client,
    worker: ShutdownHandle,
    task: tokio::task::JoinHandle<Result<worker::ExitSummary, worker::WorkerError>>,
    _folders: [TempDir; 2],
}

impl Grid {
    async fn start() -> Option<Self> {
        let engine = TestEngine::find().await?;
        worker::install_tls();
        let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
        let broker_config = BrokerConfig::new(folders[0].path());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let broker = Broker::start(broker_config.clone(), listener).await.unwrap();
        let queue = format!("test-{}", uuid::Uuid::new_v4());
        let api = format!("http://{}", broker.addr()).parse().unwrap();
        let mut config = Config::new(queue.parse().unwrap(), api, folders[1].path().join("remote"));
        config.docker_host = Some(engine.host.clone());
        config.network = Some("none".to_owned());
        let (worker, asked) = shutdown_pair();
        let task = tokio::spawn(worker::run(config, asked));
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Some(Self { engine, broker, broker_config, queue, http, worker, task, _folders: folders })
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.broker.addr())
    }

    async fn submit(&self, mut definition: Value) -> String {
        definition["image"] = IMAGE.into();
        let body = json!({ "definition": definition }).to_string();
        let answer = self.http.post(self.url(&format!("/q/{}", self.queue))).body(body).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        answer["jobId"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    async fn get(&self, path: &str) -> Value {
        let url = self.url(&format!("/q/{}/j/{path}", self.queue));
        let answer = self.http.get(url).send().await.unwrap();
        answer.json::<Value>().await.unwrap_or_default()["data"].take()
    }

    async fn result(&self, job: &str) -> Value {
        let mut found = Value::Null;
        until("the job has a result", async || {
            found = self.get(&format!("{job}/result.json")).await;
            !found.is_null()
        })
        .await;
        found
    }

    async fn until_logged(&self, job: &str, text: &str) {
        until("the line is in the log", async || {
            self.get(&format!("{job}/run-logs.json")).await.to_string().contains(text)
        })
        .await;
    }

    async fn stop(self) {
        self.worker.request(ShutdownMode::Drain { limit: std::time::Duration::from_secs(60) });
        let summary = soon("the worker stops", self.task).await.unwrap().unwrap();
        assert_eq!((summary.unacknowledged, summary.left_running), (0, 0));
        self.engine.until_containers(&self.queue.parse().unwrap(), 0).await;
        soon("the broker stops", self.broker.shutdown()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submitted_job_runs_and_its_logs_and_outputs_can_be_fetched() {
    let Some(grid) = Grid::start().await else { return };
    let job = grid
        .submit(json!({
            "command": ["sh", "-c", "wc -w < /inputs/words; seq 1 1000 > /outputs/numbers; echo done >&2; exit 3"],
            "inputs": {"words": {"type": "utf8", "value": "one two three"}},
        }))
        .await;
    let result = grid.result(&job).await;
    let told = result.to_string();
    assert!(told.contains("\"reason\":\"Success\"") && told.contains("\"StatusCode\":3"), "{told}");
    grid.until_logged(&job, "3\\n").await;
    grid.until_logged(&job, "done\\n").await;
    let output = grid.url(&format!("/q/{}/j/{job}/outputs/numbers", grid.queue));
    let bytes = grid.http.get(output).send().await.unwrap().bytes().await.unwrap();
    let numbers: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    assert_eq!(bytes, numbers.as_bytes());
    grid.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_cancelled_over_http_is_gone() {
    let Some(grid) = Grid::start().await else { return };
    let job = grid.submit(json!({"command": "sh -c 'echo up; sleep 300'"})).await;
    grid.until_logged(&job, "up").await;
    let cancel = grid.url(&format!("/q/{}/j/{job}/cancel", grid.queue));
    let answer = grid.http.post(cancel).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    grid.engine.until_containers(&grid.queue.parse().unwrap(), 0).await;
    // The slot is free again.
    let next = grid.submit(json!({"command": "echo next"})).await;
    assert!(grid.result(&next).await.to_string().contains("\"StatusCode\":0"));
    grid.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_broker_leaves_what_runs_alone() {
    let Some(mut grid) = Grid::start().await else { return };
    let command =
        "echo before; while [ ! -e /job-cache/go-$JOB_ID ]; do sleep 0.05; done; rm /job-cache/go-$JOB_ID; echo after";
    let job = grid.submit(json!({"command": ["sh", "-c", command]})).await;
    grid.until_logged(&job, "before").await;
    let queue = grid.queue.parse().unwrap();
    let container = grid.engine.containers(&queue).await[0].id.clone();
    let address = grid.broker.addr();
    let (config, broker) = (grid.broker_config.clone(), grid.broker);
    soon("the broker stops", broker.shutdown()).await;
    let mut listener = TcpListener::bind(address).await;
    until("the address is free", async || {
        if listener.is_err() {
            listener = TcpListener::bind(address).await;
        }
        listener.is_ok()
    })
    .await;
    grid.broker = Broker::start(config, listener.unwrap()).await.unwrap();
    assert_eq!(grid.engine.containers(&queue).await[0].id, container, "the container was left alone");
    // A second job in the queue has no slot, so what sets the first free is a container of our own.
    grid.engine.touch_in_cache(&format!("go-{job}")).await;
    let result = grid.result(&job).await.to_string();
    assert!(result.contains("\"StatusCode\":0") && result.contains("after"), "{result}");
    grid.until_logged(&job, "after").await;
    grid.stop().await;
}
