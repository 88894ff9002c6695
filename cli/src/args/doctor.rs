//! `gridsocket doctor`: what is looked at: a worker as `gridsocket run` would start it with the same words.

use worker::Config;

use super::run;
use super::setting::{Env, UsageError};

/// Options of `gridsocket doctor`.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: run::Args,
}

const EXAMPLES: &str = "\
Examples:
  gridsocket doctor                   this machine, and the public broker
  gridsocket doctor -a http://broker.example:8000
  gridsocket doctor my-queue --gpus all --network internet-only --job-memory 4g
  gridsocket doctor --mode=local      for `gridsocket local`
  gridsocket doctor --json | jq '.findings[] | select(.level != \"ok\")'

It takes the words and variables of `gridsocket run`, takes no job, and leaves
nothing behind. It ends with 0 if a worker works so, perhaps with warnings, and
with 1 if it does not.";

/// Checked options.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The worker that would be started.
    pub(crate) worker: Config,
    /// Where it would listen, if it were its own broker.
    pub(crate) listen: Option<std::net::SocketAddr>,
    /// Whether the findings are for programs.
    pub(crate) is_json: bool,
    /// Whether colours are unwanted, whatever the terminal can.
    pub(crate) is_plain: bool,
}

impl Args {
    /// As `gridsocket run` reads it, except that no queue has to be said: what is looked at is the same for all.
    pub(crate) fn settings(&self, env: Env<'_>) -> Result<Settings, UsageError> {
        // One that nobody else has.
        let stand_in = format!("gridsocket-doctor-{}", std::process::id());
        let with_queue = |name: &str| {
            let value = env(name).filter(|value| !value.trim().is_empty());
            value.or_else(|| (name == run::QUEUE).then(|| stand_in.clone()))
        };
        let (worker, listen) = match self.run.settings(&with_queue)? {
            run::Settings::Remote(remote) => (remote.worker, None),
            run::Settings::Local(local) => (local.worker, Some((local.listen, local.port).into())),
        };
        let is_plain =
            env("NO_COLOR").is_some_and(|value| !value.is_empty()) || env("TERM").is_some_and(|term| term == "dumb");
        Ok(Settings { worker, listen, is_json: self.json, is_plain })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn settings(words: &[&str], env: &[(&str, &str)]) -> Result<Settings, UsageError> {
        let cli = Cli::try_parse_from([&["gridsocket", "doctor"], words].concat()).unwrap();
        let Some(Command::Doctor(args)) = cli.command else { panic!("another command") };
        args.settings(&|name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn it_takes_the_words_of_run_and_needs_no_queue() {
        let given = settings(&["q", "-a", "http://b.example:1", "--gpus", "2", "--json"], &[]).unwrap();
        assert_eq!((given.worker.queues[0].as_str(), given.worker.api.as_str()), ("q", "http://b.example:1"));
        assert!(given.is_json && given.listen.is_none() && !given.is_plain);
        assert!(settings(&[], &[]).unwrap().worker.queues[0].as_str().starts_with("gridsocket-doctor-"));
        let named = settings(&[], &[("METAPAGE_IO_WORKER_QUEUE", "mine"), ("NO_COLOR", "1")]).unwrap();
        assert_eq!((named.worker.queues[0].as_str(), named.is_plain), ("mine", true));
        assert_eq!(settings(&["--cpus", "0"], &[]).unwrap_err().place, "--cpus");
        let local = settings(&["--mode=local", "-p", "9000"], &[]).unwrap();
        assert_eq!(local.listen, Some(([127, 0, 0, 1], 9000).into()));
    }
}
