//! The index: the one thread that fills the store from what was written.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use protocol::id::Head;
use protocol::record::Record;
use tokio::time::Instant;
use tracing::warn;

use super::error::JournalError;
use super::events::{Progress, Rows, Store, StoreError};
use super::fill::{Index, event_index};
use super::shared::Shared;
use super::writer::Group;

/// How many groups may wait for the index before the writer waits, too.
pub(crate) const GROUPS_WAITING_MAX: usize = 16;
/// After this long without work the store is put on disk, so that little is to be filled in after a power cut.
const QUIET: Duration = Duration::from_secs(5);
/// And after this many bytes of log, however busy it is.
const FLUSH_EVERY_BYTES: u64 = 256 * 1024 * 1024;
/// How long groups are gathered before they go into the store together. Each time rows are put in, sled writes its buffers and
/// wakes all its threads, however few the rows; meanwhile what is not in the store is found in the overlay.
const GATHER: Duration = Duration::from_millis(10);
/// No more is gathered after this many records or bytes of log: all of it is in memory until it is in the store.
const GATHERED_RECORDS_MAX: usize = 4096;
const GATHERED_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Runs until the writer has ended and everything it wrote is in the store.
pub(crate) fn run(shared: &Arc<Shared>, groups: &Receiver<Group>) {
    let mut flushed = shared.lock_index().position;
    loop {
        match groups.recv_timeout(QUIET) {
            Ok(first) => {
                let group = gather(first, groups);
                let end = group.end;
                if let Err(error) = take(shared, group) {
                    // Failed already, and told.
                    warn!("the index ends: {error}");
                    return;
                }
                if end.saturating_sub(flushed) >= FLUSH_EVERY_BYTES {
                    flushed = flush(shared);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                if shared.lock_index().position > flushed {
                    flushed = flush(shared);
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// The groups that come within a moment, as one.
fn gather(first: Group, groups: &Receiver<Group>) -> Group {
    let (mut group, until) = (first, Instant::now() + GATHER);
    let bytes_until = group.end + GATHERED_BYTES_MAX;
    let mut records: usize = group.batches.iter().map(|(_, batch)| batch.records.len()).sum();
    while records < GATHERED_RECORDS_MAX && group.end < bytes_until {
        // Nothing more, or no writer any more: the next look at the line tells which.
        let Ok(next) = groups.recv_timeout(until.saturating_duration_since(Instant::now())) else { break };
        records += next.batches.iter().map(|(_, batch)| batch.records.len()).sum::<usize>();
        group.end = next.end;
        group.ticket = next.ticket;
        group.batches.extend(next.batches);
        group.due.extend(next.due);
        group.places.extend(next.places);
    }
    group
}

fn flush(shared: &Shared) -> u64 {
    let progress = shared.lock_index();
    let position = progress.position;
    drop(progress);
    // One that breaks over it was made again by this, or the journal has stopped and said so.
    let _ = shared.ask(Store::flush);
    position
}

fn take(shared: &Shared, group: Group) -> Result<(), JournalError> {
    {
        let mut progress = shared.lock_index();
        let done = shared.change(&mut progress, |store, progress| put(shared, store, progress, &group))?;
        *progress = done;
        shared.indexed_to.store(done.position, Ordering::Relaxed);
    }
    let mut overlay = shared.overlay();
    for (ticket, batch) in &group.batches {
        for body in &batch.bodies {
            let key = (batch.queue, body.digest);
            if overlay.bodies.get(&key).is_some_and(|(of, _)| of == ticket) {
                overlay.bodies.remove(&key);
            }
        }
        for (job, _) in &batch.archives {
            let key = (batch.queue, *job);
            if overlay.archived.get(&key).is_some_and(|(of, _)| of == ticket) {
                overlay.archived.remove(&key);
            }
        }
    }
    drop(overlay);
    shared.indexed(group.ticket);
    Ok(())
}

/// Puts a group into the store, unless it is there already.
fn put(shared: &Shared, store: &Store, progress: &Progress, group: &Group) -> Result<Progress, StoreError> {
    let mut rows = Rows::default();
    let mut done = *progress;
    let due: HashMap<_, _> = group.due.iter().copied().collect();
    for (queue, at) in due {
        rows.due(queue, at);
    }
    if group.end > progress.position {
        for (queue, digest, place) in &group.places {
            rows.body(*queue, *digest, *place);
        }
        let mut heads = HashMap::new();
        for (_, batch) in &group.batches {
            if shared.quarantine.of(batch.queue).is_some() {
                continue;
            }
            for record in &batch.records {
                rows.event(batch.queue, record.seq, record.hash, &record.bytes);
                heads.insert(batch.queue, Head { seq: record.seq, hash: record.hash });
                let event = Record::decode(&record.bytes).ok().map(|record| record.event);
                if let Some(Index::Job(job)) = event.as_ref().and_then(event_index) {
                    rows.job(job, batch.queue);
                    if let Some(returned) = shared.returned().as_mut() {
                        returned.note(batch.queue, job);
                    }
                }
            }
            done.records += batch.records.len() as u64;
            for (job, archived) in &batch.archives {
                rows.archived(batch.queue, *job, archived);
            }
        }
        for (queue, head) in heads {
            rows.head(queue, head);
        }
        done.position = group.end;
    }
    store.apply(rows)?;
    if done.position > progress.position {
        store.reached(done)?;
    }
    Ok(done)
}
