//! `gridsocket local`: the options of the grid in one process.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use worker::ShutdownMode;
use worker::config::{ApiAddress, Config};

use super::serve::folder;
use super::setting::{Env, UsageError, flag_only, port, setting};
use super::{data_home, webhooks, worker as worker_args};

/// The port of local mode, and of a broker.
pub(crate) const PORT_DEFAULT: u16 = 8000;
const PORT: &str = "METAPAGE_IO_WORKER_PORT";
pub(super) const DATA_DIRECTORY: &str = "METAPAGE_IO_WORKER_DATA_DIRECTORY";

/// Options of `gridsocket local`.
#[derive(Debug, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The port of page and interface [env: METAPAGE_IO_WORKER_PORT] [default: 8000]
    #[arg(short, long, value_name = "PORT")]
    pub(super) port: Option<String>,
    /// The address to listen on; `0.0.0.0` lets other machines in [default: 127.0.0.1]
    #[arg(long, value_name = "ADDR")]
    pub(super) listen: Option<String>,
    /// The folder for everything kept, `local` is appended; the same path must be valid for the container engine
    /// [env: METAPAGE_IO_WORKER_DATA_DIRECTORY] [default: ~/.local/share/gridsocket]
    #[arg(short, long, value_name = "DIR")]
    pub(super) data_directory: Option<String>,
    #[command(flatten)]
    pub(super) webhooks: webhooks::Args,
    #[command(flatten)]
    pub(super) worker: worker_args::Args,
}

const EXAMPLES: &str = "\
Examples:
  gridsocket local
  gridsocket local --port 9000 --cpus 4 --gpus all
then, in another terminal:
  gridsocket job add local -c 'echo hello' --wait";

/// Checked options of local mode.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The address to listen on.
    pub(crate) listen: IpAddr,
    /// The port to listen on; 0 lets the system choose.
    pub(crate) port: u16,
    /// The broker's data folder.
    pub(crate) broker_data: PathBuf,
    /// Which addresses webhooks may call.
    pub(crate) webhooks: broker::webhooks::Reach,
    /// The worker; its broker's address is filled in when the port is known.
    pub(crate) worker: Config,
    /// What happens to runs when the worker stops.
    pub(crate) on_exit: ShutdownMode,
    /// Whether to say more in the log.
    pub(crate) debug: bool,
}

impl Args {
    /// Applies flag > variable > default.
    pub(crate) fn settings(&self, env: Env<'_>) -> Result<Settings, UsageError> {
        let data = setting("--data-directory", self.data_directory.as_deref(), DATA_DIRECTORY)
            .find(env, folder)?
            .unwrap_or_else(|| data_home(env))
            .join("local");
        let port = setting("--port", self.port.as_deref(), PORT).or(env, PORT_DEFAULT, port)?;
        let mut worker = Config::new(vec![local_queue()], own_address(port), data.join("worker"));
        self.worker.apply(env, &mut worker)?;
        worker.check().map_err(|error| UsageError::new("--data-directory", error.to_string()))?;
        Ok(Settings {
            listen: flag_only("--listen", self.listen.as_deref()).or(env, IpAddr::V4(Ipv4Addr::LOCALHOST), address)?,
            port,
            broker_data: data.join("broker"),
            webhooks: self.webhooks.reach(env)?,
            on_exit: self.worker.on_exit(env, worker.max_job_duration_ms)?,
            debug: self.worker.debug(env)?,
            worker,
        })
    }
}

/// How this process reaches itself.
pub(crate) fn own_address(port: u16) -> ApiAddress {
    format!("http://localhost:{port}").parse().expect("an address with a port is one")
}

fn local_queue() -> protocol::id::QueueName {
    broker::config::LOCAL_QUEUE.parse().expect("the local queue's name is a name")
}

fn address(text: &str) -> Result<IpAddr, &'static str> {
    text.parse().map_err(|_| "write an IP address such as 127.0.0.1 or 0.0.0.0; the port has its own flag, --port")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn settings(words: &[&str], env: &[(&str, &str)]) -> Result<Settings, UsageError> {
        let cli = Cli::try_parse_from([&["gridsocket", "local"], words].concat()).unwrap();
        let Some(Command::Local(args)) = cli.command else { panic!("another command") };
        args.settings(&|name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn local_mode_listens_to_this_machine_only_unless_told() {
        let default = settings(&[], &[("HOME", "/h")]).unwrap();
        assert_eq!((default.listen.to_string().as_str(), default.port), ("127.0.0.1", 8000));
        assert_eq!(default.broker_data, Path::new("/h/.local/share/gridsocket/local/broker"));
        assert_eq!(default.worker.data_directory, Path::new("/h/.local/share/gridsocket/local/worker"));
        assert_eq!(default.worker.queues, [local_queue()]);
        assert!(settings(&["--listen", "0.0.0.0"], &[]).unwrap().listen.is_unspecified());
        assert!(settings(&["--listen", "0.0.0.0:80"], &[]).is_err());
    }

    #[test]
    fn flags_win_over_variables() {
        let env = [
            ("METAPAGE_IO_WORKER_PORT", "1"),
            ("METAPAGE_IO_WORKER_CPUS", "2"),
            ("METAPAGE_IO_WORKER_DATA_DIRECTORY", "/env"),
        ];
        let from_env = settings(&[], &env).unwrap();
        assert_eq!((from_env.port, from_env.worker.cpus), (1, 2));
        assert_eq!(from_env.broker_data, Path::new("/env/local/broker"));
        let from_flags = settings(&["--port", "3", "-c4", "-d", "/flag"], &env).unwrap();
        assert_eq!((from_flags.port, from_flags.worker.cpus), (3, 4));
        assert_eq!(from_flags.broker_data, Path::new("/flag/local/broker"));
    }

    #[test]
    fn a_folder_that_the_engine_cannot_see_by_that_name_is_refused() {
        assert_eq!(settings(&["-d", "relative"], &[]).unwrap_err().place, "--data-directory");
    }
}
