//! A lean HTTP/1.1 client: keep-alive, one request at a time, nothing parsed that is not needed. The load generator shares two
//! cores with the broker, so what it saves the broker gets.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// One connection.
pub(crate) struct Http {
    stream: TcpStream,
    input: Vec<u8>,
}

/// The answer to one request.
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
}

impl Http {
    pub(crate) async fn connect(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, input: Vec::with_capacity(4096) })
    }

    pub(crate) async fn get(&mut self, path: &str) -> anyhow::Result<Answer<'_>> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n");
        self.ask(request.as_bytes()).await
    }

    /// Sends a whole request, reads the whole answer.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> anyhow::Result<Answer<'_>> {
        self.stream.write_all(request).await?;
        self.input.clear();
        let (head, length) = loop {
            if let Some(found) = head_of(&self.input)? {
                break found;
            }
            self.read().await?;
        };
        while self.input.len() < head + length {
            self.read().await?;
        }
        let status = std::str::from_utf8(self.input.get(9..12).context("no status")?)?.parse()?;
        Ok(Answer { status, body: &self.input[head..head + length] })
    }

    async fn read(&mut self) -> anyhow::Result<()> {
        if self.stream.read_buf(&mut self.input).await? == 0 {
            bail!("the connection was closed");
        }
        Ok(())
    }
}

/// Where the head ends, and how long the body is.
fn head_of(input: &[u8]) -> anyhow::Result<Option<(usize, usize)>> {
    let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    for line in input[..end].split(|byte| *byte == b'\n') {
        const NAME: &[u8] = b"content-length:";
        if line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME) {
            let length = std::str::from_utf8(&line[NAME.len()..])?.trim().parse()?;
            return Ok(Some((end + 4, length)));
        }
    }
    bail!("an answer without content-length");
}

/// A POST of JSON, as a whole request.
pub(crate) fn post(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// What a load came to.
pub(crate) struct Load {
    pub(crate) per_second: f64,
    pub(crate) latencies: Latencies,
}

/// How long single things took.
#[derive(Default)]
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    pub(crate) fn new(mut each: Vec<Duration>) -> Self {
        each.sort_unstable();
        Self(each)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The value that `percent` of all are not above.
    pub(crate) fn at(&self, percent: usize) -> Duration {
        let last = self.0.len().saturating_sub(1);
        self.0.get((self.0.len() * percent / 100).min(last)).copied().unwrap_or_default()
    }

    pub(crate) fn text(&self) -> String {
        format!("p50 {:.2} ms, p99 {:.2} ms", ms(self.at(50)), ms(self.at(99)))
    }
}

pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// `clients` connections, each posting one request after the other, for `time` and at most `requests_max` in all.
///
/// `request` makes the request of a number; every number is used once.
pub(crate) async fn load<F>(
    port: u16,
    clients: usize,
    time: Duration,
    requests_max: u64,
    request: F,
) -> anyhow::Result<Load>
where
    F: Fn(u64) -> Vec<u8> + Clone + Send + Sync + 'static,
{
    let mut connections = Vec::with_capacity(clients);
    for _ in 0..clients {
        connections.push(Http::connect(port).await?);
    }
    let next = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for mut http in connections {
        let (next, request) = (next.clone(), request.clone());
        tasks.spawn(async move {
            let mut each = Vec::with_capacity(4096);
            while started.elapsed() < time {
                let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if number >= requests_max {
                    break;
                }
                let bytes = request(number);
                let sent = Instant::now();
                let answer = http.ask(&bytes).await?;
                if answer.status != 200 {
                    bail!("status {}: {}", answer.status, String::from_utf8_lossy(answer.body));
                }
                each.push(sent.elapsed());
            }
            Ok(each)
        });
    }
    let mut each = Vec::new();
    while let Some(done) = tasks.join_next().await {
        each.extend(done??);
    }
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
    let count = each.len() as f64;
    Ok(Load { per_second: count / started.elapsed().as_secs_f64(), latencies: Latencies::new(each) })
}
