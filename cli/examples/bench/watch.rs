//! Watchers that cost next to nothing: a thousand of them share this process, and its two cores are the broker's too.
//!
//! Each reads its frames itself, checks that events follow each other without a gap and makes every link of the chain again,
//! so that equal heads at the end prove equal records. A few fold everything, as a page does.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use anyhow::{Context, bail, ensure};
use protocol::PROTOCOL_VERSION;
use protocol::codec::{Encoding, SUBPROTOCOL_MESSAGEPACK};
use protocol::id::{Head, Seq};
use protocol::native::{FromBroker, Hello, ToBroker};
use protocol::queue::QueueState;
use protocol::raw::RecordBytes;
use protocol::record::chain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::frames::{BINARY, CLOSE, Frames, PING, PONG, masked};

const CODEC: Encoding = Encoding::MessagePack;

/// How a snapshot's message begins: a map of one, its name, a map of two, `head`. The position and its hash follow.
const SNAPSHOT: &[u8] = b"\x81\xa8Snapshot\x82\xa4head";
const EVENTS: &[u8] = b"\x81\xa6Events";
const PRESENCE: &[u8] = b"\x81\xa8Presence";

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;

/// What all watchers of a measurement write on.
pub(crate) struct Board {
    /// Reads go here first: one buffer for all, as one thread has them all.
    input: RefCell<Vec<u8>>,
    pub(crate) seen: Vec<Seen>,
    /// The position before the first change that is timed.
    pub(crate) from: Cell<Seq>,
    /// When each change was sent.
    pub(crate) sent: RefCell<Vec<Instant>>,
    /// How long each change took to each watcher, in microseconds.
    pub(crate) delays_us: RefCell<Vec<u32>>,
    /// Bytes and messages of all kinds, frames' headers included, and of those the events.
    pub(crate) bytes: Cell<u64>,
    pub(crate) event_bytes: Cell<u64>,
    pub(crate) event_messages: Cell<u64>,
    pub(crate) snapshots: Cell<u64>,
    pub(crate) snapshot_bytes: Cell<u64>,
    /// The position that all are to reach, and how many have.
    goal: Cell<Seq>,
    arrived: Cell<usize>,
    pub(crate) news: Notify,
}

/// What one watcher has.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) head: Cell<Option<Head>>,
    state: RefCell<Option<QueueState>>,
    news: Notify,
}

impl Board {
    pub(crate) fn new(watchers: usize) -> Rc<Self> {
        Rc::new(Self {
            input: RefCell::new(vec![0; READ_BYTES]),
            seen: (0..watchers).map(|_| Seen::default()).collect(),
            from: Cell::new(Seq::MAX),
            sent: RefCell::default(),
            delays_us: RefCell::default(),
            bytes: Cell::default(),
            event_bytes: Cell::default(),
            event_messages: Cell::default(),
            snapshots: Cell::default(),
            snapshot_bytes: Cell::default(),
            goal: Cell::new(Seq::MAX),
            arrived: Cell::default(),
            news: Notify::new(),
        })
    }

    /// Forgets what was counted; what the watchers have stays.
    pub(crate) fn reset_counts(&self) {
        for count in [&self.bytes, &self.event_bytes, &self.event_messages, &self.snapshots] {
            count.set(0);
        }
    }

    /// Sets the position that all are to reach.
    pub(crate) fn aim(&self, goal: Seq) {
        self.goal.set(goal);
        let there = self.seen.iter().filter(|seen| seen.head.get().is_some_and(|head| head.seq >= goal)).count();
        self.arrived.set(there);
    }

    /// Waits until every watcher has reached the goal.
    pub(crate) async fn all_there(&self) {
        while self.arrived.get() < self.seen.len() {
            self.news.notified().await;
        }
    }

    /// Waits until this watcher has reached the goal.
    pub(crate) async fn there(&self, watcher: usize) {
        let seen = &self.seen[watcher];
        while seen.head.get().is_none_or(|head| head.seq < self.goal.get()) {
            seen.news.notified().await;
        }
    }

    /// The furthest that any watcher is.
    pub(crate) fn highest(&self) -> Seq {
        self.seen.iter().filter_map(|seen| seen.head.get()).map(|head| head.seq).max().unwrap_or_default()
    }

    fn moved(&self, watcher: usize, head: Head) {
        let before = self.seen[watcher].head.replace(Some(head)).map_or(0, |head| head.seq);
        if before < self.goal.get() && head.seq >= self.goal.get() {
            self.arrived.set(self.arrived.get() + 1);
            self.news.notify_one();
            self.seen[watcher].news.notify_one();
        }
    }
}

fn add(count: &Cell<u64>, more: u64) {
    count.set(count.get() + more);
}

/// One socket.
pub(crate) struct Watcher {
    stream: TcpStream,
    number: usize,
    folds: bool,
    board: Rc<Board>,
}

impl Watcher {
    /// Opens the socket and says hello; resumes where the board says that this watcher was.
    pub(crate) async fn connect(
        port: u16,
        queue: &str,
        number: usize,
        folds: bool,
        board: Rc<Board>,
    ) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        // The key is fixed: the answer to it is not what is measured.
        let request = format!(
            "GET /q/{queue}/client HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             sec-websocket-protocol: {SUBPROTOCOL_MESSAGEPACK}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        // Nothing follows the answer's head until the hello is sent.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            ensure!(stream.read_buf(&mut head).await? > 0, "closed before the upgrade");
        }
        ensure!(head.starts_with(b"HTTP/1.1 101"), "no upgrade: {}", String::from_utf8_lossy(&head));
        let resume = board.seen[number].head.get();
        let hello = Hello { version: PROTOCOL_VERSION, version_min: None, watch: true, resume, worker: None };
        stream.write_all(&masked(BINARY, &CODEC.encode(&ToBroker::Hello(hello)))).await?;
        Ok(Self { stream, number, folds, board })
    }

    /// Reads until it is dropped.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut frames = Frames::default();
        loop {
            self.stream.readable().await?;
            if let Some(pong) = self.read(&mut frames)? {
                self.stream.write_all(&pong).await?;
            }
        }
    }

    /// Takes in what has come; gives the answer to a ping, when there was one.
    fn read(&self, frames: &mut Frames) -> anyhow::Result<Option<Vec<u8>>> {
        let mut input = self.board.input.borrow_mut();
        let count = match self.stream.try_read(&mut input) {
            Ok(0) => bail!("the broker closed a watcher's socket"),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let now = Instant::now();
        add(&self.board.bytes, count as u64);
        // Events are always read whole; of a snapshot that nobody folds its beginning, with the head, will do.
        let keep = |start: &[u8]| if self.folds || start.starts_with(EVENTS) { usize::MAX } else { 0 };
        let (mut chunk, mut pong) = (&input[..count], None);
        while let Some((opcode, message, length)) = frames.next(&mut chunk, keep) {
            match opcode {
                PING => pong = Some(masked(PONG, message)),
                CLOSE => bail!("the broker closed a watcher's socket with a word"),
                _ => self.take(message, length, now)?,
            }
        }
        Ok(pong)
    }

    fn take(&self, message: &[u8], length: u64, now: Instant) -> anyhow::Result<()> {
        let board = &*self.board;
        if message.starts_with(EVENTS) {
            add(&board.event_bytes, length);
            add(&board.event_messages, 1);
            let FromBroker::Events { from_seq, records } = CODEC.decode(message)? else { bail!("not events") };
            return self.follow(from_seq, &records, now);
        }
        if let Some(rest) = message.strip_prefix(SNAPSHOT) {
            add(&board.snapshots, 1);
            board.snapshot_bytes.set(length);
            let head: Head = CODEC.decode(rest)?;
            if self.folds {
                let FromBroker::Snapshot { state, .. } = CODEC.decode(message)? else { bail!("not a snapshot") };
                let state = QueueState::decode(&state.0)?;
                ensure!(state.head() == head, "a snapshot of {:?} as {head:?}", state.head());
                *board.seen[self.number].state.borrow_mut() = Some(state);
            }
            board.moved(self.number, head);
            return Ok(());
        }
        if message.starts_with(PRESENCE) {
            return Ok(());
        }
        match CODEC.decode(message)? {
            FromBroker::Welcome { .. } => Ok(()),
            other => bail!("a watcher was told {other:?}"),
        }
    }

    fn follow(&self, from_seq: Seq, records: &[RecordBytes], now: Instant) -> anyhow::Result<()> {
        let (board, seen) = (&*self.board, &self.board.seen[self.number]);
        let mut head = seen.head.get().context("events before a snapshot")?;
        ensure!(from_seq == head.seq + 1, "events from {from_seq} after {}", head.seq);
        let mut state = seen.state.borrow_mut();
        for record in records {
            match state.as_mut() {
                Some(state) => {
                    state.apply_bytes(&record.0)?;
                    head = state.head();
                }
                None => head = Head { seq: head.seq + 1, hash: chain(&head.hash, &record.0) },
            }
            if let Some(at) = head.seq.checked_sub(board.from.get() + 1)
                && let Some(sent) = board.sent.borrow().get(usize::try_from(at)?)
            {
                board.delays_us.borrow_mut().push(u32::try_from((now - *sent).as_micros()).unwrap_or(u32::MAX));
            }
        }
        drop(state);
        board.moved(self.number, head);
        Ok(())
    }
}
