//! Following one job over the native dialect: a machine from messages to what is worth telling. No IO, no clock.
//!
//! It folds the queue's records with the same code as the broker, and keeps a cursor for each log, so that a broken socket
//! can be replaced by a new one without a line lost or said twice.

use protocol::id::{JobId, RunNumber, Seq, WorkerId};
use protocol::native::{FromBroker, LogKind, LogLine, RequestId, ToBroker};
use protocol::queue::{Job, Status};
use protocol::raw::RecordBytes;

use super::fold::Fold;
pub(crate) use super::fold::FollowError;

/// What there is to tell.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    /// A line of the log.
    Line(LogKind, LogLine),
    /// So many lines are not kept any more.
    Gap(LogKind, u64),
    /// The job is in a new state.
    Now(View),
    /// The queue does not hold the job: it ended some time ago, or was never there.
    Absent,
    /// The job waits, and nobody is there to take it.
    NoWorkers,
}

/// Where the job stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct View {
    /// Its status.
    pub(crate) status: Status,
    /// The number of its newest run; 0 before the first.
    pub(crate) run: RunNumber,
    /// Who runs, or ran, it.
    pub(crate) worker: Option<WorkerId>,
}

impl View {
    /// The view on a job of a state.
    pub(super) fn of(job: &Job) -> Self {
        Self { status: job.status.clone(), run: job.run, worker: job.worker.clone() }
    }

    /// Whether it waits or runs.
    pub(crate) const fn is_live(&self) -> bool {
        matches!(self.status, Status::Queued { .. } | Status::Running {})
    }
}

#[derive(Debug)]
struct Cursor {
    kind: LogKind,
    next: u64,
    is_final: bool,
}

/// A job that is followed.
#[derive(Debug)]
pub(crate) struct Follow {
    job: JobId,
    cursors: Vec<Cursor>,
    fold: Fold,
    view: Option<View>,
    is_absent: bool,
    /// Whether there is a worker, as far as is known.
    has_workers: Option<bool>,
    told_no_workers: bool,
}

impl Follow {
    /// Follows `job` and `logs`, each from a line on.
    pub(crate) fn new(job: JobId, logs: &[(LogKind, u64)]) -> Self {
        let cursors = logs.iter().map(|&(kind, next)| Cursor { kind, next, is_final: false }).collect();
        Self {
            job,
            cursors,
            fold: Fold::default(),
            view: None,
            is_absent: false,
            has_workers: None,
            told_no_workers: false,
        }
    }

    /// What to say on a new socket.
    pub(crate) fn opening(&self) -> Vec<ToBroker> {
        let wanted = self.cursors.iter().enumerate().filter(|(_, cursor)| !cursor.is_final);
        let follows = wanted.map(|(at, cursor)| ToBroker::FollowLogs {
            req: request_of(at),
            job: self.job,
            kind: cursor.kind,
            since: cursor.next,
        });
        std::iter::once(self.fold.hello()).chain(follows).collect()
    }

    /// Forgets the folded state, so that the next socket starts from a snapshot. Cursors stay.
    pub(crate) fn start_afresh(&mut self) {
        self.fold.forget();
    }

    /// Where the job stands, as far as is known.
    pub(crate) const fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// Whether the job is over, its last lines perhaps still on the way.
    pub(crate) fn has_ended(&self) -> bool {
        self.is_absent || self.view.as_ref().is_some_and(|view| !view.is_live())
    }

    /// Whether there is nothing more to come.
    pub(crate) fn is_over(&self) -> bool {
        self.has_ended() && self.cursors.iter().all(|cursor| cursor.is_final)
    }

    /// Takes a message in.
    pub(crate) fn on(&mut self, message: FromBroker) -> Result<Vec<Told>, FollowError> {
        let mut told = match message {
            FromBroker::Welcome { version, queue, head, .. } => {
                self.fold.welcomed(version, queue, head)?;
                Vec::new()
            }
            FromBroker::Snapshot { state, .. } => {
                self.fold.snapshot(&state)?;
                self.look().into_iter().collect()
            }
            FromBroker::Events { from_seq, records } => self.events(from_seq, &records)?,
            FromBroker::Logs { job, kind, from, lines, is_final } if job == self.job => {
                self.lines(kind, from, lines, is_final)
            }
            FromBroker::Rejected { req, code, message } => self.rejected(req, code, message)?,
            FromBroker::Presence { workers, .. } => {
                self.has_workers = Some(!workers.is_empty());
                Vec::new()
            }
            FromBroker::Claimed { .. }
            | FromBroker::Definitions { .. }
            | FromBroker::Explained { .. }
            | FromBroker::Logs { .. }
            | FromBroker::Ok { .. }
            | FromBroker::Granted { .. }
            | FromBroker::Stop { .. } => Vec::new(),
        };
        told.extend(self.no_workers());
        Ok(told)
    }

    /// Said once: a queue without workers is the usual reason why a first job does not start.
    fn no_workers(&mut self) -> Option<Told> {
        let waits = self.view.as_ref().is_some_and(|view| matches!(view.status, Status::Queued { .. }));
        let is_news = waits && self.has_workers == Some(false) && !self.told_no_workers;
        self.told_no_workers |= is_news;
        is_news.then_some(Told::NoWorkers)
    }

    fn events(&mut self, from_seq: Seq, records: &[RecordBytes]) -> Result<Vec<Told>, FollowError> {
        let mut told = Vec::new();
        for (seq, record) in (from_seq..).zip(records) {
            if self.fold.record(seq, record)?.is_some_and(|event| event.job() == Some(self.job)) {
                told.extend(self.look());
            }
        }
        Ok(told)
    }

    /// Compares the job with what was told last. One that leaves the queue keeps its last known state.
    fn look(&mut self) -> Option<Told> {
        let now = self.fold.state().and_then(|state| state.job(self.job)).map(View::of);
        match now {
            Some(now) if self.view.as_ref() == Some(&now) => None,
            Some(now) => {
                self.is_absent = false;
                self.view = Some(now.clone());
                Some(Told::Now(now))
            }
            None if self.is_absent || self.has_ended() => None,
            None => {
                self.is_absent = true;
                Some(Told::Absent)
            }
        }
    }

    fn lines(&mut self, kind: LogKind, from: u64, lines: Vec<LogLine>, is_final: bool) -> Vec<Told> {
        let Some(cursor) = self.cursors.iter_mut().find(|cursor| cursor.kind == kind) else {
            return Vec::new();
        };
        let mut told = Vec::with_capacity(lines.len() + 1);
        if from > cursor.next {
            told.push(Told::Gap(kind, from - cursor.next));
            cursor.next = from;
        }
        for (at, line) in (from..).zip(lines) {
            if at >= cursor.next {
                cursor.next = at + 1;
                told.push(Told::Line(kind, line));
            }
        }
        cursor.is_final |= is_final;
        told
    }

    fn rejected(&mut self, req: Option<RequestId>, code: String, message: String) -> Result<Vec<Told>, FollowError> {
        let refused = self.cursors.iter_mut().enumerate().find(|(at, _)| req == Some(request_of(*at)));
        match refused {
            // No log is no reason to stop: what the job comes to is told all the same.
            Some((_, cursor)) => {
                cursor.is_final = true;
                Ok(Vec::new())
            }
            None => Err(FollowError::Rejected { code, message }),
        }
    }
}

const fn request_of(cursor: usize) -> RequestId {
    cursor as RequestId + 1
}

#[cfg(test)]
mod tests;
