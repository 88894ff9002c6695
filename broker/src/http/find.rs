//! Finding a job's definition and result: in the queue that the address names, or wherever it is kept.

use bytes::Bytes;
use protocol::id::{Digest, JobId};
use protocol::json;
use protocol::queue::{Job, Status};
use serde_json::value::RawValue;

use super::app::AppState;
use super::error::ApiError;
use super::params::Params;
use crate::config::{Flavour, LOCAL_QUEUE};
use crate::engine::{JobRecord, QueueHandle};

/// The most queues that are compared for a route that names none; a job kept in more has no common answer.
const COMPARED_QUEUES_MAX: usize = 32;

/// Where to look for a job.
pub(super) enum Scope {
    /// In one queue.
    Queue(QueueHandle),
    /// In every queue that keeps it; queues are trust domains, so there is an answer only while all agree. One where it waits or runs
    /// does not agree to anything yet: whoever waits for its own run must not be given another queue's result.
    Everywhere,
}

/// A job that has a result, with the result's text.
pub(super) struct Finished {
    pub(super) job: Job,
    text: Bytes,
}

impl Finished {
    /// What the worker sent when the run ended.
    pub(super) fn finished(&self) -> Result<&RawValue, ApiError> {
        raw(&self.text)
    }

    pub(super) fn into_text(self) -> Bytes {
        self.text
    }
}

/// Stored JSON text, to be sent as it is.
pub(super) fn raw(text: &Bytes) -> Result<&RawValue, ApiError> {
    serde_json::from_slice(text).map_err(ApiError::internal)
}

impl AppState {
    /// Where the address says to look.
    pub(super) fn scope(&self, params: &Params) -> Result<Scope, ApiError> {
        if params.get("queue").is_some() {
            return Ok(Scope::Queue(self.engine.queue(&params.queue()?)));
        }
        self.anywhere()
    }

    /// Where addresses without a queue look.
    pub(super) fn anywhere(&self) -> Result<Scope, ApiError> {
        Ok(match self.config.flavour {
            Flavour::Local => Scope::Queue(self.local_queue()?),
            Flavour::Remote => Scope::Everywhere,
        })
    }

    pub(super) fn local_queue(&self) -> Result<QueueHandle, ApiError> {
        Ok(self.engine.queue(&super::params::queue(LOCAL_QUEUE)?))
    }

    /// Every queue of `scope` that keeps the job, with what it keeps; none when there are too many to compare.
    pub(super) async fn kept(&self, scope: &Scope, job: JobId) -> Result<Vec<(QueueHandle, JobRecord)>, ApiError> {
        let queues = match scope {
            Scope::Queue(queue) => vec![queue.clone()],
            Scope::Everywhere => {
                let keys = self.engine.unscoped(job).await?;
                if keys.len() > COMPARED_QUEUES_MAX {
                    return Ok(Vec::new());
                }
                keys.into_iter().map(|key| self.engine.queue_by_key(key)).collect()
            }
        };
        let mut kept = Vec::with_capacity(queues.len());
        for queue in queues {
            if let Some(record) = queue.job(job).await? {
                kept.push((queue, record));
            }
        }
        Ok(kept)
    }

    /// The job as its queue knows it; `None` when no queue or more than one does.
    pub(super) async fn one(&self, scope: &Scope, job: JobId) -> Result<Option<(QueueHandle, JobRecord)>, ApiError> {
        let mut kept = self.kept(scope, job).await?;
        Ok(if kept.len() == 1 { kept.pop() } else { None })
    }

    /// The definition's text, as received.
    pub(super) async fn definition(&self, scope: &Scope, job: JobId) -> Result<Option<Bytes>, ApiError> {
        let mut found: Option<(Digest, Bytes)> = None;
        for (queue, record) in self.kept(scope, job).await? {
            let digest = record.job.body;
            if found.as_ref().is_some_and(|(known, _)| *known == digest) {
                continue;
            }
            let Some(text) = queue.body(digest).await? else { continue };
            match &found {
                Some((_, known)) if !same_value(known, &text) => return Ok(None),
                Some(_) => {}
                None => found = Some((digest, text)),
            }
        }
        Ok(found.map(|(_, text)| text))
    }

    /// The job and its result, when it ended with one.
    pub(super) async fn finished(&self, scope: &Scope, id: JobId) -> Result<Option<Finished>, ApiError> {
        let mut found: Option<(QueueHandle, Job, Digest)> = None;
        for (queue, JobRecord { job, .. }) in self.kept(scope, id).await? {
            let result = match job.status {
                Status::Finished { result, .. } => result,
                Status::Queued { .. } | Status::Running {} => return Ok(None),
                Status::Cancelled { .. } | Status::Replaced { .. } | Status::Deleted {} => continue,
            };
            match &found {
                Some((_, _, known)) if *known != result => return Ok(None),
                Some(_) => {}
                None => found = Some((queue, job, result)),
            }
        }
        let Some((queue, job, result)) = found else { return Ok(None) };
        Ok(queue.body(result).await?.map(|text| Finished { job, text }))
    }
}

/// Whether two definitions say the same, whatever their spacing and key order. Both have the same id, so they can differ only
/// in what an id does not cover.
fn same_value(one: &[u8], other: &[u8]) -> bool {
    match (json::parse(one), json::parse(other)) {
        (Ok(one), Ok(other)) => json::to_canonical_json(&one) == json::to_canonical_json(&other),
        (Ok(_) | Err(_), _) => false,
    }
}
