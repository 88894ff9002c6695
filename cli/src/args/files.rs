//! The worker's options about the files of jobs: how much of the inputs is kept, and where they may come from.

use worker::config::{FetchPrivate, FileConfig};

use super::images::cache_size;
use super::setting::{Env, UsageError, setting};

const INPUT_CACHE: &str = "METAPAGE_IO_WORKER_INPUT_CACHE";
const FETCH_PRIVATE: &str = "METAPAGE_IO_WORKER_FETCH_PRIVATE";

/// How the help groups them.
const FILES: &str = "Files of jobs";

/// Options of a worker about the files of jobs.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// How much is kept of fetched inputs for later jobs, such as `20g`, or `all`; beyond that, those unused for longest go
    /// [env: METAPAGE_IO_WORKER_INPUT_CACHE] [default: 20g]
    #[arg(long, value_name = "SIZE", help_heading = FILES)]
    input_cache: Option<String>,
    /// Whether the worker fetches inputs and build contexts from private addresses that jobs name, other than the broker's:
    /// `allow` or `refuse` [env: METAPAGE_IO_WORKER_FETCH_PRIVATE] [default: refuse with --network none and internet-only]
    #[arg(long, value_name = "WHAT", help_heading = FILES)]
    fetch_private: Option<String>,
}

impl Args {
    /// The options about files, by flag > variable > default.
    pub(super) fn files(&self, env: Env<'_>) -> Result<FileConfig, UsageError> {
        let defaults = FileConfig::default();
        let cache = setting("--input-cache", self.input_cache.as_deref(), INPUT_CACHE);
        let private = setting("--fetch-private", self.fetch_private.as_deref(), FETCH_PRIVATE);
        Ok(FileConfig {
            cache_bytes_max: cache.or(env, defaults.cache_bytes_max, cache_size)?,
            fetch_private: private.or(env, defaults.fetch_private, str::parse::<FetchPrivate>)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_wins_over_a_variable_over_the_default() {
        let env = |name: &str| match name {
            INPUT_CACHE => Some("1g".to_owned()),
            FETCH_PRIVATE => Some("refuse".to_owned()),
            _ => None,
        };
        let by_default = Args::default().files(&|_: &str| None).unwrap();
        assert_eq!(by_default, FileConfig::default());
        let by_variable = Args::default().files(&env).unwrap();
        let expected = FileConfig { cache_bytes_max: Some(1 << 30), fetch_private: FetchPrivate::Refuse };
        assert_eq!(by_variable, expected);
        let given = Args { input_cache: Some("all".to_owned()), fetch_private: Some("allow".to_owned()) };
        let expected = FileConfig { cache_bytes_max: None, fetch_private: FetchPrivate::Allow };
        assert_eq!(given.files(&env).unwrap(), expected);
        let wrong = Args { input_cache: None, fetch_private: Some("yes".to_owned()) };
        assert!(wrong.files(&env).is_err());
    }
}
