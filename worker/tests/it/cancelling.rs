//! Runs that are stopped by somebody.

use protocol::native::StopReason;
use serde_json::json;
use tokio::time::Instant;
use worker::ShutdownMode;

use crate::support::{Site, job};

async fn is_killed(why: StopReason, command: &str) {
    let Some(mut site) = Site::new().await else { return };
    let (worker, mut line) = site.started().await;
    let run = line.grant(job(json!({"command": ["sh", "-c", command]}))).await;
    line.until(|line| line.logs.text(run, false) == "up\n").await;
    let asked = Instant::now();
    line.stop(run, why).await;
    site.assert_clean().await;
    println!("gone {} ms after {why:?}", asked.elapsed().as_millis());
    // Its capacity is on offer again, and nothing was reported.
    line.until(|line| line.claims.last().is_some_and(|free| free.cpus_milli == 2000)).await;
    let summary = worker.stop(ShutdownMode::Leave).await;
    assert_eq!((summary.finished, summary.handed_back, summary.unacknowledged), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_job_that_ignores_sigterm_is_killed() {
    is_killed(StopReason::Cancelled, "trap '' TERM; echo up; while true; do sleep 1; done").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_job_is_killed() {
    is_killed(StopReason::Deleted, "echo up; sleep 300").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_job_is_asked_to_end_before_it_is_killed() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let command = "trap 'echo asked; exit 0' TERM; echo up; while true; do sleep 0.02; done";
    let run = line.grant(job(json!({"command": ["sh", "-c", command]}))).await;
    line.until(|line| line.logs.text(run, false) == "up\n").await;
    line.stop(run, StopReason::Cancelled).await;
    line.until(|line| line.logs.text(run, false) == "up\nasked\n" || line.claims.len() > 2).await;
    assert_eq!(line.logs.text(run, false), "up\nasked\n");
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_the_broker_no_longer_knows_is_killed_on_reconnection() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let run = line.grant(job(json!({"command": "sh -c 'echo up; sleep 300'"}))).await;
    line.until(|line| line.logs.text(run, false) == "up\n").await;
    drop(line);
    let mut line = site.peer.line().await;
    assert_eq!(line.holds(), [run]);
    line.welcome(vec![run]).await;
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_worker_can_kill_and_hand_back() {
    let Some(mut site) = Site::new().await else { return };
    let (worker, mut line) = site.started().await;
    let run = line.grant(job(json!({"command": "sh -c 'echo up; sleep 300'"}))).await;
    line.until(|line| line.logs.text(run, false) == "up\n").await;
    let stopping = tokio::spawn(worker.stop(ShutdownMode::Kill));
    line.until(|line| line.returned.iter().any(|(returned, _)| *returned == run)).await;
    let summary = stopping.await.unwrap();
    assert_eq!((summary.handed_back, summary.left_running, summary.unacknowledged), (1, 0, 0));
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_worker_finishes_what_it_has_and_takes_nothing_new() {
    let Some(mut site) = Site::new().await else { return };
    let (worker, mut line) = site.started().await;
    let first = line.grant(job(json!({"command": "sh -c 'echo up; sleep 1'"}))).await;
    line.until(|line| line.logs.text(first, false) == "up\n").await;
    let limit = std::time::Duration::from_secs(60);
    let stopping = tokio::spawn(worker.stop(ShutdownMode::Drain { limit }));
    line.until(|line| line.claims.last().is_some_and(|free| free.cpus_milli == 0)).await;
    let late = line.grant(job(json!({"command": "echo late"}))).await;
    line.until(|line| line.returned.iter().any(|(returned, _)| *returned == late)).await;
    let (finished, _) = line.end(first).await;
    assert_eq!(finished.exit_code, Some(0));
    let summary = stopping.await.unwrap();
    assert_eq!((summary.finished, summary.handed_back, summary.left_running), (1, 1, 0));
    site.assert_clean().await;
}

/// An address that takes connections and never answers.
async fn silence() -> (tokio::net::TcpListener, serde_json::Value) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/never", listener.local_addr().unwrap());
    (listener, json!({"x": {"type": "url", "value": url}}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_cancelled_while_its_inputs_are_fetched_is_dropped() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let (silent, inputs) = silence().await;
    let run = line.grant(job(json!({"command": "true", "inputs": inputs}))).await;
    let (_held, _) = silent.accept().await.unwrap();
    line.stop(run, StopReason::Cancelled).await;
    line.until(|line| line.claims.iter().filter(|free| free.cpus_milli == 2000).count() == 2).await;
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaving_worker_hands_back_what_has_no_container_yet() {
    let Some(mut site) = Site::new().await else { return };
    let (worker, mut line) = site.started().await;
    let (silent, inputs) = silence().await;
    let run = line.grant(job(json!({"command": "true", "inputs": inputs}))).await;
    let (_held, _) = silent.accept().await.unwrap();
    let stopping = tokio::spawn(worker.stop(ShutdownMode::Leave));
    line.until(|line| line.returned.iter().any(|(returned, _)| *returned == run)).await;
    let summary = stopping.await.unwrap();
    assert_eq!((summary.handed_back, summary.left_running, summary.unacknowledged), (1, 0, 0));
}
