//! The live view: reads how the worker stands each second, draws, and listens to keys.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use worker::observe::{Snapshot, read};

use super::screen::{Key, Screen};
use super::view::{self, View};

/// How often the worker is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Whose view it is.
#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    /// Of somebody who looks at a worker elsewhere: the worker goes on when the view ends.
    Look,
    /// Of the worker itself, which ends when its view is closed; what that means for its jobs.
    Own {
        /// In words.
        intention: String,
    },
}

/// A view that is open.
pub(crate) struct Live {
    screen: Screen,
    purpose: Purpose,
    seen: watch::Receiver<Seen>,
    is_asking: bool,
    note: Option<String>,
    has_colour: bool,
    _looking: AbortOnDropHandle<()>,
}

#[derive(Clone, Default)]
struct Seen {
    snapshot: Option<Snapshot>,
    trouble: Option<String>,
}

impl Live {
    /// Takes the terminal and looks at the worker in `folder` from now on.
    pub(crate) fn start(folder: PathBuf, purpose: Purpose) -> io::Result<Self> {
        let (sender, seen) = watch::channel(Seen::default());
        let screen = Screen::take()?;
        let looking = AbortOnDropHandle::new(tokio::spawn(async move { look(&folder, &sender).await }));
        let has_colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Ok(Self { screen, purpose, seen, is_asking: false, note: None, has_colour, _looking: looking })
    }

    /// Says something in the last line.
    pub(crate) fn note(&mut self, text: &str) {
        self.note = Some(text.to_owned());
    }

    /// Gives the terminal back; answers what was said last.
    pub(super) fn close(self) -> Option<String> {
        self.note
    }

    /// Shows the worker until the person wants it to end.
    pub(crate) async fn wish(&mut self) -> io::Result<()> {
        loop {
            self.draw()?;
            tokio::select! {
                // Its task lives as long as this.
                _ = self.seen.changed() => {}
                key = self.screen.key() => match (key?, self.is_asking) {
                    (Key::Quit, false) if matches!(self.purpose, Purpose::Look) => return Ok(()),
                    (Key::Quit, false) => self.is_asking = true,
                    (Key::Yes, true) => {
                        self.is_asking = false;
                        return Ok(());
                    }
                    (Key::Quit | Key::Other, true) => self.is_asking = false,
                    (Key::Yes | Key::Other, false) | (Key::Resized, _) => {}
                },
            }
        }
    }

    fn draw(&mut self) -> io::Result<()> {
        let seen = self.seen.borrow_and_update().clone();
        let footer = match (&self.purpose, self.is_asking, &self.note) {
            (Purpose::Own { intention }, true, _) => format!("end the worker? y: yes, any other key: no ({intention})"),
            (_, _, Some(note)) => note.clone(),
            (Purpose::Own { .. }, _, None) => "q ends the worker, after asking".to_owned(),
            (Purpose::Look, _, None) => "q quits; the worker goes on".to_owned(),
        };
        let view = View {
            snapshot: seen.snapshot.as_ref(),
            trouble: seen.trouble.as_deref(),
            footer: &footer,
            is_asking: self.is_asking,
            has_colour: self.has_colour,
        };
        self.screen.draw(|frame| view::draw(frame, &view))
    }
}

async fn look(folder: &Path, seen: &watch::Sender<Seen>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let read = read(folder).await;
        seen.send_modify(|seen| match read {
            Ok(snapshot) => *seen = Seen { snapshot: Some(snapshot), trouble: None },
            // What was seen last stays, and is said to be old.
            Err(error) => seen.trouble = Some(words(&error)),
        });
    }
}

fn words(error: &io::Error) -> String {
    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
        "it does not run (yet, or any more)".to_owned()
    } else {
        error.to_string()
    }
}
