//! Pages and workers of the original's kind that cost next to nothing: they share this process, and its cores are the server's.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::interval;

use super::QUEUE;
use crate::frames::{CLOSE, Frames, PING, PONG, masked};

const TEXT: u8 = 1;
const WHOLE: &[u8] = b"{\"type\":\"JobStates\"";
const UPDATES: &[u8] = b"{\"type\":\"JobStateUpdates\"";

/// The original's numbers.
const PING_EVERY: Duration = Duration::from_secs(5);
const REGISTER_EVERY: Duration = Duration::from_secs(10);

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;

/// What all pages got, headers of frames included, heartbeats not.
pub(super) struct Tally {
    input: RefCell<Vec<u8>>,
    pub(super) messages: Cell<u64>,
    pub(super) bytes: Cell<u64>,
    pub(super) wholes: Cell<u64>,
    pub(super) whole_bytes: Cell<u64>,
    pub(super) news: Notify,
}

impl Default for Tally {
    fn default() -> Self {
        let (messages, bytes, wholes, whole_bytes) = Default::default();
        Self { input: RefCell::new(vec![0; READ_BYTES]), messages, bytes, wholes, whole_bytes, news: Notify::new() }
    }
}

impl Tally {
    pub(super) fn forget(&self) {
        [&self.messages, &self.bytes, &self.wholes, &self.whole_bytes].into_iter().for_each(|count| count.set(0));
    }

    fn count(&self, message: &[u8], length: u64) {
        let add = |count: &Cell<u64>, more| count.set(count.get() + more);
        add(&self.messages, 1);
        add(&self.bytes, length);
        if message.starts_with(WHOLE) {
            add(&self.wholes, 1);
            add(&self.whole_bytes, length);
            self.news.notify_one();
        }
    }
}

async fn open(port: u16, role: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    // The key is fixed: the answer to it is not what is measured.
    let request = format!(
        "GET /q/{QUEUE}/{role} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    // Byte by byte: the first message follows at once.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101"), "no upgrade: {}", String::from_utf8_lossy(&head));
    Ok(stream)
}

/// A page, until it is dropped.
pub(super) async fn page(port: u16, tally: Rc<Tally>) -> anyhow::Result<()> {
    let mut stream = open(port, "client").await?;
    let (mut frames, mut pings) = (Frames::default(), interval(PING_EVERY));
    loop {
        tokio::select! {
            ready = stream.readable() => ready?,
            _ = pings.tick() => {
                stream.write_all(&masked(TEXT, b"PING")).await?;
                continue;
            }
        }
        let pong = {
            let mut input = tally.input.borrow_mut();
            let count = match stream.try_read(&mut input) {
                Ok(0) => bail!("the server closed a page's socket"),
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            };
            let (mut chunk, mut pong) = (&input[..count], None);
            while let Some((opcode, message, length)) = frames.next(&mut chunk, |_| 0) {
                match opcode {
                    PING => pong = Some(masked(PONG, message)),
                    CLOSE => bail!("the server closed a page's socket with a word"),
                    _ if message.starts_with(b"{") => tally.count(message, length),
                    _ => {}
                }
            }
            pong
        };
        if let Some(pong) = pong {
            stream.write_all(&pong).await?;
        }
    }
}

/// A worker: it registers every 10 s, and if it works, it has run every job that it is told of in no time.
pub(super) struct Worker {
    pub(super) port: u16,
    pub(super) number: usize,
    pub(super) works: bool,
}

impl Worker {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut stream = open(self.port, "worker").await?;
        let (mut frames, mut input) = (Frames::default(), vec![0; READ_BYTES]);
        let mut others = None;
        let (mut pings, mut registrations) = (interval(PING_EVERY), interval(REGISTER_EVERY));
        loop {
            let said = tokio::select! {
                count = stream.read(&mut input) => {
                    let count = count?;
                    ensure!(count > 0, "the server closed a worker's socket");
                    let (mut chunk, mut said) = (&input[..count], Vec::new());
                    let is_its = |start: &[u8]| self.works && (start.starts_with(UPDATES) || start.starts_with(WHOLE));
                    let keep = |start: &[u8]| if is_its(start) { usize::MAX } else { 0 };
                    while let Some((opcode, message, _)) = frames.next(&mut chunk, keep) {
                        match opcode {
                            PING => said.extend(masked(PONG, message)),
                            CLOSE => bail!("the server closed a worker's socket with a word"),
                            _ if is_its(message) => said.extend(self.work(message, &mut others)?),
                            _ => {}
                        }
                    }
                    said
                }
                _ = pings.tick() => masked(TEXT, b"PING"),
                _ = registrations.tick() => masked(TEXT, self.registration().to_string().as_bytes()),
            };
            stream.write_all(&said).await?;
        }
    }

    fn id(&self) -> String {
        format!("00000000-0000-4000-8000-{:012}", self.number)
    }

    fn registration(&self) -> Value {
        let payload = json!({ "time": now(), "version": "0.54.85", "id": self.id(), "cpus": 64, "gpus": 0, "maxJobDuration": "20m" });
        json!({ "type": "WorkerRegistration", "payload": payload })
    }

    /// Takes every job that waits, but for those that did so when it came.
    fn work(&self, message: &[u8], others: &mut Option<HashSet<String>>) -> anyhow::Result<Vec<u8>> {
        let message: Value = serde_json::from_slice(message)?;
        let jobs = message["payload"]["state"]["jobs"].as_object().into_iter().flatten();
        let waiting = jobs.filter(|(_, job)| job["state"] == "Queued").map(|(job, _)| job);
        let Some(others) = others else {
            *others = Some(waiting.cloned().collect());
            return Ok(Vec::new());
        };
        let mut said = Vec::new();
        for job in waiting.filter(|job| !others.contains(*job)) {
            let running = json!({ "type": "Running", "worker": self.id(), "time": now() });
            let result = json!({ "StatusCode": 0, "isTimedOut": false, "duration": 1, "logs": [], "outputs": {} });
            let ended = json!({ "type": "Finished", "reason": "Success", "worker": self.id(), "time": now(), "result": result });
            for (state, value) in [("Running", running), ("Finished", ended)] {
                let payload = json!({ "job": job, "tag": self.id(), "state": state, "value": value });
                let change = json!({ "type": "StateChange", "payload": payload });
                said.extend(masked(TEXT, change.to_string().as_bytes()));
            }
        }
        Ok(said)
    }
}

fn now() -> u64 {
    broker::clock::now().0
}
