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
const SUFFIX: &str = ".json";

/// The store of one queue.
#[derive(Debug)]
pub(crate) struct Unacknowledged {
    directory: Arc<Path>,
    orders: mpsc::Sender<Order>,
}

#[derive(Debug)]
enum Order {
    Keep(Arc<Path>, FinishedRun, oneshot::Sender<()>),
    Forget(PathBuf),
    Flush(oneshot::Sender<()>),
}

impl Unacknowledged {
    /// Opens the stores of `queues` below `directory` and reads what an earlier process left, in the same order.
    pub(crate) fn open(directory: &Path, queues: &[QueueKey]) -> Result<Vec<(Self, Vec<FinishedRun>)>, WorkerError> {
        let (orders, receiver) = mpsc::channel(ORDERS_MAX);
        let open = |queue: &QueueKey| {
            let directory = directory.join("unacknowledged").join(queue.to_string());
            fs::create_dir_all(&directory).map_err(WorkerError::disk(&directory))?;
            let kept = read_all(&directory).map_err(WorkerError::disk(&directory))?;
            Ok((Self { directory: directory.into(), orders: orders.clone() }, kept))
        };
        let opened = queues.iter().map(open).collect::<Result<_, WorkerError>>()?;
        tokio::task::spawn_blocking(move || work(receiver));
        Ok(opened)
    }

    /// Orders a run's end to be written. What comes back resolves when it is on disk, or cannot be (which is logged: the
    /// broker may still get it).
    pub(crate) async fn keep(&self, run: FinishedRun) -> oneshot::Receiver<()> {
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
                if let Err(error) = write(&directory, &run) {
                    warn!(job.id = %run.job, "cannot keep the result of job {} on disk: {error}", run.job);
                }
                let _ = done.send(());
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
        let queues = ["q", "other"].map(|name| QueueKey::of(&name.parse().unwrap()));
        let open = || Unacknowledged::open(directory.path(), &queues).unwrap();
        let run = FinishedRun {
            job: JobId::from_bytes([3; 32]),
            run: 7,
            outcome: RunOutcome::Success,
            exit_code: Some(0),
            image: None,
            duration_ms: Some(5),
            finished: RawJson::new(r#"{"type":"Finished","x":1.50}"#),
        };
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
