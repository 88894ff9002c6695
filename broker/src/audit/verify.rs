//! Proving a journal: every frame, every chain, every digest.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use protocol::event::Event;
use protocol::id::{Digest, Head, QueueKey, Seq, UnixMillis};
use protocol::record::{Record, chain};
use serde::Serialize;

use super::{AuditError, Reader, concerns};
use crate::journal::scan::{Step, Touched};
use crate::journal::segment::{SEGMENTS, Segment, file_name};
use crate::journal::{JournalError, Loss, bodies, forgotten};

/// How many steps one thread reads before the other is given them: enough that handing over costs nothing.
const PIECE_STEPS: usize = 512;
/// How many such pieces may wait: some megabytes, which a slow stretch on either side uses up.
const PIECES_WAITING_MAX: usize = 8;

/// The first thing that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bad {
    /// The file.
    pub file: PathBuf,
    /// The segment's number.
    pub segment: u64,
    /// Where in it.
    pub offset: u64,
    /// Whose record it is, as far as it is known.
    pub queue: Option<QueueKey>,
    /// Which record.
    pub seq: Option<Seq>,
    /// What is wrong.
    pub what: String,
}

/// What was found of one queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifiedQueue {
    /// The queue.
    pub queue: QueueKey,
    /// The last record up to which the chain is proven.
    pub head: Head,
    /// Records read, also after the first bad one.
    pub records: u64,
    /// Bodies that records name and that are what they name.
    pub bodies: u64,
    /// Large bodies that are not there any more, of records so old that their jobs may be forgotten.
    pub expired: u64,
    /// The first bad record.
    pub first_bad: Option<Bad>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Each queue, by its key.
    pub queues: Vec<VerifiedQueue>,
    /// The first bad thing of all.
    pub first_bad: Option<Bad>,
    /// Segments read.
    pub segments: u64,
    /// Where the log ends.
    pub position: u64,
    /// Records proven.
    pub records: u64,
    /// Bytes at the end that are not a whole write: one that is going on, or that was never acknowledged.
    pub unfinished_bytes: u64,
}

impl VerifyReport {
    /// Whether everything is as it was written.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        self.first_bad.is_none()
    }
}

struct Chain {
    verified: VerifiedQueue,
    next: Seq,
}

struct Verifier<'a> {
    dir: &'a Path,
    wanted: Option<QueueKey>,
    chains: BTreeMap<QueueKey, Chain>,
    /// Bodies seen in segments: queue and digest, 16 bytes of each folded together, to stay small over many jobs.
    seen: HashSet<[u8; 16]>,
    /// Jobs that left their queue before this are forgotten, and their large bodies with them.
    forgotten_before: UnixMillis,
    bad: Vec<Bad>,
}

/// Walks a journal's frames, chains and bodies: of one queue, or of all.
///
/// # Errors
///
/// [`AuditError`] when it cannot be read. What is wrong with it is no error: it is in the report.
pub fn verify(dir: &Path, queue: Option<QueueKey>) -> Result<VerifyReport, AuditError> {
    let reader = Reader::open(dir)?;
    let (segments, position, unfinished_bytes) = (reader.segments.len() as u64, reader.end, reader.unfinished);
    let mut verifier = Verifier {
        dir,
        wanted: queue,
        chains: BTreeMap::new(),
        seen: HashSet::new(),
        forgotten_before: forgotten::load(dir),
        bad: Vec::new(),
    };
    // One thread reads, checks frames and bodies; this one follows the chains. Each is about half of the work.
    thread::scope(|scope| {
        let (to_verifier, pieces) = sync_channel(PIECES_WAITING_MAX);
        let reading = thread::Builder::new().name("audit-read".to_owned());
        let reading = reading.spawn_scoped(scope, move || read(reader, queue, &to_verifier));
        let reading = reading.map_err(|error| JournalError::io("starting a thread", error))?;
        let taken = pieces.into_iter().flatten().try_for_each(|sight| verifier.take(sight));
        match reading.join() {
            Ok(read) => taken.and(read),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    if let Some(queue) = queue
        && verifier.chains.is_empty()
        && verifier.bad.is_empty()
    {
        return Err(AuditError::NoQueue(queue));
    }
    let queues: Vec<_> = verifier.chains.into_values().map(|chain| chain.verified).collect();
    let bad = verifier.bad.into_iter().chain(queues.iter().filter_map(|queue| queue.first_bad.clone()));
    Ok(VerifyReport {
        first_bad: bad.min_by_key(|bad| (bad.segment, bad.offset)),
        records: queues.iter().map(|queue| queue.head.seq).sum(),
        queues,
        segments,
        position,
        unfinished_bytes,
    })
}

/// What was read, and whether it is what it says: false for a body that is not of its digest.
struct Sight {
    segment: Segment,
    step: Step,
    sound: bool,
}

/// Reads everything, until the end or until nobody wants it any more.
fn read(mut reader: Reader, wanted: Option<QueueKey>, to_verifier: &SyncSender<Vec<Sight>>) -> Result<(), AuditError> {
    let mut piece = Vec::with_capacity(PIECE_STEPS);
    while let Some((segment, step)) = reader.step()? {
        let sound = match &step {
            Step::Body { queue, digest, bytes, .. } => {
                wanted.is_some_and(|wanted| wanted != *queue) || Digest::of(bytes) == *digest
            }
            Step::Record { .. }
            | Step::Loss(_)
            | Step::GroupStart { .. }
            | Step::GroupEnd { .. }
            | Step::Sealed { .. } => true,
        };
        piece.push(Sight { segment, step, sound });
        if piece.len() == PIECE_STEPS {
            let full = std::mem::replace(&mut piece, Vec::with_capacity(PIECE_STEPS));
            if to_verifier.send(full).is_err() {
                // It failed, and says why itself.
                return Ok(());
            }
        }
    }
    // As above.
    let _ = to_verifier.send(piece);
    Ok(())
}

/// The blake3 of a file's first bytes.
fn hash_of(segment: &Segment, bytes: u64) -> Result<Digest, AuditError> {
    let hash = || {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(&segment.path)?.take(bytes))?;
        Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
    };
    hash().map_err(|error| JournalError::io("reading a segment", error).into())
}

fn short_key(queue: QueueKey, digest: Digest) -> [u8; 16] {
    let mut key = *queue.as_bytes();
    key.iter_mut().zip(digest.as_bytes()).for_each(|(key, byte)| *key ^= byte);
    key
}

impl Verifier<'_> {
    fn take(&mut self, sight: Sight) -> Result<(), AuditError> {
        let Sight { segment, step, sound } = sight;
        match step {
            Step::Record { offset, queue, seq, hash, bytes } => {
                if self.wants(queue) {
                    self.record(&segment, offset, queue, seq, hash, &bytes);
                }
            }
            Step::Body { offset, queue, digest, .. } => {
                if self.wants(queue) {
                    self.body(&segment, offset, queue, digest, sound);
                }
            }
            Step::Loss(loss) => self.loss(&loss),
            Step::Sealed { seal, .. } => {
                if self.wanted.is_none() && hash_of(&segment, seal.bytes)? != seal.hash {
                    let what = "the segment is not what its seal says".to_owned();
                    self.found(&segment, seal.bytes, None, None, what);
                }
            }
            Step::GroupStart { .. } | Step::GroupEnd { .. } => {}
        }
        Ok(())
    }

    fn wants(&self, queue: QueueKey) -> bool {
        self.wanted.is_none_or(|wanted| wanted == queue)
    }

    fn bad(&self, segment: u64, offset: u64, queue: Option<QueueKey>, seq: Option<Seq>, what: String) -> Bad {
        Bad { file: self.dir.join(SEGMENTS).join(file_name(segment)), segment, offset, queue, seq, what }
    }

    fn found(&mut self, segment: &Segment, offset: u64, queue: Option<QueueKey>, seq: Option<Seq>, what: String) {
        let bad = self.bad(segment.number, offset, queue, seq, what);
        self.bad.push(bad);
    }

    fn chain(&mut self, queue: QueueKey) -> &mut Chain {
        self.chains.entry(queue).or_insert_with(|| {
            let head = Head { seq: 0, hash: queue.genesis() };
            Chain {
                verified: VerifiedQueue { queue, head, records: 0, bodies: 0, expired: 0, first_bad: None },
                next: 1,
            }
        })
    }

    fn record(&mut self, segment: &Segment, offset: u64, queue: QueueKey, seq: Seq, hash: Digest, bytes: &[u8]) {
        let chain_here = self.chain(queue);
        chain_here.verified.records += 1;
        let expected = std::mem::replace(&mut chain_here.next, seq + 1);
        let head = chain_here.verified.head;
        if chain_here.verified.first_bad.is_some() {
            return;
        }
        let wrong = if seq != expected {
            Some(format!("record {seq} where {expected} must come"))
        } else if chain(&head.hash, bytes) != hash {
            Some(format!("record {seq} does not continue the chain: it, or one before it, was changed"))
        } else {
            self.event(queue, head, bytes).err()
        };
        let bad = wrong.map(|what| self.bad(segment.number, offset, Some(queue), Some(seq.min(expected)), what));
        let verified = &mut self.chain(queue).verified;
        if bad.is_none() {
            verified.head = Head { seq, hash };
        }
        verified.first_bad = bad;
    }

    /// Checks what a record says: the bodies that it names, and the past that it vouches for.
    fn event(&mut self, queue: QueueKey, head: Head, bytes: &[u8]) -> Result<(), String> {
        let record = Record::decode(bytes).map_err(|error| error.to_string())?;
        if let Some(digest) = record.event.body() {
            let what = record.event.name();
            if !self.seen.contains(&short_key(queue, digest)) {
                match bodies::read(self.dir, queue, digest) {
                    Ok(Some(_)) => {}
                    Ok(None) if record.at_ms < self.forgotten_before => {
                        self.chain(queue).verified.expired += 1;
                        return Ok(());
                    }
                    Ok(None) => return Err(format!("record {}: the body of its {what} is missing", record.seq)),
                    Err(error) => return Err(format!("record {}: the body of its {what}: {error}", record.seq)),
                }
            }
            self.chain(queue).verified.bodies += 1;
        }
        if let Event::Checkpoint { through_seq, head: named, .. } = record.event
            && through_seq == head.seq
            && named != head.hash
        {
            return Err(format!("record {}: the checkpoint names another past", record.seq));
        }
        Ok(())
    }

    fn body(&mut self, segment: &Segment, offset: u64, queue: QueueKey, digest: Digest, sound: bool) {
        if sound {
            self.seen.insert(short_key(queue, digest));
        } else {
            self.found(segment, offset, Some(queue), None, "a body is not what its digest says".to_owned());
        }
    }

    fn loss(&mut self, loss: &Loss) {
        if !concerns(loss, self.wanted) {
            return;
        }
        match &loss.touched {
            Touched::Queues(queues) => {
                for (queue, seq) in queues.iter().filter(|(queue, _)| self.wants(*queue)).copied().collect::<Vec<_>>() {
                    let bad = self.bad(loss.segment, loss.offset, Some(queue), seq, loss.what.clone());
                    let first = &mut self.chain(queue).verified.first_bad;
                    // What follows in the same write was seen before the damage was told.
                    let later =
                        first.as_ref().is_none_or(|first| (first.segment, first.offset) > (bad.segment, bad.offset));
                    if later {
                        *first = Some(bad);
                    }
                }
                if queues.is_empty() && self.wanted.is_none() {
                    let bad = self.bad(loss.segment, loss.offset, None, None, loss.what.clone());
                    self.bad.push(bad);
                }
            }
            // A gap in the queue's own records tells whether it is touched.
            Touched::Unknown if self.wanted.is_some() => {}
            Touched::Unknown => {
                let bad = self.bad(loss.segment, loss.offset, None, None, loss.what.clone());
                self.bad.push(bad);
            }
        }
    }
}
