//! One socket of the original's dialect: text frames, nothing asked for when it opens.

use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// The heartbeat and the start of its answer.
pub(super) const PING: &str = "PING";
pub(super) const PONG: &str = "PONG";

/// An open socket.
pub(super) struct Wire(WebSocketStream<TcpStream>);

impl Wire {
    /// Opens one at `path`, which the original's programs give up after `within`.
    pub(super) async fn open(address: &str, path: &str, within: Duration) -> anyhow::Result<Self> {
        let opening = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let url = format!("ws://{address}{path}");
            anyhow::Ok(tokio_tungstenite::client_async(url, stream).await?.0)
        };
        Ok(Self(tokio::time::timeout(within, opening).await.context("it did not open in time")??))
    }

    /// Sends one frame.
    pub(super) async fn send(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(self.0.send(Message::text(text.to_owned())).await?)
    }

    /// The next text frame; an error when the socket is over. May be dropped while it waits.
    pub(super) async fn next(&mut self) -> anyhow::Result<String> {
        loop {
            match self.0.next().await.context("the connection ended")?? {
                Message::Text(text) => return Ok(text.to_string()),
                Message::Binary(_) => bail!("a binary frame came"),
                Message::Close(why) => bail!("the broker closed it: {why:?}"),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }
}

/// A frame that is a message, and the name of its type.
pub(super) fn message(text: &str) -> anyhow::Result<(String, Value)> {
    let mut message: Value = serde_json::from_str(text).with_context(|| format!("no message: {text:.80}"))?;
    let kind = message["type"].as_str().context("a message without a type")?.to_owned();
    Ok((kind, message["payload"].take()))
}
