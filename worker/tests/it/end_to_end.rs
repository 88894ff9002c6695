//! The worker and the real broker, over real sockets, with a real Engine.

use serde_json::json;

use crate::support::Grid;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submitted_job_runs_and_its_logs_and_outputs_can_be_fetched() {
    let Some(grid) = Grid::start().await else { return };
    let job = grid
        .submit(json!({
            "command": ["sh", "-c", "wc -w < /inputs/words; seq 1 1000 > /outputs/numbers; echo done >&2; exit 3"],
            "inputs": {"words": {"type": "utf8", "value": "one two three"}},
        }))
        .await;
    let result = grid.result(&job).await;
    let told = result.to_string();
    assert!(told.contains("\"reason\":\"Success\"") && told.contains("\"StatusCode\":3"), "{told}");
    grid.until_logged(&job, "3\\n").await;
    grid.until_logged(&job, "done\\n").await;
    let output = grid.url(&format!("/q/{}/j/{job}/outputs/numbers", grid.queue()));
    let bytes = grid.http.get(output).send().await.unwrap().bytes().await.unwrap();
    let numbers: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    assert_eq!(bytes, numbers.as_bytes());
    grid.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_cancelled_over_http_is_gone() {
    let Some(grid) = Grid::start().await else { return };
    let job = grid.submit(json!({"command": "sh -c 'echo up; sleep 300'"})).await;
    grid.until_logged(&job, "up").await;
    let cancel = grid.url(&format!("/q/{}/j/{job}/cancel", grid.queue()));
    let answer = grid.http.post(cancel).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    grid.engine.until_containers(grid.queue(), 0).await;
    // The slot is free again.
    let next = grid.submit(json!({"command": "echo next"})).await;
    assert!(grid.result(&next).await.to_string().contains("\"StatusCode\":0"));
    grid.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_broker_leaves_what_runs_alone() {
    let Some(grid) = Grid::start().await else { return };
    let command =
        "echo before; while [ ! -e /job-cache/go-$JOB_ID ]; do sleep 0.05; done; rm /job-cache/go-$JOB_ID; echo after";
    let job = grid.submit(json!({"command": ["sh", "-c", command]})).await;
    grid.until_logged(&job, "before").await;
    let container = grid.engine.containers(grid.queue()).await[0].id.clone();
    let grid = grid.restart_broker().await;
    assert_eq!(grid.engine.containers(grid.queue()).await[0].id, container, "the container was left alone");
    // A second job in the queue has no slot, so what sets the first free is a container of our own.
    grid.engine.touch_in_cache(grid.queue(), &format!("go-{job}")).await;
    let result = grid.result(&job).await.to_string();
    assert!(result.contains("\"StatusCode\":0") && result.contains("after"), "{result}");
    grid.until_logged(&job, "after").await;
    grid.stop().await;
}
