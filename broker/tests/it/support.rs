//! A real broker on a free port, and the ends that talk to it.

use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use broker::config::{Config, Flavour};
use broker::{Broker, BrokerHandle};
use futures_util::{SinkExt, StreamExt};
use protocol::codec::Encoding;
use protocol::event::RunOutcome;
use protocol::id::JobId;
use protocol::native::{
    Callbacks, Capacity, FinishedRun, FromBroker, HeldRun, Hello, LogLine, LogStep, Submission, ToBroker, WorkerHello,
};
use protocol::raw::RawJson;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};

/// How long a test waits for what must come. Long: only a broken test waits it out.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Fails the test when `what` does not come.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {DEADLINE:?} for {what}"),
    }
}

/// Waits until `holds`.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    within(what, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A broker in a folder of its own.
pub(crate) struct TestBroker {
    pub(crate) handle: BrokerHandle,
    pub(crate) config: Config,
    pub(crate) http: reqwest::Client,
    folder: TempDir,
}

impl TestBroker {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn local() -> Self {
        Self::start_with(|config| config.flavour = Flavour::Local).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = TempDir::new().unwrap();
        let mut config = Config::new(folder.path());
        change(&mut config);
        Self::open(folder, config).await
    }

    async fn open(folder: TempDir, config: Config) -> Self {
        static TLS: Once = Once::new();
        TLS.call_once(|| rustls::crypto::ring::default_provider().install_default().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let handle = Broker::start(config.clone(), listener).await.unwrap();
        let plain = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        Self { handle, config, http: plain.build().unwrap(), folder }
    }

    /// Stops in order and starts again on what was stored.
    pub(crate) async fn restart(self) -> Self {
        let Self { handle, config, folder, .. } = self;
        within("the shutdown", handle.shutdown()).await;
        Self::open(folder, config).await
    }

    /// The same, and changes what was stored in between.
    pub(crate) async fn restart_after(self, change: impl FnOnce(&Path)) -> Self {
        let Self { handle, config, folder, .. } = self;
        within("the shutdown", handle.shutdown()).await;
        change(folder.path());
        Self::open(folder, config).await
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn host(&self) -> String {
        self.handle.addr().to_string()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host())
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        within(path, self.http.get(self.url(path)).send()).await.unwrap()
    }

    /// The answer's status and JSON.
    pub(crate) async fn get_json(&self, path: &str) -> (u16, Value) {
        json_of(self.get(path).await).await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
        json_of(within(path, self.http.post(self.url(path)).body(body).send()).await.unwrap()).await
    }

    pub(crate) async fn put(&self, path: &str, body: impl Into<reqwest::Body>) -> reqwest::Response {
        within(path, self.http.put(self.url(path)).body(body).send()).await.unwrap()
    }

    /// Submits a definition and returns the job's id.
    pub(crate) async fn submit(&self, queue: &str, definition: Value) -> JobId {
        self.submit_as(queue, definition, None).await
    }

    pub(crate) async fn submit_as(&self, queue: &str, definition: Value, namespace: Option<&str>) -> JobId {
        let body = json!({ "definition": definition, "control": { "namespace": namespace } });
        let (status, answer) = self.post(&format!("/q/{queue}"), body.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        answer["jobId"].as_str().unwrap().parse().unwrap()
    }

    /// Opens a socket that has said nothing yet.
    pub(crate) async fn socket(&self, path: &str, encoding: Encoding) -> Socket {
        self.socket_with(path, encoding, WebSocketConfig::default()).await
    }

    pub(crate) async fn socket_with(&self, path: &str, encoding: Encoding, config: WebSocketConfig) -> Socket {
        let stream = self.try_socket_with(path, Some(encoding.subprotocol()), None, config).await.unwrap();
        Socket { stream, encoding }
    }

    pub(crate) async fn try_socket(
        &self,
        path: &str,
        subprotocol: Option<&str>,
        origin: Option<&str>,
    ) -> Result<WebSocketStream<TcpStream>, tungstenite::Error> {
        self.try_socket_with(path, subprotocol, origin, WebSocketConfig::default()).await
    }

    async fn try_socket_with(
        &self,
        path: &str,
        subprotocol: Option<&str>,
        origin: Option<&str>,
        config: WebSocketConfig,
    ) -> Result<WebSocketStream<TcpStream>, tungstenite::Error> {
        let mut request = format!("ws://{}{path}", self.host()).into_client_request()?;
        let mut header = |name: &'static str, value: Option<&str>| {
            if let Some(value) = value {
                request.headers_mut().insert(name, value.parse().unwrap());
            }
        };
        header("sec-websocket-protocol", subprotocol);
        header("origin", origin);
        let stream = TcpStream::connect(self.handle.addr()).await.unwrap();
        within("the handshake", tokio_tungstenite::client_async_with_config(request, stream, Some(config)))
            .await
            .map(|(stream, _)| stream)
    }

    /// A watching client after its hello.
    pub(crate) async fn client(&self, queue: &str) -> Socket {
        let mut socket = self.socket(&format!("/q/{queue}/client"), Encoding::MessagePack).await;
        socket
            .send(&ToBroker::Hello(Hello { version: 1, version_min: None, watch: true, resume: None, worker: None }))
            .await;
        socket.expect("Welcome", |message| matches!(message, FromBroker::Welcome { .. }).then_some(())).await;
        socket
    }

    /// A worker after its hello, with room for `cpus` jobs.
    pub(crate) async fn worker(&self, queue: &str, id: &str, cpus: u32) -> Worker {
        self.worker_holding(queue, id, cpus, Vec::new()).await
    }

    pub(crate) async fn worker_holding(&self, queue: &str, id: &str, cpus: u32, holds: Vec<HeldRun>) -> Worker {
        let mut socket = self.socket(&format!("/q/{queue}/worker"), Encoding::MessagePack).await;
        let free = Capacity { cpus_milli: cpus * 1000, memory_bytes: None, gpus: 0 };
        let worker = WorkerHello {
            id: id.parse().unwrap(),
            version: "test".to_owned(),
            total: free,
            tags: Vec::new(),
            max_duration_ms: None,
            holds,
        };
        socket
            .send(&ToBroker::Hello(Hello {
                version: 1,
                version_min: None,
                watch: false,
                resume: None,
                worker: Some(worker),
            }))
            .await;
        socket.expect("Welcome", |message| matches!(message, FromBroker::Welcome { .. }).then_some(())).await;
        Worker { socket, free, grants: 0, requests: 0 }
    }

    /// Runs the queue's next job to a success with `result` as its `finished.result`.
    pub(crate) async fn run_next(&self, queue: &str, result: Value) -> HeldRun {
        let mut worker = self.worker(queue, "worker-1", 1).await;
        let (run, _) = worker.claim().await;
        worker.finish(run, result).await;
        run
    }
}

pub(crate) async fn json_of(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    let value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status} {text:?}: {error}"));
    (status, value)
}

/// One end of a native socket.
pub(crate) struct Socket {
    pub(crate) stream: WebSocketStream<TcpStream>,
    encoding: Encoding,
}

impl Socket {
    pub(crate) async fn send(&mut self, message: &ToBroker) {
        let bytes = self.encoding.encode(message);
        let frame = match self.encoding {
            Encoding::MessagePack => Message::binary(bytes),
            Encoding::Json => Message::text(String::from_utf8(bytes).unwrap()),
        };
        within("a send", self.stream.send(frame)).await.unwrap();
    }

    /// The next message; `None` when the broker closed.
    pub(crate) async fn next(&mut self) -> Option<FromBroker> {
        loop {
            match within("a message", self.stream.next()).await {
                Some(Ok(Message::Binary(bytes))) => return Some(self.encoding.decode(&bytes).unwrap()),
                Some(Ok(Message::Text(text))) => return Some(self.encoding.decode(text.as_bytes()).unwrap()),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            }
        }
    }

    /// Reads on until a message is the one, passing over others.
    pub(crate) async fn expect<T>(&mut self, what: &str, mut is: impl FnMut(FromBroker) -> Option<T>) -> T {
        within(what, async {
            loop {
                let message = self.next().await.unwrap_or_else(|| panic!("closed while waiting for {what}"));
                if let Some(found) = is(message) {
                    return found;
                }
            }
        })
        .await
    }

    pub(crate) async fn submit(&mut self, req: u64, definition: &str) {
        let job = Submission {
            id: None,
            definition: RawJson::new(definition),
            namespace: None,
            priority: 0,
            debug: false,
            retry: false,
            callbacks: Callbacks::default(),
        };
        self.send(&ToBroker::Submit { req, job }).await;
    }

    /// The answer to a request.
    pub(crate) async fn answer(&mut self, req: u64) -> Result<Option<JobId>, String> {
        self.expect("an answer", |message| match message {
            FromBroker::Ok { req: of, job, .. } if of == req => Some(Ok(job)),
            FromBroker::Rejected { req: Some(of), code, .. } if of == req => Some(Err(code)),
            _ => None,
        })
        .await
    }
}

/// A worker's end.
pub(crate) struct Worker {
    pub(crate) socket: Socket,
    free: Capacity,
    grants: u64,
    requests: u64,
}

impl Worker {
    /// Asks for work and waits for it.
    pub(crate) async fn claim(&mut self) -> (HeldRun, RawJson) {
        self.socket.send(&ToBroker::Claim { free: self.free, grants_seen: self.grants, req: None }).await;
        let granted = self
            .socket
            .expect("a grant", |message| match message {
                FromBroker::Granted { run, definition, .. } => Some((run, definition)),
                _ => None,
            })
            .await;
        self.grants += 1;
        granted
    }

    pub(crate) async fn logs(&mut self, run: HeldRun, step: LogStep, first: u64, lines: Vec<LogLine>) {
        self.socket.send(&ToBroker::RunLogs { run, step, first, lines }).await;
    }

    /// Reports a success and waits until it is on disk.
    pub(crate) async fn finish(&mut self, run: HeldRun, result: Value) {
        self.end(run, RunOutcome::Success, result).await.unwrap();
    }

    pub(crate) async fn end(&mut self, run: HeldRun, outcome: RunOutcome, result: Value) -> Result<(), String> {
        let reason = match outcome {
            RunOutcome::Success => "Success",
            RunOutcome::Error => "Error",
            RunOutcome::TimedOut => "TimedOut",
        };
        let finished =
            json!({ "type": "Finished", "reason": reason, "worker": "worker-1", "time": 9, "result": result });
        self.requests += 1;
        let run = FinishedRun {
            job: run.job,
            run: run.run,
            outcome,
            exit_code: result["StatusCode"].as_i64(),
            image: None,
            duration_ms: None,
            finished: RawJson::new(finished.to_string()),
        };
        self.socket.send(&ToBroker::Finish { req: self.requests, run }).await;
        self.socket.answer(self.requests).await.map(|_| ())
    }
}

/// A small file system of its own, where this process may make one.
pub(crate) struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None`, and says so, where it may not.
    pub(crate) fn mount(size: &str) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let mounted =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", size, "tmpfs"]).arg(dir.path()).output();
        let is_mounted = mounted.is_ok_and(|mounted| mounted.status.success());
        if !is_mounted {
            eprintln!("skipped: this process may not mount a small tmpfs");
        }
        is_mounted.then_some(Self(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}
