//! A worker that is restarted goes on with what it left.

use protocol::event::RunOutcome;
use serde_json::json;
use worker::ShutdownMode;

use crate::support::{Site, job};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_container_is_adopted_with_its_whole_log() {
    let Some(mut site) = Site::new().await else { return };
    let (worker, mut line) = site.started().await;
    let command = "echo before; echo warn >&2; printf part; while [ ! -e /outputs/go ]; do sleep 0.05; done; echo ial; echo after; exit 3";
    let run = line.grant(job(json!({"command": ["sh", "-c", command]}))).await;
    line.until(|line| line.logs.text(run, false) == "before\npart" && line.logs.text(run, true) == "warn\n").await;
    let summary = worker.stop(ShutdownMode::Leave).await;
    assert_eq!((summary.left_running, summary.handed_back), (1, 0));
    let mut logs = line.logs;

    let _worker = site.start();
    let mut line = site.peer.line().await;
    assert_eq!(line.holds(), [run]);
    line.welcome(Vec::new()).await;
    line.until(|line| line.claims.last().is_some_and(|free| free.cpus_milli == 1000)).await;
    let dir = std::fs::read_dir(site.data.path().join("remote/j").join(run.job.to_string())).unwrap().next().unwrap();
    std::fs::write(dir.unwrap().path().join("outputs/go"), "").unwrap();
    let (finished, told) = line.end(run).await;
    assert_eq!((finished.outcome, finished.exit_code), (RunOutcome::Success, Some(3)));
    let out: Vec<&str> =
        told["result"]["logs"].as_array().unwrap().iter().map(|line| line[0].as_str().unwrap()).collect();
    assert!(out.contains(&"before\n") && out.contains(&"warn\n") && out.contains(&"after\n"), "{out:?}");
    logs.merge(line.logs);
    // Each byte once, though the restart came in the middle of a line.
    assert_eq!(logs.text(run, false), "before\npartial\nafter\n");
    assert!(told["result"]["outputs"]["go"].is_object());
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_ended_while_nobody_looked_is_collected_and_reported() {
    let Some(mut site) = Site::new().await else { return };
    let (worker, mut line) = site.started().await;
    let command = "echo up; while [ ! -e /outputs/go ]; do sleep 0.05; done; echo 42 > /outputs/n; echo done";
    let run = line.grant(job(json!({"command": ["sh", "-c", command]}))).await;
    line.until(|line| line.logs.text(run, false) == "up\n").await;
    worker.stop(ShutdownMode::Leave).await;
    let mut logs = line.logs;
    let dir = std::fs::read_dir(site.data.path().join("remote/j").join(run.job.to_string())).unwrap().next().unwrap();
    std::fs::write(dir.unwrap().path().join("outputs/go"), "").unwrap();
    site.engine.container_when(&site.queue, "exited").await;

    let (_worker, mut line) = site.started().await;
    assert_eq!(line.holds(), [run]);
    let (finished, told) = line.end(run).await;
    assert_eq!((finished.outcome, finished.exit_code), (RunOutcome::Success, Some(0)));
    assert_eq!(told["result"]["outputs"]["n"]["value"], "NDIK");
    logs.merge(line.logs);
    assert_eq!(logs.text(run, false), "up\ndone\n");
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_was_not_acknowledged_is_sent_again_after_reconnection_and_restart() {
    let Some(mut site) = Site::new().await else { return };
    let (worker, mut line) = site.started().await;
    let run = line.grant(job(json!({"command": "echo hi"}))).await;
    let (_, first) = line.unanswered_end(run).await;
    drop(line);

    let mut line = site.peer.line().await;
    assert_eq!(line.holds(), [run]);
    line.welcome(Vec::new()).await;
    let (_, second) = line.unanswered_end(run).await;
    assert_eq!(first, second);
    site.assert_clean().await;
    let summary = worker.stop(ShutdownMode::Leave).await;
    assert_eq!(summary.unacknowledged, 1);

    let (worker, mut line) = site.started().await;
    assert_eq!(line.holds(), [run]);
    let (third, _) = line.end(run).await;
    assert_eq!(first, third);
    assert_eq!(worker.stop(ShutdownMode::Drain { limit: std::time::Duration::from_secs(60) }).await.unacknowledged, 0);

    let _worker = site.start();
    assert_eq!(site.peer.line().await.holds(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_was_never_started_is_removed_and_other_workers_ones_are_not_touched() {
    let Some(mut site) = Site::new().await else { return };
    let create = async |worker: &str| {
        let labels = [
            ("container.mtfm.io", "true"),
            ("container.mtfm.io/worker", worker),
            ("container.mtfm.io/queue", site.queue.as_str()),
            ("container.mtfm.io/id", &"ab".repeat(32)),
            ("container.mtfm.io/run", "1"),
        ];
        let body = bollard::models::ContainerCreateBody {
            image: Some(crate::support::engine::IMAGE.to_owned()),
            labels: Some(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
            ..Default::default()
        };
        site.engine.docker.create_container(None, body).await.unwrap().id
    };
    create("me").await;
    let foreign = create("somebody-else").await;
    let (_worker, line) =
        site.started_with(|config| config.id = worker::config::Identity::Given("me".parse().unwrap())).await;
    assert_eq!(line.holds(), []);
    site.engine.until_containers(&site.queue, 1).await;
    assert_eq!(site.engine.containers(&site.queue).await[0].id.as_ref(), Some(&foreign));
    site.engine.docker.remove_container(&foreign, None).await.unwrap();
}
