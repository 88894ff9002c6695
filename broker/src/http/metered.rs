//! What comes in on a websocket, counted against the room that all requests have in memory.
//!
//! A message is in memory from its first byte until it has been carried out, in however many fragments it comes, and its sender
//! may take as long over it as it likes: pings in between keep the socket alive. So it takes room like a request's body does.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::room::{Room, Taken};
use crate::session::NO_ROOM;

/// Up to here a message takes no room: what any connection has in its buffers anyway.
const FREE_BYTES: u64 = 16 * 1024;

/// The longest header of a frame, in bytes.
const HEADER_BYTES_MAX: usize = 14;

/// A socket's stream, whose reads fail when there is no room for the message that it brings.
#[derive(Debug)]
pub(super) struct Metered<S> {
    stream: S,
    frames: Frames,
    room: Room,
    taken: Taken,
}

impl<S> Metered<S> {
    pub(super) fn new(stream: S, room: Room) -> Self {
        Self { stream, frames: Frames::default(), room, taken: Taken::default() }
    }

    /// Holds the room of a message of so many bytes.
    fn hold(&mut self, bytes: u64) -> io::Result<()> {
        let bytes = if bytes > FREE_BYTES { bytes } else { 0 };
        self.room.hold(&mut self.taken, bytes).map_err(|full| io::Error::new(NO_ROOM, full.to_string()))
    }
}

/// Where in the frames a stream stands.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: usize,
    /// What is still to come of the frame that has begun.
    payload_left: u64,
    /// Whether that frame is a ping or the like, which is no part of a message.
    is_control: bool,
    /// Whether it ends its message.
    is_final: bool,
    /// What has come of the message that has begun.
    message_bytes: u64,
}

impl Frames {
    /// Passes over what came; gives the size of the largest message in it, whether that has ended or not.
    fn pass(&mut self, mut bytes: &[u8]) -> u64 {
        let mut largest = self.message_bytes;
        while let Some(first) = bytes.first() {
            if self.payload_left == 0 {
                self.take_header(*first);
                bytes = &bytes[1..];
                continue;
            }
            let here = bytes.len().min(usize::try_from(self.payload_left).unwrap_or(usize::MAX));
            bytes = &bytes[here..];
            self.payload_left -= here as u64;
            if !self.is_control {
                self.message_bytes += here as u64;
                largest = largest.max(self.message_bytes);
            }
            if self.payload_left == 0 {
                self.end_frame();
            }
        }
        largest
    }

    fn take_header(&mut self, byte: u8) {
        self.header[self.header_bytes] = byte;
        self.header_bytes += 1;
        let Some(payload) = self.payload() else { return };
        self.is_final = self.header[0] & 0x80 != 0;
        self.is_control = self.header[0] & 0x08 != 0;
        (self.header_bytes, self.payload_left) = (0, payload);
        if payload == 0 {
            self.end_frame();
        }
    }

    /// How long the payload is that follows a whole header.
    fn payload(&self) -> Option<u64> {
        let said = *self.header[..self.header_bytes].get(1)?;
        let mask_bytes = if said & 0x80 == 0 { 0 } else { 4 };
        let length_bytes = match said & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if self.header_bytes < 2 + length_bytes + mask_bytes {
            return None;
        }
        let long = self.header[2..2 + length_bytes].iter().fold(0, |long, byte| long << 8 | u64::from(*byte));
        Some(if length_bytes == 0 { u64::from(said & 0x7f) } else { long })
    }

    const fn end_frame(&mut self) {
        if self.is_final && !self.is_control {
            self.message_bytes = 0;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // More is asked for: messages that have ended have been carried out.
        let under_way = self.frames.message_bytes;
        self.hold(under_way)?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let largest = self.frames.pass(&buffer.filled()[before..]);
        Poll::Ready(self.hold(largest))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn frame(first: u8, payload: usize) -> Vec<u8> {
        let length = match payload {
            0..126 => vec![0x80 | u8::try_from(payload).unwrap()],
            126..65_536 => [&[0x80 | 126][..], &u16::try_from(payload).unwrap().to_be_bytes()].concat(),
            _ => [&[0x80 | 127][..], &(payload as u64).to_be_bytes()].concat(),
        };
        [&[first][..], &length, &[1, 2, 3, 4], &vec![7; payload]].concat()
    }

    const TEXT: u8 = 0x81;
    const TEXT_BEGUN: u8 = 0x01;
    const GOES_ON: u8 = 0x00;
    const ENDS: u8 = 0x80;
    const PING: u8 = 0x89;

    #[test]
    fn messages_are_measured_however_they_are_cut() {
        let frames = [
            frame(TEXT, 5),
            frame(TEXT_BEGUN, 200),
            frame(PING, 100),
            frame(GOES_ON, 0),
            frame(GOES_ON, 70_000),
            frame(ENDS, 1),
            frame(TEXT, 0),
            frame(TEXT, 3),
        ];
        let stream = frames.concat();
        for step in [1, 2, 3, 7, 1000, stream.len()] {
            let mut position = Frames::default();
            let largest = stream.chunks(step).map(|piece| position.pass(piece)).max();
            assert_eq!((largest, position.message_bytes), (Some(70_201), 0), "in pieces of {step}");
        }
    }

    #[tokio::test]
    async fn a_message_has_its_room_until_more_is_asked_for_after_its_end() {
        let room = Room::new(100_000);
        let (near, mut far) = tokio::io::duplex(1_000_000);
        let mut near = Metered::new(near, room.clone());
        let free = || {
            let mut rest = Taken::default();
            (1..=100).rev().find(|thousands| room.hold(&mut rest, thousands * 1000).is_ok()).unwrap_or(0)
        };
        let message = frame(TEXT, 50_000);
        let mut buffer = vec![0; 1_000_000];
        far.write_all(&message).await.unwrap();
        near.read_exact(&mut buffer[..message.len()]).await.unwrap();
        assert!((45..=50).contains(&free()), "it is being carried out");
        far.write_all(&frame(TEXT, 10)).await.unwrap();
        near.read_u8().await.unwrap();
        assert!(free() > 95, "it is over");
        far.write_all(&frame(TEXT_BEGUN, 99_000)).await.unwrap();
        far.write_all(&frame(GOES_ON, 20_000)).await.unwrap();
        let mut read = Ok(1);
        while read.as_ref().is_ok_and(|bytes| *bytes > 0) {
            read = near.read(&mut buffer).await;
        }
        assert_eq!(read.unwrap_err().kind(), NO_ROOM);
        drop(near);
        assert!(free() > 95, "and the room comes back");
    }
}
