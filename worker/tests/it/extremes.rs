//! Jobs that take all they can get, with the limits that a cautious worker sets: each comes to its end for the right reason, the
//! machine has what it had before, and the worker goes on.

use protocol::event::RunOutcome;
use protocol::native::{FinishedRun, HeldRun, StopReason};
use serde_json::{Value, json};
use worker::Config;

use crate::support::{Line, Site, job, with_id};

const MIB: u64 = 1 << 20;

fn cautious(config: &mut Config) {
    config.limits.cpus_milli = Some(1000);
    config.limits.memory_bytes = Some(64 * MIB);
    config.limits.pids = Some(64);
    config.limits.shm_bytes = Some(8 * MIB);
    config.limits.disk_bytes = Some(32 * MIB);
    config.limits.cache_bytes = Some(32 * MIB);
    config.limits.ulimits = vec!["nofile=64".parse().unwrap()];
    config.max_job_duration_ms = 30_000;
}

async fn run(line: &mut Line, mut fields: Value) -> (HeldRun, FinishedRun, Value) {
    // Any of them may be stopped at this limit, but only those that are meant to be are.
    if fields["maxDuration"].is_null() {
        fields["maxDuration"] = "30s".into();
    }
    let run = line.grant(job(fields)).await;
    let (finished, mut told) = line.end(run).await;
    (run, finished, told["result"].take())
}

async fn still_works(site: &Site, line: &mut Line) {
    let (run, finished, _) = run(line, json!({ "command": "echo still here" })).await;
    assert_eq!((finished.exit_code, line.logs.text(run, false).as_str()), (Some(0), "still here\n"));
    site.assert_clean().await;
}

fn error(result: &Value) -> &str {
    result["error"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_bomb_gets_no_more_processes_than_it_may_have_and_is_gone_with_its_container() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started_with(cautious).await;
    // A shell ends where it can start nothing more, and what it had started may end with it; awk goes on trying.
    let bomb = "for i in 1 2 3 4; do awk 'BEGIN { while (1) system(\"sleep 300 &\") }' 2>/dev/null & done; wait";
    let granted = line.grant(job(json!({ "command": ["sh", "-c", bomb], "maxDuration": "30s" }))).await;
    let found = site.engine.container_when(&site.queue, "running").await;
    let id = found.id.unwrap();
    let mut most = 0;
    crate::support::peer::until("it has all the processes that it may have", async || {
        let listed = site.engine.docker.top_processes(&id, None).await;
        most = most.max(listed.ok().and_then(|listed| listed.processes).map_or(0, |processes| processes.len()));
        // Some of the 64 are shells that have ended and that nobody has asked for.
        most > 32
    })
    .await;
    assert!(most <= 64, "{most}");
    line.stop(granted, StopReason::Cancelled).await;
    still_works(&site, &mut line).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_hog_is_killed_and_told_what_it_was_allowed() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started_with(cautious).await;
    // It asks for more than the worker gives to one job.
    let hog = json!({ "command": "tail /dev/zero", "requirements": { "memory": "64m" } });
    let (_, finished, result) = run(&mut line, hog).await;
    assert_eq!((finished.outcome, finished.exit_code), (RunOutcome::Success, Some(137)));
    assert!(error(&result).contains("out of memory") && error(&result).contains("64 MiB"), "{result}");
    // Memory in files counts too.
    let shm = json!({ "command": ["sh", "-c", "df -m /dev/shm | tail -n 1 | awk '{print $2}'; cat /dev/zero > /dev/shm/x"],
        "shmSize": "8g" });
    let (shm, finished, result) = run(&mut line, shm).await;
    assert_eq!(line.logs.text(shm, false), "8\n", "{result}");
    assert_ne!(finished.exit_code, Some(0));
    still_works(&site, &mut line).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_filler_is_stopped_wherever_it_writes() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started_with(cautious).await;
    // Faster than that it could write gigabytes before anybody looks.
    let fill = |what: &str| format!("while :; do {what}; sleep 0.05; done");
    for (place, what) in [
        ("outputs", "head -c 1000000 /dev/zero >> /outputs/big"),
        ("image", "head -c 1000000 /dev/zero >> /big"),
        (
            "files",
            "i=$((i+1)); mkdir -p /outputs/$i/$i/$i/$i && for n in 1 2 3 4 5 6 7 8 9; do echo > /outputs/$i/$n; done; : > /outputs/$i/$i/$i/$i/x; head -c 300000 /dev/zero > /outputs/$i/big",
        ),
        ("log", "yes 0123456789012345678901234567890123456789012345678901234567890123456789 | head -c 1000000"),
    ] {
        let (_, finished, result) = run(&mut line, json!({ "command": ["sh", "-c", fill(what)] })).await;
        assert_eq!(
            (finished.outcome, finished.exit_code),
            (RunOutcome::Error, Some(137)),
            "{place}: {}",
            result["error"]
        );
        assert!(error(&result).contains("32 MiB of disk"), "{place}: {result}");
    }
    // A sparse file takes none.
    let sparse = "truncate -s 1000000000000 /outputs/big; sleep 3; rm /outputs/big";
    let (_, finished, result) = run(&mut line, json!({ "command": ["sh", "-c", sparse] })).await;
    assert_eq!(finished.exit_code, Some(0), "{result}");
    still_works(&site, &mut line).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_farm_leads_nowhere_and_is_left_out() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started_with(cautious).await;
    let farm = r#"
        cd /outputs; echo kept > plain
        i=0; while [ $i -lt 2000 ]; do i=$((i+1)); ln -s /etc/passwd l$i; done
        ln -s loop loop; ln -s . here; ln -s / root; ln -s /proc/self/environ env; ln -s ../../../../../../etc up; ln -s gone dangling
        mkdir deep; cd deep; i=0; while [ $i -lt 200 ]; do i=$((i+1)); ln -s ../deep d$i; mkdir n; cd n || break; done
    "#;
    let (_, finished, result) = run(&mut line, json!({ "command": ["sh", "-c", farm] })).await;
    assert_eq!((finished.outcome, finished.exit_code), (RunOutcome::Success, Some(0)), "{}", result["error"]);
    let names: Vec<&String> = result["outputs"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["plain"]);
    assert!(finished.finished.as_str().len() < 2_000_000, "a word about each, no more");
    still_works(&site, &mut line).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_ignores_being_asked_is_killed_at_its_limit_and_when_it_is_cancelled() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started_with(cautious).await;
    let deaf = ["sh", "-c", "trap '' TERM INT HUP; echo up; while :; do sleep 1; done"];
    let (_, finished, result) = run(&mut line, json!({ "command": deaf, "maxDuration": "1s" })).await;
    assert_eq!((finished.outcome, finished.exit_code), (RunOutcome::TimedOut, Some(137)), "{result}");
    let cancelled = line.grant(job(json!({ "command": deaf }))).await;
    line.until(|line| line.logs.text(cancelled, false) == "up\n").await;
    line.stop(cancelled, StopReason::Cancelled).await;
    still_works(&site, &mut line).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_started_says_what_is_missing() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started_with(cautious).await;
    for (fields, word) in [
        (json!({ "command": "echo ${" }), "command"),
        (json!({ "entrypoint": "sh -c ${" }), "entrypoint"),
        (json!({ "command": "no-such-program" }), "no-such-program"),
        (json!({ "entrypoint": ["/no/such/entrypoint"] }), "/no/such/entrypoint"),
        (json!({ "command": ["/"] }), "permission denied"),
    ] {
        let (_, finished, result) = run(&mut line, fields.clone()).await;
        assert_eq!(finished.outcome, RunOutcome::Error, "{fields}: {result}");
        assert!(result["error"].to_string().to_lowercase().contains(word), "{fields}: {result}");
    }
    let missing = with_id(&json!({ "image": "registry.invalid/no/such:image", "command": "true" }));
    let granted = line.grant(missing).await;
    let (finished, told) = line.end(granted).await;
    assert_eq!(finished.outcome, RunOutcome::Error, "{told}");
    assert!(told["result"]["logs"].to_string().contains("registry.invalid"), "{told}");
    still_works(&site, &mut line).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_gets_no_more_open_files_than_it_may_have() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started_with(cautious).await;
    let (granted, finished, result) = run(&mut line, json!({ "command": ["sh", "-c", "ulimit -n; ulimit -Hn"] })).await;
    assert_eq!(finished.exit_code, Some(0), "{result}");
    assert_eq!(line.logs.text(granted, false), "64\n64\n");
    still_works(&site, &mut line).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_restarted_worker_takes_over_is_held_to_its_limits_of_disk_and_time() {
    let Some(mut site) = Site::new().await else { return };
    let (worker, mut line) = site.started().await;
    // Both wait for a sign that is given when the worker is another one.
    let waits = "echo up; while [ ! -e /outputs/go ]; do sleep 0.1; done; while :; do head -c 1000000 /dev/zero >> /outputs/big; sleep 0.05; done";
    let fills = line.grant(job(json!({ "command": ["sh", "-c", waits], "maxDuration": "10m" }))).await;
    let idles = line.grant(job(json!({ "command": ["sh", "-c", "echo up; sleep 600"], "maxDuration": "10m" }))).await;
    for granted in [fills, idles] {
        line.until(|line| line.logs.text(granted, false) == "up\n").await;
    }
    assert_eq!(worker.stop(worker::ShutdownMode::Leave).await.left_running, 2);

    let (worker, mut line) = site.started_with(|config| config.limits.disk_bytes = Some(32 * MIB)).await;
    let root =
        std::fs::read_dir(site.data.path().join("remote/j").join(fills.job.to_string())).unwrap().next().unwrap();
    std::fs::write(root.unwrap().path().join("outputs/go"), "").unwrap();
    let (finished, told) = line.end(fills).await;
    assert_eq!((finished.outcome, finished.exit_code), (RunOutcome::Error, Some(137)), "{told}");
    assert!(error(&told["result"]).contains("32 MiB of disk"), "{told}");
    assert_eq!(worker.stop(worker::ShutdownMode::Leave).await.left_running, 1);

    let (_worker, mut line) = site.started_with(|config| config.max_job_duration_ms = 1_000).await;
    let (finished, told) = line.end(idles).await;
    assert_eq!(finished.outcome, RunOutcome::TimedOut, "{told}");
    still_works(&site, &mut line).await;
}
