//! Texts for a terminal: short, and without what is not to be seen. Pure.

use ratatui::text::Span;

/// A text that a stranger may have written, as it may stand on a terminal: no control characters, nothing that turns the direction of
/// the line or that has no width.
pub(crate) fn printable(text: &str) -> String {
    let mut buffer = [0; 4];
    text.chars()
        .filter_map(|c| match c {
            c if c.is_control() => Some('\u{fffd}'),
            ' '..='~' => Some(c),
            // Marks that turn or join, and all that pile up on the letter before them.
            c if Span::raw(&*c.encode_utf8(&mut buffer)).width() == 0 => None,
            c => Some(c),
        })
        .collect()
}

/// At most so many columns of a text; what is cut off is marked.
pub(super) fn cut(text: &str, columns: usize) -> String {
    if Span::raw(text).width() <= columns {
        return text.to_owned();
    }
    let mut kept = String::new();
    for c in text.chars() {
        kept.push(c);
        if Span::raw(&kept).width() >= columns {
            kept.pop();
            break;
        }
    }
    if columns > 0 {
        kept.push('…');
    }
    kept
}

/// A time, in at most six characters up to a thousand days.
pub(super) fn time(ms: u64) -> String {
    let seconds = ms / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..10 => format!("{}.{}s", seconds, ms % 1000 / 100),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// Bytes, with one digit after the point where that says something.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if bytes / unit >= 10 || bytes % unit * 10 / unit == 0 => format!("{}{name}", bytes / unit),
        Some((name, unit)) => format!("{}.{}{name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes}B"),
    }
}

/// Thousandths of a CPU, as CPUs.
pub(super) fn cpus(milli: u64) -> String {
    match (milli / 1000, milli % 1000) {
        (whole, 0) => whole.to_string(),
        (whole, rest) => format!("{whole}.{}", format!("{rest:03}").trim_end_matches('0')),
    }
}

/// The start of an id.
pub(super) fn short(id: &str) -> String {
    printable(id).chars().take(8).collect()
}

/// A line of the log with its ids as short as they are everywhere in the view.
pub(super) fn with_short_ids(text: &str) -> String {
    const ID_DIGITS: usize = 64;
    let is_id = |word: &str| word.len() == ID_DIGITS && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut shortened = String::with_capacity(text.len());
    for piece in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let word = piece.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let (kept, rest) = if is_id(word) { (short(word), &piece[word.len()..]) } else { (piece.to_owned(), "") };
        shortened.push_str(&kept);
        shortened.push_str(rest);
    }
    shortened
}

/// `1 job`, `2 jobs`.
pub(super) fn count(number: usize, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_strangers_write_moves_nothing() {
        assert_eq!(printable("a\u{1b}[2J\r\n\u{9b}b\u{7f}"), "a\u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}b\u{fffd}");
        assert_eq!(printable("\u{202e}abc\u{200b}\u{2066}d\u{feff}"), "abcd");
        assert_eq!(printable(&format!("e{}", "\u{301}".repeat(100))), "e");
        assert_eq!(printable("é 漢字 ok"), "é 漢字 ok");
    }

    #[test]
    fn texts_are_cut_by_columns() {
        assert_eq!([cut("abcdef", 6), cut("abcdef", 4), cut("漢字漢", 4), cut("ab", 0)], ["abcdef", "abc…", "漢…", ""]);
        for columns in 0..8 {
            assert!(Span::raw(cut("a漢b字c漢", columns)).width() <= columns.max(1), "{columns}");
        }
    }

    #[test]
    fn ids_in_a_line_are_short() {
        let id = "0123456789abcdef".repeat(4);
        let line = format!("run 1 of job {id} ended: é {id}; 0123456789abcdef");
        assert_eq!(with_short_ids(&line), "run 1 of job 01234567 ended: é 01234567; 0123456789abcdef");
    }

    #[test]
    fn times_and_sizes_are_short() {
        assert_eq!([time(0), time(9_949), time(59_999)], ["0.0s", "9.9s", "59s"]);
        assert_eq!([time(61_000), time(3_600_000), time(90_000_000)], ["1m01s", "1h00m", "1d01h"]);
        assert_eq!([bytes(0), bytes(1536), bytes(8 << 30), bytes(11 << 39)], ["0B", "1.5K", "8G", "5.5T"]);
        assert_eq!([cpus(500), cpus(4000), cpus(1250)], ["0.5", "4", "1.25"]);
    }
}
