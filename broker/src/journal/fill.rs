//! Filling the store from the segments: what is missing after a crash, everything after damage, or one queue again.
//!
//! First the rows, in the order of the log, each queue's chain checked; then what only a fold can tell (what stays of removed
//! jobs), one queue after the other, so that one state is in memory at a time.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use protocol::event::Event;
use protocol::id::{Digest, Head, JobId, QueueKey, Seq, UnixMillis};
use protocol::queue::QueueState;
use protocol::record::{Record, chain};

use super::ahead::Ahead;
use super::archive::Archived;
use super::damage::Quarantined;
use super::events::{FILL_ROWS, Folded, Place, Progress, Rows, Store, StoreError};
use super::scan::{Loss, Step, Walk};
use super::segment::Segment;
use super::snapshot::{Snapshots, Start, Tail};

/// Why the store could not be filled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FillError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The segments.
    #[error("cannot read a segment: {0}")]
    Io(#[from] io::Error),
    /// What the store holds is not what the segments go on from: it must be filled from the start.
    #[error("the event store is not of these segments: {0}")]
    Mismatch(String),
}

/// What is to be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Everything after the store's position.
    Rest,
    /// One queue, from its start; the store has forgotten it.
    Queue(QueueKey),
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Filled {
    /// How far the store is filled now.
    pub(crate) progress: Progress,
    /// Records put in.
    pub(crate) records: u64,
    /// What is wrong with the segments.
    pub(crate) losses: Vec<Loss>,
    /// The queues that it touches.
    pub(crate) broken: BTreeMap<QueueKey, Quarantined>,
}

struct Touched {
    /// The head before.
    from: Seq,
    /// Whether a job was removed.
    removed: bool,
}

struct Filler<'a> {
    store: &'a Store,
    scope: Scope,
    /// Whether the store was empty: nothing in it can be at odds with the segments.
    fresh: bool,
    rows: Rows,
    heads: HashMap<QueueKey, Head>,
    changed: BTreeSet<QueueKey>,
    touched: BTreeMap<QueueKey, Touched>,
    /// Broken chains in the group being read: by damage that is told at its end, or else by the store.
    suspects: BTreeMap<QueueKey, Quarantined>,
    filled: Filled,
}

/// Fills `store` from `segments` up to the position `until`, leaving out the queues that `skip` names.
pub(crate) fn fill(
    starts: Starts<'_>,
    store: &Store,
    segments: &[Segment],
    until: u64,
    scope: Scope,
    skip: &dyn Fn(QueueKey) -> bool,
) -> Result<Filled, FillError> {
    let progress = store.progress()?;
    let from = match scope {
        Scope::Rest => progress.position,
        Scope::Queue(_) => 0,
    };
    let mut filler = Filler {
        store,
        scope,
        fresh: from == 0,
        rows: Rows::default(),
        heads: HashMap::new(),
        changed: BTreeSet::new(),
        touched: BTreeMap::new(),
        suspects: BTreeMap::new(),
        filled: Filled { progress, ..Filled::default() },
    };
    for (index, segment) in segments.iter().enumerate() {
        let end = segments.get(index + 1).map_or(until, |next| next.base).min(until);
        if end > from && segment.base < until {
            filler.segment(segment, from.saturating_sub(segment.base), end - segment.base, skip)?;
        }
    }
    filler.flush()?;
    filler.derive(starts)?;
    filler.finish(until)
}

impl Filler<'_> {
    fn segment(
        &mut self,
        segment: &Segment,
        from: u64,
        until: u64,
        skip: &dyn Fn(QueueKey) -> bool,
    ) -> Result<(), FillError> {
        let mut walk = Walk::new(segment, from, until)?;
        while let Some(step) = walk.step()? {
            match step {
                Step::Record { offset, queue, seq, hash, bytes } => {
                    if self.wants(queue) && !skip(queue) {
                        self.record(segment, offset, queue, seq, hash, &bytes)?;
                    }
                }
                Step::Body { offset, frame_bytes, queue, digest, .. } => {
                    if self.wants(queue) {
                        self.rows.body(queue, digest, Place { position: segment.base + offset, frame_bytes });
                    }
                }
                Step::Loss(loss) => {
                    for one in Quarantined::of_loss(&loss) {
                        if self.wants(one.queue) {
                            self.suspects.remove(&one.queue);
                            self.filled.broken.entry(one.queue).or_insert(one);
                        }
                    }
                    self.filled.losses.push(loss);
                }
                Step::GroupStart { .. } | Step::GroupEnd { .. } | Step::Sealed { .. } => self.settle()?,
            }
            if self.rows.len() >= FILL_ROWS {
                self.flush()?;
            }
        }
        self.settle()
    }

    fn wants(&self, queue: QueueKey) -> bool {
        match self.scope {
            Scope::Rest => true,
            Scope::Queue(one) => queue == one,
        }
    }

    /// A broken chain that no damage explains: the store is of another history, or the segments were tampered with.
    fn settle(&mut self) -> Result<(), FillError> {
        for (queue, suspect) in std::mem::take(&mut self.suspects) {
            if !self.fresh {
                return Err(FillError::Mismatch(suspect.text));
            }
            self.filled.broken.entry(queue).or_insert(suspect);
        }
        Ok(())
    }

    fn record(
        &mut self,
        segment: &Segment,
        offset: u64,
        queue: QueueKey,
        seq: Seq,
        hash: Digest,
        bytes: &[u8],
    ) -> Result<(), FillError> {
        if self.filled.broken.contains_key(&queue) || self.suspects.contains_key(&queue) {
            return Ok(());
        }
        let head = match self.heads.get(&queue) {
            Some(head) => *head,
            None => self.store.head(queue)?.unwrap_or(Head { seq: 0, hash: queue.genesis() }),
        };
        let mut suspect = |text: String| {
            let text = format!("{text}, at byte {offset} of segment {}", segment.number);
            self.suspects
                .insert(queue, Quarantined { queue, segment: segment.number, offset, seq: Some(head.seq + 1), text });
        };
        if seq != head.seq + 1 {
            suspect(format!("record {seq} where {} must come", head.seq + 1));
            return Ok(());
        }
        if chain(&head.hash, bytes) != hash {
            suspect(format!("record {seq} does not continue the chain"));
            return Ok(());
        }
        let event = match Record::decode(bytes) {
            Ok(record) => record.event,
            Err(error) => {
                suspect(format!("record {seq}: {error}"));
                return Ok(());
            }
        };
        let touched = match self.touched.entry(queue) {
            Entry::Occupied(touched) => touched.into_mut(),
            Entry::Vacant(entry) => {
                self.store.forget_after(queue, head.seq)?;
                entry.insert(Touched { from: head.seq, removed: false })
            }
        };
        match event_index(&event) {
            Some(Index::Job(job)) => self.rows.job(job, queue),
            Some(Index::Removed(_)) => touched.removed = true,
            None => {}
        }
        self.rows.event(queue, seq, hash, bytes);
        self.heads.insert(queue, Head { seq, hash });
        self.changed.insert(queue);
        self.filled.records += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), FillError> {
        let mut rows = std::mem::take(&mut self.rows);
        for queue in std::mem::take(&mut self.changed) {
            rows.head(queue, self.heads[&queue]);
        }
        Ok(self.store.apply(rows)?)
    }

    /// Derives what a fold alone can tell.
    fn derive(&mut self, starts: Starts<'_>) -> Result<(), FillError> {
        for (queue, touched) in &self.touched {
            if !touched.removed {
                continue;
            }
            let mut rows = Rows::default();
            let Start { state, tail } = starts.of(self.store, *queue, touched.from)?;
            let folded = self.store.fold(state, |state, row| {
                if row.seq > touched.from
                    && let Ok(Record { event: Event::JobRemoved { job }, at_ms, .. }) = Record::decode(&row.bytes)
                    && let Some(left) = state.job(job)
                {
                    // Also what is forgotten: nobody is told of it, and the next sweep takes it out again.
                    rows.archived(*queue, job, &Archived::of(left, at_ms));
                }
            })?;
            match folded {
                Folded::State { state, events, bytes } => {
                    starts.ahead.keep(Start { state: *state, tail: tail.after(events, bytes) })
                }
                Folded::Unverified(text) => return Err(FillError::Mismatch(text)),
            }
            self.store.apply(rows)?;
        }
        Ok(())
    }

    fn finish(mut self, until: u64) -> Result<Filled, FillError> {
        let mut rows = Rows::default();
        for queue in self.touched.keys() {
            // Whoever serves the queue finds out when it is really due.
            rows.due(*queue, Some(UnixMillis(0)));
        }
        self.store.apply(rows)?;
        self.filled.progress.records += self.filled.records;
        if self.scope == Scope::Rest {
            self.filled.progress.position = self.filled.progress.position.max(until);
        }
        self.store.reached(self.filled.progress)?;
        Ok(self.filled)
    }
}

/// What the indexes must know of an event.
pub(crate) enum Index {
    /// The queue knows this job.
    Job(JobId),
    /// This job left.
    Removed(JobId),
}

/// What the indexes must know of `event`.
pub(crate) const fn event_index(event: &Event) -> Option<Index> {
    match event {
        Event::JobQueued { job, .. } | Event::JobRecalled { job, .. } => Some(Index::Job(*job)),
        Event::JobRemoved { job } => Some(Index::Removed(*job)),
        Event::NamespaceJoined { .. }
        | Event::NamespaceLeft { .. }
        | Event::RunClaimed { .. }
        | Event::RunFinished { .. }
        | Event::RunLost { .. }
        | Event::RunResumed { .. }
        | Event::JobRequeued { .. }
        | Event::JobAbandoned { .. }
        | Event::JobCancelled { .. }
        | Event::JobReplaced { .. }
        | Event::JobDeleted { .. }
        | Event::WorkerJoined { .. }
        | Event::WorkerLeft { .. }
        | Event::PresenceReset {}
        | Event::Checkpoint { .. } => None,
    }
}

/// Where folds start from.
#[derive(Clone, Copy)]
pub(crate) struct Starts<'a> {
    /// What is on disk.
    pub(crate) snapshots: &'a Snapshots,
    /// What is in memory already.
    pub(crate) ahead: &'a Ahead,
}

impl Starts<'_> {
    /// The newest state that is not after `seq_max` and of the store's history; else the one before all records.
    pub(crate) fn of(self, store: &Store, queue: QueueKey, seq_max: Seq) -> Result<Start, StoreError> {
        for start in self.ahead.take(queue).into_iter().chain(self.snapshots.load(queue)) {
            let head = start.state.head();
            if head.seq <= seq_max && store.hash_at(queue, head.seq)? == Some(head.hash) {
                return Ok(start);
            }
        }
        Ok(Start { state: QueueState::new(queue), tail: Tail::default() })
    }
}

/// The queues of `heads` whose records are not all in the segments.
pub(crate) fn absent(segments: &[Segment], until: u64, heads: &[(QueueKey, Head)]) -> io::Result<Vec<Quarantined>> {
    let mut next: HashMap<QueueKey, Seq> = heads.iter().map(|(queue, _)| (*queue, 1)).collect();
    for (index, segment) in segments.iter().enumerate() {
        let end = segments.get(index + 1).map_or(until, |next| next.base).min(until);
        let mut walk = Walk::new(segment, 0, end.saturating_sub(segment.base))?;
        while let Some(step) = walk.step()? {
            if let Step::Record { queue, seq, .. } = step
                && let Some(next) = next.get_mut(&queue)
                && *next == seq
            {
                *next += 1;
            }
        }
    }
    let missing = |(queue, head): &(QueueKey, Head)| {
        let next = next.get(queue).copied().unwrap_or(1);
        (next <= head.seq).then(|| Quarantined::absent(*queue, next, head.seq))
    };
    Ok(heads.iter().filter_map(missing).collect())
}
