//! NATS JetStream, each append synced before it is acknowledged. Speaks the client protocol itself.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};

use super::drive::Link;
use super::line::{Line, first_line};
use super::program::{Program, Unavailable, find, says};
use crate::process::free_port;

/// `sync_interval: always` came with this version; without it an acknowledgement says nothing about the disk.
const VERSION_LEAST: (u32, u32) = (2, 10);

const CONSUMER: &str = "workers";

/// How long the server keeps a worker's question: longer than anything is measured.
const EXPIRES_NANOS: u64 = 60_000_000_000;

pub(super) struct Nats {
    line: Line,
    queue: String,
    /// Where this connection's answers go.
    inbox: String,
    slots: u32,
    /// Jobs that were asked for and have not come.
    asked: u32,
}

/// A message to this connection.
struct Delivered {
    /// Where an answer to it goes: for a job, its acknowledgement.
    reply: Option<String>,
    headers: String,
    payload: String,
}

impl Link for Nats {
    const NAME: &str = "NATS JetStream (sync_interval always)";
    const FOLDER: &str = "peer-nats";
    const LIFE: &str = "publish, pull, acknowledgement with an answer; each publish and each end is synced by itself";

    async fn start(folder: &Path) -> Result<Program, Unavailable> {
        let binary = find("nats-server")?;
        let said = says(&binary, &["--version"])?;
        let version = said.rsplit('v').next().unwrap_or_default().to_owned();
        let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or_default());
        let found = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        if found < VERSION_LEAST {
            return Err(Unavailable(format!("{said} cannot sync each append; deploy/bench-peers fetches a newer one")));
        }
        let port = free_port()?;
        let config = folder.join("nats.conf");
        let text = format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\", sync_interval: always }}\n",
            folder.display()
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new(binary);
        command.arg("-c").arg(config);
        Ok(Program::start(command, port, version, folder).await?)
    }

    async fn publisher(port: u16, queue: &str) -> anyhow::Result<Self> {
        let mut nats = Self::open(port, queue, 0).await?;
        // What is acknowledged leaves the stream: a queue of jobs.
        let stream = format!(
            r#"{{"name":"{queue}","subjects":["{queue}"],"storage":"file","retention":"workqueue","num_replicas":1}}"#
        );
        nats.ask(&format!("$JS.API.STREAM.CREATE.{queue}"), &stream).await?;
        Ok(nats)
    }

    async fn worker(port: u16, queue: &str, _number: u32, slots: u32) -> anyhow::Result<Self> {
        let mut nats = Self::open(port, queue, slots).await?;
        let consumer = format!(
            r#"{{"stream_name":"{queue}","config":{{"durable_name":"{CONSUMER}","ack_policy":"explicit","deliver_policy":"all","replay_policy":"instant"}}}}"#
        );
        nats.ask(&format!("$JS.API.CONSUMER.DURABLE.CREATE.{queue}.{CONSUMER}"), &consumer).await?;
        nats.pull();
        nats.line.flush().await?;
        Ok(nats)
    }

    fn put(&mut self, payload: &str) {
        let head = format!("PUB {} {} {}\r\n", self.queue, self.inbox, payload.len());
        say(&mut self.line, &head, payload);
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        self.line.flush().await
    }

    async fn answered(&mut self) -> anyhow::Result<u64> {
        let mut count = 0;
        loop {
            while let Some(answer) = self.next()? {
                ensure!(answer.payload.contains("\"seq\""), "not stored: {}", answer.payload);
                count += 1;
            }
            if count > 0 {
                return Ok(count);
            }
            self.line.read().await?;
        }
    }

    async fn work(&mut self) -> anyhow::Result<u64> {
        let mut ended = 0;
        self.line.read().await?;
        while let Some(Delivered { reply, headers, payload }) = self.next()? {
            match reply {
                Some(job) => {
                    self.asked = self.asked.saturating_sub(1);
                    // With an inbox, so that the acknowledgement is itself acknowledged.
                    let head = format!("PUB {job} {} 4\r\n", self.inbox);
                    say(&mut self.line, &head, "+ACK");
                }
                None if headers.is_empty() && payload.is_empty() => ended += 1,
                None => bail!("a worker was told {headers} {payload}"),
            }
        }
        if self.asked <= self.slots / 2 {
            self.pull();
        }
        self.line.flush().await?;
        Ok(ended)
    }
}

fn say(line: &mut Line, head: &str, payload: &str) {
    for part in [head, payload, "\r\n"] {
        line.output.extend_from_slice(part.as_bytes());
    }
}

impl Nats {
    async fn open(port: u16, queue: &str, slots: u32) -> anyhow::Result<Self> {
        let line = Line::connect(port).await?;
        let inbox = format!("_INBOX.{}", line.local_port()?);
        let mut nats = Self { line, queue: queue.to_owned(), inbox, slots, asked: 0 };
        let hello = r#"CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"protocol":1,"lang":"bench","version":"1"}"#;
        let subscribe = format!("\r\nSUB {} 1\r\n", nats.inbox);
        nats.line.output.extend_from_slice(hello.as_bytes());
        nats.line.output.extend_from_slice(subscribe.as_bytes());
        nats.line.flush().await?;
        Ok(nats)
    }

    /// A request to the server itself.
    async fn ask(&mut self, subject: &str, payload: &str) -> anyhow::Result<()> {
        let head = format!("PUB {subject} {} {}\r\n", self.inbox, payload.len());
        say(&mut self.line, &head, payload);
        self.line.flush().await?;
        loop {
            if let Some(answer) = self.next()? {
                ensure!(!answer.payload.contains("\"error\""), "{subject}: {}", answer.payload);
                return Ok(());
            }
            self.line.read().await?;
        }
    }

    /// Asks for as many jobs as fit.
    fn pull(&mut self) {
        let more = self.slots - self.asked;
        let payload = format!(r#"{{"batch":{more},"expires":{EXPIRES_NANOS}}}"#);
        let head =
            format!("PUB $JS.API.CONSUMER.MSG.NEXT.{}.{CONSUMER} {} {}\r\n", self.queue, self.inbox, payload.len());
        say(&mut self.line, &head, &payload);
        self.asked = self.slots;
    }

    /// The next message, when all of it was read.
    fn next(&mut self) -> anyhow::Result<Option<Delivered>> {
        loop {
            let rest = self.line.rest();
            let Some((head, at)) = first_line(rest) else { return Ok(None) };
            let mut words = head.split(' ');
            let kind = words.next().unwrap_or_default();
            let words: Vec<&str> = words.collect();
            match kind {
                "MSG" | "HMSG" => {
                    let length: usize = words.last().context("a message without a length")?.parse()?;
                    let (headers, reply) = match (kind, words.as_slice()) {
                        ("MSG", [_, _, _]) => (0, None),
                        ("MSG", [_, _, reply, _]) => (0, Some((*reply).to_owned())),
                        ("HMSG", [_, _, headers, _]) => (headers.parse()?, None),
                        ("HMSG", [_, _, reply, headers, _]) => (headers.parse()?, Some((*reply).to_owned())),
                        _ => bail!("not a message: {head}"),
                    };
                    let Some(body) = rest.get(at..at + length) else { return Ok(None) };
                    let (headers, payload) =
                        body.split_at_checked(headers).context("headers longer than the message")?;
                    let [headers, payload] = [headers, payload].map(|part| String::from_utf8_lossy(part).into_owned());
                    // Its end may still be on its way.
                    if rest.len() < at + length + 2 {
                        return Ok(None);
                    }
                    self.line.take(at + length + 2);
                    return Ok(Some(Delivered { reply, headers, payload }));
                }
                "PING" => {
                    self.line.output.extend_from_slice(b"PONG\r\n");
                    self.line.take(at);
                }
                "-ERR" => bail!("refused: {head}"),
                "INFO" | "+OK" | "PONG" => self.line.take(at),
                other => bail!("not understood: {other}"),
            }
        }
    }
}
