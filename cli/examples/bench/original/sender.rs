//! A server that tells its sockets what the original tells them, when the original tells it: everything after each submission,
//! after each registration and every 10 s, and one job when it runs or has ended. It makes the changes itself when it is asked to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::time::interval;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

const WHOLE_EVERY: Duration = Duration::from_secs(10);

/// What tells a websocket's request from a plain one.
const PEEKED_BYTES: usize = 8;

type Sink = SplitSink<WebSocketStream<TcpStream>, Message>;

#[derive(Default)]
struct Sender {
    /// The jobs as they are written.
    jobs: BTreeMap<String, String>,
    workers: BTreeMap<String, String>,
    sinks: BTreeMap<u64, Sink>,
    sockets: u64,
    changes: u64,
}

/// Serves until it is killed.
pub(crate) async fn serve(port: u16, jobs: u64) -> anyhow::Result<()> {
    let mut sender = Sender::default();
    for number in 0..jobs {
        sender.set(&id(number), &entry("Queued", ""));
    }
    let sender = Arc::new(Mutex::new(sender));
    let ticking = sender.clone();
    tokio::spawn(async move {
        let mut ticks = interval(WHOLE_EVERY);
        loop {
            ticks.tick().await;
            ticking.lock().await.tell_whole().await;
        }
    });
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            let mut start = [0; PEEKED_BYTES];
            let _ = match stream.peek(&mut start).await {
                Ok(count) if start[..count].starts_with(b"GET /q/") => socket(stream, &sender).await,
                _ => requests(stream, &sender).await,
            };
        });
    }
}

/// Requests without a body: one for a change, others for a sign of life.
async fn requests(mut stream: TcpStream, sender: &Mutex<Sender>) -> anyhow::Result<()> {
    let mut request = Vec::new();
    while stream.read_buf(&mut request).await? > 0 {
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        if request.starts_with(b"GET /change") {
            sender.lock().await.change().await;
        }
        request.clear();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK").await?;
    }
    Ok(())
}

async fn socket(stream: TcpStream, sender: &Mutex<Sender>) -> anyhow::Result<()> {
    let (mut sink, mut frames) = tokio_tungstenite::accept_async(stream).await?.split();
    let socket = {
        let mut sender = sender.lock().await;
        sink.send(Message::Text(sender.all_workers())).await?;
        sink.send(Message::Text(sender.whole())).await?;
        sender.sockets += 1;
        let socket = sender.sockets;
        sender.sinks.insert(socket, sink);
        socket
    };
    while let Some(Ok(frame)) = frames.next().await {
        let Message::Text(text) = frame else { continue };
        let mut sender = sender.lock().await;
        if text.as_str() == "PING" {
            if let Some(sink) = sender.sinks.get_mut(&socket) {
                sink.send(Message::Text("PONG".into())).await?;
            }
            continue;
        }
        let message: Value = serde_json::from_str(&text)?;
        if message["type"] == "WorkerRegistration" {
            sender.workers.insert(message["payload"]["id"].to_string(), message["payload"].to_string());
            let workers = sender.all_workers();
            sender.tell(workers).await;
            sender.tell_whole().await;
        }
    }
    sender.lock().await.sinks.remove(&socket);
    Ok(())
}

impl Sender {
    fn set(&mut self, job: &str, entry: &Value) {
        self.jobs.insert(job.to_owned(), entry.to_string());
    }

    /// The next of the three changes of a job's life; returns when all have been sent it.
    async fn change(&mut self) {
        let (job, state) = (id(u64::MAX - self.changes / 3), self.changes % 3);
        self.changes += 1;
        let worker = "00000000-0000-4000-8000-000000000000";
        match state {
            0 => self.set(&job, &entry("Queued", "")),
            1 => self.set(&job, &entry("Running", worker)),
            _ => {
                let mut ended = entry("Finished", worker);
                ended["finishedReason"] = "Success".into();
                self.set(&job, &ended);
            }
        }
        if state == 0 {
            return self.tell_whole().await;
        }
        let entry = self.jobs.get(&job).map_or("null", String::as_str);
        let payload = format!(r#"{{"state":{{"jobs":{{"{job}":{entry}}}}},"isSubset":true}}"#);
        self.tell(format!(r#"{{"type":"JobStateUpdates","payload":{payload}}}"#).into()).await;
    }

    fn whole(&self) -> Utf8Bytes {
        let jobs: Vec<_> = self.jobs.iter().map(|(job, entry)| format!("\"{job}\":{entry}")).collect();
        let payload = format!(r#"{{"state":{{"jobs":{{{}}}}},"isSubset":false}}"#, jobs.join(","));
        format!(r#"{{"type":"JobStates","payload":{payload}}}"#).into()
    }

    fn all_workers(&self) -> Utf8Bytes {
        let workers: Vec<_> = self.workers.values().map(String::as_str).collect();
        format!(r#"{{"type":"Workers","payload":{{"workers":[{}]}}}}"#, workers.join(",")).into()
    }

    async fn tell_whole(&mut self) {
        self.tell(self.whole()).await;
    }

    async fn tell(&mut self, text: Utf8Bytes) {
        let sends = self.sinks.values_mut().map(|sink| sink.send(Message::Text(text.clone())));
        let _ = join_all(sends).await;
    }
}

fn id(number: u64) -> String {
    format!("{number:064x}")
}

fn entry(state: &str, worker: &str) -> Value {
    let now = broker::clock::now().0;
    json!({ "queuedTime": now, "state": state, "time": now, "worker": worker, "namespaces": ["_"] })
}
