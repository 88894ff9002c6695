//! Bytes of one stream into pieces of text: at newlines, never inside a character.

use super::BATCH_BYTES;

/// Splits one stream. A piece keeps its newline; one without is the start of a line that was cut because it is long or
/// because it waited.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    /// Decoded, not yet given out; holds no newline.
    partial: String,
    /// The start of a character whose rest has not come.
    cut_char: Vec<u8>,
}

impl Splitter {
    /// Takes bytes in and gives the pieces that are complete. What is not UTF-8 becomes U+FFFD.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut Vec<String>) {
        if self.cut_char.is_empty() {
            self.decode(bytes, out);
        } else {
            let mut joined = std::mem::take(&mut self.cut_char);
            joined.extend_from_slice(bytes);
            self.decode(&joined, out);
        }
    }

    fn decode(&mut self, mut bytes: &[u8], out: &mut Vec<String>) {
        loop {
            match std::str::from_utf8(bytes) {
                Ok(text) => return self.push_text(text, out),
                Err(error) => {
                    let (valid, rest) = bytes.split_at(error.valid_up_to());
                    self.push_text(std::str::from_utf8(valid).unwrap_or_default(), out);
                    let Some(len) = error.error_len() else {
                        self.cut_char = rest.to_vec();
                        return;
                    };
                    self.push_text("\u{fffd}", out);
                    bytes = &rest[len..];
                }
            }
        }
    }

    fn push_text(&mut self, text: &str, out: &mut Vec<String>) {
        for piece in text.split_inclusive('\n') {
            let mut piece = piece;
            while self.partial.len() + piece.len() > BATCH_BYTES {
                let room = floor_char_boundary(piece, BATCH_BYTES.saturating_sub(self.partial.len()));
                let (head, rest) = piece.split_at(room);
                self.partial.push_str(head);
                out.push(std::mem::take(&mut self.partial));
                piece = rest;
            }
            self.partial.push_str(piece);
            if piece.ends_with('\n') {
                out.push(std::mem::take(&mut self.partial));
            }
        }
    }

    /// Gives out what has no newline yet, because somebody is waiting to see it.
    pub(crate) fn flush(&mut self, out: &mut Vec<String>) {
        if !self.partial.is_empty() {
            out.push(std::mem::take(&mut self.partial));
        }
    }

    /// Gives out everything: the stream is over.
    pub(crate) fn finish(&mut self, out: &mut Vec<String>) {
        if !std::mem::take(&mut self.cut_char).is_empty() {
            self.push_text("\u{fffd}", out);
        }
        self.flush(out);
    }

    /// How many bytes were taken and not given out.
    pub(crate) fn unsent_bytes(&self) -> usize {
        self.partial.len() + self.cut_char.len()
    }

    /// Whether there is text that [`Self::flush`] would give.
    pub(crate) fn has_partial(&self) -> bool {
        !self.partial.is_empty()
    }
}

fn floor_char_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(frames: &[&[u8]]) -> Vec<String> {
        let mut splitter = Splitter::default();
        let mut out = Vec::new();
        frames.iter().for_each(|frame| splitter.push(frame, &mut out));
        splitter.finish(&mut out);
        out
    }

    #[test]
    fn lines_keep_their_newline_and_cross_frames() {
        assert_eq!(split(&[b"a\nb", b"c\n\nd"]), ["a\n", "bc\n", "\n", "d"]);
    }

    #[test]
    fn a_character_cut_by_a_frame_is_whole_again() {
        let bytes = "żółć €\n".as_bytes();
        for cut in 0..bytes.len() {
            assert_eq!(split(&[&bytes[..cut], &bytes[cut..]]), ["żółć €\n"], "cut at {cut}");
        }
    }

    #[test]
    fn what_is_not_utf8_is_replaced_and_the_rest_stays() {
        assert_eq!(split(&[b"a\xff\xfeb\n", b"\xe2\x82"]), ["a\u{fffd}\u{fffd}b\n", "\u{fffd}"]);
    }

    #[test]
    fn a_line_without_end_is_cut_at_a_character() {
        let long = "é".repeat(BATCH_BYTES);
        let pieces = split(&[long.as_bytes()]);
        assert!(pieces.len() >= 2 && pieces.iter().all(|piece| piece.len() <= BATCH_BYTES));
        assert_eq!(pieces.concat(), long);
    }

    #[test]
    fn a_prompt_is_given_out_on_demand() {
        let mut splitter = Splitter::default();
        let mut out = Vec::new();
        splitter.push(b"name? ", &mut out);
        assert!(out.is_empty() && splitter.has_partial());
        splitter.flush(&mut out);
        assert_eq!(out, ["name? "]);
    }
}
