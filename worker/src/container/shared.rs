//! Whether the engine means the same folder by a path as this process does. Inputs and outputs are handed to it as paths: a worker
//! in a container whose data directory lies elsewhere on the engine's machine would start jobs that find nothing and leave nothing.
//!
//! It is found out without a program and without any image: a container of an empty one is made with the folder mounted, is never
//! started, and the engine is asked for a file in it.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType};
use bollard::query_parameters::{
    CreateImageOptionsBuilder, DownloadFromContainerOptionsBuilder, ListContainersOptionsBuilder,
    ListImagesOptionsBuilder, RemoveImageOptions,
};
use futures_util::{Stream, TryStreamExt};
use protocol::id::WorkerId;
use tracing::warn;

use super::engine::{Engine, is_not_found};
use crate::error::WorkerError;

/// A busy engine takes a second or two for it; one that takes longer is not waited for.
const TIME_MAX: Duration = Duration::from_secs(30);
/// What the engine sends is one small file in an archive; anything longer is not it.
const ARCHIVE_BYTES_MAX: usize = 64 * 1024;
/// The end of an archive, and here all of it.
const EMPTY_ARCHIVE: [u8; 1024] = [0; 1024];
/// Marks the container and its image, with the worker's id: what was left over is found by it.
const LABEL_SHARED: &str = "container.mtfm.io/shared";
/// Where the folder is mounted.
const MOUNTED_AT: &str = "/shared";
/// Files that engines, and Kubernetes, put into containers.
const SIGNS_OF_A_CONTAINER: [&str; 3] = ["/.dockerenv", "/run/.containerenv", "/run/secrets/kubernetes.io"];

/// Why a data directory is of no use to the engine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SharedError {
    /// There is nothing under that path on its machine.
    #[error("it finds nothing under that path on its machine")]
    Missing,
    /// Another folder is there.
    #[error("on its machine another folder has that path")]
    Other,
    /// It could not be asked, which says nothing about the folder.
    #[error("it could not be asked: {0}")]
    Unknown(#[from] Error),
}

/// Refuses a data directory that the engine does not see. Only looked at where it may be so; no word on it from the engine is no
/// reason not to start.
pub(crate) async fn ensure(
    engine: &Engine,
    host: &str,
    directory: &Path,
    worker: &WorkerId,
) -> Result<(), WorkerError> {
    if !may_differ(host) {
        return Ok(());
    }
    match check(engine, directory, worker).await {
        Ok(()) => Ok(()),
        Err(SharedError::Unknown(error)) => {
            warn!("cannot see whether the container engine has {} under that path: {error}", directory.display());
            Ok(())
        }
        Err(why @ (SharedError::Missing | SharedError::Other)) => {
            Err(WorkerError::NotShared { path: directory.to_owned(), why: why.to_string() })
        }
    }
}

/// Whether this process and the engine may have different views of the files: one of the two is in a container, a virtual machine,
/// or on another machine.
fn may_differ(host: &str) -> bool {
    !host.starts_with("unix:") || SIGNS_OF_A_CONTAINER.iter().any(|sign| Path::new(sign).exists())
}

/// Has the engine read a file in `directory`.
///
/// # Errors
///
/// [`SharedError`], of which [`SharedError::Unknown`] is no verdict.
pub(crate) async fn check(engine: &Engine, directory: &Path, worker: &WorkerId) -> Result<(), SharedError> {
    let late = || Error::IOError { err: std::io::ErrorKind::TimedOut.into() };
    tokio::time::timeout(TIME_MAX, ask(engine, directory, worker)).await.map_err(|_| late())?
}

async fn ask(engine: &Engine, directory: &Path, worker: &WorkerId) -> Result<(), SharedError> {
    let io = |err| Error::IOError { err };
    let secret = uuid::Uuid::new_v4().to_string();
    let mut file = tempfile::Builder::new().prefix("shared-").tempfile_in(directory).map_err(io)?;
    file.write_all(secret.as_bytes()).map_err(io)?;
    let name = file.path().file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    remove_left_over(engine, worker).await?;
    let image = empty_image(engine, worker).await?;
    let found = match mounting(engine, &image, directory, worker).await {
        Ok(container) => {
            let found = read(engine, &container, &format!("{MOUNTED_AT}/{name}"), &secret).await;
            // Gone before its image, which it keeps.
            engine.remove(&container).await.map_err(SharedError::from).and(found)
        }
        Err(error) => Err(error),
    };
    if let Err(error) = remove_image(engine, &image).await {
        warn!("an empty image stays at the container engine: {error}");
    }
    found
}

/// What a process left that was ended in the middle.
async fn remove_left_over(engine: &Engine, worker: &WorkerId) -> Result<(), Error> {
    let filters = HashMap::from([("label".to_owned(), vec![format!("{LABEL_SHARED}={worker}")])]);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    for container in engine.docker().list_containers(Some(options)).await? {
        engine.remove(&container.id.unwrap_or_default()).await?;
    }
    let options = ListImagesOptionsBuilder::default().all(true).filters(&filters).build();
    for image in engine.docker().list_images(Some(options)).await? {
        remove_image(engine, &image.id).await?;
    }
    Ok(())
}

async fn remove_image(engine: &Engine, image: &str) -> Result<(), Error> {
    let options = None::<RemoveImageOptions>;
    match engine.docker().remove_image(image, options, None).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn empty_image(engine: &Engine, worker: &WorkerId) -> Result<String, Error> {
    let label = format!("LABEL {LABEL_SHARED}=\"{worker}\"");
    let options = CreateImageOptionsBuilder::default().from_src("-").changes(vec![label]).build();
    let archive = bollard::body_full(EMPTY_ARCHIVE.to_vec().into());
    let made: Vec<_> = engine.docker().create_image(Some(options), Some(archive), None).try_collect().await?;
    let mut ids = made.into_iter().filter_map(|line| line.status).filter(|status| status.starts_with("sha256:"));
    ids.next_back().ok_or(Error::IOError { err: std::io::ErrorKind::InvalidData.into() })
}

/// A container with the folder in it. A mount, not a bind: those make what is missing.
async fn mounting(engine: &Engine, image: &str, directory: &Path, worker: &WorkerId) -> Result<String, SharedError> {
    let mount = Mount {
        typ: Some(MountType::BIND),
        source: Some(directory.display().to_string()),
        target: Some(MOUNTED_AT.to_owned()),
        read_only: Some(true),
        ..Mount::default()
    };
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        // It is never started, but has to say what it would run.
        cmd: Some(vec!["none".to_owned()]),
        labels: Some(HashMap::from([(LABEL_SHARED.to_owned(), worker.to_string())])),
        host_config: Some(HostConfig {
            mounts: Some(vec![mount]),
            network_mode: Some("none".to_owned()),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    engine
        .create(body)
        .await
        .map_err(|error| if is_missing_source(&error) { SharedError::Missing } else { error.into() })
}

/// Refusals of a mount whose source is not there; engines word it by these.
fn is_missing_source(error: &Error) -> bool {
    let Error::DockerResponseServerError { status_code, message } = error else { return false };
    let message = message.to_ascii_lowercase();
    matches!(status_code, 400 | 404 | 500)
        && message.contains(MOUNT_WORD)
        && ["does not exist", "no such file", "not a directory"].iter().any(|word| message.contains(word))
}

/// What tells a refusal of the mount from that of the image.
const MOUNT_WORD: &str = "mount";

async fn read(engine: &Engine, container: &str, path: &str, secret: &str) -> Result<(), SharedError> {
    let options = DownloadFromContainerOptionsBuilder::default().path(path).build();
    match bounded(engine.docker().download_from_container(container, Some(options))).await {
        Ok(archive) if archive.windows(secret.len()).any(|part| part == secret.as_bytes()) => Ok(()),
        Ok(_) => Err(SharedError::Other),
        Err(error) if is_not_found(&error) => Err(SharedError::Other),
        Err(error) => Err(error.into()),
    }
}

async fn bounded(archive: impl Stream<Item = Result<bytes::Bytes, Error>>) -> Result<Vec<u8>, Error> {
    let too_long = || Error::IOError { err: std::io::ErrorKind::FileTooLarge.into() };
    let add = async |mut all: Vec<u8>, part: bytes::Bytes| {
        if all.len() + part.len() > ARCHIVE_BYTES_MAX {
            return Err(too_long());
        }
        all.extend_from_slice(&part);
        Ok(all)
    };
    archive.try_fold(Vec::new(), add).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_whose_source_is_missing_is_told_from_other_refusals() {
        let refusal =
            |status_code, message: &str| Error::DockerResponseServerError { status_code, message: message.to_owned() };
        let missing = r#"invalid mount config for type "bind": bind source path does not exist: /data"#;
        assert!(is_missing_source(&refusal(400, missing)));
        assert!(is_missing_source(&refusal(500, "statfs /data: no such file or directory: bind mount")));
        assert!(!is_missing_source(&refusal(404, "No such image: sha256:1")));
        assert!(!is_missing_source(&refusal(403, "mounts of what does not exist are forbidden")));
        assert!(!is_missing_source(&refusal(500, "no space left on device")));
    }

    #[test]
    fn an_engine_that_is_elsewhere_may_have_other_files() {
        assert!(may_differ("tcp://engine:2375"));
    }
}
