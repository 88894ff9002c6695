//! What the long-running commands write about themselves: standard error, levels by variable, one line for each thing said.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};
use worker::observe::Recent;

use crate::args::{Env, UsageError};

/// What is logged unless told otherwise: what an operator wants to know.
const DEFAULT: &str = "info";
/// What `--debug` logs: everything of ours, and of others what is not their inner workings.
const DEBUG: &str = "info,gridsocket=debug,broker=debug,worker=debug,protocol=debug";
const FORMAT: &str = "GRIDSOCKET_LOG_FORMAT";

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For programs: one JSON object in each line.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("write text or json"),
        }
    }
}

/// Whether a view has the terminal, so that nothing may be written there.
static SCREEN: AtomicBool = AtomicBool::new(false);

/// A view takes the terminal, or gives it back.
pub(crate) fn screen_taken(is_taken: bool) {
    SCREEN.store(is_taken, Ordering::Relaxed);
}

/// Whether a view has the terminal.
pub(crate) fn is_screen_taken() -> bool {
    SCREEN.load(Ordering::Relaxed)
}

/// Starts logging: `GRIDSOCKET_LOG`, else `RUST_LOG`, else what `is_debug` asks for.
pub(crate) fn start(env: Env<'_>, is_debug: bool) -> Result<(), UsageError> {
    start_with(env, is_debug, None, None)
}

/// As [`start`], for a worker: the last lines also go to `recent`.
pub(crate) fn start_worker(
    env: Env<'_>,
    is_debug: bool,
    format: Option<LogFormat>,
    recent: &Recent,
) -> Result<(), UsageError> {
    start_with(env, is_debug, format, Some(recent.clone()))
}

fn start_with(
    env: Env<'_>,
    is_debug: bool,
    format: Option<LogFormat>,
    recent: Option<Recent>,
) -> Result<(), UsageError> {
    let set = |name: &str| env(name).filter(|value| !value.trim().is_empty()).map(|value| (name.to_owned(), value));
    let (place, filter) = set("GRIDSOCKET_LOG")
        .or_else(|| set("RUST_LOG"))
        .unwrap_or_else(|| ("--debug".to_owned(), if is_debug { DEBUG } else { DEFAULT }.to_owned()));
    let filter = EnvFilter::try_new(&filter).map_err(|error| {
        UsageError::new(place, format!("{filter:?}: {error}; write info, debug, or broker=debug,info"))
    })?;
    let format = match (format, set(FORMAT)) {
        (Some(format), _) => format,
        (None, Some((place, text))) => {
            text.trim().parse().map_err(|problem| UsageError::new(place, format!("{text:?}: {problem}")))?
        }
        (None, None) => LogFormat::Text,
    };
    let subscriber = tracing_subscriber::registry().with(filter).with(lines(format)).with(recent.map(Remember));
    // The second start in one process (a test) keeps the first one's settings.
    let _ = subscriber.try_init();
    Ok(())
}

/// What is written to standard error.
fn lines<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let is_terminal = std::io::stderr().is_terminal();
    match format {
        LogFormat::Json => json(|| Stderr).boxed(),
        LogFormat::Text if is_terminal => {
            fmt::layer().with_writer(|| OneLine(Stderr)).with_ansi(true).compact().with_target(false).boxed()
        }
        LogFormat::Text => fmt::layer().with_writer(|| OneLine(Stderr)).with_ansi(false).boxed(),
    }
}

/// One object for each record: its own fields, and those of the run that it is about.
fn json<S, W>(writer: W) -> impl Layer<S> + Send + Sync
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    W: for<'a> fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    fmt::layer().json().flatten_event(true).with_current_span(true).with_span_list(false).with_writer(writer)
}

/// Standard error, unless it is a terminal that a view has.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut stderr = std::io::stderr();
        if is_screen_taken() && stderr.is_terminal() { Ok(bytes.len()) } else { stderr.write(bytes) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Keeps what was said of late for those who look at a worker; what is said is readable without its fields.
struct Remember(Recent);

impl<S: Subscriber> Layer<S> for Remember {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        self.0.push(event.metadata().level().as_str(), &said.0);
    }
}

#[derive(Default)]
struct Said(String);

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
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

    #[test]
    fn each_line_for_programs_is_an_object_that_names_job_run_and_queue() {
        let log = Log::default();
        let writer = log.clone();
        let recent = Recent::default();
        let subscriber =
            tracing_subscriber::registry().with(json(move || writer.clone())).with(Remember(recent.clone()));
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("run", job.id = "abc", run = 2, queue.key = "1a2b");
            let _inside = span.enter();
            tracing::warn!(status = 3, "it said \"no\"\nand more");
        });
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["level"], &line["status"]), (&"WARN".into(), &3.into()));
        assert_eq!(line["message"], "it said \"no\"\nand more");
        let span = &line["span"];
        assert_eq!((&span["job.id"], &span["run"], &span["queue.key"]), (&"abc".into(), &2.into(), &"1a2b".into()));
        let lines = recent.lines();
        assert_eq!((lines[0].level.as_str(), lines[0].text.as_str()), ("WARN", "it said \"no\" and more"));
    }

    #[test]
    fn a_format_that_is_none_is_refused() {
        assert_eq!(("json".parse(), "text".parse()), (Ok(LogFormat::Json), Ok(LogFormat::Text)));
        let env = |name: &str| (name == FORMAT).then(|| "xml".to_owned());
        assert_eq!(start(&env, false).unwrap_err().place, FORMAT);
    }
}
