//! `METAPAGE_IO_WORKER_RUN_STANDALONE`: whether a worker brings its own engine.

use worker::ShutdownMode;

use super::setting::{Env, UsageError, setting, truth};

/// Any true word: start an engine first.
pub(crate) const VARIABLE: &str = "METAPAGE_IO_WORKER_RUN_STANDALONE";
const DOCKER_HOST: &str = "DOCKER_HOST";

/// An engine of the worker's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Where it is to listen, as a path.
    pub(crate) socket: String,
}

/// What is asked for; `None`: the engine is somebody else's.
pub(crate) fn settings(env: Env<'_>) -> Result<Option<Settings>, UsageError> {
    if !setting(VARIABLE, None, VARIABLE).or(env, false, truth)? {
        return Ok(None);
    }
    let host = env(DOCKER_HOST).map(|host| host.trim().to_owned()).filter(|host| !host.is_empty());
    let host = host.unwrap_or_else(|| worker::config::DOCKER_HOST_DEFAULT.to_owned());
    let rule = "a worker with an engine of its own reaches it by unix:///PATH; leave this unset";
    let socket = host.strip_prefix("unix://").ok_or_else(|| UsageError::new(DOCKER_HOST, rule))?;
    Ok(Some(Settings { socket: socket.to_owned() }))
}

impl Settings {
    /// Nothing goes on without its engine, so that runs are handed back instead of being left.
    pub(crate) fn on_exit(mode: ShutdownMode) -> ShutdownMode {
        match mode {
            ShutdownMode::Leave => ShutdownMode::Kill,
            other @ (ShutdownMode::Drain { .. } | ShutdownMode::Kill) => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(standalone: &str, host: &str) -> Result<Option<Settings>, UsageError> {
        settings(&|name| match name {
            VARIABLE => Some(standalone.to_owned()),
            DOCKER_HOST => Some(host.to_owned()),
            _ => None,
        })
    }

    #[test]
    fn an_engine_of_its_own_listens_on_this_machine() {
        let at = |path: &str| Some(Settings { socket: path.to_owned() });
        assert_eq!(of("", ""), Ok(None));
        assert_eq!(of("false", "tcp://elsewhere:1"), Ok(None));
        assert_eq!(of("true", ""), Ok(at("/var/run/docker.sock")));
        assert_eq!(of("true", "unix:///run/own.sock"), Ok(at("/run/own.sock")));
        assert_eq!(of("true", "tcp://elsewhere:1").unwrap_err().place, "DOCKER_HOST");
        assert_eq!(of("perhaps", "").unwrap_err().place, VARIABLE);
    }

    #[test]
    fn without_the_engine_nothing_is_left_running() {
        assert_eq!(Settings::on_exit(ShutdownMode::Leave), ShutdownMode::Kill);
        let drain = ShutdownMode::Drain { limit: std::time::Duration::from_secs(1) };
        assert_eq!(Settings::on_exit(drain), drain);
    }
}
