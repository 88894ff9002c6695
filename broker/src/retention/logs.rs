//! Removing the logs of jobs that ended long ago. A job that waits or runs keeps its logs, however silent it is.

use protocol::id::{JobId, QueueKey, UnixMillis};

use super::pace::{ask, pause, unless_quarantined};
use super::{SweepError, Swept};
use crate::engine::{Engine, View};

/// Jobs looked at at once.
const PART_JOBS: usize = 256;

/// Removes the logs of jobs that ended before `ended_before`.
pub(super) async fn sweep(engine: &Engine, ended_before: UnixMillis, swept: &mut Swept) -> Result<(), SweepError> {
    for queue in engine.logs().queues().await? {
        match sweep_queue(engine, queue, ended_before, swept).await {
            // What is wrong with one queue's files must not keep everything else from going, hour by hour.
            Err(SweepError::Logs(error)) => {
                tracing::warn!(%error, queue = queue.short(), "old logs of a queue could not be removed: {error}");
            }
            done => unless_quarantined(done)?,
        }
        pause().await;
    }
    Ok(())
}

async fn sweep_queue(
    engine: &Engine,
    queue: QueueKey,
    ended_before: UnixMillis,
    swept: &mut Swept,
) -> Result<(), SweepError> {
    let jobs = engine.logs().jobs(queue).await?;
    let mut view = None;
    for part in jobs.chunks(PART_JOBS) {
        let silent = engine.logs().silent(queue, part.to_vec(), ended_before).await?;
        if !silent.is_empty() {
            let view = match &mut view {
                Some(view) => view,
                None => view.insert(engine.view(queue).await?),
            };
            for job in ended(engine, view, queue, silent, ended_before).await? {
                swept.logs += u64::from(engine.logs().remove_silent(queue, job, ended_before).await?);
            }
        }
        pause().await;
    }
    Ok(())
}

/// Those of `jobs` that ended before `ended_before`, or that nothing is known of any more.
async fn ended(
    engine: &Engine,
    view: &View,
    queue: QueueKey,
    jobs: Vec<JobId>,
    ended_before: UnixMillis,
) -> Result<Vec<JobId>, SweepError> {
    let mut ended = Vec::new();
    let there = view.of(jobs.clone()).await?;
    for job in jobs {
        let is_over = match there.iter().find(|found| found.job == job) {
            Some(found) => !found.is_live && found.changed_at_ms < ended_before,
            None => {
                let kept = ask(engine, move |journal| journal.archived(queue, job)).await?;
                kept.is_none_or(|kept| kept.changed_at_ms < ended_before)
            }
        };
        if is_over {
            ended.push(job);
        }
    }
    Ok(ended)
}
