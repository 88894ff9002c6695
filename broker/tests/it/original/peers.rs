//! A page and a worker as the original has them: they know frames, watch what they are sent, and send what those send.

use std::collections::BTreeMap;
use std::time::Duration;

use broker::config::Config;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{TestBroker, within};

/// A broker that does soon what time asks for.
pub(super) fn soon(config: &mut Config) {
    config.original.heartbeat = Duration::from_millis(100);
    config.original.gather = Duration::from_millis(1);
    config.original.whole_every = Duration::from_millis(20);
    config.original.whole_for_leavers_every = Duration::from_millis(50);
}

/// One end of a socket, with what it has been told.
pub(super) struct Peer {
    pub(super) stream: WebSocketStream<TcpStream>,
    /// The jobs, replaced by `JobStates` and merged from `JobStateUpdates`.
    pub(super) jobs: BTreeMap<String, Value>,
    /// The ids and versions of the workers, as last told.
    pub(super) workers: Vec<Value>,
    /// Everything that was told, in order.
    pub(super) heard: Vec<Value>,
}

impl Peer {
    pub(super) async fn connect(broker: &TestBroker, path: &str) -> Self {
        let stream = broker.try_socket(path, None, None).await.unwrap();
        Self::on(stream)
    }

    pub(super) const fn on(stream: WebSocketStream<TcpStream>) -> Self {
        Self { stream, jobs: BTreeMap::new(), workers: Vec::new(), heard: Vec::new() }
    }

    /// A page that has been told how things stand.
    pub(super) async fn page(broker: &TestBroker, queue: &str) -> Self {
        let mut page = Self::connect(broker, &format!("/q/{queue}/client")).await;
        page.expect("JobStates").await;
        page
    }

    pub(super) async fn send_text(&mut self, text: impl Into<String>) {
        within("a send", self.stream.send(Message::text(text.into()))).await.unwrap();
    }

    pub(super) async fn send(&mut self, message: Value) {
        self.send_text(message.to_string()).await;
    }

    /// The next text; `None` when the broker closed.
    async fn next_text(&mut self) -> Option<String> {
        loop {
            match within("a frame", self.stream.next()).await {
                Some(Ok(Message::Text(text))) => return Some(text.to_string()),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Binary(_))) => panic!("a binary frame"),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            }
        }
    }

    /// The next frame, taken in as the original's peers do; text that is no JSON comes as a string.
    pub(super) async fn next(&mut self) -> Value {
        let text = self.next_text().await.expect("closed");
        if !text.starts_with('{') {
            return Value::String(text);
        }
        let message: Value = serde_json::from_str(&text).unwrap();
        let jobs = message["payload"]["state"]["jobs"].as_object();
        match message["type"].as_str().unwrap() {
            "JobStates" => {
                assert_eq!(message["payload"]["isSubset"], false);
                self.jobs = jobs.unwrap().clone().into_iter().collect();
            }
            "JobStateUpdates" => {
                assert_eq!(message["payload"]["isSubset"], true);
                self.jobs.extend(jobs.unwrap().clone());
            }
            "Workers" => self.workers.clone_from(message["payload"]["workers"].as_array().unwrap()),
            _ => {}
        }
        self.heard.push(message.clone());
        message
    }

    pub(super) async fn is_closed(&mut self) -> bool {
        while let Some(text) = self.next_text().await {
            assert!(!text.is_empty());
        }
        true
    }

    /// Reads on until a message of that type.
    pub(super) async fn expect(&mut self, kind: &str) -> Value {
        within(kind, async {
            loop {
                let message = self.next().await;
                if message["type"] == kind {
                    return message;
                }
            }
        })
        .await
    }

    /// Reads on until what it knows is so.
    pub(super) async fn until(&mut self, what: &str, is: impl Fn(&Self) -> bool) {
        within(what, async {
            while !is(self) {
                self.next().await;
            }
        })
        .await;
    }

    /// Reads on until a job is in that state (`Finished/Success` with its reason).
    pub(super) async fn until_job(&mut self, job: &str, state: &str) {
        self.until(&format!("{job} to be {state}"), |peer| peer.state(job) == state).await;
    }

    pub(super) fn state(&self, job: &str) -> String {
        let Some(found) = self.jobs.get(job) else { return "absent".to_owned() };
        let state = found["state"].as_str().unwrap();
        found["finishedReason"].as_str().map_or(state.to_owned(), |reason| format!("{state}/{reason}"))
    }

    /// Asks something that is answered at once, and gives what was heard before the answer.
    pub(super) async fn ping(&mut self) -> String {
        self.send_text("PING").await;
        within("PONG", async {
            loop {
                if let Value::String(text) = self.next().await {
                    return text;
                }
            }
        })
        .await
    }

    pub(super) async fn submit(&mut self, job: &str, definition: &Value, namespace: Option<&str>) {
        let control = namespace.map_or(json!({}), |namespace| json!({ "namespace": namespace }));
        self.send(json!({ "type": "StateChange", "payload": { "tag": "", "state": "Queued", "job": job, "value":
            { "type": "Queued", "time": 1, "enqueued": { "id": job, "definition": definition, "control": control } } } }))
            .await;
    }

    pub(super) async fn withdraw(&mut self, job: &str, reason: &str, namespace: Option<&str>) {
        let mut value = json!({ "type": "Finished", "reason": reason, "time": 1, "message": "by the page" });
        if let Some(namespace) = namespace {
            value["namespace"] = json!(namespace);
        }
        self.send(json!({ "type": "StateChange",
            "payload": { "tag": "", "state": "Finished", "job": job, "value": value } }))
            .await;
    }
}

/// A worker, and what it calls itself.
pub(super) struct Worker {
    pub(super) peer: Peer,
    pub(super) id: String,
}

impl Worker {
    /// A worker that has registered and been told how things stand.
    pub(super) async fn start(broker: &TestBroker, queue: &str, id: &str) -> Self {
        let mut worker = Self::connect(broker, queue, id).await;
        worker.register().await;
        worker.until_registered().await;
        worker
    }

    pub(super) async fn connect(broker: &TestBroker, queue: &str, id: &str) -> Self {
        let mut peer = Peer::connect(broker, &format!("/q/{queue}/worker")).await;
        let first = peer.next().await;
        assert_eq!(first["type"], "JobStates", "a worker is told the jobs first");
        Self { peer, id: id.to_owned() }
    }

    pub(super) fn registration(&self) -> Value {
        json!({ "time": 7, "version": "0.54.85", "id": self.id, "cpus": 2, "gpus": 0, "maxJobDuration": "5m" })
    }

    pub(super) async fn register(&mut self) {
        let payload = self.registration();
        self.peer.send(json!({ "type": "WorkerRegistration", "payload": payload })).await;
    }

    pub(super) async fn until_registered(&mut self) {
        let expected = format!("PONG {}", self.id);
        while self.peer.ping().await != expected {}
    }

    pub(super) async fn running(&mut self, job: &str, at: u64) {
        let value = json!({ "type": "Running", "worker": self.id, "time": at });
        self.change(job, "Running", value).await;
    }

    pub(super) async fn finish(&mut self, job: &str, reason: &str) {
        let value = self.finished(reason);
        self.change(job, "Finished", value).await;
    }

    pub(super) fn finished(&self, reason: &str) -> Value {
        json!({ "type": "Finished", "reason": reason, "worker": self.id, "time": 9, "result":
            { "StatusCode": 0, "isTimedOut": false, "duration": 12, "logs": [["hi\n", 8]], "outputs": {} } })
    }

    pub(super) async fn change(&mut self, job: &str, state: &str, value: Value) {
        let payload = json!({ "job": job, "tag": self.id, "state": state, "value": value });
        self.peer.send(json!({ "type": "StateChange", "payload": payload })).await;
    }

    pub(super) async fn logs(&mut self, job: &str, step: &str, text: &str) {
        let payload = json!({ "jobId": job, "step": step, "logs": [[text, 8], ["oops\n", 9, true]] });
        self.peer.send(json!({ "type": "JobStatusLogs", "payload": payload })).await;
    }

    /// Asks for a definition until it is there, as the original does.
    pub(super) async fn definition(&mut self, job: &str) -> Value {
        self.ask_definition(job).await;
        self.peer.expect("BroadcastJobDefinitions").await["payload"]["definitions"][job].clone()
    }

    pub(super) async fn ask_definition(&mut self, job: &str) {
        self.peer.send(json!({ "type": "RequestJobDefinitions", "payload": { "jobIds": [job] } })).await;
    }

    /// Takes a job as the original does: waits to see it queued, gets its definition, says that it runs it.
    pub(super) async fn take(&mut self, job: &str, at: u64) {
        self.peer.until_job(job, "Queued").await;
        assert!(self.definition(job).await.is_object());
        self.running(job, at).await;
        self.until_mine(job).await;
    }

    pub(super) async fn until_mine(&mut self, job: &str) {
        self.until_owner(job, &self.id.clone()).await;
    }

    pub(super) async fn until_owner(&mut self, job: &str, owner: &str) {
        let is_its = |peer: &Peer| peer.state(job) == "Running" && peer.jobs[job]["worker"] == owner;
        self.peer.until(&format!("{job} to run at {owner}"), is_its).await;
    }
}

/// A definition and its id.
pub(super) fn job(number: usize) -> (String, Value) {
    with_id(json!({ "image": "alpine:3.20", "command": format!("echo {number}") }))
}

pub(super) fn with_id(definition: Value) -> (String, Value) {
    let read = protocol::definition::Definition::parse(definition.to_string().as_bytes()).unwrap();
    (read.job_id().to_string(), definition)
}
