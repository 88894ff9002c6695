//! Definitions of many jobs, for a page that shows what is in view: found in one look at the queue, read part by part.

use std::collections::VecDeque;

use protocol::id::{Digest, JobId, QueueKey};
use protocol::native::JobDefinition;
use protocol::raw::RawJson;

use super::{Engine, QueueHandle, blocking};
use crate::journal::{Journal, JournalError};
use crate::refusal::Refusal;

/// Bytes of definitions in one part; one that is larger is a part of its own.
const PART_BYTES_MAX: usize = 256 * 1024;

/// Definitions that are still to be read.
pub(crate) struct Definitions {
    engine: Engine,
    queue: QueueKey,
    /// The jobs, with the definition's blake3 where the queue knew it; others may be known as what is kept of them.
    wanted: VecDeque<(JobId, Option<Digest>)>,
}

impl QueueHandle {
    /// The definitions of those of `jobs` that the queue has or keeps, in that order.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the queue cannot be used.
    pub(crate) async fn definitions(&self, jobs: Vec<JobId>) -> Result<Definitions, Refusal> {
        let body_of = |job| move |core: &crate::rules::core::Core| core.state().job(job).map(|found| found.body);
        let find = move |core: &_| jobs.into_iter().map(|job| (job, body_of(job)(core))).collect();
        let wanted = self.read(find).await?;
        Ok(Definitions { engine: self.engine.clone(), queue: self.key, wanted })
    }
}

impl Definitions {
    /// The next part, and whether it is the last.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the journal cannot be read.
    pub(crate) async fn next_part(&mut self) -> Result<(Vec<JobDefinition>, bool), Refusal> {
        let _reading = self.engine.0.reading.acquire().await;
        let (journal, queue) = (self.engine.0.journal.clone(), self.queue);
        let mut wanted = std::mem::take(&mut self.wanted);
        let (part, wanted) = blocking(move || Ok((read_part(&journal, queue, &mut wanted)?, wanted))).await?;
        self.wanted = wanted;
        Ok((part, self.wanted.is_empty()))
    }
}

/// Reads what fits into a part; what is not known or not stored any more is left out.
fn read_part(
    journal: &Journal,
    queue: QueueKey,
    wanted: &mut VecDeque<(JobId, Option<Digest>)>,
) -> Result<Vec<JobDefinition>, JournalError> {
    let mut known = Vec::with_capacity(wanted.len());
    for (job, body) in wanted.drain(..) {
        let body = match body {
            Some(body) => Some(body),
            None => journal.archived(queue, job)?.map(|kept| kept.body),
        };
        known.extend(body.map(|body| (job, body)));
    }
    let bodies: Vec<_> = known.iter().map(|(_, body)| *body).collect();
    let found = journal.bodies(queue, &bodies, PART_BYTES_MAX)?;
    let rest = known.split_off(found.len());
    wanted.extend(rest.into_iter().map(|(job, body)| (job, Some(body))));
    let definition = |bytes: Vec<u8>| String::from_utf8(bytes).ok().map(RawJson::new);
    let read = known.into_iter().zip(found);
    Ok(read.filter_map(|((job, _), bytes)| Some(JobDefinition { job, definition: definition(bytes?)? })).collect())
}
