//! The `gridsocket` binary: reads the command line, wires the parts, prints.
//!
//! Thin on purpose: rules live in `broker` and `worker`, words in `protocol`. [`args`] alone knows flags and variables;
//! [`exit`] alone turns errors into words and codes.

#![allow(rustdoc::bare_urls, reason = "doc comments of arguments are what `--help` prints")]

mod args;
mod audit;
mod doctor;
mod exit;
mod healthcheck;
mod job;
mod local;
mod logging;
mod progress;
mod run;
mod serve;
mod socket;
mod standalone;
mod top;
mod upgrade;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command, process_env};

/// The store copies a node for every row that goes in, on threads that free what others allocated. The C library's allocator
/// takes half as long again for that; see docs/performance.md.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse_from(args::words(std::env::args_os()));
    let Some(command) = cli.command else {
        // Asked nothing, it says what it can do; that is no mistake.
        return match Cli::command().print_help() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => exit::report(&error.into()),
        };
    };
    init_tls();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&error.into()),
    };
    let ended = runtime.block_on(dispatch(command));
    // A read of standard input cannot be cancelled; it must not keep the process.
    runtime.shutdown_background();
    ended.unwrap_or_else(|error| exit::report(&error))
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    let env = &process_env;
    match command {
        Command::Serve(args) => {
            let settings = args.settings(env)?;
            logging::start(env, false)?;
            serve::serve(settings).await
        }
        Command::Run(args) => match args.settings(env)? {
            args::run::Settings::Remote(mut settings) => {
                logging::start_worker(env, settings.debug, settings.console.format, &settings.worker.recent)?;
                let own = args::standalone::settings(env)?;
                if own.is_some() {
                    settings.on_exit = args::standalone::Settings::on_exit(settings.on_exit);
                }
                standalone::around(own, run::run(*settings)).await
            }
            args::run::Settings::Local(settings) => start_local(*settings).await,
        },
        Command::Local(args) => start_local(args.settings(env)?).await,
        Command::Job(args) => job::command(&args.command, env).await,
        Command::Audit(args) => audit::command(&args.command, env).await,
        Command::Healthcheck(args) => healthcheck::healthcheck(args.address(env)?).await,
        Command::Doctor(args) => doctor::doctor(args.settings(env)?).await,
        Command::Worker(args) => match args.command {
            args::upgrade::Command::Upgrade(args) => upgrade::run(&args.settings(env)?).await,
        },
        Command::Top(args) => top::top(args.settings(env)?).await,
        Command::WebhookSecret(args) => {
            progress::print(&broker::webhooks::Secret::of(&args.queue()?).text())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn start_local(mut settings: args::local::Settings) -> anyhow::Result<ExitCode> {
    logging::start_worker(&process_env, settings.debug, settings.console.format, &settings.worker.recent)?;
    let own = args::standalone::settings(&process_env)?;
    if own.is_some() {
        settings.on_exit = args::standalone::Settings::on_exit(settings.on_exit);
    }
    standalone::around(own, local::local(settings)).await
}

/// Chooses the one cryptography provider of the process. A second call changes nothing.
pub(crate) fn init_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
