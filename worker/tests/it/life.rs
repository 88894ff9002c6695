//! What happens to a worker that is left alone for months: restarts, crashes, full disks, other ids and queues.

mod crash;
mod disk;
mod leaks;

use std::time::Duration;

use protocol::event::RunOutcome;
use serde_json::json;
use worker::ShutdownMode;
use worker::config::Identity;

use crate::support::{Site, job};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_at_its_limit_and_leaves_what_runs_to_the_next_start() {
    let Some(mut site) = Site::new().await else { return };
    let (worker, mut line) = site.started().await;
    let run = line.grant(job(json!({"command": "sh -c 'echo up; sleep 300'"}))).await;
    line.until(|line| line.logs.text(run, false) == "up\n").await;
    let summary = worker.stop(ShutdownMode::Drain { limit: Duration::from_millis(100) }).await;
    assert_eq!((summary.left_running, summary.handed_back, summary.finished), (1, 0, 0));

    let (worker, line) = site.started().await;
    assert_eq!(line.holds(), [run]);
    // Whoever asks a second time does not want to wait.
    worker.ask(ShutdownMode::Drain { limit: Duration::from_secs(3600) });
    let summary = worker.stop(ShutdownMode::Leave).await;
    assert_eq!(summary.left_running, 1);

    let (worker, mut line) = site.started().await;
    let stopping = tokio::spawn(worker.stop(ShutdownMode::Kill));
    line.until(|line| !line.returned.is_empty()).await;
    stopping.await.unwrap();
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_an_id_or_a_queue_that_the_worker_has_no_more_are_ended() {
    let Some(mut site) = Site::new().await else { return };
    for change in ["id", "queue"] {
        let (worker, mut line) = site.started().await;
        let run = line.grant(job(json!({"command": ["sh", "-c", "echo up; sleep 300"], "env": {"N": change}}))).await;
        line.until(|line| line.logs.text(run, false) == "up\n").await;
        assert_eq!(worker.stop(ShutdownMode::Leave).await.left_running, 1);
        assert_eq!(site.engine.containers(&site.queue).await.len(), 1);
        let (worker, line) = site
            .started_with(|config| match change {
                "id" => config.id = Identity::Given("another".parse().unwrap()),
                _ => config.queues = vec![format!("test-{}", uuid::Uuid::new_v4()).parse().unwrap()],
            })
            .await;
        assert_eq!(line.holds(), []);
        site.engine.until_containers(&site.queue, 0).await;
        worker.stop(ShutdownMode::Leave).await;
    }
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_of_one_id_by_mistake_do_not_touch_each_others_containers() {
    let Some(mut site) = Site::new().await else { return };
    let id = |config: &mut worker::Config| config.id = Identity::Given("twin".parse().unwrap());
    let (one, mut line) = site.started_with(id).await;
    let run = line.grant(job(json!({"command": "sh -c 'echo up; sleep 300'"}))).await;
    line.until(|line| line.logs.text(run, false) == "up\n").await;
    let elsewhere = tempfile::TempDir::new().unwrap();
    let (other, mut second) = site
        .started_with(|config| {
            id(config);
            config.data_directory = elsewhere.path().join("remote");
        })
        .await;
    assert_eq!(second.holds(), [], "it has a data directory of its own, and nothing in it");
    second.until(|line| line.claims.last().is_some_and(|free| free.cpus_milli == 2000)).await;
    other.stop(ShutdownMode::Kill).await;
    assert_eq!(site.engine.containers(&site.queue).await.len(), 1);
    let stopping = tokio::spawn(one.stop(ShutdownMode::Kill));
    line.until(|line| !line.returned.is_empty()).await;
    assert_eq!(stopping.await.unwrap().handed_back, 1);
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adopted_runs_time_is_counted_by_a_clock_that_nobody_sets() {
    let Some(mut site) = Site::new().await else { return };
    let (worker, mut line) = site.started().await;
    let run = line.grant(job(json!({"command": "sh -c 'echo up; sleep 300'", "maxDuration": "1h"}))).await;
    line.until(|line| line.logs.text(run, false) == "up\n").await;
    worker.stop(ShutdownMode::Leave).await;
    let dirs = std::fs::read_dir(site.data.path().join("remote/j").join(run.job.to_string())).unwrap();
    let start = dirs.map(|dir| dir.unwrap().path().join("started.json")).next().unwrap();
    let mut told: serde_json::Value = serde_json::from_slice(&std::fs::read(&start).unwrap()).unwrap();
    let (worker, line) = site.started_with(|config| config.max_job_duration_ms = 120_000).await;
    assert_eq!(line.holds(), [run]);
    worker.stop(ShutdownMode::Leave).await;
    // By the wall clock it has run for seconds, by the other for longer than it may.
    told["awake_ms"] = told["awake_ms"].as_u64().unwrap().saturating_sub(120_000).into();
    std::fs::write(&start, told.to_string()).unwrap();
    let (_worker, mut line) = site.started_with(|config| config.max_job_duration_ms = 120_000).await;
    let (finished, _) = line.end(run).await;
    assert_eq!(finished.outcome, RunOutcome::TimedOut);
    assert!(finished.duration_ms.unwrap() >= 120_000);
    site.assert_clean().await;
}
