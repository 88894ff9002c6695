//! Blobs: which go, and that none goes that a job needs.
//!
//! A broker notes what was used since it was started and leaves that alone, so the brokers here are started again before they
//! sweep, where what was used then is not the point.

use broker::config::{Access, BlobsUrl};
use serde_json::{Value, json};

use super::{
    KEPT_MS, backdate, broker, definition, is_stored, moment, restart_without_store, run_and_leave, sweep_after, upload,
};
use crate::s3::S3Server;
use crate::support::TestBroker;

/// Definitions that name the blob of a key, each in its way.
fn naming(broker: &TestBroker, key: &str) -> Vec<(&'static str, Value)> {
    let address = broker.url(&format!("/f/{key}"));
    vec![
        ("an input's address", json!({ "image": "a", "inputs": { "x": { "type": "url", "value": address } } })),
        ("an input's key", json!({ "image": "a", "inputs": { "x": { "type": "key", "value": key } } })),
        (
            "an input's hash",
            json!({ "image": "a", "inputs": { "x": { "type": "url", "value": "http://else.example/", "hash": key } } }),
        ),
        ("a configuration file", json!({ "image": "a", "configFiles": { "/x": { "type": "url", "value": address } } })),
        ("a build's context", json!({ "build": { "context": address } })),
        ("a command", json!({ "image": "a", "command": format!("curl -o x {address}") })),
    ]
}

#[tokio::test]
async fn a_blob_that_a_waiting_job_names_in_any_way_stays() {
    let mut broker = broker().await;
    let mut keys = Vec::new();
    for number in 0..6 {
        let key = upload(&broker, format!("blob {number}").as_bytes()).await;
        let (how, definition) = naming(&broker, &key).swap_remove(number);
        broker.submit(&format!("q{number}"), definition).await;
        keys.push((how, key));
    }
    let stray = upload(&broker, b"nobody names this").await;
    let later = moment().await;
    broker = broker.restart().await;
    assert_eq!(sweep_after(&broker, later).await.blobs, 1);
    assert!(!is_stored(&broker, &stray).await);
    for (how, key) in keys {
        assert!(is_stored(&broker, &key).await, "{how}");
    }
}

#[tokio::test]
async fn a_blob_stays_as_long_as_the_job_that_named_it_or_put_it_out_and_no_longer() {
    let broker = broker().await;
    let (input, output) = (upload(&broker, b"in").await, upload(&broker, b"out").await);
    let names = json!({ "image": "a", "inputs": { "x": { "type": "key", "value": input } } });
    let address = broker.url(&format!("/f/{output}"));
    let outputs = json!({ "StatusCode": 0, "outputs": { "y": { "type": "url", "value": address, "hash": output } } });
    let uploaded = moment().await;
    let job = run_and_leave(&broker, "q", names.clone(), outputs).await;
    let left = moment().await;
    let broker = broker.restart().await;
    assert_eq!(sweep_after(&broker, uploaded).await.blobs, 0, "the job is kept for a moment longer");
    assert_eq!(definition(&broker, "q", job).await, names);
    assert_eq!(broker.get(&format!("/q/q/j/{job}/outputs/y")).await.status(), 302);
    let broker = restart_without_store(broker).await;
    let swept = sweep_after(&broker, left).await;
    assert_eq!((swept.jobs, swept.blobs), (1, 2));
    assert!(!is_stored(&broker, &input).await && !is_stored(&broker, &output).await);
    let broker = restart_without_store(broker).await;
    assert_eq!(sweep_after(&broker, left).await.blobs, 0);
}

#[tokio::test]
async fn what_its_uploader_was_just_told_is_there_is_not_swept() {
    let broker = broker().await;
    let keys = [
        upload(&broker, b"asked for").await,
        upload(&broker, b"uploaded again").await,
        upload(&broker, b"left alone").await,
    ];
    keys.iter().for_each(|key| backdate(&broker, key, 60));
    let broker = broker.restart().await;
    let [asked, again, alone] = &keys;
    assert_eq!(broker.get(&format!("/f/{asked}/exists")).await.status(), 200);
    upload(&broker, b"uploaded again").await;
    assert_eq!(broker.handle.retention().sweep_blobs(moment().await).await.unwrap().blobs, 1);
    assert!(!is_stored(&broker, alone).await);
    for key in [asked, again] {
        assert!(is_stored(&broker, key).await);
    }
    // Asked for and uploaded again count as stored anew, also after a restart.
    let broker = broker.restart().await;
    let today = moment().await;
    assert_eq!(broker.handle.retention().sweep_blobs(today).await.unwrap().blobs, 0);
    assert_eq!(broker.handle.retention().sweep_blobs(today.plus(KEPT_MS)).await.unwrap().blobs, 2);
    assert!(std::fs::read_dir(broker.path().join("blobs/used")).unwrap().next().is_none(), "their marks go with them");
}

#[tokio::test]
async fn a_blob_with_the_longest_key_that_was_asked_for_counts_as_stored_anew() {
    let broker = broker().await;
    let key = "k".repeat(255);
    assert_eq!(broker.put(&format!("/f/{key}"), b"bytes".to_vec()).await.status(), 200);
    backdate(&broker, &key, 60);
    assert_eq!(broker.get(&format!("/f/{key}/exists")).await.status(), 200);
    let broker = broker.restart().await;
    let today = moment().await;
    assert_eq!(broker.handle.retention().sweep_blobs(today).await.unwrap().blobs, 0);
    assert_eq!(broker.handle.retention().sweep_blobs(today.plus(KEPT_MS)).await.unwrap().blobs, 1);
    assert!(std::fs::read_dir(broker.path().join("blobs/used")).unwrap().next().is_none(), "its mark goes with it");
}

#[tokio::test]
async fn a_blob_of_this_morning_that_is_asked_for_now_counts_from_now() {
    const HOUR_MS: u64 = 60 * 60 * 1000;
    let broker = broker().await;
    let key = upload(&broker, b"of this morning").await;
    let file = std::fs::File::options().write(true).open(broker.path().join("blobs/f").join(&key)).unwrap();
    let stored = broker::clock::now().0 - 6 * HOUR_MS;
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_millis(stored)).unwrap();
    assert_eq!(broker.get(&format!("/f/{key}/exists")).await.status(), 200);
    let broker = broker.restart().await;
    let later = moment().await.plus(KEPT_MS);
    let an_hour_before = protocol::id::UnixMillis(later.0 - HOUR_MS);
    assert_eq!(broker.handle.retention().sweep_blobs(an_hour_before).await.unwrap().blobs, 0);
    assert_eq!(broker.handle.retention().sweep_blobs(later).await.unwrap().blobs, 1);
}

/// As for a job that came to a queue which the sweep had passed: only its submission was seen.
#[tokio::test]
async fn what_a_submission_named_just_now_is_not_swept_though_no_job_is_found_that_names_it() {
    let broker = broker().await;
    let (by_key, by_address) = (upload(&broker, b"by key").await, upload(&broker, b"by address").await);
    let alone = upload(&broker, b"left alone").await;
    let broker = broker.restart().await;
    let address = broker.url(&format!("/f/{by_address}"));
    let inputs = json!({ "x": { "type": "key", "value": by_key }, "y": { "type": "url", "value": address } });
    run_and_leave(&broker, "q", json!({ "image": "a", "inputs": inputs }), json!({ "StatusCode": 0 })).await;
    let later = moment().await;
    let swept = sweep_after(&broker, later).await;
    assert_eq!((swept.jobs, swept.blobs), (1, 1));
    assert!(!is_stored(&broker, &alone).await);
    assert!(is_stored(&broker, &by_key).await && is_stored(&broker, &by_address).await);
    let broker = broker.restart().await;
    assert_eq!(sweep_after(&broker, later).await.blobs, 2);
}

#[tokio::test]
async fn blobs_in_a_bucket_are_swept_as_those_in_a_folder() {
    let server = S3Server::lax().await;
    let mut url: BlobsUrl = server.url("", "&redirect=false").parse().unwrap();
    if let BlobsUrl::Bucket(bucket) = &mut url {
        bucket.access = Access::read(S3Server::variable);
    }
    let broker = TestBroker::start_with(|config| config.blobs = url).await;
    let (named, alone) = (upload(&broker, b"named").await, upload(&broker, b"left alone").await);
    let asked = upload(&broker, b"asked for").await;
    broker.submit("q", json!({ "image": "a", "inputs": { "x": { "type": "key", "value": named } } })).await;
    for key in [&named, &alone, &asked] {
        let file = std::fs::File::options().write(true).open(server.file(&format!("f/{key}"))).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000)).unwrap();
    }
    let broker = broker.restart().await;
    assert_eq!(broker.get(&format!("/f/{asked}/exists")).await.status(), 200);
    let broker = broker.restart().await;
    let now = moment().await;
    assert_eq!(broker.handle.retention().sweep_blobs(now).await.unwrap().blobs, 1);
    assert!(!is_stored(&broker, &alone).await && is_stored(&broker, &named).await && is_stored(&broker, &asked).await);
    assert_eq!(broker.handle.retention().sweep_blobs(now.plus(KEPT_MS)).await.unwrap().blobs, 1);
    assert_eq!((server.objects("f/").len(), server.objects("used/").len()), (1, 0));
}

#[tokio::test]
async fn blobs_stay_while_a_queue_cannot_be_read() {
    let broker = broker().await;
    let key = upload(&broker, b"named").await;
    broker.submit("q", json!({ "image": "a", "inputs": { "x": { "type": "key", "value": key } } })).await;
    broker.submit("other", json!({ "image": "b" })).await;
    let later = moment().await;
    let broker = broker
        .restart_after(|path| {
            // Nothing of the event store, and one flipped bit in the first record's group.
            let segment = path.join("journal/segments/00000001.seg");
            let segment = std::fs::read_dir(path.join("journal/segments"))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .min()
                .unwrap_or(segment);
            let mut bytes = std::fs::read(&segment).unwrap();
            let at = bytes.windows(9).position(|text| text == b"JobQueued").unwrap();
            bytes[at] ^= 1;
            std::fs::write(&segment, bytes).unwrap();
            for entry in std::fs::read_dir(path.join("journal")).unwrap() {
                let path = entry.unwrap().path();
                if path.file_name().unwrap().to_str().unwrap().starts_with("events.") {
                    std::fs::remove_dir_all(path).unwrap();
                }
            }
        })
        .await;
    assert_eq!(broker.get("/q/q").await.status(), 503, "it is quarantined");
    let told = broker.handle.retention().sweep_blobs(later.plus(KEPT_MS)).await.unwrap_err();
    assert!(told.to_string().contains("quarantined"), "{told}");
    assert!(is_stored(&broker, &key).await);
}

#[tokio::test]
async fn blobs_stay_while_a_definition_is_missing_that_may_name_them() {
    let broker = broker().await;
    let key = upload(&broker, b"named").await;
    let inputs = json!({ "x": { "type": "key", "value": key } });
    broker.submit("q", json!({ "image": "a", "command": "x".repeat(super::LARGE), "inputs": inputs })).await;
    let later = moment().await.plus(KEPT_MS);
    let broker = broker.restart().await;
    let [file] = <[_; 1]>::try_from(super::large_bodies(&broker, "q")).unwrap();
    let aside = file.with_extension("aside");
    std::fs::rename(&file, &aside).unwrap();
    let told = broker.handle.retention().sweep_blobs(later).await.unwrap_err();
    assert!(told.to_string().contains("missing"), "{told}");
    assert!(is_stored(&broker, &key).await);
    std::fs::rename(&aside, &file).unwrap();
    assert_eq!(broker.handle.retention().sweep_blobs(later).await.unwrap().blobs, 0);
}

/// Clients ask whether a blob is there, upload it when it is not, and submit a job that names it, while one sweep follows the
/// other. Whatever the order, a job that was taken finds its blob.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_submitted_while_blobs_are_swept_finds_its_blob() {
    const BLOBS: usize = 40;
    let broker = broker().await;
    for number in 0..BLOBS {
        let key = upload(&broker, format!("blob {number}").as_bytes()).await;
        backdate(&broker, &key, 60);
    }
    let broker = broker.restart().await;
    let retention = broker.handle.retention().clone();
    let sweeps = tokio::spawn(async move {
        let mut swept = 0;
        for _ in 0..3 {
            swept += retention.sweep_blobs(broker::clock::now()).await.unwrap().blobs;
        }
        swept
    });
    let mut named = Vec::new();
    for number in (0..BLOBS).rev().step_by(2) {
        let bytes = format!("blob {number}").into_bytes();
        let key = super::sha256(&bytes);
        if broker.get(&format!("/f/{key}/exists")).await.status() == 404 {
            upload(&broker, &bytes).await;
        }
        let definition = json!({ "image": "a", "inputs": { "x": { "type": "key", "value": key } } });
        broker.submit(&format!("q{}", number % 3), definition).await;
        named.push(key);
    }
    let swept = sweeps.await.unwrap();
    assert!(swept >= BLOBS as u64 / 2, "{swept}");
    for key in named {
        assert!(is_stored(&broker, &key).await);
    }
}
