//! A job that failed runs again when that is asked for, in whichever way: over HTTP, in a bulk, and in both dialects of the socket.

use futures_util::SinkExt;
use protocol::codec::Encoding;
use protocol::event::RunOutcome;
use protocol::id::Namespace;
use protocol::native::{Callbacks, Hello, Submission, ToBroker};
use protocol::raw::RawJson;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{TestBroker, until, within};

const ECHO: &str = "84696046848ef38f50a2f6182fc7674eaee3d1fac23fe57466d6cb5f771794e4";
const ECHO_TEXT: &str = r#"{"image":"alpine:3.20","command":"echo hello"}"#;

/// A way to submit the job under a namespace, with or without asking for a retry; done when the broker has taken it.
#[derive(Clone, Copy, Debug)]
enum Way {
    Body,
    Address,
    BulkLine,
    BulkAddress,
    Native(Encoding),
    Original,
}

const WAYS: [Way; 7] = [
    Way::Body,
    Way::Address,
    Way::BulkLine,
    Way::BulkAddress,
    Way::Native(Encoding::MessagePack),
    Way::Native(Encoding::Json),
    Way::Original,
];

fn definition() -> Value {
    serde_json::from_str(ECHO_TEXT).unwrap()
}

async fn submit(broker: &TestBroker, way: Way, namespace: &str, retry: bool) {
    let in_control = json!({ "definition": definition(), "control": { "namespace": namespace, "retry": retry } });
    let without = json!({ "definition": definition(), "control": { "namespace": namespace } });
    let in_address = if retry { "?retry=1" } else { "" };
    match way {
        Way::Body => assert_eq!(broker.post("/q/abc", in_control.to_string()).await.0, 200),
        Way::Address => assert_eq!(broker.post(&format!("/q/abc/j{in_address}"), without.to_string()).await.0, 200),
        Way::BulkLine => bulk(broker, "/q/abc/bulk", &in_control).await,
        Way::BulkAddress => bulk(broker, &format!("/q/abc/bulk{in_address}"), &without).await,
        Way::Native(encoding) => native(broker, encoding, namespace, retry).await,
        Way::Original => original(broker, &in_control).await,
    }
}

async fn bulk(broker: &TestBroker, path: &str, line: &Value) {
    let answer = within(path, broker.http.post(broker.url(path)).body(line.to_string()).send()).await.unwrap();
    let text = answer.text().await.unwrap();
    assert!(text.starts_with(r#"{"line":1,"success":true"#), "{text}");
}

async fn native(broker: &TestBroker, encoding: Encoding, namespace: &str, retry: bool) {
    let mut socket = broker.socket("/q/abc/client", encoding).await;
    let hello = Hello { version: 1, version_min: None, watch: false, resume: None, worker: None };
    socket.send(&ToBroker::Hello(hello)).await;
    let namespace: Namespace = namespace.parse().unwrap();
    let (definition, namespace) = (RawJson::new(ECHO_TEXT), Some(namespace));
    let job = Submission {
        id: None,
        definition,
        namespace,
        priority: 0,
        debug: false,
        retry,
        callbacks: Callbacks::default(),
    };
    socket.send(&ToBroker::Submit { req: 7, job }).await;
    assert_eq!(socket.answer(7).await.unwrap().unwrap().to_string(), ECHO);
}

/// As a page of the original does it; whoever submits is shown the job, so this waits for that.
async fn original(broker: &TestBroker, enqueued: &Value) {
    use futures_util::StreamExt;
    let mut stream = broker.try_socket("/q/abc/client", None, None).await.unwrap();
    let frame = json!({ "type": "StateChange", "payload": { "job": ECHO, "tag": "", "state": "Queued", "value":
        { "type": "Queued", "time": 1, "enqueued": enqueued } } });
    within("a send", stream.send(Message::text(frame.to_string()))).await.unwrap();
    within("the job to be shown", async {
        loop {
            let Message::Text(text) = stream.next().await.unwrap().unwrap() else { continue };
            if text.starts_with(r#"{"type":"JobStateUpdates""#) && text.contains(ECHO) {
                return;
            }
        }
    })
    .await;
}

async fn entry(broker: &TestBroker) -> Value {
    broker.get_json("/q/abc").await.1["data"][ECHO].clone()
}

async fn has(broker: &TestBroker, state: &str, namespaces: &[&str], way: Way) {
    let found = entry(broker).await;
    assert_eq!((&found["state"], &found["namespaces"]), (&json!(state), &json!(namespaces)), "{way:?}");
}

/// Runs the job that waits to an error; says which run it was.
async fn fail(broker: &TestBroker) -> u32 {
    let mut worker = broker.worker("abc", "worker-1", 1).await;
    let (run, _) = worker.claim().await;
    worker.end(run, RunOutcome::Error, json!({ "error": "no such image" })).await.unwrap();
    run.run
}

#[tokio::test]
async fn a_job_that_failed_runs_again_in_whichever_way_that_is_asked_for() {
    for way in WAYS {
        let broker = TestBroker::start().await;
        submit(&broker, way, "a", false).await;
        submit(&broker, way, "b", true).await;
        has(&broker, "Queued", &["a", "b"], way).await;
        assert_eq!(fail(&broker).await, 1);
        let failure = broker.get_json(&format!("/q/abc/j/{ECHO}/result.json")).await;
        submit(&broker, way, "c", false).await;
        has(&broker, "Finished", &["a", "b", "c"], way).await;
        let again = broker.get_json(&format!("/q/abc/j/{ECHO}/result.json")).await.1["data"]["finished"].clone();
        assert_eq!(again, failure.1["data"]["finished"], "a plain submission is answered with what there is: {way:?}");
        submit(&broker, way, "c", true).await;
        has(&broker, "Queued", &["a", "b", "c"], way).await;
        assert_eq!(broker.get_json(&format!("/q/abc/j/{ECHO}/result.json")).await.1["data"], Value::Null);
        assert_eq!(fail(&broker).await, 2, "{way:?}");
    }
}

#[tokio::test]
async fn a_retry_of_a_job_that_runs_or_succeeded_means_nothing() {
    for way in WAYS {
        let broker = TestBroker::start().await;
        submit(&broker, way, "a", true).await;
        let mut worker = broker.worker("abc", "worker-1", 1).await;
        let (run, _) = worker.claim().await;
        submit(&broker, way, "b", true).await;
        has(&broker, "Running", &["a", "b"], way).await;
        worker.finish(run, json!({ "StatusCode": 0 })).await;
        submit(&broker, way, "_", true).await;
        has(&broker, "Finished", &["_", "a", "b"], way).await;
        assert_eq!(entry(&broker).await["finishedReason"], "Success");
        let history = broker.get_json(&format!("/q/abc/j/{ECHO}/history.json")).await.1;
        let runs = history["data"].as_array().unwrap().iter().filter(|record| !record["event"]["RunClaimed"].is_null());
        assert_eq!(runs.count(), 1, "{way:?}");
    }
}

#[tokio::test]
async fn a_namespace_that_took_a_newer_job_does_not_get_the_old_one_back() {
    for way in WAYS {
        let broker = TestBroker::start().await;
        submit(&broker, way, "a", false).await;
        submit(&broker, way, "b", false).await;
        fail(&broker).await;
        let newer = broker.submit_as("abc", json!({ "image": "newer" }), Some("a")).await.to_string();
        submit(&broker, way, "b", true).await;
        has(&broker, "Queued", &["b"], way).await;
        assert_eq!(broker.get_json("/q/abc").await.1["data"][&newer]["state"], "Queued", "{way:?}");
        // Its only wish withdrawn, it is over, and says so.
        broker.post(&format!("/q/abc/j/{ECHO}/cancel?namespace=b"), "").await;
        until("the cancel", || async { entry(&broker).await.is_null() }).await;
        let status = broker.get_json(&format!("/q/abc/j/{ECHO}")).await.1["data"]["status"].clone();
        assert_eq!((&status["finishedReason"], &status["run"]), (&json!("Cancelled"), &json!(1)), "{way:?}");
    }
}
