//! A job as its queue knows it, and where it stands: in line, with a worker, or ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::definition::Needs;
use crate::event::RunOutcome;
use crate::id::{Digest, JobId, Namespace, RunNumber, Seq, UnixMillis, WorkerId};

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Waits for a worker.
    Queued {
        /// Lost by a worker before: goes before all of its priority.
        front: bool,
    },
    /// Its newest run is live.
    Running {},
    /// Ended with a result (or abandoned, which is an `Error` with a result that says why).
    Finished {
        /// How.
        outcome: RunOutcome,
        /// The blake3 of the result.
        result: Digest,
        /// The container's exit code, when one ran.
        exit_code: Option<i64>,
        /// Given up after too many lost runs.
        abandoned: bool,
    },
    /// Cancelled by whoever wanted it.
    Cancelled {
        /// What the canceller said.
        message: Option<String>,
    },
    /// Replaced by a newer job in its namespace.
    Replaced {
        /// The newer job.
        by: JobId,
    },
    /// Deleted on request, result and all.
    Deleted {},
}

/// When and in which order a job came to a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Joined {
    /// The event that (last) put it there: a later one wins.
    pub seq: Seq,
    /// When that was.
    pub at_ms: UnixMillis,
}

/// A job as the queue knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The blake3 of its definition.
    pub body: Digest,
    /// When it was first queued.
    pub queued_at_ms: UnixMillis,
    /// The event that queued it: its place in line.
    pub queued_seq: Seq,
    /// When its status last changed.
    pub changed_at_ms: UnixMillis,
    /// Who wants it.
    pub namespaces: BTreeMap<Namespace, Joined>,
    /// What a worker must offer.
    #[serde(default, skip_serializing_if = "Needs::is_empty")]
    pub needs: Needs,
    /// Higher goes first.
    pub priority: i32,
    /// Whether the submitter asked for debug output.
    pub debug: bool,
    /// The number of its newest run; 0 before the first.
    pub run: RunNumber,
    /// The worker of its newest run.
    pub worker: Option<WorkerId>,
    /// Runs lost since it was queued, those handed back not counted.
    pub lost: u32,
    /// Where it stands.
    pub status: Status,
}

impl Job {
    /// Whether it waits or runs.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        matches!(self.status, Status::Queued { .. } | Status::Running {})
    }

    /// Whether `worker` may still finish or resume `run`: it is the newest, and unfinished (also after it was lost).
    #[must_use]
    pub fn holds(&self, run: RunNumber, worker: &WorkerId) -> bool {
        self.is_live() && self.run == run && self.worker.as_ref() == Some(worker)
    }

    /// Its place in line, while it waits.
    #[must_use]
    pub fn place(&self, job: JobId) -> Option<Place> {
        let Status::Queued { front } = self.status else { return None };
        Some(self.stands(job, front))
    }

    fn stands(&self, job: JobId, front: bool) -> Place {
        Place { rank: !i64::from(self.priority), behind: !front, seq: self.queued_seq, job }
    }

    /// The namespace that has wanted it longest: the one whose turn it takes. None once nobody wants it any more.
    #[must_use]
    pub fn wanted_first_by(&self) -> Option<&Namespace> {
        self.namespaces.iter().min_by_key(|(_, joined)| **joined).map(|(namespace, _)| namespace)
    }

    /// Of an ended job: since when nobody has asked for it and nothing has happened to it. How long it stays counts from here, so
    /// that whoever asks for one that ended long ago gets to see it.
    #[must_use]
    pub fn rests_since(&self) -> UnixMillis {
        let asked = self.namespaces.values().map(|joined| joined.at_ms).max();
        asked.map_or(self.changed_at_ms, |asked| asked.max(self.changed_at_ms))
    }

    pub(super) fn shelf(&self, job: JobId) -> Shelf {
        let stay = match &self.status {
            Status::Queued { front } => return Shelf::Waiting(self.stands(job, *front)),
            Status::Running {} => return Shelf::Running,
            Status::Finished { outcome: RunOutcome::Error | RunOutcome::TimedOut, .. } => Stay::Long,
            Status::Finished { outcome: RunOutcome::Success, .. }
            | Status::Cancelled { .. }
            | Status::Replaced { .. }
            | Status::Deleted {} => Stay::Short,
        };
        Shelf::Ended(stay, self.rests_since())
    }
}

/// A place in line; the smallest is served first: higher priority, then requeued jobs, then older ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    rank: i64,
    behind: bool,
    seq: Seq,
    job: JobId,
}

impl Place {
    /// The job that stands here.
    #[must_use]
    pub const fn job(&self) -> JobId {
        self.job
    }

    /// What comes before all turns and ages: priority, then having been lost by a worker. The smaller goes first.
    #[must_use]
    pub const fn class(&self) -> (i64, bool) {
        (self.rank, self.behind)
    }
}

/// Where a job is to be found; what changes when a job does.
pub(super) enum Shelf {
    Waiting(Place),
    Running,
    Ended(Stay, UnixMillis),
}

/// How long an ended job is shown before it leaves the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stay {
    /// A minute or so: successes, which everyone has seen, and what nobody wants to see any more.
    Short,
    /// Long: failures, until someone has looked at them.
    Long,
}
