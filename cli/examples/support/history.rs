//! What a data folder says happened, read from its segments, and whether everything that was told is in it.
#![allow(dead_code, reason = "each example uses its part")]

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use broker::audit;
use broker::journal::Journal;
use protocol::event::Event;
use protocol::id::{Digest, Head, JobId, QueueKey, RunNumber, Seq, WorkerId};
use protocol::native::HeldRun;
use protocol::queue::QueueState;
use protocol::record::{RECORD_VERSION, Record};

use crate::told::{Fact, Told};

/// How many wrong things are told: the first say enough.
pub(crate) const WRONG_MAX: usize = 20;

/// A queue's records.
pub(crate) struct History {
    hashes: Vec<Digest>,
    jobs: BTreeMap<JobId, Vec<(Seq, Event)>>,
    /// The state that they fold to.
    pub(crate) state: QueueState,
}

/// Every queue's records.
pub(crate) type Histories = BTreeMap<QueueKey, History>;

/// Proves the journal in `dir` with the auditor and reads it. Nothing in it may be wrong.
pub(crate) fn read(dir: &Path) -> anyhow::Result<Histories> {
    let report = audit::verify(dir, None)?;
    if let Some(bad) = report.first_bad {
        anyhow::bail!("audit verify: segment {}, byte {}: {}", bad.segment, bad.offset, bad.what);
    }
    let mut histories = Histories::new();
    for row in audit::log(dir, None)? {
        let audit::AuditRow { queue, seq, at_ms, event, hash, .. } = row?;
        let history = histories.entry(queue).or_insert_with(|| History::new(queue));
        ensure!(seq == history.hashes.len() as Seq + 1, "record {seq} of queue {} is out of order", queue.short());
        ensure!(at_ms >= history.state.at_ms(), "time goes back at record {seq} of queue {}", queue.short());
        history.hashes.push(hash);
        history.state.apply(&Record { v: RECORD_VERSION, seq, at_ms, event: event.clone() }, hash);
        if let Some(job) = event.job() {
            history.jobs.entry(job).or_default().push((seq, event));
        }
    }
    Ok(histories)
}

/// Compares what an open journal serves with what its segments say.
pub(crate) fn same_as_served(journal: &Journal, histories: &Histories) -> anyhow::Result<()> {
    let served = journal.queues()?;
    ensure!(
        served.len() == histories.len(),
        "{} queues are served, the segments have {}",
        served.len(),
        histories.len()
    );
    for (queue, head) in served {
        let history = histories.get(&queue).context("a queue is served that the segments do not have")?;
        ensure!(
            head == history.state.head(),
            "queue {} is served up to {}, the segments to {}",
            queue.short(),
            head.seq,
            history.state.head().seq
        );
        let state = journal.load(queue)?;
        ensure!(
            state.hash() == history.state.hash(),
            "queue {} is served in another state than its records fold to",
            queue.short()
        );
    }
    Ok(())
}

/// Whether workers may lose runs: where they only lose their broker, they must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Losses {
    /// Every worker comes back in time with all its runs.
    None,
    /// Workers die, or come back late or with nothing.
    Some,
}

/// Everything that is wrong: with the histories in themselves, and with what was told beside them. No run may be lost.
pub(crate) fn check(journal: &Journal, histories: &Histories, told: &[Told]) -> Vec<String> {
    check_with(journal, histories, told, Losses::None)
}

/// The same, where runs may be lost.
pub(crate) fn check_with(journal: &Journal, histories: &Histories, told: &[Told], losses: Losses) -> Vec<String> {
    let mut wrong = Vec::new();
    for (queue, history) in histories {
        wrong.extend(history.runs_used_twice().into_iter().map(|text| format!("queue {}: {text}", queue.short())));
    }
    let in_journal = |one: &&Told| !matches!(one.fact, Fact::Stored { .. });
    for one in told.iter().filter(in_journal) {
        let Some(history) = histories.get(&one.queue) else {
            wrong.push(format!("queue {} is not in the journal, but was told: {:?}", one.queue.short(), one.fact));
            continue;
        };
        if let Err(text) = history.holds(&one.fact, losses, |digest| has_body(journal, one.queue, digest)) {
            wrong.push(format!("queue {}: {text}: told {}", one.queue.short(), one.line()));
        }
    }
    wrong
}

fn has_body(journal: &Journal, queue: QueueKey, digest: Digest) -> Result<(), String> {
    match journal.body(queue, digest) {
        Ok(Some(bytes)) if Digest::of(&bytes) == digest => Ok(()),
        Ok(Some(_)) => Err(format!("the body {digest} has other bytes")),
        Ok(None) => Err(format!("the body {digest} is not there")),
        Err(error) => Err(format!("the body {digest} cannot be read: {error}")),
    }
}

impl History {
    fn new(queue: QueueKey) -> Self {
        Self { hashes: Vec::new(), jobs: BTreeMap::new(), state: QueueState::new(queue) }
    }

    /// All jobs that were ever in the queue.
    pub(crate) fn jobs(&self) -> impl Iterator<Item = JobId> {
        self.jobs.keys().copied()
    }

    /// The chain hash after a record.
    pub(crate) fn hash_at(&self, seq: Seq) -> Option<Digest> {
        self.hashes.get(usize::try_from(seq.checked_sub(1)?).ok()?).copied()
    }

    /// What happened to a job, in order.
    pub(crate) fn of(&self, job: JobId) -> &[(Seq, Event)] {
        self.jobs.get(&job).map_or(&[], Vec::as_slice)
    }

    fn has(&self, job: JobId, until: Seq, is_it: impl Fn(&Event) -> bool) -> bool {
        self.of(job).iter().any(|(seq, event)| *seq <= until && is_it(event))
    }

    /// How many runs were claimed, and how many finished.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let events = || self.jobs.values().flatten().map(|(_, event)| event);
        let claimed = events().filter(|event| matches!(event, Event::RunClaimed { .. })).count();
        (claimed, events().filter(|event| matches!(event, Event::RunFinished { .. })).count())
    }

    /// The claims and losses of a job's runs.
    pub(crate) fn runs_of(&self, job: JobId) -> (Vec<RunNumber>, Vec<RunNumber>) {
        let (mut claimed, mut lost) = (Vec::new(), Vec::new());
        for (_, event) in self.of(job) {
            if let Event::RunClaimed { run, .. } = event {
                claimed.push(*run);
            } else if let Event::RunLost { run, .. } = event {
                lost.push(*run);
            }
        }
        (claimed, lost)
    }

    /// Runs whose number was claimed twice, out of order, or that finished other than once and while they were the newest.
    fn runs_used_twice(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (job, events) in &self.jobs {
            let (mut newest, mut newest_is_open) = (0, false);
            for (seq, event) in events {
                if let Event::RunClaimed { run, .. } = event {
                    if *run <= newest {
                        wrong.push(format!("run {run} of job {job} is claimed at {seq}, after run {newest}"));
                    }
                    (newest, newest_is_open) = (*run, true);
                } else if let Event::RunFinished { run, .. } = event {
                    if *run != newest || !newest_is_open {
                        wrong.push(format!(
                            "run {run} of job {job} finishes at {seq}, but is finished or not the newest, {newest}"
                        ));
                    }
                    newest_is_open = false;
                }
            }
        }
        wrong
    }

    fn is_at(&self, at: &Head) -> Result<(), String> {
        let index = usize::try_from(at.seq).ok().and_then(|seq| seq.checked_sub(1));
        match index {
            None => Ok(()), // Before the first record.
            Some(index) => match self.hashes.get(index) {
                None => Err(format!("record {} is not in the journal, which ends at {}", at.seq, self.hashes.len())),
                Some(hash) if *hash == at.hash => Ok(()),
                Some(_) => Err(format!("record {} is another than was told", at.seq)),
            },
        }
    }

    /// Whether what was told is in the journal.
    fn holds(&self, fact: &Fact, losses: Losses, body: impl Fn(Digest) -> Result<(), String>) -> Result<(), String> {
        let claimed = |run: &HeldRun, worker: &WorkerId| {
            let is_it = |event: &Event| matches!(event, Event::RunClaimed { run: r, worker: w, .. } if r == &run.run && w == worker);
            if self.has(run.job, Seq::MAX, is_it) {
                Ok(())
            } else {
                Err("the run is not claimed in the journal".to_owned())
            }
        };
        match fact {
            Fact::Queued { at, job, body: digest } => {
                self.is_at(at)?;
                if !self.has(*job, at.seq, |event| matches!(event, Event::JobQueued { body, .. } if body == digest)) {
                    return Err("the job is not in the journal by then".to_owned());
                }
                body(*digest)
            }
            Fact::Cancelled { at, job } => {
                self.is_at(at)?;
                if self.has(*job, at.seq, ends_job) { Ok(()) } else { Err("the job is not over by then".to_owned()) }
            }
            Fact::Claimed { run, worker } => {
                claimed(run, worker)?;
                if losses == Losses::Some {
                    return Ok(());
                }
                // Whoever was told of a run always came back with it in time.
                let is_it = |event: &Event| matches!(event, Event::RunLost { run: lost, .. } if *lost == run.run);
                if self.has(run.job, Seq::MAX, is_it) { Err("the run was given up".to_owned()) } else { Ok(()) }
            }
            Fact::Finished { at, run, worker, result } => {
                self.is_at(at)?;
                claimed(run, worker)?;
                let is_it = |event: &Event| matches!(event, Event::RunFinished { run: r, result: d, .. } if *r == run.run && d == result);
                if !self.has(run.job, at.seq, is_it) {
                    return Err("the run's end is not in the journal by then".to_owned());
                }
                body(*result)
            }
            Fact::Resumed { run, worker } => claimed(run, worker),
            Fact::Gone { run, worker } => {
                claimed(run, worker)?;
                let is_lost = |event: &Event| matches!(event, Event::RunLost { run: lost, .. } if *lost == run.run);
                if self.has(run.job, Seq::MAX, ends_job)
                    || losses == Losses::Some && self.has(run.job, Seq::MAX, is_lost)
                {
                    Ok(())
                } else {
                    Err("the run was taken from its worker".to_owned())
                }
            }
            Fact::Shown { at } => self.is_at(at),
            // Beside the journal; see `blobs`.
            Fact::Stored { .. } => Ok(()),
        }
    }
}

/// Whether it ends a job's life.
pub(crate) const fn ends_job(event: &Event) -> bool {
    matches!(
        event,
        Event::RunFinished { .. }
            | Event::JobCancelled { .. }
            | Event::JobReplaced { .. }
            | Event::JobDeleted { .. }
            | Event::JobAbandoned { .. }
    )
}
