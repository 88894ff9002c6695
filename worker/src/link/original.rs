//! One connection to a server of the original's kind: frames between its socket and a [`Desk`], the desk's words to the agent.
//!
//! Whether a server is of that kind is asked on each connection anew, by offering ours first: one that is replaced by a broker
//! of ours is noticed as soon as the line breaks. The original takes the upgrade without the subprotocol. Our library drops such
//! a socket, so a second one is opened: that costs a handshake for each break, and the server sees a worker that does not
//! register come and go.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use protocol::native::FromBroker;
use protocol::original::from_peer::PING;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;
use tracing::{info, warn};

use super::event::{Epoch, Events, LinkConfig, LinkEvent};
use super::outbox::Outbox;
use super::socket::{
    CONNECT, Ended, FLUSH_BYTES, NotOpen, PING_BYTES, SILENCE, Socket, TICK, bounded, close_words, on_message, open,
};
use crate::clock::unix_now;
use crate::original::{Desk, Heard, Now};

/// How often the server is asked whether it is there; the original's workers ask as often.
const PING_EVERY: Duration = Duration::from_secs(5);
/// The largest message: the server tells all jobs in one, about 200 bytes each, so this is for 200,000 and a few megabytes of
/// definitions.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How often it is told that the server sends what cannot be understood.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// What outlives the connections.
pub(super) struct Counter {
    desk: Mutex<Desk>,
    started: Instant,
}

impl Counter {
    pub(super) fn new(config: &LinkConfig) -> Self {
        Self { desk: Mutex::new(Desk::new(config.worker.clone())), started: Instant::now() }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        Now { ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX), at: unix_now() }
    }
}

/// Connects and stays until the line breaks or the outbox is closed and empty.
pub(super) async fn serve(
    config: &LinkConfig,
    counter: &Counter,
    outbox: &Arc<Outbox>,
    events: &Events,
    epoch: Epoch,
) -> Ended {
    let socket = match timeout(CONNECT, open(config, None, MESSAGE_BYTES_MAX)).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(NotOpen::Refused(why))) => return Ended::not_welcomed(why),
        Ok(Err(NotOpen::Foreign)) => return Ended::not_welcomed("it asks for a subprotocol".to_owned()),
        Err(_) => return Ended::not_welcomed(format!("no connection within {} s", CONNECT.as_secs())),
    };
    let now = Instant::now();
    let line = Line {
        counter,
        outbox,
        events,
        epoch,
        is_welcomed: AtomicBool::new(false),
        may_send: Notify::new(),
        may_tell: Notify::new(),
        times: Mutex::new(Times { frame: now, pong: now, jobs: now, warned: None }),
        pings: Mutex::default(),
    };
    counter.desk().open(counter.now(), &outbox.holds());
    let (sink, stream) = socket.split();
    let why = tokio::select! {
        why = line.read(stream) => why,
        why = line.write(sink) => why,
        why = line.tell(config) => why,
    };
    Ended { was_welcomed: line.is_welcomed.load(Ordering::Relaxed), is_foreign: false, why }
}

struct Line<'a> {
    counter: &'a Counter,
    outbox: &'a Arc<Outbox>,
    events: &'a Events,
    epoch: Epoch,
    /// Whether the server has told its jobs.
    is_welcomed: AtomicBool,
    may_send: Notify,
    may_tell: Notify,
    times: Mutex<Times>,
    /// Heartbeats that are not answered, each with the outbox's number for what was sent before it.
    pings: Mutex<VecDeque<Option<u64>>>,
}

/// When something was last heard.
struct Times {
    frame: Instant,
    pong: Instant,
    jobs: Instant,
    warned: Option<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Line<'_> {
    /// Reads until the line ends; says why.
    async fn read(&self, mut stream: SplitStream<Socket>) -> String {
        loop {
            let text = match stream.next().await {
                None => return close_words(None),
                Some(Err(error)) => return error.to_string(),
                Some(Ok(Message::Close(close))) => return close_words(close.map(|close| close.reason.to_string())),
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                    lock(&self.times).frame = Instant::now();
                    continue;
                }
            };
            let heard = self.counter.desk().on_frame(self.counter.now(), &text);
            let now = Instant::now();
            let mut times = lock(&self.times);
            times.frame = now;
            match heard {
                Ok(Heard::Pong) => {
                    times.pong = now;
                    if let Some(Some(ping)) = lock(&self.pings).pop_front() {
                        self.outbox.on_pong(ping);
                    }
                }
                Ok(Heard::Jobs) => times.jobs = now,
                Ok(Heard::Other) => {}
                Err(error) => {
                    if times.warned.is_none_or(|warned| now - warned >= WARN_EVERY) {
                        times.warned = Some(now);
                        warn!("the server sent what is passed over: {error}");
                    }
                }
            }
            drop(times);
            self.may_tell.notify_one();
            self.may_send.notify_one();
        }
    }

    /// Tells the agent what the desk has to say, in order.
    async fn tell(&self, config: &LinkConfig) -> String {
        // Leases are for brokers.
        let leases = watch::channel(Duration::MAX).0;
        loop {
            loop {
                // First the room: a run that is noted as held, but never told of, would be held for ever.
                let Some(room) = self.events.room().await else { return "the worker stops".to_owned() };
                let Some(word) = self.counter.desk().next_word() else { break };
                let event = if let FromBroker::Welcome { gone, .. } = word {
                    info!("connected to the server at {}, which is of the original's kind", config.api);
                    self.outbox.connected(self.epoch);
                    self.is_welcomed.store(true, Ordering::Relaxed);
                    self.may_send.notify_one();
                    Some(LinkEvent::Welcomed { epoch: self.epoch, gone, dialect: "original" })
                } else {
                    on_message(word, self.outbox, self.epoch, &leases)
                };
                if let Some(event) = event {
                    room.tell(event);
                }
            }
            self.may_tell.notified().await;
        }
    }

    /// Writes until the line breaks, or the outbox is closed and all is sent; says why.
    async fn write(&self, mut sink: SplitSink<Socket, Message>) -> String {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last_ping: Option<Instant> = None;
        loop {
            let is_all_sent = match self.drain(&mut sink).await {
                Ok(is_all_sent) => is_all_sent,
                Err(why) => return why,
            };
            if self.outbox.is_closed() && is_all_sent {
                let _ = timeout(TICK, sink.close()).await;
                return "the worker stops".to_owned();
            }
            let due = self.counter.desk().due_ms().map(|ms| self.counter.started + Duration::from_millis(ms));
            tokio::select! {
                biased;
                _ = tick.tick() => {
                    if let Some(why) = self.silence() {
                        return why;
                    }
                    self.tick();
                    if last_ping.is_none_or(|last| last.elapsed() >= PING_EVERY) {
                        last_ping = Some(Instant::now());
                        if let Err(why) = bounded(sink.send(self.ping())).await {
                            return why;
                        }
                    }
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.tick(),
                () = self.outbox.wake() => {}
                () = self.may_send.notified() => {}
                () = std::future::ready(()), if !is_all_sent => {}
            }
        }
    }

    fn tick(&self) {
        let holds = self.outbox.holds();
        self.counter.desk().tick(self.counter.now(), &holds);
        self.may_tell.notify_one();
    }

    /// Why the server is gone, if it has said too little for too long.
    fn silence(&self) -> Option<String> {
        let times = lock(&self.times);
        let too_long = |what: &str, since: Instant| {
            (since.elapsed() >= SILENCE).then(|| format!("it {what} for {} s", SILENCE.as_secs()))
        };
        too_long("said nothing", times.frame)
            .or_else(|| too_long("answered no heartbeat", times.pong))
            .or_else(|| too_long("told no jobs", times.jobs))
    }

    /// A heartbeat. Its answer says that the lines that were sent before have arrived.
    fn ping(&self) -> Message {
        let holds_logs = self.counter.desk().holds_logs();
        let number = if holds_logs { None } else { self.outbox.next_ping(0) };
        lock(&self.pings).push_back(number);
        Message::text(PING)
    }

    /// Sends what waits and says whether that was all; comes back within about a [`TICK`].
    async fn drain(&self, sink: &mut SplitSink<Socket, Message>) -> Result<bool, String> {
        let until = Instant::now() + TICK;
        let (mut unflushed_bytes, mut unpinged_bytes, mut is_dirty) = (0, 0, false);
        let is_all_sent = loop {
            let next = self.counter.desk().next_frame(self.counter.now());
            let Some(frame) = next else {
                if !self.is_welcomed.load(Ordering::Relaxed) {
                    break true;
                }
                let Some(order) = self.outbox.next_message(Instant::now()) else { break true };
                self.counter.desk().on_order(self.counter.now(), order);
                self.may_tell.notify_one();
                continue;
            };
            is_dirty = true;
            unflushed_bytes += frame.len();
            unpinged_bytes += frame.len();
            bounded(sink.feed(Message::text(frame))).await?;
            if unpinged_bytes >= PING_BYTES {
                unpinged_bytes = 0;
                bounded(sink.feed(self.ping())).await?;
            }
            if unflushed_bytes >= FLUSH_BYTES {
                unflushed_bytes = 0;
                bounded(sink.flush()).await?;
            }
            if Instant::now() >= until {
                break false;
            }
        };
        if is_dirty {
            bounded(sink.flush()).await?;
        }
        Ok(is_all_sent)
    }
}
