//! The line to the broker, and what a worker needs before it.

use std::path::Path;

use protocol::native::StopReason;
use serde_json::json;
use worker::{Config, ShutdownMode, WorkerError, shutdown_pair};

use crate::support::{Site, job};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_comes_back_after_each_break_with_one_claim() {
    let Some(mut site) = Site::new().await else { return };
    let worker = site.start();
    for _ in 0..3 {
        let mut line = site.peer.line().await;
        let hello = line.hello.clone().unwrap();
        assert_eq!(hello.total.cpus_milli, 2000);
        line.welcome(Vec::new()).await;
        line.until(|line| line.claims.len() == 1).await;
    }
    let summary = worker.stop(ShutdownMode::Leave).await;
    assert_eq!(summary, worker::ExitSummary::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_prints_without_end_holds_up_neither_leases_nor_other_runs() {
    let Some(mut site) = Site::new().await else { return };
    let (worker, mut line) = site.started().await;
    let endless = line.grant(job(json!({"command": ["sh", "-c", "yes $(printf %04000d 0)"]}))).await;
    line.until(|line| line.renewals > 0).await;
    let short = line.grant(job(json!({"command": "true"}))).await;
    line.end(short).await;
    let (renewals, claims) = (line.renewals, line.claims.len());
    line.until(|line| line.renewals > renewals && line.claims.len() > claims).await;
    line.stop(endless, StopReason::Deleted).await;
    line.until(|line| line.claims.last().is_some_and(|free| free.cpus_milli == 2000)).await;
    worker.stop(ShutdownMode::Leave).await;
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_data_directory_has_one_worker() {
    let Some(mut site) = Site::new().await else { return };
    let (first, _line) = site.started().await;
    let second = site.start().ended().await;
    assert!(matches!(second, Err(WorkerError::DataDirectoryInUse { .. })), "{second:?}");
    first.stop(ShutdownMode::Leave).await;
}

#[tokio::test]
async fn without_an_engine_a_worker_says_where_it_looked() {
    let data = tempfile::tempdir().unwrap();
    let mut config =
        Config::new(vec!["q".parse().unwrap()], "http://127.0.0.1:9".parse().unwrap(), data.path().join("d"));
    config.docker_host = Some(format!("unix://{}", Path::new("/nowhere/docker.sock").display()));
    let (_shutdown, asked) = shutdown_pair();
    let error = worker::run(config, asked).await.unwrap_err();
    assert!(matches!(error, WorkerError::EngineDown { tries: 10, .. }), "{error}");
    assert!(error.to_string().contains("/nowhere/docker.sock"), "{error}");
}
