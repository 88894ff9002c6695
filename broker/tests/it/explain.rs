//! Why a job stands where it stands, over REST.

use protocol::explain::{Explanation, Fit, Standing};
use serde_json::json;

use crate::support::TestBroker;

async fn explain(broker: &TestBroker, job: impl std::fmt::Display) -> Explanation {
    let (status, told) = broker.get_json(&format!("/q/abc/j/{job}/explain")).await;
    assert_eq!(status, 200, "{told}");
    serde_json::from_value(told).unwrap()
}

#[tokio::test]
async fn a_waiting_a_running_and_an_ended_job_are_explained() {
    let broker = TestBroker::start().await;
    let first = broker.submit("abc", json!({ "image": "a" })).await;
    let large = broker.submit("abc", json!({ "image": "b", "requirements": { "cpus": 64 } })).await;
    let waits = explain(&broker, first).await;
    assert_eq!((waits.job, waits.standing, waits.workers_total), (first, Standing::Waiting, 0));
    assert_eq!(waits.line.unwrap().waiting, 2);
    let mut worker = broker.worker("abc", "w1", 1).await;
    let (run, _) = worker.claim().await;
    let runs = explain(&broker, first).await;
    assert_eq!((runs.standing, runs.run, runs.worker.unwrap().as_str()), (Standing::Running, 1, "w1"));
    let never = explain(&broker, large).await;
    assert_eq!((never.standing, never.workers[0].fit), (Standing::Waiting, Fit::Never));
    worker.finish(run, json!({ "StatusCode": 0 })).await;
    assert_eq!(explain(&broker, first).await.standing, Standing::Finished);
}

#[tokio::test]
async fn a_job_that_is_not_there_is_answered_404() {
    let broker = TestBroker::start().await;
    let (status, told) = broker.get_json(&format!("/q/abc/j/{}/explain", "0".repeat(64))).await;
    assert_eq!((status, &told["code"]), (404, &json!("no_such_job")));
    assert!(!told["error"].as_str().unwrap().is_empty());
    assert_eq!(broker.get_json("/q/abc/j/x/explain").await.0, 400);
}
