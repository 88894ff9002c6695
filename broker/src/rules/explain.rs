//! Why a job stands where it stands: its place in line, the workers that were looked at, what did not fit, and a guess when.

use std::collections::BTreeMap;

use protocol::event::RunOutcome;
use protocol::explain::{
    AHEAD_COUNTED_MAX, Estimate, Explanation, Fit, Lack, Line as LinePlace, Resource, Standing, WORKERS_NAMED_MAX,
    WorkerFit,
};
use protocol::id::{JobId, UnixMillis, WorkerId};
use protocol::queue::{Job, Place, Status};

use super::line::Kind;
use super::presence::Worker;
use super::recent::RecentRuns;
use super::settle::Grid;

/// The explanation of a job; [`Standing::Unknown`] when it is not in the state.
pub(super) fn explain(grid: &Grid<'_>, recent: &RecentRuns, id: JobId, now: UnixMillis) -> Explanation {
    let Some(job) = grid.state.job(id) else { return unknown(id) };
    let (standing, reason) = match &job.status {
        Status::Queued { .. } => (Standing::Waiting, String::new()),
        Status::Running {} => (Standing::Running, running_reason(grid, job)),
        Status::Finished { .. } | Status::Cancelled { .. } | Status::Replaced { .. } | Status::Deleted {} => {
            ended(&job.status, job.lost)
        }
    };
    let explanation = Explanation {
        standing,
        reason,
        since_ms: Some(job.changed_at_ms),
        run: job.run,
        worker: job.worker.clone(),
        lost: job.lost,
        ..unknown(id)
    };
    match job.place(id) {
        Some(place) => waiting(grid, recent, explanation, job, place, now),
        None => explanation,
    }
}

/// Of a job that is neither in the queue nor kept.
pub(crate) fn unknown(job: JobId) -> Explanation {
    Explanation {
        job,
        standing: Standing::Unknown,
        reason: "there is no such job in this queue".to_owned(),
        since_ms: None,
        run: 0,
        worker: None,
        lost: 0,
        line: None,
        workers: Vec::new(),
        workers_total: 0,
        estimate: None,
    }
}

fn running_reason(grid: &Grid<'_>, job: &Job) -> String {
    let silent =
        job.worker.as_ref().and_then(|id| grid.presence.worker(id)).is_none_or(|worker| worker.session.is_none());
    match &job.worker {
        Some(worker) if silent => {
            format!("worker {worker} has it and is silent; it is run again unless that worker comes back")
        }
        Some(worker) => format!("worker {worker} runs it"),
        None => "it runs".to_owned(),
    }
}

/// What became of a job that is over.
pub(crate) fn ended(status: &Status, lost: u32) -> (Standing, String) {
    match status {
        Status::Finished { abandoned: true, .. } => {
            (Standing::Abandoned, format!("it was given up: {lost} runs were lost with their workers"))
        }
        Status::Finished { outcome, exit_code, .. } => (Standing::Finished, finished_reason(*outcome, *exit_code)),
        Status::Cancelled { message: Some(message) } => (Standing::Cancelled, format!("it was cancelled: {message}")),
        Status::Cancelled { message: None } => (Standing::Cancelled, "it was cancelled".to_owned()),
        Status::Replaced { by } => (Standing::Replaced, format!("job {by} took its place in its namespace")),
        Status::Deleted {} => (Standing::Deleted, "it was deleted on request".to_owned()),
        Status::Queued { .. } | Status::Running {} => (Standing::Unknown, "it is not over".to_owned()),
    }
}

fn finished_reason(outcome: RunOutcome, exit_code: Option<i64>) -> String {
    match (outcome, exit_code) {
        (RunOutcome::Success, Some(code)) => format!("it ended with exit code {code}"),
        (RunOutcome::Success, None) => "it ended".to_owned(),
        (RunOutcome::Error, Some(code)) => format!("it failed with exit code {code}"),
        (RunOutcome::Error, None) => "it failed; its result says why".to_owned(),
        (RunOutcome::TimedOut, _) => "its time limit was reached".to_owned(),
    }
}

fn waiting(
    grid: &Grid<'_>,
    recent: &RecentRuns,
    mut explanation: Explanation,
    job: &Job,
    place: Place,
    now: UnixMillis,
) -> Explanation {
    let kind = Kind::of(&job.needs);
    let namespace = job.wanted_first_by().cloned().unwrap_or_default();
    let (mut ahead, mut ahead_in_namespace) = (0, 0);
    for (_, other) in grid.state.before(place).take(AHEAD_COUNTED_MAX.try_into().unwrap_or(usize::MAX)) {
        ahead += 1;
        ahead_in_namespace += u64::from(other.wanted_first_by() == Some(&namespace));
    }
    let mut runs: BTreeMap<&WorkerId, u64> = BTreeMap::new();
    for worker in grid.state.running().filter_map(|(_, job)| job.worker.as_ref()) {
        *runs.entry(worker).or_default() += 1;
    }
    let fit = |(id, worker)| {
        let runs = runs.get(id).copied().unwrap_or(0);
        fit(grid, explanation.job, &kind, id, worker, runs, now)
    };
    let mut workers: Vec<_> = grid.presence.workers().map(fit).collect();
    workers.sort_by(|a, b| a.fit.cmp(&b.fit).then_with(|| a.id.cmp(&b.id)));
    explanation.workers_total = u32::try_from(workers.len()).unwrap_or(u32::MAX);
    explanation.reason = waiting_reason(&kind, &workers, ahead, job.lost);
    explanation.estimate = estimate(grid, recent, &kind, &workers, ahead);
    workers.truncate(WORKERS_NAMED_MAX);
    explanation.workers = workers;
    explanation.line = Some(LinePlace {
        ahead,
        ahead_in_namespace,
        namespace,
        waiting: grid.state.waiting_count() as u64,
        priority: job.priority,
        needs: job.needs.clone(),
    });
    explanation
}

/// How a worker fits a waiting job.
fn fit(
    grid: &Grid<'_>,
    job: JobId,
    kind: &Kind,
    id: &WorkerId,
    worker: &Worker,
    runs: u64,
    now: UnixMillis,
) -> WorkerFit {
    let in_all = lacks(kind, worker, true);
    let (fit, lacks) = if !in_all.is_empty() {
        (Fit::Never, in_all)
    } else if worker.session.is_none() {
        (Fit::Silent, Vec::new())
    } else if !worker.may_have(job, now) {
        (Fit::HandedBack, Vec::new())
    } else if worker.takes_by_itself {
        // It says how many jobs it runs at once, not what it has free.
        let is_full = runs * 1000 >= u64::from(worker.hello.total.cpus_milli);
        (if is_full { Fit::Later } else { Fit::Now }, Vec::new())
    } else {
        let now = lacks(kind, worker, false);
        let fit = match grid.holds.of(id) {
            Some(held) if held == kind => Fit::Held,
            Some(_) if now.is_empty() => Fit::HeldForOthers,
            Some(_) | None if now.is_empty() => Fit::Now,
            Some(_) | None => Fit::Later,
        };
        (fit, now)
    };
    WorkerFit { id: id.clone(), fit, lacks }
}

/// What a worker lacks for jobs of a kind: of all it has, or of what is free now.
fn lacks(kind: &Kind, worker: &Worker, in_all: bool) -> Vec<Lack> {
    let (total, free) = (&worker.hello.total, &worker.free);
    let lack = |what, needs: u64, free: u64, total: u64| {
        (needs > if in_all { total } else { free }).then_some(Lack { what, needs, free, total })
    };
    let memory = kind.memory_bytes.zip(total.memory_bytes);
    let tags = kind.tags.iter().filter(|tag| worker.hello.tags.contains(tag)).count() as u64;
    let tags_lack = (!worker.tags_match(kind)).then_some(Lack {
        what: Resource::Tags,
        needs: kind.tags.len() as u64,
        free: tags,
        total: worker.hello.tags.len() as u64,
    });
    [
        lack(Resource::CpusMilli, kind.cpus_milli.into(), free.cpus_milli.into(), total.cpus_milli.into()),
        memory.and_then(|(needs, total)| lack(Resource::MemoryBytes, needs, free.memory_bytes.unwrap_or(total), total)),
        lack(Resource::Gpus, kind.gpus.into(), free.gpus.into(), total.gpus.into()),
        tags_lack,
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn waiting_reason(kind: &Kind, workers: &[WorkerFit], ahead: u64, lost: u32) -> String {
    let again = match lost {
        0 => String::new(),
        1 => " It was lost by a worker once and goes first.".to_owned(),
        times => format!(" It was lost by workers {times} times and goes first."),
    };
    let Some(best) = workers.first() else {
        return format!("no worker is connected to this queue.{again}");
    };
    let fitting = workers.iter().filter(|worker| worker.fit < Fit::Silent).count();
    let text = match best.fit {
        Fit::Now => format!("worker {} has room for it; {ahead} jobs are before it in line.", best.id),
        Fit::Held => format!("worker {} is kept free for it until enough of its runs have ended.", best.id),
        Fit::Later => format!(
            "{} could run it and {} busy; {ahead} jobs are before it in line.",
            workers_named(fitting),
            if fitting == 1 { "is" } else { "are" }
        ),
        Fit::HeldForOthers => "the workers with room are kept free for jobs that have waited for long.".to_owned(),
        Fit::HandedBack => format!("worker {} handed it back and is asked again in a while.", best.id),
        Fit::Silent => "the workers that could run it are silent; they may come back.".to_owned(),
        Fit::Never => format!("no worker of this queue offers {}.", lacking(kind, workers)),
    };
    text + &again
}

fn workers_named(count: usize) -> String {
    if count == 1 { "1 worker".to_owned() } else { format!("{count} workers") }
}

/// What none of the workers has, as far as one thing alone stops them all; else what the job needs in all.
fn lacking(kind: &Kind, workers: &[WorkerFit]) -> String {
    let everywhere = |what: Resource| workers.iter().all(|worker| worker.lacks.iter().any(|lack| lack.what == what));
    let named = |what: Resource| match what {
        Resource::CpusMilli => format!("{} CPUs", f64::from(kind.cpus_milli) / 1000.0),
        Resource::MemoryBytes => format!("{} bytes of memory for one job", kind.memory_bytes.unwrap_or(0)),
        Resource::Gpus if kind.gpus == 1 => "1 GPU".to_owned(),
        Resource::Gpus => format!("{} GPUs", kind.gpus),
        Resource::Tags if kind.tags.is_empty() => "room for jobs without a tag (all were started with tags)".to_owned(),
        Resource::Tags => format!("one of the tags {}", kind.tags.join(", ")),
    };
    let all = [Resource::Gpus, Resource::CpusMilli, Resource::MemoryBytes, Resource::Tags];
    let missing: Vec<_> = all.into_iter().filter(|what| everywhere(*what)).map(named).collect();
    if missing.is_empty() {
        let needed: Vec<_> = all
            .into_iter()
            .filter(|what| workers.iter().any(|worker| worker.lacks.iter().any(|lack| lack.what == *what)))
            .map(named)
            .collect();
        return format!("all at once: {}", needed.join(", "));
    }
    missing.join(" and ")
}

/// When it may start, if the jobs before it take as long as those that ended lately.
fn estimate(grid: &Grid<'_>, recent: &RecentRuns, kind: &Kind, workers: &[WorkerFit], ahead: u64) -> Option<Estimate> {
    let (median_run_ms, runs) = recent.median()?;
    let could = workers.iter().filter(|worker| worker.fit < Fit::Silent);
    let slots: u64 = could.filter_map(|fit| grid.presence.worker(&fit.id)).map(|worker| slots(kind, worker)).sum();
    // Further ahead than is counted: about all that wait.
    let ahead = if ahead < AHEAD_COUNTED_MAX { ahead } else { grid.state.waiting_count() as u64 };
    let is_free = workers.first().is_some_and(|worker| worker.fit == Fit::Now);
    let rounds = (ahead + u64::from(!is_free)).checked_add(slots.checked_sub(1)?)? / slots.max(1);
    Some(Estimate {
        starts_in_ms: rounds.saturating_mul(median_run_ms),
        median_run_ms,
        runs,
        slots: u32::try_from(slots).unwrap_or(u32::MAX),
    })
}

/// How many jobs of a kind a worker can run at once.
fn slots(kind: &Kind, worker: &Worker) -> u64 {
    let total = &worker.hello.total;
    let by = |needs: u64, total: u64| total.checked_div(needs).unwrap_or(u64::MAX);
    let memory = kind.memory_bytes.zip(total.memory_bytes).map_or(u64::MAX, |(needs, total)| by(needs, total));
    by(kind.cpus_milli.max(1).into(), total.cpus_milli.into()).min(by(kind.gpus.into(), total.gpus.into())).min(memory)
}
