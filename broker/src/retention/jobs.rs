//! Forgetting jobs: the horizon first, then what lies behind it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use protocol::id::{Digest, JobId, QueueKey, UnixMillis};

use super::named::Names;
use super::pace::{ask, pause, unless_quarantined};
use super::{SweepError, Swept};
use crate::engine::Engine;
use crate::journal::{Archived, Gone};

/// Rows read at once.
const PAGE_ROWS: usize = 512;
/// Jobs forgotten together, about 20 MiB of them: what they name is looked for once among all that the queue keeps.
const GONE_MAX: usize = 32_768;
/// Bodies looked up at once.
const PLACES_AT_ONCE: usize = 512;
/// Large bodies looked at in one sweep of a queue; the rest follow in the next.
const FILES_MAX: usize = 262_144;

/// Forgets jobs that left their queue before `left_before`.
pub(super) async fn sweep(
    engine: &Engine,
    left_before: UnixMillis,
    now: UnixMillis,
    swept: &mut Swept,
) -> Result<(), SweepError> {
    ask(engine, move |journal| journal.forget_before(left_before, now)).await?;
    let (mut after, mut queue, mut gone) = (None, None, Vec::new());
    loop {
        let page = ask(engine, move |journal| {
            let mut page = journal.kept_page(None, after, PAGE_ROWS)?;
            page.rows.retain(|(.., kept)| journal.is_forgotten(kept));
            Ok(page)
        })
        .await?;
        for (of, job, kept) in page.rows {
            if queue != Some(of) || gone.len() == GONE_MAX {
                forget(engine, queue.replace(of), std::mem::take(&mut gone), swept).await?;
            }
            gone.push((job, kept));
        }
        after = page.next;
        if after.is_none() {
            break;
        }
        pause().await;
    }
    forget(engine, queue, gone, swept).await?;
    for queue in ask(engine, |journal| journal.queues_with_files()).await? {
        unless_quarantined(forget_files(engine, queue, swept).await)?;
    }
    Ok(())
}

async fn forget(
    engine: &Engine,
    queue: Option<QueueKey>,
    gone: Vec<(JobId, Archived)>,
    swept: &mut Swept,
) -> Result<(), SweepError> {
    match queue {
        Some(queue) if !gone.is_empty() => unless_quarantined(take_out(engine, queue, gone, swept).await),
        Some(_) | None => Ok(()),
    }
}

/// Takes forgotten jobs of a queue out, and the places of what they alone named.
async fn take_out(
    engine: &Engine,
    queue: QueueKey,
    gone: Vec<(JobId, Archived)>,
    swept: &mut Swept,
) -> Result<(), SweepError> {
    // In this order: what comes back from here on is noted; what came back before is seen in the queue.
    let forgetting = Arc::new(ask(engine, move |journal| journal.begin_forgetting(queue)).await?);
    let digests: HashSet<Digest> = gone.iter().flat_map(|(_, kept)| kept.bodies()).collect();
    let digests: Vec<Digest> = digests.into_iter().collect();
    let mut places = HashMap::with_capacity(digests.len());
    for part in digests.chunks(PLACES_AT_ONCE) {
        let (part, forgetting) = (part.to_vec(), Arc::clone(&forgetting));
        places.extend(ask(engine, move |_| forgetting.places(&part)).await?);
        pause().await;
    }
    let jobs: HashSet<JobId> = gone.iter().map(|(job, _)| *job).collect();
    let mut back = HashSet::new();
    let mut names = Names::of(engine, queue).await?;
    while let Some(page) = names.next().await? {
        for named in page {
            if named.is_there && jobs.contains(&named.job) {
                back.insert(named.job);
            }
            named.bodies().for_each(|digest| {
                places.remove(&digest);
            });
        }
        pause().await;
    }
    let gone = gone.into_iter().map(|(job, kept)| Gone { job, kept, is_back: back.contains(&job) });
    let (gone, places): (Vec<_>, Vec<_>) = (gone.collect(), places.into_iter().collect());
    swept.jobs += ask(engine, move |_| forgetting.take_out(&gone, &places)).await?;
    Ok(())
}

/// Removes the files of large bodies that nothing names any more: of forgotten jobs, of results that a later run replaced, of
/// submissions that were refused.
async fn forget_files(engine: &Engine, queue: QueueKey, swept: &mut Swept) -> Result<(), SweepError> {
    let old = ask(engine, move |journal| journal.old_files(queue, FILES_MAX)).await?;
    let mut unnamed: HashSet<Digest> = old.into_iter().collect();
    if unnamed.is_empty() {
        return Ok(());
    }
    let mut names = Names::of(engine, queue).await?;
    while let Some(page) = names.next().await? {
        page.iter().flat_map(super::named::Named::bodies).for_each(|digest| {
            unnamed.remove(&digest);
        });
        pause().await;
    }
    for digest in unnamed {
        swept.bodies += u64::from(ask(engine, move |journal| journal.remove_file(queue, digest)).await?);
        pause().await;
    }
    Ok(())
}
