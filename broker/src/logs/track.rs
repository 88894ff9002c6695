//! One log of a job as a row of files: adding, dropping the oldest, finding a line by its number.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use protocol::id::RunNumber;
use protocol::native::{LogKind, LogLine};

use super::chunk::{Chunk, Name, encode};
use super::{LogError, LogLimits, LogPage};

/// The highest line number of a run: far beyond what fits on a disk, and cursors stay exact as JavaScript numbers.
const INDEX_MAX: u64 = 1 << 40;

/// The most files of one log. Gaps and new runs begin new files before they are full; this bounds them all the same.
const CHUNKS_MAX: usize = 512;

#[derive(Debug)]
pub(super) struct Track {
    dir: PathBuf,
    kind: LogKind,
    limits: LogLimits,
    /// Oldest first; line numbers rise. All but the last are closed.
    chunks: VecDeque<Chunk>,
    bytes: u64,
}

impl Track {
    /// Finds the files of `kind` among `names`, and cuts what a crash tore.
    pub(super) fn open(dir: &Path, kind: LogKind, limits: LogLimits, names: &[Name]) -> io::Result<Self> {
        let mut own: Vec<Name> = names.iter().filter(|name| name.kind == kind).copied().collect();
        own.sort_by_key(|name| (name.first, name.run, name.index));
        let mut chunks = own.into_iter().map(|name| Chunk::open(dir, name)).collect::<io::Result<VecDeque<_>>>()?;
        if let Some(last) = chunks.back_mut() {
            last.resume()?;
        }
        let bytes = chunks.iter().map(Chunk::bytes).sum();
        Ok(Self { dir: dir.to_owned(), kind, limits, chunks, bytes })
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many lines there have been.
    fn end(&self) -> u64 {
        self.chunks.back().map_or(0, Chunk::end)
    }

    /// Adds lines, of which the first has that number in its run; not said: the next. Says how many of them were known already,
    /// or are of no use any more.
    pub(super) fn append(
        &mut self,
        run: RunNumber,
        first: Option<u64>,
        lines: Vec<LogLine>,
    ) -> Result<usize, LogError> {
        if let Some(first) = first.filter(|first| *first > INDEX_MAX) {
            return Err(LogError::BadFirst(first));
        }
        let (known, expected) = self.chunks.back().map_or((run, 0), |last| (last.name.run, last.next_index()));
        if run < known {
            return Ok(lines.len());
        }
        let expected = if run == known { expected } else { 0 };
        let first = first.unwrap_or(expected);
        let repeated = usize::try_from(expected.saturating_sub(first)).unwrap_or(usize::MAX);
        let encoded: Vec<Vec<u8>> =
            lines.into_iter().skip(repeated).map(|line| encode(&cut(line, self.limits.line_bytes_max))).collect();
        if encoded.is_empty() {
            return Ok(repeated);
        }
        let index = first.max(expected);
        if run != known || index != expected || self.chunks.is_empty() {
            self.begin(run, index, self.end() + (index - expected))?;
        }
        self.write(&encoded)?;
        Ok(repeated)
    }

    fn write(&mut self, mut encoded: &[Vec<u8>]) -> io::Result<()> {
        while !encoded.is_empty() {
            let last = self.chunks.back_mut().ok_or_else(|| io::Error::other("a log without a file"))?;
            let mut room = self.limits.chunk_bytes_max.saturating_sub(last.bytes());
            let fits = encoded
                .iter()
                .take_while(|line| {
                    let line = line.len() as u64;
                    let fits = line <= room;
                    room = room.saturating_sub(line);
                    fits
                })
                .count();
            // A line longer than a whole file still goes into one.
            let count = if fits == 0 && last.bytes() == 0 { 1 } else { fits };
            let (now, later) = encoded.split_at(count);
            let before = last.bytes();
            last.write(now.iter().map(Vec::as_slice))?;
            self.bytes += last.bytes() - before;
            encoded = later;
            if !encoded.is_empty() {
                let (run, index, first) = (last.name.run, last.next_index(), last.end());
                self.begin(run, index, first)?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, run: RunNumber, index: u64, first: u64) -> io::Result<()> {
        // An empty file is in the way of one with the same numbers, and says nothing.
        if self.chunks.back().is_some_and(|last| last.bytes() == 0)
            && let Some(empty) = self.chunks.pop_back()
        {
            empty.remove()?;
        }
        if self.chunks.len() >= CHUNKS_MAX {
            self.drop_oldest()?;
        }
        self.chunks.push_back(Chunk::create(&self.dir, Name { kind: self.kind, first, run, index })?);
        if let Some(closed) = self.chunks.len().checked_sub(2).and_then(|at| self.chunks.get_mut(at)) {
            closed.close();
        }
        Ok(())
    }

    /// Drops the oldest file unless it is the only one; says whether it did.
    pub(super) fn drop_oldest(&mut self) -> io::Result<bool> {
        if self.chunks.len() < 2 {
            return Ok(false);
        }
        if let Some(oldest) = self.chunks.pop_front() {
            self.bytes -= oldest.bytes();
            oldest.remove()?;
        }
        Ok(true)
    }

    pub(super) fn read(&self, since: u64, lines_max: usize) -> io::Result<LogPage> {
        let end = self.end();
        let nothing = LogPage { from: since, lines: Vec::new(), next: since, end };
        if since >= end || lines_max == 0 {
            return Ok(nothing);
        }
        let later = self.chunks.partition_point(|chunk| chunk.name.first <= since);
        if let Some(chunk) = later.checked_sub(1).and_then(|at| self.chunks.get(at)) {
            let lines = chunk.read(since, lines_max)?;
            if !lines.is_empty() {
                return Ok(LogPage { from: since, next: since + lines.len() as u64, lines, end });
            }
        }
        // `since` is in a gap: what was there is not kept, and what comes next says so.
        let Some(next) = self.chunks.get(later) else { return Ok(nothing) };
        let gone = next.name.first - since;
        let at_ms = next.read(next.name.first, 1)?.first().map_or_else(Default::default, |line| line.at_ms);
        let s = if gone == 1 { " is" } else { "s are" };
        let text = format!("[gridsocket: {gone} line{s} not kept here]\n");
        let told = LogLine { text, at_ms, stderr: true };
        Ok(LogPage { from: next.name.first - 1, lines: vec![told], next: next.name.first, end })
    }
}

/// Shortens a line that is over the limit, at a character's end.
fn cut(mut line: LogLine, bytes_max: usize) -> LogLine {
    const TOLD: &str = " [gridsocket: the rest of this line is not kept]\n";
    if line.text.len() > bytes_max {
        let mut end = bytes_max.saturating_sub(TOLD.len());
        while !line.text.is_char_boundary(end) {
            end -= 1;
        }
        line.text.truncate(end);
        line.text.push_str(TOLD);
    }
    line
}
