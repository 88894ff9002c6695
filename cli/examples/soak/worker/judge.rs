//! Whether each job ended for the right reason, by the journal: what it was to do, what was done to it, and what was done to its
//! worker and engine meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::Context;
use broker::audit;
use broker::journal::{Journal, JournalConfig};
use protocol::event::{Event, RunOutcome};
use protocol::id::{JobId, QueueKey, QueueName, RunNumber};
use serde_json::Value;

use super::kinds::{Fate, Plan};
use super::{QUEUE, Trouble};

/// How long after the engine went away runs may be claimed that fail for that: what is on its way then.
const CLAIM_STOPS_MS: u64 = 1_000;
/// A killed worker's run may be lost, and claimed anew, before it is back.
const NEAR_MS: u64 = 5_000;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Judged {
    right: BTreeMap<&'static str, u64>,
    /// Ends that the engine's death explains.
    engine: u64,
    /// Ends that dying workers explain.
    workers: u64,
    cancelled: u64,
    deleted: u64,
    abandoned: u64,
}

impl Judged {
    pub(super) fn text(&self) -> String {
        let right: Vec<String> = self.right.iter().map(|(how, count)| format!("{count} {how}")).collect();
        format!(
            "as they should: {}; {} cancelled, {} deleted; {} ended by the engine's death, {} after workers' deaths, {} given up",
            right.join(", "),
            self.cancelled,
            self.deleted,
            self.engine,
            self.workers,
            self.abandoned
        )
    }
}

/// One run as it was told.
struct Run {
    claimed_ms: u64,
    /// When the job's first run was: a worker that dies at it twice lets it be, whichever runs those were.
    first_ms: u64,
    worker: String,
}

/// Reads the journal in `dir` and judges all lives.
pub(super) fn all(
    dir: &Path,
    plans: &HashMap<JobId, Plan>,
    troubles: &[Trouble],
    wrong: &mut Vec<String>,
) -> anyhow::Result<Judged> {
    let queue = QueueKey::of(&QUEUE.parse::<QueueName>().context("a queue's name")?);
    let rows: Vec<audit::AuditRow> = audit::log(dir, Some(queue))?.collect::<Result<_, _>>()?;
    let (journal, _) = Journal::open(JournalConfig { scrub: false, ..JournalConfig::new(dir.to_path_buf()) })?;
    let mut judged = Judged::default();
    let mut runs: HashMap<(JobId, RunNumber), Run> = HashMap::new();
    let mut first: HashMap<JobId, u64> = HashMap::new();
    for row in rows {
        let at_ms = row.at_ms.0;
        let Some(job) = row.event.job() else { continue };
        let Some(plan) = plans.get(&job) else {
            wrong.push(format!("job {job} is in the journal and was never submitted"));
            continue;
        };
        match row.event {
            Event::RunClaimed { run, worker, .. } => {
                let first_ms = *first.entry(job).or_insert(at_ms);
                runs.insert((job, run), Run { claimed_ms: at_ms, first_ms, worker: worker.to_string() });
            }
            Event::RunFinished { run, outcome, exit_code, result, .. } => {
                let Some(run) = runs.get(&(job, run)) else {
                    wrong.push(format!("run {run} of job {job} finished and was never claimed"));
                    continue;
                };
                let body = journal.body(queue, result)?.with_context(|| format!("no result of job {job}"))?;
                let finished: Value = serde_json::from_slice(&body)?;
                judged.finished(plan, job, run, at_ms, (outcome, exit_code, &finished["result"]), troubles, wrong);
            }
            Event::JobCancelled { .. } => match plan.fate {
                Fate::Cancelled(_) => judged.cancelled += 1,
                _ => wrong.push(format!("job {job} was cancelled by nobody: {plan:?}")),
            },
            Event::JobDeleted { .. } => match plan.fate {
                Fate::Deleted(_) => judged.deleted += 1,
                _ => wrong.push(format!("job {job} was deleted by nobody: {plan:?}")),
            },
            Event::JobAbandoned { .. } => judged.abandoned += 1,
            _ => {}
        }
    }
    journal.close();
    Ok(judged)
}

impl Judged {
    #[expect(clippy::too_many_arguments, reason = "one run with all that is known of it")]
    fn finished(
        &mut self,
        plan: &Plan,
        job: JobId,
        run: &Run,
        at_ms: u64,
        (outcome, code, result): (RunOutcome, Option<i64>, &Value),
        troubles: &[Trouble],
        wrong: &mut Vec<String>,
    ) {
        let Err(text) = plan.judge(outcome, code, result) else {
            *self.right.entry(outcome_word(outcome)).or_default() += 1;
            return;
        };
        let during =
            |trouble: &&Trouble, from_ms, after_ms| trouble.from_ms <= at_ms && from_ms <= trouble.to_ms + after_ms;
        // A container that the engine ended, whose output it lost, or that it could not make or follow. Who claims while the engine
        // is away is to give the run back.
        let had_begun = |trouble: &Trouble| run.claimed_ms <= trouble.from_ms + CLAIM_STOPS_MS;
        let is_engine = |trouble: &&Trouble| trouble.worker.is_none() && during(trouble, run.claimed_ms, 0);
        let engine = troubles.iter().filter(is_engine).any(had_begun);
        let kills = troubles.iter().filter(|trouble| trouble.worker.as_ref() == Some(&run.worker));
        let kills = kills.filter(|trouble| during(trouble, run.first_ms, NEAR_MS)).count();
        if engine {
            self.engine += 1;
        } else if kills >= 2 && outcome == RunOutcome::Error {
            self.workers += 1;
        } else {
            let error = &result["error"];
            let logs: String = result["logs"].to_string().chars().take(400).collect();
            wrong.push(format!(
                "job {job} ({:?}, {:?}) {text}; {kills} kills of its worker meanwhile, from {} to {at_ms}, error {error}, logs {logs}",
                plan.kind, plan.fate, run.claimed_ms
            ));
        }
    }
}

const fn outcome_word(outcome: RunOutcome) -> &'static str {
    match outcome {
        RunOutcome::Success => "ended by themselves",
        RunOutcome::Error => "could not be run",
        RunOutcome::TimedOut => "timed out",
    }
}
