//! This machine: programs that some jobs need, logins to registries, and how much one process may open.

use std::process::Stdio;

use rustix::process::{Resource, getrlimit};
use tokio::process::Command;
use tokio::time::timeout;

use super::{Finding, QUESTION};
use crate::config::Config;
use crate::images::{Helpers, helpers};

/// Where the system's own programs are, whatever this process was started with.
pub(super) const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a worker has open by itself, and what a run has: sockets to the engine, files, transfers.
const FILES_OWN: u64 = 128;
const FILES_PER_RUN: u64 = 32;

pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let (git, logins) = tokio::join!(git(config.builds.at_once), logins(config));
    vec![logins, git, about_files(getrlimit(Resource::Nofile).current, config.cpus)]
}

/// Whether a program can be started at all; what it says to that does not matter.
async fn is_there(program: &str, word: &str) -> bool {
    let mut command = Command::new(program);
    command.arg(word).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let Ok(mut child) = command.spawn() else { return false };
    // One that hangs is there.
    let _ = timeout(QUESTION, child.wait()).await;
    true
}

async fn git(builds: u32) -> Finding {
    about_git(is_there("git", "--version").await, builds)
}

fn about_git(is_there: bool, builds: u32) -> Finding {
    match (is_there, builds) {
        (true, _) => Finding::ok("git", "installed: images can be built from repositories of any host"),
        (false, 0) => Finding::ok("git", "not installed, and not needed: this worker builds no images"),
        (false, _) => Finding::warn(
            "git",
            "not installed: jobs whose image is built from a `….git` address fail; those from github.com and archives work",
            "install git where the worker runs, if such jobs matter",
        ),
    }
}

async fn logins(config: &Config) -> Finding {
    let given = config.images.logins.len();
    let Helpers { registries, programs, problem } = helpers(config.images.docker_config.as_deref()).await;
    let mut missing = Vec::new();
    for program in programs {
        if !is_there(&program, "version").await {
            missing.push(program);
        }
    }
    about_logins(given, registries, &missing, problem)
}

fn about_logins(given: usize, registries: usize, missing: &[String], problem: Option<String>) -> Finding {
    const CHECK: &str = "registry logins";
    if let Some(problem) = problem {
        return Finding::warn(CHECK, problem, "mend the file, or say where another is with DOCKER_CONFIG");
    }
    if !missing.is_empty() {
        let seen = format!("Docker's config.json names programs that are not there: {}", missing.join(", "));
        return Finding::warn(
            CHECK,
            seen,
            "install them, or take them out of the file; images of their registries are pulled without login",
        );
    }
    match given + registries {
        0 => Finding::ok(CHECK, "none: public images only"),
        count => Finding::ok(CHECK, format!("for {count}; jobs can use all that they open")),
    }
}

/// `None`: there is no limit.
fn about_files(limit: Option<u64>, runs: u32) -> Finding {
    const CHECK: &str = "open files";
    let wanted = FILES_OWN + FILES_PER_RUN * u64::from(runs);
    match limit {
        Some(limit) if limit < wanted => Finding::warn(
            CHECK,
            format!("this process may open {limit}; {runs} runs at once may need {wanted}"),
            format!("raise the limit: `ulimit -n {wanted}`, or LimitNOFILE={wanted} in the service"),
        ),
        Some(limit) => Finding::ok(CHECK, format!("up to {limit}")),
        None => Finding::ok(CHECK, "no limit"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn what_is_missing_matters_as_far_as_it_is_used() {
        assert_eq!(about_git(false, 0).level, Level::Ok);
        assert_eq!(about_git(false, 2).level, Level::Warn);
        assert_eq!(about_files(Some(1024), 4).level, Level::Ok);
        assert_eq!(about_files(Some(1024), 64).level, Level::Warn);
        assert_eq!(about_files(None, 64).level, Level::Ok);
        assert_eq!(about_logins(0, 0, &[], None).level, Level::Ok);
        let found = about_logins(1, 0, &["docker-credential-x".to_owned()], None);
        assert!(found.level == Level::Warn && found.seen.contains("docker-credential-x"));
        assert_eq!(about_logins(0, 0, &[], Some("broken".into())).level, Level::Warn);
    }

    #[tokio::test]
    async fn a_program_is_there_if_it_can_be_started() {
        assert!(is_there("true", "--version").await);
        assert!(is_there("false", "--version").await);
        assert!(!is_there("docker-credential-nobody-has-this", "version").await);
    }
}
