//! Sockets that are attached to the queue: what they get when they come or come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::id::{Head, QueueKey, Seq};
use protocol::native::FromBroker;
use protocol::raw::RecordBytes;
use tokio::time::Instant;

use super::Task;
use super::lane::Lane;
use crate::clock;
use crate::engine::Engine;
use crate::engine::ask::{Ask, Attach, ReplyTo, rejected};
use crate::engine::outbox::{Outbox, Outgoing};
use crate::journal::EncodedRecord;
use crate::rules::command::{Answer, Command, SessionId};

/// Records in one message of those that catch up: a message stays well under a socket's frame limit.
pub(super) const RECORDS_PER_MESSAGE: usize = 1_000;

/// Bytes read from disk at once for a socket that catches up: a thousand may at the same time.
const CATCH_UP_BYTES: usize = 64 * 1024;

/// A socket that is attached to the queue.
pub(super) struct Session {
    pub(super) outbox: Outbox,
    pub(super) watches: bool,
    /// How many pages or programs it is: one, unless it is a worker's or stands for others.
    pub(super) pages: u32,
    /// It has everything up to here; records after it are news to it.
    pub(super) since: Seq,
    /// It is to start (again) from a snapshot: its line was full and it has missed records, or too many snapshots are under way.
    pub(super) wants: Option<Wants>,
    /// Its welcome is out: nothing goes before that.
    welcomed: Arc<AtomicBool>,
    /// It has not been told who is connected.
    pub(super) misses_presence: bool,
    /// The snapshot that it was given last, to know whether it is still sending it.
    pub(super) given: std::sync::Weak<crate::engine::outbox::Shared>,
    /// Grants whose definitions are read from disk.
    pub(super) lane: Arc<Lane>,
}

impl Session {
    pub(super) fn is_welcomed(&self) -> bool {
        self.welcomed.load(Ordering::Relaxed)
    }
}

/// Why a socket waits for a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    /// It has just come.
    First,
    /// It did not keep up: first it has to read what waits for it.
    Again,
}

impl Task {
    pub(super) fn attach(&mut self, attach: Attach) {
        // Records of the batch being filled came before this socket: no batch may hold both what it begins with and news.
        self.seal();
        let Attach { session, outbox, hello } = attach;
        let version = hello.version;
        let welcomed = Arc::new(AtomicBool::new(false));
        self.watching += usize::from(hello.watch);
        self.sessions.insert(
            session,
            Session {
                outbox: outbox.clone(),
                watches: hello.watch,
                pages: u32::from(hello.worker.is_none()),
                since: Seq::MAX,
                wants: None,
                welcomed: welcomed.clone(),
                misses_presence: hello.watch,
                given: std::sync::Weak::new(),
                lane: Arc::default(),
            },
        );
        let mut gone = Vec::new();
        if let Some(worker) = hello.worker {
            match self.core.handle(Command::Connect { session, hello: worker }, clock::now()) {
                Ok(step) => {
                    if let Answer::Connected { gone: found } = &step.answer {
                        gone.clone_from(found);
                    }
                    self.take(step, ReplyTo::Nobody, None);
                }
                Err(rejection) => outbox.must(rejected(None, &rejection.into())),
            }
        }
        let head = self.core.state().head();
        let lease_ms = self.engine.0.config.limits.lease_ms;
        let queue = self.core.queue();
        let welcome = FromBroker::Welcome { version, queue, head, lease_ms, gone };
        self.batch.releases.push(Box::new(move || {
            outbox.must(welcome);
            welcomed.store(true, Ordering::Relaxed);
        }));
        match hello.resume {
            _ if !hello.watch => {}
            None => self.ask_for_snapshot(session, Wants::First),
            // What the connecting itself did is in the batch that is still being filled, not yet among the recent records.
            Some(known) => {
                self.seal();
                self.give_events(session, known);
            }
        }
        self.seal();
        if hello.watch {
            self.lags();
        }
        self.presence_changed();
    }

    /// Forgets a socket.
    pub(super) fn detach(&mut self, id: SessionId) -> Option<Session> {
        let session = self.sessions.remove(&id)?;
        self.watching -= usize::from(session.watches);
        Some(session)
    }

    /// Gives a session what it missed since `known`, once that is on disk: from memory, or from disk by a task of its own.
    fn give_events(&mut self, id: SessionId, known: Head) {
        let head = self.core.state().head();
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let outbox = session.outbox.clone();
        let missed: Option<Vec<_>> = self.recent.since(known).map(|missed| missed.cloned().collect());
        match missed {
            Some(missed) => {
                session.since = head.seq;
                self.batch.releases.push(Box::new(move || {
                    missed.chunks(RECORDS_PER_MESSAGE).filter_map(events).for_each(|events| outbox.must(events));
                }));
            }
            None if known.seq > head.seq => self.ask_for_snapshot(id, Wants::First),
            None => {
                let (engine, queue) = (self.engine.clone(), self.core.queue());
                self.batch.releases.push(Box::new(move || {
                    tokio::spawn(catch_up(engine, queue, id, outbox, known, head));
                }));
            }
        }
    }

    /// A session was sent what is on disk up to `to`; the rest is recent, or was so much that it needs another round.
    pub(super) fn caught_up(&mut self, session: SessionId, to: Option<Head>) {
        self.seal();
        match to {
            Some(known) => self.give_events(session, known),
            None => self.ask_for_snapshot(session, Wants::First),
        }
        self.seal();
    }

    /// Gives a session the whole state, once it is on disk, or as soon as one may be made; news for it start right after. The
    /// batch must be sealed next.
    pub(super) fn ask_for_snapshot(&mut self, id: SessionId, why: Wants) {
        let snapshot = self.snapshots.of(self.core.state(), Instant::now());
        let head = self.core.state().head();
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(snapshot) = snapshot else {
            (session.since, session.wants) = (Seq::MAX, Some(why));
            return self.lags();
        };
        (session.since, session.wants) = (head.seq, None);
        session.given = Arc::downgrade(&snapshot);
        let outbox = session.outbox.clone();
        self.batch.releases.push(Box::new(move || outbox.must_out(Outgoing::Shared(snapshot))));
    }
}

/// Records as a message.
pub(super) fn events(records: &[EncodedRecord]) -> Option<FromBroker> {
    let from_seq = records.first()?.seq;
    Some(FromBroker::Events {
        from_seq,
        records: records.iter().map(|record| RecordBytes(record.bytes.clone())).collect(),
    })
}

/// Sends a socket the records after `known` and up to `until` from disk, as fast as it takes them.
async fn catch_up(engine: Engine, queue: QueueKey, session: SessionId, outbox: Outbox, known: Head, until: Head) {
    let handle = engine.queue_by_key(queue);
    let mut at = known;
    // The record that the socket says it has comes first: its hash shows whether they speak of the same chain.
    let mut is_known = known == Head { seq: 0, hash: queue.genesis() };
    while at.seq < until.seq || !is_known {
        let Some(room) = outbox.room().await else { return };
        let journal = engine.0.journal.clone();
        let from = if is_known { at.seq + 1 } else { at.seq };
        let read = move || journal.records(queue, from, RECORDS_PER_MESSAGE, CATCH_UP_BYTES);
        let reading = engine.0.reading.acquire().await;
        let read = tokio::task::spawn_blocking(read).await;
        drop(reading);
        let records = match read {
            Ok(Ok(records)) => records,
            Ok(Err(_)) | Err(_) => Vec::new(),
        };
        let news = match (is_known, records.split_first()) {
            (true, Some(_)) => &records[..],
            (false, Some((same, news))) if same.seq == known.seq && same.hash == known.hash => news,
            // Another chain, or records that are not kept any more.
            _ => {
                let _ = handle.send(Ask::CaughtUp { session, to: None }).await;
                return;
            }
        };
        is_known = true;
        if let (Some(message), Some(last)) = (events(news), news.last()) {
            at = Head { seq: last.seq, hash: last.hash };
            outbox.large(message, &room);
        }
    }
    let _ = handle.send(Ask::CaughtUp { session, to: Some(at) }).await;
}
