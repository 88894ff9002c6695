//! `gridsocket run`: a worker until it is told to stop.

use std::process::ExitCode;

use worker::{ShutdownMode, shutdown_pair};

use crate::args::run::Remote;
use crate::progress::print;
use crate::top::Asks;

/// Works until SIGINT or SIGTERM. A second signal does not wait for runs any more.
pub(crate) async fn run(settings: Remote) -> anyhow::Result<ExitCode> {
    let config = &settings.worker;
    let queues = match config.queues.len() {
        1 => String::new(),
        count => format!("{count} queues at "),
    };
    print(&format!(
        "gridsocket worker for {} at a time from {queues}{}, data in {}",
        jobs(config.cpus),
        config.api,
        config.data_directory.display()
    ))?;
    let mut signals = Asks::new(settings.console, &config.data_directory, &intention(settings.on_exit))?;
    let (handle, shutdown) = shutdown_pair();
    let mut working = std::pin::pin!(worker::run(settings.worker, shutdown));
    let ended = tokio::select! {
        ended = &mut working => ended,
        name = signals.next() => {
            signals.say(&format!("{name}: {}", intention(settings.on_exit)));
            handle.request(settings.on_exit);
            tokio::select! {
                ended = &mut working => ended,
                name = signals.next() => {
                    signals.say(&format!("{name}: {}", intention(ShutdownMode::Leave)));
                    handle.request(ShutdownMode::Leave);
                    working.await
                }
            }
        }
    };
    ended?;
    Ok(ExitCode::SUCCESS)
}

/// `1 job`, `4 jobs`.
pub(crate) fn jobs(count: u32) -> String {
    if count == 1 { "1 job".to_owned() } else { format!("{count} jobs") }
}

/// What is about to happen to runs, in words.
pub(crate) fn intention(mode: ShutdownMode) -> String {
    match mode {
        ShutdownMode::Leave => "stopping; running jobs go on, a restarted worker takes them over".to_owned(),
        ShutdownMode::Drain { limit } => {
            format!("waiting for running jobs, at most {} s; once more ends the wait", limit.as_secs())
        }
        ShutdownMode::Kill => "stopping; running jobs are killed and handed back".to_owned(),
    }
}
