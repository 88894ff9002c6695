//! A server of the original's kind, as far as its workers see it: jobs in memory, no grants and no refusals, uploads and
//! downloads by redirects to storage on another port. Its times are shorter, so that nobody waits.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use protocol::id::JobId;
use protocol::original::preferred::goes_before;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::peer::until;

/// How often it tells all jobs; the original does each ten seconds.
const FULL_EVERY: Duration = Duration::from_millis(300);
/// How often it looks for runs of workers that are gone; the original does each five seconds.
const ORPHANS_EVERY: Duration = Duration::from_millis(300);
/// Frames that wait for a socket.
const LINE: usize = 4096;
const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

pub(crate) struct OriginalServer {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    storage: SocketAddr,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queues: BTreeMap<String, BTreeMap<String, Job>>,
    sockets: BTreeMap<u64, Socket>,
    next_socket: u64,
    blobs: BTreeMap<String, Vec<u8>>,
    /// What storage was asked to take: whole heads.
    uploads: Vec<String>,
    quirks: Quirks,
}

/// What it does on purpose.
#[derive(Default)]
pub(crate) struct Quirks {
    /// Each claim comes too late: this worker has the job already.
    pub(crate) rival: Option<String>,
    /// So many ends of runs are lost, and the lines they come over break.
    pub(crate) loses_ends: usize,
    /// Ends of runs are not heard at all.
    pub(crate) is_deaf_for_ends: bool,
    /// What is no message comes before each that is.
    pub(crate) sends_rubbish: bool,
}

struct Socket {
    queue: String,
    worker: Option<String>,
    out: mpsc::Sender<String>,
    task: Option<tokio::task::AbortHandle>,
}

/// A job, and what came of it.
#[derive(Clone, Default)]
pub(crate) struct Job {
    pub(crate) state: &'static str,
    pub(crate) worker: String,
    time: u64,
    queued: u64,
    text: String,
    pub(crate) finished: Option<Value>,
    pub(crate) logs: Vec<Value>,
    /// How often a claim was accepted, and how many ends came.
    pub(crate) claims: usize,
    pub(crate) ends: usize,
    /// Shown to nobody.
    is_hidden: bool,
}

impl Job {
    pub(crate) fn text(&self, stderr: bool) -> String {
        let is = |line: &&Value| line[2].as_bool().unwrap_or(false) == stderr;
        self.logs.iter().filter(is).filter_map(|line| line[0].as_str()).collect()
    }
}

impl OriginalServer {
    pub(crate) async fn start() -> Self {
        let storage = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Arc::new(Shared { storage: storage.local_addr().unwrap(), state: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut server = Self { address: listener.local_addr().unwrap(), shared, tasks: Vec::new() };
        let shared = Arc::clone(&server.shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = storage.accept().await {
                tokio::spawn(store(stream, Arc::clone(&shared)));
            }
        });
        server.listen(listener);
        server
    }

    fn listen(&mut self, listener: TcpListener) {
        let shared = Arc::clone(&self.shared);
        self.tasks.push(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        }));
        let shared = Arc::clone(&self.shared);
        self.tasks.push(tokio::spawn(async move {
            let mut full = tokio::time::interval(FULL_EVERY);
            let mut orphans = tokio::time::interval(ORPHANS_EVERY);
            loop {
                tokio::select! {
                    _ = full.tick() => shared.state().tell_all_of_everything(),
                    _ = orphans.tick() => shared.state().requeue_orphans(),
                }
            }
        }));
    }

    pub(crate) fn api(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn quirks(&self, change: impl FnOnce(&mut Quirks)) {
        change(&mut self.shared.state().quirks);
    }

    pub(crate) fn put_blob(&self, key: &str, bytes: &[u8]) {
        self.shared.state().blobs.insert(key.to_owned(), bytes.to_vec());
    }

    pub(crate) fn blob(&self, key: &str) -> Option<Vec<u8>> {
        self.shared.state().blobs.get(key).cloned()
    }

    /// The heads of the uploads that came to storage.
    pub(crate) fn uploads(&self) -> Vec<String> {
        self.shared.state().uploads.clone()
    }

    pub(crate) fn submit(&self, queue: &str, (id, text): (JobId, String)) -> String {
        let mut state = self.shared.state();
        let queue_jobs = state.queues.entry(queue.to_owned()).or_default();
        let queued = 1_000 + queue_jobs.len() as u64;
        queue_jobs.insert(id.to_string(), Job { state: "Queued", time: queued, queued, text, ..Job::default() });
        state.tell_everything(queue);
        id.to_string()
    }

    /// Nobody wants the job any more. Its workers are told nothing that names it; they miss it in the next full message.
    pub(crate) fn cancel(&self, queue: &str, job: &str) {
        let mut state = self.shared.state();
        state.job(queue, job).is_hidden = true;
        state.tell(queue, &updates(json!({})));
    }

    /// The job is deleted: its workers are told at once.
    pub(crate) fn delete(&self, queue: &str, job: &str) {
        let mut state = self.shared.state();
        state.job(queue, job).is_hidden = true;
        state.tell(queue, &json!({"type": "ClearJobCache", "payload": {"jobId": job, "namespace": "_"}}).to_string());
    }

    /// Somebody else says that it runs the job.
    pub(crate) fn claim_as(&self, queue: &str, job: &str, worker: &str) {
        self.shared.state().claim(queue, job, worker, 5);
    }

    pub(crate) fn job(&self, queue: &str, job: &str) -> Job {
        self.shared.state().job(queue, job).clone()
    }

    pub(crate) async fn until(&self, queue: &str, job: &str, mut is_so: impl FnMut(&Job) -> bool) -> Job {
        until("the server has it", async || is_so(&self.job(queue, job))).await;
        self.job(queue, job)
    }

    pub(crate) async fn ended(&self, queue: &str, job: &str) -> Value {
        self.until(queue, job, |job| job.finished.is_some()).await.finished.unwrap()
    }

    /// Who is registered.
    pub(crate) fn workers(&self) -> BTreeSet<String> {
        self.shared.state().sockets.values().filter_map(|socket| socket.worker.clone()).collect()
    }

    /// All lines break.
    pub(crate) fn break_lines(&self) {
        self.shared.state().break_all();
    }

    /// It is gone: nobody can connect.
    pub(crate) async fn stop(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            let _ = task.await;
        }
        self.break_lines();
    }

    /// It is back under its address, with its jobs.
    pub(crate) async fn start_again(&mut self) {
        let listener = bind(self.address).await;
        self.listen(listener);
    }

    /// Looks for workers that are gone, as if its time had come.
    pub(crate) fn requeue_orphans(&self) {
        self.shared.state().requeue_orphans();
    }
}

/// Listens at an address that was in use a moment ago.
pub(crate) async fn bind(address: SocketAddr) -> TcpListener {
    let mut bound = None;
    until("the address is free", async || {
        bound = TcpListener::bind(address).await.ok();
        bound.is_some()
    })
    .await;
    bound.unwrap()
}

impl Drop for OriginalServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

fn updates(jobs: Value) -> String {
    json!({"type": "JobStateUpdates", "payload": {"state": {"jobs": jobs}, "isSubset": true}}).to_string()
}

impl State {
    fn job(&mut self, queue: &str, job: &str) -> &mut Job {
        self.queues.get_mut(queue).unwrap().get_mut(job).unwrap()
    }

    fn entries(&self, queue: &str) -> Value {
        let shown = self.queues.get(queue).into_iter().flatten().filter(|(_, job)| !job.is_hidden);
        shown.map(|(id, job)| (id.clone(), entry(job))).collect::<serde_json::Map<_, _>>().into()
    }

    fn everything(&self, queue: &str) -> String {
        let jobs = self.entries(queue);
        json!({"type": "JobStates", "payload": {"state": {"jobs": jobs}, "isSubset": false}}).to_string()
    }

    fn tell(&self, queue: &str, frame: &str) {
        for socket in self.sockets.values().filter(|socket| socket.queue == queue) {
            if self.quirks.sends_rubbish {
                for rubbish in ["hello", "{", r#"{"type":"JobStates","payload":{}}"#, r#"{"type":"New","payload":[1]}"#]
                {
                    let _ = socket.out.try_send(rubbish.to_owned());
                }
            }
            let _ = socket.out.try_send(frame.to_owned());
        }
    }

    fn tell_everything(&self, queue: &str) {
        self.tell(queue, &self.everything(queue));
    }

    fn tell_all_of_everything(&self) {
        let queues: BTreeSet<&String> = self.sockets.values().map(|socket| &socket.queue).collect();
        queues.into_iter().for_each(|queue| self.tell_everything(queue));
    }

    fn tell_one(&mut self, queue: &str, job: &str) {
        let jobs = match self.job(queue, job) {
            hidden if hidden.is_hidden => json!({}),
            shown => json!({job: entry(shown)}),
        };
        self.tell(queue, &updates(jobs));
    }

    fn claim(&mut self, queue: &str, job: &str, worker: &str, time: u64) {
        let found = self.job(queue, job);
        let is_accepted = match found.state {
            "Queued" => true,
            "Running" => found.worker != worker && goes_before(worker, &found.worker),
            _ => false,
        };
        if is_accepted {
            (found.state, found.worker, found.time) = ("Running", worker.to_owned(), time);
            found.claims += 1;
            self.tell_one(queue, job);
        }
    }

    fn requeue_orphans(&mut self) {
        let known: BTreeSet<_> = self.sockets.values().filter_map(|socket| socket.worker.clone()).collect();
        let is_rival = |worker: &str| self.quirks.rival.as_deref() == Some(worker) || worker.starts_with('_');
        let mut lost = Vec::new();
        for (queue, jobs) in &self.queues {
            let is_lost = |job: &Job| job.state == "Running" && !known.contains(&job.worker) && !is_rival(&job.worker);
            lost.extend(jobs.iter().filter(|(_, job)| is_lost(job)).map(|(id, _)| (queue.clone(), id.clone())));
        }
        for (queue, job) in lost {
            let found = self.job(&queue, &job);
            (found.state, found.worker) = ("Queued", String::new());
            self.tell_one(&queue, &job);
        }
    }

    fn break_all(&mut self) {
        for (_, socket) in std::mem::take(&mut self.sockets) {
            if let Some(task) = socket.task {
                task.abort();
            }
        }
    }

    fn hear(&mut self, socket: u64, frame: &str) {
        let Some(known) = self.sockets.get_mut(&socket) else { return };
        let queue = known.queue.clone();
        if frame == "PING" {
            let pong = format!("PONG {}", known.worker.as_deref().unwrap_or("unknown"));
            let _ = known.out.try_send(pong);
            return;
        }
        let message: Value = serde_json::from_str(frame).expect("a worker sends JSON");
        let payload = &message["payload"];
        match message["type"].as_str().unwrap() {
            "WorkerRegistration" => {
                assert!(payload["cpus"].is_u64() && payload["gpus"].is_u64() && payload["version"].is_string());
                known.worker = Some(payload["id"].as_str().unwrap().to_owned());
                self.tell_everything(&queue);
            }
            "RequestJobDefinitions" => {
                let ids = payload["jobIds"].as_array().unwrap().iter().filter_map(Value::as_str);
                let jobs = self.queues.get(&queue);
                let known = ids.filter_map(|id| Some(format!("\"{id}\":{}", jobs?.get(id)?.text)));
                let known = known.collect::<Vec<_>>().join(",");
                if !known.is_empty() {
                    let frame =
                        format!(r#"{{"type":"BroadcastJobDefinitions","payload":{{"definitions":{{{known}}}}}}}"#);
                    self.tell(&queue, &frame);
                }
            }
            "StateChange" => self.change(socket, &queue, payload),
            "JobStatusLogs" => {
                let worker = known.worker.clone();
                let job = self.job(&queue, payload["jobId"].as_str().unwrap());
                if job.state == "Running" && Some(&job.worker) == worker.as_ref() {
                    job.logs.extend(payload["logs"].as_array().unwrap().iter().cloned());
                }
            }
            "WorkerStatusResponse" => {}
            other => panic!("a worker has no business with {other}"),
        }
    }

    fn change(&mut self, socket: u64, queue: &str, payload: &Value) {
        let (id, value) = (payload["job"].as_str().unwrap().to_owned(), &payload["value"]);
        if !self.queues.get(queue).is_some_and(|jobs| jobs.contains_key(&id)) {
            return;
        }
        match (payload["state"].as_str().unwrap(), value["reason"].as_str()) {
            ("Running", _) => {
                if let Some(rival) = self.quirks.rival.clone() {
                    self.claim(queue, &id, &rival, 5);
                }
                let worker = value["worker"].as_str().unwrap();
                self.claim(queue, &id, worker, value["time"].as_u64().unwrap());
            }
            ("Finished", Some("WorkerLost")) => {
                let job = self.job(queue, &id);
                if job.state == "Running" {
                    (job.state, job.worker) = ("Queued", String::new());
                    self.tell_one(queue, &id);
                }
            }
            ("Finished", Some("Success" | "Error" | "TimedOut")) => {
                if self.quirks.is_deaf_for_ends {
                    return;
                }
                if self.quirks.loses_ends > 0 {
                    self.quirks.loses_ends -= 1;
                    self.sockets.remove(&socket);
                    return;
                }
                let job = self.job(queue, &id);
                job.ends += 1;
                if job.state != "Finished" {
                    (job.state, job.finished) = ("Finished", Some(value.clone()));
                    self.tell_one(queue, &id);
                }
            }
            other => panic!("a worker does not say {other:?}"),
        }
    }
}

fn entry(job: &Job) -> Value {
    json!({"state": job.state, "queuedTime": job.queued, "time": job.time, "worker": job.worker, "namespaces": ["_"]})
}

/// One connection: a websocket, or one request.
async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut seen = [0; 16 * 1024];
    let head = loop {
        let Ok(read @ 1..) = stream.peek(&mut seen).await else { return };
        match String::from_utf8_lossy(&seen[..read]).split_once("\r\n\r\n") {
            Some((head, _)) => break head.to_owned(),
            None => tokio::task::yield_now().await,
        }
    };
    let path = head.split_whitespace().nth(1).unwrap().to_owned();
    if head.to_ascii_lowercase().contains("upgrade: websocket") {
        return socket(stream, &path, &shared).await;
    }
    let mut taken = vec![0; head.len() + 4];
    stream.read_exact(&mut taken).await.unwrap();
    let key = path.strip_prefix("/f/").expect("only blobs are asked for");
    let answer = match key.strip_suffix("/exists") {
        Some(key) if shared.state().blobs.contains_key(key) => reply("200 OK", "", b"{\"exists\":true}"),
        Some(_) => reply("404 Not Found", "", b"{\"exists\":false}"),
        None => {
            let signature = "X-Amz-SignedHeaders=host&X-Amz-Signature=s";
            let location = format!("location: http://{}/bucket/{key}?{signature}\r\n", shared.storage);
            reply("302 Found", &location, b"")
        }
    };
    let _ = stream.write_all(&answer).await;
    let _ = stream.shutdown().await;
    // What comes of a body is not wanted, but an unread one would break the line before the answer is read.
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

fn reply(status: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{more}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// The storage behind the redirects.
async fn store(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut request = Vec::new();
    let end = loop {
        let mut chunk = [0; 16 * 1024];
        let Ok(read @ 1..) = stream.read(&mut chunk).await else { return };
        request.extend_from_slice(&chunk[..read]);
        if let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
    let path = head.split_whitespace().nth(1).unwrap().to_owned();
    let key = path.strip_prefix("/bucket/").unwrap().split('?').next().unwrap().to_owned();
    let answer = if head.starts_with("put ") {
        match head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok()) {
            Some(length) => {
                let mut body = request.split_off(end);
                let had = body.len();
                body.resize(length, 0);
                stream.read_exact(&mut body[had..]).await.unwrap();
                let mut state = shared.state();
                state.uploads.push(head);
                state.blobs.insert(key, body);
                reply("200 OK", "", b"")
            }
            None => reply("411 Length Required", "", b""),
        }
    } else {
        match shared.state().blobs.get(&key) {
            Some(bytes) => reply("200 OK", "", bytes),
            None => reply("404 Not Found", "", b""),
        }
    };
    let _ = stream.write_all(&answer).await;
    let _ = stream.shutdown().await;
}

async fn socket(stream: TcpStream, path: &str, shared: &Arc<Shared>) {
    // It never looks at subprotocols, so it takes none.
    let limits =
        WebSocketConfig::default().max_message_size(Some(FRAME_BYTES_MAX)).max_frame_size(Some(FRAME_BYTES_MAX));
    let Ok(socket) = tokio_tungstenite::accept_async_with_config(stream, Some(limits)).await else { return };
    let queue = path.strip_prefix("/q/").and_then(|rest| rest.strip_suffix("/worker")).unwrap().to_owned();
    let (out, mut waiting) = mpsc::channel(LINE);
    let number = {
        let mut state = shared.state();
        let _ = out.try_send(state.everything(&queue));
        let number = state.next_socket;
        state.next_socket += 1;
        state.sockets.insert(number, Socket { queue, worker: None, out, task: None });
        number
    };
    let of_task = Arc::clone(shared);
    let (mut sink, mut stream) = socket.split();
    let task = tokio::spawn(async move {
        loop {
            tokio::select! {
                frame = waiting.recv() => {
                    // None: it is to break.
                    let Some(frame) = frame else { return };
                    if sink.send(Message::text(frame)).await.is_err() {
                        return;
                    }
                }
                message = stream.next() => match message {
                    Some(Ok(Message::Text(text))) => of_task.state().hear(number, &text),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return,
                },
            }
        }
    });
    if let Some(known) = shared.state().sockets.get_mut(&number) {
        known.task = Some(task.abort_handle());
    }
    let _ = task.await;
    shared.state().sockets.remove(&number);
}
