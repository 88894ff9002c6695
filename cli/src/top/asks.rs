//! How whoever runs a worker asks it to end: by a signal, or in its view.

use std::path::Path;

use crate::args::worker::Console;
use crate::progress::say;
use crate::serve::Signals;

use super::live::{Live, Purpose};
use super::screen::can_show;

/// Signals, and the view if there is one.
pub(crate) struct Asks {
    signals: Signals,
    view: Option<Live>,
}

impl Asks {
    /// Listens from now on; opens the view if it is wanted and there is a terminal for it.
    pub(crate) fn new(console: Console, data_directory: &Path, intention: &str) -> std::io::Result<Self> {
        Self::with(Signals::new()?, console, data_directory, intention)
    }

    /// As [`Self::new`], where signals were listened to before.
    pub(crate) fn with(
        signals: Signals,
        console: Console,
        data_directory: &Path,
        intention: &str,
    ) -> std::io::Result<Self> {
        let purpose = || Purpose::Own { intention: intention.to_owned() };
        let is_shown = console.is_view && can_show();
        let view = is_shown.then(|| Live::start(data_directory.to_owned(), purpose())).transpose()?;
        Ok(Self { signals, view })
    }

    /// Waits for the next one; answers by what. Shows the view meanwhile.
    pub(crate) async fn next(&mut self) -> &'static str {
        let Some(view) = &mut self.view else { return self.signals.next().await };
        let shown = tokio::select! {
            name = self.signals.next() => return name,
            shown = view.wish() => shown,
        };
        match shown {
            Ok(()) => "asked to",
            Err(error) => {
                // The worker goes on: its view is not what it is there for.
                self.view = None;
                tracing::warn!("the view has ended: {error}");
                self.signals.next().await
            }
        }
    }

    /// Says something where it is seen.
    pub(crate) fn say(&mut self, text: &str) {
        match &mut self.view {
            Some(view) => view.note(text),
            None => say(text),
        }
    }
}

impl Drop for Asks {
    /// What was said last in the view is gone with it; on the terminal it stays.
    fn drop(&mut self) {
        if let Some(note) = self.view.take().and_then(Live::close) {
            say(&note);
        }
    }
}
