//! Restarts and crashes: what was acknowledged is told, what was not is forgotten.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::receiver::{Receiver, listing, open, submit, until_dead, until_nothing_is_left};
use crate::support::{TestBroker, until};

/// The files of the webhooks that are there; one may go, or be written anew, meanwhile.
fn files(broker: &TestBroker) -> Vec<Value> {
    let entries = std::fs::read_dir(broker.path().join("webhooks")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let whole = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    whole.filter_map(|path| std::fs::read(path).ok()).map(|bytes| serde_json::from_slice(&bytes).unwrap()).collect()
}

#[tokio::test]
async fn tries_go_on_after_a_restart_under_the_same_id() {
    let mut broker = TestBroker::start_with(|config| {
        open(config);
        config.limits.webhooks.wait = Duration::from_secs(3600);
    })
    .await;
    let is_well = Arc::new(AtomicBool::new(false));
    let well = Arc::clone(&is_well);
    let answer = move |_| Some((if well.load(Ordering::Relaxed) { 200 } else { 500 }, vec![]));
    let receiver = Receiver::answering("127.0.0.1", answer).await;
    submit(&broker, 1, "_", json!({ "queued": { "url": receiver.url("/") } })).await;
    until("a first try", || async { listing(&broker).await["pending"][0]["tries"] == 1 }).await;
    until("its note on disk", || async { files(&broker)[0]["queued"]["tries"] == 1 }).await;
    is_well.store(true, Ordering::Relaxed);
    broker.config.limits.webhooks.wait = Duration::from_millis(1);
    let broker = broker.restart().await;
    until_nothing_is_left(&broker).await;
    let calls = receiver.calls();
    assert_eq!(calls.len(), 2);
    assert_eq!(calls[0].header("webhook-id"), calls[1].header("webhook-id"));
    assert_eq!(calls[0].body, calls[1].body);
}

#[tokio::test]
async fn a_job_that_ends_after_a_restart_is_told_of() {
    let broker = TestBroker::start_with(open).await;
    let receiver = Receiver::start().await;
    let callbacks = json!({ "queued": { "url": receiver.url("/") }, "finished": { "url": receiver.url("/") } });
    submit(&broker, 1, "a", callbacks.clone()).await;
    submit(&broker, 1, "b", callbacks).await;
    receiver.until_called(1).await;
    // Otherwise it may be called again: at least once is what is promised.
    let is_told = |file: &Value| file["namespace"] == "b" || file.get("queued").is_none();
    until("its note on disk", || async { files(&broker).iter().all(is_told) }).await;
    let broker = broker.restart().await;
    broker.run_next("abc", json!({ "StatusCode": 0 })).await;
    until_nothing_is_left(&broker).await;
    let mut told: Vec<_> =
        receiver.calls().iter().map(|call| (call.event().to_owned(), call.json()["namespace"].clone())).collect();
    told.sort_by_key(|(event, namespace)| (event.clone(), namespace.to_string()));
    let finished = |namespace: &str| ("finished".to_owned(), json!(namespace));
    assert_eq!(told, [finished("a"), finished("b"), ("queued".to_owned(), json!("a"))]);
}

#[tokio::test]
async fn dead_letters_outlive_a_restart_and_are_not_tried_by_themselves() {
    let broker = TestBroker::start_with(|config| {
        open(config);
        config.limits.webhooks.tries_max = 1;
    })
    .await;
    let receiver = Receiver::answering("127.0.0.1", |_| Some((410, vec![]))).await;
    submit(&broker, 1, "_", json!({ "queued": { "url": receiver.url("/") } })).await;
    let before = until_dead(&broker, 1).await;
    until("its note on disk", || async { files(&broker)[0]["queued"]["dead_at_ms"].is_u64() }).await;
    let broker = broker.restart().await;
    assert_eq!(until_dead(&broker, 1).await, before);
    assert_eq!(receiver.calls().len(), 1);
}

/// What a crash leaves: a webhook that is stored, of which it is not known what became of the submission.
fn leave(broker: &TestBroker, job: &str, namespace: &str, seen: u64, receiver: &Receiver) {
    let call = json!({ "url": receiver.url(&format!("/{namespace}/{seen}")), "tries": 0 });
    let stored = json!({ "v": 1, "queue": "abc", "job": job, "namespace": namespace, "seen": seen, "at_ms": 1,
        "queued": call, "finished": call });
    let id = format!("{:032x}", files(broker).len() + 1);
    std::fs::write(broker.path().join("webhooks").join(format!("{id}.json")), stored.to_string()).unwrap();
}

#[tokio::test]
async fn a_crash_before_the_queue_took_a_submission_leaves_nothing() {
    let broker = TestBroker::start_with(open).await;
    let receiver = Receiver::start().await;
    let job = submit(&broker, 1, "a", json!(null)).await;
    leave(&broker, &"ab".repeat(32), "a", 0, &receiver);
    // The job is there, but not for this namespace.
    leave(&broker, &job, "b", 0, &receiver);
    let broker = broker.restart().await;
    until_nothing_is_left(&broker).await;
    broker.run_next("abc", json!({ "StatusCode": 0 })).await;
    assert!(receiver.calls().is_empty());
}

#[tokio::test]
async fn a_crash_after_the_queue_took_a_submission_loses_no_call() {
    let broker = TestBroker::start_with(open).await;
    let receiver = Receiver::start().await;
    // Over before the crash, and waiting at it.
    let over = submit(&broker, 1, "a", json!(null)).await;
    broker.run_next("abc", json!({ "StatusCode": 5 })).await;
    let waiting = submit(&broker, 2, "a", json!(null)).await;
    leave(&broker, &over, "a", 0, &receiver);
    leave(&broker, &waiting, "a", 0, &receiver);
    // A repeated submission: it was there before, so nothing was queued by it.
    leave(&broker, &waiting, "a", 1_000, &receiver);
    let broker = broker.restart().await;
    receiver.until_called(3).await;
    until("the two that wait", || async { listing(&broker).await["waiting"] == 2 }).await;
    broker.run_next("abc", json!({ "StatusCode": 6 })).await;
    until_nothing_is_left(&broker).await;
    let told = |call: &super::receiver::Call| {
        let body = call.json();
        (
            call.path.clone(),
            call.event().to_owned(),
            body["exitCode"].as_i64(),
            body["worker"].as_str().map(str::to_owned),
        )
    };
    let mut told: Vec<_> = receiver.calls().iter().map(told).collect();
    told.sort();
    let queued = |path: &str| (path.to_owned(), "queued".to_owned(), None, None);
    let finished = |path: &str, code| (path.to_owned(), "finished".to_owned(), Some(code), Some("worker-1".to_owned()));
    assert_eq!(
        told,
        [finished("/a/0", 5), finished("/a/0", 6), queued("/a/0"), queued("/a/0"), finished("/a/1000", 6)]
    );
}
