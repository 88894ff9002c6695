//! What a queue's jobs name: the definition and the result of each that is in the queue or kept.
//!
//! Those in the queue first, then those that are kept. In this order nothing is missed, although jobs leave and come back
//! meanwhile: one that leaves was seen in the queue, one that comes back is still kept; and what is new names what is new.

use protocol::id::{Digest, JobId, QueueKey};

use super::SweepError;
use super::pace::ask;
use crate::engine::{Engine, Standing, View};

/// Jobs looked at at once: less than a millisecond of a queue's time.
const PAGE_JOBS: usize = 512;

/// A job, and the bodies that it names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named {
    /// The job.
    pub(super) job: JobId,
    /// Its definition.
    pub(super) body: Digest,
    /// Its result.
    pub(super) result: Option<Digest>,
    /// Whether it is in its queue.
    pub(super) is_there: bool,
}

impl Named {
    /// Both.
    pub(super) fn bodies(&self) -> impl Iterator<Item = Digest> {
        std::iter::once(self.body).chain(self.result)
    }
}

/// A walk through the jobs of a queue.
pub(super) struct Names<'a> {
    engine: &'a Engine,
    queue: QueueKey,
    from: From,
}

enum From {
    State(View, Option<JobId>),
    Kept(Option<(QueueKey, JobId)>),
    End,
}

impl<'a> Names<'a> {
    /// Begins one.
    pub(super) async fn of(engine: &'a Engine, queue: QueueKey) -> Result<Self, SweepError> {
        Ok(Self { engine, queue, from: From::State(engine.view(queue).await?, None) })
    }

    /// The next jobs, maybe none; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Named>>, SweepError> {
        let queue = self.queue;
        let (page, next) = match &self.from {
            From::State(view, after) => {
                let page = view.page(*after, PAGE_JOBS).await?;
                let next = page.last().filter(|_| page.len() == PAGE_JOBS).map(|last| last.job);
                let named = |Standing { job, body, result, .. }| Named { job, body, result, is_there: true };
                let page = page.into_iter().map(named).collect();
                match next {
                    Some(last) => {
                        let From::State(_, after) = &mut self.from else { return Ok(None) };
                        *after = Some(last);
                        return Ok(Some(page));
                    }
                    None => (page, From::Kept(None)),
                }
            }
            From::Kept(after) => {
                let after = *after;
                let (page, next) = ask(self.engine, move |journal| {
                    let page = journal.kept_page(Some(queue), after, PAGE_JOBS)?;
                    let kept = page.rows.into_iter().filter(|(.., kept)| !journal.is_forgotten(kept));
                    let named = kept.map(|(_, job, kept)| Named {
                        job,
                        body: kept.body,
                        result: crate::journal::result_of(&kept.status),
                        is_there: false,
                    });
                    Ok((named.collect(), page.next))
                })
                .await?;
                (page, next.map_or(From::End, |next| From::Kept(Some(next))))
            }
            From::End => return Ok(None),
        };
        self.from = next;
        Ok(Some(page))
    }
}
