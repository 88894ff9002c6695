//! The command line: what may be written, and the checked settings that come of it.
//!
//! clap reads words into the raw structs here; each of them has one `settings` that applies *flag > variable > default*
//! and refuses what cannot be used, naming the place and saying what to write. Nothing below this floor reads a flag or a
//! variable.

pub(crate) mod audit;
mod blobs;
mod broker;
pub(crate) mod doctor;
mod files;
pub(crate) mod healthcheck;
mod images;
pub(crate) mod job;
pub(crate) mod local;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod setting;
pub(crate) mod standalone;
pub(crate) mod top;
pub(crate) mod upgrade;
pub(crate) mod webhooks;
pub(crate) mod worker;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

pub(crate) use setting::{Env, UsageError, process_env};

/// A public compute grid you plug into: broker, worker and command line in one binary.
#[derive(Debug, Parser)]
#[command(name = "gridsocket", version, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Everything on this machine: broker, worker and page in one process, queue `local`
    Local(local::Args),
    /// Run a broker: the queues, their event log, the HTTP and websocket interface, the page
    Serve(serve::Args),
    /// Run a worker: take jobs from a queue and run them in containers
    Run(run::Args),
    /// See whether a worker works here: machine, container engine, broker, each finding with what to do; takes what `run` takes
    Doctor(doctor::Args),
    /// Look after workers that run in containers
    Worker(upgrade::Worker),
    /// Show what the worker on this machine does: slots, GPUs, running jobs, last results
    Top(top::Args),
    /// Submit jobs and see what became of them
    Job(job::Args),
    /// Read a queue's event log: what happened, is it intact, what was the state at a time
    Audit(audit::Args),
    /// Ask what serves on this machine whether it is well, and end with 0 or 1: for images that hold this program alone
    Healthcheck(healthcheck::Args),
    /// Print what a queue's webhooks are signed with; nothing is asked, it is computed from the name
    WebhookSecret(webhooks::Secret),
}

const EXAMPLES: &str = "\
Examples:
  gridsocket local                            a grid: http://localhost:8000
  gridsocket job add local -c 'echo hello' -w a command in a container
  gridsocket job add local -i python:3.12-slim -c 'python -V' -w
  gridsocket serve --listen 0.0.0.0:8000      a broker for others
  gridsocket run my-secret-queue -a http://broker.example:8000 --cpus 4

A queue is a name in a URL and exists when it is first used. Whoever knows the
name may use the queue: for anything but `local`, take one that cannot be
guessed.";

/// The words of the command line, with the `run` that the first deployments' leave out: theirs begin with an option.
pub(crate) fn words(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = given.collect();
    let is_old = |word: &OsString| {
        let word = word.to_string_lossy();
        word.starts_with('-') && !matches!(&*word, "-" | "--" | "-h" | "--help" | "-V" | "--version")
    };
    if words.get(1).is_some_and(is_old) {
        words.insert(1, "run".into());
    }
    words
}

/// The folder under which this program keeps data that should outlive a reboot.
pub(crate) fn data_home(env: Env<'_>) -> std::path::PathBuf {
    let set = |name| env(name).filter(|value| value.starts_with('/')).map(std::path::PathBuf::from);
    set("XDG_DATA_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/share")))
        .unwrap_or_else(|| "/var/lib".into())
        .join("gridsocket")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_line_that_begins_with_an_option_is_a_workers() {
        let words = |line: &str| {
            let words = words(line.split(' ').map(OsString::from)).into_iter();
            words.map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
        };
        let oldest = "gridsocket --cpus=2 --queue=public1 --gpus=true";
        assert_eq!(words(oldest), "gridsocket run --cpus=2 --queue=public1 --gpus=true");
        assert_eq!(words("gridsocket -c 2 q"), "gridsocket run -c 2 q");
        for line in ["gridsocket", "gridsocket run q", "gridsocket -h", "gridsocket --version", "gridsocket -V", "g -"]
        {
            assert_eq!(words(line), line);
        }
        assert!(Cli::try_parse_from(super::words(oldest.split(' ').map(OsString::from)).iter()).is_ok());
    }

    /// The variables that a command's help and its subcommands' name.
    fn variables(command: &clap::Command) -> Vec<String> {
        let helps = command.get_arguments().filter_map(|arg| arg.get_help().map(ToString::to_string));
        let named = helps.filter_map(|help| {
            let (_, rest) = help.split_once("[env: ")?;
            Some(rest.chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect())
        });
        named.chain(command.get_subcommands().flat_map(variables)).collect()
    }

    #[test]
    fn every_variable_is_in_the_example() {
        let example = include_str!("../../deploy/env.example");
        let variables = variables(&Cli::command());
        assert!(variables.len() > 20, "{variables:?}");
        for variable in variables {
            assert!(example.contains(&format!("#{variable}=")), "{variable}");
        }
    }

    #[test]
    fn data_goes_to_the_users_data_folder() {
        let of = |pairs: &'static [(&str, &str)]| {
            data_home(&move |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, v)| (*v).to_owned()))
        };
        assert_eq!(of(&[("XDG_DATA_HOME", "/d"), ("HOME", "/h")]), std::path::Path::new("/d/gridsocket"));
        assert_eq!(of(&[("HOME", "/h")]), std::path::Path::new("/h/.local/share/gridsocket"));
        assert_eq!(of(&[("HOME", "relative")]), std::path::Path::new("/var/lib/gridsocket"));
    }
}
