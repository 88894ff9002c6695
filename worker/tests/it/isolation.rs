//! How far containers are kept from the host, from each other and from other networks: real containers say what they can do.

mod internet;

use protocol::event::RunOutcome;
use serde_json::{Value, json};
use worker::config::{ConfigError, JobUser};
use worker::{Config, WorkerError};

use crate::support::{Line, Site, job};

/// Runs a script and gives what it said.
async fn said(line: &mut Line, script: &str) -> String {
    let run = line.grant(job(json!({ "command": ["sh", "-c", script] }))).await;
    let (finished, told) = line.end(run).await;
    assert_eq!(finished.outcome, RunOutcome::Success, "{told}");
    line.logs.text(run, false)
}

/// What the kernel says of the first process of a container, and what it can do.
const ABOUT: &str = "grep -E '^(NoNewPrivs|Seccomp|CapBnd):' /proc/self/status | tr -d '\\t'; id -u; id -g; \
    touch /inputs/x 2>/dev/null && echo inputs; mknod /tmp/m c 1 3 2>/dev/null && echo device; \
    touch /job-cache/x && echo cache; touch /outputs/x && echo outputs; chown 1:1 /outputs/x 2>/dev/null && echo chown";

/// As the kernel counts: the engine's default capabilities, and these without MKNOD (27) and NET_RAW (13).
const ALL_CAPABILITIES: u64 = 0xa804_25fb;
const CAPABILITIES: u64 = ALL_CAPABILITIES & !(1 << 27) & !(1 << 13);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_has_no_more_rights_than_jobs_need() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let said = said(&mut line, ABOUT).await;
    let expected = format!("CapBnd:{CAPABILITIES:016x}\nNoNewPrivs:1\nSeccomp:2\n0\n0\ncache\noutputs\nchown\n");
    assert_eq!(said, expected);
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_it_can_be_given_back() {
    let Some(mut site) = Site::new().await else { return };
    let open = |config: &mut Config| {
        config.isolation.no_new_privileges = false;
        config.isolation.drop_capabilities = "none".parse().unwrap();
        config.isolation.has_writable_inputs = true;
    };
    let (_worker, mut line) = site.started_with(open).await;
    let said = said(&mut line, ABOUT).await;
    let expected = format!(
        "CapBnd:{ALL_CAPABILITIES:016x}\nNoNewPrivs:0\nSeccomp:2\n0\n0\ninputs\ndevice\ncache\noutputs\nchown\n"
    );
    assert_eq!(said, expected);
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_can_run_as_somebody_who_is_not_root_and_still_do_their_work() {
    let Some(mut site) = Site::new().await else { return };
    let fixed = |config: &mut Config| config.isolation.user = JobUser::Fixed { user: 1234, group: 5678 };
    let (_worker, mut line) = site.started_with(fixed).await;
    let told = said(&mut line, &format!("{ABOUT}; cat /job-cache/x | wc -c; mkdir -m 700 /outputs/own")).await;
    assert!(told.ends_with("\n1234\n5678\ncache\noutputs\n0\n"), "{told}");
    // The next finds the volume as it was left.
    assert_eq!(said(&mut line, "ls /job-cache; rm /job-cache/x; ls /job-cache").await, "x\n");
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_can_be_mounted_among_the_inputs() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let definition = json!({
        "command": ["cat", "/inputs/a", "/inputs/deep/app.toml"],
        "inputs": { "a": { "type": "utf8", "value": "a\n" } },
        "configFiles": { "/inputs/deep/app.toml": { "type": "utf8", "value": "b\n" } },
    });
    let run = line.grant(job(definition)).await;
    line.end(run).await;
    assert_eq!(line.logs.text(run, false), "a\nb\n");
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_the_engine_has_not_is_refused_at_the_start() {
    let Some(mut site) = Site::new().await else { return };
    let running = site.start_with(|config| config.isolation.runtime = Some("no-such-runtime".to_owned()));
    let refused = running.ended().await;
    let Err(WorkerError::Config(ConfigError::Runtime { known, .. })) = refused else { panic!("{refused:?}") };
    assert!(known.contains(&"runc".to_owned()), "{known:?}");
    let (_worker, mut line) =
        site.started_with(|config| config.isolation.runtime = Some("io.containerd.runc.v2".to_owned())).await;
    assert_eq!(said(&mut line, "echo here").await, "here\n");
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_containers_together_can_be_held_by_a_control_group() {
    let Some(mut site) = Site::new().await else { return };
    let group = format!("/gridsocket-test-{}", uuid::Uuid::new_v4());
    let parent = group.clone();
    let (_worker, mut line) = site.started_with(move |config| config.isolation.cgroup_parent = Some(parent)).await;
    let run = line.grant(job(json!({ "command": "sleep 300" }))).await;
    let found = site.engine.container_when(&site.queue, "running").await;
    assert_eq!(found.host_config.unwrap().cgroup_parent, Some(group.clone()));
    let about = std::fs::read_to_string(format!("/proc/{}/cgroup", found.state.unwrap().pid.unwrap())).unwrap();
    assert!(about.lines().any(|line| line.contains(&group)), "{about}");
    line.stop(run, protocol::native::StopReason::Deleted).await;
    site.assert_clean().await;
    // The Engine leaves it; of older kernels' kinds there are several.
    let all = std::path::Path::new("/sys/fs/cgroup");
    for kind in std::fs::read_dir(all).unwrap() {
        let _ = std::fs::remove_dir(kind.unwrap().path().join(group.trim_start_matches('/')));
    }
    let _ = std::fs::remove_dir(all.join(group.trim_start_matches('/')));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queues_cache_that_has_grown_too_large_is_left_for_a_new_one() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started_with(|config| config.limits.cache_bytes = Some(1 << 20)).await;
    // The running job keeps what it has; those that start later get a new one once the size was looked at.
    let command = "head -c 3000000 /dev/zero > /job-cache/big; echo up; while [ ! -e /outputs/go ]; do sleep 0.05; done; ls /job-cache";
    let first = line.grant(job(json!({ "command": ["sh", "-c", command] }))).await;
    line.until(|line| line.logs.text(first, false) == "up\n").await;
    let mut number = 0;
    loop {
        number += 1;
        assert!(number < 100, "it is never bounded");
        if said(&mut line, &format!("ls /job-cache; : {number}")).await.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    assert_eq!(site.engine.caches(&site.queue).await.len(), 2, "the first is in use");
    let dir = std::fs::read_dir(site.data.path().join("remote/j").join(first.job.to_string())).unwrap().next().unwrap();
    std::fs::write(dir.unwrap().path().join("outputs/go"), "").unwrap();
    line.end(first).await;
    assert_eq!(line.logs.text(first, false), "up\nbig\n");
    site.engine.until_containers(&site.queue, 0).await;
    while site.engine.caches(&site.queue).await.len() > 1 {
        number += 1;
        assert!(number < 200, "the old one is never removed");
        said(&mut line, &format!(": {number}")).await;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_says_that_a_job_ran_out_of_memory_and_what_it_was_allowed() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let definition = json!({ "command": "tail /dev/zero", "requirements": { "memory": "16m" } });
    let run = line.grant(job(definition)).await;
    let (finished, told) = line.end(run).await;
    assert_eq!((finished.outcome, finished.exit_code), (RunOutcome::Success, Some(137)), "{told}");
    let result: &Value = &told["result"];
    assert!(
        result["error"].as_str().is_some_and(|text| text.contains("out of memory") && text.contains("16 MiB")),
        "{told}"
    );
    assert!(result["logs"].to_string().contains("16 MiB"), "{told}");
    site.assert_clean().await;
}
