//! The engine's calls, safe to repeat.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, ContainerSummary, SystemInfo};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder, LogsOptionsBuilder,
    RemoveContainerOptionsBuilder, UploadToContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use futures_util::StreamExt;
use protocol::id::{QueueName, WorkerId};
use protocol::native::HeldRun;
use tracing::{debug, info, warn};

use super::deaths::{self, Deaths};
use super::follow::{self, Frames};
use super::names::{LABEL_DATA, LABEL_ID, LABEL_QUEUE, LABEL_RUN, LABEL_WORKER};
use crate::error::WorkerError;
use crate::state_machine::run::Signal;

/// How often the engine is tried at start, with [`CONNECT_PAUSE`] between.
const CONNECT_TRIES: u32 = 10;
const CONNECT_PAUSE: Duration = Duration::from_secs(1);
/// How often an engine that went away mid-run is looked for.
const RETURN_PAUSE: Duration = Duration::from_millis(500);
/// An engine that takes longer to say that it is there is not there for new runs; one that is only busy answers at once.
const ANSWER: Duration = Duration::from_secs(10);

/// A client of the engine. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    docker: Docker,
    facts: Arc<Facts>,
    deaths: Arc<Deaths>,
    /// Whether it was found out that it cannot bound what a container writes over its image.
    bounds_no_disk: Arc<AtomicBool>,
}

/// What the engine says of itself and its machine.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// How many CPUs the machine has: it refuses limits above that.
    pub(crate) cpus: u32,
    /// The runtimes that containers can be started with, by name.
    pub(crate) runtimes: Vec<String>,
    /// Devices that it has discovered, by their names in the container device interface.
    pub(crate) devices: Vec<String>,
    /// Which it is, among all engines.
    pub(crate) id: String,
    /// Where it keeps images and containers, by its own machine's paths.
    pub(crate) root: Option<PathBuf>,
    /// Whether its root is a plain user of the machine.
    pub(crate) is_rootless: bool,
    /// Whether it refuses containers the system calls that they do not need.
    pub(crate) has_seccomp: bool,
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

    /// The same, once.
    pub(crate) async fn try_connect(host: &str) -> Result<Self, Error> {
        let docker = Docker::connect_with_host(host)?.negotiate_version().await?;
        let facts = Arc::new(facts(docker.info().await?));
        let deaths = Arc::new(Deaths::listen(docker.clone()));
        Ok(Self { docker, facts, deaths, bounds_no_disk: Arc::default() })
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(crate) fn docker(&self) -> &Docker {
        &self.docker
    }

    /// Whether it is there.
    pub(crate) async fn answers(&self) -> bool {
        matches!(tokio::time::timeout(ANSWER, self.docker.ping()).await, Ok(Ok(_)))
    }

    /// Makes a container. One whose disk the engine cannot bound is made without; it is watched as it is.
    pub(crate) async fn create(&self, mut body: ContainerCreateBody) -> Result<String, Error> {
        let bounds_disk = body.host_config.as_ref().is_some_and(|host| host.storage_opt.is_some());
        if bounds_disk && !self.bounds_no_disk.load(Ordering::Relaxed) {
            match self.docker.create_container(None, body.clone()).await {
                Ok(created) => return Ok(created.id),
                Err(error) if is_about_storage(&error) => {
                    info!("the engine does not bound containers' disk here, so that it is only watched: {error}");
                    self.bounds_no_disk.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(host) = &mut body.host_config {
            host.storage_opt = None;
        }
        let created = self.docker.create_container(None, body).await?;
        for warning in created.warnings {
            debug!("the container engine warns: {warning}");
        }
        Ok(created.id)
    }

    /// Opens a folder in the root of a container that is not started for all users. Needs nothing of its image: an archive with
    /// only that folder in it is unpacked over it.
    pub(crate) async fn open_folder(&self, container: &str, folder: &str) -> Result<(), Error> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o777);
        header.set_size(0);
        let mut archive = tar::Builder::new(Vec::new());
        let archive = archive.append_data(&mut header, folder, std::io::empty()).and_then(|()| archive.into_inner());
        let archive = archive.map_err(|err| Error::IOError { err })?;
        let options = UploadToContainerOptionsBuilder::default().path("/").build();
        self.docker.upload_to_container(container, Some(options), bollard::body_full(archive.into())).await
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
        // It may end before anybody gets to wait for it.
        drop(self.deaths.expect(container));
        self.docker.start_container(container, None).await
    }

    /// Waits for the container to end; gives its exit code.
    pub(crate) fn wait(&self, container: &str) -> Pin<Box<dyn Future<Output = Result<i64, Error>> + Send>> {
        let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
        let mut answers = Box::pin(self.docker.wait_container(container, Some(options)));
        let death = self.deaths.expect(container);
        Box::pin(async move {
            tokio::select! {
                code = deaths::told(death) => Ok(code),
                answer = answers.next() => exit_code(answer),
            }
        })
    }

    /// Sends a signal; a container that does not run any more is as good.
    pub(crate) async fn signal(&self, container: &str, signal: Signal) -> Result<(), Error> {
        let options = KillContainerOptionsBuilder::default().signal(signal.name()).build();
        unless_gone(self.docker.kill_container(container, Some(options)).await)
    }

    /// Removes a container, running or not, and its anonymous volumes.
    pub(crate) async fn remove(&self, container: &str) -> Result<(), Error> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        unless_gone(self.docker.remove_container(container, Some(options)).await)?;
        self.deaths.forget(container);
        Ok(())
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

    /// All containers of runs whose files lie below `data`, whoever of our earlier selves started them, for whichever queue.
    pub(crate) async fn of_directory(&self, data: &str) -> Result<Vec<ContainerSummary>, Error> {
        let filters = HashMap::from([("label".to_owned(), vec![format!("{LABEL_DATA}={data}")])]);
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

fn facts(info: SystemInfo) -> Facts {
    let options = info.security_options.unwrap_or_default();
    let secures = |name: &str| options.iter().any(|option| option.split(',').any(|part| part == name));
    let devices = info.discovered_devices.unwrap_or_default().into_iter();
    Facts {
        cpus: info.ncpu.and_then(|cpus| u32::try_from(cpus).ok()).filter(|&cpus| cpus > 0).unwrap_or(1),
        runtimes: info.runtimes.unwrap_or_default().into_keys().collect(),
        devices: devices
            .filter(|device| device.source.as_deref() == Some("cdi"))
            .filter_map(|device| device.id)
            .collect(),
        id: info.id.unwrap_or_default(),
        root: info.docker_root_dir.map(PathBuf::from),
        is_rootless: secures("name=rootless"),
        has_seccomp: secures("name=seccomp"),
    }
}

/// Refusals of `--storage-opt`: each storage driver words its own.
fn is_about_storage(error: &Error) -> bool {
    let Error::DockerResponseServerError { message, .. } = error else { return false };
    let message = message.to_ascii_lowercase();
    ["storage-opt", "storage opt", "quota"].iter().any(|word| message.contains(word))
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

/// Whether the engine did not get to say anything about it: it is away, or went away.
pub(crate) fn is_away(error: &Error) -> bool {
    // Not what we say in these words ourselves.
    let is_of_system = |err: &std::io::Error| err.kind() != std::io::ErrorKind::Other;
    matches!(error, Error::HyperResponseError { .. } | Error::HyperLegacyError { .. } | Error::RequestTimeoutError)
        || matches!(error, Error::IOError { err } if is_of_system(err))
}

/// Whether there are several networks of the name that was meant.
pub(crate) fn is_ambiguous(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { message, .. } if message.contains("is ambiguous"))
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
