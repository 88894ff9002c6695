//! Reading segments: frame by frame in bounded memory, over damage and past it.
//!
//! What a broken region held is told by what stands around it: the group head before it names queues and seqs, the index in
//! each frame says how many are missing. Shared by recovery, the scrub, repairs and the audit.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use protocol::id::{Digest, QueueKey, Seq};

use super::content::Content;
use super::frame::{FRAME_HEADER_BYTES, GroupHead, Header, Kind, MAGIC, Seal, mark};
use super::segment::{SEGMENT_HEADER_BYTES, Segment, read_around};

/// How much is read ahead: a few hundred records.
const WINDOW_BYTES: usize = 128 * 1024;

/// A stretch of a segment that is not what was written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The number of the segment.
    pub segment: u64,
    /// Where in the file it starts.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
    /// Whom it touches.
    pub touched: Touched,
}

/// Whom a loss touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// These queues, each with the first seq that is missing (`None`: only a body is).
    Queues(Vec<(QueueKey, Option<Seq>)>),
    /// It cannot be told from what is left around it; a gap in a queue's records tells.
    Unknown,
}

/// What a walk comes by.
#[derive(Debug)]
pub(crate) enum Step {
    /// A whole record.
    Record { offset: u64, queue: QueueKey, seq: Seq, hash: Digest, bytes: Bytes },
    /// A whole body.
    Body { offset: u64, frame_bytes: u32, queue: QueueKey, digest: Digest, bytes: Bytes },
    /// A group head that stands where it says.
    GroupStart { start: u64 },
    /// The end of a group, whole or not.
    GroupEnd { end: u64, whole: bool },
    /// The end of a full segment.
    Sealed { end: u64, seal: Seal },
    /// Something that is not what was written.
    Loss(Loss),
}

/// A file seen through a small buffer. What is read is a piece of it, not a copy; a buffer that no piece is left of is used again.
struct Window {
    file: File,
    buffer: Bytes,
    start: u64,
}

impl Window {
    /// Up to `count` bytes from `at`, as a place in the buffer; fewer only where the file ends.
    fn range(&mut self, at: u64, count: usize) -> io::Result<Range<usize>> {
        let held = at.checked_sub(self.start).and_then(|skip| usize::try_from(skip).ok());
        if let Some(skip) = held.filter(|skip| skip.saturating_add(count) <= self.buffer.len()) {
            return Ok(skip..skip + count);
        }
        let mut buffer = std::mem::take(&mut self.buffer).try_into_mut().unwrap_or_else(|_| BytesMut::new());
        buffer.resize(count.max(WINDOW_BYTES), 0);
        let filled = read_around(&self.file, &mut buffer, at)?;
        buffer.truncate(filled);
        self.start = at;
        self.buffer = buffer.freeze();
        Ok(0..count.min(filled))
    }

    /// As [`Window::range`], the bytes themselves.
    fn bytes(&mut self, at: u64, count: usize) -> io::Result<&[u8]> {
        let range = self.range(at, count)?;
        Ok(&self.buffer[range])
    }
}

/// What of a group has been seen of one queue.
struct Part {
    from_seq: Seq,
    to_seq: Seq,
    next: Seq,
    missing: Option<Seq>,
    bodies: u32,
    bodies_seen: u32,
}

/// The group that a walk is in.
struct Group {
    /// What its frames carry.
    mark: u32,
    /// `None` when its head could not be read.
    end: Option<u64>,
    frames: u32,
    seen: u32,
    parts: BTreeMap<QueueKey, Part>,
    bad: Option<(u64, &'static str)>,
}

/// A walk over one segment, from its first frame to `until`.
pub(crate) struct Walk {
    window: Window,
    segment: Segment,
    until: u64,
    at: u64,
    frames: u64,
    group: Option<Group>,
    steps: VecDeque<Step>,
}

impl Walk {
    /// Walks `segment` from offset `from` (the start of a group, or of the frames) up to offset `until`.
    pub(crate) fn new(segment: &Segment, from: u64, until: u64) -> io::Result<Self> {
        let file = File::open(&segment.path)?;
        let until = until.min(file.metadata()?.len());
        Ok(Self {
            window: Window { file, buffer: Bytes::new(), start: 0 },
            segment: segment.clone(),
            until,
            at: from.max(SEGMENT_HEADER_BYTES),
            frames: 0,
            group: None,
            steps: VecDeque::new(),
        })
    }

    /// Frames seen so far.
    pub(crate) const fn frames(&self) -> u64 {
        self.frames
    }

    /// The next step; `None` at the end.
    pub(crate) fn step(&mut self) -> io::Result<Option<Step>> {
        loop {
            if let Some(step) = self.steps.pop_front() {
                return Ok(Some(step));
            }
            if self.group.as_ref().is_some_and(|group| group.end.is_some_and(|end| self.at >= end)) {
                self.end_group();
                continue;
            }
            if self.at >= self.until {
                if self.group.is_some() {
                    self.end_group();
                    continue;
                }
                return Ok(None);
            }
            self.frame()?;
        }
    }

    fn loss(&mut self, offset: u64, what: impl Into<String>, touched: Touched) {
        self.steps.push_back(Step::Loss(Loss { segment: self.segment.number, offset, what: what.into(), touched }));
    }

    fn end_group(&mut self) {
        let Some(group) = self.group.take() else { return };
        let Some(end) = group.end else { return };
        let mut missing = Vec::new();
        for (queue, part) in &group.parts {
            let gap = part.missing.or_else(|| (part.next <= part.to_seq).then_some(part.next));
            if gap.is_some() || part.bodies_seen < part.bodies {
                missing.push((*queue, gap));
            }
        }
        let whole = missing.is_empty() && group.bad.is_none() && group.seen == group.frames;
        if !whole {
            let (offset, what) = group.bad.unwrap_or((self.at.min(end), "frames are missing"));
            self.loss(offset, what, Touched::Queues(missing));
        }
        self.steps.push_back(Step::GroupEnd { end, whole });
    }

    /// Reads what stands at `self.at`.
    fn frame(&mut self) -> io::Result<()> {
        let at = self.at;
        match self.read(at)? {
            Ok((header, frame)) => {
                self.at = at + header.frame_bytes() as u64;
                self.frames += 1;
                self.take(at, header, frame);
            }
            Err(what) => {
                let next = self.resync(at + 1)?;
                self.at = next;
                match &mut self.group {
                    Some(Group { end: Some(_), bad, .. }) => {
                        bad.get_or_insert((at, what));
                    }
                    Some(Group { end: None, .. }) => self.loss(at, what, Touched::Unknown),
                    None => self.headless(at, next, what)?,
                }
            }
        }
        Ok(())
    }

    /// After a broken region where a group head was due: the next frame's index says whether only the head is gone.
    fn headless(&mut self, at: u64, next: u64, what: &'static str) -> io::Result<()> {
        let after = if next < self.until { self.read(next)?.ok() } else { None };
        let here = mark(self.segment.base + at);
        let touched = match &after {
            Some((Header { kind: Kind::Record | Kind::Body, index: 1, group, .. }, _)) if *group == here => {
                Touched::Queues(Vec::new())
            }
            Some(_) | None => Touched::Unknown,
        };
        self.loss(at, what, touched);
        let (mark, seen) = after.map_or((here, 0), |(header, _)| (header.group, header.index.saturating_sub(1)));
        self.group = Some(Group { mark, end: None, frames: 0, seen, parts: BTreeMap::new(), bad: None });
        Ok(())
    }

    fn take(&mut self, at: u64, header: Header, frame: Frame) {
        match frame {
            Frame::Group(head) => {
                self.end_group();
                let start = self.at;
                let parts = head.queues.iter().map(|part| {
                    let (from_seq, to_seq) = (part.from_seq, part.to_seq);
                    let seen =
                        Part { from_seq, to_seq, next: from_seq, missing: None, bodies: part.bodies, bodies_seen: 0 };
                    (part.queue, seen)
                });
                self.group = Some(Group {
                    mark: header.group,
                    end: Some(start.saturating_add(head.bytes)),
                    frames: head.frames,
                    seen: 0,
                    parts: parts.collect(),
                    bad: None,
                });
                self.steps.push_back(Step::GroupStart { start: at });
            }
            Frame::Record { queue, seq, hash, bytes } => {
                self.count(at, header);
                if let Some(part) = self.group.as_mut().and_then(|group| group.parts.get_mut(&queue)) {
                    if seq > part.next && part.missing.is_none() {
                        part.missing = Some(part.next);
                    }
                    if (part.from_seq..=part.to_seq).contains(&seq) {
                        part.next = part.next.max(seq + 1);
                    }
                }
                self.steps.push_back(Step::Record { offset: at, queue, seq, hash, bytes });
            }
            Frame::Body { queue, digest, bytes } => {
                self.count(at, header);
                if let Some(part) = self.group.as_mut().and_then(|group| group.parts.get_mut(&queue)) {
                    part.bodies_seen += 1;
                }
                let frame_bytes = u32::try_from(header.frame_bytes()).unwrap_or(u32::MAX);
                self.steps.push_back(Step::Body { offset: at, frame_bytes, queue, digest, bytes });
            }
            Frame::Seal(seal) => {
                self.end_group();
                self.steps.push_back(Step::Sealed { end: self.at, seal });
            }
        }
    }

    /// Notes one frame of a group; a jump in the index where nothing broken was seen means that frames are missing.
    fn count(&mut self, at: u64, header: Header) {
        match &mut self.group {
            Some(group) if group.end.is_some() => {
                group.seen += 1;
                if header.index != group.seen && group.bad.is_none() {
                    group.bad = Some((at, "frames are missing before this one"));
                }
            }
            Some(group) => {
                group.mark = header.group;
                group.seen = header.index;
            }
            None => self.loss(at, "a frame outside of any group", Touched::Unknown),
        }
    }

    /// Reads the frame at `at`, or says why it is none.
    fn read(&mut self, at: u64) -> io::Result<Result<(Header, Frame), &'static str>> {
        let left = self.until - at;
        let header = match Header::read(self.window.bytes(at, FRAME_HEADER_BYTES)?) {
            Some(header) => header,
            None => return Ok(Err("not a frame")),
        };
        if header.frame_bytes() as u64 > left {
            return Ok(Err("a frame that is cut off, or whose length is wrong"));
        }
        let range = self.window.range(at, header.frame_bytes())?;
        let buffer = &self.window.buffer;
        let payload = buffer[range].get(FRAME_HEADER_BYTES..);
        let Some(payload) = payload.filter(|payload| header.vouches_for(payload)) else {
            return Ok(Err("a frame whose checksum is wrong"));
        };
        let Some(content) = Content::read(header.kind, payload) else {
            return Ok(Err("a whole frame that this build cannot read"));
        };
        let in_place = match &content {
            Content::Group(head) => head.at == self.segment.base + at,
            Content::Seal(seal) => seal.bytes == at,
            // Without its head a group has no known end: another one may follow whose head is lost, too.
            Content::Record { .. } | Content::Body { .. } => {
                self.group.as_ref().is_none_or(|group| group.end.is_none() || group.mark == header.group)
            }
        };
        if !in_place {
            return Ok(Err("a frame that belongs elsewhere"));
        }
        let frame = match content {
            Content::Group(head) => Frame::Group(head),
            Content::Record { queue, seq, hash, bytes } => {
                Frame::Record { queue, seq, hash, bytes: buffer.slice_ref(bytes) }
            }
            Content::Body { queue, digest, bytes } => Frame::Body { queue, digest, bytes: buffer.slice_ref(bytes) },
            Content::Seal(seal) => Frame::Seal(seal),
        };
        Ok(Ok((header, frame)))
    }

    /// The next place from `from` on where a frame stands: inside the group while there is one, else anywhere.
    fn resync(&mut self, from: u64) -> io::Result<u64> {
        let limit = self.group.as_ref().and_then(|group| group.end).unwrap_or(self.until).min(self.until);
        let mut at = from;
        while at < limit {
            let want = usize::try_from(limit - at).unwrap_or(WINDOW_BYTES).min(WINDOW_BYTES);
            let bytes = self.window.bytes(at, want)?;
            if bytes.is_empty() {
                break;
            }
            let Some(skip) = bytes.iter().position(|byte| *byte == MAGIC[0]) else {
                at += bytes.len() as u64;
                continue;
            };
            at += skip as u64;
            if at >= limit {
                break;
            }
            let inside = self.group.as_ref().is_some_and(|group| group.end.is_some());
            if let Ok((header, _)) = self.read(at)?
                && !(inside && matches!(header.kind, Kind::Group | Kind::Seal))
            {
                return Ok(at);
            }
            at += 1;
        }
        Ok(limit)
    }
}

/// A frame that stands in its place.
enum Frame {
    Group(GroupHead),
    Record { queue: QueueKey, seq: Seq, hash: Digest, bytes: Bytes },
    Body { queue: QueueKey, digest: Digest, bytes: Bytes },
    Seal(Seal),
}

/// Where a segment's readable part ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    /// What comes after this is a write that was never acknowledged.
    pub(crate) end: u64,
    /// How many bytes that is.
    pub(crate) torn: u64,
    /// Frames before the end.
    pub(crate) frames: u64,
    /// Whether the segment is sealed.
    pub(crate) sealed: bool,
    /// Bytes that were acknowledged and are not there.
    pub(crate) short: u64,
    /// What is wrong before the end.
    pub(crate) losses: Vec<Loss>,
}

/// A last segment, read through.
#[derive(Clone, Debug)]
pub(crate) struct Last {
    base: u64,
    len: u64,
    frames: u64,
    sealed: bool,
    losses: Vec<Loss>,
    /// Up to here it was acknowledged, as the segment itself tells.
    pub(crate) proven: u64,
}

/// Finds where the last segment's acknowledged part ends: see [`Last::tail`].
pub(crate) fn tail(segment: &Segment, known: u64) -> io::Result<Tail> {
    last(segment).map(|last| last.tail(known))
}

/// Reads the last segment through.
pub(crate) fn last(segment: &Segment) -> io::Result<Last> {
    let len = std::fs::metadata(&segment.path)?.len();
    let mut walk = Walk::new(segment, SEGMENT_HEADER_BYTES, len)?;
    let mut proven = SEGMENT_HEADER_BYTES.min(len);
    let mut frames = 0;
    let mut sealed = false;
    let mut losses = Vec::new();
    while let Some(step) = walk.step()? {
        match step {
            Step::GroupStart { start } => proven = proven.max(start),
            Step::GroupEnd { end, whole } => {
                if whole {
                    proven = proven.max(end);
                    frames = walk.frames();
                }
            }
            Step::Sealed { end, .. } => {
                proven = proven.max(end);
                sealed = true;
            }
            Step::Loss(loss) => losses.push(loss),
            Step::Record { .. } | Step::Body { .. } => {}
        }
    }
    Ok(Last { base: segment.base, len, frames, sealed, losses, proven })
}

impl Last {
    /// Where the acknowledged part ends.
    ///
    /// A write begins only after the one before it was on disk, so everything before a group head that stands in its place was
    /// acknowledged, and so was everything up to `known`, whatever it looks like.
    pub(crate) fn tail(self, known: u64) -> Tail {
        let Self { base, len, frames, sealed, mut losses, proven } = self;
        let known = known.saturating_sub(base);
        let end = proven.max(known.min(len));
        losses.retain(|loss| loss.offset < end);
        Tail { end, torn: len - end, frames, sealed, short: known.saturating_sub(len), losses }
    }
}
