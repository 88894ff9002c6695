//! Pages and command lines.

use serde_json::{Value, json};
use tokio::net::TcpSocket;

use super::peers::{Peer, Worker, job, soon, with_id};
use crate::support::{TestBroker, within};

#[tokio::test]
async fn a_page_is_told_who_is_there_and_then_all_jobs() {
    let broker = TestBroker::start_with(soon).await;
    let (id, definition) = job(1);
    broker.submit("q", definition).await;
    for path in ["/q/q/client", "/q/q/browser", "/q/client", "/q/q/client/and/more?x=1"] {
        let mut page = Peer::connect(&broker, path).await;
        assert_eq!(page.next().await["type"], "Workers", "{path}");
        assert_eq!(page.next().await["type"], "JobStates", "{path}");
        assert_eq!(page.state(&id), "Queued", "{path}");
    }
}

#[tokio::test]
async fn the_old_address_without_q_is_the_same_queue() {
    let broker = TestBroker::start_with(soon).await;
    let mut page = Peer::connect(&broker, "/abc/client").await;
    page.expect("JobStates").await;
    let id = broker.submit("abc", job(1).1).await.to_string();
    page.until_job(&id, "Queued").await;
}

#[tokio::test]
async fn a_ping_is_answered() {
    let broker = TestBroker::start_with(soon).await;
    assert_eq!(Peer::page(&broker, "q").await.ping().await, "PONG");
}

#[tokio::test]
async fn a_submitted_job_is_shown_to_everyone_once_and_to_whoever_submits_it_again() {
    let broker = TestBroker::start_with(soon).await;
    let (mut page, mut other) = (Peer::page(&broker, "q").await, Peer::page(&broker, "q").await);
    let (id, definition) = job(1);
    page.submit(&id, &definition, None).await;
    page.until_job(&id, "Queued").await;
    other.until_job(&id, "Queued").await;
    let entry = &page.jobs[&id];
    assert_eq!((&entry["worker"], &entry["namespaces"]), (&json!(""), &json!(["_"])));
    assert_eq!(entry["queuedTime"], entry["time"]);
    page.heard.clear();
    page.submit(&id, &definition, None).await;
    let again = page.expect("JobStateUpdates").await;
    assert_eq!(again["payload"]["state"]["jobs"][&id]["state"], "Queued");
    page.submit(&id, &definition, Some("mine")).await;
    page.until("its second namespace", |page| page.jobs[&id]["namespaces"] == json!(["_", "mine"])).await;
    let (_, listed) = broker.get_json("/q/q").await;
    assert_eq!(listed["data"][&id], page.jobs[&id], "HTTP shows the same");
    let told = page.heard.iter().filter(|message| message["type"] == "JobStateUpdates").count();
    assert_eq!(told, 2, "once each");
}

#[tokio::test]
async fn what_a_change_costs_does_not_grow_with_the_queue() {
    let broker = TestBroker::start_with(soon).await;
    for number in 0..300 {
        broker.submit("q", job(number).1).await;
    }
    let mut page = Peer::page(&broker, "q").await;
    assert_eq!(page.jobs.len(), 300);
    page.heard.clear();
    let (id, definition) = job(300);
    page.submit(&id, &definition, None).await;
    page.until_job(&id, "Queued").await;
    page.ping().await;
    let changes = page.heard.iter().filter(|told| told["type"] != "Workers").map(|told| told.to_string().len());
    assert!(changes.sum::<usize>() < 400, "{:?}", page.heard);
}

#[tokio::test]
async fn a_refused_submission_is_told_to_its_sender_alone() {
    let broker = TestBroker::start_with(soon).await;
    let (mut page, mut other) = (Peer::page(&broker, "q").await, Peer::page(&broker, "q").await);
    let (good, definition) = job(1);
    let wrong = "0".repeat(64);
    for refused in [wrong.as_str(), "not an id"] {
        page.submit(refused, &definition, None).await;
        page.until_job(refused, "Finished/Error").await;
        let why = page.jobs[refused]["finished"]["result"]["error"].as_str().unwrap();
        assert!(why.contains("id"), "{why}");
    }
    let (escaping, bad) = with_id(json!({ "image": "a", "inputs": { "../x": { "type": "utf8", "value": "" } } }));
    page.submit(&escaping, &bad, None).await;
    page.until_job(&escaping, "Finished/Error").await;
    page.submit(&good, &definition, Some(&"n".repeat(300))).await;
    page.until_job(&good, "Finished/Error").await;
    page.submit(&good, &definition, None).await;
    other.until_job(&good, "Queued").await;
    assert_eq!(other.jobs.len(), 1, "others hear nothing of it");
    let (_, listed) = broker.get_json("/q/q").await;
    assert_eq!(listed["data"].as_object().unwrap().len(), 1);
}

#[tokio::test]
async fn a_cancelled_job_is_gone_from_the_next_whole_state() {
    let broker = TestBroker::start_with(soon).await;
    let (mut page, mut other) = (Peer::page(&broker, "q").await, Peer::page(&broker, "q").await);
    let (id, definition) = job(1);
    page.submit(&id, &definition, None).await;
    page.until_job(&id, "Queued").await;
    other.until_job(&id, "Queued").await;
    page.withdraw(&id, "Cancelled", None).await;
    page.until_job(&id, "absent").await;
    other.until_job(&id, "absent").await;
    let told = page.heard.iter().chain(&other.heard).map(Value::to_string);
    assert!(told.into_iter().all(|text| !text.contains("Cancelled")), "nobody is shown the word");
}

#[tokio::test]
async fn a_cancel_without_a_namespace_is_meant_for_the_only_one() {
    let broker = TestBroker::start_with(soon).await;
    let mut page = Peer::page(&broker, "q").await;
    let (id, definition) = job(1);
    page.submit(&id, &definition, Some("doc")).await;
    page.until_job(&id, "Queued").await;
    page.withdraw(&id, "Cancelled", Some("other")).await;
    page.withdraw(&id, "Cancelled", None).await;
    page.until_job(&id, "absent").await;
    // With two, nobody knows whose: both stay.
    page.submit(&id, &definition, Some("one")).await;
    page.submit(&id, &definition, Some("two")).await;
    page.until("both", |page| page.jobs.get(&id).is_some_and(|job| job["namespaces"] == json!(["one", "two"]))).await;
    page.withdraw(&id, "Cancelled", None).await;
    page.withdraw(&id, "Cancelled", Some("one")).await;
    page.until("the other", |page| page.jobs[&id]["namespaces"] == json!(["two"])).await;
    page.withdraw(&id, "Cancelled", Some("*")).await;
    page.until_job(&id, "absent").await;
}

#[tokio::test]
async fn whole_states_that_nobody_asked_for_come_only_so_often() {
    let broker = TestBroker::start_with(|config| {
        soon(config);
        config.original.whole_every = std::time::Duration::from_secs(3600);
    })
    .await;
    let mut page = Peer::page(&broker, "q").await;
    let (id, definition) = job(1);
    page.submit(&id, &definition, None).await;
    page.until_job(&id, "Queued").await;
    page.withdraw(&id, "Cancelled", None).await;
    let (other, definition) = job(2);
    page.submit(&other, &definition, None).await;
    page.until_job(&other, "Queued").await;
    assert_eq!(page.state(&id), "Queued", "it is told later");
    page.send(json!({ "type": "QueryJobStates" })).await;
    page.expect("JobStates").await;
    assert_eq!(page.state(&id), "absent", "unless asked for");
}

#[tokio::test]
async fn a_finished_job_comes_with_its_result_and_deleting_it_lets_it_run_again() {
    let broker = TestBroker::start_with(soon).await;
    let mut page = Peer::page(&broker, "q").await;
    let (id, definition) = job(1);
    page.submit(&id, &definition, None).await;
    broker.run_next("q", json!({ "StatusCode": 3, "logs": [] })).await;
    page.until_job(&id, "Finished/Success").await;
    assert_eq!(page.jobs[&id]["finished"]["result"]["StatusCode"], 3);
    let first = page.heard.iter().find(|told| told["payload"]["state"]["jobs"][&id]["state"] == "Finished").unwrap();
    assert!(first["payload"]["state"]["jobs"][&id]["finished"].is_object(), "no page has to fetch it");
    // Whoever comes later is told too, and so is whoever asks.
    let late = Peer::page(&broker, "q").await;
    assert_eq!(late.jobs[&id]["finished"]["result"]["StatusCode"], 3);
    page.heard.clear();
    page.submit(&id, &definition, None).await;
    page.expect("JobStateUpdates").await;
    assert_eq!(page.state(&id), "Finished/Success", "the kept answer");
    page.withdraw(&id, "Deleted", Some("_")).await;
    page.until_job(&id, "absent").await;
    page.submit(&id, &definition, None).await;
    page.until_job(&id, "Queued").await;
    broker.run_next("q", json!({ "StatusCode": 4 })).await;
    page.until_job(&id, "Finished/Success").await;
    assert_eq!(page.jobs[&id]["finished"]["result"]["StatusCode"], 4);
}

#[tokio::test]
async fn a_query_is_answered_to_whoever_asked_also_for_a_job_that_left() {
    let broker = TestBroker::start_with(|config| {
        soon(config);
        config.limits.queue.success_stays_ms = 1;
    })
    .await;
    let mut page = Peer::page(&broker, "q").await;
    let mut other = Peer::page(&broker, "q").await;
    page.send(json!({ "type": "QueryJob", "payload": { "jobId": job(9).0 } })).await;
    let unknown = page.expect("JobStateUpdates").await;
    assert_eq!(unknown["payload"]["state"]["jobs"], json!({}));
    let (id, definition) = job(1);
    page.submit(&id, &definition, None).await;
    broker.run_next("q", json!({ "StatusCode": 0 })).await;
    page.until_job(&id, "Finished/Success").await;
    page.until_job(&id, "absent").await;
    other.until_job(&id, "Finished/Success").await;
    other.until_job(&id, "absent").await;
    page.send(json!({ "type": "QueryJob", "payload": { "jobId": id } })).await;
    let found = page.expect("JobStateUpdates").await;
    assert_eq!(found["payload"]["state"]["jobs"][&id]["finished"]["result"]["StatusCode"], 0);
    page.send(json!({ "type": "QueryJobStates" })).await;
    page.expect("JobStates").await;
    assert!(page.jobs.is_empty());
    other.heard.clear();
    other.ping().await;
    assert_eq!(other.heard, [] as [Value; 0], "others were not asked");
}

#[tokio::test]
async fn pages_see_what_a_run_prints() {
    use protocol::id::UnixMillis;
    use protocol::native::{LogLine, LogStep};
    let broker = TestBroker::start_with(soon).await;
    let mut page = Peer::page(&broker, "q").await;
    let id = broker.submit("q", job(1).1).await.to_string();
    let mut worker = broker.worker("q", "native", 1).await;
    let (run, _) = worker.claim().await;
    let line = |text: &str, at, stderr| LogLine { text: text.to_owned(), at_ms: UnixMillis(at), stderr };
    worker.logs(run, LogStep::Build, 0, vec![line("#1\n", 1, false)]).await;
    worker.logs(run, LogStep::Run, 0, vec![line("a\n", 2, false), line("b\n", 3, true)]).await;
    worker.logs(run, LogStep::Run, 1, vec![line("b\n", 3, true), line("c\n", 4, false)]).await;
    let mut told = Vec::new();
    for _ in 0..3 {
        told.push(page.expect("JobStatusPayload").await["payload"].clone());
    }
    assert_eq!(
        told,
        [
            json!({ "jobId": id, "step": "docker build", "logs": [["#1\n", 1]] }),
            json!({ "jobId": id, "step": "Running", "logs": [["a\n", 2], ["b\n", 3, true]] }),
            json!({ "jobId": id, "step": "Running", "logs": [["c\n", 4]] }),
        ],
        "what was repeated is told once"
    );
}

#[tokio::test]
async fn what_a_page_may_not_say_is_passed_over() {
    let broker = TestBroker::start_with(soon).await;
    let mut page = Peer::page(&broker, "q").await;
    let (id, definition) = job(1);
    page.submit(&id, &definition, None).await;
    page.until_job(&id, "Queued").await;
    let mut forger = Worker { peer: Peer::page(&broker, "q").await, id: "forger".to_owned() };
    forger.register().await;
    forger.running(&id, 5).await;
    forger.finish(&id, "Success").await;
    for noise in ["undefined", "{", "[]", "{\"type\":\"Nothing\"}", "{\"type\":\"StateChange\",\"payload\":7}"] {
        page.send_text(noise).await;
    }
    assert_eq!(forger.peer.ping().await, "PONG");
    assert_eq!(page.ping().await, "PONG");
    let (_, listed) = broker.get_json("/q/q").await;
    assert_eq!(listed["data"][&id]["state"], "Queued");
    let (_, result) = broker.get_json(&format!("/q/q/j/{id}/result.json")).await;
    assert_eq!(result, json!({ "data": null }));
}

#[tokio::test]
async fn a_page_that_does_not_read_is_given_a_whole_state_when_it_does() {
    const JOBS: usize = 500;
    let broker = TestBroker::start_with(|config| {
        soon(config);
        config.original.gather = std::time::Duration::ZERO;
    })
    .await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = within("a connection", socket.connect(broker.handle.addr())).await.unwrap();
    let url = format!("ws://{}/q/q/client", broker.host());
    let (stream, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    let mut slow = Peer::on(stream);
    slow.expect("JobStates").await;
    // The end of each is large, so that what waits does not fit into the buffers on the way.
    let mut worker = broker.worker("q", "w", 1).await;
    let large = json!({ "StatusCode": 0, "error": "x".repeat(15_000) });
    let mut jobs = Vec::new();
    for number in 0..JOBS {
        jobs.push(broker.submit("q", job(number).1).await.to_string());
        let (run, _) = worker.claim().await;
        worker.finish(run, large.clone()).await;
    }
    let all_ended = |page: &Peer| jobs.iter().all(|job| page.state(job) == "Finished/Success");
    slow.until("the end of all jobs", all_ended).await;
    assert_eq!(slow.jobs.len(), JOBS);
    assert!(broker.handle.engine().stats().snapshots_for_lag > 0, "it did miss something");
}

#[tokio::test]
async fn when_the_broker_stops_pages_are_let_go_and_find_everything_when_they_come_back() {
    let broker = TestBroker::start_with(soon).await;
    let mut page = Peer::page(&broker, "q").await;
    let (id, definition) = job(1);
    page.submit(&id, &definition, None).await;
    page.until_job(&id, "Queued").await;
    let broker = broker.restart().await;
    assert!(page.is_closed().await);
    assert_eq!(Peer::page(&broker, "q").await.state(&id), "Queued");
}
