//! `gridsocket local`: the options of the grid in one process.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use broker::config::Flavour;
use worker::ShutdownMode;
use worker::config::{ApiAddress, Config};

use super::broker::joined;
use super::serve::folder;
use super::setting::{Env, UsageError, base_url, port, setting};
use super::{broker as broker_args, data_home, worker as worker_args};

/// The port of local mode, and of a broker.
pub(crate) const PORT_DEFAULT: u16 = 8000;
const PORT: &str = "METAPAGE_IO_WORKER_PORT";
const LISTEN: &str = "METAPAGE_IO_WORKER_LISTEN";
const ALLOW_ORIGIN: &str = "GRIDSOCKET_ALLOW_ORIGIN";
pub(super) const DATA_DIRECTORY: &str = "METAPAGE_IO_WORKER_DATA_DIRECTORY";

/// Options of `gridsocket local`.
#[derive(Debug, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The port of page and interface [env: METAPAGE_IO_WORKER_PORT] [default: 8000]
    #[arg(short, long, value_name = "PORT")]
    pub(super) port: Option<String>,
    /// The address to listen on; `0.0.0.0` lets other machines in [env: METAPAGE_IO_WORKER_LISTEN] [default: 127.0.0.1, in the
    /// container image 0.0.0.0]
    #[arg(long, value_name = "ADDR")]
    pub(super) listen: Option<String>,
    /// Let pages of this origin use the grid, such as `https://app.example`, besides its own page, pages of this machine and
    /// https://container.mtfm.io; may be repeated [env: GRIDSOCKET_ALLOW_ORIGIN, apart by commas]
    #[arg(long = "allow-origin", value_name = "ORIGIN")]
    pub(super) allow_origins: Vec<String>,
    /// The folder for everything kept, `local` is appended; the same path must be valid for the container engine
    /// [env: METAPAGE_IO_WORKER_DATA_DIRECTORY] [default: ~/.local/share/gridsocket]
    #[arg(short, long, value_name = "DIR")]
    pub(super) data_directory: Option<String>,
    #[command(flatten)]
    pub(super) broker: broker_args::Args,
    #[command(flatten)]
    pub(super) worker: worker_args::Args,
}

const EXAMPLES: &str = "\
Examples:
  gridsocket local
  gridsocket local --port 9000 --cpus 4 --gpus all
  gridsocket local --listen 0.0.0.0 --allow-origin https://app.example
then, in another terminal:
  gridsocket job add local -c 'echo hello' --wait";

/// Checked options of local mode.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The address to listen on.
    pub(crate) listen: IpAddr,
    /// The port to listen on; 0 lets the system choose.
    pub(crate) port: u16,
    /// The broker.
    pub(crate) broker: broker::config::Config,
    /// The folder that both keep their data in.
    pub(crate) data: PathBuf,
    /// The worker; its broker's address is filled in when the port is known.
    pub(crate) worker: Config,
    /// What happens to runs when the worker stops.
    pub(crate) on_exit: ShutdownMode,
    /// Whether to say more in the log.
    pub(crate) debug: bool,
    /// What is seen of it meanwhile.
    pub(crate) console: worker_args::Console,
}

impl Args {
    /// Applies flag > variable > default.
    pub(crate) fn settings(&self, env: Env<'_>) -> Result<Settings, UsageError> {
        let data = setting("--data-directory", self.data_directory.as_deref(), DATA_DIRECTORY)
            .find(env, folder)?
            .unwrap_or_else(|| data_home(env))
            .join("local");
        let port = setting("--port", self.port.as_deref(), PORT).or(env, PORT_DEFAULT, port)?;
        let mut broker = broker::config::Config::new(data.join("broker"));
        broker.flavour = Flavour::Local;
        self.broker.apply(env, &mut broker)?;
        let given = joined(&self.allow_origins);
        let given = setting("--allow-origin", given.as_deref(), ALLOW_ORIGIN).or(env, Vec::new(), origins)?;
        broker.allowed_origins.extend(given);
        let mut worker = Config::new(vec![local_queue()], own_address(port), data.join("worker"));
        // What stands in the addresses of outputs: this machine's name for itself means nothing elsewhere.
        worker.public_api = broker.public_url.as_deref().and_then(|url| url.parse().ok());
        self.worker.apply(env, &mut worker)?;
        worker.check().map_err(|error| UsageError::new("--data-directory", error.to_string()))?;
        let listen = setting("--listen", self.listen.as_deref(), LISTEN);
        Ok(Settings {
            listen: listen.or(env, IpAddr::V4(Ipv4Addr::LOCALHOST), address)?,
            port,
            broker,
            data,
            on_exit: self.worker.on_exit(env, worker.max_job_duration_ms)?,
            debug: self.worker.debug(env)?,
            console: self.worker.console(),
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

/// Reads origins with commas between them: what a browser says of where a page is from, which has no path.
fn origins(text: &str) -> Result<Vec<String>, String> {
    let origin = |part: &str| {
        let rule = || format!("{part:?}: an origin is written as https://app.example or http://localhost:5173");
        let base = base_url(part).map_err(|_| rule())?;
        let is_origin = base.split_once("://").is_some_and(|(_, rest)| !rest.contains(['/', '@', '*']));
        if is_origin { Ok(base) } else { Err(rule()) }
    };
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(origin).collect()
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
        assert_eq!(default.broker.data, Path::new("/h/.local/share/gridsocket/local/broker"));
        assert_eq!(default.worker.data_directory, Path::new("/h/.local/share/gridsocket/local/worker"));
        assert_eq!(default.worker.queues, [local_queue()]);
        assert_eq!(default.broker.flavour, Flavour::Local);
        assert!(settings(&["--listen", "0.0.0.0"], &[]).unwrap().listen.is_unspecified());
        let in_image = [("METAPAGE_IO_WORKER_LISTEN", "0.0.0.0")];
        assert!(settings(&[], &in_image).unwrap().listen.is_unspecified());
        assert!(settings(&["--listen", "::1"], &in_image).unwrap().listen.is_loopback());
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
        assert_eq!(from_env.broker.data, Path::new("/env/local/broker"));
        let from_flags = settings(&["--port", "3", "-c4", "-d", "/flag"], &env).unwrap();
        assert_eq!((from_flags.port, from_flags.worker.cpus), (3, 4));
        assert_eq!(from_flags.broker.data, Path::new("/flag/local/broker"));
    }

    #[test]
    fn local_mode_takes_what_a_broker_takes() {
        let words = [
            "--public-url=https://grid.example/",
            "--limit=live-jobs=7",
            "--blobs=/blobs",
            "--durability=interval",
            "--trusted-proxy=10.0.0.1",
            "--allow-private-webhooks",
        ];
        let given = settings(&words, &[]).unwrap();
        let broker = given.broker;
        assert_eq!(broker.public_url.as_deref(), Some("https://grid.example"));
        assert_eq!(given.worker.public_api.unwrap().to_string(), "https://grid.example");
        assert_eq!(broker.limits.queue.live_jobs_max, 7);
        assert_eq!(broker.blobs.folder(), Some(Path::new("/blobs")));
        assert_eq!(broker.durability, broker::config::Durability::Interval);
        assert_eq!((broker.trusted_proxies.len(), broker.webhooks.allows_private), (1, true));
        let from_env = settings(&[], &[("GRIDSOCKET_LIMITS", "live-jobs=8")]).unwrap();
        assert_eq!(from_env.broker.limits.queue.live_jobs_max, 8);
    }

    #[test]
    fn origins_are_added_to_the_public_clients() {
        let origins = |words: &[&str], env: &[(&str, &str)]| settings(words, env).unwrap().broker.allowed_origins;
        let public = "https://container.mtfm.io";
        assert_eq!(origins(&[], &[]), [public]);
        let two = ["--allow-origin=https://a.example/", "--allow-origin", "http://b.example:81"];
        assert_eq!(origins(&two, &[]), [public, "https://a.example", "http://b.example:81"]);
        let env = [("GRIDSOCKET_ALLOW_ORIGIN", "https://c.example, https://d.example")];
        assert_eq!(origins(&[], &env), [public, "https://c.example", "https://d.example"]);
        for bad in ["*", "app.example", "https://a.example/page", "https://me@a.example", "https://*.example", "null"] {
            let refused = settings(&["--allow-origin", bad], &[]).unwrap_err();
            assert_eq!(refused.place, "--allow-origin", "{bad}");
            assert!(refused.problem.contains("https://app.example"), "{refused}");
        }
    }

    #[test]
    fn a_folder_that_the_engine_cannot_see_by_that_name_is_refused() {
        assert_eq!(settings(&["-d", "relative"], &[]).unwrap_err().place, "--data-directory");
    }
}
