//! A job's logs as they are shown: rows of text with colours, made of the pieces that arrive, in bounded memory.
//!
//! A piece is parsed once, in order, so that how a row looks does not depend on what is scrolled where. When there is too much, the oldest
//! rows go; they can be had from the broker again.

mod ansi;

use std::collections::VecDeque;

pub use ansi::{Colour, Style};
use ansi::{Line, Pen};
use protocol::native::{LogKind, LogLine};

/// The longest row, in characters. A longer line goes on in the next row.
pub const ROW_CHARS_MAX: usize = 4096;
/// How many rows lie together: they share one text, and go together.
const CHUNK_ROWS: usize = 1024;
/// What a row costs besides its text, in bytes, about.
const ROW_BYTES: usize = 24;

/// A row to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The text, without control characters.
    pub text: String,
    /// From which byte of the text on it looks how; plain before the first.
    pub spans: Vec<(u32, Style)>,
    /// When its first piece was read, in milliseconds since 1970.
    pub at_ms: u64,
    /// From which log it is.
    pub kind: LogKind,
    /// Whether it came from standard error.
    pub stderr: bool,
    /// Whether it goes on with the row before, as the line was too long for one.
    pub continues: bool,
}

#[derive(Clone, Copy, Debug)]
struct Meta {
    at_ms: u64,
    kind: LogKind,
    stderr: bool,
    continues: bool,
}

/// Rows that are as they will stay.
#[derive(Clone, Debug, Default)]
struct Chunk {
    text: String,
    spans: Vec<(u32, Style)>,
    /// Where each row's text and spans end.
    ends: Vec<(u32, u32)>,
    meta: Vec<Meta>,
}

impl Chunk {
    fn push(&mut self, line: &Line, meta: Meta) {
        self.text.push_str(&line.text);
        self.spans.extend(&line.spans);
        let end = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        self.ends.push((end(self.text.len()), end(self.spans.len())));
        self.meta.push(meta);
    }

    fn text(&self, index: usize) -> &str {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before].0 as usize);
        &self.text[start..self.ends[index].0 as usize]
    }

    fn row(&self, index: usize) -> Option<Row> {
        let meta = *self.meta.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before].1 as usize);
        let spans = self.spans[start..self.ends[index].1 as usize].to_vec();
        Some(row(self.text(index).to_owned(), spans, meta))
    }

    fn bytes(&self) -> usize {
        self.text.len() + self.spans.len() * size_of::<(u32, Style)>() + self.meta.len() * ROW_BYTES
    }
}

fn row(text: String, spans: Vec<(u32, Style)>, meta: Meta) -> Row {
    Row { text, spans, at_ms: meta.at_ms, kind: meta.kind, stderr: meta.stderr, continues: meta.continues }
}

/// One of the streams that lines come from: each has its own look, and its own line that is not whole yet.
#[derive(Clone, Debug, Default)]
struct Stream {
    pen: Pen,
    open: Option<Meta>,
}

/// The rows of a job's logs.
#[derive(Clone, Debug)]
pub struct LogStore {
    chunks: VecDeque<Chunk>,
    streams: [Stream; 4],
    /// How many rows have gone.
    gone: u64,
    bytes_max: usize,
}

impl LogStore {
    /// An empty store that holds about `bytes_max` at most, and one chunk at least.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { chunks: VecDeque::new(), streams: Default::default(), gone: 0, bytes_max }
    }

    /// Takes the next piece of a log. A piece without a newline at its end goes on with the next piece of its stream.
    pub fn push(&mut self, kind: LogKind, piece: &LogLine) {
        let at = usize::from(kind == LogKind::Run) * 2 + usize::from(piece.stderr);
        let meta = Meta { at_ms: piece.at_ms.0, kind, stderr: piece.stderr, continues: false };
        for c in piece.text.chars() {
            if c == '\n' {
                self.close(at, meta);
                continue;
            }
            let stream = &mut self.streams[at];
            stream.open.get_or_insert(meta);
            stream.pen.put(c);
            if stream.pen.width() >= ROW_CHARS_MAX {
                self.close(at, meta);
                self.streams[at].open = Some(Meta { continues: true, ..meta });
            }
        }
    }

    fn close(&mut self, at: usize, now: Meta) {
        let stream = &mut self.streams[at];
        let meta = stream.open.take().unwrap_or(now);
        let line = stream.pen.finish();
        // A line that ended where a row was full is whole already.
        if meta.continues && line.text.is_empty() {
            return;
        }
        if self.chunks.back().is_none_or(|chunk| chunk.meta.len() >= CHUNK_ROWS) {
            self.chunks.push_back(Chunk::default());
            while self.chunks.len() > 1 && self.chunks.iter().map(Chunk::bytes).sum::<usize>() > self.bytes_max {
                self.gone += self.chunks.pop_front().map_or(0, |chunk| chunk.meta.len() as u64);
            }
        }
        if let Some(chunk) = self.chunks.back_mut() {
            chunk.push(&line, meta);
        }
    }

    /// The numbers of the rows that are here: from the oldest that has not gone, to one behind the last. Lines that are not whole yet come last.
    #[must_use]
    pub fn rows(&self) -> std::ops::Range<u64> {
        self.gone..self.whole() + self.open().count() as u64
    }

    fn whole(&self) -> u64 {
        let before = self.chunks.len().saturating_sub(1) * CHUNK_ROWS;
        self.gone + (before + self.chunks.back().map_or(0, |chunk| chunk.meta.len())) as u64
    }

    fn open(&self) -> impl Iterator<Item = (&Pen, Meta)> {
        self.streams
            .iter()
            .filter_map(|stream| Some((&stream.pen, stream.open?)))
            .filter(|(pen, meta)| !meta.continues || pen.width() > 0)
    }

    /// A row by its number.
    #[must_use]
    pub fn row(&self, number: u64) -> Option<Row> {
        let index = usize::try_from(number.checked_sub(self.gone)?).ok()?;
        if let Some(chunk) = self.chunks.get(index / CHUNK_ROWS)
            && let Some(row) = chunk.row(index % CHUNK_ROWS)
        {
            return Some(row);
        }
        let (pen, meta) = self.open().nth(usize::try_from(number.checked_sub(self.whole())?).ok()?)?;
        let line = pen.line();
        Some(row(line.text, line.spans, meta))
    }

    /// The numbers of at most `max` whole rows from `from` on that hold `needle`, whatever the case of its ASCII letters.
    #[must_use]
    pub fn find(&self, needle: &str, from: u64, max: usize) -> Vec<u64> {
        let needle = needle.to_ascii_lowercase();
        let numbered = self.chunks.iter().enumerate().flat_map(|(at, chunk)| {
            (0..chunk.meta.len()).map(move |index| (self.gone + (at * CHUNK_ROWS + index) as u64, chunk, index))
        });
        let found = numbered.filter(|(number, chunk, index)| {
            *number >= from && chunk.text(*index).to_ascii_lowercase().contains(&needle)
        });
        found.map(|(number, ..)| number).take(max).collect()
    }

    /// What all of it takes, in bytes, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.chunks.iter().map(Chunk::bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protocol::id::UnixMillis;

    use super::*;

    fn store(pieces: &[(&str, bool)]) -> LogStore {
        let mut store = LogStore::new(1 << 20);
        for (at, (text, stderr)) in pieces.iter().enumerate() {
            let piece = LogLine { text: (*text).to_owned(), at_ms: UnixMillis(at as u64), stderr: *stderr };
            store.push(LogKind::Run, &piece);
        }
        store
    }

    fn texts(store: &LogStore) -> Vec<String> {
        store.rows().map(|number| store.row(number).unwrap().text).collect()
    }

    fn shown(text: &str) -> Vec<String> {
        texts(&store(&[(text, false)]))
    }

    #[test]
    fn pieces_are_rows_where_their_lines_end() {
        assert_eq!(shown(""), [""; 0]);
        assert_eq!(shown("a\nb\n"), ["a", "b"]);
        assert_eq!(shown("a\n\nb"), ["a", "", "b"]);
        assert_eq!(texts(&store(&[("a", false), ("b", false), ("c\nd", false), ("\n", false)])), ["abc", "d"]);
        assert_eq!(shown("a\r\nb\r\n"), ["a", "b"]);
    }

    #[test]
    fn two_streams_do_not_run_into_each_other() {
        let store = store(&[("out", false), ("err", true), ("put\n", false), ("or\n", true)]);
        assert_eq!(texts(&store), ["output", "error"]);
        assert_eq!(store.row(0).map(|row| (row.stderr, row.at_ms)), Some((false, 0)));
        assert_eq!(store.row(1).map(|row| (row.stderr, row.at_ms)), Some((true, 1)));
    }

    #[test]
    fn a_progress_bar_is_one_row() {
        assert_eq!(texts(&store(&[(" 10%\r", false), (" 50%\r", false), ("100%\n", false)])), ["100%"]);
        assert_eq!(shown("downloading\rdone\x1b[K\n"), ["done"]);
        assert_eq!(shown("downloading\rdone\n"), ["doneloading"]);
        assert_eq!(shown("abc\x08\x08X\n"), ["aXc"]);
        assert_eq!(shown("abc\x1b[2Kd\n"), ["   d"]);
        assert_eq!(shown("abcdef\x1b[3D\x1b[1K|\x1b[1Gx\n"), ["x  |ef"]);
        assert_eq!(shown("a\tb\n"), ["a       b"]);
    }

    #[test]
    fn colours_are_spans_and_stay_from_line_to_line() {
        let store = store(&[
            ("a\x1b[1;31mb\n", false),
            ("c\x1b[0md\x1b[38;5;200m\x1b[48:2:1:2:3me\x1b[22;39;49m\n", false),
            ("plain\n", true),
        ]);
        let red = Style { fore: Colour::Palette(1), flags: Style::BOLD, ..Style::default() };
        let pink = Style { fore: Colour::Palette(200), back: Colour::Rgb(1, 2, 3), flags: 0 };
        assert_eq!(texts(&store), ["ab", "cde", "plain"]);
        assert_eq!(store.row(0).unwrap().spans, [(1, red)]);
        assert_eq!(store.row(1).unwrap().spans, [(0, red), (1, Style::default()), (2, pink)]);
        assert_eq!(store.row(2).unwrap().spans, []);
    }

    #[test]
    fn a_sequence_may_be_cut_anywhere_and_never_eats_text() {
        assert_eq!(texts(&store(&[("a\x1b", false), ("[3", false), ("1mb\n", false)])), ["ab"]);
        assert_eq!(shown("\x1b]0;title\x07a\x1b]8;;https://h\x1b\\link\x1b]8;;\x1b\\\n"), ["alink"]);
        assert_eq!(shown("\x1b[?25la\x1b(Bb\x1b=c\x1b[999999999999Xd\n"), ["abcd"]);
        // What never ends is given up after a while.
        let endless = format!("\x1b]{}shown\n", "x".repeat(300));
        assert!(shown(&endless)[0].ends_with("shown"));
        assert_eq!(shown("a\x1b[3\nshown\n"), ["a", "shown"]);
        assert_eq!(shown("a\u{202e}b\u{7}\u{0}c\n"), ["abc"]);
    }

    #[test]
    fn a_line_without_end_is_many_rows() {
        let store = store(&[(&"x".repeat(ROW_CHARS_MAX * 2), false), ("\n", false), ("next\n", false)]);
        assert_eq!(store.rows(), 0..3);
        let continues: Vec<_> = store.rows().map(|number| store.row(number).unwrap().continues).collect();
        assert_eq!(continues, [false, true, false]);
    }

    #[test]
    fn a_million_lines_take_so_much_and_no_more() {
        let mut store = LogStore::new(1 << 20);
        for number in 0..200_000u64 {
            store.push(
                LogKind::Run,
                &LogLine { text: format!("line {number}\n"), at_ms: UnixMillis(number), stderr: false },
            );
        }
        assert!(store.bytes() < (1 << 20) + CHUNK_ROWS * 64, "{}", store.bytes());
        let rows = store.rows();
        assert_eq!(rows.end, 200_000);
        assert!(rows.start > 100_000);
        for number in [rows.start, rows.end - 1] {
            assert_eq!(store.row(number).unwrap().text, format!("line {number}"));
        }
        assert_eq!((store.row(rows.start - 1), store.row(rows.end)), (None, None));
        assert_eq!(store.find("LINE 19999", 0, 3), [199_990, 199_991, 199_992]);
        assert_eq!(store.find("line 19999", 199_995, 100), [199_995, 199_996, 199_997, 199_998, 199_999]);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_cuts_make_the_same_rows(text in "([a-c\\x1b\\[0-9;mKJ\\r\\n\\x08\\t]|\u{e9}){0,60}", cut in 0usize..60) {
            let at = text.char_indices().map(|(at, _)| at).nth(cut).unwrap_or(text.len());
            let whole = store(&[(&text, false)]);
            let halves = store(&[(&text[..at], false), (&text[at..], false)]);
            prop_assert_eq!(texts(&whole), texts(&halves));
            prop_assert!(texts(&whole).iter().all(|text| !text.chars().any(char::is_control)));
        }
    }
}
