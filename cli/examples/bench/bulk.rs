//! Many submissions in one request: a line for each, each acknowledged by a line after it is on disk.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::Bench;
use crate::definitions::{Fit, definition};
use crate::process::{Meter, Served};
use crate::report::Row;

pub(crate) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let folder = bench.fresh_folder("bulk")?;
    let broker = Served::broker(&bench.binary, &folder).await?;
    let count: u32 = bench.scale.pick(20_000, 80_000, 90_000);
    let line = |number| format!("{{\"definition\":{}}}\n", definition("bulk", number, Fit::Plain));
    let lines: String = (0..count.into()).map(line).collect();
    let meter = Meter::start(&broker);
    let took = submit(broker.port, &lines, count).await?;
    let per_second = f64::from(count) / took.as_secs_f64();
    let row = Row::new("socket", format!("one bulk request over HTTP, {count} lines"), per_second, "submits/s");
    bench.report.add(row.floor("grouped fdatasync", bench.floors.append_1024).usage(meter.read()));
    Ok(())
}

/// Sends the lines and waits for the answer to the last.
async fn submit(port: u16, lines: &str, count: u32) -> anyhow::Result<Duration> {
    let (mut reader, mut writer) = TcpStream::connect(("127.0.0.1", port)).await?.into_split();
    let head = format!(
        "POST /q/bulk/bulk HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        lines.len()
    );
    let started = Instant::now();
    let send = async {
        writer.write_all(head.as_bytes()).await?;
        writer.write_all(lines.as_bytes()).await?;
        Ok(())
    };
    let mut answer = Vec::new();
    tokio::try_join!(send, reader.read_to_end(&mut answer))?;
    let took = started.elapsed();
    let text = String::from_utf8(answer)?;
    ensure!(text.starts_with("HTTP/1.1 200"), "not taken: {}", text.lines().next().unwrap_or_default());
    let last = text.lines().rev().find(|line| line.contains("\"queued\":")).context("no summary")?;
    ensure!(last.contains(&format!("\"queued\":{count}")), "not all were queued: {last}");
    Ok(took)
}
