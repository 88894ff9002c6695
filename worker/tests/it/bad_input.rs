//! Jobs that cannot be run: each ends as an error that says why, and the worker goes on.

use protocol::event::RunOutcome;
use protocol::id::JobId;
use serde_json::{Value, json};

use crate::support::{Site, engine::IMAGE, with_id};

/// Runs the definition and gives what the worker said of it; another job must still run afterwards.
async fn refused(site: &mut Site, definition: &Value) -> Value {
    let (_worker, mut line) = site.started().await;
    let run = line.grant(with_id(definition)).await;
    let (finished, told) = line.end(run).await;
    assert_eq!(finished.outcome, RunOutcome::Error, "{told}");
    let next = line.grant(with_id(&json!({"image": IMAGE, "command": "echo still here"}))).await;
    assert_eq!(line.end(next).await.0.exit_code, Some(0));
    site.assert_clean().await;
    told["result"].clone()
}

async fn refused_with(definition: Value, words: &[&str]) {
    let Some(mut site) = Site::new().await else { return };
    let result = refused(&mut site, &definition).await;
    let text = result.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text} says all of {words:?}");
    assert!(!result["logs"].as_array().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_image_is_an_error_with_the_cause() {
    refused_with(
        json!({"image": "registry.invalid/no/such:1"}),
        &["\"error\":\"Error\"", "cannot pull the image", "registry.invalid"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_image_at_all_is_an_error() {
    refused_with(json!({"command": "true"}), &["names no image"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_without_anything_to_build_is_an_error() {
    refused_with(json!({"build": {"target": "x"}}), &["\"error\":\"Error\"", "say what to build"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_cannot_be_parsed_is_an_error() {
    refused_with(json!({"image": IMAGE, "command": "echo ${"}), &["bad substitution"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_leads_elsewhere_is_an_error() {
    let inputs = json!({"../../../tmp/evil": {"type": "utf8", "value": "x"}});
    refused_with(json!({"image": IMAGE, "inputs": inputs}), &["`..`"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_do_not_match_their_digest_are_an_error() {
    let Some(mut site) = Site::new().await else { return };
    site.peer.blobs.put("/grid/x", b"other bytes");
    let input = json!({"type": "url", "value": format!("{}/x", site.peer.address()), "hash": "ab".repeat(32)});
    let result = refused(&mut site, &json!({"image": IMAGE, "inputs": {"x": input}})).await;
    assert!(result["error"].as_str().unwrap().contains("SHA-256"), "{result}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_input_that_is_not_there_is_an_error() {
    let Some(mut site) = Site::new().await else { return };
    let input = json!({"type": "url", "value": format!("{}/nothing", site.peer.address())});
    let result = refused(&mut site, &json!({"image": IMAGE, "inputs": {"x": input}})).await;
    assert!(result["error"].as_str().unwrap().contains("404"), "{result}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_that_is_not_the_jobs_own_is_an_error() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let run = line.grant((JobId::from_bytes([9; 32]), json!({"image": IMAGE}).to_string())).await;
    let (finished, told) = line.end(run).await;
    assert_eq!(finished.outcome, RunOutcome::Error);
    assert!(told["result"]["error"].as_str().unwrap().contains("id"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_that_never_come_end_at_the_guard() {
    let Some(mut site) = Site::new().await else { return };
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let input = json!({"type": "url", "value": format!("http://{}/x", silent.local_addr().unwrap())});
    let (_worker, mut line) = site.started_with(|config| config.prepare_ms_max = 200).await;
    let run = line.grant(with_id(&json!({"image": IMAGE, "inputs": {"x": input}}))).await;
    let (finished, told) = line.end(run).await;
    assert_eq!(finished.outcome, RunOutcome::Error);
    assert!(told["result"]["error"].as_str().unwrap().contains("were not there"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_that_the_engine_cannot_give_is_its_error_and_the_gpu_is_free_again() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started_with(|config| config.gpus = "1".parse().unwrap()).await;
    for command in ["true", "echo"] {
        let definition = json!({"image": IMAGE, "command": command, "requirements": {"gpus": 1}});
        let run = line.grant(with_id(&definition)).await;
        let (finished, told) = line.end(run).await;
        if finished.outcome == RunOutcome::Success {
            println!("this Engine has a GPU driver");
        } else {
            assert!(told["result"]["error"]["json"]["message"].as_str().unwrap().contains("device driver"), "{told}");
        }
        // Only when the container is gone.
        line.until(|line| line.claims.last().is_some_and(|free| free.gpus == 1)).await;
        line.claims.clear();
    }
    site.assert_clean().await;
}
