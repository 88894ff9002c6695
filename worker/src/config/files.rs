//! What a worker does about the files of jobs.

use std::str::FromStr;

use super::INTERNET_ONLY;

/// How many bytes of fetched inputs a worker keeps for later jobs: a few models, on a laptop's disk.
pub const INPUT_CACHE_BYTES_DEFAULT: u64 = 20 << 30;

/// What a worker does about the files of jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileConfig {
    /// Bytes of inputs that are kept for later jobs; `None`: all of them.
    pub cache_bytes_max: Option<u64>,
    /// Whether jobs may name private addresses to fetch from.
    pub fetch_private: FetchPrivate,
}

impl Default for FileConfig {
    fn default() -> Self {
        Self { cache_bytes_max: Some(INPUT_CACHE_BYTES_DEFAULT), fetch_private: FetchPrivate::AsContainers }
    }
}

/// Whether the worker fetches from private addresses, other than the broker's own, because a job names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FetchPrivate {
    /// As jobs' containers may: not where these are kept from private networks or have none.
    #[default]
    AsContainers,
    /// It does.
    Allow,
    /// It does not.
    Refuse,
}

impl FetchPrivate {
    /// Whether it does, beside containers on that network.
    #[must_use]
    pub fn is_allowed(self, network: Option<&str>) -> bool {
        match self {
            Self::Allow => true,
            Self::Refuse => false,
            Self::AsContainers => !matches!(network, Some("none" | INTERNET_ONLY)),
        }
    }
}

impl FromStr for FetchPrivate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "allow" => Ok(Self::Allow),
            "refuse" => Ok(Self::Refuse),
            _ => Err("write allow or refuse"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_reaches_for_jobs_what_their_containers_reach_unless_it_is_told() {
        let by_default = |network| FetchPrivate::default().is_allowed(network);
        assert!(by_default(None) && by_default(Some("lan")));
        assert!(!by_default(Some("none")) && !by_default(Some(INTERNET_ONLY)));
        assert_eq!("allow".parse::<FetchPrivate>().map(|told| told.is_allowed(Some("none"))), Ok(true));
        assert_eq!("refuse".parse::<FetchPrivate>().map(|told| told.is_allowed(None)), Ok(false));
        assert!("".parse::<FetchPrivate>().is_err());
    }
}
