//! Looking up what became of a submission, where it was not heard: after a restart, or because the job was there before it.

use std::collections::{BTreeSet, HashMap};

use protocol::id::{JobId, Namespace, QueueKey, Seq, WorkerId};
use protocol::queue::{Job, Status};
use protocol::record::Record;

use super::book::Book;
use super::call::HookId;
use super::fate::{Ending, Fate};
use crate::engine::{Engine, QueueHandle};
use crate::refusal::Refusal;

/// What is known of a webhook's job.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// What the journal says from the submission on, when it is not known what became of that.
    pub(super) past: Fate,
    /// How the job ended, as the queue has it now.
    pub(super) ended: Option<Ending>,
    /// Whether the job is in the queue and the namespace's.
    pub(super) is_wanted: bool,
    /// Who runs it.
    pub(super) worker: Option<WorkerId>,
}

/// A webhook that is looked up.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) id: HookId,
    pub(super) job: JobId,
    pub(super) namespace: Namespace,
    /// From where on the journal is read; `None` when it is known that the queue took the submission.
    pub(super) seen: Option<Seq>,
}

/// Looks up a queue's webhooks, and tells the book.
pub(super) async fn look(book: &Book, engine: &Engine, queue: QueueKey, ids: &BTreeSet<HookId>) -> Result<(), Refusal> {
    let wanted = book.wanted(ids);
    let handle = engine.queue_by_key(queue);
    let (listener, asked) = (book.clone(), wanted.clone());
    let (through, mut jobs) = handle
        .read(move |core| {
            // What comes after this head is told by the queue's task, what was before is read below: nothing is between.
            let head = core.state().head().seq;
            listener.listen_after(asked.iter().filter(|hook| hook.seen.is_some()).map(|hook| hook.id), head);
            let jobs = asked.iter().filter_map(|hook| Some((hook.job, core.state().job(hook.job)?.clone())));
            (head, jobs.collect::<HashMap<JobId, Job>>())
        })
        .await?;
    for hook in &wanted {
        if !jobs.contains_key(&hook.job)
            && let Some(found) = handle.job(hook.job).await?
        {
            jobs.insert(hook.job, found.job);
        }
    }
    let mut pasts = past(&handle, &wanted, through).await?;
    for hook in wanted {
        let job = jobs.get(&hook.job);
        let runs = job.filter(|job| matches!(job.status, Status::Running {}));
        let found = Found {
            past: pasts.remove(&hook.id).unwrap_or_default(),
            ended: job.and_then(Ending::of),
            is_wanted: job.is_some_and(|job| job.namespaces.contains_key(&hook.namespace)),
            worker: runs.and_then(|job| job.worker.clone()),
        };
        book.looked(hook.id, found);
    }
    Ok(())
}

/// What the journal says about each of them, up to a position.
async fn past(handle: &QueueHandle, wanted: &[Wanted], through: Seq) -> Result<HashMap<HookId, Fate>, Refusal> {
    let mut by_job: HashMap<JobId, Vec<&Wanted>> = HashMap::new();
    let unknown = || wanted.iter().filter_map(|hook| Some((hook, hook.seen?)));
    for (hook, _) in unknown() {
        by_job.entry(hook.job).or_default().push(hook);
    }
    let mut pasts: HashMap<HookId, Fate> = HashMap::new();
    let mut after = unknown().map(|(_, seen)| seen).min().unwrap_or(through);
    while after < through {
        let records = handle.records_after(after, through).await?;
        // Records that are not there any more tell nothing; what the queue has now does.
        let Some(last) = records.last() else { break };
        after = last.seq;
        for record in records.iter().filter_map(|record| Record::decode(&record.bytes).ok()) {
            let hooks = record.event.job().and_then(|job| by_job.get(&job));
            for hook in hooks.into_iter().flatten().filter(|hook| hook.seen.is_some_and(|seen| record.seq > seen)) {
                pasts.entry(hook.id).or_default().fold(&hook.namespace, &record);
            }
        }
    }
    Ok(pasts)
}
