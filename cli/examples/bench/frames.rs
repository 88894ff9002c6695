//! Just enough of websocket frames (RFC 6455) to read a server's messages as they come in pieces.

/// Opcodes.
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// The last frame of a message.
const FINAL: u8 = 0x80;

/// A client's frames are masked.
const MASKED: u8 = 0x80;

/// What is always kept of a message: its kind is told from that.
const START_BYTES: usize = 256;

/// A client's frame. The mask is zero: it protects proxies from pages, and here is neither.
pub(crate) fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![FINAL | opcode];
    match payload.len() {
        short @ 0..=125 => frame.push(MASKED | u8::try_from(short).unwrap_or_default()),
        length => {
            frame.push(MASKED | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// A reader of one socket's frames.
#[derive(Default)]
pub(crate) struct Frames {
    header: Vec<u8>,
    /// Bytes of this frame's payload still to come.
    left: u64,
    message: Message,
    /// A ping may come between the fragments of a message.
    control: Message,
}

#[derive(Default)]
struct Message {
    opcode: u8,
    bytes: Vec<u8>,
    /// All of its bytes on the wire, headers included.
    length: u64,
    is_whole: bool,
}

impl Message {
    /// Takes from `payload` until there are `wanted` bytes.
    fn take(&mut self, payload: &mut &[u8], wanted: usize) {
        let (taken, rest) = payload.split_at(wanted.saturating_sub(self.bytes.len()).min(payload.len()));
        self.bytes.extend_from_slice(taken);
        *payload = rest;
    }
}

impl Frames {
    /// Takes from `chunk`; gives the next whole message with its opcode and its length on the wire, or nothing when more must
    /// be read. `keep` says from a message's beginning how many of its bytes are wanted.
    pub(crate) fn next(&mut self, chunk: &mut &[u8], keep: impl Fn(&[u8]) -> usize) -> Option<(u8, &[u8], u64)> {
        let is_control = loop {
            if self.left == 0 && !self.read_header(chunk) {
                return None;
            }
            let is_control = self.header[0] & 0x0f >= CLOSE;
            let message = if is_control { &mut self.control } else { &mut self.message };
            let here = chunk.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            let (mut payload, rest) = chunk.split_at(here);
            *chunk = rest;
            self.left -= here as u64;
            message.take(&mut payload, START_BYTES);
            message.take(&mut payload, keep(&message.bytes));
            if self.left > 0 {
                return None;
            }
            self.header.clear();
            if std::mem::take(&mut message.is_whole) {
                break is_control;
            }
        };
        let message = if is_control { &self.control } else { &self.message };
        Some((message.opcode, &message.bytes, message.length))
    }

    /// Reads a header that may come in pieces; true when it is whole and the frame is begun.
    fn read_header(&mut self, chunk: &mut &[u8]) -> bool {
        let needed = loop {
            let needed = match self.header.get(1) {
                None => 2,
                Some(126) => 4,
                Some(127) => 10,
                Some(_) => 2,
            };
            if self.header.len() >= needed {
                break needed;
            }
            let Some((byte, rest)) = chunk.split_first() else { return false };
            self.header.push(*byte);
            *chunk = rest;
        };
        self.left = match needed {
            2 => self.header[1].into(),
            _ => self.header[2..].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        let opcode = self.header[0] & 0x0f;
        let message = if opcode >= CLOSE { &mut self.control } else { &mut self.message };
        if opcode != 0 {
            message.opcode = opcode;
            message.bytes.clear();
            message.length = 0;
        }
        message.length += needed as u64 + self.left;
        message.is_whole = self.header[0] & FINAL != 0;
        true
    }
}
