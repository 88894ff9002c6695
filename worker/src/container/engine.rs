//! The engine's calls, safe to repeat.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, ContainerSummary};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder, LogsOptionsBuilder,
    RemoveContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use futures_util::StreamExt;
use protocol::id::{QueueName, WorkerId};
use protocol::native::HeldRun;
use tracing::{debug, warn};

use super::follow::{self, Frames};
use super::names::{LABEL_ID, LABEL_QUEUE, LABEL_RUN, LABEL_WORKER};
use crate::error::WorkerError;
use crate::state_machine::run::Signal;

/// How often the engine is tried at start, with [`CONNECT_PAUSE`] between.
const CONNECT_TRIES: u32 = 10;
const CONNECT_PAUSE: Duration = Duration::from_secs(1);
/// How often an engine that went away mid-run is looked for.
const RETURN_PAUSE: Duration = Duration::from_millis(500);

/// A client of the engine. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    docker: Docker,
    /// How many CPUs the engine's machine has: it refuses limits above that.
    pub(crate) host_cpus: u32,
}

/// Where a container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It was never started.
    Created,
    /// It runs (or is paused, or being restarted).
    Running,
    /// It ended with this code.
    Exited(i64),
}

impl Engine {
    /// Finds the engine at `host` and agrees on an API version.
    pub(crate) async fn connect(host: &str) -> Result<Self, WorkerError> {
        let mut tries = 1;
        loop {
            match Self::try_connect(host).await {
                Ok(engine) => return Ok(engine),
                Err(source) if tries >= CONNECT_TRIES => {
                    return Err(WorkerError::EngineDown { address: host.to_owned(), tries, source });
                }
                Err(error) => {
                    warn!("no container engine at {host} yet ({error}), try {tries} of {CONNECT_TRIES}");
                    tries += 1;
                    tokio::time::sleep(CONNECT_PAUSE).await;
                }
            }
        }
    }

    async fn try_connect(host: &str) -> Result<Self, Error> {
        let docker = Docker::connect_with_host(host)?.negotiate_version().await?;
        let info = docker.info().await?;
        let host_cpus = info.ncpu.and_then(|cpus| u32::try_from(cpus).ok()).filter(|&cpus| cpus > 0).unwrap_or(1);
        Ok(Self { docker, host_cpus })
    }

    pub(crate) fn docker(&self) -> &Docker {
        &self.docker
    }

    pub(crate) async fn create(&self, body: ContainerCreateBody) -> Result<String, Error> {
        let created = self.docker.create_container(None, body).await?;
        for warning in created.warnings {
            debug!("the container engine warns: {warning}");
        }
        Ok(created.id)
    }

    /// The container's output from now on. To be asked for before the start, so that no byte is missed.
    pub(crate) async fn attach(&self, container: &str) -> Result<Frames, Error> {
        let options = AttachContainerOptionsBuilder::default().stream(true).stdout(true).stderr(true).build();
        let attached = self.docker.attach_container(container, Some(options)).await?;
        Ok(follow::live(attached.output))
    }

    /// The container's output from its beginning on, until it ends, each frame with the engine's time.
    pub(crate) fn logs(&self, container: &str) -> Frames {
        let options =
            LogsOptionsBuilder::default().follow(true).stdout(true).stderr(true).timestamps(true).tail("all").build();
        follow::stamped(self.docker.logs(container, Some(options)))
    }

    pub(crate) async fn start(&self, container: &str) -> Result<(), Error> {
        self.docker.start_container(container, None).await
    }

    /// Waits for the container to end; gives its exit code.
    pub(crate) fn wait(&self, container: &str) -> Pin<Box<dyn Future<Output = Result<i64, Error>> + Send>> {
        let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
        let mut answers = Box::pin(self.docker.wait_container(container, Some(options)));
        Box::pin(async move { exit_code(answers.next().await) })
    }

    /// Sends a signal; a container that does not run any more is as good.
    pub(crate) async fn signal(&self, container: &str, signal: Signal) -> Result<(), Error> {
        let options = KillContainerOptionsBuilder::default().signal(signal.name()).build();
        unless_gone(self.docker.kill_container(container, Some(options)).await)
    }

    /// Removes a container, running or not, and its anonymous volumes.
    pub(crate) async fn remove(&self, container: &str) -> Result<(), Error> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        unless_gone(self.docker.remove_container(container, Some(options)).await)
    }

    pub(crate) async fn inspect(&self, container: &str) -> Result<ContainerInspectResponse, Error> {
        self.docker.inspect_container(container, None).await
    }

    /// The containers of this worker for this queue, in any state, perhaps of one run only. Nobody else's, ever.
    pub(crate) async fn own(
        &self,
        worker: &WorkerId,
        queue: &QueueName,
        run: Option<&HeldRun>,
    ) -> Result<Vec<ContainerSummary>, Error> {
        let mut labels = vec![format!("{LABEL_WORKER}={worker}"), format!("{LABEL_QUEUE}={queue}")];
        if let Some(run) = run {
            labels.extend([format!("{LABEL_ID}={}", run.job), format!("{LABEL_RUN}={}", run.run)]);
        }
        let filters = HashMap::from([("label".to_owned(), labels)]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        self.docker.list_containers(Some(options)).await
    }

    /// Waits at most `limit` for an engine that went away, then says where the container stands; `None`: it is not there.
    pub(crate) async fn after_return(&self, container: &str, limit: Duration) -> Result<Option<Standing>, Error> {
        let until = tokio::time::Instant::now() + limit;
        loop {
            match self.inspect(container).await {
                Ok(found) => return Ok(Some(standing(&found))),
                Err(error) if is_not_found(&error) => return Ok(None),
                Err(error) if tokio::time::Instant::now() >= until => return Err(error),
                Err(_) => tokio::time::sleep(RETURN_PAUSE).await,
            }
        }
    }
}

/// A failing program is no failure of the wait.
fn exit_code(answer: Option<Result<bollard::models::ContainerWaitResponse, Error>>) -> Result<i64, Error> {
    match answer {
        Some(Ok(answer)) => Ok(answer.status_code),
        Some(Err(Error::DockerContainerWaitError { code, .. })) => Ok(code),
        Some(Err(error)) => Err(error),
        None => Err(Error::IOError { err: std::io::ErrorKind::UnexpectedEof.into() }),
    }
}

/// Where an inspected container stands.
pub(crate) fn standing(found: &ContainerInspectResponse) -> Standing {
    use bollard::models::ContainerStateStatusEnum as Status;
    let state = found.state.as_ref();
    let code = state.and_then(|state| state.exit_code).unwrap_or_default();
    match state.and_then(|state| state.status) {
        Some(Status::CREATED) => Standing::Created,
        Some(Status::EXITED | Status::DEAD | Status::REMOVING) => Standing::Exited(code),
        Some(Status::RUNNING | Status::PAUSED | Status::RESTARTING | Status::STOPPING | Status::EMPTY) | None => {
            Standing::Running
        }
    }
}

pub(crate) fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code: 404, .. })
}

/// 404: it is not there. 409: it does not run, or is being removed already.
fn unless_gone(done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(Error::DockerResponseServerError { status_code: 404 | 409, .. }) => Ok(()),
        other => other,
    }
}
