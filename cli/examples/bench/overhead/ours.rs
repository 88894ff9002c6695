//! A broker's queue with one worker, and a client that submits and watches.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, bail};
use protocol::event::{Event, RunOutcome};
use protocol::id::JobId;
use protocol::native::{Callbacks, FromBroker, RequestId, Submission, ToBroker};
use protocol::raw::RawJson;
use protocol::record::Record;
use tokio::process::Child;
use tokio::time::timeout;

use super::Took;
use super::engine::now_ns;
use crate::container::{PATIENCE, WORKERS_NETWORK, start_worker, stop_worker};
use crate::process::Served;
use crate::socket::Native;

const QUEUE: &str = "overhead";

/// What a client saw of a job.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) job: JobId,
    pub(super) took: Took,
    /// When it was told that a worker has it: what leaves for the worker leaves in the same moment.
    pub(super) claimed_ns: Option<u64>,
}

pub(super) struct Grid {
    worker: Child,
    client: Native,
    image: String,
}

impl Grid {
    pub(super) async fn start(
        binary: &Path,
        broker: &Served,
        folder: &Path,
        image: &str,
        cpus: usize,
    ) -> anyhow::Result<Self> {
        let (worker, client) = start_worker(binary, broker, folder, QUEUE, WORKERS_NETWORK, cpus).await?;
        Ok(Self { worker, client, image: image.to_owned() })
    }

    /// Submits a job for each number and waits until all have finished.
    pub(super) async fn jobs(&mut self, numbers: &[u64]) -> anyhow::Result<Vec<Seen>> {
        let mut asked = HashMap::new();
        for &number in numbers {
            let definition = RawJson::new(format!(
                r#"{{"image":"{}","command":"echo hello","env":{{"N":"{number}"}}}}"#,
                self.image
            ));
            let job = Submission {
                id: None,
                definition,
                namespace: None,
                priority: 0,
                debug: false,
                retry: false,
                callbacks: Callbacks::default(),
            };
            asked.insert(number, now_ns());
            self.client.send(&ToBroker::Submit { req: number, job }).await?;
        }
        // As many as can be waited for at once, and more for a line of them.
        let patience = PATIENCE * u32::try_from(numbers.len().div_ceil(50)).unwrap_or(1);
        timeout(patience, self.finished(asked)).await.context("the jobs do not finish; see worker.log")?
    }

    async fn finished(&mut self, asked: HashMap<RequestId, u64>) -> anyhow::Result<Vec<Seen>> {
        let mut ids: HashMap<RequestId, JobId> = HashMap::new();
        let (mut claimed, mut ended) = (HashMap::new(), HashMap::new());
        loop {
            let (message, _) = self.client.next().await?;
            let now = now_ns();
            match message {
                FromBroker::Ok { req, job: Some(job), .. } if asked.contains_key(&req) => {
                    ids.insert(req, job);
                }
                FromBroker::Rejected { code, message, .. } => bail!("refused: {code}: {message}"),
                FromBroker::Events { records, .. } => {
                    for record in records {
                        match Record::decode(&record.0)?.event {
                            Event::RunClaimed { job, .. } => {
                                claimed.insert(job, now);
                            }
                            Event::RunFinished { job, outcome: RunOutcome::Success, exit_code: Some(0), .. } => {
                                ended.insert(job, now);
                            }
                            failed @ (Event::RunFinished { .. } | Event::RunLost { .. }) => {
                                bail!("a job failed: {failed:?}")
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
            if ids.len() == asked.len() && ids.values().all(|job| ended.contains_key(job)) {
                break;
            }
        }
        let seen = |(req, job): (RequestId, JobId)| {
            let took = Took { asked_ns: asked[&req], done_ns: ended[&job] };
            Seen { job, took, claimed_ns: claimed.get(&job).copied() }
        };
        Ok(ids.into_iter().map(seen).collect())
    }

    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        stop_worker(&mut self.worker).await
    }
}
