//! Definitions and containers that mean harm: each run ends, says what was wrong, and the worker goes on.

use protocol::event::RunOutcome;
use serde_json::{Value, json};

use crate::support::{Line, Site, job, with_id};

async fn still_works(site: &Site, line: &mut Line) {
    let run = line.grant(job(json!({ "command": "echo still here" }))).await;
    assert_eq!(line.end(run).await.0.exit_code, Some(0));
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_that_cannot_be_run_end_as_errors_that_say_why() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let long = "x".repeat(300);
    let text = json!({ "type": "utf8", "value": "x" });
    for fields in [
        json!({ "env": { "": "x" } }),
        json!({ "env": { "A": "x\u{0}y" } }),
        json!({ "workdir": "not/absolute\u{0}" }),
        json!({ "workdir": "/etc/passwd" }),
        json!({ "entrypoint": ["sh", 1] }),
        json!({ "command": [null] }),
        json!({ "command": { "sh": "-c" } }),
        json!({ "command": ["a\u{0}b"] }),
        json!({ "command": "true", "requirements": { "memory": "1" } }),
        json!({ "inputs": { "a/../b": text } }),
        json!({ "inputs": { "..": text } }),
        json!({ "inputs": { "": text } }),
        json!({ "inputs": { "a\u{0}b": text } }),
        json!({ "inputs": { "a": text, "a/b": text } }),
        json!({ "inputs": { long.as_str(): text } }),
        json!({ "inputs": { "a": { "type": "base64", "value": "###" } } }),
        json!({ "inputs": { "a": { "type": "url", "value": "file:///etc/passwd" } } }),
        json!({ "inputs": { "a": { "type": "no such", "value": "" } } }),
        json!({ "inputs": ["a"] }),
        json!({ "configFiles": { "/a:b": text } }),
        json!({ "configFiles": { "/etc/../etc/passwd": text } }),
    ] {
        let run = line.grant(job(fields.clone())).await;
        let (finished, told) = line.end(run).await;
        assert_eq!(finished.outcome, RunOutcome::Error, "{fields}: {told}");
        let result = &told["result"];
        assert!(!result["error"].is_null() && result["logs"].as_array().is_some_and(|logs| !logs.is_empty()), "{told}");
    }
    for image in ["UPPER Case!", "-v", "a:b:c", "../../etc", "x\u{0}", " "] {
        let run = line.grant(with_id(&json!({ "image": image }))).await;
        let (finished, told) = line.end(run).await;
        assert_eq!(finished.outcome, RunOutcome::Error, "{image:?}: {told}");
    }
    still_works(&site, &mut line).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_definition_says_oddly_but_can_be_run_is_run() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    for fields in [
        json!({ "env": { "A=B": "c", "JOB_ID=mine": "x", "PATH with space": "1" } }),
        json!({ "workdir": "/made/by/the/engine" }),
        json!({ "requirements": { "cpus": -1, "memory": "lots", "gpus": "none" } }),
        json!({ "shmSize": -5, "maxDuration": "soon", "tags": 7 }),
        json!({ "configFiles": { "/etc/made.toml": { "value": "x" } } }),
    ] {
        let mut fields = fields;
        fields["command"] = json!(["sh", "-c", "test ${#JOB_ID} = 64"]);
        let run = line.grant(job(fields.clone())).await;
        let (finished, told) = line.end(run).await;
        assert_eq!((finished.outcome, finished.exit_code), (RunOutcome::Success, Some(0)), "{fields}: {told}");
    }
    still_works(&site, &mut line).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_asks_for_more_than_there_is_is_handed_back() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    for requirements in [json!({ "cpus": 1e308 }), json!({ "gpus": 4_000_000_000_u32 })] {
        let run = line.grant(job(json!({ "command": "true", "requirements": requirements }))).await;
        line.until(|line| line.returned.iter().any(|(returned, _)| *returned == run)).await;
    }
    still_works(&site, &mut line).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_names_come_back_as_they_are_and_lead_nowhere() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let script = r#"
        cd /outputs
        for name in "a\"b" "-rf" "..x" "c\\d" "line
break" "é" "<img src=x>"; do echo 1 > "./$name"; done
        printf 1 > "$(printf 'not\377utf8')"
        ln -s /etc/passwd link; ln -s .. up; mkfifo fifo; mkdir -p deep/er; ln fifo deep/fifo
        chmod 000 "./-rf" deep
    "#;
    let run = line.grant(job(json!({ "command": ["sh", "-c", script] }))).await;
    let (finished, told) = line.end(run).await;
    assert_eq!((finished.outcome, finished.exit_code), (RunOutcome::Success, Some(0)), "{told}");
    let mut names: Vec<&str> = told["result"]["outputs"].as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["-rf", "..x", "<img src=x>", "a\"b", "c\\d", "line\nbreak", "é"]);
    let log = told["result"]["logs"].to_string();
    for word in ["link", "fifo", "not UTF-8"] {
        assert!(log.contains(word), "{word}: {log}");
    }
    still_works(&site, &mut line).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_output_files_than_are_taken_are_an_error_that_says_the_limit() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let script = "cd /outputs && seq 1 10001 | xargs touch";
    let run = line.grant(job(json!({ "command": ["sh", "-c", script] }))).await;
    let (finished, told) = line.end(run).await;
    assert_eq!((finished.outcome, finished.exit_code), (RunOutcome::Error, Some(0)), "{}", told["result"]["error"]);
    assert!(told["result"]["error"].as_str().is_some_and(|text| text.contains("10000")), "{told}");
    still_works(&site, &mut line).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_output_arrives_whole_and_the_result_keeps_a_part_that_fits() {
    const LINES: usize = 1_000_000;
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let script = format!("yes 0123456789012345678 | head -n {LINES}");
    let run = line.grant(job(json!({ "command": ["sh", "-c", script] }))).await;
    let (finished, told) = line.end(run).await;
    assert_eq!(finished.exit_code, Some(0));
    let text = line.logs.text(run, false);
    assert_eq!(text.len(), LINES * 20);
    assert!(finished.finished.as_str().len() < 14 * 1024 * 1024, "it fits into a frame");
    let kept: &Vec<Value> = told["result"]["logs"].as_array().unwrap();
    assert!(!kept.is_empty() && kept.len() < LINES);
    still_works(&site, &mut line).await;
}
