//! The exchange of two containers, each step of which may be the last of this process.

use std::collections::HashMap;
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, HealthStatusEnum, NetworkConnectRequest};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    RenameContainerOptions, StopContainerOptions,
};
use futures_util::{StreamExt, TryStreamExt};
use tokio::time::{Instant, sleep, timeout};

use super::carry::{Carried, carry, kept, marked};
use super::names::{LABEL_KEPT, LABEL_NAME, LABEL_OF, image_of, plain, predecessor, successor};
use super::{Outcome, Step, UpgradeError, refused};
use crate::container::{Engine, is_not_found};

/// How often a new container is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How much of what a container printed is told.
const LOG_LINES: usize = 20;
const LOG_LINE_CHARS: usize = 400;
/// How long an engine may take to tell it, or to remove a container that removes itself.
const SOON: Duration = Duration::from_secs(20);

/// What all exchanges of one command share.
pub(super) struct Swap<'a> {
    pub(super) engine: &'a Engine,
    pub(super) patience: Duration,
    pub(super) steady: Duration,
    pub(super) tell: &'a mut (dyn FnMut(&str, Step) + Send),
}

impl Swap<'_> {
    /// Makes the successor, lets it take the place of `old`, and takes that back if it is not well.
    pub(super) async fn exchange(
        &mut self,
        name: &str,
        old: &ContainerInspectResponse,
        new: Carried,
        image: &str,
    ) -> Result<Outcome, UpgradeError> {
        let kept = if removes_itself(old) { Some(self.keep(name, old).await?) } else { None };
        let fallback = kept.as_deref().or(old.id.as_deref()).unwrap_or_default();
        let body = marked(new.body, fallback, name);
        let new = self.make(&successor(name), Carried { body, networks: new.networks }).await?;
        (self.tell)(name, Step::Made);
        self.replace(name, fallback, &new, image).await
    }

    /// One that removes itself when it is stopped cannot come back: its like is made, to be started if it has to.
    async fn keep(&self, name: &str, old: &ContainerInspectResponse) -> Result<String, UpgradeError> {
        // Everything that its image said is said again: the image is the same.
        let carried = carry(old, None, old.image.as_deref().unwrap_or_default());
        let body = kept(carried.body, name, &image_of(old));
        self.make(&predecessor(name), Carried { body, networks: carried.networks }).await
    }

    async fn make(&self, name: &str, what: Carried) -> Result<String, UpgradeError> {
        let docker = self.engine.docker();
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        let made =
            docker.create_container(Some(options), what.body).await.map_err(refused("make the new container"))?;
        for (network, endpoint) in what.networks {
            let request = NetworkConnectRequest { container: made.id.clone(), endpoint_config: Some(endpoint) };
            if let Err(error) = docker.connect_network(&network, request).await {
                self.remove(&made.id).await?;
                return Err(refused("connect the new container to its networks")(error));
            }
        }
        Ok(made.id)
    }

    /// From a successor that is made, however far it came; `fallback` is what comes back.
    async fn replace(&mut self, name: &str, fallback: &str, new: &str, image: &str) -> Result<Outcome, UpgradeError> {
        self.stop(fallback).await?;
        if let Some(other) = self.inspect(name).await?.filter(removes_itself)
            && let Some(id) = other.id.filter(|id| id != new && id != fallback)
        {
            self.stop(&id).await?;
            self.remove(&id).await?;
        }
        (self.tell)(name, Step::Stopped);
        self.rename(fallback, &predecessor(name)).await?;
        (self.tell)(name, Step::SetAside);
        self.rename(new, name).await?;
        (self.tell)(name, Step::Named);
        if let Err(error) = self.engine.start(new).await {
            return self.take_back(name, fallback, new, format!("it does not start: {error}")).await;
        }
        (self.tell)(name, Step::Started);
        match self.judge(new).await? {
            Ok(()) => {
                (self.tell)(name, Step::Well);
                self.remove(fallback).await?;
                Ok(Outcome::Upgraded { image: image.to_owned() })
            }
            Err(why) => self.take_back(name, fallback, new, why).await,
        }
    }

    /// Waits until it is known whether a container that was started is well; says why not.
    async fn judge(&self, id: &str) -> Result<Result<(), String>, UpgradeError> {
        let begun = Instant::now();
        loop {
            let found = match self.engine.inspect(id).await {
                Ok(found) => found,
                Err(error) if is_not_found(&error) => {
                    return Ok(Err("it ended at once, and removed itself".to_owned()));
                }
                Err(error) => return Err(refused("tell of the new container")(error)),
            };
            if let Some(verdict) = verdict(&found, begun.elapsed(), self.steady, self.patience) {
                return Ok(verdict);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// What is to come back is started under the name.
    async fn take_back(&mut self, name: &str, fallback: &str, new: &str, why: String) -> Result<Outcome, UpgradeError> {
        (self.tell)(name, Step::Ill);
        let log = self.last_lines(new).await;
        self.remove(new).await?;
        self.rename(fallback, name).await?;
        self.engine.start(fallback).await.map_err(refused("start the old container again"))?;
        Ok(Outcome::Restored { why, log })
    }

    /// Finishes, or takes back, what earlier processes began, for containers of these names, or all.
    pub(super) async fn recover(&mut self, names: &[String]) -> Result<Vec<(String, Outcome)>, UpgradeError> {
        let mut outcomes = Vec::new();
        for new in self.labelled(LABEL_OF).await? {
            let Some((name, old)) = label(&new, LABEL_NAME).zip(label(&new, LABEL_OF)) else { continue };
            // Containers have the labels of their images, which may be a job's. What they are called only we have said.
            if ![name.as_str(), &successor(&name)].contains(&plain(&new)) {
                continue;
            }
            if (names.is_empty() || names.contains(&name))
                && let Some(old) = self.inspect(&old).await?
            {
                (self.tell)(&name, Step::Found);
                outcomes.push((name.clone(), self.go_on(&name, &old, &new).await?));
            }
        }
        // Those that were made to come back, and whose successor is not there: not yet, or it has removed itself.
        for kept in self.labelled(LABEL_KEPT).await? {
            let Some(name) = label(&kept, LABEL_KEPT).filter(|name| names.is_empty() || names.contains(name)) else {
                continue;
            };
            let id = kept.id.as_deref().unwrap_or_default();
            // Back under its name, or not ours.
            if plain(&kept) != predecessor(&name) {
                continue;
            }
            (self.tell)(&name, Step::Found);
            if self.inspect(&name).await?.is_some() {
                self.remove(id).await?;
            } else {
                self.rename(id, &name).await?;
                self.engine.start(id).await.map_err(refused("start the old container again"))?;
                let why = "an earlier try was interrupted, and its new container is gone".to_owned();
                outcomes.push((name, Outcome::Restored { why, log: Vec::new() }));
            }
        }
        Ok(outcomes)
    }

    async fn labelled(&self, label: &str) -> Result<Vec<ContainerInspectResponse>, UpgradeError> {
        let filters = HashMap::from([("label".to_owned(), vec![label.to_owned()])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let listed = self.engine.docker().list_containers(Some(options)).await.map_err(refused("list containers"))?;
        let mut found = Vec::new();
        for id in listed.into_iter().filter_map(|container| container.id) {
            found.extend(self.inspect(&id).await?);
        }
        Ok(found)
    }

    /// With an exchange of which both containers are there.
    async fn go_on(
        &mut self,
        name: &str,
        old: &ContainerInspectResponse,
        new: &ContainerInspectResponse,
    ) -> Result<Outcome, UpgradeError> {
        let (old_id, new_id) = (old.id.as_deref().unwrap_or_default(), new.id.as_deref().unwrap_or_default());
        if is_running(new) {
            let image = new.config.as_ref().and_then(|config| config.image.clone()).unwrap_or_default();
            return self.replace(name, old_id, new_id, &image).await;
        }
        let why = "an earlier try was interrupted before the new container was started".to_owned();
        let current = self.inspect(name).await?.filter(|current| current.id != new.id && is_running(current));
        if let Some(current) = current {
            self.remove(new_id).await?;
            if current.id != old.id {
                self.remove(old_id).await?;
            }
            return Ok(Outcome::Restored { why, log: Vec::new() });
        }
        self.take_back(name, old_id, new_id, why).await
    }

    async fn inspect(&self, id: &str) -> Result<Option<ContainerInspectResponse>, UpgradeError> {
        match self.engine.inspect(id).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(refused("tell of a container")(error)),
        }
    }

    async fn stop(&self, id: &str) -> Result<(), UpgradeError> {
        let stopped = self.engine.docker().stop_container(id, None::<StopContainerOptions>).await;
        unless_gone(stopped).map_err(refused("stop the old container"))
    }

    /// Renames, unless it is called so already.
    async fn rename(&self, id: &str, name: &str) -> Result<(), UpgradeError> {
        if self.inspect(id).await?.is_some_and(|found| plain(&found) == name) {
            return Ok(());
        }
        let options = RenameContainerOptions { name: name.to_owned() };
        self.engine.docker().rename_container(id, options).await.map_err(refused("rename a container"))
    }

    /// Removes it, and no volume: those are the successor's now. It may be removing itself; its name is free when it is gone.
    async fn remove(&self, id: &str) -> Result<(), UpgradeError> {
        let until = Instant::now() + SOON;
        loop {
            let options = RemoveContainerOptionsBuilder::default().force(true).v(false).build();
            let removed = self.engine.docker().remove_container(id, Some(options)).await;
            unless_gone(removed).map_err(refused("remove a container"))?;
            if self.inspect(id).await?.is_none() || Instant::now() >= until {
                return Ok(());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn last_lines(&self, id: &str) -> Vec<String> {
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail(&LOG_LINES.to_string()).build();
        let reading = self.engine.docker().logs(id, Some(options)).take(LOG_LINES).try_collect::<Vec<_>>();
        let frames = timeout(SOON, reading).await.ok().and_then(Result::ok).unwrap_or_default();
        let text = frames.into_iter().map(|frame| frame.to_string()).collect::<String>();
        let line = |line: &str| line.chars().filter(|c| !c.is_control()).take(LOG_LINE_CHARS).collect();
        text.lines().map(line).collect()
    }
}

/// What a look at a container says of how it is; `None`: that is yet to be seen.
fn verdict(
    found: &ContainerInspectResponse,
    since: Duration,
    steady: Duration,
    patience: Duration,
) -> Option<Result<(), String>> {
    let state = found.state.clone().unwrap_or_default();
    if found.restart_count.is_some_and(|count| count > 0) || state.restarting == Some(true) {
        return Some(Err("it ends, and is started again and again".to_owned()));
    }
    if state.running != Some(true) {
        return Some(Err(format!("it ended with code {}", state.exit_code.unwrap_or_default())));
    }
    match state.health.and_then(|health| health.status) {
        Some(HealthStatusEnum::HEALTHY) => Some(Ok(())),
        Some(HealthStatusEnum::UNHEALTHY) => Some(Err("its own check says that it is not well".to_owned())),
        Some(HealthStatusEnum::STARTING) if since >= patience => {
            Some(Err(format!("its own check has not said within {} s that it is well", patience.as_secs())))
        }
        Some(HealthStatusEnum::STARTING) => None,
        Some(HealthStatusEnum::EMPTY | HealthStatusEnum::NONE) | None => (since >= steady).then_some(Ok(())),
    }
}

fn label(container: &ContainerInspectResponse, name: &str) -> Option<String> {
    container.config.as_ref()?.labels.as_ref()?.get(name).cloned()
}

fn is_running(container: &ContainerInspectResponse) -> bool {
    container.state.as_ref().and_then(|state| state.running) == Some(true)
}

fn removes_itself(container: &ContainerInspectResponse) -> bool {
    container.host_config.as_ref().and_then(|host| host.auto_remove) == Some(true)
}

/// 304: it does not run. 404: it is not there. 409: it is being removed.
fn unless_gone(done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(Error::DockerResponseServerError { status_code: 304 | 404 | 409, .. }) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::{ContainerState, Health};

    use super::*;

    fn found(running: bool, restarts: i64, health: Option<HealthStatusEnum>) -> ContainerInspectResponse {
        let health = health.map(|status| Health { status: Some(status), ..Health::default() });
        let state = ContainerState { running: Some(running), exit_code: Some(3), health, ..ContainerState::default() };
        ContainerInspectResponse { state: Some(state), restart_count: Some(restarts), ..Default::default() }
    }

    #[test]
    fn well_is_what_runs_on_or_says_so_itself() {
        let (steady, patience) = (Duration::from_secs(5), Duration::from_secs(60));
        let at =
            |found: &ContainerInspectResponse, seconds| verdict(found, Duration::from_secs(seconds), steady, patience);
        assert_eq!(at(&found(true, 0, None), 1), None);
        assert_eq!(at(&found(true, 0, None), 5), Some(Ok(())));
        assert!(at(&found(false, 0, None), 1).unwrap().unwrap_err().contains("code 3"));
        assert!(at(&found(true, 1, None), 9).unwrap().is_err());
        assert_eq!(at(&found(true, 0, Some(HealthStatusEnum::STARTING)), 30), None);
        assert!(at(&found(true, 0, Some(HealthStatusEnum::STARTING)), 60).unwrap().is_err());
        assert_eq!(at(&found(true, 0, Some(HealthStatusEnum::HEALTHY)), 0), Some(Ok(())));
        assert!(at(&found(true, 0, Some(HealthStatusEnum::UNHEALTHY)), 0).unwrap().is_err());
    }
}
