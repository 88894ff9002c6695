//! What is told, and when nothing is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use broker::webhooks::Secret;
use protocol::codec::Encoding;
use protocol::event::RunOutcome;
use protocol::native::{Callback, Callbacks, FromBroker, Hello, Submission, ToBroker};
use protocol::raw::RawJson;
use ring::hmac;
use serde_json::{Value, json};

use super::receiver::{Call, Receiver, listing, open, submission, submit, until_nothing_is_left};
use crate::support::{TestBroker, until};

/// Checks a call's signature as its receiver would, who knows the queue's name.
fn is_signed(call: &Call, queue: &str) -> bool {
    let secret = Secret::of(&queue.parse().unwrap()).text();
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let mut signed = format!("{}.{}.", call.header("webhook-id"), call.header("webhook-timestamp")).into_bytes();
    signed.extend_from_slice(&call.body);
    let signature = STANDARD.decode(call.header("webhook-signature").strip_prefix("v1,").unwrap()).unwrap();
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &key), &signed, &signature).is_ok()
}

/// What became of the calls: which event, of which namespace, and how it ended.
fn summary(calls: &[Call]) -> Vec<(String, String, Option<String>)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let one = |call: &Call| {
        let body = call.json();
        (call.event().to_owned(), text(&body["namespace"]).unwrap(), text(&body["reason"]))
    };
    let mut summary: Vec<_> = calls.iter().map(one).collect();
    summary.sort();
    summary
}

fn told(event: &str, namespace: &str, reason: Option<&str>) -> (String, String, Option<String>) {
    (event.to_owned(), namespace.to_owned(), reason.map(str::to_owned))
}

#[tokio::test]
async fn a_submission_is_told_of_when_it_is_queued_and_when_it_is_over() {
    let broker = TestBroker::start_with(|config| {
        open(config);
        config.public_url = Some("https://grid.example".to_owned());
    })
    .await;
    let receiver = Receiver::start().await;
    let callbacks = json!({
        "queued": { "url": receiver.url("/q?k=v"), "payload": { "k": 1 } },
        "finished": { "url": receiver.url("/f") },
    });
    let job = submit(&broker, 1, "alice/doc1", callbacks).await;
    let queued = receiver.until_called(1).await[0].clone();
    assert_eq!(
        (queued.path.as_str(), queued.event(), queued.header("content-type")),
        ("/q", "queued", "application/json")
    );
    let expected = format!(r#"{{"jobId":"{job}","queue":"abc","namespace":"alice/doc1","config":{{"k":1}}}}"#);
    assert_eq!(String::from_utf8_lossy(&queued.body), expected);
    assert!(is_signed(&queued, "abc"));
    assert!(!is_signed(&queued, "abd"), "another queue's secret is another");
    assert_eq!(listing(&broker).await["waiting"], 1);

    broker.run_next("abc", json!({ "StatusCode": 3 })).await;
    let finished = receiver.until_called(2).await[1].clone();
    assert_eq!((finished.path.as_str(), finished.event()), ("/f", "finished"));
    assert!(is_signed(&finished, "abc"));
    let mut body = finished.json();
    assert!(body["time"].take().as_u64().unwrap() > 1_700_000_000_000);
    let url = format!("https://grid.example/q/abc/j/{job}/result.json");
    assert_eq!(
        body,
        json!({ "jobId": job, "queue": "abc", "namespace": "alice/doc1", "config": {}, "reason": "Success", "time": null,
            "exitCode": 3, "run": 1, "worker": "worker-1", "resultUrl": url })
    );
    assert_ne!(queued.header("webhook-id"), finished.header("webhook-id"));
    until_nothing_is_left(&broker).await;
}

#[tokio::test]
async fn only_the_submission_that_made_a_job_wait_is_told_that_it_is_queued() {
    let broker = TestBroker::start_with(open).await;
    let receiver = Receiver::start().await;
    let queued = json!({ "queued": { "url": receiver.url("/") } });
    submit(&broker, 1, "a", queued.clone()).await;
    submit(&broker, 1, "a", queued.clone()).await;
    submit(&broker, 1, "b", queued.clone()).await;
    until_nothing_is_left(&broker).await;
    broker.run_next("abc", json!({ "StatusCode": 0 })).await;
    submit(&broker, 1, "a", queued.clone()).await;
    submit(&broker, 1, "c", queued.clone()).await;
    until_nothing_is_left(&broker).await;
    assert_eq!(summary(&receiver.calls()), [told("queued", "a", None)]);
    submit(&broker, 2, "a", queued).await;
    until_nothing_is_left(&broker).await;
    assert_eq!(receiver.calls().len(), 2, "another job's is told");
}

#[tokio::test]
async fn everyone_who_asked_is_told_of_the_end_also_of_one_that_was_before() {
    let broker = TestBroker::start_with(open).await;
    let receiver = Receiver::start().await;
    let finished = json!({ "finished": { "url": receiver.url("/") } });
    submit(&broker, 1, "a", finished.clone()).await;
    submit(&broker, 1, "b", finished.clone()).await;
    // The same again: one webhook of a job in a namespace, not two.
    submit(&broker, 1, "a", finished.clone()).await;
    until("the first to be replaced", || async { listing(&broker).await["waiting"] == 2 }).await;
    let mut worker = broker.worker("abc", "worker-1", 1).await;
    let (run, _) = worker.claim().await;
    // Joined while it runs: who runs it is known all the same.
    submit(&broker, 1, "c", finished.clone()).await;
    assert!(receiver.calls().is_empty());
    worker.finish(run, json!({ "StatusCode": 0 })).await;
    until_nothing_is_left(&broker).await;
    let success = |namespace| told("finished", namespace, Some("Success"));
    assert_eq!(summary(&receiver.calls()), [success("a"), success("b"), success("c")]);
    assert!(receiver.calls().iter().all(|call| call.json()["worker"] == "worker-1"));
    submit(&broker, 1, "d", finished).await;
    until_nothing_is_left(&broker).await;
    assert_eq!(summary(&receiver.calls()[3..]), [success("d")], "a result that is kept is an end, too");
}

#[tokio::test]
async fn a_job_that_fails_is_withdrawn_cancelled_replaced_or_deleted_is_over() {
    let broker = TestBroker::start_with(open).await;
    let receiver = Receiver::start().await;
    let finished = json!({ "finished": { "url": receiver.url("/") } });
    let cancel = async |job: &str, namespace: &str| {
        let (status, _) = broker.post(&format!("/q/abc/j/{job}/cancel?namespace={namespace}&message=enough"), "").await;
        assert_eq!(status, 200);
    };
    submit(&broker, 1, "fails", finished.clone()).await;
    let mut worker = broker.worker("abc", "worker-1", 1).await;
    let (run, _) = worker.claim().await;
    worker.end(run, RunOutcome::Error, json!({ "error": "no such image" })).await.unwrap();
    receiver.until_called(1).await;
    let job = submit(&broker, 2, "withdrawn", finished.clone()).await;
    submit(&broker, 2, "goes-on", finished.clone()).await;
    cancel(&job, "withdrawn").await;
    receiver.until_called(2).await;
    cancel(&job, "goes-on").await;
    assert_eq!(receiver.until_called(3).await[2].json()["message"], "enough");
    submit(&broker, 3, "replaced", finished.clone()).await;
    let by = submit(&broker, 4, "replaced", Value::Null).await;
    // Replacing waits for a few seconds, as the original's does.
    assert_eq!(receiver.until_called(4).await[3].json()["replacedBy"], json!(by));
    let job = submit(&broker, 5, "deleted", finished).await;
    let mut client = broker.client("abc").await;
    let namespace = Some("deleted".parse().unwrap());
    client.send(&ToBroker::Delete { req: 1, job: job.parse().unwrap(), namespace }).await;
    client.answer(1).await.unwrap();
    until_nothing_is_left(&broker).await;
    assert_eq!(
        summary(&receiver.calls()),
        [
            told("finished", "deleted", Some("Deleted")),
            told("finished", "fails", Some("Error")),
            told("finished", "goes-on", Some("Cancelled")),
            told("finished", "replaced", Some("JobReplacedByClient")),
            told("finished", "withdrawn", Some("Withdrawn")),
        ]
    );
}

#[tokio::test]
async fn every_way_in_takes_webhooks() {
    let broker = TestBroker::start_with(open).await;
    let receiver = Receiver::start().await;
    let callbacks = |way: &str| json!({ "queued": { "url": receiver.url("/"), "payload": way } });

    let line = submission(1, "_", callbacks("bulk"));
    let answer = broker.http.post(broker.url("/q/abc/bulk")).body(line).send().await.unwrap();
    assert!(answer.text().await.unwrap().contains("\"success\":true"));

    let job = submit(&broker, 2, "_", Value::Null).await;
    let copy = json!({ "queue": "other", "control": { "callbacks": callbacks("copy") } });
    assert_eq!(broker.post(&format!("/j/{job}/copy"), copy.to_string()).await.0, 200);

    let mut native = broker.socket("/q/abc/client", Encoding::Json).await;
    native
        .send(&ToBroker::Hello(Hello { version: 1, version_min: None, watch: false, resume: None, worker: None }))
        .await;
    native.expect("Welcome", |message| matches!(message, FromBroker::Welcome { .. }).then_some(())).await;
    let queued = Callback { url: receiver.url("/"), payload: Some(RawJson::new("\"native\"")) };
    let job = Submission {
        id: None,
        definition: RawJson::new(r#"{"command":"3"}"#),
        namespace: None,
        priority: 0,
        debug: false,
        retry: false,
        callbacks: Callbacks { queued: Some(queued), finished: None },
    };
    native.send(&ToBroker::Submit { req: 1, job }).await;
    native.answer(1).await.unwrap();

    let mut original = broker.try_socket("/q/abc/client", None, None).await.unwrap();
    let enqueued = json!({ "definition": { "command": "4" }, "control": { "callbacks": callbacks("original") } });
    let value = json!({ "type": "Queued", "time": 1, "enqueued": enqueued });
    let change =
        json!({ "type": "StateChange", "payload": { "tag": "", "state": "Queued", "job": "x", "value": value } });
    let frame = tokio_tungstenite::tungstenite::Message::text(change.to_string());
    futures_util::SinkExt::send(&mut original, frame).await.unwrap();

    let mut ways: Vec<_> = receiver.until_called(4).await.iter().map(|call| call.json()["config"].clone()).collect();
    ways.sort_by_key(ToString::to_string);
    assert_eq!(ways, ["bulk", "copy", "native", "original"]);
    let copied = receiver.calls().into_iter().find(|call| call.json()["config"] == "copy").unwrap();
    assert_eq!(copied.json()["queue"], "other");
    assert!(is_signed(&copied, "other"));
}

#[tokio::test]
async fn a_refused_submission_calls_nobody_and_leaves_nothing() {
    let broker = TestBroker::start_with(|config| {
        open(config);
        config.limits.queue.live_jobs_max = 1;
    })
    .await;
    let receiver = Receiver::start().await;
    let callbacks = json!({ "queued": { "url": receiver.url("/") }, "finished": { "url": receiver.url("/") } });
    submit(&broker, 1, "_", callbacks.clone()).await;
    let (status, answer) = broker.post("/q/abc", submission(2, "_", callbacks.clone())).await;
    assert_eq!((status, &answer["code"]), (429, &json!("queue_full")));
    broker.run_next("abc", json!({ "StatusCode": 0 })).await;
    until_nothing_is_left(&broker).await;
    assert_eq!(receiver.calls().len(), 2, "those of the job that was taken");
}
