//! The worker and a server of the original's kind: a simulated one, and our broker when it is spoken to like one.

use std::path::PathBuf;

use broker::Broker;
use broker::config::Config as BrokerConfig;
use protocol::id::QueueName;
use serde_json::{Value, json};
use tempfile::TempDir;
use worker::config::{Dialect, FetchPrivate};
use worker::{Config, ShutdownMode};

use crate::support::engine::IMAGE;
use crate::support::original_server::{OriginalServer, bind};
use crate::support::peer::until;
use crate::support::{Grid, Running, TestEngine, job, run_worker};

/// A server of the original's kind, and a place for a worker.
struct Old {
    engine: TestEngine,
    server: OriginalServer,
    queue: QueueName,
    data: TempDir,
}

impl Old {
    async fn new() -> Option<Self> {
        let engine = TestEngine::find().await?;
        worker::install_tls();
        let queue = format!("test-{}", uuid::Uuid::new_v4()).parse().unwrap();
        Some(Self { engine, server: OriginalServer::start().await, queue, data: TempDir::new().unwrap() })
    }

    fn config(&self) -> Config {
        let data: PathBuf = self.data.path().join("remote");
        let mut config = Config::new(vec![self.queue.clone()], self.server.api().parse().unwrap(), data);
        config.docker_host = Some(self.engine.host.clone());
        config.network = Some("none".to_owned());
        config.files.fetch_private = FetchPrivate::Allow;
        config.min_free_disk_bytes = 0;
        config
    }

    fn start(&self) -> Running {
        run_worker(self.config())
    }

    fn submit(&self, fields: Value) -> String {
        self.server.submit(self.queue.as_str(), job(fields))
    }

    async fn ended(&self, job: &str) -> Value {
        self.server.ended(self.queue.as_str(), job).await
    }

    async fn until_printed(&self, job: &str, text: &str) {
        self.server.until(self.queue.as_str(), job, |job| job.text(false).contains(text)).await;
    }

    async fn container(&self) -> String {
        self.engine.container_when(&self.queue, "running").await.id.unwrap()
    }

    async fn assert_clean(&self) {
        self.engine.until_clean(&self.queue).await;
    }
}

/// Runs until somebody makes the file.
const UNTIL_GO: &str = "echo up; while [ ! -e /job-cache/go-$JOB_ID ]; do sleep 0.05; done; echo went";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_original_server_has_its_job_run_with_inputs_logs_and_outputs() {
    let Some(old) = Old::new().await else { return };
    old.server.put_blob("some-key", b"by key\n");
    let worker = old.start();
    let far = format!("{}/f/some-key", old.server.api());
    let id = old.submit(json!({
        "command": ["sh", "-c", "cat /inputs/text /inputs/key /inputs/far; echo oops >&2; echo 42 > /outputs/small; seq 1 200 > /outputs/large; exit 3"],
        "inputs": {
            "text": {"type": "utf8", "value": "text\n"},
            "key": {"type": "key", "value": "some-key"},
            "far": {"type": "url", "value": far},
        },
    }));
    let finished = old.ended(&id).await;
    assert_eq!((&finished["type"], &finished["reason"]), (&json!("Finished"), &json!("Success")));
    let result = &finished["result"];
    assert_eq!((&result["StatusCode"], &result["isTimedOut"]), (&json!(3), &json!(false)));
    assert_eq!(result["outputs"]["small"], json!({"type": "base64", "value": "NDIK"}));
    let url = result["outputs"]["large"]["value"].as_str().unwrap();
    let key = url.strip_prefix(&format!("{}/f/", old.server.api())).unwrap();
    let numbers: String = (1..=200).map(|n| format!("{n}\n")).collect();
    assert_eq!(old.server.blob(key).unwrap(), numbers.as_bytes());
    // Storage is told nothing that its address was not signed for.
    let uploads = old.server.uploads();
    assert!(uploads.len() == 1 && !uploads[0].contains("x-amz-checksum") && !uploads[0].contains("authorization"));
    let told = old.server.job(old.queue.as_str(), &id);
    assert_eq!(told.text(false), "text\nby key\nby key\n");
    assert!(told.text(true).starts_with("oops\n"), "{}", told.text(true));
    assert_eq!((told.claims, told.worker.as_str()), (1, finished["worker"].as_str().unwrap()));
    old.assert_clean().await;
    let summary = worker.stop(ShutdownMode::Leave).await;
    assert_eq!((summary.finished, summary.unacknowledged, summary.left_running), (1, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_another_worker_claimed_first_is_not_started() {
    let Some(old) = Old::new().await else { return };
    old.server.quirks(|quirks| quirks.rival = Some("_first".to_owned()));
    let worker = old.start();
    let lost = old.submit(json!({"command": "echo lost"}));
    let told = old.server.until(old.queue.as_str(), &lost, |job| job.state == "Running").await;
    assert_eq!(told.worker, "_first");
    old.server.quirks(|quirks| quirks.rival = None);
    let won = old.submit(json!({"command": "echo won"}));
    assert_eq!(old.ended(&won).await["result"]["StatusCode"], json!(0));
    old.assert_clean().await;
    assert_eq!(worker.stop(ShutdownMode::Leave).await.finished, 1);
    assert!(old.server.job(old.queue.as_str(), &lost).finished.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_a_worker_before_us_takes_over_is_let_go() {
    let Some(old) = Old::new().await else { return };
    let worker = old.start();
    let id = old.submit(json!({"command": "sh -c 'echo up; sleep 300'"}));
    old.until_printed(&id, "up").await;
    old.server.claim_as(old.queue.as_str(), &id, "_first");
    old.assert_clean().await;
    let told = old.server.job(old.queue.as_str(), &id);
    assert_eq!((told.worker.as_str(), told.ends), ("_first", 0));
    let summary = worker.stop(ShutdownMode::Leave).await;
    assert_eq!((summary.finished, summary.unacknowledged), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_an_original_server_cancels_or_deletes_is_killed_and_the_slot_is_free() {
    let Some(old) = Old::new().await else { return };
    let worker = old.start();
    let queue = old.queue.as_str();
    let cancelled = old.submit(json!({"command": "sh -c 'echo up; sleep 300'"}));
    old.until_printed(&cancelled, "up").await;
    old.server.cancel(queue, &cancelled);
    old.assert_clean().await;
    let deleted = old.submit(json!({"command": "sh -c 'echo too; sleep 300'"}));
    old.until_printed(&deleted, "too").await;
    old.server.delete(queue, &deleted);
    old.assert_clean().await;
    let next = old.submit(json!({"command": "true"}));
    old.ended(&next).await;
    assert_eq!((old.server.job(queue, &cancelled).ends, old.server.job(queue, &deleted).ends), (0, 0));
    worker.stop(ShutdownMode::Leave).await;
    old.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_goes_on_while_an_original_server_is_away_and_is_claimed_again() {
    let Some(mut old) = Old::new().await else { return };
    let worker = old.start();
    let id = old.submit(json!({"command": ["sh", "-c", UNTIL_GO]}));
    old.until_printed(&id, "up").await;
    let container = old.container().await;
    old.server.stop().await;
    // Nobody is registered any more: the job waits again when the server is back.
    old.server.requeue_orphans();
    old.server.start_again().await;
    let queue = old.queue.as_str();
    old.server.until(queue, &id, |job| job.state == "Running").await;
    assert_eq!(old.container().await, container, "it was left alone");
    old.engine.touch_in_cache(&old.queue, &format!("go-{id}")).await;
    let finished = old.ended(&id).await;
    assert_eq!(finished["result"]["StatusCode"], json!(0));
    let told = old.server.job(queue, &id);
    assert!(told.text(false).ends_with("went\n"), "{}", told.text(false));
    assert_eq!(told.claims, 2);
    old.assert_clean().await;
    assert_eq!(worker.stop(ShutdownMode::Leave).await.finished, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_is_lost_on_the_way_is_sent_again_and_nothing_runs_twice() {
    let Some(old) = Old::new().await else { return };
    old.server.quirks(|quirks| quirks.loses_ends = 2);
    let worker = old.start();
    let id = old.submit(json!({"command": "echo once"}));
    old.ended(&id).await;
    old.assert_clean().await;
    let summary = worker.stop(ShutdownMode::Leave).await;
    assert_eq!((summary.finished, summary.unacknowledged), (1, 0));
    assert_eq!(old.server.job(old.queue.as_str(), &id).text(false), "once\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_an_original_server_did_not_take_outlives_the_worker() {
    let Some(old) = Old::new().await else { return };
    old.server.quirks(|quirks| quirks.is_deaf_for_ends = true);
    let worker = old.start();
    let id = old.submit(json!({"command": "echo once"}));
    old.until_printed(&id, "once").await;
    old.engine.until_containers(&old.queue, 0).await;
    let summary = worker.stop(ShutdownMode::Leave).await;
    assert_eq!((summary.finished, summary.unacknowledged), (1, 1));
    old.server.quirks(|quirks| quirks.is_deaf_for_ends = false);
    let worker = old.start();
    old.ended(&id).await;
    old.assert_clean().await;
    until("the worker knows that it is known", async || {
        let kept = old.data.path().join("remote/unacknowledged");
        let queues = std::fs::read_dir(kept).unwrap().map(|queue| queue.unwrap().path());
        queues.flat_map(|queue| std::fs::read_dir(queue).into_iter().flatten()).count() == 0
    })
    .await;
    assert_eq!(worker.stop(ShutdownMode::Leave).await.finished, 0);
    assert_eq!(old.server.job(old.queue.as_str(), &id).text(false), "once\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_worker_goes_on_with_a_run_of_an_original_server() {
    let Some(old) = Old::new().await else { return };
    let worker = old.start();
    let id = old.submit(json!({"command": ["sh", "-c", UNTIL_GO]}));
    old.until_printed(&id, "up").await;
    let container = old.container().await;
    assert_eq!(worker.stop(ShutdownMode::Leave).await.left_running, 1);
    // The server has noticed, and nobody else took it.
    old.server.until(old.queue.as_str(), &id, |job| job.state == "Queued").await;
    let worker = old.start();
    old.server.until(old.queue.as_str(), &id, |job| job.state == "Running").await;
    assert_eq!(old.container().await, container);
    old.engine.touch_in_cache(&old.queue, &format!("go-{id}")).await;
    assert_eq!(old.ended(&id).await["result"]["StatusCode"], json!(0));
    old.assert_clean().await;
    assert_eq!(worker.stop(ShutdownMode::Leave).await.finished, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rubbish_from_a_server_and_broken_lines_harm_no_run() {
    let Some(old) = Old::new().await else { return };
    old.server.quirks(|quirks| quirks.sends_rubbish = true);
    let worker = old.start();
    let id = old.submit(json!({"command": ["sh", "-c", UNTIL_GO]}));
    for _ in 0..3 {
        old.server.until(old.queue.as_str(), &id, |job| job.state == "Running").await;
        old.until_printed(&id, "up").await;
        old.server.break_lines();
        until("the worker is back", async || !old.server.workers().is_empty()).await;
    }
    old.server.until(old.queue.as_str(), &id, |job| job.state == "Running").await;
    old.engine.touch_in_cache(&old.queue, &format!("go-{id}")).await;
    assert_eq!(old.ended(&id).await["result"]["StatusCode"], json!(0));
    old.assert_clean().await;
    assert_eq!(worker.stop(ShutdownMode::Leave).await.finished, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_at_an_original_server_share_its_jobs_and_each_ends() {
    let Some(old) = Old::new().await else { return };
    let other = TempDir::new().unwrap();
    let queues: Vec<QueueName> = vec![old.queue.clone(), format!("{}-b", old.queue).parse().unwrap()];
    let mut configs = [old.config(), old.config()];
    configs[1].data_directory = other.path().join("remote");
    let workers = configs.map(|mut config| {
        config.queues.clone_from(&queues);
        config.cpus = 2;
        run_worker(config)
    });
    let mut jobs = Vec::new();
    for queue in &queues {
        for number in 0..6 {
            let id = old.server.submit(queue.as_str(), job(json!({"command": format!("echo {number}")})));
            jobs.push((queue, id));
        }
    }
    for (queue, id) in &jobs {
        let finished = old.server.ended(queue.as_str(), id).await;
        assert_eq!(finished["result"]["StatusCode"], json!(0));
    }
    for worker in workers {
        let limit = std::time::Duration::from_secs(60);
        let summary = worker.stop(ShutdownMode::Drain { limit }).await;
        assert_eq!((summary.unacknowledged, summary.left_running), (0, 0));
    }
    for queue in &queues {
        old.engine.until_clean(queue).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_notices_that_its_server_became_a_broker_of_ours() {
    let Some(mut old) = Old::new().await else { return };
    let worker = old.start();
    let first = old.submit(json!({"command": "echo first"}));
    old.ended(&first).await;
    let stale = old.submit(json!({"command": "sh -c 'echo up; sleep 300'"}));
    old.until_printed(&stale, "up").await;
    old.server.stop().await;
    let folder = TempDir::new().unwrap();
    let broker = Broker::start(BrokerConfig::new(folder.path()), bind(old.server.address).await).await.unwrap();
    // The new one knows nothing of what the old one wanted.
    old.engine.until_containers(&old.queue, 0).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/q/{}", old.server.api(), old.queue);
    let body = json!({"definition": {"image": IMAGE, "command": "echo native"}}).to_string();
    let answer: Value = http.post(&url).body(body).send().await.unwrap().json().await.unwrap();
    let id = answer["jobId"].as_str().unwrap().to_owned();
    let mut told = Value::Null;
    until("the job has a result", async || {
        let answer = http.get(format!("{url}/j/{id}/result.json")).send().await.unwrap();
        told = answer.json::<Value>().await.unwrap_or_default()["data"].take();
        !told.is_null()
    })
    .await;
    assert!(told.to_string().contains("\"StatusCode\":0"), "{told}");
    let history = http.get(format!("{url}/j/{id}/history.json")).send().await.unwrap().text().await.unwrap();
    assert!(history.contains("image") || history.contains("sha256"), "only natively is the image told: {history}");
    let summary = worker.stop(ShutdownMode::Leave).await;
    assert_eq!((summary.finished, summary.unacknowledged), (2, 0));
    old.assert_clean().await;
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_broker_takes_the_worker_for_an_original_one_if_it_speaks_like_one() {
    let Some(mut grid) = Grid::without_worker(1).await else { return };
    grid.start_worker(|config| config.dialect = Dialect::Original);
    let command = "wc -w < /inputs/words; seq 1 1000 > /outputs/numbers; exit 3";
    let inputs = json!({"words": {"type": "utf8", "value": "one two three"}});
    let id = grid.submit(json!({"command": ["sh", "-c", command], "inputs": inputs})).await;
    let told = grid.result(&id).await.to_string();
    assert!(told.contains("\"reason\":\"Success\"") && told.contains("\"StatusCode\":3"), "{told}");
    grid.until_logged(&id, "3\\n").await;
    let output = grid.url(&format!("/q/{}/j/{id}/outputs/numbers", grid.queue()));
    let bytes = grid.http.get(output).send().await.unwrap().bytes().await.unwrap();
    let numbers: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    assert_eq!(bytes, numbers.as_bytes());
    let id = grid.submit(json!({"command": "sh -c 'echo up; sleep 300'"})).await;
    grid.until_logged(&id, "up").await;
    let cancel = grid.url(&format!("/q/{}/j/{id}/cancel", grid.queue()));
    assert!(grid.http.post(cancel).send().await.unwrap().status().is_success());
    grid.engine.until_containers(grid.queue(), 0).await;
    let id = grid.submit(json!({"command": ["sh", "-c", UNTIL_GO]})).await;
    grid.until_logged(&id, "up").await;
    let container = grid.engine.containers(grid.queue()).await[0].id.clone();
    let grid = grid.restart_broker().await;
    assert_eq!(grid.engine.containers(grid.queue()).await[0].id, container, "the container was left alone");
    grid.engine.touch_in_cache(grid.queue(), &format!("go-{id}")).await;
    let told = grid.result(&id).await.to_string();
    assert!(told.contains("\"StatusCode\":0"), "{told}");
    grid.until_logged(&id, "went").await;
    grid.stop().await;
}
