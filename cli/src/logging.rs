//! What the long-running commands write about themselves: standard error, levels by variable, one line for each thing said.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::args::Env;

/// What is logged unless told otherwise: what an operator wants to know.
const DEFAULT: &str = "info";
/// What `--debug` logs: everything of ours, and of others what is not their inner workings.
const DEBUG: &str = "info,gridsocket=debug,broker=debug,worker=debug,protocol=debug";

/// Starts logging: `GRIDSOCKET_LOG`, else `RUST_LOG`, else what `is_debug` asks for.
pub(crate) fn start(env: Env<'_>, is_debug: bool) -> Result<(), crate::args::UsageError> {
    let set = |name: &str| env(name).filter(|value| !value.trim().is_empty()).map(|value| (name.to_owned(), value));
    let (place, filter) = set("GRIDSOCKET_LOG")
        .or_else(|| set("RUST_LOG"))
        .unwrap_or_else(|| ("--debug".to_owned(), if is_debug { DEBUG } else { DEFAULT }.to_owned()));
    let filter = EnvFilter::try_new(&filter).map_err(|error| {
        crate::args::UsageError::new(place, format!("{filter:?}: {error}; write info, debug, or broker=debug,info"))
    })?;
    let is_terminal = std::io::stderr().is_terminal();
    let subscriber = fmt().with_env_filter(filter).with_writer(|| OneLine(std::io::stderr())).with_ansi(is_terminal);
    // The second start in one process (a test) keeps the first one's settings.
    let _ = if is_terminal { subscriber.compact().with_target(false).try_init() } else { subscriber.try_init() };
    Ok(())
}

/// Writes each record as one line, however many the texts in it have: what strangers say is part of some, and nobody who reads the
/// log is to take a line of theirs for one of ours. Colours are left alone; in what is quoted they are escaped before it gets here.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    /// Takes one whole record.
    fn write(&mut self, record: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(record);
        let body = text.strip_suffix('\n').unwrap_or(&text);
        if !body.chars().any(is_escaped) {
            self.0.write_all(record)?;
            return Ok(record.len());
        }
        let mut line = String::with_capacity(record.len() + 16);
        for c in body.chars() {
            if is_escaped(c) {
                // Writing to a String cannot fail.
                let _ = write!(line, "{}", c.escape_default());
            } else {
                line.push(c);
            }
        }
        line.push('\n');
        self.0.write_all(line.as_bytes())?;
        Ok(record.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// What ends a line, or moves a terminal's cursor without being a colour.
const fn is_escaped(c: char) -> bool {
    matches!(c, '\0'..='\u{8}' | '\n'..='\u{1a}' | '\u{1c}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_quoted_stays_on_its_line() {
        for is_terminal in [false, true] {
            let log = Log::default();
            let writer = log.clone();
            let subscriber =
                fmt().with_ansi(is_terminal).with_writer(move || OneLine(writer.clone())).without_time().finish();
            tracing::subscriber::with_default(subscriber, || {
                let evil = "sorry\nINFO all is well\r\u{1b}[2J\u{9b}2J\u{7}\u{2028}end";
                tracing::info!(field = evil, "handed back: {evil}");
                tracing::info!("é and\ttabs as they are");
            });
            let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            let lines: Vec<&str> = text.split(['\n', '\r', '\u{2028}']).collect();
            assert_eq!((lines.len(), lines[2]), (3, ""), "{text:?}");
            assert!(lines[0].contains("sorry\\nINFO all is well") && lines[0].contains("end"), "{text:?}");
            assert!(!text.contains("\u{1b}[2J") && !text.contains('\u{7}') && !text.contains('\u{9b}'), "{text:?}");
            assert!(lines[1].contains("é and\ttabs"), "{text:?}");
        }
    }
}
