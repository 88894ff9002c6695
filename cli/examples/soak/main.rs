//! What takes longer than a test may: the broker killed again and again, the power cut again and again, bytes flipped on disk.
//!
//! Each command ends with one line that sums up, and with 1 if anything was wrong. Random choices come from a seed that is
//! printed; `--seed` takes it again.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "whoever watches looks for what it waits for; everything else is wrong, or not its business"
)]

#[path = "../support/blobs.rs"]
mod blobs;
#[path = "../support/client.rs"]
mod client;
#[path = "../support/history.rs"]
mod history;
#[path = "../support/load.rs"]
mod load;
#[path = "../support/random.rs"]
mod random;
#[path = "../support/submitters.rs"]
mod submitters;
#[path = "../support/told.rs"]
mod told;
#[path = "../support/workers.rs"]
mod workers;

mod changes;
mod collector;
mod conformance;
mod containers;
mod fair;
mod flips;
mod flood;
mod grid;
mod hands;
mod kill;
mod lives;
mod logs;
mod open_files;
mod populate;
mod powercut;
mod process;
mod real;
mod storm;
mod subject;
mod subscribers;
mod tally;
mod town;
mod watch;
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What takes longer than a test may.
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Kill the broker at random moments under load, and see that it kept all its promises
    Kill(kill::Args),
    /// Cut the power under the broker's disk, with deploy/powercut
    Powercut(powercut::Args),
    /// Show a thousand subscribers every change of a long queue
    Watch(watch::Args),
    /// Let a thousand subscribers drop and come back at once, also over a dead broker
    Storm(storm::Args),
    /// Let many workers share many jobs, and one namespace flood the others
    Fair(fair::Args),
    /// Kill broker and workers at random for ten minutes
    Grid(grid::Args),
    /// Drive the broker as the original's workers, pages and command lines do
    Conformance(conformance::Args),
    /// Write a million lines of log and read them in every way, while the broker's memory stays as it is
    Logs(logs::Args),
    /// Run thousands of jobs on workers and an engine that are killed and restarted, and see that nothing is left
    Worker(worker::Args),
    /// Run jobs that print a gigabyte as fast as they can, and see that nobody else notices
    Flood(flood::Args),
    /// Flip single bytes of a store, and see that each is found and handled
    Flips(flips::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Nothing here speaks TLS, but the HTTP client asks for a provider when it is made.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        match cli.command {
            Command::Kill(args) => kill::run(args).await,
            Command::Powercut(args) => powercut::run(&args).await,
            Command::Watch(args) => watch::run(args).await,
            Command::Storm(args) => storm::run(args).await,
            Command::Fair(args) => fair::run(args).await,
            Command::Grid(args) => grid::run(args).await,
            Command::Conformance(args) => conformance::run(args).await,
            Command::Logs(args) => logs::run(args).await,
            Command::Worker(args) => worker::run(args).await,
            Command::Flood(args) => flood::run(args).await,
            Command::Flips(args) => flips::run(&args).await,
        }
    });
    runtime.shutdown_background();
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
