//! What the page computes is what the broker computes: ids and folds, frozen natively, made again in WebAssembly under Node.
#![cfg(target_arch = "wasm32")]

use client_wasm::{QueueFold, job_id, queue_key};
use serde_json::Value;
use wasm_bindgen_test::wasm_bindgen_test;

/// Numbers that JavaScript writes in its own way, and keys out of order.
const DEFINITION: &str = r#"{"image":"alpine","command":"true","inputs":{"p.json":{"type":"json","value":{"n":1e21,"z":0.1,"a":[1,null,true]}}}}"#;
const DEFINITION_ID: &str = "aacc59be00bab523ca09c16bdd30d80a23d4520d4d9a3bfdc1bb13900c50dad8";

#[wasm_bindgen_test]
fn job_ids_are_the_same_in_webassembly() {
    assert_eq!(job_id(DEFINITION).ok().as_deref(), Some(DEFINITION_ID));
    assert_eq!(
        job_id(r#"{"command":"true","image":"alpine","debug":true}"#).ok().as_deref(),
        Some("b2945c2a30797a2443a06e588e13e544a21ca513bdc6e2ab2b002f81a1774d6e")
    );
    assert!(job_id("{").is_err());
}

#[wasm_bindgen_test]
fn a_fold_over_frozen_records_gives_the_frozen_state_hash() {
    let fixture = fixture();
    assert_eq!(queue_key(text(&fixture["queue"])).ok().as_deref(), fixture["key"].as_str());
    let mut fold = fold_of(&fixture);
    for record in records(&fixture) {
        assert!(fold.apply_record(&record).is_ok());
    }
    assert_eq!(Some(fold.seq()), fixture["seq"].as_f64());
    assert_eq!(fold.head_hash(), text(&fixture["head"]));
    assert_eq!(fold.state_hash(), text(&fixture["state_hash"]));
}

#[wasm_bindgen_test]
fn a_fold_that_starts_at_a_snapshot_ends_at_the_same_state_hash() {
    let fixture = fixture();
    let snapshot = &fixture["snapshot"];
    let mut fold = fold_of(&fixture);
    assert!(fold.load_snapshot(&unhex(text(&snapshot["state"]))).is_ok());
    assert_eq!(fold.state_hash(), text(&snapshot["state_hash"]));
    assert_eq!(Some(fold.seq()), snapshot["seq"].as_f64());
    let folded = usize::try_from(snapshot["seq"].as_u64().unwrap()).unwrap();
    for record in records(&fixture).skip(folded) {
        assert!(fold.apply_record(&record).is_ok());
    }
    assert_eq!(fold.state_hash(), text(&fixture["state_hash"]));
}

#[wasm_bindgen_test]
fn a_record_out_of_its_place_is_refused_and_changes_nothing() {
    let fixture = fixture();
    let mut fold = fold_of(&fixture);
    let before = fold.state_hash();
    for wrong in [records(&fixture).nth(1), records(&fixture).next().map(|bytes| bytes[1..].to_vec())] {
        assert!(fold.apply_record(&wrong.unwrap()).is_err());
    }
    assert_eq!(fold.state_hash(), before);
    // A record does not name its queue; the chain that it makes does.
    let first = records(&fixture).next().unwrap();
    let mut other = QueueFold::new("another queue").ok().unwrap();
    assert!(fold.apply_record(&first).is_ok() && other.apply_record(&first).is_ok());
    assert_ne!(fold.head_hash(), other.head_hash());
    assert!(other.load_snapshot(&unhex(text(&fixture["snapshot"]["state"]))).is_err());
}

/// Made by `examples/freeze_fold.rs`.
fn fixture() -> Value {
    serde_json::from_str(include_str!("fixtures/fold.json")).unwrap()
}

fn fold_of(fixture: &Value) -> QueueFold {
    QueueFold::new(text(&fixture["queue"])).ok().unwrap()
}

fn records(fixture: &Value) -> impl Iterator<Item = Vec<u8>> {
    fixture["records"].as_array().unwrap().iter().map(|record| unhex(text(record)))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}
