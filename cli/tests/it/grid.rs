//! A real broker in a process of its own, a worker played by the test, and the commands of people between them.

use std::path::Path;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use protocol::PROTOCOL_VERSION;
use protocol::codec::Encoding;
use protocol::event::RunOutcome;
use protocol::id::UnixMillis;
use protocol::native::{Capacity, FinishedRun, FromBroker, HeldRun, Hello, LogLine, LogStep, ToBroker, WorkerHello};
use protocol::raw::RawJson;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::run::{Said, gridsocket, run};

/// How long a broker may take to answer before the test counts it as broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
const RESULT: &str = r#"{"type":"Finished","reason":"Success","worker":"w1","time":1,"result":{"StatusCode":5,"duration":10,"isTimedOut":false,"logs":[],"outputs":{"o.txt":{"type":"base64","value":"aGVsbG8K"}}}}"#;

/// A broker as a process.
pub(crate) struct Serving {
    pub(crate) child: Child,
    pub(crate) api: String,
}

impl Serving {
    pub(crate) async fn start(data: &Path, listen: &str) -> Self {
        Self::of(gridsocket(&["serve", "--listen", listen, "--data", data.to_str().unwrap()]), data).await
    }

    pub(crate) async fn of(mut command: tokio::process::Command, data: &Path) -> Self {
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap();
        let Some(line) = line else {
            panic!("it did not start: {:?}", Said::from(child.wait_with_output().await.unwrap()))
        };
        let api =
            line.split_whitespace().find(|word| word.starts_with("http://")).unwrap().trim_end_matches(',').to_owned();
        assert!(line.contains(data.to_str().unwrap()), "{line}");
        Self { child, api }
    }

    pub(crate) fn listen(&self) -> String {
        self.api.replace("http://localhost", "127.0.0.1")
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    pub(crate) async fn end(mut self, signal: &str) -> Option<i32> {
        self.signal(signal);
        tokio::time::timeout(DEADLINE, self.child.wait()).await.unwrap().unwrap().code()
    }
}

/// A worker with one free CPU, and how many runs it was granted.
pub(crate) struct Worker(WebSocketStream<MaybeTlsStream<TcpStream>>, u64);

impl Worker {
    pub(crate) async fn connect(api: &str, holds: Vec<HeldRun>) -> Self {
        let mut request = format!("{}/q/q/worker", api.replace("http", "ws")).into_client_request().unwrap();
        let name = Encoding::MessagePack.subprotocol().parse().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", name);
        let mut worker = Self(connect_async(request).await.unwrap().0, 0);
        let total = Capacity { cpus_milli: 1000, memory_bytes: None, gpus: 0 };
        let hello = WorkerHello {
            id: "w1".parse().unwrap(),
            version: "test".into(),
            total,
            tags: Vec::new(),
            max_duration_ms: None,
            holds,
        };
        worker
            .say(&ToBroker::Hello(Hello {
                version: PROTOCOL_VERSION,
                version_min: None,
                watch: false,
                resume: None,
                worker: Some(hello),
            }))
            .await;
        worker
    }

    async fn say(&mut self, message: &ToBroker) {
        self.0.send(Message::Binary(Encoding::MessagePack.encode(message).into())).await.unwrap();
    }

    async fn hear<T>(&mut self, wanted: impl Fn(FromBroker) -> Option<T>) -> T {
        let hearing = async {
            loop {
                if let Message::Binary(frame) = self.0.next().await.unwrap().unwrap()
                    && let Some(found) = wanted(Encoding::MessagePack.decode(&frame).unwrap())
                {
                    return found;
                }
            }
        };
        tokio::time::timeout(DEADLINE, hearing).await.expect("the broker does not say what it should")
    }

    pub(crate) async fn claim(&mut self) -> HeldRun {
        let free = Capacity { cpus_milli: 1000, memory_bytes: None, gpus: 0 };
        self.say(&ToBroker::Claim { free, grants_seen: self.1, req: None }).await;
        self.1 += 1;
        self.hear(|message| if let FromBroker::Granted { run, .. } = message { Some(run) } else { None }).await
    }

    pub(crate) async fn write(&mut self, run: HeldRun, first: u64, lines: &[(&str, bool)]) {
        let line =
            |(text, stderr): &(&str, bool)| LogLine { text: (*text).into(), at_ms: UnixMillis(1), stderr: *stderr };
        let lines = lines.iter().map(line).collect();
        self.say(&ToBroker::RunLogs { run, step: LogStep::Run, first, lines }).await;
    }

    pub(crate) async fn finish(&mut self, run: HeldRun) {
        self.finish_with(run, 5).await;
    }

    pub(crate) async fn finish_with(&mut self, run: HeldRun, exit_code: i64) {
        let finished = FinishedRun {
            job: run.job,
            run: run.run,
            outcome: RunOutcome::Success,
            exit_code: Some(exit_code),
            image: None,
            duration_ms: Some(10),
            finished: RawJson::new(RESULT),
        };
        self.say(&ToBroker::Finish { req: 1, run: finished }).await;
        self.hear(|message| matches!(message, FromBroker::Ok { req: 1, .. }).then_some(())).await;
    }
}

#[tokio::test]
async fn a_job_goes_the_whole_way_and_its_exit_code_comes_back() {
    let data = tempfile::tempdir().unwrap();
    let broker = Serving::start(data.path(), "127.0.0.1:0").await;
    let out = data.path().join("out");
    let words = ["job", "add", "q", "--api", &broker.api, "-c", "x", "--wait", "--output-dir", out.to_str().unwrap()];
    let adding = tokio::spawn({
        let words = words.map(str::to_owned);
        async move { run(&words.each_ref().map(String::as_str)).await }
    });
    let mut worker = Worker::connect(&broker.api, Vec::new()).await;
    let held = worker.claim().await;
    worker.write(held, 0, &[("one\n", false), ("two\n", true), ("three\n", false)]).await;
    worker.finish(held).await;
    let said = adding.await.unwrap();
    assert_eq!((said.code, said.out.as_str()), (Some(5), "one\nthree\n"), "{said:?}");
    assert!(said.err.contains("finished with exit code 5"), "{said:?}");
    assert_eq!(std::fs::read_to_string(out.join("o.txt")).unwrap(), "hello\n");
    assert_eq!(run(&["job", "logs", "q", &held.job.to_string(), "--api", &broker.api]).await.out, "one\nthree\n");
    assert_eq!(broker.end("-TERM").await, Some(0));
}

#[tokio::test]
async fn a_job_that_failed_runs_again_when_asked_and_prints_only_what_it_prints_then() {
    let data = tempfile::tempdir().unwrap();
    let broker = Serving::start(data.path(), "127.0.0.1:0").await;
    let add = |more: &[&str]| {
        let words = [&["job", "add", "q", "--api", &broker.api, "-c", "x"], more].concat();
        let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        tokio::spawn(async move { run(&words.iter().map(String::as_str).collect::<Vec<_>>()).await })
    };
    let first = add(&["--retry", "--wait"]);
    let mut worker = Worker::connect(&broker.api, Vec::new()).await;
    let held = worker.claim().await;
    worker.write(held, 0, &[("first\n", false)]).await;
    worker.finish(held).await;
    let said = first.await.unwrap();
    assert_eq!((said.code, said.out.as_str()), (Some(5), "first\n"), "{said:?}");
    // What there is answers at once.
    let plain = add(&["--wait"]).await.unwrap();
    assert_eq!((plain.code, plain.out.as_str()), (Some(5), "first\n"), "{plain:?}");
    let again = add(&["--retry", "--wait"]);
    let held = worker.claim().await;
    assert_eq!(held.run, 2);
    worker.write(held, 0, &[("second\n", false)]).await;
    worker.finish(held).await;
    let said = again.await.unwrap();
    assert_eq!((said.code, said.out.as_str()), (Some(5), "second\n"), "{said:?}");
}

#[tokio::test]
async fn waiting_survives_a_broker_that_is_killed_and_started_again() {
    waits_over_a_restart("-KILL").await;
}

#[tokio::test]
async fn waiting_survives_a_broker_that_is_stopped_and_started_again() {
    waits_over_a_restart("-TERM").await;
}

async fn waits_over_a_restart(signal: &str) {
    let data = tempfile::tempdir().unwrap();
    let broker = Serving::start(data.path(), "127.0.0.1:0").await;
    let (api, listen) = (broker.api.clone(), broker.listen());
    let mut waiting = gridsocket(&["job", "add", "q", "--api", &api, "-c", "x", "--wait"]).spawn().unwrap();
    let mut worker = Worker::connect(&api, Vec::new()).await;
    let held = worker.claim().await;
    worker.write(held, 0, &[("one\n", false)]).await;
    let mut out = BufReader::new(waiting.stdout.take().unwrap()).lines();
    let first = tokio::time::timeout(DEADLINE, out.next_line()).await.unwrap().unwrap();
    assert_eq!(first.as_deref(), Some("one"));
    broker.end(signal).await;
    let broker = Serving::start(data.path(), &listen).await;
    let mut worker = Worker::connect(&broker.api, vec![held]).await;
    worker.write(held, 1, &[("two\n", false)]).await;
    worker.finish(held).await;
    let mut rest = Vec::new();
    while let Some(line) = tokio::time::timeout(DEADLINE, out.next_line()).await.unwrap().unwrap() {
        rest.push(line);
    }
    assert_eq!(rest, ["two"]);
    assert_eq!(waiting.wait().await.unwrap().code(), Some(5));
}

#[tokio::test]
async fn the_log_on_disk_and_the_broker_tell_the_same_state_and_a_flipped_byte_is_found() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().to_str().unwrap();
    let broker = Serving::start(data.path(), "127.0.0.1:0").await;
    let added = run(&["job", "add", "q", "--api", &broker.api, "-c", "x"]).await;
    assert_eq!(
        run(&["job", "cancel", "q", added.out.trim(), "--api", &broker.api, "-m", "enough"]).await.code,
        Some(0)
    );
    let told = run(&["audit", "state", "q", "--api", &broker.api]).await;
    let read = run(&["audit", "state", "q", "--data", folder]).await;
    assert_eq!((told.code, &told.out), (Some(0), &read.out), "{told:?}");
    let state: serde_json::Value = serde_json::from_str(&read.out).unwrap();
    let hash = state["hash"].as_str().unwrap();
    assert_eq!(hash.len(), 64);
    let earlier = run(&["audit", "state", "q", "--data", folder, "--at", "1"]).await;
    let earlier: serde_json::Value = serde_json::from_str(&earlier.out).unwrap();
    assert_eq!(earlier["head"]["seq"], 1);
    assert!(run(&["audit", "state", "q", "--data", folder, "--at", "99"]).await.err.contains("last record"));

    let log = run(&["audit", "log", "q", "--data", folder]).await;
    assert!(log.out.contains("JobQueued") && log.out.contains("enough"), "{log:?}");
    let lines = run(&["audit", "log", "--data", folder, "--json"]).await;
    let first: serde_json::Value = serde_json::from_str(lines.out.lines().next().unwrap()).unwrap();
    assert_eq!(first["record"]["seq"], 1);
    let by_key = run(&["audit", "log", first["queue"].as_str().unwrap(), "--data", folder]).await;
    assert_eq!(by_key.out, log.out);
    assert_eq!(run(&["audit", "verify", "--data", folder]).await.code, Some(0));

    assert_eq!(broker.end("-TERM").await, Some(0));
    let segment = first_file(&data.path().join("journal/segments"));
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(6).position(|window| window == b"alpine").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let verified = run(&["audit", "verify", "--data", folder]).await;
    assert_eq!(verified.code, Some(1), "{verified:?}");
    assert!(
        verified.err.contains("first bad record") && verified.err.contains(segment.to_str().unwrap()),
        "{verified:?}"
    );
    assert_eq!(run(&["audit", "log", "q", "--data", folder]).await.code, Some(1));
    assert!(run(&["audit", "salvage", "--data", folder]).await.out.contains("damaged: segment"));
}

fn first_file(folder: &Path) -> std::path::PathBuf {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().next().unwrap()
}

#[tokio::test]
async fn a_folder_or_a_port_that_is_taken_is_said_with_the_way_out() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().to_str().unwrap();
    let broker = Serving::start(data.path(), "127.0.0.1:0").await;
    let second = run(&["serve", "--listen", "127.0.0.1:0", "--data", folder]).await;
    assert_eq!(second.code, Some(1));
    assert!(second.err.contains("in use"), "{second:?}");
    let taken = run(&["serve", "--listen", &broker.listen(), "--data", folder]).await;
    assert_eq!(taken.code, Some(1));
    assert!(taken.err.contains("--listen"), "{taken:?}");
    let port = broker.listen().rsplit(':').next().unwrap().to_owned();
    let local = run(&["local", "--port", &port, "--data-directory", folder]).await;
    assert_eq!(local.code, Some(1));
    assert!(local.err.contains("--port"), "{local:?}");
    assert_eq!(broker.end("-INT").await, Some(0));
}

#[tokio::test]
async fn a_folder_without_a_log_is_said_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let said = run(&["audit", "verify", "--data", folder.path().to_str().unwrap()]).await;
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("no event log"), "{said:?}");
}
