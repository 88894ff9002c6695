//! Runs that come to their own end.

use protocol::event::RunOutcome;
use protocol::native::LogKind;
use serde_json::{Value, json};

use crate::support::{Site, job};
use worker::ShutdownMode;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_gets_its_inputs_and_environment_and_gives_logs_and_outputs() {
    let Some(mut site) = Site::new().await else { return };
    let far = b"from afar".repeat(100);
    site.peer.blobs.put("/grid/data/far.bin", &far);
    site.peer.blobs.put("/grid/f/some-key", b"by key");
    // On the workers' own bridge, as jobs usually are.
    let (worker, mut line) = site.started_with(|config| config.network = None).await;
    let far_url = format!("{}/data/far.bin", site.peer.address());
    let job = job(json!({
        "command": ["sh", "-c", "cat /inputs/a/text /inputs/b64 /inputs/json /inputs/key /etc/app.conf; \
            env > /outputs/env; head -c 9 /inputs/far > /outputs/sub-far; mkdir /outputs/d; cat /inputs/far > /outputs/d/far; \
            echo oops >&2; cat"],
        "env": {"FOO": "bar baz", "JOB_ID": "mine"},
        "inputs": {
            "a/text": {"type": "utf8", "value": "text\n"},
            "b64": {"type": "base64", "value": "aGkK"},
            "json": {"type": "json", "value": {"n": 1.5}},
            "key": {"type": "key", "value": "some-key"},
            "far": {"type": "url", "value": far_url},
        },
        "configFiles": {"/etc/app.conf": {"value": "\nconf\n"}},
    }));
    let run = line.grant(job).await;
    let (finished, told) = line.end(run).await;
    assert_eq!(finished.outcome, RunOutcome::Success, "{told}");
    assert_eq!(finished.exit_code, Some(0));
    assert!(finished.image.is_some(), "the image that ran is named");
    assert_eq!(line.logs.text(run, false), "text\nhi\n{\"n\":1.5}by key\nconf\n");
    assert_eq!(line.logs.text(run, true), "oops\n");
    let result = &told["result"];
    assert_eq!((&result["StatusCode"], &result["isTimedOut"]), (&json!(0), &json!(false)));
    assert_eq!(result["outputs"]["sub-far"], json!({"type": "base64", "value": "ZnJvbSBhZmFy"}));
    // Larger than what travels inside a result: a blob, uploaded through a redirect.
    let url = |name: &str| result["outputs"][name]["value"].as_str().unwrap().to_owned();
    let blob = |name: &str| site.peer.blobs.get(&url(name)[url(name).find("/grid/f/").unwrap()..]).unwrap();
    assert_eq!(blob("d/far"), far);
    let env = String::from_utf8(blob("env")).unwrap();
    let prefix = format!("{}/j/{}", site.peer.address(), run.job);
    for line in [
        "FOO=bar baz".to_owned(),
        format!("JOB_ID={}", run.job),
        "JOB_INPUTS=/inputs".to_owned(),
        "JOB_OUTPUTS=/outputs".to_owned(),
        "JOB_CACHE=/job-cache".to_owned(),
        format!("JOB_URL_PREFIX={prefix}"),
        format!("JOB_OUTPUTS_URL_PREFIX={prefix}/outputs/"),
        format!("JOB_INPUTS_URL_PREFIX={prefix}/inputs/"),
    ] {
        assert!(env.lines().any(|found| found == line), "{line} is not in {env}");
    }
    site.assert_clean().await;
    let summary = worker.stop(ShutdownMode::Leave).await;
    assert_eq!((summary.finished, summary.unacknowledged, summary.left_running), (1, 0, 0));
    let jobs = site.data.path().join("remote/j");
    assert_eq!(std::fs::read_dir(jobs).unwrap().count(), 0, "the run's files are gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exit_code_is_a_success_with_two_lines_about_it() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let run = line.grant(job(json!({"command": "sh -c 'echo 42 > /outputs/n; exit 7'"}))).await;
    let (finished, told) = line.end(run).await;
    assert_eq!((finished.outcome, finished.exit_code), (RunOutcome::Success, Some(7)));
    let logs = told["result"]["logs"].as_array().unwrap();
    assert_eq!(logs.len(), 2, "{logs:?}");
    assert!(logs.iter().all(|line| line[0].as_str().unwrap().contains("code 7") && line[2] == json!(true)));
    assert_eq!(told["result"]["outputs"]["n"]["value"], "NDIK");
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_of_both_streams_arrives_in_order() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let run = line.grant(job(json!({"command": "sh -c 'seq 1 200000 & seq 300000 500000 >&2; wait'"}))).await;
    let (finished, told) = line.end(run).await;
    assert_eq!(finished.outcome, RunOutcome::Success);
    let lines = |from: u32, to: u32| (from..=to).map(|n| format!("{n}\n")).collect::<String>();
    // Not assert_eq: a difference would print megabytes.
    assert!(line.logs.text(run, false) == lines(1, 200_000), "standard output is complete");
    assert!(line.logs.text(run, true) == lines(300_000, 500_000), "standard error is complete");
    let kept = told["result"]["logs"].as_array().unwrap();
    assert_eq!(kept.len(), 10_001);
    assert!(kept[0][0].as_str().unwrap().contains("earlier lines"), "{}", kept[0]);
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_come_while_the_job_runs_also_without_a_newline() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    // It ends only when somebody who saw the prompt made the file.
    let run = line
        .grant(job(json!({"command": "sh -c 'printf name?; while [ ! -e /outputs/go ]; do sleep 0.05; done'"})))
        .await;
    line.until(|line| line.logs.text(run, false) == "name?").await;
    let dirs = std::fs::read_dir(site.data.path().join("remote/j").join(run.job.to_string())).unwrap();
    for dir in dirs {
        std::fs::write(dir.unwrap().path().join("outputs/go"), "").unwrap();
    }
    let (finished, _) = line.end(run).await;
    assert_eq!(finished.exit_code, Some(0));
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_job_and_worker_are_on_the_container() {
    let Some(mut site) = Site::new().await else { return };
    let (worker, mut line) = site
        .started_with(|config| {
            config.limits.pids = Some(50);
            config.isolation.no_new_privileges = true;
        })
        .await;
    let definition = json!({
        "command": "sleep 300", "shmSize": "16m", "requirements": {"cpus": 0.5, "memory": "64m"}
    });
    let run = line.grant(job(definition)).await;
    let found = site.engine.container_when(&site.queue, "running").await;
    let host = found.host_config.unwrap();
    assert_eq!(host.nano_cpus, Some(500_000_000));
    assert_eq!((host.memory, host.memory_swap), (Some(64 << 20), Some(64 << 20)));
    assert_eq!(host.pids_limit, Some(50));
    assert_eq!(host.shm_size, Some(16 << 20));
    assert_eq!(host.security_opt, Some(vec!["no-new-privileges".to_owned()]));
    let labels = found.config.unwrap().labels.unwrap();
    assert_eq!(labels["container.mtfm.io/id"], run.job.to_string());
    assert_eq!(labels["container.mtfm.io/run"], "1");
    let summary = worker.stop(ShutdownMode::Kill).await;
    assert_eq!(summary.finished, 0);
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_stopped_at_its_time_limit() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let run = line.grant(job(json!({"command": "sh -c 'echo hi; sleep 300'", "maxDuration": "1s"}))).await;
    let (finished, told) = line.end(run).await;
    assert_eq!(finished.outcome, RunOutcome::TimedOut);
    let result = &told["result"];
    assert_eq!((&result["StatusCode"], &result["isTimedOut"]), (&json!(137), &json!(true)));
    assert_eq!(result["outputs"], json!({}));
    assert_eq!(result["logs"][0][0], "hi\n");
    assert_eq!(told["reason"], "TimedOut");
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_and_special_files_in_outputs_are_left_out_with_a_word() {
    let Some(mut site) = Site::new().await else { return };
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "the worker's own").unwrap();
    let (_worker, mut line) = site.started().await;
    let command = format!(
        "cd /outputs; echo ok > ok; ln -s {} file; ln -s / dir; ln -s loop loop; mkfifo fifo",
        secret.path().display()
    );
    let run = line.grant(job(json!({"command": ["sh", "-c", command]}))).await;
    let (finished, told) = line.end(run).await;
    assert_eq!(finished.outcome, RunOutcome::Success);
    let outputs: Vec<&String> = told["result"]["outputs"].as_object().unwrap().keys().collect();
    assert_eq!(outputs, ["ok"]);
    let notes = line.logs.text(run, true);
    for name in ["file", "dir", "loop", "fifo"] {
        assert!(notes.contains(&format!("{name:?} is not collected")), "{notes}");
    }
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_out_of_memory_is_told() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let command = "head -c 200m /dev/zero | wc -c; x=$(yes | head -c 100m); echo ${#x}";
    let definition = json!({"command": ["sh", "-c", command], "requirements": {"memory": "16m"}});
    let run = line.grant(job(definition)).await;
    let (_, told) = line.end(run).await;
    assert!(line.logs.text(run, true).contains("memory"), "{told}");
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_free_is_claimed_again_after_each_run() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    line.until(|line| line.claims.last().is_some_and(|free| free.cpus_milli == 2000)).await;
    let run = line.grant(job(json!({"command": "true"}))).await;
    line.until(|line| line.claims.last().is_some_and(|free| free.cpus_milli == 1000)).await;
    line.end(run).await;
    line.until(|line| line.claims.last().is_some_and(|free| free.cpus_milli == 2000)).await;
    assert_eq!(line.logs.of(run, LogKind::Run), []);
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_executable_is_the_engines_error_in_its_known_shape() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let run = line.grant(job(json!({"command": ["no-such-program"]}))).await;
    let (finished, told) = line.end(run).await;
    assert_eq!((finished.outcome, finished.exit_code), (RunOutcome::Error, None));
    let error = &told["result"]["error"];
    assert_eq!(error["statusCode"], 400, "{told}");
    assert!(error["json"]["message"].as_str().unwrap().contains("no-such-program"), "{error}");
    assert_eq!(told["result"]["logs"].as_array().map(Vec::len), Some(2));
    assert_eq!(told["result"]["StatusCode"], Value::Null);
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_input_of_a_known_digest_is_fetched_once_and_jobs_cannot_change_it_for_others() {
    let Some(mut site) = Site::new().await else { return };
    let hash = "98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4"; // Of "hi\n".
    let path = format!("/grid/f/{hash}");
    site.peer.blobs.put(&path, b"hi\n");
    let (_worker, mut line) = site.started_with(|config| config.isolation.has_writable_inputs = true).await;
    let input = json!({"type": "url", "value": format!("{}/f/{hash}", site.peer.address())});
    let spoil = json!({"command": "sh -c 'echo spoilt > /inputs/x'", "inputs": {"x": input}});
    let run = line.grant(job(spoil)).await;
    assert_eq!(line.end(run).await.0.exit_code, Some(0));
    site.peer.blobs.put(&path, b"gone from the broker");
    let read = json!({"command": "cat /inputs/x", "inputs": {"x": input}});
    let run = line.grant(job(read)).await;
    assert_eq!(line.end(run).await.0.exit_code, Some(0));
    assert_eq!(line.logs.text(run, false), "hi\n");
    site.assert_clean().await;
}
