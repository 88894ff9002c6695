//! What sockets are shown of a queue: its folded state, who owns its runs, and the results that are at hand.

use std::collections::BTreeSet;

use protocol::id::{JobId, Seq, WorkerId};
use protocol::original::job::is_shown;
use protocol::original::{JobEntry, preferred, to_peer};
use protocol::queue::{Job, QueueState, Status};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::results::Results;
use crate::session::Role;

/// How many ids of workers that registered are remembered after they left, for as long as runs may be theirs.
const REMEMBERED_MAX: usize = 1_000;

/// The view of a queue.
pub(super) struct View {
    state: QueueState,
    /// Counts changes of anything that is shown.
    version: u64,
    pub(super) results: Results,
    /// Workers of the original's kind that registered.
    registered: BTreeSet<WorkerId>,
    /// Workers of our own kind that are connected, as far as it is known.
    native: BTreeSet<WorkerId>,
    /// Jobs that workers are not shown: their definitions would kill them, and asking for one holds up all others.
    unfit: BTreeSet<JobId>,
}

impl View {
    pub(super) fn new(state: QueueState) -> Self {
        Self {
            state,
            version: 1,
            results: Results::default(),
            registered: BTreeSet::new(),
            native: BTreeSet::new(),
            unfit: BTreeSet::new(),
        }
    }

    pub(super) const fn state(&self) -> &QueueState {
        &self.state
    }

    /// The state, to be changed.
    pub(super) const fn state_mut(&mut self) -> &mut QueueState {
        self.version += 1;
        &mut self.state
    }

    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    /// Something that is shown changed besides the state.
    pub(super) const fn changed(&mut self) {
        self.version += 1;
    }

    pub(super) const fn seq(&self) -> Seq {
        self.state.head().seq
    }

    /// A worker of the original's kind registered.
    pub(super) fn add_registered(&mut self, worker: WorkerId) {
        if self.registered.len() >= REMEMBERED_MAX {
            let owners: BTreeSet<_> = self.state.running().filter_map(|(_, job)| job.worker.clone()).collect();
            self.registered.retain(|id| owners.contains(id));
        }
        self.registered.insert(worker);
        self.changed();
    }

    /// Takes note of the workers of our own kind; gives the jobs whose owners are shown otherwise now.
    pub(super) fn set_native(&mut self, native: BTreeSet<WorkerId>) -> Vec<JobId> {
        let before = std::mem::replace(&mut self.native, native);
        let is_new = |worker: &WorkerId| self.native.contains(worker) && !before.contains(worker);
        let of_new = self.state.running().filter(|(_, job)| job.worker.as_ref().is_some_and(is_new));
        let jobs: Vec<_> = of_new.map(|(id, _)| id).collect();
        self.changed();
        jobs
    }

    /// Hides a job from workers; says whether it was shown.
    pub(super) fn hide(&mut self, job: JobId) -> bool {
        let was_shown = self.state.job(job).is_some() && self.unfit.insert(job);
        if was_shown {
            let state = &self.state;
            self.unfit.retain(|job| state.job(*job).is_some());
            self.changed();
        }
        was_shown
    }

    /// A job as sockets of that role are shown it.
    fn entry<'a>(&'a self, id: JobId, job: &'a Job, role: Role) -> Option<JobEntry<'a>> {
        if !is_shown(&job.status) {
            return None;
        }
        let entry = JobEntry::new(job);
        match role {
            Role::Client => Some(match self.result_of(job) {
                Some(finished) => entry.with_finished(finished),
                None => entry,
            }),
            Role::Worker if self.unfit.contains(&id) => None,
            Role::Worker => Some(match &job.worker {
                Some(worker) if job.is_live() && self.native.contains(worker) && !self.registered.contains(worker) => {
                    match job.status {
                        Status::Running {} => entry.shown_as(preferred::shown_first(worker)),
                        Status::Queued { .. }
                        | Status::Finished { .. }
                        | Status::Cancelled { .. }
                        | Status::Replaced { .. }
                        | Status::Deleted {} => entry,
                    }
                }
                Some(_) | None => entry,
            }),
        }
    }

    fn result_of(&self, job: &Job) -> Option<&serde_json::value::RawValue> {
        match job.status {
            Status::Finished { result, .. } => self.results.get(result),
            Status::Queued { .. }
            | Status::Running {}
            | Status::Cancelled { .. }
            | Status::Replaced { .. }
            | Status::Deleted {} => None,
        }
    }

    /// All jobs.
    pub(super) fn whole(&self, role: Role) -> Utf8Bytes {
        let jobs = self.state.jobs().iter();
        to_peer::job_states(jobs.filter_map(|(id, job)| Some((*id, self.entry(*id, job, role)?)))).into()
    }

    /// Those of `jobs` that are shown; `None` when none is.
    pub(super) fn news(&self, jobs: &BTreeSet<JobId>, role: Role) -> Option<Utf8Bytes> {
        let found = jobs.iter().filter_map(|id| Some((*id, self.entry(*id, self.state.job(*id)?, role)?)));
        let mut found = found.peekable();
        found.peek()?;
        Some(to_peer::job_state_updates(found).into())
    }
}
