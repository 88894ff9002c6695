//! A connection with its own buffers, for protocols that are lines and counted bytes.

use anyhow::bail;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;

pub(super) struct Line {
    stream: TcpStream,
    pub(super) output: Vec<u8>,
    input: Vec<u8>,
    /// How much of the input was taken.
    taken: usize,
}

impl Line {
    pub(super) async fn connect(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, output: Vec::new(), input: Vec::with_capacity(READ_BYTES), taken: 0 })
    }

    /// A number that no other connection has.
    pub(super) fn local_port(&self) -> anyhow::Result<u16> {
        Ok(self.stream.local_addr()?.port())
    }

    pub(super) async fn flush(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(&self.output).await?;
        self.output.clear();
        Ok(())
    }

    /// Reads more. May be dropped while it waits.
    pub(super) async fn read(&mut self) -> anyhow::Result<()> {
        self.input.drain(..self.taken);
        self.taken = 0;
        self.input.reserve(READ_BYTES);
        if self.stream.read_buf(&mut self.input).await? == 0 {
            bail!("the peer closed the connection");
        }
        Ok(())
    }

    /// What was read and not taken.
    pub(super) fn rest(&self) -> &[u8] {
        &self.input[self.taken..]
    }

    pub(super) fn take(&mut self, bytes: usize) {
        self.taken += bytes;
    }
}

/// The first line of `bytes` without its end, when it is whole, and how many bytes it is with its end.
pub(super) fn first_line(bytes: &[u8]) -> Option<(&str, usize)> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    Some((std::str::from_utf8(&bytes[..end]).unwrap_or_default(), end + 2))
}
