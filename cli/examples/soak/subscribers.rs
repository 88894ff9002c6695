//! Many subscribers of one queue. Every one of them chains the bytes of all records that it is shown, which proves that they are
//! the queue's, all of them and in order; some also fold them into the state.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use protocol::id::{Digest, Head, Seq};
use protocol::native::{FromBroker, Hello};
use protocol::queue::QueueState;
use protocol::raw::RecordBytes;
use protocol::record::{Record, chain};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{client_hello, connect};
use crate::load::Load;
use crate::tally::{Count, Delays, Wrong};

/// How long to wait before the next try when the broker is not there.
const RETRY: Duration = Duration::from_millis(50);

/// How many take their first snapshot at once: each holds megabytes meanwhile.
const FIRST_SNAPSHOTS_AT_ONCE: usize = 20;

/// How long all may take to be shown what has happened.
const SHOWN_WITHIN: Duration = Duration::from_secs(60);

/// How long the queue may take to be still, so that all can be compared: jobs that have ended leave it for a minute.
const STILL_WITHIN: Duration = Duration::from_secs(150);

/// What all subscribers count.
#[derive(Default)]
pub(crate) struct Seen {
    /// From a record's time to its arrival, of records decided while the subscriber was connected.
    pub(crate) delays: Delays,
    pub(crate) records: Count,
    pub(crate) messages: Count,
    /// Bytes on the wire of messages with records.
    pub(crate) bytes: Count,
    /// Bytes on the wire of everything else but snapshots.
    pub(crate) other_bytes: Count,
    pub(crate) snapshots: Count,
    /// Times that one came back and said where it had been.
    pub(crate) resumes: Count,
    pub(crate) wrong: Wrong,
}

/// What one subscriber knows.
struct Known {
    head: Option<Head>,
    folds: bool,
    state: Option<Box<QueueState>>,
    connected: bool,
}

struct Subscriber {
    number: usize,
    known: Mutex<Known>,
}

/// Where the subscribers and the broker were found to agree.
pub(crate) struct Agreed {
    pub(crate) head: Head,
    pub(crate) state_hash: Digest,
    pub(crate) jobs: usize,
    pub(crate) folds: usize,
}

/// Subscribers of one queue.
pub(crate) struct Subscribers {
    address: String,
    queue: String,
    all: Vec<Arc<Subscriber>>,
    wanted: watch::Sender<bool>,
    pub(crate) seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

impl Subscribers {
    /// Connects `count` of them, of which `folds` fold, and waits until each has its snapshot.
    pub(crate) async fn start(address: &str, queue: &str, count: usize, folds: usize) -> anyhow::Result<Self> {
        let (wanted, is_wanted) = watch::channel(true);
        let (seen, first) = (Arc::new(Seen::default()), Arc::new(Semaphore::new(FIRST_SNAPSHOTS_AT_ONCE)));
        let mut tasks = JoinSet::new();
        let mut all = Vec::new();
        for number in 0..count {
            let known = Known { head: None, folds: number < folds, state: None, connected: false };
            let one = Arc::new(Subscriber { number, known: Mutex::new(known) });
            all.push(one.clone());
            let (address, queue, seen) = (address.to_owned(), queue.to_owned(), seen.clone());
            let (is_wanted, first) = (is_wanted.clone(), first.clone());
            tasks.spawn(async move { one.live(&address, &queue, is_wanted, &first, &seen).await });
        }
        let (address, queue) = (address.to_owned(), queue.to_owned());
        let started = Self { address, queue, all, wanted, seen, _tasks: tasks };
        started.shown(0).await?;
        Ok(started)
    }

    /// All of them drop their connections at once, without a word.
    pub(crate) async fn leave(&self) -> anyhow::Result<()> {
        self.wanted.send_replace(false);
        let all_gone = async || self.all.iter().all(|one| !one.known().connected);
        ensure!(Load::wait_for(SHOWN_WITHIN, all_gone).await, "the subscribers do not drop their connections");
        Ok(())
    }

    /// All of them come back at once.
    pub(crate) fn come_back(&self) {
        self.wanted.send_replace(true);
    }

    /// Waits until all are connected and have been shown the queue up to `seq`; says how long that took.
    pub(crate) async fn shown(&self, seq: Seq) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let behind = || {
            let is_there = |one: &&Arc<Subscriber>| {
                let known = one.known();
                known.connected && known.head.is_some_and(|head| head.seq >= seq)
            };
            self.all.len() - self.all.iter().filter(is_there).count()
        };
        let all_there = Load::wait_for(SHOWN_WITHIN, async || behind() == 0).await;
        ensure!(all_there, "{} subscribers have not been shown record {seq} within {SHOWN_WITHIN:?}", behind());
        Ok(started.elapsed())
    }

    /// Compares what all know with the state that the broker serves, at a moment when nothing happens. What differs is wrong.
    pub(crate) async fn agree(&self) -> anyhow::Result<Agreed> {
        let deadline = Instant::now() + STILL_WITHIN;
        loop {
            let (head, served) = self.snapshot().await?;
            self.shown(head.seq).await?;
            if let Some(agreed) = tokio::task::block_in_place(|| self.compare(head, &served))? {
                return Ok(agreed);
            }
            ensure!(Instant::now() < deadline, "the queue is not still, nothing could be compared");
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The state as the broker serves it to someone who comes now.
    async fn snapshot(&self) -> anyhow::Result<(Head, Arc<[u8]>)> {
        let (_sender, mut receiver, _) = connect(&self.address, &self.queue, client_hello(true)).await?;
        loop {
            match receiver.next().await? {
                FromBroker::Snapshot { head, state } => return Ok((head, state.0)),
                FromBroker::Presence { .. } => {}
                other => bail!("expected a snapshot, got {other:?}"),
            }
        }
    }

    /// `None` when some have been shown more since: all are held still meanwhile, so that one look is enough.
    fn compare(&self, head: Head, served: &[u8]) -> anyhow::Result<Option<Agreed>> {
        let mut all: Vec<_> = self.all.iter().map(|one| (one.number, one.known())).collect();
        if all.iter().any(|(_, known)| known.head.is_some_and(|known| known.seq > head.seq)) {
            return Ok(None);
        }
        let state_hash = Digest::of(served);
        let jobs = QueueState::decode(served).context("the broker's snapshot")?.jobs().len();
        let wrong = &self.seen.wrong;
        for (number, known) in &all {
            if known.head != Some(head) {
                wrong.say(format!("subscriber {number} is at {:?}, the broker at {head:?}", known.head));
            }
        }
        let mut folds = 0;
        for (number, known) in &mut all {
            let Some(state) = &known.state else { continue };
            folds += 1;
            let hash = state.hash();
            if hash != state_hash {
                wrong.say(format!("subscriber {number} folds to state {hash}, the broker has {state_hash}"));
            }
        }
        Ok(Some(Agreed { head, state_hash, jobs, folds }))
    }
}

impl Subscriber {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects whenever it is wanted to be, for ever.
    async fn live(
        &self,
        address: &str,
        queue: &str,
        mut wanted: watch::Receiver<bool>,
        first: &Semaphore,
        seen: &Seen,
    ) {
        loop {
            if wanted.wait_for(|wanted| *wanted).await.is_err() {
                return;
            }
            let lost = tokio::select! {
                _ = wanted.wait_for(|wanted| !wanted) => None,
                ended = self.connection(address, queue, first, seen) => ended.err(),
            };
            self.known().connected = false;
            if lost.is_some() {
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// One connection, for as long as it holds.
    async fn connection(&self, address: &str, queue: &str, first: &Semaphore, seen: &Seen) -> anyhow::Result<()> {
        let resume = self.known().head;
        let mut room = match resume {
            Some(_) => None,
            None => Some(first.acquire().await?),
        };
        let hello = Hello { resume, ..client_hello(true) };
        let (_sender, mut receiver, welcome) = connect(address, queue, hello).await?;
        let since = broker::clock::now();
        if let Some(known) = resume {
            seen.resumes.add(1);
            if welcome.head.seq < known.seq {
                seen.wrong.say(format!(
                    "subscriber {} was shown record {} and comes back to a queue that ends at {}",
                    self.number, known.seq, welcome.head.seq
                ));
            }
        }
        self.known().connected = true;
        loop {
            let (message, bytes) = receiver.next_counted().await?;
            match message {
                FromBroker::Snapshot { head, state } => {
                    seen.snapshots.add(1);
                    self.take_snapshot(head, &state.0, seen)?;
                    room.take();
                }
                FromBroker::Events { from_seq, records } => {
                    seen.messages.add(1);
                    seen.bytes.add(bytes);
                    seen.records.add(records.len() as u64);
                    let now = broker::clock::now();
                    for at_ms in self.take_records(from_seq, &records, seen)? {
                        if at_ms > since {
                            seen.delays.add(now.since(at_ms));
                        }
                    }
                }
                FromBroker::Rejected { code, message, .. } => bail!("{code}: {message}"),
                FromBroker::Presence { .. } => seen.other_bytes.add(bytes),
                other => seen.wrong.say(format!("subscriber {} was told {other:?}", self.number)),
            }
        }
    }

    /// Only the first is in order: all others mean that something was not kept for it.
    fn take_snapshot(&self, head: Head, bytes: &[u8], seen: &Seen) -> anyhow::Result<()> {
        let mut known = self.known();
        if let Some(had) = known.head {
            let number = self.number;
            seen.wrong.say(format!("subscriber {number} was at record {} and was given a snapshot", had.seq));
        }
        if known.folds {
            let state = QueueState::decode(bytes)?;
            if state.head() != head {
                seen.wrong.say(format!("a snapshot of {:?} came as one of {head:?}", state.head()));
            }
            known.state = Some(Box::new(state));
        }
        known.head = Some(head);
        Ok(())
    }

    /// Chains and folds; gives the records' times.
    fn take_records(
        &self,
        from_seq: Seq,
        records: &[RecordBytes],
        seen: &Seen,
    ) -> anyhow::Result<Vec<protocol::id::UnixMillis>> {
        let mut known = self.known();
        let Some(mut head) = known.head else { bail!("events before a snapshot") };
        let mut times = Vec::with_capacity(records.len());
        for (number, bytes) in records.iter().enumerate() {
            let record = Record::decode(&bytes.0)?;
            if record.seq != head.seq + 1 || record.seq != from_seq + number as u64 {
                let text = format!(
                    "subscriber {} was at record {} and was shown record {} as number {number} from {from_seq}",
                    self.number, head.seq, record.seq
                );
                seen.wrong.say(text.clone());
                bail!("{text}");
            }
            head = Head { seq: record.seq, hash: chain(&head.hash, &bytes.0) };
            if let Some(state) = &mut known.state {
                state.apply(&record, head.hash);
            }
            times.push(record.at_ms);
        }
        known.head = Some(head);
        Ok(times)
    }
}
