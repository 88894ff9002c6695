//! What people see while they wait: bars on a terminal, plain lines elsewhere. All of it goes to standard error; standard
//! output is for what a job prints.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use protocol::native::LogLine;

/// How often a spinner turns: often enough to look alive.
const TICK: Duration = Duration::from_millis(120);

/// A file on its way.
#[derive(Clone, Debug)]
pub(crate) struct Transfer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    verb: &'static str,
    name: String,
    bytes: AtomicU64,
    bar: Option<ProgressBar>,
}

impl Transfer {
    /// Shows that a file is on its way; `size` as far as it is known.
    pub(crate) fn start(verb: &'static str, name: &str, size: Option<u64>) -> Self {
        let name = one_line(name).into_owned();
        let bar = io::stderr().is_terminal().then(|| bar(verb, &name, size));
        if bar.is_none() {
            let size = size.map_or_else(String::new, |size| format!(" ({})", HumanBytes(size)));
            say(&format!("{verb} {name}{size}"));
        }
        Self(Arc::new(Inner { verb, name, bytes: AtomicU64::new(0), bar }))
    }

    /// The file is sent again from its start.
    pub(crate) fn restart(&self) {
        self.0.bytes.store(0, Ordering::Relaxed);
        if let Some(bar) = &self.0.bar {
            bar.set_position(0);
        }
    }

    /// So many more bytes have gone.
    pub(crate) fn advance(&self, bytes: u64) {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(bar) = &self.0.bar {
            bar.inc(bytes);
        }
    }

    /// The file is through, or not.
    pub(crate) fn end(&self, is_done: bool) {
        let Inner { verb, name, bytes, bar } = &*self.0;
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        if is_done {
            say(&format!("{verb} {name}: done, {}", HumanBytes(bytes.load(Ordering::Relaxed))));
        }
    }
}

fn bar(verb: &str, name: &str, size: Option<u64>) -> ProgressBar {
    let (bar, template) = match size {
        Some(size) => (ProgressBar::new(size), "{prefix} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}"),
        None => (ProgressBar::new_spinner(), "{prefix} {spinner} {bytes} {bytes_per_sec}"),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style.progress_chars("=> ")).with_prefix(format!("{verb} {name}"))
}

/// A count that goes up, on one line of a terminal; elsewhere nothing, what is counted is printed there.
#[derive(Debug)]
pub(crate) struct Counter(Option<ProgressBar>);

impl Counter {
    /// Starts to count.
    pub(crate) fn start() -> Self {
        Self(io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(TICK);
            bar
        }))
    }

    /// The count is now this.
    pub(crate) fn set(&self, text: impl FnOnce() -> String) {
        if let Some(bar) = &self.0 {
            bar.set_message(text());
        }
    }

    /// Prints lines on standard output, each ended.
    pub(crate) fn print(&self, lines: &str) -> io::Result<()> {
        self.aside(|| write_all(io::stdout().lock(), lines))
    }

    /// Says something on standard error.
    pub(crate) fn note(&self, text: &str) {
        self.aside(|| say(text));
    }

    fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Where a job's output and the words about it go.
#[derive(Debug)]
pub(crate) struct Console {
    is_terminal: bool,
    pull: Option<ProgressBar>,
}

impl Console {
    /// The process's own standard output and error.
    pub(crate) fn new() -> Self {
        Self { is_terminal: io::stderr().is_terminal(), pull: None }
    }

    /// Says something about the job on standard error.
    pub(crate) fn note(&mut self, text: &str) {
        self.clear();
        say(text);
    }

    /// Passes on a line that the job's container wrote, to the stream that it wrote to.
    pub(crate) fn output(&mut self, line: &LogLine) -> io::Result<()> {
        self.clear();
        if line.stderr {
            write_all(io::stderr().lock(), &line.text)
        } else {
            write_all(io::stdout().lock(), &line.text)
        }
    }

    /// Shows a line from getting the image. On a terminal what a pull says of its layers is one moving line.
    pub(crate) fn build(&mut self, line: &LogLine) -> io::Result<()> {
        let text = line.text.trim_end();
        if self.is_terminal && is_layer_progress(text) {
            let pull = self.pull.get_or_insert_with(|| {
                let bar = ProgressBar::new_spinner().with_prefix("pulling");
                bar.enable_steady_tick(TICK);
                bar
            });
            pull.set_message(one_line(text).into_owned());
            return Ok(());
        }
        self.clear();
        write_all(io::stderr().lock(), &format!("{text}\n"))
    }

    fn clear(&mut self) {
        if let Some(pull) = self.pull.take() {
            pull.finish_and_clear();
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Says something on standard error; when that is closed there is nobody to hear it.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints a line on standard output.
pub(crate) fn print(text: &str) -> io::Result<()> {
    write_all(io::stdout().lock(), &format!("{text}\n"))
}

fn write_all(mut to: impl Write, text: &str) -> io::Result<()> {
    to.write_all(text.as_bytes())?;
    to.flush()
}

/// Whether this is one of an engine's lines about a layer: `4abcf2066143: Downloading [=> ] 1MB/3MB`.
fn is_layer_progress(text: &str) -> bool {
    text.split_once(": ").is_some_and(|(id, _)| id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Without what would move the cursor: names and log lines come from elsewhere.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) {
        text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect::<String>().into()
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_of_a_pull_are_told_from_other_lines() {
        assert!(is_layer_progress("4abcf2066143: Downloading [=> ] 1MB/3MB"));
        assert!(is_layer_progress("4abcf2066143: Pull complete"));
        assert!(!is_layer_progress("latest: Pulling from library/alpine"));
        assert!(!is_layer_progress("Status: Downloaded newer image"));
    }

    #[test]
    fn a_name_cannot_move_the_cursor() {
        assert_eq!(one_line("a\x1b[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
        assert_eq!(one_line("a b"), "a b");
    }
}
