//! The socket in the data directory, for its owner alone: whoever connects is given one snapshot, as JSON, and that is all.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::warn;

use super::observer::Observer;
use super::snapshot::Snapshot;

const NAME: &str = "status.sock";
/// Where it is made, out of everybody's reach, before it gets its place and its rights.
const WORKSHOP: &str = "status.new";
/// The longest path that a socket can have on all systems that we know, its last zero not counted.
const PATH_BYTES_MAX: usize = 103;
/// How many may look at once.
const LOOKERS_MAX: usize = 16;
/// How long the way to one who looks may take.
const WRITE_TIME: Duration = Duration::from_secs(10);
/// How long a worker may take to answer: its engine is asked meanwhile.
const READ_TIME: Duration = Duration::from_secs(15);
/// The most bytes of a snapshot: ten thousand runs with long commands.
pub const SNAPSHOT_BYTES_MAX: u64 = 32 * 1024 * 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a worker with this data directory can be looked at.
#[must_use]
pub fn socket_path(data_directory: &Path) -> PathBuf {
    data_directory.join(NAME)
}

/// Reads how the worker with this data directory stands.
///
/// # Errors
///
/// `NotFound` and `ConnectionRefused` when none works there; whatever else the system says; `InvalidData` for what is no snapshot.
pub async fn read(data_directory: &Path) -> io::Result<Snapshot> {
    let reading = async {
        let (folder, path) = short_path(data_directory)?;
        let socket = UnixStream::connect(path.join(NAME)).await?;
        drop(folder);
        let mut bytes = Vec::new();
        socket.take(SNAPSHOT_BYTES_MAX).read_to_end(&mut bytes).await?;
        serde_json::from_slice(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    };
    timeout(READ_TIME, reading).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A path to `directory` that leaves room for a socket's name, and what keeps it open.
fn short_path(directory: &Path) -> io::Result<(Option<File>, PathBuf)> {
    if directory.as_os_str().as_bytes().len() + "/".len() + WORKSHOP.len() + "/".len() + NAME.len() <= PATH_BYTES_MAX {
        return Ok((None, directory.to_owned()));
    }
    let open = File::open(directory)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
    Ok((Some(open), path))
}

/// Makes the socket, in place of one that an earlier process left. The directory is held by this process alone.
pub(super) fn bind(data_directory: &Path) -> io::Result<UnixListener> {
    let (_folder, directory) = short_path(data_directory)?;
    let workshop = directory.join(WORKSHOP);
    match fs::remove_dir_all(&workshop) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // Between its making and its rights nobody else may reach it.
    fs::DirBuilder::new().mode(0o700).create(&workshop)?;
    let made = workshop.join(NAME);
    let listener = UnixListener::bind(&made)?;
    fs::set_permissions(&made, fs::Permissions::from_mode(0o600))?;
    fs::rename(&made, directory.join(NAME))?;
    fs::remove_dir(&workshop)?;
    Ok(listener)
}

/// Answers until it is dropped.
pub(super) async fn serve(listener: UnixListener, observer: Arc<Observer>) {
    let _removed = Removed(socket_path(observer.data_directory()));
    let permits = Arc::new(Semaphore::new(LOOKERS_MAX));
    let mut lookers = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let mut socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                warn!("somebody who looks at this worker could not be let in: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while lookers.try_join_next().is_some() {}
        let observer = Arc::clone(&observer);
        lookers.spawn(async move {
            let telling = async {
                let snapshot = observer.snapshot().await;
                let mut text = serde_json::to_vec(&snapshot).map_err(io::Error::from)?;
                text.push(b'\n');
                socket.write_all(&text).await?;
                socket.shutdown().await
            };
            // Whoever asked has gone or was too slow: nothing of ours is wrong.
            let _ = timeout(WRITE_TIME, telling).await;
            drop(permit);
        });
    }
}

/// Takes the socket away when the worker ends, so that it is not taken for one that hangs.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_its_owners_alone_and_replaces_one_that_was_left() {
        let folder = tempfile::tempdir().unwrap();
        let first = bind(folder.path()).unwrap();
        drop(first);
        let second = bind(folder.path()).unwrap();
        let path = socket_path(folder.path());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).await.unwrap();
        second.accept().await.unwrap();
        assert!(!folder.path().join(WORKSHOP).exists());
    }

    #[tokio::test]
    async fn a_folder_with_a_long_path_has_its_socket_too() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(120)).join("remote");
        fs::create_dir_all(&long).unwrap();
        let listener = bind(&long).unwrap();
        let telling = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.write_all(br#"{"worker":"w","unknown":1}"#).await.unwrap();
        });
        assert_eq!(read(&long).await.unwrap().worker, "w");
        telling.await.unwrap();
    }

    #[tokio::test]
    async fn where_no_worker_is_nothing_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(bind(folder.path()).unwrap());
        assert_eq!(read(folder.path()).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
