//! Reading a journal without opening it: beside a running broker, or years later.
//!
//! Only the segments and the files of large bodies are read; nothing is written, nothing locked. The end of the last segment may
//! be growing meanwhile: a write that is not whole there is not an error.

mod salvage;
mod state;
mod verify;

use std::path::{Path, PathBuf};

use protocol::event::Event;
use protocol::id::{Digest, QueueKey, Seq, UnixMillis};
use protocol::record::{Record, RecordError};
use serde::Serialize;

pub use self::salvage::{SalvageReport, Salvaged, salvage};
pub use self::state::{At, state_at};
pub use self::verify::{Bad, VerifiedQueue, VerifyReport, verify};

use crate::journal::layout::{Layout, layout};
use crate::journal::scan::{self, Step, Walk};
use crate::journal::segment::{SEGMENT_HEADER_BYTES, SEGMENTS, Segment};
use crate::journal::{JournalError, Loss, head};

/// Why a journal cannot be read, or not that part of it.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// There is none in that folder.
    #[error("{} holds no journal (it has no folder {SEGMENTS})", dir.display())]
    NoJournal {
        /// The folder.
        dir: PathBuf,
    },
    /// Its files cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Something in it is not what was written.
    #[error("segment {}, byte {}: {}", .0.segment, .0.offset, .0.what)]
    Damaged(Loss),
    /// A whole frame holds a record that this build cannot read.
    #[error("segment {segment}, byte {offset}: {source}")]
    Unreadable {
        /// The segment.
        segment: u64,
        /// Where in it.
        offset: u64,
        /// Why.
        source: RecordError,
    },
    /// The journal has no record of that queue.
    #[error("the journal has no record of queue {}", .0.short())]
    NoQueue(QueueKey),
    /// The queue has not come that far.
    #[error("the queue's last record is {last}")]
    NotYet {
        /// The last record's seq.
        last: Seq,
    },
    /// What came before cannot all be read, or was changed.
    #[error("the state cannot be known: {0}")]
    Broken(String),
    /// Writing the export failed.
    #[error("cannot write: {0}")]
    Write(#[from] std::io::Error),
}

/// One record, as it is told to people.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AuditRow {
    /// The queue.
    pub queue: QueueKey,
    /// The position in it.
    pub seq: Seq,
    /// When it was decided.
    pub at_ms: UnixMillis,
    /// What happened.
    pub event: Event,
    /// The chain hash up to and including it.
    pub hash: Digest,
    /// The number of the segment that holds it.
    pub segment: u64,
    /// Where in that file.
    pub offset: u64,
}

/// All steps through all segments.
struct Reader {
    segments: Vec<Segment>,
    losses: std::vec::IntoIter<Loss>,
    /// The position after the last whole group.
    end: u64,
    /// Bytes after that: a write that is going on, or was cut short.
    unfinished: u64,
    index: usize,
    walk: Option<Walk>,
}

impl Reader {
    fn open(dir: &Path) -> Result<Self, AuditError> {
        if !dir.join(SEGMENTS).is_dir() {
            return Err(AuditError::NoJournal { dir: dir.to_owned() });
        }
        let Layout { mut segments, mut losses } = layout(dir)?;
        let (mut end, mut unfinished) = (0, 0);
        if let Some(last) = segments.last().cloned() {
            let tail = scan::tail(&last, head::load(dir).position)
                .map_err(|error| JournalError::io("reading the last segment", error))?;
            end = last.base + tail.end;
            unfinished = tail.torn;
            if tail.end <= SEGMENT_HEADER_BYTES && tail.short == 0 {
                // It is just being made.
                losses.retain(|loss| loss.segment != last.number);
                segments.pop();
            }
            if tail.short > 0 {
                let what = format!("the log ends {} bytes before what was acknowledged", tail.short);
                losses.push(Loss { segment: last.number, offset: tail.end, what, touched: scan::Touched::Unknown });
            }
        }
        Ok(Self { segments, losses: losses.into_iter(), end, unfinished, index: 0, walk: None })
    }

    /// The next step, with the segment that it is in.
    fn step(&mut self) -> Result<Option<(Segment, Step)>, AuditError> {
        let io = |error| JournalError::io("reading a segment", error);
        loop {
            let Some(segment) = self.segments.get(self.index).cloned() else {
                let loss = self.losses.next();
                return Ok(loss.map(|loss| {
                    (Segment { number: loss.segment, base: 0, path: Path::new("").into() }, Step::Loss(loss))
                }));
            };
            let walk = match &mut self.walk {
                Some(walk) => walk,
                None => {
                    let end = self.segments.get(self.index + 1).map_or(self.end, |next| next.base);
                    let walk =
                        Walk::new(&segment, SEGMENT_HEADER_BYTES, end.saturating_sub(segment.base)).map_err(io)?;
                    self.walk.insert(walk)
                }
            };
            match walk.step().map_err(io)? {
                Some(step) => return Ok(Some((segment, step))),
                None => {
                    self.walk = None;
                    self.index += 1;
                }
            }
        }
    }
}

/// The records of a journal, in the order of their commits. Damage is told where it is, and passed over.
pub struct Log {
    reader: Reader,
    queue: Option<QueueKey>,
    ended: bool,
}

/// Reads the records of a journal, of one queue or of all.
///
/// # Errors
///
/// [`AuditError`] when the folder holds no journal or cannot be read.
pub fn log(dir: &Path, queue: Option<QueueKey>) -> Result<Log, AuditError> {
    Ok(Log { reader: Reader::open(dir)?, queue, ended: false })
}

impl Iterator for Log {
    type Item = Result<AuditRow, AuditError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            match self.reader.step() {
                Ok(None) => self.ended = true,
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
                Ok(Some((segment, Step::Record { offset, queue, hash, bytes, .. }))) => {
                    if self.queue.is_none_or(|wanted| wanted == queue) {
                        return Some(row(segment.number, offset, queue, hash, &bytes));
                    }
                }
                Ok(Some((_, Step::Loss(loss)))) => {
                    if concerns(&loss, self.queue) {
                        return Some(Err(AuditError::Damaged(loss)));
                    }
                }
                Ok(Some((
                    _,
                    Step::Body { .. } | Step::GroupStart { .. } | Step::GroupEnd { .. } | Step::Sealed { .. },
                ))) => {}
            }
        }
        None
    }
}

fn row(segment: u64, offset: u64, queue: QueueKey, hash: Digest, bytes: &[u8]) -> Result<AuditRow, AuditError> {
    let record = Record::decode(bytes).map_err(|source| AuditError::Unreadable { segment, offset, source })?;
    let Record { v: _, seq, at_ms, event } = record;
    Ok(AuditRow { queue, seq, at_ms, event, hash, segment, offset })
}

/// Whether a loss may touch `queue`, or anything when none is named.
fn concerns(loss: &Loss, queue: Option<QueueKey>) -> bool {
    match (&loss.touched, queue) {
        (_, None) | (scan::Touched::Unknown, _) => true,
        (scan::Touched::Queues(queues), Some(queue)) => queues.iter().any(|(touched, _)| *touched == queue),
    }
}
