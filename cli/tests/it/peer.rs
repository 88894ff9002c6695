//! A scripted broker: enough HTTP and websocket for the job commands, and a script of what happens to the one job that is
//! submitted. It folds its records with `protocol`, so what it sends is what a broker would send.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use protocol::PROTOCOL_VERSION;
use protocol::canonical::job_id;
use protocol::codec::{Encoding, SUBPROTOCOL_MESSAGEPACK};
use protocol::event::{Event, RunOutcome, Via};
use protocol::id::{Digest, Head, JobId, Namespace, QueueKey, UnixMillis};
use protocol::json;
use protocol::native::{FromBroker, LogKind, LogLine, ToBroker};
use protocol::queue::QueueState;
use protocol::raw::{RecordBytes, StateBytes};
use protocol::record::{RECORD_VERSION, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};

/// What happens next, as soon as somebody follows the job.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// A worker takes the job.
    Claim,
    /// The container writes.
    Line(&'static str),
    /// The container writes to standard error.
    ErrLine(&'static str),
    /// The image is fetched.
    BuildLine(&'static str),
    /// The job ends with a result: outcome and the text of its result document.
    Finish(RunOutcome, &'static str),
    /// Somebody cancels the job.
    Cancel(&'static str),
    /// The socket breaks.
    Break,
    /// Nothing more, and the socket stays open.
    Stay,
}

/// What the peer holds.
#[derive(Debug)]
pub(crate) struct Held {
    state: QueueState,
    records: Vec<Arc<[u8]>>,
    lines: BTreeMap<LogKind, Vec<LogLine>>,
    script: std::collections::VecDeque<Act>,
    result: Option<&'static str>,
    /// The job that was submitted.
    pub(crate) job: Option<JobId>,
    /// Bodies of submissions.
    pub(crate) posted: Vec<String>,
    /// Blobs by key.
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    /// Result files by the raw path they are asked for under.
    pub(crate) outputs: BTreeMap<String, Vec<u8>>,
    /// What each socket asked for first.
    pub(crate) resumes: Vec<Option<Head>>,
    /// All requests, as `METHOD path`.
    pub(crate) requests: Vec<String>,
}

/// A running peer.
pub(crate) struct Peer {
    addr: SocketAddr,
    held: Arc<Mutex<Held>>,
}

impl Peer {
    /// Starts a peer with a script.
    pub(crate) async fn start(script: &[Act]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let held = Arc::new(Mutex::new(Held {
            state: QueueState::new(QueueKey::of(&"q".parse().unwrap())),
            records: Vec::new(),
            lines: BTreeMap::new(),
            script: script.iter().cloned().collect(),
            result: None,
            job: None,
            posted: Vec::new(),
            blobs: BTreeMap::new(),
            outputs: BTreeMap::new(),
            resumes: Vec::new(),
            requests: Vec::new(),
        }));
        let shared = Arc::clone(&held);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream, Arc::clone(&shared)));
            }
        });
        Self { addr, held }
    }

    /// Its address, for `--api`.
    pub(crate) fn api(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Looks at what it holds.
    pub(crate) fn held<T>(&self, look: impl FnOnce(&mut Held) -> T) -> T {
        look(&mut self.held.lock().unwrap())
    }
}

impl Held {
    fn happens(&mut self, event: Event) -> FromBroker {
        let from_seq = self.state.head().seq + 1;
        let bytes = Record { v: RECORD_VERSION, seq: from_seq, at_ms: UnixMillis(from_seq), event }.encode();
        self.state.apply_bytes(&bytes).unwrap();
        self.records.push(bytes.clone().into());
        FromBroker::Events { from_seq, records: vec![RecordBytes(bytes.into())] }
    }

    fn logs(&self, kind: LogKind, since: u64) -> FromBroker {
        let all = self.lines.get(&kind).map_or(&[][..], Vec::as_slice);
        let lines = all.get(usize::try_from(since).unwrap()..).unwrap_or_default().to_vec();
        let job = self.job.unwrap();
        let is_final = self.state.job(job).is_none_or(|job| !job.is_live());
        FromBroker::Logs { job, kind, from: since, lines, is_final }
    }

    fn writes(&mut self, kind: LogKind, text: &str, stderr: bool) -> Vec<FromBroker> {
        let lines = self.lines.entry(kind).or_default();
        lines.push(LogLine { text: text.into(), at_ms: UnixMillis(1), stderr });
        let from = lines.len() as u64 - 1;
        vec![self.logs(kind, from)]
    }

    /// Ends the job: the event, and the end of both logs.
    fn ends(&mut self, event: Event) -> Vec<FromBroker> {
        let event = self.happens(event);
        let end = |kind: LogKind| self.logs(kind, self.lines.get(&kind).map_or(0, |lines| lines.len() as u64));
        vec![event, end(LogKind::Build), end(LogKind::Run)]
    }

    fn submit(&mut self, body: &str) -> JobId {
        let value = json::parse(body.as_bytes()).unwrap();
        let job = job_id(value.get("definition").unwrap());
        self.posted.push(body.to_owned());
        self.job = Some(job);
        self.happens(Event::JobQueued {
            job,
            body: Digest::of(body.as_bytes()),
            namespace: Namespace::default(),
            via: Via::Http,
            needs: protocol::definition::Needs::default(),
            priority: 0,
            debug: false,
            runs_before: 0,
        });
        job
    }

    fn act(&mut self, act: &Act) -> Vec<FromBroker> {
        let job = self.job.unwrap();
        match *act {
            Act::Claim => vec![self.happens(Event::RunClaimed { job, run: 1, worker: "w1".parse().unwrap() })],
            Act::Line(text) => self.writes(LogKind::Run, text, false),
            Act::ErrLine(text) => self.writes(LogKind::Run, text, true),
            Act::BuildLine(text) => self.writes(LogKind::Build, text, false),
            Act::Finish(outcome, result) => {
                self.result = Some(result);
                let result = Digest::of(result.as_bytes());
                self.ends(Event::RunFinished {
                    job,
                    run: 1,
                    outcome,
                    result,
                    exit_code: None,
                    image: None,
                    duration_ms: None,
                })
            }
            Act::Cancel(message) => self.ends(Event::JobCancelled { job, message: Some(message.into()) }),
            Act::Break | Act::Stay => Vec::new(),
        }
    }

    /// Answers one request with a status and a body.
    fn answer(&mut self, method: &str, path: &str, body: Vec<u8>) -> (u16, Vec<u8>) {
        self.requests.push(format!("{method} {path}"));
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let since = query.strip_prefix("since=").and_then(|since| since.parse().ok()).unwrap_or(0);
        if method == "POST" && path.ends_with("/cancel") {
            let found = self.job.is_some_and(|job| path.contains(&job.to_string()));
            let answer: &[u8] = if found { b"{\"success\":true}" } else { b"{\"message\":\"Job not found\"}" };
            return (200, answer.to_vec());
        }
        if method == "POST" {
            let job = self.submit(std::str::from_utf8(&body).unwrap());
            return (200, format!("{{\"success\":true,\"jobId\":\"{job}\"}}").into_bytes());
        }
        if let Some(key) = path.strip_prefix("/f/") {
            return match (method, key.strip_suffix("/exists")) {
                ("PUT", None) => {
                    self.blobs.insert(key.to_owned(), body);
                    (200, Vec::new())
                }
                (_, Some(key)) if self.blobs.contains_key(key) => (200, b"{\"exists\":true}".to_vec()),
                _ => (404, b"{\"exists\":false}".to_vec()),
            };
        }
        let known = self.job.is_some_and(|job| path.contains(&job.to_string()));
        if let Some((_, name)) = path.split_once("/outputs/") {
            return self
                .outputs
                .get(name)
                .map_or((404, b"Output file not found".to_vec()), |bytes| (200, bytes.clone()));
        }
        match path.rsplit('/').next() {
            Some("result.json") if known => {
                let data = self.result.unwrap_or("null");
                (200, format!("{{\"data\":{data}}}").into_bytes())
            }
            Some("definition.json") if known => (200, b"{\"data\":{}}".to_vec()),
            Some("run-logs.json") if known => (200, self.stored(LogKind::Run, since)),
            Some("build-logs.json") if known => (200, self.stored(LogKind::Build, since)),
            Some("run-logs.json" | "build-logs.json") => {
                (200, b"{\"data\":[],\"sliceStart\":0,\"nextCursor\":0}".to_vec())
            }
            Some("result.json" | "definition.json") => (200, b"{\"data\":null}".to_vec()),
            _ => {
                let job = self.job.map_or_else(String::new, |job| {
                    format!("\"{job}\":{{\"queuedTime\":1793793600000,\"state\":\"Queued\",\"worker\":\"\"}}")
                });
                (200, format!("{{\"data\":{{{job}}}}}").into_bytes())
            }
        }
    }

    fn stored(&self, kind: LogKind, since: usize) -> Vec<u8> {
        let lines = self.lines.get(&kind).map_or(&[][..], Vec::as_slice);
        let data = serde_json::to_string(lines.get(since..).unwrap_or_default()).unwrap();
        let next = lines.len();
        format!("{{\"data\":{data},\"sliceStart\":{since},\"nextCursor\":{next},\"isFinal\":true}}").into_bytes()
    }
}

async fn connection(stream: TcpStream, held: Arc<Mutex<Held>>) {
    let mut head = vec![0; 16 * 1024];
    let seen = loop {
        let seen = stream.peek(&mut head).await.unwrap_or(0);
        let text = String::from_utf8_lossy(&head[..seen]).to_ascii_lowercase();
        if seen == 0 || text.contains("\r\n\r\n") {
            break text;
        }
        tokio::task::yield_now().await;
    };
    if seen.contains("upgrade: websocket") {
        socket(stream, held).await;
    } else if !seen.is_empty() {
        http(stream, held).await;
    }
}

async fn http(mut stream: TcpStream, held: Arc<Mutex<Held>>) {
    let mut bytes = Vec::new();
    let (head, body_start, length) = loop {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            });
            break (head, end + 4, length.unwrap_or(0));
        }
    };
    while bytes.len() < body_start + length {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, body) = held.lock().unwrap().answer(method, path, bytes[body_start..].to_vec());
    let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
}

async fn socket(stream: TcpStream, held: Arc<Mutex<Held>>) {
    #[expect(clippy::result_large_err, reason = "the signature that the websocket library asks for")]
    let choose = |request: &Request, mut response: Response| {
        assert_eq!(request.headers()["sec-websocket-protocol"], SUBPROTOCOL_MESSAGEPACK);
        response.headers_mut().insert("sec-websocket-protocol", SUBPROTOCOL_MESSAGEPACK.parse().unwrap());
        Ok(response)
    };
    let Ok(mut socket) = accept_hdr_async(stream, choose).await else { return };
    let Some(ToBroker::Hello(hello)) = receive(&mut socket).await else { return };
    let opening = {
        let mut held = held.lock().unwrap();
        held.resumes.push(hello.resume);
        let (queue, head) = (held.state.queue(), held.state.head());
        let welcome = FromBroker::Welcome { version: PROTOCOL_VERSION, queue, head, lease_ms: 1, gone: Vec::new() };
        let second = match hello.resume {
            None => FromBroker::Snapshot { head, state: StateBytes(held.state.encode().into()) },
            Some(at) => {
                let after = usize::try_from(at.seq).unwrap();
                let records = held.records[after..].iter().cloned().map(RecordBytes).collect();
                FromBroker::Events { from_seq: at.seq + 1, records }
            }
        };
        vec![welcome, second]
    };
    send(&mut socket, opening).await;
    let mut followed = 0;
    while followed < 2 {
        match receive(&mut socket).await {
            Some(ToBroker::FollowLogs { kind, since, .. }) => {
                followed += 1;
                let lines = held.lock().unwrap().logs(kind, since);
                send(&mut socket, vec![lines]).await;
            }
            Some(_) => {}
            None => return,
        }
    }
    loop {
        let act = held.lock().unwrap().script.pop_front();
        match act {
            Some(Act::Break) => return,
            Some(Act::Stay) | None => break,
            Some(act) => {
                let messages = held.lock().unwrap().act(&act);
                send(&mut socket, messages).await;
            }
        }
    }
    while receive(&mut socket).await.is_some() {}
}

async fn receive(socket: &mut WebSocketStream<TcpStream>) -> Option<ToBroker> {
    loop {
        match socket.next().await? {
            Ok(Message::Binary(frame)) => return Some(Encoding::MessagePack.decode(&frame).unwrap()),
            Ok(Message::Close(_)) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

async fn send(socket: &mut WebSocketStream<TcpStream>, messages: Vec<FromBroker>) {
    for message in messages {
        if socket.send(Message::Binary(Encoding::MessagePack.encode(&message).into())).await.is_err() {
            return;
        }
    }
}
