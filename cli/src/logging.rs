//! What the long-running commands write about themselves: standard error, levels by variable.

use std::io::IsTerminal;

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
    let subscriber = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(is_terminal);
    // The second start in one process (a test) keeps the first one's settings.
    let _ = if is_terminal { subscriber.compact().with_target(false).try_init() } else { subscriber.try_init() };
    Ok(())
}
