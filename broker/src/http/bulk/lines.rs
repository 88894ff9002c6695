//! A body in pieces, taken apart into its lines: pure.

use bytes::{Bytes, BytesMut};

/// A line, with its number counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) number: u64,
    pub(super) text: Result<Bytes, TooLong>,
}

/// A line that is longer than a line may be; its text is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// The lines of a body. Holds one line and one piece at most.
#[derive(Debug)]
pub(super) struct Lines {
    line_bytes_max: usize,
    piece: Bytes,
    /// What came of the current line in earlier pieces.
    begun: BytesMut,
    is_too_long: bool,
    ended: u64,
}

impl Lines {
    pub(super) fn new(line_bytes_max: usize) -> Self {
        Self { line_bytes_max, piece: Bytes::new(), begun: BytesMut::new(), is_too_long: false, ended: 0 }
    }

    /// The number of the line that is being read.
    pub(super) const fn number(&self) -> u64 {
        self.ended + 1
    }

    /// How many bytes of a line that is not whole yet are kept.
    pub(super) fn begun_bytes(&self) -> usize {
        self.begun.len()
    }

    /// Adds a piece; every whole line of the pieces before has been taken.
    pub(super) fn add(&mut self, piece: Bytes) {
        self.piece = piece;
    }

    /// The next whole line.
    pub(super) fn next(&mut self) -> Option<Line> {
        let Some(end) = self.piece.iter().position(|byte| *byte == b'\n') else {
            let rest = std::mem::take(&mut self.piece);
            self.begin(&rest);
            return None;
        };
        let rest = self.piece.split_to(end + 1).slice(..end);
        if self.begun.is_empty() && !self.is_too_long && rest.len() <= self.line_bytes_max {
            return Some(self.end(Ok(rest)));
        }
        self.begin(&rest);
        Some(self.end_begun())
    }

    /// What stands after the last line break, when the body is over.
    pub(super) fn last(&mut self) -> Option<Line> {
        (self.is_too_long || !self.begun.is_empty()).then(|| self.end_begun())
    }

    fn begin(&mut self, part: &[u8]) {
        self.is_too_long |= self.begun.len() + part.len() > self.line_bytes_max;
        if self.is_too_long {
            self.begun = BytesMut::new();
        } else {
            self.begun.extend_from_slice(part);
        }
    }

    fn end_begun(&mut self) -> Line {
        let text = std::mem::take(&mut self.begun).freeze();
        let is_too_long = std::mem::take(&mut self.is_too_long);
        self.end(if is_too_long { Err(TooLong) } else { Ok(text) })
    }

    fn end(&mut self, text: Result<Bytes, TooLong>) -> Line {
        self.ended += 1;
        Line { number: self.ended, text }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(pieces: &[&[u8]], line_bytes_max: usize) -> Vec<Line> {
        let mut lines = Lines::new(line_bytes_max);
        let mut all = Vec::new();
        for piece in pieces {
            lines.add(Bytes::copy_from_slice(piece));
            while let Some(line) = lines.next() {
                all.push(line);
            }
        }
        all.extend(lines.last());
        all
    }

    fn texts(pieces: &[&[u8]], line_bytes_max: usize) -> Vec<Result<Bytes, TooLong>> {
        lines(pieces, line_bytes_max).into_iter().map(|line| line.text).collect()
    }

    fn text(text: &'static str) -> Result<Bytes, TooLong> {
        Ok(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn the_last_line_needs_no_line_break() {
        assert_eq!(texts(&[b"a\n\nb"], 9), [text("a"), text(""), text("b")]);
        assert_eq!(texts(&[b"a\nb\n"], 9), [text("a"), text("b")]);
        assert_eq!(texts(&[b""], 9), []);
    }

    #[test]
    fn a_line_of_the_limit_is_kept_and_a_longer_one_is_left_out_but_counted() {
        assert_eq!(texts(&[b"123\n1234\n1\n"], 3), [text("123"), Err(TooLong), text("1")]);
        assert_eq!(texts(&[b"12", b"3\n12", b"34", b"5\n1", b"23"], 3), [text("123"), Err(TooLong), text("123")]);
        assert_eq!(texts(&[b"12", b"34"], 3), [Err(TooLong)]);
        assert_eq!(lines(&[b"1234\n1"], 3)[1].number, 2);
    }

    proptest! {
        #[test]
        fn the_same_lines_come_out_whatever_the_pieces(
            body in "[ab\n]{0,60}",
            cuts in prop::collection::vec(0_usize..61, 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(body.len())).chain([0, body.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &body.as_bytes()[cut[0]..cut[1]]).collect();
            let expected: Vec<_> = body.lines().map(|line| if line.len() > 5 { Err(TooLong) } else { Ok(Bytes::copy_from_slice(line.as_bytes())) }).collect();
            let found = lines(&pieces, 5);
            prop_assert_eq!(found.iter().map(|line| line.number).collect::<Vec<_>>(), (1..=found.len() as u64).collect::<Vec<_>>());
            prop_assert_eq!(found.into_iter().map(|line| line.text).collect::<Vec<_>>(), expected);
        }
    }
}
