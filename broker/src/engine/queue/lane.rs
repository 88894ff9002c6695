//! Grants whose definitions are not in memory: read off the queue's task, many sockets' in one go, and sent in order.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::id::{Digest, QueueKey};
use protocol::native::{FromBroker, HeldRun};
use protocol::raw::RawJson;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::engine::ask::ReplyTo;
use crate::engine::outbox::Outbox;
use crate::engine::{Engine, QueueHandle};
use crate::journal::{Journal, JournalError};
use crate::rules::command::{Command, SessionId};

/// Grants of one socket that are read together; each definition is small or one of few.
const GRANTS_TOGETHER_MAX: usize = 16;

/// Bytes of definitions that one socket's round may bring; one that is larger is a round of its own.
const ROUND_BYTES_MAX: usize = 256 * 1024;

/// Rounds of different sockets that are read in one go.
const ROUNDS_TOGETHER_MAX: usize = 64;

/// A grant on its way to its worker.
pub(super) struct Pending {
    pub(super) session: SessionId,
    pub(super) run: HeldRun,
    pub(super) body: Digest,
    pub(super) lease_ms: u64,
    pub(super) debug: bool,
}

impl Pending {
    pub(super) fn granted(&self, definition: RawJson) -> FromBroker {
        FromBroker::Granted { run: self.run, definition, lease_ms: self.lease_ms, debug: self.debug }
    }
}

/// The grants of one socket that wait for their definitions. While there are any, all later ones wait behind them: a worker counts
/// what it has seen, so grants must not overtake each other.
#[derive(Default)]
pub(super) struct Lane(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    grants: VecDeque<Pending>,
    /// A task sends them.
    is_served: bool,
}

impl Lane {
    pub(super) fn is_idle(&self) -> bool {
        !self.waiting().is_served
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next few, or none: then nobody serves the lane any more.
    fn next_round(&self, round: &mut VecDeque<Pending>) {
        let mut waiting = self.waiting();
        while round.len() < GRANTS_TOGETHER_MAX
            && let Some(grant) = waiting.grants.pop_front()
        {
            round.push_back(grant);
        }
        waiting.is_served = !round.is_empty();
    }
}

/// What is read: some bodies, in order; the answer may be of the first few only.
struct Round {
    bodies: Vec<Digest>,
    reply: oneshot::Sender<Vec<Result<Option<Vec<u8>>, JournalError>>>,
}

/// Reads for all of a queue's sockets.
pub(super) struct Reader {
    rounds: mpsc::Sender<Round>,
}

impl Reader {
    pub(super) fn start(engine: &Engine, queue: QueueKey) -> Self {
        let (rounds, waiting) = mpsc::channel(ROUNDS_TOGETHER_MAX);
        tokio::spawn(serve(engine.0.journal.clone(), queue, waiting));
        Self { rounds }
    }

    /// Puts a grant into a socket's lane.
    pub(super) fn send(&self, lane: &Arc<Lane>, grant: Pending, outbox: &Outbox, queue: QueueHandle) {
        let is_served = {
            let mut waiting = lane.waiting();
            waiting.grants.push_back(grant);
            std::mem::replace(&mut waiting.is_served, true)
        };
        if !is_served {
            tokio::spawn(send_all(Arc::clone(lane), self.rounds.clone(), outbox.clone(), queue));
        }
    }
}

/// Reads what all sockets want, whatever waits in one go. Ends with the queue's task and the last lane.
async fn serve(journal: Journal, queue: QueueKey, mut waiting: mpsc::Receiver<Round>) {
    let mut rounds = Vec::new();
    while waiting.recv_many(&mut rounds, ROUNDS_TOGETHER_MAX).await > 0 {
        let (journal, taken) = (journal.clone(), std::mem::take(&mut rounds));
        let read = move || taken.into_iter().for_each(|round| read(&journal, queue, round));
        if tokio::task::spawn_blocking(read).await.is_err() {
            return;
        }
    }
}

fn read(journal: &Journal, queue: QueueKey, round: Round) {
    let found = match journal.bodies(queue, &round.bodies, ROUND_BYTES_MAX) {
        Ok(found) => found.into_iter().map(Ok).collect(),
        // One of them: which one is found out one by one.
        Err(_) => round.bodies.first().map(|body| journal.body(queue, *body)).into_iter().collect(),
    };
    let _ = round.reply.send(found);
}

/// Sends a lane's grants until it is empty. A definition that is not there ends its job, with the reason; what cannot be read now
/// gives the run back. Either way the worker has missed a grant, so its socket ends: on the next both count anew.
async fn send_all(lane: Arc<Lane>, rounds: mpsc::Sender<Round>, outbox: Outbox, queue: QueueHandle) {
    let mut round = VecDeque::new();
    loop {
        lane.next_round(&mut round);
        if round.is_empty() {
            return;
        }
        let Some(room) = outbox.room().await else { return };
        let (reply, found) = oneshot::channel();
        let bodies = round.iter().map(|grant| grant.body).collect();
        let found = match rounds.send(Round { bodies, reply }).await {
            Ok(()) => found.await.ok(),
            Err(_) => None,
        };
        let Some(found) = found else { return outbox.cut_off() };
        for definition in found {
            let Some(grant) = round.pop_front() else { break };
            let why = match definition.map(|bytes| bytes.map(text_of)) {
                Ok(Some(Some(definition))) => {
                    outbox.large(grant.granted(definition), &room);
                    continue;
                }
                Ok(Some(None)) => "its definition is not text",
                Ok(None) => "its definition is not stored any more",
                Err(failure) => {
                    let run = grant.run;
                    warn!(job = %run.job, "run {} of job {} is taken back: {failure}", run.run, run.job);
                    let back = Command::HandBack { session: grant.session, run, busy: false };
                    let _ = queue.command(back, ReplyTo::Nobody).await;
                    return outbox.cut_off();
                }
            };
            let run = grant.run;
            warn!(job = %run.job, "job {} is given up: {why}", run.job);
            let _ = queue.command(Command::Abandon { run, why: why.to_owned() }, ReplyTo::Nobody).await;
            return outbox.cut_off();
        }
    }
}

fn text_of(bytes: Vec<u8>) -> Option<RawJson> {
    String::from_utf8(bytes).ok().map(RawJson::new)
}
