//! Which facts a command makes, or why it is refused. Reads the state, changes nothing.

use protocol::event::{Event, LostReason, RunOutcome};
use protocol::id::{Digest, JobId, Namespace, UnixMillis, WorkerId};
use protocol::native::HeldRun;
use protocol::queue::{Job, QueueState, Status};

use super::command::{CancelScope, Finish, MESSAGE_BYTES_MAX, Rejection, Submit};
use super::due::after_loss;
use super::limits::Limits;
use crate::journal::{Archived, Body};

/// Facts, and the bodies that they name and that are not stored yet.
#[derive(Default)]
pub(super) struct Decision {
    pub(super) events: Vec<Event>,
    pub(super) bodies: Vec<Body>,
}

impl From<Vec<Event>> for Decision {
    fn from(events: Vec<Event>) -> Self {
        Self { events, bodies: Vec::new() }
    }
}

/// A submission: a new job, a wish for one that is there, or a look at a result that is kept.
pub(super) fn submit(state: &QueueState, submit: &Submit, limits: &Limits) -> Result<Decision, Rejection> {
    let Submit { job: id, namespace, .. } = submit;
    let known = state.job(*id).map(|job| (job, &job.status));
    match known {
        Some((job, status)) if submit.retry && is_failure(status) => queue_again(state, submit, job, limits),
        Some((job, Status::Queued { .. } | Status::Running {} | Status::Finished { .. })) => {
            join(state, *id, job, namespace, limits).map(Decision::from)
        }
        // Cancelled, replaced and deleted jobs start anew: whoever asks again wants it.
        Some((job, Status::Cancelled { .. } | Status::Replaced { .. } | Status::Deleted {})) => {
            queue(state, submit, job.run, limits)
        }
        None => match &submit.archived {
            Some(kept) if submit.retry && is_failure(&kept.status) => queue(state, submit, kept.run, limits),
            Some(kept) => recall(state, submit, kept, limits),
            None => queue(state, submit, 0, limits),
        },
    }
}

/// Whether a job ended with a result that is no success: it could not be run, ran out of time, or its program said that it failed.
const fn is_failure(status: &Status) -> bool {
    match status {
        Status::Finished { outcome: RunOutcome::Error | RunOutcome::TimedOut, .. } => true,
        Status::Finished { outcome: RunOutcome::Success, exit_code, .. } => !matches!(exit_code, None | Some(0)),
        Status::Queued { .. }
        | Status::Running {}
        | Status::Cancelled { .. }
        | Status::Replaced { .. }
        | Status::Deleted {} => false,
    }
}

fn queue(state: &QueueState, submit: &Submit, runs_before: u32, limits: &Limits) -> Result<Decision, Rejection> {
    if state.waiting_count() + state.running_count() >= limits.live_jobs_max {
        return Err(Rejection::QueueFull { live_max: limits.live_jobs_max });
    }
    let event = Event::JobQueued {
        job: submit.job,
        body: submit.body,
        namespace: submit.namespace.clone(),
        via: submit.via,
        needs: submit.needs.clone(),
        priority: submit.priority,
        debug: submit.debug,
        runs_before,
    };
    let bodies = submit.text.iter().map(|text| Body { digest: submit.body, bytes: text.clone() }).collect();
    Ok(Decision { events: vec![event], bodies })
}

/// Runs a job that failed once more: for whoever asks, and for those who wanted it and have asked for nothing newer, so that a cancel by
/// one of them does not take it from the others.
fn queue_again(state: &QueueState, submit: &Submit, job: &Job, limits: &Limits) -> Result<Decision, Rejection> {
    let still_wants = |other: &&Namespace| other.is_default() || state.live_in(other).next().is_none();
    let others = job.namespaces.keys().filter(|other| **other != submit.namespace).filter(still_wants);
    let joined: Vec<_> =
        others.map(|other| Event::NamespaceJoined { job: submit.job, namespace: other.clone() }).collect();
    if joined.len() >= limits.namespaces_max {
        return Err(Rejection::NamespacesFull { namespaces_max: limits.namespaces_max });
    }
    let mut decision = queue(state, submit, job.run, limits)?;
    decision.events.extend(joined);
    Ok(decision)
}

fn recall(state: &QueueState, submit: &Submit, kept: &Archived, limits: &Limits) -> Result<Decision, Rejection> {
    let Some(recalled) = recalled(submit.job, kept, &submit.namespace) else {
        return queue(state, submit, kept.run, limits);
    };
    let mut events = vec![recalled];
    events.extend(supersede_by_finished(state, submit.job, &submit.namespace));
    Ok(events.into())
}

/// A job that left with a result, back in the queue for `namespace`; `None` when it left without one.
fn recalled(job: JobId, kept: &Archived, namespace: &Namespace) -> Option<Event> {
    let Status::Finished { outcome, result, exit_code, .. } = kept.status else { return None };
    Some(Event::JobRecalled {
        job,
        body: kept.body,
        namespace: namespace.clone(),
        queued_at_ms: kept.queued_at_ms,
        finished_at_ms: kept.changed_at_ms,
        run: kept.run,
        worker: kept.worker.clone(),
        outcome,
        result,
        exit_code,
    })
}

/// Adds a wish for a job. A repeated wish changes nothing, unless another job came to the namespace since.
fn join(
    state: &QueueState,
    id: JobId,
    job: &Job,
    namespace: &Namespace,
    limits: &Limits,
) -> Result<Vec<Event>, Rejection> {
    let newest = |joined: u64| {
        let mut others = state.live_in(namespace).filter(|other| *other != id);
        others.all(|other| {
            state.job(other).and_then(|other| other.namespaces.get(namespace)).is_none_or(|other| other.seq < joined)
        })
    };
    let joined = job.namespaces.get(namespace);
    if joined.is_some_and(|joined| namespace.is_default() || newest(joined.seq)) {
        return Ok(Vec::new());
    }
    if joined.is_none() && job.namespaces.len() >= limits.namespaces_max {
        return Err(Rejection::NamespacesFull { namespaces_max: limits.namespaces_max });
    }
    let mut events = vec![Event::NamespaceJoined { job: id, namespace: namespace.clone() }];
    if !job.is_live() {
        events.extend(supersede_by_finished(state, id, namespace));
    }
    Ok(events)
}

/// A finished job that is asked for again takes its namespace like any other, so that A, B, A leaves no B running.
fn supersede_by_finished(state: &QueueState, by: JobId, namespace: &Namespace) -> Vec<Event> {
    let mut events = Vec::new();
    for other in state.live_in(namespace).filter(|other| *other != by) {
        events.push(Event::NamespaceLeft { job: other, namespace: namespace.clone() });
        if state.job(other).is_some_and(|job| job.namespaces.len() == 1) {
            events.push(Event::JobReplaced { job: other, by });
        }
    }
    events
}

/// Withdraws wishes; `end` makes the last event when none is left.
fn withdraw(id: JobId, job: &Job, scope: &CancelScope, end: impl FnOnce() -> Event) -> Vec<Event> {
    let leaves = |namespace: &&Namespace| match scope {
        CancelScope::One(one) => *namespace == one,
        CancelScope::All => true,
    };
    let mut events: Vec<Event> = job
        .namespaces
        .keys()
        .filter(leaves)
        .map(|namespace| Event::NamespaceLeft { job: id, namespace: namespace.clone() })
        .collect();
    if events.len() == job.namespaces.len() {
        events.push(end());
    }
    events
}

/// Cancels a live job's wishes; an ended job is left as it is.
pub(super) fn cancel(id: JobId, job: &Job, scope: &CancelScope, message: Option<&str>) -> Vec<Event> {
    let message = message.map(|text| truncated(text, MESSAGE_BYTES_MAX));
    withdraw(id, job, scope, || Event::JobCancelled { job: id, message })
}

/// Deletes a job that is in the queue.
pub(super) fn delete(id: JobId, job: &Job, scope: &CancelScope) -> Vec<Event> {
    match job.status {
        Status::Deleted {} => Vec::new(),
        Status::Queued { .. }
        | Status::Running {}
        | Status::Finished { .. }
        | Status::Cancelled { .. }
        | Status::Replaced { .. } => withdraw(id, job, scope, || Event::JobDeleted { job: id }),
    }
}

/// Deletes what is kept of a job that has left the queue: it comes back for a moment, so that its end is in the journal too.
pub(super) fn delete_archived(job: JobId, kept: &Archived) -> Vec<Event> {
    let namespace = Namespace::default();
    let Some(recalled) = recalled(job, kept, &namespace) else { return Vec::new() };
    vec![recalled, Event::NamespaceLeft { job, namespace }, Event::JobDeleted { job }]
}

/// Takes a run's end from the worker that has it.
pub(super) fn finish(state: &QueueState, worker: &WorkerId, finish: &Finish) -> Result<Decision, Rejection> {
    let HeldRun { job: id, run } = finish.run;
    let job = state.job(id).ok_or(Rejection::StaleRun(finish.run))?;
    if !job.holds(run, worker) {
        // Its own finish, sent again because the answer was lost, is answered like the first.
        let again = job.run == run
            && job.worker.as_ref() == Some(worker)
            && matches!(&job.status, Status::Finished { result, abandoned: false, .. } if *result == finish.result);
        return if again { Ok(Decision::default()) } else { Err(Rejection::StaleRun(finish.run)) };
    }
    let event = Event::RunFinished {
        job: id,
        run,
        outcome: finish.outcome,
        result: finish.result,
        exit_code: finish.exit_code,
        image: finish.image,
        duration_ms: finish.duration_ms,
    };
    let bodies = finish.text.iter().map(|text| Body { digest: finish.result, bytes: text.clone() }).collect();
    Ok(Decision { events: vec![event], bodies })
}

/// Gives a run up: the job waits again at the front, or is abandoned.
pub(super) fn lose(id: JobId, job: &Job, why: LostReason, limits: &Limits, now: UnixMillis) -> Decision {
    let run = job.run;
    let lost = Event::RunLost { job: id, run, why };
    if after_loss(job, why, limits) {
        let text = format!("given up after {} lost runs: its workers vanished without a result", job.lost + 1);
        let mut decision = abandon(id, job, &text, now);
        decision.events.insert(0, lost);
        decision
    } else {
        vec![lost, Event::JobRequeued { job: id }].into()
    }
}

/// Gives a job up, with a result in the original's shape that says why.
pub(super) fn abandon(id: JobId, job: &Job, why: &str, now: UnixMillis) -> Decision {
    let worker = job.worker.as_ref().map_or("", WorkerId::as_str);
    let finished = serde_json::json!({
        "type": "Finished", "reason": "Error", "worker": worker, "time": now.0,
        "result": { "error": why, "isTimedOut": false, "logs": [[format!("{why}\n"), now.0, true]], "outputs": {} },
    });
    let bytes: std::sync::Arc<[u8]> = finished.to_string().into_bytes().into();
    let digest = Digest::of(&bytes);
    Decision { events: vec![Event::JobAbandoned { job: id, result: digest }], bodies: vec![Body { digest, bytes }] }
}

fn truncated(text: &str, bytes_max: usize) -> String {
    text.chars()
        .scan(0, |bytes, c| {
            *bytes += c.len_utf8();
            (*bytes <= bytes_max).then_some(c)
        })
        .collect()
}
