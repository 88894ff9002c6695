//! What attackers have: raw requests, sockets that say whatever they like, and a look at the disk.

use std::path::{Path, PathBuf};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{TestBroker, within};

/// A raw answer.
pub(super) struct Answer {
    pub(super) status: u16,
    /// The head in lower case.
    pub(super) head: String,
    pub(super) body: String,
}

/// Sends one request as it is written, and reads until the broker closes.
pub(super) async fn raw(broker: &TestBroker, request: &str) -> Answer {
    let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
    peer.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Closed in order or cut: both end it.
    let _ = within("the answer", peer.read_to_end(&mut answer)).await;
    parsed(&answer)
}

/// The same, reading one answer, of a connection that may go on.
pub(super) async fn raw_one(broker: &TestBroker, request: &str) -> Answer {
    let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
    let (mut reading, mut writing) = peer.split();
    let mut answer = Vec::new();
    let read = async {
        let (mut head_bytes, mut length) = (usize::MAX, 0);
        while head_bytes == usize::MAX || answer.len() < head_bytes + length {
            if reading.read_buf(&mut answer).await.unwrap_or(0) == 0 {
                return;
            }
            let text = String::from_utf8_lossy(&answer);
            if let Some((head, _)) = text.split_once("\r\n\r\n") {
                let said =
                    head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
                (head_bytes, length) = (head.len() + 4, said.unwrap_or(0));
            }
        }
    };
    // The broker may answer, and close, before all of it is written.
    let write = async {
        let _ = writing.write_all(request.as_bytes()).await;
        std::future::pending::<()>().await;
    };
    within("the answer", async {
        tokio::select! {
            () = read => {}
            () = write => {}
        }
    })
    .await;
    parsed(&answer)
}

fn parsed(answer: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

/// A request without a body, with more lines of header.
pub(super) async fn ask(broker: &TestBroker, method: &str, path: &str, headers: &str) -> Answer {
    raw(broker, &format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n")).await
}

/// A request with a body.
pub(super) async fn send(broker: &TestBroker, method: &str, path: &str, body: &str) -> Answer {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    raw(broker, &format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())).await
}

/// A socket of the original's dialect: it says what it likes and keeps what it hears.
pub(super) struct Stranger {
    pub(super) stream: WebSocketStream<TcpStream>,
    pub(super) heard: Vec<String>,
}

impl Stranger {
    pub(super) async fn connect(broker: &TestBroker, path: &str) -> Self {
        Self { stream: broker.try_socket(path, None, None).await.unwrap(), heard: Vec::new() }
    }

    /// A worker that has registered.
    pub(super) async fn worker(broker: &TestBroker, queue: &str, id: &str) -> Self {
        let mut worker = Self::connect(broker, &format!("/q/{queue}/worker")).await;
        let registration = json!({ "time": 7, "version": "1", "id": id, "cpus": 2, "gpus": 0, "maxJobDuration": "5m" });
        worker.say(json!({ "type": "WorkerRegistration", "payload": registration })).await;
        let expected = format!("PONG {id}");
        within("the registration", async { while worker.settle().await != expected {} }).await;
        worker
    }

    pub(super) async fn say(&mut self, message: Value) {
        within("a send", self.stream.send(Message::text(message.to_string()))).await.unwrap();
    }

    /// Says that a job changed its state.
    pub(super) async fn change(&mut self, job: &str, state: &str, value: Value) {
        let payload = json!({ "tag": "", "state": state, "job": job, "value": value });
        self.say(json!({ "type": "StateChange", "payload": payload })).await;
    }

    pub(super) async fn submit(&mut self, job: &str, definition: &Value) {
        let enqueued = json!({ "id": job, "definition": definition, "control": {} });
        self.change(job, "Queued", json!({ "type": "Queued", "time": 1, "enqueued": enqueued })).await;
    }

    pub(super) async fn finish(&mut self, job: &str, reason: &str, worker: &str, time: u64) {
        let result = json!({ "StatusCode": 0, "logs": [["forged\n", 1]], "outputs": {} });
        let value = json!({ "type": "Finished", "reason": reason, "worker": worker, "time": time, "result": result });
        self.change(job, "Finished", value).await;
    }

    /// Waits until everything said before has been looked at; gives what the broker answered to that.
    pub(super) async fn settle(&mut self) -> String {
        within("a send", self.stream.send(Message::text("PING"))).await.unwrap();
        self.until("a PONG", |text| text.starts_with("PONG")).await
    }

    /// Reads on until it hears that.
    pub(super) async fn until(&mut self, what: &str, is: impl Fn(&str) -> bool) -> String {
        within(what, async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Text(text))) => {
                        self.heard.push(text.to_string());
                        if is(&text) {
                            return text.to_string();
                        }
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => panic!("closed while waiting for {what}"),
                    Some(Ok(_)) => {}
                }
            }
        })
        .await
    }
}

/// A socket of our own dialect in JSON, so that what is said can be wrong in every way.
pub(super) struct Native {
    pub(super) stream: WebSocketStream<TcpStream>,
    requests: u64,
}

impl Native {
    /// A client after its hello.
    pub(super) async fn connect(broker: &TestBroker, path: &str) -> Self {
        let mut native = Self::silent(broker, path).await;
        native.say(&json!({ "Hello": { "version": 1, "watch": false } })).await;
        native.until("Welcome").await;
        native
    }

    /// A socket that has said nothing.
    pub(super) async fn silent(broker: &TestBroker, path: &str) -> Self {
        let stream = broker.try_socket(path, Some("gridsocket.v1.json"), None).await.unwrap();
        Self { stream, requests: 0 }
    }

    pub(super) async fn say(&mut self, message: &Value) {
        within("a send", self.stream.send(Message::text(message.to_string()))).await.unwrap();
    }

    /// The next message of that kind.
    pub(super) async fn until(&mut self, kind: &str) -> Value {
        within(kind, async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Text(text))) => {
                        let mut message: Value = serde_json::from_str(&text).unwrap();
                        if let Some(found) = message.get_mut(kind) {
                            return found.take();
                        }
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => panic!("closed while waiting for {kind}"),
                    Some(Ok(_)) => {}
                }
            }
        })
        .await
    }

    /// Submits what may be no submission at all; the job's id, or the word of the refusal.
    pub(super) async fn submit(&mut self, job: Value) -> Result<String, String> {
        self.requests += 1;
        self.say(&json!({ "Submit": { "req": self.requests, "job": job } })).await;
        self.answer().await
    }

    /// The next answer to anything.
    pub(super) async fn answer(&mut self) -> Result<String, String> {
        within("an answer", async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Text(text))) => {
                        let message: Value = serde_json::from_str(&text).unwrap();
                        if let Some(code) = message["Rejected"]["code"].as_str() {
                            return Err(code.to_owned());
                        }
                        if message["Ok"].is_object() {
                            return Ok(message["Ok"]["job"].as_str().unwrap_or_default().to_owned());
                        }
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return Err("closed".to_owned()),
                    Some(Ok(_)) => {}
                }
            }
        })
        .await
    }
}

/// A definition and its id.
pub(super) fn job(fields: Value) -> (String, Value) {
    let read = protocol::definition::Definition::parse(fields.to_string().as_bytes()).unwrap();
    (read.job_id().to_string(), fields)
}

/// Every file and folder below one.
pub(super) fn all_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// A broker whose data folder stands in a folder of its own, so that what gets out of it is seen.
pub(super) async fn fenced(change: impl FnOnce(&mut broker::config::Config)) -> (TestBroker, Vec<PathBuf>) {
    let broker = TestBroker::start_with(|config| {
        let inside = broker::config::Config::new(config.data.join("a/b/data"));
        (config.data, config.blobs) = (inside.data, inside.blobs);
        change(config);
    })
    .await;
    let outside = outside(&broker);
    (broker, outside)
}

/// What is in the fence but not in the data folder.
pub(super) fn outside(broker: &TestBroker) -> Vec<PathBuf> {
    all_below(broker.path()).into_iter().filter(|path| !path.starts_with(&broker.config.data)).collect()
}
