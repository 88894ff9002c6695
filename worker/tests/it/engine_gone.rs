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

/// How many run when it goes away.
const RUNS: usize = 6;

fn all_free(line: &crate::support::Line) -> bool {
    line.claims.last().is_some_and(|free| free.cpus_milli == 8000)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_taken_while_the_engine_is_away_and_no_place_is_lost_when_it_comes_back() {
    let Some(mut site) = Site::new().await else { return };
    let Some(mut own) = OwnEngine::start(How::default()).await else { return };
    site.engine = own.client().await;
    let (worker, mut line) = site.started_with(|config| config.cpus = 8).await;
    let mut runs = Vec::new();
    for number in 0..RUNS {
        let definition = json!({"command": "sh -c 'echo up; sleep 300'", "env": {"N": number.to_string()}});
        runs.push(line.grant(job(definition)).await);
    }
    line.until(|line| runs.iter().all(|run| line.logs.text(*run, false) == "up\n")).await;
    own.crash();
    line.until(|line| line.claims.last().is_some_and(|free| free.cpus_milli == 0)).await;
    // One that was on its way is somebody else's to run: its worker is at fault, not it.
    let late = line.grant(job(json!({"command": "echo late"}))).await;
    line.until(|line| line.returned.iter().any(|(run, _)| *run == late)).await;
    own.comes_back();
    for run in runs {
        let (finished, told) = line.end(run).await;
        assert!(told.to_string().contains("container engine"), "{told}");
        assert_ne!((finished.outcome, finished.exit_code), (RunOutcome::Success, Some(0)), "{told}");
    }
    line.until(all_free).await;
    let next = line.grant(job(json!({"command": "echo still here"}))).await;
    assert_eq!(line.end(next).await.0.exit_code, Some(0));
    line.until(all_free).await;
    site.assert_clean().await;
    assert_eq!(worker.stop(worker::ShutdownMode::Leave).await.unacknowledged, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_that_are_begun_while_the_engine_goes_away_are_handed_back_or_end_and_leave_nothing() {
    let Some(mut site) = Site::new().await else { return };
    let Some(mut own) = OwnEngine::start(How::default()).await else { return };
    site.engine = own.client().await;
    let (_worker, mut line) = site.started_with(|config| config.cpus = 8).await;
    let mut runs = Vec::new();
    for number in 0..RUNS {
        let definition = json!({"command": "sh -c 'echo up; sleep 1'", "env": {"N": number.to_string()}});
        runs.push(line.grant(job(definition)).await);
    }
    // Some are being made, some may be up.
    line.until(|line| line.claims.last().is_some_and(|free| free.cpus_milli == 2000)).await;
    own.crash_and_return();
    let is_settled = |line: &crate::support::Line, run| {
        line.is_finished(run) || line.returned.iter().any(|(returned, _)| *returned == run)
    };
    line.until(|line| runs.iter().all(|run| is_settled(line, *run))).await;
    for run in runs {
        if line.is_finished(run) {
            line.end(run).await;
        }
    }
    line.until(all_free).await;
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_that_outlive_their_engine_are_run_to_their_end() {
    let Some(mut site) = Site::new().await else { return };
    let Some(mut own) = OwnEngine::start(How { keeps_containers: true, ..How::default() }).await else { return };
    site.engine = own.client().await;
    let (_worker, mut line) = site.started().await;
    let command = "echo before; while [ ! -e /outputs/go ]; do sleep 0.05; done; echo after; exit 3";
    let run = line.grant(job(json!({"command": ["sh", "-c", command]}))).await;
    line.until(|line| line.logs.text(run, false) == "before\n").await;
    own.crash();
    line.until(|line| line.claims.last().is_some_and(|free| free.cpus_milli == 0)).await;
    own.comes_back();
    line.until(|line| line.claims.last().is_some_and(|free| free.cpus_milli == 1000)).await;
    let dir = std::fs::read_dir(site.data.path().join("remote/j").join(run.job.to_string())).unwrap().next().unwrap();
    std::fs::write(dir.unwrap().path().join("outputs/go"), "").unwrap();
    let (finished, told) = line.end(run).await;
    assert_eq!((finished.outcome, finished.exit_code), (RunOutcome::Success, Some(3)), "{told}");
    assert_eq!(line.logs.text(run, false), "before\nafter\n");
    assert!(told["result"]["outputs"]["go"].is_object(), "{told}");
    site.assert_clean().await;
}
