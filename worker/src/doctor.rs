//! Whether a worker could work here: what it needs of its machine, its container engine and its broker, looked at without taking
//! a job, and without leaving anything behind.
//!
//! What was seen becomes [`Finding`]s, which are data; what an answer means is decided by pure functions, a function for each
//! check. All are asked at once, and nothing is waited for longer than its time.

mod broker;
mod data;
mod date;
mod engine;
mod gpus;
mod machine;
mod network;
mod socket;

use std::time::Duration;

use serde::Serialize;

use crate::config::{Config, DOCKER_HOST_DEFAULT};

pub(crate) use gpus::doubt as gpus_doubt;
pub(crate) use network::others_than;

/// How long one question may take: what needs longer is no help to jobs either.
const QUESTION: Duration = Duration::from_secs(10);

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// A worker works, but not everything does.
    Warn,
    /// A worker does not work so.
    Fail,
}

/// What one check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, a word or two; the same in every version.
    pub check: &'static str,
    /// How much it matters.
    pub level: Level,
    /// What was seen, and what that means.
    pub seen: String,
    /// What to do about it; there is some wherever something is not as it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &'static str, seen: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, seen: seen.into(), advice: None }
    }

    /// Not everything will work.
    pub fn warn(check: &'static str, seen: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Warn, seen: seen.into(), advice: Some(advice.into()) }
    }

    /// Nothing will work.
    pub fn fail(check: &'static str, seen: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Fail, seen: seen.into(), advice: Some(advice.into()) }
    }
}

/// Looks at everything that a worker with this configuration needs. `with_broker`: also at its broker.
pub async fn examine(config: &Config, with_broker: bool) -> Vec<Finding> {
    let host = config.docker_host.as_deref().unwrap_or(DOCKER_HOST_DEFAULT);
    let folder = async {
        match data::open(&config.data_directory).await {
            Ok((folder, finding)) => (Some(folder), vec![finding]),
            Err(finding) => (None, vec![finding]),
        }
    };
    let around_engine = async {
        let (reached, (folder, mut about_folder)) = tokio::join!(engine::reach(host), folder);
        let mut findings = Vec::new();
        let mut places = vec![config.data_directory.clone()];
        match reached {
            Err(finding) => findings.push(finding),
            Ok(reached) => {
                places.extend(reached.root(host));
                let (about_network, shared) = tokio::join!(
                    network::look(&reached, config.network.as_deref()),
                    data::shared(&reached, folder.as_ref())
                );
                findings.extend(reached.findings(host));
                findings.extend(engine::about(&reached.info, config));
                findings.push(gpus::look(&reached, host, &config.gpus));
                findings.push(about_network);
                about_folder.extend(shared);
            }
        }
        let disks = data::disks(places, config.min_free_disk_bytes).await;
        drop(folder);
        findings.into_iter().chain(about_folder).chain(disks).collect::<Vec<_>>()
    };
    let about_broker = async { if with_broker { broker::look(config).await } else { Vec::new() } };
    let (engine, broker, machine) = tokio::join!(around_engine, about_broker, machine::look(config));
    [engine, broker, machine].concat()
}
