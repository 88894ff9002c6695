//! Ends of runs on disk until the broker has them, so that neither a lost line nor a restart loses a result.
//!
//! One task does all of it, for all queues, in the order it is asked: a removal never overtakes its write.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use protocol::id::QueueKey;
use protocol::native::{FinishedRun, HeldRun};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::error::WorkerError;

/// How many orders may wait for the disk; there are two for each run.
const ORDERS_MAX: usize = 1024;
const FOLDER: &str = "unacknowledged";
const SUFFIX: &str = ".json";
/// What a file is called that cannot be read: for people to look at, and told once.
const DAMAGED_SUFFIX: &str = ".damaged";
/// How the temporary files begin that a process leaves which dies while it writes.
const TEMPORARY_PREFIX: &str = ".tmp";

/// The store of one queue.
#[derive(Debug)]
pub(crate) struct Unacknowledged {
    directory: Arc<Path>,
    orders: mpsc::Sender<Order>,
}

#[derive(Debug)]
enum Order {
    Keep(Arc<Path>, FinishedRun, oneshot::Sender<bool>),
    Forget(PathBuf),
    Flush(oneshot::Sender<()>),
}

impl Unacknowledged {
    /// Opens the stores of `queues` below `directory` and reads what an earlier process left, in the same order.
    pub(crate) fn open(directory: &Path, queues: &[QueueKey]) -> Result<Vec<(Self, Vec<FinishedRun>)>, WorkerError> {
        let (orders, receiver) = mpsc::channel(ORDERS_MAX);
        let root = directory.join(FOLDER);
        let open = |queue: &QueueKey| {
            let directory = root.join(queue.to_string());
            fs::create_dir_all(&directory).map_err(WorkerError::disk(&directory))?;
            let kept = read_all(&directory).map_err(WorkerError::disk(&directory))?;
            Ok((Self { directory: directory.into(), orders: orders.clone() }, kept))
        };
        let opened = queues.iter().map(open).collect::<Result<_, WorkerError>>()?;
        tell_of_others(&root, queues);
        tokio::task::spawn_blocking(move || work(receiver));
        Ok(opened)
    }

    /// Orders a run's end to be written. What comes back says whether it is on disk; that it cannot be is logged.
    pub(crate) async fn keep(&self, run: FinishedRun) -> oneshot::Receiver<bool> {
        let (done, is_done) = oneshot::channel();
        let _ = self.orders.send(Order::Keep(Arc::clone(&self.directory), run, done)).await;
        is_done
    }

    /// The broker has it.
    pub(crate) async fn forget(&self, run: HeldRun) {
        let _ = self.orders.send(Order::Forget(path(&self.directory, run))).await;
    }

    /// Waits until all that was asked before is done.
    pub(crate) async fn flush(&self) {
        let (done, is_done) = oneshot::channel();
        if self.orders.send(Order::Flush(done)).await.is_ok() {
            let _ = is_done.await;
        }
    }
}

fn work(mut orders: mpsc::Receiver<Order>) {
    while let Some(order) = orders.blocking_recv() {
        match order {
            Order::Keep(directory, run, done) => {
                let written = write(&directory, &run);
                if let Err(error) = &written {
                    warn!(job.id = %run.job, "cannot keep the result of job {} on disk: {error}", run.job);
                }
                let _ = done.send(written.is_ok());
            }
            Order::Forget(path) => match fs::remove_file(path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => warn!("cannot remove an acknowledged result: {error}"),
            },
            Order::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}

fn path(directory: &Path, run: HeldRun) -> PathBuf {
    directory.join(format!("{}.{}{SUFFIX}", run.job, run.run))
}

fn write(directory: &Path, run: &FinishedRun) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    serde_json::to_writer(&mut file, run)?;
    file.flush()?;
    file.as_file().sync_all()?;
    file.persist(path(directory, HeldRun { job: run.job, run: run.run }))?;
    fs::File::open(directory)?.sync_all()
}

/// A write that a process did not come to the end of is removed; what cannot be read is set aside, and is no reason not to start.
fn read_all(directory: &Path) -> std::io::Result<Vec<FinishedRun>> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if name.starts_with(TEMPORARY_PREFIX) {
            let _ = fs::remove_file(path);
            continue;
        }
        if !name.ends_with(SUFFIX) {
            continue;
        }
        match fs::read(&path).map(|bytes| serde_json::from_slice(&bytes)) {
            Ok(Ok(run)) => kept.push(run),
            Ok(Err(error)) => set_aside(&path, &error),
            Err(error) => warn!("cannot read the kept result {}: {error}", path.display()),
        }
    }
    Ok(kept)
}

fn set_aside(path: &Path, why: &serde_json::Error) {
    let mut aside = path.as_os_str().to_owned();
    aside.push(DAMAGED_SUFFIX);
    let aside = PathBuf::from(aside);
    match fs::rename(path, &aside) {
        Ok(()) => {
            warn!("cannot read a kept result: {why}; it is set aside as {}, and its job runs again", aside.display())
        }
        Err(error) => warn!("cannot read the kept result {} ({why}), nor set it aside: {error}", path.display()),
    }
}

/// Results of queues that the worker is not told to work for any more can go to nobody: they wait for that.
fn tell_of_others(root: &Path, queues: &[QueueKey]) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        let is_served = queues.iter().any(|queue| entry.file_name().to_string_lossy() == queue.to_string());
        let holds = fs::read_dir(entry.path()).map_or(0, Iterator::count);
        if !is_served && holds > 0 {
            warn!(
                "{holds} results wait in {} for a queue that this worker does not work for: start it for that queue again, or remove them",
                entry.path().display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::event::RunOutcome;
    use protocol::id::JobId;
    use protocol::raw::RawJson;

    use super::*;

    fn finished() -> FinishedRun {
        FinishedRun {
            job: JobId::from_bytes([3; 32]),
            run: 7,
            outcome: RunOutcome::Success,
            exit_code: Some(0),
            image: None,
            duration_ms: Some(5),
            finished: RawJson::new(r#"{"type":"Finished","x":1.50}"#),
        }
    }

    #[tokio::test]
    async fn a_damaged_file_is_set_aside_and_a_torn_write_removed_and_the_others_are_read() {
        let data = tempfile::tempdir().unwrap();
        let queues = [QueueKey::of(&"q".parse().unwrap())];
        let open = || Unacknowledged::open(data.path(), &queues).unwrap().remove(0);
        assert!(open().0.keep(finished()).await.await.unwrap(), "it is on disk");
        let folder = data.path().join(FOLDER).join(queues[0].to_string());
        let (damaged, torn) = (folder.join(format!("damaged{SUFFIX}")), folder.join(".tmpAbCdEf"));
        fs::write(&damaged, "{\"job\":").unwrap();
        fs::write(&torn, "{").unwrap();
        for _ in 0..2 {
            assert_eq!(open().1, [finished()]);
            assert!(!damaged.exists() && !torn.exists());
            assert_eq!(fs::read(folder.join(format!("damaged{SUFFIX}{DAMAGED_SUFFIX}"))).unwrap(), b"{\"job\":");
        }
    }

    #[tokio::test]
    async fn that_an_end_is_not_on_disk_is_told() {
        let data = tempfile::tempdir().unwrap();
        let store = Unacknowledged::open(data.path(), &[QueueKey::of(&"q".parse().unwrap())]).unwrap().remove(0).0;
        fs::remove_dir_all(data.path().join(FOLDER)).unwrap();
        assert!(!store.keep(finished()).await.await.unwrap());
    }

    #[tokio::test]
    async fn an_end_survives_a_restart_until_it_is_acknowledged() {
        let directory = tempfile::tempdir().unwrap();
        let queues = ["q", "other"].map(|name| QueueKey::of(&name.parse().unwrap()));
        let open = || Unacknowledged::open(directory.path(), &queues).unwrap();
        let run = finished();
        let mut stores = open();
        assert!(stores.iter().all(|(_, kept)| kept.is_empty()));
        stores[0].0.keep(run.clone()).await.await.unwrap();
        stores = open();
        assert_eq!(stores[0].1, std::slice::from_ref(&run));
        // Another queue's run of the same job and number is another run.
        assert_eq!(stores[1].1, []);
        let held = HeldRun { job: run.job, run: run.run };
        stores[1].0.forget(held).await;
        stores[1].0.flush().await;
        assert_eq!(open()[0].1, std::slice::from_ref(&run));
        stores[0].0.forget(held).await;
        stores[0].0.flush().await;
        assert!(open().iter().all(|(_, kept)| kept.is_empty()));
    }
}
