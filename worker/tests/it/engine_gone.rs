//! An Engine that goes away while a job runs. It needs one of its own, so it runs only where `dockerd` can be started.

use protocol::event::RunOutcome;
use serde_json::json;

use crate::support::own_engine::{How, OwnEngine};
use crate::support::{Site, job};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_ends_with_a_word_about_it_when_the_engine_crashes() {
    let Some(mut site) = Site::new().await else { return };
    let Some(mut own) = OwnEngine::start(How::default()).await else { return };
    site.engine = own.client().await;
    let (_worker, mut line) = site.started().await;
    let run = line.grant(job(json!({"command": "sh -c 'echo up; sleep 300'"}))).await;
    line.until(|line| line.logs.text(run, false) == "up\n").await;
    own.crash_and_return();
    let (finished, told) = line.end(run).await;
    // Its return ended the container: that is told with the code it left, or as a loss, never as a plain end.
    let text = told.to_string();
    assert!(text.contains("container engine"), "{text}");
    assert!(finished.exit_code != Some(0) && finished.outcome != RunOutcome::TimedOut, "{text}");
    // The worker goes on with the Engine that came back.
    let next = line.grant(job(json!({"command": "echo still here"}))).await;
    assert_eq!(line.end(next).await.0.exit_code, Some(0));
    site.assert_clean().await;
}
