//! `gridsocket healthcheck`: whether something that serves answers, for images that have no other program to ask with.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::progress::print;

/// What is asked of a broker of this machine is answered in milliseconds; one that needs longer is not well.
const TIME_MAX: Duration = Duration::from_secs(5);
/// A short answer with its head.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Asks once.
pub(crate) async fn healthcheck(address: SocketAddr) -> anyhow::Result<ExitCode> {
    let asked = tokio::time::timeout(TIME_MAX, ask(address)).await;
    let answer = asked.with_context(|| format!("{address} does not answer within {} s", TIME_MAX.as_secs()))?;
    let answer = answer.with_context(|| format!("nothing answers at {address}"))?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        bail!("{address} answers {}", answer.lines().next().unwrap_or_default().escape_debug());
    }
    print("ok")?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
