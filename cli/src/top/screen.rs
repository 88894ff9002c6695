//! The terminal: taken, and given back however it ends. While it is taken nothing else may write to it.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Stdin, Stdout, Write, stdin, stdout};
use std::sync::{Mutex, Once, PoisonError};

use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::{Frame, Terminal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::logging;

/// How much is read from the terminal at once; the rest waits there.
const READ_BYTES: usize = 64;
const ESCAPE: u8 = 0x1b;
/// Ctrl-C, in a terminal that makes no signals of it.
const CTRL_C: u8 = 0x03;

/// What a person did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// `q`, Escape or Ctrl-C.
    Quit,
    /// `y`.
    Yes,
    /// Any other key.
    Other,
    /// The terminal has another size.
    Resized,
}

/// Whether there is a terminal that can show a view: both ways, and not one of those that only print.
pub(super) fn can_show() -> bool {
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    stdout().is_terminal() && stdin().is_terminal() && !is_dumb
}

/// The terminal while it is ours.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    // Not read by crossterm: its reader goes round for ever once the terminal is gone.
    input: AsyncFd<Stdin>,
    resized: Signal,
    keys: VecDeque<Key>,
}

/// What a panic said while the terminal was taken.
static PANIC: Mutex<Option<String>> = Mutex::new(None);
static HOOK: Once = Once::new();

impl Screen {
    /// Takes the terminal.
    pub(super) fn take() -> io::Result<Self> {
        HOOK.call_once(quiet_panics);
        #[expect(
            deprecated,
            reason = "its successor is unsafe; standard input has one descriptor for as long as we live"
        )]
        let input = AsyncFd::with_interest(stdin(), Interest::READABLE)?;
        let resized = signal(SignalKind::window_change())?;
        enable_raw_mode()?;
        // From here on it is given back in any case.
        match enter() {
            Ok(terminal) => Ok(Self { terminal, input, resized, keys: VecDeque::new() }),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }

    /// Draws.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(draw).map(drop)
    }

    /// Waits for what the person does next; an error when the terminal is gone.
    pub(super) async fn key(&mut self) -> io::Result<Key> {
        loop {
            if let Some(key) = self.keys.pop_front() {
                return Ok(key);
            }
            let mut ready = tokio::select! {
                ready = self.input.readable() => ready?,
                _ = self.resized.recv() => return Ok(Key::Resized),
            };
            // Asked first, so that a read never waits: the terminal is others', too, and stays as they have set it.
            let waiting = rustix::io::ioctl_fionread(ready.get_inner())?;
            if waiting == 0 && !ready.ready().is_read_closed() {
                ready.clear_ready();
                continue;
            }
            let mut bytes = [0; READ_BYTES];
            let read = rustix::io::read(ready.get_inner(), &mut bytes)?;
            if read == 0 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.keys.extend(keys(bytes.get(..read).unwrap_or_default()));
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
        let said = PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
        if std::thread::panicking()
            && let Some(said) = said
        {
            let _ = writeln!(io::stderr(), "{said}");
        }
    }
}

fn enter() -> io::Result<Terminal<CrosstermBackend<Stdout>>> {
    logging::screen_taken(true);
    // Not by `Terminal::clear`: that asks the terminal where its cursor is, and not all answer.
    execute!(stdout(), EnterAlternateScreen, Clear(ClearType::All))?;
    Terminal::new(CrosstermBackend::new(stdout()))
}

/// As it was. A terminal that is gone needs nothing.
fn give_back() {
    let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
    logging::screen_taken(false);
}

/// A panic in a job's task is caught and logged, and must not be printed over the view; one of the view's own is printed once the
/// terminal is given back.
fn quiet_panics() {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if logging::is_screen_taken() {
            tracing::error!("{info}");
            *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(info.to_string());
        } else {
            loud(info);
        }
    }));
}

/// What the bytes of one read mean. What begins with Escape and goes on is one key, such as an arrow.
fn keys(mut bytes: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    while let [first, rest @ ..] = bytes {
        let (key, rest) = match first {
            &ESCAPE => match rest {
                [] | [ESCAPE, ..] => (Key::Quit, rest),
                [b'[', rest @ ..] => (Key::Other, after_sequence(rest)),
                [b'O', _, rest @ ..] | [_, rest @ ..] => (Key::Other, rest),
            },
            &CTRL_C | b'q' | b'Q' => (Key::Quit, rest),
            b'y' | b'Y' => (Key::Yes, rest),
            _ => (Key::Other, rest),
        };
        keys.push(key);
        bytes = rest;
    }
    keys
}

/// What comes behind a control sequence, which ends with its first byte from `@` to `~`.
fn after_sequence(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| (b'@'..=b'~').contains(byte));
    end.and_then(|end| bytes.get(end + 1..)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_mean_what_the_last_line_says() {
        assert_eq!(keys(b"qyc"), [Key::Quit, Key::Yes, Key::Other]);
        assert_eq!(keys(b"\x03\x1b"), [Key::Quit, Key::Quit]);
        // Arrows, a mouse that is let go, F1, Alt-q, a letter of two bytes.
        assert_eq!(keys(b"\x1b[A\x1b[1;5C\x1b[<0;1;1my"), [Key::Other, Key::Other, Key::Other, Key::Yes]);
        assert_eq!(keys(b"\x1bOP\x1bqq"), [Key::Other, Key::Other, Key::Quit]);
        assert_eq!(keys("\u{e9}\u{1b}[12".as_bytes()), [Key::Other; 3]);
    }

    const CHILD: &str = "GRIDSOCKET_TEST_PANIC_IN_VIEW";

    /// Runs itself in a terminal, where its view panics.
    #[tokio::test]
    async fn a_view_that_panics_gives_the_terminal_back_and_then_says_so() {
        if std::env::var_os(CHILD).is_some() {
            let mut screen = Screen::take().unwrap();
            screen.draw(|_| panic!("on purpose")).unwrap();
        }
        let own = std::env::current_exe().unwrap();
        let name = "top::screen::tests::a_view_that_panics_gives_the_terminal_back_and_then_says_so";
        let line = format!(
            "before=$(stty -g); {} --exact {name} --nocapture 2>&1; [ \"$before\" = \"$(stty -g)\" ] && echo AS-BEFORE",
            own.display()
        );
        let mut command = std::process::Command::new("script");
        command.args(["-q", "-c", &line, "/dev/null"]).env(CHILD, "1").env("TERM", "xterm").env("SHELL", "/bin/sh");
        // Its input stays open: a terminal whose other end is closed is no terminal.
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().expect("script, of util-linux");
        let _input = child.stdin.take();
        let said = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let (_, after) = said.split_once("\u{1b}[?1049l").unwrap_or_else(|| panic!("{said:?}"));
        assert!(after.contains("on purpose") && after.contains("AS-BEFORE"), "{said:?}");
    }
}
