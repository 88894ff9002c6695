//! `gridsocket serve`: the broker's options.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use broker::config::Config;

use super::data_home;
use super::setting::{Env, UsageError, setting};

/// Where a broker listens unless told otherwise: this machine only, so that nothing is public by accident.
pub(crate) const LISTEN_DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), super::local::PORT_DEFAULT);

/// Options of `gridsocket serve`; nothing is required.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where to listen; `0.0.0.0:8000` for every network [env: GRIDSOCKET_LISTEN] [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// The folder for the event log, blobs and logs [env: GRIDSOCKET_DATA] [default: ~/.local/share/gridsocket/broker]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    #[command(flatten)]
    broker: super::broker::Args,
}

const EXAMPLES: &str = "\
Examples:
  gridsocket serve
  gridsocket serve --listen 0.0.0.0:8000 --data /var/lib/gridsocket
  GRIDSOCKET_LISTEN=0.0.0.0:8000 GRIDSOCKET_LOG=debug gridsocket serve";

/// Checked options of a broker.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Where to listen.
    pub(crate) listen: SocketAddr,
    /// The broker.
    pub(crate) broker: Config,
}

impl Args {
    /// Applies flag > variable > default.
    pub(crate) fn settings(&self, env: Env<'_>) -> Result<Settings, UsageError> {
        let data = setting("--data", self.data.as_deref(), "GRIDSOCKET_DATA").find(env, folder)?;
        let mut broker = Config::new(data.unwrap_or_else(|| data_home(env).join("broker")));
        self.broker.apply(env, &mut broker)?;
        let listen =
            setting("--listen", self.listen.as_deref(), "GRIDSOCKET_LISTEN").or(env, LISTEN_DEFAULT, listen)?;
        Ok(Settings { listen, broker })
    }
}

/// Reads `ADDR:PORT`; a name that resolves will do.
pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    const RULE: &str = "write an address and a port, such as 127.0.0.1:8000 or 0.0.0.0:8000";
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').ok_or(RULE)?;
    let port: u16 = port.parse().map_err(|_| RULE)?;
    let host = if host.is_empty() { "0.0.0.0" } else { host };
    let mut found = (host, port).to_socket_addrs().map_err(|error| format!("{error}; {RULE}"))?;
    found.next().ok_or_else(|| RULE.to_owned())
}

/// Reads a folder's path.
pub(super) fn folder(text: &str) -> Result<PathBuf, &'static str> {
    if text.is_empty() { Err("write the path of a folder") } else { Ok(text.into()) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use broker::config::{BlobsUrl, Durability};
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn settings(words: &[&str], env: &[(&str, &str)]) -> Result<Settings, UsageError> {
        let cli = Cli::try_parse_from([&["gridsocket", "serve"], words].concat()).unwrap();
        let Some(Command::Serve(args)) = cli.command else { panic!("another command") };
        args.settings(&|name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn nothing_is_required() {
        let settings = settings(&[], &[("HOME", "/h")]).unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:8000");
        assert_eq!(settings.broker.data, Path::new("/h/.local/share/gridsocket/broker"));
        assert_eq!(settings.broker.blobs.folder(), Some(Path::new("/h/.local/share/gridsocket/broker/blobs")));
        assert_eq!(settings.broker.durability, Durability::Fsync);
    }

    fn summary(settings: &Settings) -> [String; 5] {
        let broker = &settings.broker;
        [
            settings.listen.to_string(),
            broker.data.display().to_string(),
            format!("{:?}", broker.blobs),
            format!("{:?}", broker.durability),
            format!("{:?}", broker.public_url),
        ]
    }

    #[test]
    fn each_option_has_a_flag_over_a_variable_over_a_default() {
        let env = [
            ("GRIDSOCKET_LISTEN", "0.0.0.0:1"),
            ("GRIDSOCKET_DATA", "/v"),
            ("GRIDSOCKET_BLOBS", "file:///vb"),
            ("GRIDSOCKET_DURABILITY", "interval"),
            ("GRIDSOCKET_PUBLIC_URL", "https://v"),
        ];
        let folder = |path: &str| format!("{:?}", BlobsUrl::Folder(path.into()));
        let interval = format!("{:?}", Durability::Interval);
        assert_eq!(
            summary(&settings(&[], &env).unwrap()),
            ["0.0.0.0:1", "/v", &folder("/vb"), &interval, "Some(\"https://v\")"]
        );
        let words = [
            "--listen",
            "[::1]:2",
            "--data=/f",
            "--blobs",
            "/fb",
            "--durability",
            "fsync",
            "--public-url",
            "https://f",
        ];
        assert_eq!(
            summary(&settings(&words, &env).unwrap()),
            ["[::1]:2", "/f", &folder("/fb"), "Fsync", "Some(\"https://f\")"]
        );
    }

    #[test]
    fn proxies_are_addresses_and_ranges() {
        let found = |words: &[&str], env: &[(&str, &str)]| settings(words, env).unwrap().broker.trusted_proxies.len();
        assert_eq!(found(&[], &[]), 0);
        assert_eq!(found(&["--trusted-proxy=10.0.0.0/8", "--trusted-proxy", "::1"], &[]), 2);
        assert_eq!(found(&[], &[("GRIDSOCKET_TRUSTED_PROXY", "10.0.0.1, fd00::/8")]), 2);
        assert_eq!(settings(&["--trusted-proxy=x"], &[]).unwrap_err().place, "--trusted-proxy");
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_what_to_write() {
        let refused = settings(&["--listen", "8000"], &[]).unwrap_err();
        assert_eq!(refused.place, "--listen");
        assert!(refused.problem.contains("127.0.0.1:8000"), "{refused}");
        let refused = settings(&[], &[("GRIDSOCKET_DURABILITY", "never")]).unwrap_err();
        assert_eq!(refused.to_string(), "GRIDSOCKET_DURABILITY: \"never\": write fsync or interval");
        assert_eq!(settings(&["--blobs", "gs://bucket"], &[]).unwrap_err().place, "--blobs");
        let refused = settings(&["--limit", "jobs=5"], &[]).unwrap_err();
        assert!(refused.to_string().contains("live-jobs"), "{refused}");
    }

    #[test]
    fn webhooks_reach_private_addresses_only_when_told_so() {
        let reach = |words: &[&str], env: &[(&str, &str)]| settings(words, env).unwrap().broker.webhooks;
        let allowed = |words: &[&str], env: &[(&str, &str)]| reach(words, env).allows_private;
        assert!(!allowed(&[], &[]));
        assert!(allowed(&["--allow-private-webhooks"], &[("GRIDSOCKET_ALLOW_PRIVATE_WEBHOOKS", "false")]));
        assert!(allowed(&[], &[("GRIDSOCKET_ALLOW_PRIVATE_WEBHOOKS", "true")]));
        let refused = settings(&[], &[("GRIDSOCKET_ALLOW_PRIVATE_WEBHOOKS", "maybe")]).unwrap_err();
        assert_eq!(refused.place, "GRIDSOCKET_ALLOW_PRIVATE_WEBHOOKS");
        let exceptions = |words: &[&str], env: &[(&str, &str)]| reach(words, env).exceptions.len();
        assert_eq!(exceptions(&["--allow-webhooks-to=10.0.0.5", "--allow-webhooks-to", "fd00::/8"], &[]), 2);
        assert_eq!(exceptions(&[], &[("GRIDSOCKET_ALLOW_WEBHOOKS_TO", "10.0.0.5")]), 1);
    }

    #[test]
    fn limits_are_set_by_name() {
        let env = [("GRIDSOCKET_LIMITS", "live-jobs=5,lease=2s")];
        let queue = |words: &[&str]| settings(words, &env).unwrap().broker.limits.queue;
        assert_eq!((queue(&[]).live_jobs_max, queue(&[]).lease_ms), (5, 2_000));
        let given = queue(&["--limit", "live-jobs=7", "--limit", "namespaces=3"]);
        assert_eq!((given.live_jobs_max, given.namespaces_max, given.lease_ms), (7, 3, 30_000));
    }
}
