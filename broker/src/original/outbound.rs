//! The sending half of a socket.

use std::time::Duration;

use bytes::Bytes;
use futures_util::Sink;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::line::{Item, Items, Newest, Whole};
use crate::session::patient::{Ended, FRAGMENT_BYTES, Patient};

/// How often the server pings: twice within the silence that is allowed even when one is lost.
const PING_EVERY: Duration = Duration::from_secs(10);

/// Messages fed before a flush: bounds how long the first waits for the last.
const MESSAGES_PER_FLUSH: usize = 64;

struct Sending<W> {
    sink: Patient<W>,
    newest: Newest,
    /// The version of the last whole state that was sent: news up to it are not.
    sent: Option<u64>,
}

/// Sends until the line ends or the peer stops taking.
pub(super) async fn run<W>(sink: W, mut items: Items, newest: Newest)
where
    W: Sink<Message> + Unpin,
{
    let mut sending = Sending { sink: Patient::new(sink), newest, sent: None };
    let mut pings = tokio::time::interval_at(tokio::time::Instant::now() + PING_EVERY, PING_EVERY);
    loop {
        let sent = tokio::select! {
            item = items.next() => match item {
                Some(first) => sending.round(first, &mut items).await,
                None => sending.close().await,
            },
            _ = pings.tick() => match sending.sink.feed(Message::Ping(Bytes::new())).await {
                Ok(()) => sending.sink.flush().await,
                ended => ended,
            },
        };
        if sent.is_err() {
            return;
        }
    }
}

impl<W: Sink<Message> + Unpin> Sending<W> {
    /// Feeds what waits and flushes once.
    async fn round(&mut self, first: Item, items: &mut Items) -> Result<(), Ended> {
        let mut item = first;
        for fed in 1.. {
            match item {
                Item::Text(text) => self.text(text).await?,
                Item::News { version, .. } if self.sent.is_some_and(|sent| version <= sent) => {}
                Item::News { text, .. } => self.text(text).await?,
                Item::Whole { is_wanted } => {
                    let is_due = |whole: &Whole| is_wanted || self.sent != Some(whole.version);
                    if let Some(whole) = self.newest.get().filter(is_due) {
                        self.sent = Some(whole.version);
                        self.text(whole.text).await?;
                    }
                }
                Item::Close => return self.close().await,
            }
            if fed == MESSAGES_PER_FLUSH {
                break;
            }
            let Some(next) = items.next_if_any() else { break };
            item = next;
        }
        self.sink.flush().await
    }

    async fn text(&mut self, text: Utf8Bytes) -> Result<(), Ended> {
        if text.len() <= FRAGMENT_BYTES {
            return self.sink.feed(Message::Text(text)).await;
        }
        let mut payload = Bytes::from(text);
        let mut kind = Data::Text;
        while !payload.is_empty() {
            let fragment = payload.split_to(FRAGMENT_BYTES.min(payload.len()));
            let fragment = Frame::message(fragment, OpCode::Data(kind), payload.is_empty());
            self.sink.feed(Message::Frame(fragment)).await?;
            self.sink.flush().await?;
            kind = Data::Continue;
        }
        Ok(())
    }

    /// Says goodbye: the peer comes back to a broker that is there again.
    async fn close(&mut self) -> Result<(), Ended> {
        let close = CloseFrame { code: CloseCode::Away, reason: Utf8Bytes::default() };
        self.sink.feed(Message::Close(Some(close))).await?;
        self.sink.flush().await?;
        Err(Ended)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::original::line::Line;

    /// Everything that is sent for `items`, as text; fragments joined.
    async fn sent(items: Vec<Item>, newest: &Newest) -> Vec<String> {
        let (line, receiver) = Line::new();
        items.into_iter().chain([Item::Close]).for_each(|item| assert!(line.put(item)));
        let sent = Arc::new(Mutex::new(Vec::new()));
        let collected = sent.clone();
        let sink = futures_util::sink::unfold((), move |(), message| {
            let text = match message {
                Message::Text(text) => text.to_string(),
                Message::Frame(frame) => format!("{} bytes", frame.payload().len()),
                Message::Close(_) => "Close".to_owned(),
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) => panic!("not sent here"),
            };
            collected.lock().unwrap().push(text);
            std::future::ready(Ok::<_, ()>(()))
        });
        run(Box::pin(sink), receiver, newest.clone()).await;
        let texts = sent.lock().unwrap().clone();
        assert_eq!(texts.last().map(String::as_str), Some("Close"));
        texts[..texts.len() - 1].to_vec()
    }

    fn news(version: u64) -> Item {
        Item::News { version, text: format!("news {version}").into() }
    }

    #[tokio::test]
    async fn news_that_a_whole_state_already_has_are_passed_over() {
        let newest = Newest::default();
        newest.set(Whole { version: 3, text: "whole 3".into() });
        let whole = |is_wanted| Item::Whole { is_wanted };
        let items = vec![news(1), whole(false), news(2), news(3), whole(false), news(4), whole(true)];
        assert_eq!(sent(items, &newest).await, ["news 1", "whole 3", "news 4", "whole 3"]);
    }

    #[tokio::test]
    async fn a_large_state_leaves_in_fragments() {
        let newest = Newest::default();
        newest.set(Whole { version: 1, text: "x".repeat(FRAGMENT_BYTES + 1).into() });
        let texts = sent(vec![Item::Whole { is_wanted: true }], &newest).await;
        assert_eq!(texts, [format!("{FRAGMENT_BYTES} bytes"), "1 bytes".to_owned()]);
    }
}
