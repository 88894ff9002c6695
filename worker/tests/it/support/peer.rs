//! A broker that says what a test tells it to say: real sockets, no rules.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use protocol::codec::{Encoding, FRAME_BYTES_MAX};
use protocol::id::{Digest, Head, JobId, QueueKey, QueueName};
use protocol::native::{
    Capacity, FinishedRun, FromBroker, HeldRun, LogKind, LogLine, StopReason, ToBroker, WorkerHello,
};
use protocol::raw::RawJson;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// How long anything may take before the test fails: far more than it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// The lease that the scripted broker gives.
const LEASE_MS: u64 = 3_000;

/// Waits for `what`, not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited too long until {what}"))
}

/// Looks again and again until `is_so`.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    soon(what, async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// The scripted broker: sockets for the test, and a blob store that works by itself.
pub(crate) struct Peer {
    port: u16,
    lines: mpsc::Receiver<(String, WebSocketStream<TcpStream>)>,
    pub(crate) blobs: Blobs,
}

/// What was uploaded, and what may be fetched, by path.
#[derive(Clone, Default)]
pub(crate) struct Blobs(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

impl Blobs {
    pub(crate) fn put(&self, path: &str, bytes: &[u8]) {
        self.0.lock().unwrap().insert(path.to_owned(), bytes.to_vec());
    }

    pub(crate) fn remove(&self, path: &str) {
        self.0.lock().unwrap().remove(path);
    }

    pub(crate) fn get(&self, path: &str) -> Option<Vec<u8>> {
        self.0.lock().unwrap().get(path).cloned()
    }
}

impl Peer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sockets, lines) = mpsc::channel(16);
        let blobs = Blobs::default();
        let served = blobs.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, sockets.clone(), served.clone()));
            }
        });
        Self { port, lines, blobs }
    }

    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}/grid", self.port)
    }

    /// The next connection of a worker, with its hello.
    pub(crate) async fn line(&mut self) -> Line {
        let (path, socket) = soon("a worker connects", self.lines.recv()).await.unwrap();
        let mut line = Line {
            path,
            socket,
            hello: None,
            finished: BTreeMap::new(),
            logs: Logs::default(),
            claims: Vec::new(),
            ask: None,
            returned: Vec::new(),
            busy: Vec::new(),
            renewals: 0,
        };
        let ToBroker::Hello(hello) = line.receive().await else { panic!("the first message is a hello") };
        line.hello = hello.worker;
        line
    }
}

/// Lines by run and kind, in the order of their numbers; repeats must be equal in number only.
#[derive(Default)]
pub(crate) struct Logs(BTreeMap<(HeldRun, LogKind), BTreeMap<u64, LogLine>>);

impl Logs {
    /// The lines, which must have no gap.
    pub(crate) fn of(&self, run: HeldRun, kind: LogKind) -> Vec<LogLine> {
        let Some(lines) = self.0.get(&(run, kind)) else { return Vec::new() };
        assert!(lines.keys().copied().eq(0..lines.len() as u64), "lines are missing: {:?}", lines.keys());
        lines.values().cloned().collect()
    }

    pub(crate) fn text(&self, run: HeldRun, stderr: bool) -> String {
        self.of(run, LogKind::Run).into_iter().filter(|line| line.stderr == stderr).map(|line| line.text).collect()
    }

    pub(crate) fn merge(&mut self, later: Self) {
        for (run, lines) in later.0 {
            let mine = self.0.entry(run).or_default();
            for (number, line) in lines {
                mine.entry(number).or_insert(line);
            }
        }
    }
}

/// One connection of a worker.
pub(crate) struct Line {
    /// Where it connected; the queue's name is in it.
    path: String,
    socket: WebSocketStream<TcpStream>,
    pub(crate) hello: Option<WorkerHello>,
    pub(crate) logs: Logs,
    pub(crate) claims: Vec<Capacity>,
    /// The newest claim's request number, if it has one.
    ask: Option<u64>,
    pub(crate) returned: Vec<(HeldRun, String)>,
    /// Those of them that only had no room.
    pub(crate) busy: Vec<HeldRun>,
    pub(crate) renewals: u32,
    finished: BTreeMap<HeldRun, (u64, FinishedRun)>,
}

impl Line {
    pub(crate) fn holds(&self) -> Vec<HeldRun> {
        self.hello.as_ref().unwrap().holds.clone()
    }

    async fn receive(&mut self) -> ToBroker {
        loop {
            let message = soon("the worker says something", self.socket.next()).await;
            match message.expect("the worker stays connected").expect("the worker stays connected") {
                Message::Binary(bytes) => return Encoding::MessagePack.decode(&bytes).unwrap(),
                Message::Close(_) => panic!("the worker closed the line"),
                Message::Ping(_) | Message::Pong(_) | Message::Text(_) | Message::Frame(_) => {}
            }
        }
    }

    pub(crate) async fn send(&mut self, message: FromBroker) {
        self.socket.send(Message::Binary(Encoding::MessagePack.encode(&message).into())).await.unwrap();
    }

    pub(crate) async fn welcome(&mut self, gone: Vec<HeldRun>) {
        let queue = QueueKey::from_bytes([0; 16]);
        self.send(FromBroker::Welcome { version: 1, queue, head: head(), lease_ms: LEASE_MS, gone }).await;
    }

    /// Grants the job's first run.
    pub(crate) async fn grant(&mut self, (job, definition): (JobId, String)) -> HeldRun {
        let run = HeldRun { job, run: 1 };
        let definition = RawJson::new(definition);
        self.send(FromBroker::Granted { run, definition, lease_ms: LEASE_MS, debug: false }).await;
        run
    }

    /// Whether it is of that queue.
    pub(crate) fn is_of(&self, queue: &QueueName) -> bool {
        self.path.contains(queue.as_str())
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.ask.is_some()
    }

    /// Waits until it is asked whether there is anything.
    pub(crate) async fn asked(&mut self) {
        self.until(|line| line.ask.is_some()).await;
    }

    /// Answers that so many runs were granted on this connection, and no more.
    pub(crate) async fn claimed(&mut self, granted: u64) {
        let req = self.ask.take().expect("it was asked");
        self.send(FromBroker::Claimed { req, granted }).await;
    }

    pub(crate) async fn stop(&mut self, run: HeldRun, why: StopReason) {
        self.send(FromBroker::Stop { run, why }).await;
    }

    pub(crate) async fn ok(&mut self, req: u64, job: JobId) {
        self.send(FromBroker::Ok { req, head: head(), job: Some(job) }).await;
    }

    /// Takes messages in until `is_enough`.
    pub(crate) async fn until(&mut self, mut is_enough: impl FnMut(&Self) -> bool) {
        while !is_enough(self) {
            match self.receive().await {
                ToBroker::RunLogs { run, step, first, lines } => {
                    let known = self.logs.0.entry((run, step.kind())).or_default();
                    known.extend((first..).zip(lines));
                }
                ToBroker::Finish { req, run } => {
                    self.finished.insert(HeldRun { job: run.job, run: run.run }, (req, run));
                }
                ToBroker::HandBack { req, run, why, busy } => {
                    self.busy.extend(busy.then_some(run));
                    self.returned.push((run, why));
                    self.ok(req, run.job).await;
                }
                ToBroker::Claim { free, req, .. } => {
                    self.claims.push(free);
                    self.ask = req;
                }
                ToBroker::Renew { .. } => self.renewals += 1,
                other @ (ToBroker::Hello(_)
                | ToBroker::Submit { .. }
                | ToBroker::Cancel { .. }
                | ToBroker::Delete { .. }
                | ToBroker::FollowLogs { .. }
                | ToBroker::UnfollowLogs { .. }
                | ToBroker::GetDefinitions { .. }
                | ToBroker::Explain { .. }) => panic!("a worker has no business with {other:?}"),
            }
        }
    }

    /// Whether the run's end was told.
    pub(crate) fn is_finished(&self, run: HeldRun) -> bool {
        self.finished.contains_key(&run)
    }

    /// Waits for the run's end, without a word to the worker.
    pub(crate) async fn unanswered_end(&mut self, run: HeldRun) -> (u64, FinishedRun) {
        self.until(|line| line.finished.contains_key(&run)).await;
        self.finished.get(&run).cloned().unwrap()
    }

    /// Waits for the run's end and acknowledges it.
    pub(crate) async fn end(&mut self, run: HeldRun) -> (FinishedRun, serde_json::Value) {
        let (req, finished) = self.unanswered_end(run).await;
        self.ok(req, run.job).await;
        let told = serde_json::from_str(finished.finished.as_str()).unwrap();
        (finished, told)
    }
}

/// As registries write it.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    let hash = sha2::Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn head() -> Head {
    Head { seq: 1, hash: Digest::from_bytes([0; 32]) }
}

/// One connection: a websocket for the test, or one request for the blob store.
async fn serve(mut stream: TcpStream, sockets: mpsc::Sender<(String, WebSocketStream<TcpStream>)>, blobs: Blobs) {
    let mut seen = [0; 16 * 1024];
    let head = loop {
        let Ok(read) = stream.peek(&mut seen).await else { return };
        let text = String::from_utf8_lossy(&seen[..read]).into_owned();
        match text.split_once("\r\n\r\n") {
            Some((head, _)) => break head.to_owned(),
            None if read == 0 => return,
            None => tokio::task::yield_now().await,
        }
    };
    if head.to_ascii_lowercase().contains("upgrade: websocket") {
        #[expect(clippy::result_large_err, reason = "the callback's type is the library's")]
        let accept = |_: &Request, mut response: Response| {
            let protocol = HeaderValue::from_static(Encoding::MessagePack.subprotocol());
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocol);
            Ok(response)
        };
        let limits =
            WebSocketConfig::default().max_message_size(Some(FRAME_BYTES_MAX)).max_frame_size(Some(FRAME_BYTES_MAX));
        let socket = tokio_tungstenite::accept_hdr_async_with_config(stream, accept, Some(limits)).await;
        let path = head.split_whitespace().nth(1).unwrap_or_default().to_owned();
        let _ = sockets.send((path, socket.unwrap())).await;
        return;
    }
    let mut taken = vec![0; head.len() + 4];
    stream.read_exact(&mut taken).await.unwrap();
    let answer = answer(&head, &mut stream, &blobs).await;
    let _ = stream.write_all(&answer).await;
    let _ = stream.shutdown().await;
}

async fn answer(head: &str, stream: &mut TcpStream, blobs: &Blobs) -> Vec<u8> {
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let reply = |status: &str, more: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{more}\r\n", body.len());
        [head.as_bytes(), body].concat()
    };
    match method {
        "PUT" => {
            let length =
                head.to_ascii_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            // Storage behind a redirect refuses bodies of unknown length.
            let Some(length) = length else { return reply("411 Length Required", "", b"") };
            let mut body = vec![0_u8; length];
            stream.read_exact(&mut body).await.unwrap();
            // As a broker in front of object storage does it.
            if let Some(name) = path.strip_prefix("/grid/f/") {
                return reply("302 Found", &format!("location: /storage/{name}?X-Signature=s\r\n"), b"");
            }
            blobs.put(path.split('?').next().unwrap().replace("/storage/", "/grid/f/").as_str(), &body);
            reply("200 OK", "", b"")
        }
        // A registry's manifests: their kind and digest are in the head.
        "GET" | "HEAD" if path.contains("/manifests/") => match blobs.get(path) {
            Some(manifest) => {
                let kind = "application/vnd.docker.distribution.manifest.v2+json";
                let more = format!("content-type: {kind}\r\ndocker-content-digest: {}\r\n", sha256(&manifest));
                let mut answer = reply("200 OK", &more, &manifest);
                if method == "HEAD" {
                    answer.truncate(answer.len() - manifest.len());
                }
                answer
            }
            None => reply("404 Not Found", "", b""),
        },
        "GET" => match blobs.get(path.strip_suffix("/exists").unwrap_or(path)) {
            Some(_) if path.ends_with("/exists") => reply("200 OK", "", b"{}"),
            Some(bytes) => reply("200 OK", "", &bytes),
            None => reply("404 Not Found", "", b""),
        },
        _ => reply("405 Method Not Allowed", "", b""),
    }
}

/// One request to a git server, by git's own program for web servers.
pub(crate) async fn git_backend(mut stream: TcpStream, root: std::path::PathBuf) {
    let mut request = Vec::new();
    let head_end = loop {
        let mut chunk = [0; 4096];
        let Ok(read @ 1..) = stream.read(&mut chunk).await else { return };
        request.extend_from_slice(&chunk[..read]);
        if let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = String::from_utf8(request[..head_end].to_vec()).unwrap();
    let header = |name: &str| {
        let lower = |line: &str| line.split_once(": ").map(|(key, value)| (key.to_ascii_lowercase(), value.to_owned()));
        head.lines().filter_map(lower).find(|(key, _)| key == name).map(|(_, value)| value)
    };
    let length: usize = header("content-length").and_then(|length| length.parse().ok()).unwrap_or_default();
    let mut body = request[head_end..].to_vec();
    while body.len() < length {
        let mut chunk = [0; 4096];
        let Ok(read @ 1..) = stream.read(&mut chunk).await else { return };
        body.extend_from_slice(&chunk[..read]);
    }
    let mut words = head.split_whitespace();
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut backend = tokio::process::Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_PROTOCOL", header("git-protocol").unwrap_or_default())
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", header("content-type").unwrap_or_default())
        .env("CONTENT_LENGTH", length.to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding").unwrap_or_default())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = backend.stdin.take().unwrap();
    let answer = tokio::join!(
        async {
            let _ = stdin.write_all(&body).await;
            drop(stdin);
        },
        backend.wait_with_output()
    )
    .1
    .unwrap();
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n").await;
    let _ = stream.write_all(&answer.stdout).await;
    let _ = stream.shutdown().await;
}
