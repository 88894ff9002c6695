//! Workers.

use serde_json::{Value, json};

use super::peers::{Peer, Worker, job, soon, with_id};
use crate::support::{TestBroker, until, within};

/// A page, and a job that it submitted.
async fn submitted(broker: &TestBroker, number: usize) -> (Peer, String) {
    let mut page = Peer::page(broker, "q").await;
    let (id, definition) = job(number);
    page.submit(&id, &definition, None).await;
    page.until_job(&id, "Queued").await;
    (page, id)
}

#[tokio::test]
async fn a_worker_registers_and_everyone_is_told() {
    let broker = TestBroker::start_with(soon).await;
    let mut page = Peer::page(&broker, "q").await;
    let mut worker = Worker::connect(&broker, "q", "w1").await;
    assert_eq!(worker.peer.ping().await, "PONG unknown");
    worker.register().await;
    worker.peer.expect("JobStates").await;
    assert_eq!(worker.peer.ping().await, "PONG w1");
    page.until("the worker", |page| page.workers == [worker.registration()]).await;
    worker.peer.until("itself", |peer| peer.workers.len() == 1).await;
    let _native = broker.worker("q", "n1", 3).await;
    page.until("both", |page| page.workers.len() == 2).await;
    assert_eq!((&page.workers[1]["id"], &page.workers[1]["cpus"]), (&json!("n1"), &json!(3)));
    drop(worker);
    page.until("the rest", |page| page.workers.len() == 1).await;
}

#[tokio::test]
async fn a_worker_runs_a_job_and_everyone_sees_it() {
    let broker = TestBroker::start_with(soon).await;
    let mut worker = Worker::start(&broker, "q", "w1").await;
    let (mut page, id) = submitted(&broker, 1).await;
    worker.take(&id, 1_000).await;
    page.until_job(&id, "Running").await;
    assert_eq!(page.jobs[&id]["worker"], "w1");
    worker.logs(&id, "docker image pull", "pulled\n").await;
    worker.logs(&id, "Running", "hi\n").await;
    for (step, text) in [("docker image pull", "pulled\n"), ("Running", "hi\n")] {
        let told = page.expect("JobStatusPayload").await;
        let expected = json!({ "jobId": id, "step": step, "logs": [[text, 8], ["oops\n", 9, true]] });
        assert_eq!(told["payload"], expected);
    }
    worker.finish(&id, "Success").await;
    page.until_job(&id, "Finished/Success").await;
    worker.peer.until_job(&id, "Finished/Success").await;
    let (_, result) = broker.get_json(&format!("/q/q/j/{id}/result.json")).await;
    assert_eq!(result["data"]["finished"], worker.finished("Success"), "as it was sent");
    let (_, logs) = broker.get_json(&format!("/q/q/j/{id}/run-logs.json")).await;
    assert_eq!(logs["data"], json!([["hi\n", 8], ["oops\n", 9, true]]));
    // What comes after the end is not kept.
    worker.logs(&id, "Running", "late\n").await;
    worker.finish(&id, "Error").await;
    worker.peer.ping().await;
    let (_, after) = broker.get_json(&format!("/q/q/j/{id}/run-logs.json")).await;
    assert_eq!(after["data"], logs["data"]);
    assert_eq!(page.state(&id), "Finished/Success");
}

#[tokio::test]
async fn of_two_workers_that_take_one_job_the_one_whose_id_sorts_first_has_it() {
    let broker = TestBroker::start_with(soon).await;
    let mut first = Worker::start(&broker, "q", "aaa").await;
    let mut second = Worker::start(&broker, "q", "Bbb").await;
    let (mut page, id) = submitted(&broker, 1).await;
    second.take(&id, 1).await;
    first.running(&id, 2).await;
    first.until_mine(&id).await;
    second.until_owner(&id, "aaa").await;
    second.finish(&id, "Error").await;
    second.peer.ping().await;
    first.finish(&id, "Success").await;
    page.until_job(&id, "Finished/Success").await;
    // The other way around the later claim changes nothing.
    let (mut page, id) = submitted(&broker, 2).await;
    first.take(&id, 1).await;
    second.running(&id, 1).await;
    second.peer.ping().await;
    second.finish(&id, "Error").await;
    second.peer.ping().await;
    first.finish(&id, "Success").await;
    page.until_job(&id, "Finished/Success").await;
}

#[tokio::test]
async fn a_granted_run_is_shown_as_one_to_let_go_of_and_pages_see_whose_it_is() {
    let broker = TestBroker::start_with(soon).await;
    let mut worker = Worker::start(&broker, "q", "aaa").await;
    let mut native = broker.worker("q", "zzz", 1).await;
    let (mut page, id) = submitted(&broker, 1).await;
    let (run, _) = native.claim().await;
    worker.until_owner(&id, " zzz").await;
    page.until_job(&id, "Running").await;
    assert_eq!(page.jobs[&id]["worker"], "zzz");
    worker.running(&id, 1).await;
    worker.finish(&id, "Error").await;
    worker.peer.ping().await;
    native.finish(run, json!({ "StatusCode": 0 })).await;
    page.until_job(&id, "Finished/Success").await;
    worker.peer.until_job(&id, "Finished/Success").await;
    assert_eq!(worker.peer.jobs[&id]["worker"], "zzz");
}

#[tokio::test]
async fn a_socket_is_one_workers() {
    let broker = TestBroker::start_with(soon).await;
    let mut worker = Worker::start(&broker, "q", "w1").await;
    worker.id = "w2".to_owned();
    worker.register().await;
    assert_eq!(worker.peer.ping().await, "PONG w1");
}

#[tokio::test]
async fn ids_that_cannot_be_compared_do_not_register() {
    let broker = TestBroker::start_with(soon).await;
    for id in [" zzz", "wörker", ""] {
        let mut worker = Worker::connect(&broker, "q", id).await;
        worker.register().await;
        assert_eq!(worker.peer.ping().await, "PONG unknown", "{id:?}");
    }
}

#[tokio::test]
async fn an_idle_worker_hears_something_in_time_and_keeps_its_run() {
    let broker = TestBroker::start_with(|config| {
        soon(config);
        config.limits.queue.lease_ms = 2_000;
    })
    .await;
    let mut worker = Worker::start(&broker, "q", "w1").await;
    let (mut page, id) = submitted(&broker, 1).await;
    worker.take(&id, 1).await;
    // Longer than the lease, while the worker says nothing of the run.
    for _ in 0..25 {
        let heartbeat = worker.peer.expect("JobStateUpdates").await;
        assert_eq!(heartbeat["payload"], json!({ "state": { "jobs": {} }, "isSubset": true }));
    }
    page.ping().await;
    assert_eq!(page.state(&id), "Running");
    let heartbeat = json!({ "state": { "jobs": {} }, "isSubset": true });
    assert!(page.heard.iter().all(|told| told["payload"] != heartbeat), "pages need none");
    worker.finish(&id, "Success").await;
    page.until_job(&id, "Finished/Success").await;
}

#[tokio::test]
async fn a_worker_that_comes_back_sends_first_what_it_gathered_offline() {
    let broker = TestBroker::start_with(soon).await;
    let mut worker = Worker::start(&broker, "q", "w1").await;
    let (mut page, id) = submitted(&broker, 1).await;
    let (_, other) = submitted(&broker, 2).await;
    worker.take(&id, 1).await;
    worker.take(&other, 2).await;
    worker.peer.stream.close(None).await.unwrap();
    let mut worker = Worker::connect(&broker, "q", "w1").await;
    worker.logs(&id, "Running", "while away\n").await;
    worker.finish(&id, "Success").await;
    page.ping().await;
    assert_ne!(page.state(&id), "Finished/Success", "nobody has said who that is");
    worker.register().await;
    worker.running(&other, 2).await;
    page.until_job(&id, "Finished/Success").await;
    worker.finish(&other, "Success").await;
    page.until_job(&other, "Finished/Success").await;
    let (_, logs) = broker.get_json(&format!("/q/q/j/{id}/run-logs.json")).await;
    assert_eq!(logs["data"][0], json!(["while away\n", 8]));
}

#[tokio::test]
async fn a_new_socket_of_a_worker_works_before_the_old_one_is_known_to_be_dead() {
    let broker = TestBroker::start_with(soon).await;
    let mut old = Worker::start(&broker, "q", "w1").await;
    let (mut page, id) = submitted(&broker, 1).await;
    old.take(&id, 1).await;
    let mut new = Worker::start(&broker, "q", "w1").await;
    new.running(&id, 1).await;
    drop(old);
    page.until("one worker", |page| page.workers.len() == 1).await;
    new.logs(&id, "Running", "still here\n").await;
    new.finish(&id, "Success").await;
    page.until_job(&id, "Finished/Success").await;
    let (_, logs) = broker.get_json(&format!("/q/q/j/{id}/run-logs.json")).await;
    assert_eq!(logs["data"][0], json!(["still here\n", 8]));
}

#[tokio::test]
async fn a_run_whose_worker_vanished_waits_again_and_the_late_end_of_it_is_not_taken() {
    let broker = TestBroker::start_with(|config| {
        soon(config);
        config.limits.queue.lease_ms = 1_000;
    })
    .await;
    let mut lost = Worker::start(&broker, "q", "w1").await;
    let (mut page, id) = submitted(&broker, 1).await;
    lost.take(&id, 1).await;
    page.until_job(&id, "Running").await;
    lost.peer.stream.close(None).await.unwrap();
    page.until_job(&id, "Queued").await;
    let mut next = Worker::start(&broker, "q", "w2").await;
    next.take(&id, 5).await;
    let mut back = Worker::start(&broker, "q", "w1").await;
    back.until_owner(&id, "w2").await;
    back.finish(&id, "Error").await;
    back.peer.ping().await;
    next.finish(&id, "Success").await;
    page.until_job(&id, "Finished/Success").await;
    assert_eq!(page.jobs[&id]["worker"], "w2");
}

#[tokio::test]
async fn a_job_that_is_given_up_is_an_error_that_says_why() {
    let broker = TestBroker::start_with(soon).await;
    let mut worker = Worker::start(&broker, "q", "w1").await;
    let (mut page, id) = submitted(&broker, 1).await;
    worker.take(&id, 1).await;
    for at in 2..5 {
        worker.running(&id, at).await; // It began anew each time.
    }
    page.until_job(&id, "Finished/Error").await;
    let why = page.jobs[&id]["finished"]["result"]["error"].as_str().unwrap();
    assert!(why.contains("given up"), "{why}");
}

#[tokio::test]
async fn a_definition_that_would_kill_a_worker_is_not_sent_and_its_job_not_shown_to_workers() {
    let broker = TestBroker::start_with(soon).await;
    let mut page = Peer::page(&broker, "q").await;
    let mut worker = Worker::start(&broker, "q", "w1").await;
    let large = with_id(json!({ "image": "a", "command": "x".repeat(70_000) }));
    let deadly = with_id(json!({ "image": "a", "command": "echo ${" }));
    let (good, definition) = job(1);
    for (id, definition) in [&large, &deadly] {
        page.submit(id, definition, None).await;
        worker.peer.until_job(id, "Queued").await;
        worker.ask_definition(id).await;
        worker.peer.until_job(id, "absent").await;
        page.until_job(id, "Queued").await;
    }
    page.submit(&good, &definition, None).await;
    worker.take(&good, 1).await;
    let told: Vec<_> = worker.peer.heard.iter().filter(|told| told["type"] == "BroadcastJobDefinitions").collect();
    assert_eq!(told.len(), 1);
    let why = format!("/q/q/j/{}/explain", large.0);
    let (_, told) = broker.get_json(&why).await;
    assert_eq!((&told["standing"], &told["workers"][0]["fit"]), (&json!("waiting"), &json!("never")));
    assert!(told["reason"].as_str().unwrap().contains("less than 64 KiB"), "{told}");
    // One of our own takes it.
    let mut native = broker.worker("q", "n", 2).await;
    assert_eq!(native.claim().await.0.job.to_string(), large.0);
}

#[tokio::test]
async fn definitions_are_sent_as_they_were_received() {
    let broker = TestBroker::start_with(soon).await;
    let mut worker = Worker::start(&broker, "q", "w1").await;
    let (id, definition) = with_id(json!({ "image": "alpine", "command": "true", "unknown": { "a": [1.5] } }));
    broker.submit("q", definition.clone()).await;
    let unknown = "0".repeat(64);
    let asked = json!({ "type": "RequestJobDefinitions", "payload": { "jobIds": [unknown, id, "../../etc"] } });
    worker.peer.send(asked).await;
    let told = worker.peer.expect("BroadcastJobDefinitions").await;
    assert_eq!(told["payload"]["definitions"], json!({ id: definition }));
}

#[tokio::test]
async fn a_deleted_job_is_wiped_by_workers_that_know_what_it_was() {
    let broker = TestBroker::start_with(soon).await;
    let mut worker = Worker::start(&broker, "q", "w1").await;
    let (mut page, id) = submitted(&broker, 1).await;
    worker.take(&id, 1).await;
    worker.peer.heard.clear();
    page.withdraw(&id, "Deleted", Some("_")).await;
    let clear = worker.peer.expect("ClearJobCache").await;
    assert_eq!(clear["payload"], json!({ "jobId": id, "namespace": "_" }));
    let definition = worker.peer.heard.iter().find(|told| told["type"] == "BroadcastJobDefinitions").unwrap();
    assert!(definition["payload"]["definitions"][&id].is_object(), "it dies if it cannot look that up");
    worker.peer.until_job(&id, "absent").await;
    page.until_job(&id, "absent").await;
}

#[tokio::test]
async fn a_cancelled_job_is_missing_from_what_its_worker_is_told_next() {
    let broker = TestBroker::start_with(soon).await;
    let mut worker = Worker::start(&broker, "q", "w1").await;
    let (mut page, id) = submitted(&broker, 1).await;
    worker.take(&id, 1).await;
    page.withdraw(&id, "Cancelled", None).await;
    worker.peer.until_job(&id, "absent").await;
    worker.finish(&id, "Success").await;
    worker.peer.ping().await;
    let (_, result) = broker.get_json(&format!("/q/q/j/{id}/result.json")).await;
    assert_eq!(result, json!({ "data": null }));
}

#[tokio::test]
async fn a_worker_speaks_for_itself_only() {
    let broker = TestBroker::start_with(soon).await;
    let mut holder = Worker::start(&broker, "q", "w1").await;
    let mut forger = Worker::start(&broker, "q", "w0").await;
    let (mut page, id) = submitted(&broker, 1).await;
    holder.take(&id, 1).await;
    // With its own name and with the holder's.
    forger.finish(&id, "Success").await;
    forger.logs(&id, "Running", "forged\n").await;
    let in_other_name = holder.finished("Success");
    forger.change(&id, "Finished", in_other_name).await;
    forger.change(&id, "Running", json!({ "worker": "w1", "time": 99 })).await;
    forger.peer.ping().await;
    page.ping().await;
    assert_eq!(page.state(&id), "Running");
    assert_eq!(page.jobs[&id]["worker"], "w1");
    assert!(page.heard.iter().all(|told| told["type"] != "JobStatusPayload"));
    holder.finish(&id, "TimedOut").await;
    page.until_job(&id, "Finished/TimedOut").await;
}

#[tokio::test]
async fn after_a_restart_of_the_broker_a_worker_carries_on() {
    let broker = TestBroker::start_with(soon).await;
    let mut worker = Worker::start(&broker, "q", "w1").await;
    let (_, id) = submitted(&broker, 1).await;
    worker.take(&id, 7).await;
    let broker = broker.restart().await;
    assert!(worker.peer.is_closed().await);
    let mut worker = Worker::connect(&broker, "q", "w1").await;
    assert_eq!(worker.peer.state(&id), "Running");
    worker.register().await;
    worker.running(&id, 7).await;
    worker.finish(&id, "Success").await;
    worker.peer.until_job(&id, "Finished/Success").await;
    let (_, history) = broker.get_json("/q/q").await;
    assert_eq!(history["data"][&id]["worker"], "w1");
}

#[tokio::test]
async fn many_workers_that_all_want_every_job_run_each_once() {
    const JOBS: usize = 20;
    let broker = TestBroker::start_with(soon).await;
    let mut page = Peer::page(&broker, "q").await;
    let mut tasks = tokio::task::JoinSet::new();
    for name in 0..4 {
        let mut worker = Worker::start(&broker, "q", &format!("w{name}")).await;
        tasks.spawn(async move {
            // As the original: takes what it sees queued, starts at once, stops what another has.
            let mut mine = std::collections::BTreeMap::new();
            let mut done = 0;
            while done < JOBS {
                let jobs: Vec<(String, Value)> =
                    worker.peer.jobs.iter().map(|(id, job)| (id.clone(), job.clone())).collect();
                done = jobs.iter().filter(|(_, job)| job["state"] == "Finished").count();
                for (at, (id, job)) in jobs.into_iter().enumerate() {
                    if job["state"] == "Queued" && !mine.contains_key(&id) {
                        mine.insert(id.clone(), false);
                        worker.running(&id, at as u64).await;
                    } else if job["state"] == "Running" && job["worker"] == worker.id.as_str() {
                        let is_reported = mine.entry(id.clone()).or_default();
                        if !std::mem::replace(is_reported, true) {
                            worker.finish(&id, "Success").await;
                        }
                    }
                }
                if done < JOBS {
                    worker.peer.next().await;
                }
            }
        });
    }
    for number in 0..JOBS {
        let (id, definition) = job(number);
        page.submit(&id, &definition, None).await;
    }
    let all_done = |page: &Peer| page.jobs.len() == JOBS && page.jobs.values().all(|job| job["state"] == "Finished");
    page.until("all jobs to end", all_done).await;
    assert!(page.jobs.values().all(|job| job["finishedReason"] == "Success"));
    tasks.join_all().await;
}

#[tokio::test]
async fn a_socket_that_ends_leaves_nothing_behind() {
    let broker = TestBroker::start_with(soon).await;
    {
        let mut page = Peer::page(&broker, "q").await;
        let _worker = Worker::start(&broker, "q", "w1").await;
        page.until("the worker", |page| page.workers.len() == 1).await;
    }
    until("no socket", || async { broker.handle.engine().stats().sockets == 0 }).await;
    let again = Peer::page(&broker, "q").await;
    assert!(again.workers.is_empty());
}

#[tokio::test]
async fn a_status_asks_workers_and_counts_pages() {
    let broker = TestBroker::start_with(soon).await;
    let mut worker = Worker::start(&broker, "q", "w1").await;
    let _native = broker.worker("q", "n1", 1).await;
    let _pages = [Peer::page(&broker, "q").await, Peer::page(&broker, "q").await];
    within("both pages to count", async {
        loop {
            let asking = broker.get_json("/q/q/status");
            let answering = async {
                worker.peer.expect("StatusRequest").await;
                let queue = json!({ "x": { "finished": true } });
                let status = json!({ "time": 1, "id": "w1", "cpus": 2, "gpus": 0, "queue": queue });
                worker.peer.send(json!({ "type": "WorkerStatusResponse", "payload": status })).await;
            };
            let ((_, status), ()) = tokio::join!(asking, answering);
            assert_eq!(status["localWorkers"]["w1"]["queue"]["x"]["finished"], true, "what it says");
            assert_eq!(status["localWorkers"]["n1"]["id"], "n1");
            assert_eq!(status["queueInfo"]["localWorkerCount"], 2);
            if status["clientCount"] == 2 {
                break;
            }
        }
    })
    .await;
}
