//! The network for jobs: whether it is there, or could be made.

use std::process::Stdio;

use bollard::errors::Error;
use bollard::query_parameters::ListNetworksOptions;
use tokio::process::Command;
use tokio::time::timeout;

use super::engine::Reached;
use super::{Finding, QUESTION};
use crate::config::INTERNET_ONLY;
use crate::container::{Engine, is_not_found};

const CHECK: &str = "network";
/// The chain that engines leave to others.
const ENGINE_CHAIN: &str = "DOCKER-USER";

/// The engine's networks, if none is called `name`.
pub(crate) async fn others_than(engine: &Engine, name: &str) -> Result<Option<Vec<String>>, Error> {
    match engine.docker().inspect_network(name, None).await {
        Ok(_) => Ok(None),
        Err(error) if is_not_found(&error) => {
            let all = engine.docker().list_networks(None::<ListNetworksOptions>).await?;
            let mut names: Vec<String> = all.into_iter().filter_map(|network| network.name).collect();
            names.sort_unstable();
            Ok(Some(names))
        }
        Err(error) => Err(error),
    }
}

/// Looks at the network that jobs are to be on.
pub(super) async fn look(reached: &Reached, name: Option<&str>) -> Finding {
    match name {
        None => Finding::ok(CHECK, "a bridge of the workers' own, from which jobs reach what this machine reaches"),
        Some("none") => Finding::ok(CHECK, "none for jobs"),
        Some(INTERNET_ONLY) => {
            let is_root = rustix::process::geteuid().is_root();
            about_internet_only(is_root, filter().await)
        }
        Some(name) => match timeout(QUESTION, others_than(&reached.engine, name)).await {
            Ok(Ok(None)) => Finding::ok(CHECK, format!("the engine has {name:?}")),
            Ok(Ok(Some(others))) => Finding::fail(
                CHECK,
                format!("the engine has no network {name:?}, only {}", others.join(", ")),
                format!("make it with `docker network create {name}`, or choose another with --network"),
            ),
            Ok(Err(error)) => {
                Finding::warn(CHECK, format!("the engine does not tell of {name:?}: {error}"), "ask again")
            }
            Err(_) => Finding::warn(CHECK, format!("the engine does not tell of {name:?}"), "ask again"),
        },
    }
}

/// What `iptables` says of the engine's chain.
enum Filter {
    Stands,
    NoProgram,
    NoChain(String),
}

async fn filter() -> Filter {
    let mut command = Command::new("iptables");
    command
        .args(["-w", "-n", "-L", ENGINE_CHAIN])
        .env("PATH", super::machine::SYSTEM_PATH)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    match timeout(QUESTION, command.output()).await {
        Ok(Ok(said)) if said.status.success() => Filter::Stands,
        Ok(Ok(said)) => {
            let text = String::from_utf8_lossy(&said.stderr);
            Filter::NoChain(text.lines().next().unwrap_or_default().chars().take(200).collect())
        }
        Ok(Err(_)) => Filter::NoProgram,
        Err(_) => Filter::NoChain("it did not end".to_owned()),
    }
}

fn about_internet_only(is_root: bool, filter: Filter) -> Finding {
    let container = "in a container: an image with iptables, --network host --cap-add NET_ADMIN";
    let fail = |seen: &str, advice: String| {
        Finding::fail(CHECK, format!("--network {INTERNET_ONLY} is not possible: {seen}"), advice)
    };
    match filter {
        Filter::NoProgram => fail("`iptables` is not installed here", format!("install it; {container}")),
        _ if !is_root => fail("it needs root", format!("run the worker as root; {container}")),
        Filter::NoChain(said) => fail(
            &format!("there is no chain {ENGINE_CHAIN} here ({said})"),
            format!(
                "the worker has to be in the engine's network namespace, and the engine must not run with --iptables=false; {container}"
            ),
        ),
        Filter::Stands => {
            Finding::ok(CHECK, "jobs can be kept to the internet: iptables, root and the engine's chain are there")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn each_thing_that_keeping_jobs_in_needs_is_told_by_name() {
        assert_eq!(about_internet_only(true, Filter::Stands).level, Level::Ok);
        for (found, word) in [
            (about_internet_only(true, Filter::NoProgram), "install"),
            (about_internet_only(false, Filter::Stands), "root"),
            (about_internet_only(true, Filter::NoChain("No chain".into())), "namespace"),
        ] {
            assert!(found.level == Level::Fail && found.advice.as_ref().unwrap().contains(word), "{found:?}");
        }
    }
}
