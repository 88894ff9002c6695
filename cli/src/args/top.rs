//! `gridsocket top`: which worker is looked at, and how.

use std::path::PathBuf;

use super::setting::{Env, UsageError, setting};
use super::{data_home, local, run, serve::folder};

/// Options of `gridsocket top`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The worker's data directory, as it was given to `run` or `local`
    /// [env: METAPAGE_IO_WORKER_DATA_DIRECTORY] [default: where those keep theirs]
    #[arg(short, long, value_name = "DIR")]
    data_directory: Option<String>,
    /// Print how it stands once, and end
    #[arg(long)]
    once: bool,
    /// Print how it stands once as JSON, and end
    #[arg(long, conflicts_with = "once")]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  gridsocket top                       q ends the view, not the worker
  gridsocket top -d /data --once       the same as text, once
  gridsocket top --json | jq .counts   for programs

It is for whoever runs the worker: it reads a socket in the data directory that
nobody else may open.";

/// How it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// Live, where there is a terminal.
    Live,
    /// Once, as text.
    Once,
    /// Once, as JSON.
    Json,
}

/// Checked options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The folders in which a worker may be, the likeliest first.
    pub(crate) folders: Vec<PathBuf>,
    /// How it is shown.
    pub(crate) show: Show,
}

impl Args {
    /// Applies flag > variable > default.
    pub(crate) fn settings(&self, env: Env<'_>) -> Result<Settings, UsageError> {
        let given = setting("--data-directory", self.data_directory.as_deref(), local::DATA_DIRECTORY);
        let folders = match given.find(env, folder)? {
            // As it was given to either command, or the very folder.
            Some(given) => vec![given.join("remote"), given.join("local/worker"), given],
            None => {
                vec![PathBuf::from(run::DATA_DIRECTORY_DEFAULT).join("remote"), data_home(env).join("local/worker")]
            }
        };
        let show = match (self.once, self.json) {
            (_, true) => Show::Json,
            (true, false) => Show::Once,
            (false, false) => Show::Live,
        };
        Ok(Settings { folders, show })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn settings(words: &[&str], env: &[(&str, &str)]) -> Settings {
        let cli = Cli::try_parse_from([&["gridsocket", "top"], words].concat()).unwrap();
        let Some(Command::Top(args)) = cli.command else { panic!("another command") };
        args.settings(&|name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())).unwrap()
    }

    #[test]
    fn a_worker_is_looked_for_where_run_and_local_keep_theirs() {
        let default = settings(&[], &[("HOME", "/h")]);
        let expected = ["/tmp/worker-metapage-io/remote", "/h/.local/share/gridsocket/local/worker"];
        assert_eq!(default.folders, expected.map(PathBuf::from));
        assert_eq!(default.show, Show::Live);
        let given = settings(&["-d", "/d", "--once"], &[("METAPAGE_IO_WORKER_DATA_DIRECTORY", "/env")]);
        assert_eq!(given.folders, ["/d/remote", "/d/local/worker", "/d"].map(PathBuf::from));
        assert_eq!(given.show, Show::Once);
        let env = settings(&["--json"], &[("METAPAGE_IO_WORKER_DATA_DIRECTORY", "/env")]);
        assert_eq!((env.folders[0].as_path(), env.show), (Path::new("/env/remote"), Show::Json));
    }
}
