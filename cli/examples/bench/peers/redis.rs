//! Redis Streams, every write on disk before it is answered. Speaks RESP2 itself.

use std::path::Path;
use std::process::Command;

use anyhow::bail;

use super::drive::Link;
use super::line::{Line, first_line};
use super::program::{Program, Unavailable, find, says};
use crate::process::free_port;

const GROUP: &str = "workers";

/// How long a worker waits for jobs at most, in milliseconds: it asks again then.
const BLOCK_MS: &str = "1000";

pub(super) struct Redis {
    line: Line,
    queue: String,
    /// A worker's name and how many jobs it takes at once.
    worker: String,
    slots: String,
    /// Ends whose answers are to come before the next jobs.
    ending: u64,
}

/// A reply: what of it is looked at.
enum Reply {
    Text(String),
    Number,
    Array(Vec<Self>),
    Nothing,
    Refused(String),
}

impl Link for Redis {
    const NAME: &str = "Redis Streams (appendfsync always)";
    const FOLDER: &str = "peer-redis";
    const LIFE: &str = "XADD, XREADGROUP, XACK for each; an entry stays in the stream";

    async fn start(folder: &Path) -> Result<Program, Unavailable> {
        let binary = find("redis-server")?;
        let said = says(&binary, &["--version"])?;
        let version = said.split(' ').find_map(|word| word.strip_prefix("v=")).unwrap_or_default().to_owned();
        let port = free_port()?;
        let mut command = Command::new(binary);
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--loglevel", "warning"]);
        command.args(["--appendonly", "yes", "--appendfsync", "always", "--dir"]).arg(folder);
        Ok(Program::start(command, port, version, folder).await?)
    }

    async fn publisher(port: u16, queue: &str) -> anyhow::Result<Self> {
        Self::open(port, queue, "publisher".to_owned(), 0).await
    }

    async fn worker(port: u16, queue: &str, number: u32, slots: u32) -> anyhow::Result<Self> {
        let mut redis = Self::open(port, queue, format!("worker-{number}"), slots).await?;
        redis.say(&["XGROUP", "CREATE", queue, GROUP, "0", "MKSTREAM"]);
        redis.line.flush().await?;
        // All workers but the first are told that the group is there.
        redis.reply().await?;
        redis.ask().await?;
        Ok(redis)
    }

    fn put(&mut self, payload: &str) {
        let queue = std::mem::take(&mut self.queue);
        self.say(&["XADD", &queue, "*", "job", payload]);
        self.queue = queue;
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        self.line.flush().await
    }

    async fn answered(&mut self) -> anyhow::Result<u64> {
        let mut count = 0;
        loop {
            while let Some(reply) = self.next()? {
                let Reply::Text(_) = reply else { bail!("XADD answered something else") };
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
        loop {
            match self.reply().await? {
                Reply::Refused(why) => bail!("refused: {why}"),
                Reply::Number => {
                    self.ending -= 1;
                    ended += 1;
                    // Told at once: the publisher need not wait for this worker's next jobs.
                    if self.ending == 0 {
                        return Ok(ended);
                    }
                }
                jobs => {
                    let queue = self.queue.clone();
                    for id in ids(jobs) {
                        self.say(&["XACK", &queue, GROUP, &id]);
                        self.ending += 1;
                    }
                    // The answers to these come before the next jobs.
                    self.ask().await?;
                }
            }
        }
    }
}

impl Redis {
    async fn open(port: u16, queue: &str, worker: String, slots: u32) -> anyhow::Result<Self> {
        let line = Line::connect(port).await?;
        let (queue, slots) = (queue.to_owned(), slots.to_string());
        Ok(Self { line, queue, worker, slots, ending: 0 })
    }

    /// Asks for jobs.
    async fn ask(&mut self) -> anyhow::Result<()> {
        let (queue, worker, slots) = (self.queue.clone(), self.worker.clone(), self.slots.clone());
        let from = ["STREAMS", &queue, ">"];
        let words = ["XREADGROUP", "GROUP", GROUP, &worker, "COUNT", &slots, "BLOCK", BLOCK_MS];
        self.say(&[&words[..], &from].concat());
        self.line.flush().await
    }

    fn say(&mut self, words: &[&str]) {
        let output = &mut self.line.output;
        output.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            output.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            output.extend_from_slice(word.as_bytes());
            output.extend_from_slice(b"\r\n");
        }
    }

    async fn reply(&mut self) -> anyhow::Result<Reply> {
        loop {
            if let Some(reply) = self.next()? {
                return Ok(reply);
            }
            self.line.read().await?;
        }
    }

    /// The next reply, when all of it was read.
    fn next(&mut self) -> anyhow::Result<Option<Reply>> {
        let Some((reply, length)) = parse(self.line.rest())? else { return Ok(None) };
        self.line.take(length);
        Ok(Some(reply))
    }
}

/// The jobs' ids in an answer to XREADGROUP: streams, each with its name and its entries, each with its id.
fn ids(reply: Reply) -> Vec<String> {
    let items = |reply| if let Reply::Array(items) = reply { items } else { Vec::new() };
    let entries = items(reply).into_iter().flat_map(|stream| items(stream).into_iter().nth(1)).flat_map(items);
    let id = |entry| items(entry).into_iter().next();
    entries.filter_map(id).filter_map(|id| if let Reply::Text(id) = id { Some(id) } else { None }).collect()
}

/// One reply at the beginning of `bytes`, and its length.
fn parse(bytes: &[u8]) -> anyhow::Result<Option<(Reply, usize)>> {
    let Some((line, mut at)) = first_line(bytes) else { return Ok(None) };
    let (kind, value) = line.split_at_checked(1).unwrap_or_default();
    let reply = match kind {
        "+" => Reply::Text(value.to_owned()),
        "-" => Reply::Refused(value.to_owned()),
        ":" => Reply::Number,
        "$" => match usize::try_from(value.parse::<i64>()?) {
            Err(_) => Reply::Nothing,
            Ok(length) => {
                let Some(text) = bytes.get(at..at + length + 2) else { return Ok(None) };
                at += length + 2;
                Reply::Text(String::from_utf8_lossy(&text[..length]).into_owned())
            }
        },
        "*" => match usize::try_from(value.parse::<i64>()?) {
            Err(_) => Reply::Nothing,
            Ok(count) => {
                let mut items = Vec::with_capacity(count);
                for _ in 0..count {
                    let Some((item, length)) = parse(&bytes[at..])? else { return Ok(None) };
                    items.push(item);
                    at += length;
                }
                Reply::Array(items)
            }
        },
        other => bail!("not a reply: {other}"),
    };
    Ok(Some((reply, at)))
}
