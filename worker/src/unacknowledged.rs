//! Ends of runs on disk until the broker has them, so that neither a lost line nor a restart loses a result.
//!
//! One task does all of it, in the order it is asked: a removal never overtakes its write.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use protocol::id::QueueKey;
use protocol::native::{FinishedRun, HeldRun};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::error::WorkerError;

/// How many orders may wait for the disk; there are two for each run.
const ORDERS_MAX: usize = 1024;
const SUFFIX: &str = ".json";

/// The store. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Unacknowledged {
    orders: mpsc::Sender<Order>,
}

#[derive(Debug)]
enum Order {
    Keep(FinishedRun, oneshot::Sender<()>),
    Forget(HeldRun),
    Flush(oneshot::Sender<()>),
}

impl Unacknowledged {
    /// Opens the store of `queue` below `directory` and reads what an earlier process left.
    pub(crate) fn open(directory: &Path, queue: QueueKey) -> Result<(Self, Vec<FinishedRun>), WorkerError> {
        let directory = directory.join("unacknowledged").join(queue.to_string());
        fs::create_dir_all(&directory).map_err(WorkerError::disk(&directory))?;
        let kept = read_all(&directory).map_err(WorkerError::disk(&directory))?;
        let (orders, receiver) = mpsc::channel(ORDERS_MAX);
        tokio::task::spawn_blocking(move || work(&directory, receiver));
        Ok((Self { orders }, kept))
    }

    /// Orders a run's end to be written. What comes back resolves when it is on disk, or cannot be (which is logged: the
    /// broker may still get it).
    pub(crate) async fn keep(&self, run: FinishedRun) -> oneshot::Receiver<()> {
        let (done, is_done) = oneshot::channel();
        let _ = self.orders.send(Order::Keep(run, done)).await;
        is_done
    }

    /// The broker has it.
    pub(crate) async fn forget(&self, run: HeldRun) {
        let _ = self.orders.send(Order::Forget(run)).await;
    }

    /// Waits until all that was asked before is done.
    pub(crate) async fn flush(&self) {
        let (done, is_done) = oneshot::channel();
        if self.orders.send(Order::Flush(done)).await.is_ok() {
            let _ = is_done.await;
        }
    }
}

fn work(directory: &Path, mut orders: mpsc::Receiver<Order>) {
    while let Some(order) = orders.blocking_recv() {
        match order {
            Order::Keep(run, done) => {
                if let Err(error) = write(directory, &run) {
                    warn!(job.id = %run.job, "cannot keep the result of job {} on disk: {error}", run.job);
                }
                let _ = done.send(());
            }
            Order::Forget(run) => match fs::remove_file(path(directory, run)) {
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

/// What cannot be read (a torn write's temporary file, a damaged one) is left where it is and told.
fn read_all(directory: &Path) -> std::io::Result<Vec<FinishedRun>> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if !path.to_string_lossy().ends_with(SUFFIX) {
            continue;
        }
        match fs::read(&path).map(|bytes| serde_json::from_slice(&bytes)) {
            Ok(Ok(run)) => kept.push(run),
            Ok(Err(error)) => warn!("cannot read the kept result {}: {error}", path.display()),
            Err(error) => warn!("cannot read the kept result {}: {error}", path.display()),
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use protocol::event::RunOutcome;
    use protocol::id::JobId;
    use protocol::raw::RawJson;

    use super::*;

    #[tokio::test]
    async fn an_end_survives_a_restart_until_it_is_acknowledged() {
        let directory = tempfile::tempdir().unwrap();
        let queue = QueueKey::of(&"q".parse().unwrap());
        let run = FinishedRun {
            job: JobId::from_bytes([3; 32]),
            run: 7,
            outcome: RunOutcome::Success,
            exit_code: Some(0),
            image: None,
            duration_ms: Some(5),
            finished: RawJson::new(r#"{"type":"Finished","x":1.50}"#),
        };
        let (store, kept) = Unacknowledged::open(directory.path(), queue).unwrap();
        assert_eq!(kept, []);
        store.keep(run.clone()).await.await.unwrap();
        let (again, kept) = Unacknowledged::open(directory.path(), queue).unwrap();
        assert_eq!(kept, std::slice::from_ref(&run));
        let (_, other) = Unacknowledged::open(directory.path(), QueueKey::of(&"other".parse().unwrap())).unwrap();
        assert_eq!(other, []);
        again.forget(HeldRun { job: run.job, run: run.run }).await;
        again.flush().await;
        let (_, kept) = Unacknowledged::open(directory.path(), queue).unwrap();
        assert_eq!(kept, []);
    }
}
