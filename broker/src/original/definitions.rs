//! Definitions for the original's workers, each as the frame that it is sent in; those that would kill a worker are not sent.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use protocol::id::JobId;
use protocol::original::fitness::{self, Unfit};
use protocol::original::to_peer;
use serde_json::value::RawValue;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::engine::QueueHandle;

/// Bytes of frames kept per queue, so that of many workers that ask for the same only the first makes the disk work.
const KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a kept one takes besides its text, about.
const ENTRY_BYTES: usize = 200;

/// What became of a request.
#[derive(Clone, Debug)]
pub(super) enum Definition {
    /// The frame to send.
    Frame(Utf8Bytes),
    /// A worker would not survive it.
    Unfit(Unfit),
}

/// A queue's definitions. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Definitions(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    by_job: HashMap<JobId, Definition>,
    order: VecDeque<JobId>,
    bytes: usize,
}

impl Definition {
    fn bytes(&self) -> usize {
        ENTRY_BYTES
            + match self {
                Self::Frame(frame) => frame.len(),
                Self::Unfit(_) => 0,
            }
    }
}

impl Definitions {
    /// The definition of a job; `None` when the queue does not know it, or cannot read it now.
    pub(super) async fn get(&self, queue: &QueueHandle, job: JobId) -> Option<Definition> {
        if let Some(kept) = self.kept(|kept| kept.by_job.get(&job).cloned()) {
            return Some(kept);
        }
        let record = queue.job(job).await.ok()??;
        let text = queue.body(record.job.body).await.ok()??;
        let definition = match fitness::check(&text) {
            Ok(()) => {
                let value: &RawValue = serde_json::from_slice(&text).ok()?;
                Definition::Frame(to_peer::definitions(std::iter::once((job, value))).into())
            }
            Err(unfit) => Definition::Unfit(unfit),
        };
        self.kept(|kept| kept.put(job, definition.clone()));
        Some(definition)
    }

    fn kept<T>(&self, act: impl FnOnce(&mut Kept) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Kept {
    fn put(&mut self, job: JobId, definition: Definition) {
        self.bytes += definition.bytes();
        match self.by_job.insert(job, definition) {
            Some(before) => self.bytes -= before.bytes(),
            None => self.order.push_back(job),
        }
        while self.bytes > KEPT_BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.bytes -= self.by_job.remove(&oldest).map_or(0, |definition| definition.bytes());
        }
    }
}
