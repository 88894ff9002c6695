//! The stream under a socket's frames. Large payloads that many sockets share go out from where they are: the websocket library
//! would copy each into a buffer of the socket's own first, and keep that buffer for as long as the socket lives.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::OpCode;

/// The longest header of a frame, in bytes.
const HEADER_BYTES_MAX: usize = 14;

/// A stream that sends what was handed to its [`Direct`] before anything else that is written to it.
pub(super) struct Wire<S> {
    stream: S,
    direct: Direct,
}

/// The way past the library's buffer: whole frames that are sent by the next write or flush.
#[derive(Clone, Default)]
pub(super) struct Direct(Arc<Mutex<Parts>>);

/// A frame that is being sent.
#[derive(Default)]
struct Parts {
    header: Bytes,
    payload: Bytes,
}

impl<S> Wire<S> {
    pub(super) fn new(stream: S) -> (Self, Direct) {
        let direct = Direct::default();
        (Self { stream, direct: direct.clone() }, direct)
    }
}

impl Direct {
    /// Hands a frame over. Everything written before must have been flushed, and the frame is sent only by a flush.
    pub(super) fn put(&self, opcode: OpCode, is_final: bool, payload: Bytes) {
        let header = FrameHeader { is_final, opcode, ..FrameHeader::default() };
        let mut bytes = Vec::with_capacity(HEADER_BYTES_MAX);
        // A vector takes everything.
        let _ = header.format(payload.len() as u64, &mut bytes);
        *self.parts() = Parts { header: bytes.into(), payload };
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_send<S: AsyncWrite + Unpin>(&self, stream: &mut S, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut parts = self.parts();
        while parts.header.has_remaining() || parts.payload.has_remaining() {
            let slices = [io::IoSlice::new(&parts.header), io::IoSlice::new(&parts.payload)];
            let slices = if parts.header.has_remaining() { &slices[..] } else { &slices[1..] };
            let mut sent = ready!(Pin::new(&mut *stream).poll_write_vectored(context, slices))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_header = sent.min(parts.header.len());
            parts.header.advance(of_header);
            sent -= of_header;
            parts.payload.advance(sent);
        }
        // Lets go of the payload.
        *parts = Parts::default();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, direct } = self.get_mut();
        ready!(direct.poll_send(stream, context))?;
        Pin::new(stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, direct } = self.get_mut();
        ready!(direct.poll_send(stream, context))?;
        Pin::new(stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};
    use tokio::io::DuplexStream;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::Role;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::Data;

    use super::*;

    async fn pair(room: usize) -> (WebSocketStream<Wire<DuplexStream>>, Direct, WebSocketStream<DuplexStream>) {
        let (near, far) = tokio::io::duplex(room);
        let (wire, direct) = Wire::new(near);
        let near = WebSocketStream::from_raw_socket(wire, Role::Server, None).await;
        (near, direct, WebSocketStream::from_raw_socket(far, Role::Client, None).await)
    }

    #[tokio::test]
    async fn what_goes_past_the_buffer_arrives_whole_and_in_its_place() {
        // Room for a few bytes only: each frame takes many writes.
        let (mut near, direct, mut far) = pair(7).await;
        let large = Bytes::from((0..70_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
        let sent = large.clone();
        let sending = async move {
            near.send(Message::text("before")).await.unwrap();
            let (first, rest) = (sent.slice(..100_000), sent.slice(100_000..));
            direct.put(OpCode::Data(Data::Binary), false, first);
            near.flush().await.unwrap();
            direct.put(OpCode::Data(Data::Continue), true, rest);
            // Written while the frame is on its way: goes after it.
            near.send(Message::text("after")).await.unwrap();
            near
        };
        let receiving = async {
            let mut got = Vec::new();
            while got.len() < 3 {
                got.push(far.next().await.unwrap().unwrap());
            }
            got
        };
        let (_near, got) = tokio::join!(sending, receiving);
        assert_eq!(got, [Message::text("before"), Message::Binary(large), Message::text("after")]);
    }

    #[tokio::test]
    async fn an_answer_to_a_ping_does_not_get_into_the_middle_of_a_frame() {
        let (mut near, direct, mut far) = pair(64).await;
        let large = Bytes::from(vec![7; 10_000]);
        direct.put(OpCode::Data(Data::Binary), true, large.clone());
        let mut begun = std::pin::pin!(near.flush());
        assert!(futures_util::poll!(&mut begun).is_pending(), "the peer has not read yet");
        far.send(Message::Ping(Bytes::from_static(b"x"))).await.unwrap();
        let receiving = async { [far.next().await.unwrap().unwrap(), far.next().await.unwrap().unwrap()] };
        // Reading answers the ping by itself, while the frame is half sent.
        let reading = async { while let Some(Ok(Message::Ping(_))) = near.next().await {} };
        let got = tokio::select! {
            got = tokio::time::timeout(std::time::Duration::from_secs(20), receiving) => got.expect("both"),
            () = reading => panic!("the socket ended"),
        };
        assert_eq!(got, [Message::Binary(large), Message::Pong(Bytes::from_static(b"x"))]);
    }
}
