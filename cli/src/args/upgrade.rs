//! `gridsocket worker upgrade`: which containers, and what they become.

use std::time::Duration;

use worker::config::parse_duration_ms;
use worker::upgrade::{PATIENCE, STEADY, Target, Upgrade};

use super::images;
use super::setting::{Env, UsageError, flag_only};

const DOCKER_HOST: &str = "DOCKER_HOST";

/// Options of `gridsocket worker`.
#[derive(Debug, clap::Args)]
pub(crate) struct Worker {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What is done to workers in containers.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Give workers that run in containers a newer image, and take it back where the new one does not become well
    Upgrade(Args),
}

/// Options of `gridsocket worker upgrade`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The containers, by name [default: all here that run a worker, the original's or this one]
    #[arg(value_name = "CONTAINER")]
    names: Vec<String>,
    /// The tag of the new image; without it, what the old name means today
    #[arg(short, long, value_name = "TAG", conflicts_with = "image")]
    version: Option<String>,
    /// The new image, by its whole name; also from the original's to this one
    #[arg(short, long, value_name = "IMAGE")]
    image: Option<String>,
    /// How long a new container may take to be well, by its image's own check [default: 60s]
    #[arg(long, value_name = "DURATION")]
    timeout: Option<String>,
    /// How long a new container without such a check has to run to count as well [default: 5s]
    #[arg(long, value_name = "DURATION")]
    steady: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  gridsocket worker upgrade              all, where the image has become newer
  gridsocket worker upgrade --version 1.4.0
  gridsocket worker upgrade my-worker --image gridsocket/worker:1.4.0

Mounts, variables, labels, ports, devices, networks, limits and restart policy
are kept. The old container is renamed and stopped; its jobs run on, and the new
one takes them over. If that does not become well, the old one comes back, and
the command ends with 1. An upgrade that was interrupted is finished, or taken
back, by the next.";

impl Args {
    /// Applies flag > default.
    pub(crate) fn settings(&self, env: Env<'_>) -> Result<Upgrade, UsageError> {
        let duration = |text: &str| parse_duration_ms(text).map(Duration::from_millis);
        let target = match (&self.image, &self.version) {
            (Some(_), _) => flag_only("--image", self.image.as_deref()).find(env, image)?.map(Target::Image),
            (None, Some(_)) => flag_only("--version", self.version.as_deref()).find(env, tag)?.map(Target::Version),
            (None, None) => None,
        };
        Ok(Upgrade {
            docker_host: env(DOCKER_HOST).filter(|host| !host.trim().is_empty()),
            names: self.names.clone(),
            target: target.unwrap_or(Target::Same),
            patience: flag_only("--timeout", self.timeout.as_deref()).or(env, PATIENCE, duration)?,
            steady: flag_only("--steady", self.steady.as_deref()).or(env, STEADY, duration)?,
            images: images::Args::default().images(env)?,
        })
    }
}

fn image(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() { Err("write an image such as gridsocket/worker:1.4.0") } else { Ok(text.to_owned()) }
}

/// A tag by the rule of registries; a `v` before a version is the writer's.
fn tag(text: &str) -> Result<String, &'static str> {
    const CHARS_MAX: usize = 128;
    let is_word = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_tag = (1..=CHARS_MAX).contains(&text.len()) && text.chars().all(is_word) && !text.starts_with(['.', '-']);
    if is_tag { Ok(text.to_owned()) } else { Err("write a tag such as 1.4.0; --image takes a whole name") }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Cli;

    fn settings(words: &[&str]) -> Result<Upgrade, UsageError> {
        let cli = Cli::try_parse_from([&["gridsocket", "worker", "upgrade"], words].concat()).unwrap();
        let Some(crate::args::Command::Worker(Worker { command: Command::Upgrade(args) })) = cli.command else {
            panic!("another command")
        };
        args.settings(&|name| (name == DOCKER_HOST).then(|| "unix:///s".to_owned()))
    }

    #[test]
    fn the_next_image_is_the_same_name_anew_or_a_tag_or_a_whole_name() {
        let target = |words: &[&str]| settings(words).unwrap().target;
        assert_eq!(target(&[]), Target::Same);
        assert_eq!(target(&["-v", "1.4.0"]), Target::Version("1.4.0".into()));
        assert_eq!(target(&["w", "--image", "a:1"]), Target::Image("a:1".into()));
        let given = settings(&["w", "x", "--timeout", "2m", "--steady=1s"]).unwrap();
        assert_eq!(given.names, ["w", "x"]);
        assert_eq!((given.patience.as_secs(), given.steady.as_secs()), (120, 1));
        assert_eq!(given.docker_host.as_deref(), Some("unix:///s"));
        for bad in ["", "a:1", ".x", "a/b"] {
            assert_eq!(settings(&["--version", bad]).unwrap_err().place, "--version", "{bad}");
        }
    }
}
