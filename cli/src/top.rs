//! How a worker stands, for people: live in a terminal, or once as text or JSON. It reads the socket in the worker's data
//! directory; so does `gridsocket run --tui`, of its own worker.
//!
//! Ground floor first: `text` (pure: times, sizes, what strangers wrote), `view` (pure: a snapshot onto a screen of any size), `plain`
//! (pure: the same as lines); `find` (which worker), `screen` (the terminal, taken and given back), `live` (the loop), `asks` (who ends a worker).

mod asks;
mod find;
mod live;
mod plain;
mod screen;
mod text;
mod view;

use std::io::IsTerminal;
use std::process::ExitCode;

use crate::args::top::{Settings, Show};
use crate::progress::print;
use crate::serve::Signals;

pub(crate) use asks::Asks;
use live::{Live, Purpose};
use screen::can_show;

/// Looks at a worker.
pub(crate) async fn top(settings: Settings) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let (folder, snapshot) = find::find(&settings.folders).await?;
    match settings.show {
        Show::Json => print(&serde_json::to_string(&snapshot)?)?,
        Show::Live if can_show() => {
            let mut live = Live::start(folder, Purpose::Look)?;
            tokio::select! {
                ended = live.wish() => ended?,
                _ = signals.next() => {}
            }
        }
        Show::Live | Show::Once => print(plain::text(&snapshot, width()).trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// How wide lines of text may be; without a terminal: as wide as they are.
fn width() -> usize {
    let size = std::io::stdout().is_terminal().then(ratatui::crossterm::terminal::size);
    size.and_then(Result::ok).map_or(usize::MAX, |(columns, _)| usize::from(columns.max(40)))
}
