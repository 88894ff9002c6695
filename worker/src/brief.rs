//! Texts that strangers wrote, as errors and logs repeat them: cut where they tell nothing more.

use std::borrow::Cow;

/// The most characters that are repeated of a text. Longer than the names that people give, short enough for a line.
const CHARS_MAX: usize = 200;

/// The start of a text, with a sign where it was cut.
pub(crate) fn brief(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => Cow::Owned(format!("{}…", text.get(..end).unwrap_or_default())),
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(brief("short"), "short");
        assert_eq!(brief(&"ä".repeat(CHARS_MAX)), "ä".repeat(CHARS_MAX));
        assert_eq!(brief(&"ä".repeat(CHARS_MAX + 1)), "ä".repeat(CHARS_MAX) + "…");
    }
}
