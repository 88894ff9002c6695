//! The command line: what may be written, and the checked settings that come of it.
//!
//! clap reads words into the raw structs here; each of them has one `settings` that applies *flag > variable > default*
//! and refuses what cannot be used, naming the place and saying what to write. Nothing below this floor reads a flag or a
//! variable.

pub(crate) mod audit;
mod blobs;
mod images;
pub(crate) mod job;
pub(crate) mod local;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod setting;
pub(crate) mod webhooks;
pub(crate) mod worker;

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
    /// Submit jobs and see what became of them
    Job(job::Args),
    /// Read a queue's event log: what happened, is it intact, what was the state at a time
    Audit(audit::Args),
    /// Print what a queue's webhooks are signed with; nothing is asked, it is computed from the name
    WebhookSecret(webhooks::Secret),
}

const EXAMPLES: &str = "\
Examples:
  gridsocket local                                      a whole grid here: http://localhost:8000
  gridsocket job add local -c 'echo hello' --wait       a command in a container, and its output
  gridsocket job add local --file main.py --image python:3.12-slim -c 'python /inputs/main.py' -w
  gridsocket serve --listen 0.0.0.0:8000                a broker for others
  gridsocket run my-secret-queue --api-address http://broker.example:8000 --cpus 4

A queue is a name in a URL and exists when it is first used. Whoever knows the name may use the
queue: for anything but `local`, take one that cannot be guessed.";

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
