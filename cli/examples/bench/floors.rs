//! What the machine allows: the disk without a broker, HTTP and websockets without work.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderName, HeaderValue, header};
use axum::routing::{get, post};
use futures_util::{FutureExt, SinkExt, StreamExt};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use crate::http::{self, Http, Latencies, load, ms};
use crate::process::{Served, free_port};
use crate::report::Row;
use crate::{Bench, Scale};

/// What one submission of the bench writes to a segment: its definition and its record, framed.
const RECORD_BYTES: usize = 500;

/// Records per write in the rows below; the last is what one socket may have unanswered.
const GROUPS: [usize; 4] = [1, 16, 64, 1024];

/// What a queue of the bench answers a submission with, in length.
const ANSWER: &str = r#"{"success":true,"jobId":"0000000000000000000000000000000000000000000000000000000000000000"}"#;

/// The floors of this run, per second unless said otherwise.
pub(crate) struct Floors {
    appends: [(usize, f64, Latencies); 4],
    pub(crate) http_1: f64,
    pub(crate) http_16: f64,
    pub(crate) http_64: f64,
    pub(crate) echo: f64,
    pub(crate) append_1: f64,
    pub(crate) append_16: f64,
    pub(crate) append_64: f64,
    pub(crate) append_1024: f64,
    /// Half of all single appends with fdatasync took this long.
    pub(crate) sync_p50: Duration,
}

impl Floors {
    /// One client that waits for each answer: a request that does nothing, then an append that reaches the disk.
    pub(crate) fn one_request_and_sync(&self) -> f64 {
        1.0 / (1.0 / self.http_1 + 1.0 / self.append_1)
    }
}

pub(crate) async fn measure(scale: Scale, data: &Path) -> anyhow::Result<Floors> {
    let time = Duration::from_millis(scale.pick(300, 1_000, 1_500));
    let mut appends = Vec::new();
    for group in GROUPS {
        appends.push(append(&data.join("append"), group, time)?);
    }
    let (port, socket_port) = (free_port()?, free_port()?);
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--floor-server", &port.to_string(), &socket_port.to_string()]).stdin(Stdio::null());
    let server = Served::start(command, port).await?;
    let request = |_| http::post("/q/floor", &format!("{{\"definition\":\"{}\"}}", "x".repeat(120)));
    let mut per_second = Vec::new();
    for clients in [1, 16, 64] {
        per_second.push(load(server.port, clients, time, u64::MAX, request).await?.per_second);
    }
    let echo = crate::socket::echo(socket_port, scale.pick(50_000, 200_000, 300_000)).await?;
    let of = |group: usize| appends.iter().find(|(of, ..)| *of == group).map_or(0.0, |(_, per_second, _)| *per_second);
    let (append_1, append_16, append_64, append_1024) = (of(1), of(16), of(64), of(1024));
    let sync_p50 = appends.first().map(|(_, _, latencies)| latencies.at(50)).unwrap_or_default();
    let appends = appends.try_into().map_err(|_| anyhow::anyhow!("four groups"))?;
    let &[http_1, http_16, http_64] = per_second.as_slice() else { anyhow::bail!("three client counts") };
    Ok(Floors { appends, http_1, http_16, http_64, echo, append_1, append_16, append_64, append_1024, sync_p50 })
}

pub(crate) fn tell(bench: &mut Bench) {
    let mut rows: Vec<Row> = bench
        .floors
        .appends
        .iter()
        .map(|(group, per_second, latencies)| {
            let what = format!("append + fdatasync, {RECORD_BYTES} B records, {group} per write");
            Row::new("floor", what, *per_second, "records/s").note(latencies.text())
        })
        .collect();
    for (clients, per_second) in [(1, bench.floors.http_1), (16, bench.floors.http_16), (64, bench.floors.http_64)] {
        rows.push(Row::new(
            "floor",
            format!("HTTP handler that does nothing, {clients} at once"),
            per_second,
            "requests/s",
        ));
    }
    rows.push(Row::new("floor", "websocket echo, one socket, pipelined", bench.floors.echo, "messages/s"));
    rows.into_iter().for_each(|row| bench.report.add(row));
}

/// Appends groups of records, each group with an fdatasync, for `time`.
fn append(path: &Path, group: usize, time: Duration) -> anyhow::Result<(usize, f64, Latencies)> {
    let mut file = File::create(path)?;
    let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(RECORD_BYTES * group).collect();
    let mut each = Vec::new();
    let started = Instant::now();
    while started.elapsed() < time {
        let before = Instant::now();
        file.write_all(&bytes)?;
        file.sync_data()?;
        each.push(before.elapsed());
    }
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
    let records = (each.len() * group) as f64;
    let per_second = records / started.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok((group, per_second, Latencies::new(each)))
}

/// The floors' server: the broker's libraries in the broker's arrangement, and no broker.
pub(crate) async fn serve(http_port: u16, socket_port: u16) -> anyhow::Result<()> {
    let sockets = TcpListener::bind(("127.0.0.1", socket_port)).await?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = sockets.accept().await {
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                if let Ok(socket) = tokio_tungstenite::accept_async(stream).await {
                    let _ = echo(socket).await;
                }
            });
        }
    });
    let router = Router::new().route("/healthz", get(|| async { "OK" })).route("/q/{queue}", post(nothing));
    let listener = TcpListener::bind(("127.0.0.1", http_port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Reads the body and answers as much as a submission is answered with.
async fn nothing(body: Bytes) -> impl axum::response::IntoResponse {
    drop(body);
    const HEAD: HeaderValue =
        HeaderValue::from_static("00000 0000000000000000000000000000000000000000000000000000000000000000");
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=UTF-8")),
        (HeaderName::from_static("gridsocket-head"), HEAD),
    ];
    (headers, ANSWER)
}

/// Sends back every frame; feeds what waits, flushes once.
async fn echo(mut socket: tokio_tungstenite::WebSocketStream<tokio::net::TcpStream>) -> anyhow::Result<()> {
    while let Some(frame) = socket.next().await {
        let mut frame = Some(frame?);
        let mut fed = 0;
        while let Some(message) = frame.take() {
            if matches!(message, Message::Binary(_)) {
                socket.feed(message).await?;
            }
            fed += 1;
            if fed < 256 {
                frame = socket.next().now_or_never().flatten().transpose()?;
            }
        }
        socket.flush().await?;
    }
    Ok(())
}

/// For whoever needs a plain request now and then.
pub(crate) async fn ask(port: u16, path: &str) -> anyhow::Result<(Duration, usize)> {
    let started = Instant::now();
    let mut http = Http::connect(port).await?;
    let answer = http.get(path).await?;
    anyhow::ensure!(answer.status == 200, "status {} from {path} after {:.1} ms", answer.status, ms(started.elapsed()));
    let length = answer.body.len();
    Ok((started.elapsed(), length))
}
