//! Results, definitions and runs that are not what they are said to be.

use protocol::id::JobId;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::peers::{Native, Stranger, job};
use crate::support::{TestBroker, until};

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A broker with a job in `abc` that worker-1 has finished; the job's id and its result.
async fn finished() -> (TestBroker, String, Value) {
    let broker = TestBroker::start().await;
    let job = broker.submit("abc", json!({ "image": "alpine:3.20" })).await.to_string();
    broker.run_next("abc", json!({ "StatusCode": 0, "logs": [["right\n", 1]] })).await;
    let result = result_of(&broker, "abc", &job).await;
    assert_eq!(result["finished"]["result"]["logs"][0][0], "right\n");
    (broker, job, result)
}

async fn result_of(broker: &TestBroker, queue: &str, job: &str) -> Value {
    broker.get_json(&format!("/q/{queue}/j/{job}/result.json")).await.1["data"].take()
}

#[tokio::test]
async fn a_definition_under_anothers_id_is_refused_in_every_dialect() {
    let broker = TestBroker::start().await;
    let (id, honest) = job(json!({ "image": "alpine:3.20", "command": "echo hello" }));
    let evil = json!({ "image": "alpine:3.20", "command": "wget evil.example" });
    let mut page = Stranger::connect(&broker, "/q/abc/client").await;
    let mut native = Native::connect(&broker, "/q/abc/client").await;

    let body = json!({ "id": id, "definition": evil }).to_string();
    assert_eq!(broker.post("/q/abc", body.clone()).await.1["code"], "id_mismatch");
    let bulk = broker.http.post(broker.url("/q/abc/bulk")).body(format!("{body}\n")).send().await.unwrap();
    assert!(bulk.text().await.unwrap().contains("id_mismatch"));
    assert_eq!(native.submit(json!({ "id": id, "definition": evil })).await, Err("id_mismatch".to_owned()));
    page.submit(&id, &evil).await;
    assert!(page.until("the refusal", |text| text.contains(&id)).await.contains("Error"));
    assert_eq!(broker.get_json(&format!("/q/abc/j/{id}/definition.json")).await.1, json!({ "data": null }));
    assert_eq!(broker.get_json("/q/abc").await.1["data"], json!({}));

    assert_eq!(native.submit(json!({ "id": id, "definition": honest })).await.as_deref(), Ok(id.as_str()));
    let body = json!({ "id": id, "definition": honest }).to_string();
    assert_eq!(broker.post("/q/abc", body).await.0, 200);
    page.submit(&id, &honest).await;
    assert!(page.until("the job", |text| text.contains(&id)).await.contains("Queued"));
    assert_eq!(broker.get_json(&format!("/q/abc/j/{id}/definition.json")).await.1["data"], honest);
}

#[tokio::test]
async fn a_key_that_stands_twice_is_read_once_and_alike_by_all() {
    let broker = TestBroker::start().await;
    // As JavaScript reads it: the last one counts. The id is that of what will run.
    let (id, _) = job(json!({ "image": "seen", "command": "echo" }));
    let (other, _) = job(json!({ "image": "hidden", "command": "echo" }));
    let twice = r#"{"image":"hidden","command":"echo","image":"seen"}"#;
    let (status, told) = broker.post("/q/abc", format!(r#"{{"id":"{id}","definition":{twice}}}"#)).await;
    assert_eq!((status, &told["jobId"]), (200, &json!(id)));
    let (_, told) = broker.post("/q/abc", format!(r#"{{"id":"{other}","definition":{twice}}}"#)).await;
    assert_eq!(told["code"], "id_mismatch");
    // Around it nothing may stand twice: a filter in between might have read the other one.
    for body in [
        r#"{"definition":{"image":"a"},"definition":{"image":"b"}}"#.to_owned(),
        format!(r#"{{"definition":{{"image":"a"}},"id":"{id}","id":null}}"#),
        r#"{"definition":{"image":"a"},"control":{},"control":{"namespace":"b"}}"#.to_owned(),
    ] {
        let (status, told) = broker.post("/q/abc", body.clone()).await;
        assert_eq!(status, 400, "{body}: {told}");
    }
    assert_eq!(broker.get_json("/q/abc").await.1["data"].as_object().unwrap().len(), 1);
}

#[tokio::test]
async fn blobs_are_what_their_names_say_and_do_not_change() {
    let broker = TestBroker::start().await;
    let good = b"the real model".to_vec();
    let key = sha256(&good);
    let put = async |key: &str, bytes: &[u8]| broker.put(&format!("/f/{key}"), bytes.to_vec()).await.status().as_u16();
    assert_eq!(put(&key, b"poison").await, 422, "before the right bytes are there");
    assert_eq!(broker.get(&format!("/f/{key}")).await.status(), 404);
    assert_eq!(put(&key, &good).await, 200);
    assert_eq!(put(&key, b"poison").await, 422, "and after");
    assert_eq!(put(&key.to_uppercase(), b"poison").await, 422, "or under another spelling");
    assert_eq!(put("notes.txt", b"first").await, 200);
    assert_eq!(put("notes.txt", b"poison").await, 409);
    assert_eq!(put("notes.txt", b"first").await, 200, "the same again is no change");
    for (key, bytes) in [(key.as_str(), &good[..]), ("notes.txt", b"first")] {
        assert_eq!(broker.get(&format!("/f/{key}")).await.bytes().await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn whoever_has_no_run_cannot_start_or_finish_it() {
    let broker = TestBroker::start().await;
    let (id, definition) = job(json!({ "image": "alpine:3.20" }));
    let mut page = Stranger::connect(&broker, "/q/abc/client").await;
    page.submit(&id, &definition).await;
    page.until("the job", |text| text.contains(&id)).await;
    let state = async || broker.get_json("/q/abc").await.1["data"][&id].take();

    // From a page, from a worker that has not registered, and from one that has but is not asked.
    let running = |worker: &str| json!({ "type": "Running", "worker": worker, "time": 1 });
    page.change(&id, "Running", running("worker-1")).await;
    page.finish(&id, "Success", "worker-1", 1).await;
    page.settle().await;
    let mut nobody = Stranger::connect(&broker, "/q/abc/worker").await;
    nobody.change(&id, "Running", running("worker-1")).await;
    nobody.finish(&id, "Success", "worker-1", 1).await;
    nobody.settle().await;
    let mut thief = Stranger::worker(&broker, "abc", "thief").await;
    thief.finish(&id, "Success", "thief", 1).await;
    thief.settle().await;
    assert_eq!(state().await["state"], "Queued");

    let mut owner = Stranger::worker(&broker, "abc", "worker-1").await;
    owner.change(&id, "Running", running("worker-1")).await;
    until("the run", async || state().await["worker"] == "worker-1").await;
    // In the owner's name, on a socket that is another's.
    thief.finish(&id, "Success", "worker-1", 1).await;
    thief.finish(&id, "Error", "thief", 1).await;
    thief.settle().await;
    page.finish(&id, "Success", "worker-1", 1).await;
    page.settle().await;
    let mut native = Native::connect(&broker, "/q/abc/client").await;
    let run = json!({ "job": id, "run": 1, "outcome": "Success", "finished": {} });
    native.say(&json!({ "Finish": { "req": 1, "run": run } })).await;
    assert!(native.answer().await.is_err());
    assert_eq!((&state().await["state"], result_of(&broker, "abc", &id).await), (&json!("Running"), Value::Null));

    owner.finish(&id, "Success", "worker-1", 5).await;
    until("the end", async || state().await["state"] == "Finished").await;
    assert_eq!(result_of(&broker, "abc", &id).await["worker"], "worker-1");
}

#[tokio::test]
async fn a_result_that_is_there_is_not_replaced_whatever_time_another_claims() {
    let (broker, job, right) = finished().await;
    let mut owner = Stranger::worker(&broker, "abc", "worker-1").await;
    let mut other = Stranger::worker(&broker, "abc", "a-worker-that-sorts-first").await;
    let mut page = Stranger::connect(&broker, "/q/abc/client").await;
    for time in [0, 1, 4_000_000_000_000] {
        for (peer, name) in
            [(&mut owner, "worker-1"), (&mut other, "a-worker-that-sorts-first"), (&mut page, "worker-1")]
        {
            peer.change(&job, "Running", json!({ "type": "Running", "worker": name, "time": time })).await;
            peer.finish(&job, "Success", name, time).await;
            peer.finish(&job, "Error", name, time).await;
            peer.settle().await;
        }
    }
    assert_eq!(result_of(&broker, "abc", &job).await, right);
}

#[tokio::test]
async fn one_queue_cannot_touch_what_another_has() {
    let (broker, id, right) = finished().await;
    let mut worker = Stranger::worker(&broker, "other", "worker-1").await;
    let mut page = Stranger::connect(&broker, "/q/other/client").await;
    for reason in ["Success", "Error"] {
        worker.finish(&id, reason, "worker-1", 1).await;
    }
    for reason in ["Deleted", "Cancelled", "JobReplacedByClient"] {
        for peer in [&mut worker, &mut page] {
            peer.change(&id, "Finished", json!({ "type": "Finished", "reason": reason, "time": 1 })).await;
        }
    }
    worker.settle().await;
    page.settle().await;
    broker.post(&format!("/q/other/j/{id}/cancel?namespace=*"), "").await;
    assert_eq!(result_of(&broker, "abc", &id).await, right);
    let anywhere = broker.get_json(&format!("/j/{id}/result.json")).await.1["data"].take();
    assert_eq!(
        anywhere["finished"], right["finished"],
        "the address without a queue still answers for the one that has it"
    );

    // A forged result in a queue of one's own: there is no common answer any more, and no wrong one.
    broker.submit("other", json!({ "image": "alpine:3.20" })).await;
    broker.run_next("other", json!({ "StatusCode": 0, "logs": [["forged\n", 1]] })).await;
    assert_eq!(result_of(&broker, "abc", &id).await, right);
    assert_eq!(broker.get_json(&format!("/j/{id}/result.json")).await.1["data"], Value::Null);
    // Deleted there, it is as before.
    page.change(&id, "Finished", json!({ "type": "Finished", "reason": "Deleted", "time": 1 })).await;
    until("the deletion", async || result_of(&broker, "other", &id).await.is_null()).await;
    assert_eq!(result_of(&broker, "abc", &id).await, right);
}

#[tokio::test]
async fn another_queues_address_gives_nothing_of_a_job() {
    let (broker, id, _) = finished().await;
    let mut page = Stranger::connect(&broker, "/q/guessed/client").await;
    page.say(json!({ "type": "QueryJob", "payload": { "jobId": id } })).await;
    page.settle().await;
    assert!(!page.heard.iter().any(|text| text.contains(&id)), "{:?}", page.heard);
    let mut worker = Stranger::worker(&broker, "guessed", "worker-1").await;
    worker.say(json!({ "type": "RequestJobDefinitions", "payload": { "jobIds": [id] } })).await;
    worker.settle().await;
    assert!(!worker.heard.iter().any(|text| text.contains("alpine")), "{:?}", worker.heard);
    let mut native = Native::connect(&broker, "/q/guessed/client").await;
    native.say(&json!({ "GetDefinitions": { "req": 1, "jobs": [id] } })).await;
    assert_eq!(native.until("Definitions").await["definitions"], json!([]));

    for rest in ["definition.json", "result.json", "namespaces.json", "run-logs.json", "history.json"] {
        let (_, guessed) = broker.get_json(&format!("/q/guessed/j/{id}/{rest}")).await;
        assert!(guessed["data"].is_null() || guessed["data"] == json!([]), "{rest}: {guessed}");
        let (_, own) = broker.get_json(&format!("/q/abc/j/{id}/{rest}")).await;
        // Its log has nothing in it, either.
        assert!(!own["data"].is_null(), "{rest}: {own}");
    }
    for rest in ["", "/stream", "/inputs/a", "/outputs/a"] {
        assert_eq!(broker.get(&format!("/q/guessed/j/{id}{rest}")).await.status(), 404, "{rest}");
    }
    let foreign: JobId = id.parse().unwrap();
    assert!(broker.handle.engine().queue(&"guessed".parse().unwrap()).job(foreign).await.unwrap().is_none());
}

#[tokio::test]
async fn a_socket_that_takes_a_workers_name_gets_that_workers_place_and_nothing_of_the_past() {
    // Whoever knows the queue's name may be any of its workers: that is what the name grants. What it does not grant is a second
    // answer: of two sockets in one name only the newer one counts, and of two results only the first.
    let broker = TestBroker::start().await;
    let id = broker.submit("abc", json!({ "image": "alpine:3.20" })).await;
    let mut owner = broker.worker("abc", "worker-1", 1).await;
    let (run, _) = owner.claim().await;
    let mut thief = broker.worker_holding("abc", "worker-1", 1, vec![run]).await;
    let said = owner.socket.expect("a goodbye", |message| match message {
        protocol::native::FromBroker::Rejected { code, .. } => Some(code),
        _ => None,
    });
    assert_eq!(said.await, "replaced", "the older socket is told and let go");
    thief.finish(run, json!({ "StatusCode": 0 })).await;
    let result = result_of(&broker, "abc", &id.to_string()).await;
    assert_eq!(result["finished"]["result"]["StatusCode"], 0);
    // Both are in the queue's history, which only adds.
    let (_, history) = broker.get_json(&format!("/q/abc/j/{id}/history.json")).await;
    assert!(history["data"].to_string().contains("worker-1"), "{history}");
}
