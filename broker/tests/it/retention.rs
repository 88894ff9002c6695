//! What is kept how long. Time is what the sweep is told: everything here is of today, and the sweeps are of later days.

mod blobs;
mod histories;
mod jobs;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use broker::clock;
use broker::retention::Swept;
use protocol::id::{JobId, QueueKey, UnixMillis};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::{TestBroker, until};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// How long jobs and blobs are kept.
const KEPT_MS: u64 = 28 * DAY_MS;
/// More than a segment takes: a body of its own file.
const LARGE: usize = 100_000;

/// A broker whose jobs leave their queue as soon as they have ended.
async fn broker() -> TestBroker {
    TestBroker::start_with(|config| config.limits.set("success-stays=1ms,failure-stays=1ms").unwrap()).await
}

/// A moment that lies after everything before the call, and before everything after it.
async fn moment() -> UnixMillis {
    let now = clock::now();
    until("the clock to go on", || async { clock::now() > now.plus(1) }).await;
    now.plus(1)
}

/// Sweeps as of the time at which what happened before `moment` has been kept for long enough.
async fn sweep_after(broker: &TestBroker, moment: UnixMillis) -> Swept {
    broker.handle.retention().sweep(moment.plus(KEPT_MS)).await.unwrap()
}

/// Waits until a job has left its queue.
async fn left(broker: &TestBroker, queue: &str, job: JobId) {
    until("the job to leave", || async {
        let (_, answer) = broker.get_json(&format!("/q/{queue}")).await;
        !answer["data"].as_object().unwrap().contains_key(&job.to_string())
    })
    .await;
}

/// Submits a job, runs it, and waits until it has left.
async fn run_and_leave(broker: &TestBroker, queue: &str, definition: Value, result: Value) -> JobId {
    let job = broker.submit(queue, definition).await;
    assert_eq!(broker.run_next(queue, result).await.job, job);
    left(broker, queue, job).await;
    job
}

async fn data(broker: &TestBroker, path: String) -> Value {
    broker.get_json(&path).await.1["data"].clone()
}

async fn definition(broker: &TestBroker, queue: &str, job: JobId) -> Value {
    data(broker, format!("/q/{queue}/j/{job}/definition.json")).await
}

async fn result(broker: &TestBroker, queue: &str, job: JobId) -> Value {
    data(broker, format!("/q/{queue}/j/{job}/result.json")).await
}

fn large_bodies(broker: &TestBroker, queue: &str) -> Vec<PathBuf> {
    let folder = broker.path().join("journal/bodies").join(QueueKey::of(&queue.parse().unwrap()).to_string());
    std::fs::read_dir(folder).map_or(Vec::new(), |entries| entries.map(|entry| entry.unwrap().path()).collect())
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn upload(broker: &TestBroker, bytes: &[u8]) -> String {
    let key = sha256(bytes);
    assert_eq!(broker.put(&format!("/f/{key}"), bytes.to_vec()).await.status(), 200);
    key
}

/// Whether a blob is there; asking so is no use of it.
async fn is_stored(broker: &TestBroker, key: &str) -> bool {
    broker.get(&format!("/f/{key}")).await.status() == 200
}

/// Makes a stored blob older.
fn backdate(broker: &TestBroker, key: &str, days: u64) {
    let file = std::fs::File::options().write(true).open(broker.path().join("blobs/f").join(key)).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::from_millis(clock::now().0 - days * DAY_MS);
    file.set_modified(then).unwrap();
}

/// Forgets the event store, so that the next start makes it again from the segments.
async fn restart_without_store(broker: TestBroker) -> TestBroker {
    broker
        .restart_after(|path| {
            for entry in std::fs::read_dir(path.join("journal")).unwrap() {
                let path = entry.unwrap().path();
                if path.file_name().unwrap().to_str().unwrap().starts_with("events.") {
                    std::fs::remove_dir_all(path).unwrap();
                }
            }
        })
        .await
}

fn echo(text: &str) -> Value {
    json!({ "image": "busybox", "command": format!("echo {text}") })
}
