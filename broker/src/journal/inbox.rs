//! What waits to be written: in the order of the calls, bounded in bytes.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::id::{Head, QueueKey, UnixMillis};
use protocol::record::chain;
use tokio::sync::{Notify, oneshot};

use super::batch::Batch;
use super::error::JournalError;

/// What may wait before callers are asked to hold back, in bytes: some groups' worth.
const ROOM_BYTES: usize = 32 * 1024 * 1024;
/// What may wait at all, in bytes: more is refused. Callers that wait for room never come here.
const WAITING_BYTES_MAX: usize = 512 * 1024 * 1024;
/// One write holds about this many bytes at most: large enough for the best throughput, small enough for a short wait.
const GROUP_BYTES: usize = 4 * 1024 * 1024;
/// One write holds this many batches at most, so that the head that names their queues stays well below its bound.
const GROUP_BATCHES_MAX: usize = 4096;
/// What a batch costs besides its bytes.
const ASK_BYTES: usize = 256;

/// One thing to do, in its place in line.
pub(crate) struct Ask {
    /// Counts up; the index says with it how far it has come.
    pub(crate) ticket: u64,
    /// What.
    pub(crate) what: What,
}

/// What is to be done.
pub(crate) enum What {
    /// A batch, and who waits for it.
    Batch(Batch, oneshot::Sender<Result<(), JournalError>>),
    /// A queue's due time, for the index alone.
    Due(QueueKey, Option<UnixMillis>),
}

/// What the writer finds.
pub(crate) enum Taken {
    /// Something to do.
    Asks(Vec<Ask>),
    /// Nothing came for as long as it was willing to wait.
    Quiet,
    /// Nothing will come any more.
    Closed,
}

#[derive(Default)]
struct State {
    asks: VecDeque<Ask>,
    bytes: usize,
    tickets: u64,
    /// The last record of each queue that was loaded or written to since the start: the next one must continue it. Bounded by
    /// the queues on disk.
    tips: HashMap<QueueKey, Head>,
    ended: Option<JournalError>,
}

/// The line of what waits.
#[derive(Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    filled: Condvar,
    room: Notify,
}

fn bytes_of(what: &What) -> usize {
    ASK_BYTES
        + match what {
            What::Batch(batch, _) => batch.bytes(),
            What::Due(..) => 0,
        }
}

impl Inbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `what` in line, `noted` with its ticket before anyone can take it. Returns the ticket.
    pub(crate) fn put(&self, what: What, noted: impl FnOnce(&What, u64)) -> Result<u64, JournalError> {
        let bytes = bytes_of(&what);
        let mut state = self.state();
        if let Some(ended) = &state.ended {
            return Err(ended.clone());
        }
        if state.bytes + bytes > WAITING_BYTES_MAX {
            return Err(JournalError::Busy);
        }
        if let What::Batch(batch, _) = &what {
            continue_tip(&mut state.tips, batch)?;
        }
        state.tickets += 1;
        state.bytes += bytes;
        let ticket = state.tickets;
        noted(&what, ticket);
        state.asks.push_back(Ask { ticket, what });
        drop(state);
        self.filled.notify_one();
        Ok(ticket)
    }

    /// The newest ticket.
    pub(crate) fn tickets(&self) -> u64 {
        self.state().tickets
    }

    /// Notes where a queue that was just read stands, unless something was written to it meanwhile. One without records is
    /// not noted: anyone can ask for queues that there never were.
    pub(crate) fn note_tip(&self, queue: QueueKey, head: Head) {
        if head.seq > 0 {
            self.state().tips.entry(queue).or_insert(head);
        }
    }

    /// Waits until there is room for more.
    pub(crate) async fn room(&self) {
        loop {
            let notified = self.room.notified();
            {
                let state = self.state();
                if state.bytes < ROOM_BYTES || state.ended.is_some() {
                    return;
                }
            }
            notified.await;
        }
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// Takes what waits, as much as one write holds; waits for something, at most for `patience`.
    pub(crate) fn take(&self, patience: Option<Duration>) -> Taken {
        let mut state = self.state();
        while state.asks.is_empty() {
            if state.ended.is_some() {
                return Taken::Closed;
            }
            state = match patience {
                None => self.filled.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(patience) => {
                    let waited = self.filled.wait_timeout(state, patience);
                    let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                    if timeout.timed_out() && state.asks.is_empty() && state.ended.is_none() {
                        return Taken::Quiet;
                    }
                    state
                }
            };
        }
        let (mut asks, mut bytes) = (Vec::new(), 0);
        while let Some(ask) = state.asks.front() {
            let more = bytes_of(&ask.what);
            if !asks.is_empty() && (bytes + more > GROUP_BYTES || asks.len() == GROUP_BATCHES_MAX) {
                break;
            }
            bytes += more;
            asks.extend(state.asks.pop_front());
        }
        state.bytes -= bytes;
        drop(state);
        self.room.notify_waiters();
        Taken::Asks(asks)
    }

    /// Lets nothing in any more: `why` answers all later calls. What waits is still taken, unless `drop_waiting`.
    pub(crate) fn end(&self, why: JournalError, drop_waiting: bool) {
        let mut state = self.state();
        let why = state.ended.get_or_insert(why).clone();
        let dropped = if drop_waiting { std::mem::take(&mut state.asks) } else { VecDeque::new() };
        if drop_waiting {
            state.bytes = 0;
        }
        drop(state);
        self.filled.notify_all();
        self.room.notify_waiters();
        for ask in dropped {
            if let What::Batch(_, reply) = ask.what {
                // Whoever asked may be gone.
                let _ = reply.send(Err(why.clone()));
            }
        }
    }

    /// Why nothing is let in any more.
    pub(crate) fn ended(&self) -> Option<JournalError> {
        self.state().ended.clone()
    }
}

/// Refuses a batch that does not continue its queue: two writers of one queue would fork its chain.
fn continue_tip(tips: &mut HashMap<QueueKey, Head>, batch: &Batch) -> Result<(), JournalError> {
    let (Some(first), Some(last)) = (batch.records.first(), batch.records.last()) else { return Ok(()) };
    if let Some(tip) = tips.get(&batch.queue)
        && (first.seq != tip.seq + 1 || first.hash != chain(&tip.hash, &first.bytes))
    {
        return Err(JournalError::Invalid { what: "the batch does not continue its queue" });
    }
    tips.insert(batch.queue, Head { seq: last.seq, hash: last.hash });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_that_were_only_asked_for_take_no_memory() {
        let inbox = Inbox::default();
        let queue = QueueKey::from_bytes([1; 16]);
        inbox.note_tip(queue, Head { seq: 0, hash: queue.genesis() });
        assert!(inbox.state().tips.is_empty());
        inbox.note_tip(queue, Head { seq: 1, hash: queue.genesis() });
        assert_eq!(inbox.state().tips.len(), 1);
    }
}
