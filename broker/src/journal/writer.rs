//! The writer: the one thread that appends to the segments.
//!
//! Whatever waits goes in one write and one fdatasync; then all of it is acknowledged, in order, and handed to the index. A
//! write or a sync that fails is never tried again: what is on disk is then unknown until the next start.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use protocol::id::{Digest, QueueKey, UnixMillis};
use tokio::time::Instant;

use super::batch::Batch;
use super::config::Durability;
use super::error::JournalError;
use super::events::Place;
use super::frame::{self, BodyFrame, GroupHead, GroupPart, Kind, RecordFrame};
use super::head;
use super::inbox::{Ask, Taken, What};
use super::segment::{Appender, SEGMENT_HEADER_BYTES};
use super::shared::Shared;

/// How much may be lost with `Durability::Interval`.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// A group that is on disk, on its way to the index.
pub(crate) struct Group {
    /// The position after it.
    pub(crate) end: u64,
    /// The last ticket in it.
    pub(crate) ticket: u64,
    /// What was asked, in order.
    pub(crate) batches: Vec<(u64, Batch)>,
    /// Due times that came without a batch.
    pub(crate) due: Vec<(QueueKey, Option<UnixMillis>)>,
    /// Where the bodies are.
    pub(crate) places: Vec<(QueueKey, Digest, Place)>,
}

/// One write, made of what waited.
struct Write {
    bytes: Vec<u8>,
    frames: u64,
    records: u64,
    places: Vec<(QueueKey, Digest, Place)>,
}

struct Writer {
    shared: Arc<Shared>,
    appender: Appender,
    to_index: SyncSender<Group>,
    /// Since when something is written but not synced.
    dirty: Option<Instant>,
}

/// Runs until the inbox is closed; what waits then is written before it ends.
pub(crate) fn run(shared: Arc<Shared>, appender: Appender, to_index: SyncSender<Group>) {
    let mut writer = Writer { shared, appender, to_index, dirty: None };
    if let Err(error) = writer.serve() {
        let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let text = if full {
            format!("the disk is full ({error}); make room and start again")
        } else {
            format!("writing the segments failed: {error}")
        };
        writer.shared.fail(&text);
    }
}

impl Writer {
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let patience = self.dirty.map(|_| SYNC_EVERY);
            match self.shared.inbox.take(patience) {
                Taken::Asks(asks) => self.write(asks)?,
                Taken::Quiet => self.sync()?,
                Taken::Closed => return self.sync(),
            }
            if self.dirty.is_some_and(|since| since.elapsed() >= SYNC_EVERY) {
                self.sync()?;
            }
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.dirty.take().is_some() {
            let begun = Instant::now();
            self.appender.sync()?;
            self.shared.counters.sync_times.add(begun.elapsed());
            self.shared.counters.syncs.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn write(&mut self, asks: Vec<Ask>) -> io::Result<()> {
        let ticket = asks.last().map_or(0, |ask| ask.ticket);
        let (mut batches, mut replies, mut due) = (Vec::new(), Vec::new(), Vec::new());
        for ask in asks {
            match ask.what {
                What::Batch(batch, reply) => {
                    due.push((batch.queue, batch.due));
                    batches.push((ask.ticket, batch));
                    replies.push(reply);
                }
                What::Due(queue, at) => due.push((queue, at)),
            }
        }
        let written = self.put(&batches);
        let answer = match &written {
            Ok(_) => Ok(()),
            Err(error) => Err(JournalError::failed(error)),
        };
        if answer.is_ok() {
            self.shared.written.store(self.appender.end(), Ordering::Release);
        }
        for reply in replies {
            // Whoever asked may be gone; what was written stands.
            let _ = reply.send(answer.clone());
        }
        let places = written?;
        // The index ends only after this thread, or when it failed, which everybody is then told.
        let _ = self.to_index.send(Group { end: self.appender.end(), ticket, batches, due, places });
        Ok(())
    }

    /// Writes and, unless told otherwise, syncs.
    fn put(&mut self, batches: &[(u64, Batch)]) -> io::Result<Vec<(QueueKey, Digest, Place)>> {
        if batches.iter().all(|(_, batch)| batch.records.is_empty() && batch.bodies.is_empty()) {
            return Ok(Vec::new());
        }
        if self.appender.len() >= self.shared.config.segment_bytes_max && self.appender.len() > SEGMENT_HEADER_BYTES {
            self.rotate()?;
        }
        let write = encode(batches, self.appender.end());
        self.appender.append(&write.bytes, write.frames)?;
        let counters = &self.shared.counters;
        counters.groups.fetch_add(1, Ordering::Relaxed);
        counters.records.fetch_add(write.records, Ordering::Relaxed);
        self.dirty.get_or_insert_with(Instant::now);
        match self.shared.config.durability {
            Durability::Fsync => self.sync()?,
            Durability::Interval => {}
        }
        Ok(write.places)
    }

    fn rotate(&mut self) -> io::Result<()> {
        let next = Appender::create_after(&mut self.appender, &self.shared.config.dir)?;
        self.appender = next;
        self.dirty = None;
        self.shared.add_segment(self.appender.segment().clone());
        // It only helps to notice missing files at the next start; that start comes without it, too.
        let _ = head::save(&self.shared.config.dir, self.appender.end(), false);
        Ok(())
    }
}

/// Makes one write of `batches`, to stand at the position `at`.
fn encode(batches: &[(u64, Batch)], at: u64) -> Write {
    let (mut frames, mut body_at, mut records) = (Vec::new(), Vec::new(), 0);
    let mut parts = BTreeMap::<QueueKey, GroupPart>::new();
    let mut index = 0;
    let mark = frame::mark(at);
    for (_, batch) in batches {
        let queue = batch.queue;
        for body in &batch.bodies {
            index += 1;
            let start = frames.len();
            frame::put(
                &mut frames,
                Kind::Body,
                index,
                mark,
                &BodyFrame { queue, digest: body.digest, bytes: &body.bytes },
            );
            body_at.push((queue, body.digest, start, frames.len() - start));
        }
        for record in &batch.records {
            index += 1;
            frame::put(
                &mut frames,
                Kind::Record,
                index,
                mark,
                &RecordFrame { queue, hash: record.hash, bytes: &record.bytes },
            );
        }
        records += batch.records.len() as u64;
        let part = parts.entry(queue).or_insert(GroupPart { queue, from_seq: 1, to_seq: 0, bodies: 0 });
        part.bodies = part.bodies.saturating_add(u32::try_from(batch.bodies.len()).unwrap_or(u32::MAX));
        if let (Some(first), Some(last)) = (batch.records.first(), batch.records.last()) {
            if part.to_seq < part.from_seq {
                part.from_seq = first.seq;
            }
            part.to_seq = last.seq;
        }
    }
    let head = GroupHead { at, frames: index, bytes: frames.len() as u64, queues: parts.into_values().collect() };
    let mut bytes = Vec::with_capacity(frames.len() + 256);
    frame::put(&mut bytes, Kind::Group, 0, mark, &head);
    let start = at + bytes.len() as u64;
    bytes.append(&mut frames);
    let place = |(queue, digest, offset, len): (QueueKey, Digest, usize, usize)| {
        let frame_bytes = u32::try_from(len).expect("a frame is below its bound");
        (queue, digest, Place { position: start + offset as u64, frame_bytes })
    };
    Write { bytes, frames: u64::from(index) + 1, records, places: body_at.into_iter().map(place).collect() }
}
