//! Jobs and their logs.

use broker::audit;
use broker::journal::{Journal, JournalConfig};
use protocol::event::RunOutcome;
use protocol::id::{JobId, UnixMillis};
use protocol::native::{HeldRun, LogLine, LogStep};
use serde_json::{Value, json};

use super::{
    DAY_MS, LARGE, broker, definition, echo, large_bodies, left, moment, restart_without_store, result, run_and_leave,
    sweep_after,
};
use crate::support::{TestBroker, until};

async fn assert_forgotten(broker: &TestBroker, queue: &str, job: JobId) {
    assert_eq!(broker.get(&format!("/q/{queue}/j/{job}")).await.status(), 404);
    assert_eq!(definition(broker, queue, job).await, Value::Null);
    assert_eq!(result(broker, queue, job).await, Value::Null);
    assert_eq!(super::data(broker, format!("/j/{job}/definition.json")).await, Value::Null);
    assert!(broker.handle.engine().unscoped(job).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_job_is_forgotten_when_its_time_is_over_and_not_before() {
    let broker = broker().await;
    let before = moment().await;
    let job = run_and_leave(&broker, "q", echo("a"), json!({ "StatusCode": 0 })).await;
    let after = moment().await;
    assert_eq!(sweep_after(&broker, before).await.jobs, 0);
    assert_eq!(definition(&broker, "q", job).await, echo("a"));
    assert_eq!(result(&broker, "q", job).await["finished"]["result"]["StatusCode"], 0);
    assert_eq!(sweep_after(&broker, after).await.jobs, 1);
    assert_forgotten(&broker, "q", job).await;
    assert_eq!(sweep_after(&broker, after).await.jobs, 0, "once is enough");
}

#[tokio::test]
async fn a_forgotten_job_that_is_submitted_again_begins_at_run_1_and_keeps_late_workers_out() {
    let broker = broker().await;
    let job = broker.submit("q", echo("a")).await;
    let mut first = broker.worker("q", "worker-1", 1).await;
    let (run, _) = first.claim().await;
    assert_eq!(run, HeldRun { job, run: 1 });
    first.finish(run, json!({ "StatusCode": 3 })).await;
    left(&broker, "q", job).await;
    sweep_after(&broker, moment().await).await;
    assert_eq!(broker.submit("q", echo("a")).await, job);
    let mut second = broker.worker("q", "worker-2", 1).await;
    let (again, text) = second.claim().await;
    assert_eq!((again, text.as_str()), (run, echo("a").to_string().as_str()));
    // It holds that number, too, of the life that is forgotten.
    let late = first.end(run, RunOutcome::Success, json!({ "StatusCode": 4 })).await;
    assert_eq!(late.unwrap_err(), "stale_run");
    second.finish(again, json!({ "StatusCode": 5 })).await;
    assert_eq!(result(&broker, "q", job).await["finished"]["result"]["StatusCode"], 5);
}

#[tokio::test]
async fn a_submission_that_is_answered_from_what_is_kept_keeps_it_for_longer() {
    let broker = broker().await;
    let job = run_and_leave(&broker, "q", echo("a"), json!({ "StatusCode": 0 })).await;
    let other = run_and_leave(&broker, "q", echo("b"), json!({ "StatusCode": 0 })).await;
    let between = moment().await;
    broker.submit("q", echo("a")).await;
    left(&broker, "q", job).await;
    assert_eq!(sweep_after(&broker, between).await.jobs, 1);
    assert_forgotten(&broker, "q", other).await;
    assert_eq!(result(&broker, "q", job).await["finished"]["result"]["StatusCode"], 0);
    let broker = restart_without_store(broker).await;
    assert_eq!(result(&broker, "q", job).await["finished"]["result"]["StatusCode"], 0);
}

#[tokio::test]
async fn a_job_that_waits_or_runs_or_is_shown_keeps_what_it_names() {
    let broker = TestBroker::start().await;
    let text = "x".repeat(LARGE);
    let waits = json!({ "image": "a", "command": text, "requirements": { "gpus": 8 } });
    let shown = json!({ "image": "b", "command": text });
    let runs = json!({ "image": "c", "command": text });
    let shown_id = broker.submit("q", shown.clone()).await;
    broker.run_next("q", json!({ "StatusCode": 0, "logs": text })).await;
    let runs_id = broker.submit("q", runs.clone()).await;
    let mut worker = broker.worker("q", "worker-1", 1).await;
    let (run, _) = worker.claim().await;
    let line = LogLine { text: "hello\n".to_owned(), at_ms: UnixMillis(1), stderr: false };
    worker.logs(run, LogStep::Run, 0, vec![line]).await;
    until("the line", || async { !super::data(&broker, log_path(runs_id)).await.as_array().unwrap().is_empty() }).await;
    let waits_id = broker.submit("q", waits.clone()).await;
    let swept = sweep_after(&broker, moment().await.plus(1000 * DAY_MS)).await;
    assert_eq!((swept.jobs, swept.bodies, swept.logs), (0, 0, 0));
    for (job, text) in [(waits_id, &waits), (shown_id, &shown), (runs_id, &runs)] {
        assert_eq!(&definition(&broker, "q", job).await, text);
    }
    assert_eq!(result(&broker, "q", shown_id).await["finished"]["result"]["logs"], text);
    assert_eq!(super::data(&broker, log_path(runs_id)).await[0][0], "hello\n");
}

fn log_path(job: JobId) -> String {
    format!("/q/q/j/{job}/run-logs.json")
}

#[tokio::test]
async fn what_is_forgotten_stays_forgotten_when_the_event_store_is_made_again() {
    let broker = broker().await;
    let text = "x".repeat(LARGE);
    let large = json!({ "image": "a", "command": text });
    let job = run_and_leave(&broker, "q", large.clone(), json!({ "StatusCode": 0, "error": text })).await;
    let after = moment().await;
    let kept = run_and_leave(&broker, "q", echo("kept"), json!({ "StatusCode": 7 })).await;
    sweep_after(&broker, after).await;
    let broker = restart_without_store(broker).await;
    assert_eq!(definition(&broker, "q", job).await, Value::Null);
    assert_eq!(result(&broker, "q", kept).await["finished"]["result"]["StatusCode"], 7);
    // Not answered from a result that is gone, but run.
    assert_eq!(broker.submit("q", large.clone()).await, job);
    assert_eq!(broker.run_next("q", json!({ "StatusCode": 1 })).await, HeldRun { job, run: 1 });
    left(&broker, "q", job).await;
    let broker = restart_without_store(broker).await;
    assert_eq!(sweep_after(&broker, after).await.jobs, 0, "what came back took the place of the old row");
    assert_eq!(result(&broker, "q", job).await["finished"]["result"]["StatusCode"], 1);
    assert_eq!(definition(&broker, "q", job).await, large);
}

#[tokio::test]
async fn rows_that_come_back_with_a_new_event_store_are_taken_out_again() {
    let broker = broker().await;
    let job = run_and_leave(&broker, "q", echo("a"), json!({ "StatusCode": 0 })).await;
    let after = moment().await;
    assert_eq!(sweep_after(&broker, after).await.jobs, 1);
    let broker = restart_without_store(broker).await;
    assert_eq!(definition(&broker, "q", job).await, Value::Null);
    assert_eq!(sweep_after(&broker, after).await.jobs, 1);
    assert_forgotten(&broker, "q", job).await;
}

/// The horizon is on disk before anything goes, so this is all that a crash in between can leave.
#[tokio::test]
async fn a_crash_after_the_horizon_moved_shows_nothing_and_leaves_nothing() {
    let broker = broker().await;
    let text = "x".repeat(LARGE);
    let job = run_and_leave(&broker, "q", json!({ "image": "a", "command": text }), json!({ "StatusCode": 0 })).await;
    let after = moment().await;
    let broker = broker
        .restart_after(|path| {
            let (journal, _) = Journal::open(JournalConfig::new(path.join("journal"))).unwrap();
            journal.forget_before(after, after).unwrap();
            journal.close();
        })
        .await;
    assert_eq!(definition(&broker, "q", job).await, Value::Null);
    assert_eq!(large_bodies(&broker, "q").len(), 1);
    let swept = sweep_after(&broker, after.plus(2 * DAY_MS)).await;
    assert_eq!((swept.jobs, swept.bodies), (1, 1));
    assert_forgotten(&broker, "q", job).await;
}

/// A folder is not synced after a file was removed from it: the file may be there again after a power cut.
#[tokio::test]
async fn a_file_that_a_power_cut_brings_back_goes_with_the_next_sweep() {
    let broker = broker().await;
    let text = "x".repeat(LARGE);
    run_and_leave(&broker, "q", json!({ "image": "a", "command": text }), json!({ "StatusCode": 0 })).await;
    let later = moment().await.plus(2 * DAY_MS);
    let file = large_bodies(&broker, "q").pop().unwrap();
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!(sweep_after(&broker, later).await.bodies, 1);
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(sweep_after(&broker, later).await.bodies, 1);
    assert!(large_bodies(&broker, "q").is_empty());
}

#[tokio::test]
async fn a_large_body_goes_a_day_after_its_job_and_only_when_nothing_else_names_it() {
    let broker = broker().await;
    let text = "x".repeat(LARGE);
    let outcome = json!({ "StatusCode": 0, "error": text });
    let first = run_and_leave(&broker, "q", json!({ "image": "a", "command": text }), outcome.clone()).await;
    let after = moment().await;
    // Of the same result's bytes.
    let second = run_and_leave(&broker, "q", echo("b"), outcome).await;
    assert_eq!(large_bodies(&broker, "q").len(), 2);
    let swept = sweep_after(&broker, after).await;
    assert_eq!((swept.jobs, swept.bodies), (1, 0), "its files are not old enough");
    assert_eq!(definition(&broker, "q", first).await, Value::Null);
    // From today on nothing is forgotten that was not before, but the files are as good as two days older.
    for file in large_bodies(&broker, "q") {
        let old = std::time::UNIX_EPOCH + std::time::Duration::from_millis(after.0 - 2 * DAY_MS);
        std::fs::File::options().write(true).open(file).unwrap().set_modified(old).unwrap();
    }
    assert_eq!(sweep_after(&broker, after).await.bodies, 1);
    assert_eq!(result(&broker, "q", second).await["finished"]["result"]["error"], text);
    assert_eq!(large_bodies(&broker, "q").len(), 1);
}

#[tokio::test]
async fn an_audit_tells_expired_bodies_from_missing_ones() {
    let broker = broker().await;
    let text = "x".repeat(LARGE);
    run_and_leave(&broker, "q", json!({ "image": "a", "command": text }), json!({ "StatusCode": 0 })).await;
    assert_eq!(sweep_after(&broker, moment().await.plus(2 * DAY_MS)).await.bodies, 1);
    let journal = broker.path().join("journal");
    let report = audit::verify(&journal, None).unwrap();
    assert!(report.is_good(), "{:?}", report.first_bad);
    assert_eq!(report.queues.iter().map(|queue| queue.expired).sum::<u64>(), 1);
    // The same file missing without a horizon that covers it is what it was: a loss.
    std::fs::remove_file(journal.join("forgotten.json")).unwrap();
    let report = audit::verify(&journal, None).unwrap();
    assert!(report.first_bad.unwrap().what.contains("body"));
}

#[tokio::test]
async fn the_scrub_finds_nothing_to_mend_after_a_sweep() {
    let broker = broker().await;
    for text in ["a", "b", "c"] {
        run_and_leave(&broker, "q", echo(text), json!({ "StatusCode": 0, "error": text })).await;
    }
    let after = moment().await;
    run_and_leave(&broker, "q", echo("kept"), json!({ "StatusCode": 0, "error": "kept" })).await;
    assert_eq!(sweep_after(&broker, after).await.jobs, 3);
    let broker = broker
        .restart_after(|path| {
            let (journal, report) =
                Journal::open(JournalConfig { scrub: false, ..JournalConfig::new(path.join("journal")) }).unwrap();
            assert_eq!(report.rebuilt, None);
            let scrubbed = journal.scrub().unwrap();
            assert!(scrubbed.losses.is_empty() && scrubbed.repaired.is_empty(), "{scrubbed:?}");
            journal.close();
        })
        .await;
    assert_eq!(sweep_after(&broker, after).await.jobs, 0);
}

#[tokio::test]
async fn logs_go_a_week_after_their_job_ended_and_never_while_it_runs() {
    let limits = "success-stays=1ms,keep-jobs=forever";
    let broker = TestBroker::start_with(|config| config.limits.set(limits).unwrap()).await;
    let line = |text: &str| LogLine { text: text.to_owned(), at_ms: UnixMillis(1), stderr: false };
    let job = broker.submit("q", echo("a")).await;
    let mut worker = broker.worker("q", "worker-1", 1).await;
    let (run, _) = worker.claim().await;
    worker.logs(run, LogStep::Run, 0, vec![line("one\n")]).await;
    let lines = async || super::data(&broker, log_path(job)).await.as_array().unwrap().len();
    until("the line", || async { lines().await == 1 }).await;
    let sweep = async |at: UnixMillis| broker.handle.retention().sweep_jobs(at).await.unwrap().logs;
    let printed = moment().await;
    assert_eq!(sweep(printed.plus(100 * DAY_MS)).await, 0, "it has been silent for long, but runs");
    worker.finish(run, json!({ "StatusCode": 0 })).await;
    left(&broker, "q", job).await;
    assert_eq!(sweep(printed.plus(7 * DAY_MS)).await, 0, "its last line is a week old, its end is not");
    assert_eq!(lines().await, 1);
    assert_eq!(sweep(moment().await.plus(7 * DAY_MS)).await, 1);
    assert_eq!(lines().await, 0);
    assert_eq!(result(&broker, "q", job).await["finished"]["result"]["StatusCode"], 0, "the job itself stays");
}

#[tokio::test]
async fn logs_that_cannot_be_looked_at_keep_nothing_else_from_going() {
    let broker = broker().await;
    run_and_leave(&broker, "q", echo("a"), json!({ "StatusCode": 0 })).await;
    let broken = protocol::id::QueueKey::of(&"other".parse().unwrap());
    std::fs::write(broker.path().join("logs").join(broken.to_string()), "no folder").unwrap();
    assert_eq!(sweep_after(&broker, moment().await).await.jobs, 1);
}

#[tokio::test]
async fn a_forgotten_job_takes_its_logs_along_so_that_its_next_life_is_not_silent() {
    let limits = "success-stays=1ms,failure-stays=1ms,keep-jobs=7d,keep-logs=forever";
    let broker = TestBroker::start_with(|config| config.limits.set(limits).unwrap()).await;
    let line = |text: &str| LogLine { text: text.to_owned(), at_ms: UnixMillis(1), stderr: false };
    let job = broker.submit("q", echo("a")).await;
    let lines = async || super::data(&broker, log_path(job)).await.as_array().unwrap().clone();
    // Three runs of the first life.
    for run in 1..=3 {
        let mut worker = broker.worker("q", "worker-1", 1).await;
        let (held, _) = worker.claim().await;
        assert_eq!(held.run, run);
        worker.logs(held, LogStep::Run, 0, vec![line("old\n")]).await;
        worker.end(held, RunOutcome::Error, json!({ "error": "no" })).await.unwrap();
        left(&broker, "q", job).await;
        if run < 3 {
            let again = json!({ "definition": echo("a"), "control": { "retry": true } });
            assert_eq!(broker.post("/q/q", again.to_string()).await.0, 200);
        }
    }
    until("the lines", || async { lines().await.len() == 3 }).await;
    let swept = broker.handle.retention().sweep_jobs(moment().await.plus(7 * DAY_MS)).await.unwrap();
    assert_eq!((swept.jobs, swept.logs), (1, 1));
    broker.submit("q", echo("a")).await;
    let mut worker = broker.worker("q", "worker-1", 1).await;
    let (held, _) = worker.claim().await;
    assert_eq!(held.run, 1);
    worker.logs(held, LogStep::Run, 0, vec![line("new\n")]).await;
    until("the new line", || async { lines().await.len() == 1 }).await;
    assert_eq!(lines().await[0][0], "new\n");
}

#[tokio::test]
async fn what_is_kept_for_ever_is_never_swept() {
    let limits = "success-stays=1ms,keep-jobs=forever,keep-logs=forever,keep-blobs=forever";
    let broker = TestBroker::start_with(|config| config.limits.set(limits).unwrap()).await;
    let key = super::upload(&broker, b"old").await;
    let job = run_and_leave(&broker, "q", echo("a"), json!({ "StatusCode": 0 })).await;
    let broker = broker.restart().await;
    let swept = sweep_after(&broker, moment().await.plus(10_000 * DAY_MS)).await;
    assert_eq!(swept, broker::retention::Swept::default());
    assert_eq!(definition(&broker, "q", job).await, echo("a"));
    assert!(super::is_stored(&broker, &key).await);
}

#[tokio::test]
async fn a_sweep_is_counted_and_names_no_queue() {
    let broker = broker().await;
    run_and_leave(&broker, "secret-queue", echo("a"), json!({ "StatusCode": 0 })).await;
    let at = moment().await;
    sweep_after(&broker, at).await;
    let text = broker.get("/metrics").await.text().await.unwrap();
    assert!(text.contains("gridsocket_swept_total{what=\"jobs\"} 1\n"), "{text}");
    assert!(text.contains("gridsocket_swept_total{what=\"blobs\"} 0\n"));
    let last = text.lines().find_map(|line| line.strip_prefix("gridsocket_last_sweep_seconds ")).unwrap();
    assert!((last.parse::<f64>().unwrap() - at.plus(super::KEPT_MS).0 as f64 / 1000.0).abs() < 1.0);
    assert!(!text.contains("secret-queue"));
}
