//! Sockets that are attached to the queue: what they get when they come, and what they are told.

use std::sync::Arc;
use std::time::Duration;

use protocol::id::{Head, QueueKey, Seq};
use protocol::native::FromBroker;
use protocol::raw::{RecordBytes, StateBytes};
use tokio::time::Instant;

use super::Task;
use crate::clock;
use crate::engine::ask::{Ask, Attach, ReplyTo, rejected};
use crate::engine::outbox::{Outbox, Outgoing, Shared};
use crate::engine::stats::Counters;
use crate::engine::{Engine, PresenceView};
use crate::journal::EncodedRecord;
use crate::rules::command::{Answer, Command, SessionId};

/// How soon watchers hear of a change in who is connected, and how often those that are behind are looked at.
pub(super) const TELL_EVERY: Duration = Duration::from_millis(50);

/// Records in one message of those that catch up: a message stays well under a socket's frame limit.
const RECORDS_PER_MESSAGE: usize = 1_000;

/// Bytes read from disk at once for a socket that catches up.
const CATCH_UP_BYTES: usize = 256 * 1024;

/// A socket that is attached to the queue.
pub(super) struct Session {
    pub(super) outbox: Outbox,
    pub(super) watches: bool,
    pub(super) is_worker: bool,
    /// It has everything up to here; batches that begin later are news to it.
    pub(super) since: Seq,
    /// Its line was full: it has missed records and needs a snapshot.
    pub(super) behind: bool,
}

impl Task {
    pub(super) fn attach(&mut self, attach: Attach) {
        // Records of the batch being filled came before this socket: no batch may hold both what it begins with and news.
        self.seal();
        let Attach { session, outbox, hello } = attach;
        self.sessions.insert(
            session,
            Session {
                outbox: outbox.clone(),
                watches: hello.watch,
                is_worker: hello.worker.is_some(),
                since: Seq::MAX,
                behind: false,
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
        let welcome = FromBroker::Welcome { version: protocol::PROTOCOL_VERSION, queue, head, lease_ms, gone };
        self.batch.releases.push(Box::new(move || outbox.must(welcome)));
        match hello.resume {
            _ if !hello.watch => {}
            None => self.give_snapshot(session),
            // What the connecting itself did is in the batch that is still being filled, not yet among the recent records.
            Some(known) => {
                self.seal();
                self.give_events(session, known);
            }
        }
        self.seal();
        self.presence_changed();
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
            None if known.seq > head.seq => self.give_snapshot(id),
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
            None => self.give_snapshot(session),
        }
        self.seal();
    }

    /// Gives a session the whole state, once it is on disk; news for it start right after. The batch must be sealed next.
    pub(super) fn give_snapshot(&mut self, session: SessionId) {
        let head = self.core.state().head();
        let snapshot = self.snapshot(head);
        let Some(session) = self.sessions.get_mut(&session) else { return };
        session.since = head.seq;
        session.behind = false;
        let outbox = session.outbox.clone();
        self.batch.releases.push(Box::new(move || outbox.must_out(Outgoing::Shared(snapshot))));
    }

    /// The state as a message; made once for all that come before the next change, so that a thousand pages that come at once
    /// do not mean a thousand copies.
    fn snapshot(&mut self, head: Head) -> Arc<Shared> {
        match &self.snapshot {
            Some((of, snapshot)) if *of == head => snapshot.clone(),
            Some(_) | None => {
                let state = StateBytes(self.core.state().encode().into());
                let snapshot = Shared::new(FromBroker::Snapshot { head, state });
                self.snapshot = Some((head, snapshot.clone()));
                snapshot
            }
        }
    }

    /// Sessions that missed records and have read most of what waited for them start anew from a snapshot.
    pub(super) fn catch_up_behind(&mut self) {
        let ready: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.behind && session.outbox.has_drained())
            .map(|(id, _)| *id)
            .collect();
        if ready.is_empty() {
            return;
        }
        self.seal();
        for id in ready {
            Counters::count(&self.engine.0.counters.snapshots_for_lag);
            self.give_snapshot(id);
        }
        self.seal();
    }

    pub(super) fn presence_changed(&mut self) {
        self.presence_due.get_or_insert_with(|| Instant::now() + TELL_EVERY);
    }

    pub(super) fn presence(&self) -> PresenceView {
        let clients = self.sessions.values().filter(|session| !session.is_worker).count();
        PresenceView {
            workers: self.core.presence().view(self.core.state()),
            clients: u32::try_from(clients).unwrap_or(u32::MAX),
        }
    }

    /// Presence rests on nothing stored, and whoever misses one gets the next.
    pub(super) fn tell_presence(&mut self) {
        self.presence_due = None;
        let PresenceView { workers, clients } = self.presence();
        let presence = Shared::new(FromBroker::Presence { workers, clients });
        for session in self.sessions.values().filter(|session| session.watches) {
            session.outbox.may(&presence);
        }
    }
}

fn events(records: &[EncodedRecord]) -> Option<FromBroker> {
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
        let journal = engine.0.journal.clone();
        let from = if is_known { at.seq + 1 } else { at.seq };
        let read = move || journal.records(queue, from, RECORDS_PER_MESSAGE, CATCH_UP_BYTES);
        let records = match tokio::task::spawn_blocking(read).await {
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
            if outbox.wait(message).await.is_err() {
                return;
            }
        }
    }
    let _ = handle.send(Ask::CaughtUp { session, to: Some(at) }).await;
}
