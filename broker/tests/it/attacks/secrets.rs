//! What is told to whom: names of queues, folders of the machine, whether something exists.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::peers::{Native, Stranger, all_below, ask, fenced, send};
use crate::support::{TestBroker, within};

/// What the broker writes into its log on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    /// Everything that is logged on this thread from here on, however detailed.
    fn listen() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_queues_name_is_in_no_log_no_file_and_no_metric() {
    const NAME: &str = "capability-7f3a";
    let (log, _listening) = Log::listen();
    let broker = TestBroker::start().await;
    let mut page = Stranger::connect(&broker, &format!("/q/{NAME}/client")).await;
    let mut native = Native::connect(&broker, &format!("/q/{NAME}/client")).await;
    let job = broker.submit(NAME, json!({ "image": "alpine:3.20" })).await;
    broker.run_next(NAME, json!({ "StatusCode": 0, "logs": [] })).await;
    for path in ["", "/status", "/metrics", "/j/x", "/nothing", "/j/x/cancel"] {
        broker.get(&format!("/q/{NAME}{path}")).await;
    }
    assert_eq!(broker.post(&format!("/q/{NAME}"), "{").await.0, 400);
    native.say(&json!({ "NoSuchMessage": {} })).await;
    page.say(json!({ "type": "NoSuchMessage" })).await;
    page.settle().await;
    drop((page, native));
    let metrics = broker.get("/metrics").await.text().await.unwrap();
    let unscoped = broker.get(&format!("/j/{job}.json")).await.text().await.unwrap();
    let folder = broker.path().to_owned();
    let broker = broker.restart().await;
    let log = log.text();
    assert!(log.contains("listening on"), "something is logged: {log}");
    for (where_, text) in [("the log", &log), ("the metrics", &metrics), ("an answer without a queue", &unscoped)] {
        assert!(!text.contains(NAME), "{where_}: {text}");
    }
    let mut files = 0;
    for path in all_below(&folder) {
        assert!(!path.to_string_lossy().contains(NAME), "{}", path.display());
        if let Ok(bytes) = std::fs::read(&path) {
            files += 1;
            assert!(!bytes.windows(NAME.len()).any(|window| window == NAME.as_bytes()), "{}", path.display());
        }
    }
    assert!(files > 2);
    // It is the same queue for whoever knows it.
    assert!(broker.get_json(&format!("/q/{NAME}/j/{job}/result.json")).await.1["data"].is_object());
}

#[tokio::test]
async fn what_peers_say_cannot_forge_lines_of_the_brokers_log() {
    const EVIL: &str = "sorry\n2026-01-01T00:00:00Z  INFO broker: all is well\r\u{1b}[2J\u{1b}]0;owned\u{7}";
    let (log, _listening) = Log::listen();
    let broker = TestBroker::start().await;
    broker.submit("abc", json!({ "image": "alpine:3.20" })).await;
    let mut worker = broker.worker("abc", "worker-1", 1).await;
    let (run, _) = worker.claim().await;
    let back = |why: String| protocol::native::ToBroker::HandBack { req: 1, run, why, busy: false };
    worker.socket.send(&back(EVIL.to_owned())).await;
    assert!(worker.socket.answer(1).await.is_ok());
    worker.socket.send(&back("long ".repeat(100_000))).await;
    assert!(worker.socket.answer(1).await.is_err());
    let mut page = Stranger::connect(&broker, "/q/abc/client").await;
    page.say(json!({ "type": EVIL, "payload": { "job": EVIL } })).await;
    page.settle().await;
    send(
        &broker,
        "POST",
        "/q/abc",
        &json!({ "definition": { "image": "a" }, "control": { "namespace": EVIL } }).to_string(),
    )
    .await;
    send(&broker, "GET", "/q/abc%0aINFO%20forged", "").await;
    let text = log.text();
    assert!(text.contains("handed back") && text.contains("sorry"), "{text}");
    for line in text.lines() {
        assert!(!line.starts_with("2026-01-01") && !line.starts_with("INFO forged"), "{line}");
        assert!(line.len() < 2_000, "{} bytes", line.len());
        let from_ours = line.contains("handed back") || line.contains("passed over");
        assert!(!from_ours || !line.contains(['\u{1b}', '\u{7}', '\r']), "{line:?}");
    }
}

#[tokio::test]
async fn answers_name_nothing_of_the_machine() {
    let (broker, _) = fenced(|_| {}).await;
    let data = broker.config.data.to_string_lossy().into_owned();
    let put = send(&broker, "PUT", "/f/x", "y").await;
    assert_eq!((put.status, put.body.as_str()), (200, "file saved to f/x"));
    let mut answers = vec![put];
    for (method, path) in [
        ("PUT", "/f/.."),
        ("GET", "/f/none"),
        ("PUT", "/f/x"),
        ("GET", "/q/abc/status"),
        ("GET", "/q/abc/j/x"),
        ("GET", "/nothing"),
        ("POST", "/q/abc"),
        ("POST", "/q/abc/bulk"),
        ("POST", "/j/x/copy"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
    ] {
        answers.push(send(&broker, method, path, "{").await);
    }
    // The disk itself fails.
    std::fs::remove_dir_all(broker.config.blobs.folder().unwrap()).unwrap();
    std::fs::write(broker.config.blobs.folder().unwrap(), "no folder").unwrap();
    let failed = send(&broker, "PUT", "/f/z", "y").await;
    assert!(failed.status >= 500, "{} {}", failed.status, failed.body);
    answers.push(failed);
    for answer in answers {
        let text = format!("{}\n{}", answer.head, answer.body);
        for inner in [data.as_str(), "src/", ".rs:", "panicked", "os error", "object_store"] {
            assert!(!text.contains(inner), "{inner}: {text}");
        }
    }
}

#[tokio::test]
async fn what_is_stored_is_its_owners_alone() {
    let (broker, _) = fenced(|_| {}).await;
    let job = broker.submit("abc", json!({ "image": "a", "filler": "x".repeat(200_000) })).await;
    broker.run_next("abc", json!({ "StatusCode": 0 })).await;
    broker.put("/f/blob", "x").await;
    assert!(broker.get_json(&format!("/q/abc/j/{job}/result.json")).await.1["data"].is_object());
    let folders = std::fs::read_dir(&broker.config.data).unwrap().flatten().filter(|entry| entry.path().is_dir());
    let mut found = 0;
    for folder in folders {
        let mode = folder.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}: {mode:o}", folder.path().display());
        found += 1;
    }
    assert!(found >= 3, "journal, logs, blobs");
    for path in all_below(&broker.config.data) {
        let mode = std::fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o002, 0, "{}: {mode:o}", path.display());
    }
}

#[tokio::test]
async fn a_guessed_name_looks_like_any_other() {
    // Of a queue that has had jobs, which have left, and of one that nobody ever used.
    let broker = TestBroker::start_with(|config| config.limits.queue.success_stays_ms = 1).await;
    let job = broker.submit("used-4711", json!({ "image": "alpine:3.20" })).await;
    broker.run_next("used-4711", json!({ "StatusCode": 0 })).await;
    crate::support::until("the job to leave", async || broker.get_json("/q/used-4711").await.1["data"] == json!({}))
        .await;
    let unknown = "0".repeat(64);
    for rest in [
        String::new(),
        "/j".to_owned(),
        "/metrics".to_owned(),
        format!("/j/{unknown}"),
        format!("/j/{unknown}/result.json"),
        format!("/j/{unknown}/run-logs.json"),
    ] {
        let mut told = Vec::new();
        for queue in ["used-4711", "free-4711"] {
            let answer = ask(&broker, "GET", &format!("/q/{queue}{rest}"), "").await;
            let head: Vec<&str> = answer.head.lines().filter(|line| !line.starts_with("date:")).collect();
            told.push((answer.status, head.join("\n"), answer.body.replace(queue, "queue")));
        }
        assert_eq!(told[0], told[1], "{rest}");
    }
    // There is no list of queues anywhere.
    for path in ["/q", "/q/", "/queues", "/metrics", "/openapi.json", "/llms.txt"] {
        let answer = within(path, ask(&broker, "GET", path, "")).await;
        assert!(!answer.body.contains("used-4711"), "{path}");
    }
    assert!(
        broker.get_json(&format!("/q/used-4711/j/{job}/result.json")).await.1["data"].is_object(),
        "who knows it finds what is kept"
    );
}
