//! What the server has told about its jobs: the fold of its messages, and who of those that wait is next.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

use protocol::id::{JobId, UnixMillis, WorkerId};
use protocol::original::from_server::{JobSeen, Jobs, Stand};

/// The most jobs that are kept in mind: twice what a queue of ours holds. More are passed over until others are gone.
const JOBS_MAX: usize = 200_000;

/// How much of a name is kept: no id of a worker is as long, and a server must not fill the memory with them.
const NAME_BYTES_MAX: usize = 256;
/// The namespace of jobs that name none.
const UNNAMED: &str = "_";

/// See the module.
#[derive(Debug)]
pub(super) struct View {
    me: WorkerId,
    jobs: HashMap<JobId, JobSeen>,
    /// Those that run here, as the server has it.
    own: BTreeSet<JobId>,
    namespaces: BTreeMap<String, Namespace>,
    is_known: bool,
}

#[derive(Debug, Default)]
struct Namespace {
    waiting: BTreeSet<(UnixMillis, JobId)>,
    running: usize,
}

impl View {
    pub(super) fn new(me: WorkerId) -> Self {
        Self { me, jobs: HashMap::new(), own: BTreeSet::new(), namespaces: BTreeMap::new(), is_known: false }
    }

    /// Forgets all: another connection begins.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.me.clone());
    }

    /// Whether the server has told of all its jobs on this connection.
    pub(super) const fn is_known(&self) -> bool {
        self.is_known
    }

    pub(super) fn get(&self, job: JobId) -> Option<&JobSeen> {
        self.jobs.get(&job)
    }

    /// The jobs that run here, as the server has it.
    pub(super) fn own(&self) -> impl Iterator<Item = JobId> {
        self.own.iter().copied()
    }

    /// Takes in a message; says how many jobs there was no room for.
    pub(super) fn take_in(&mut self, message: Jobs) -> usize {
        if message.is_full {
            self.clear();
            self.is_known = true;
        }
        let mut left_out = 0;
        for (job, seen) in message.jobs {
            self.remove(job);
            if self.jobs.len() < JOBS_MAX {
                self.put(job, brief(seen));
            } else {
                left_out += 1;
            }
        }
        left_out
    }

    fn put(&mut self, job: JobId, seen: JobSeen) {
        match &seen.stand {
            Stand::Queued => {
                self.namespace(&seen).waiting.insert((seen.queued_at, job));
            }
            Stand::Running { worker, .. } => {
                if worker == self.me.as_str() {
                    self.own.insert(job);
                }
                self.namespace(&seen).running += 1;
            }
            Stand::Finished => {}
        }
        self.jobs.insert(job, seen);
    }

    /// Forgets a job.
    pub(super) fn remove(&mut self, job: JobId) {
        let Some(seen) = self.jobs.remove(&job) else { return };
        self.own.remove(&job);
        let name = namespace(&seen);
        let Some(known) = self.namespaces.get_mut(name) else { return };
        match seen.stand {
            Stand::Queued => {
                known.waiting.remove(&(seen.queued_at, job));
            }
            Stand::Running { .. } => known.running = known.running.saturating_sub(1),
            Stand::Finished => {}
        }
        if known.waiting.is_empty() && known.running == 0 {
            self.namespaces.remove(name);
        }
    }

    fn namespace(&mut self, seen: &JobSeen) -> &mut Namespace {
        self.namespaces.entry(namespace(seen).to_owned()).or_default()
    }

    /// The jobs that wait, whoever is next first: of the namespace that has least running, the oldest. Each counts for the
    /// next one's turn only if `take` says that it will be run.
    pub(super) fn in_turn(&self, mut take: impl FnMut(JobId) -> Turn) {
        let mut lines: BinaryHeap<_> = BinaryHeap::new();
        let mut waiting: Vec<_> = self.namespaces.values().map(|known| known.waiting.iter()).collect();
        for (at, (known, line)) in self.namespaces.values().zip(&mut waiting).enumerate() {
            if let Some(&next) = line.next() {
                lines.push(Reverse((known.running, next, at)));
            }
        }
        while let Some(Reverse((running, (_, job), at))) = lines.pop() {
            let running = match take(job) {
                Turn::Taken => running + 1,
                Turn::Passed => running,
                Turn::Enough => return,
            };
            if let Some(&next) = waiting[at].next() {
                lines.push(Reverse((running, next, at)));
            }
        }
    }
}

/// What became of a job whose turn it was.
pub(super) enum Turn {
    Taken,
    Passed,
    /// No other needs to be looked at.
    Enough,
}

/// What is kept of a job: names that are not endless, and the namespace that counts.
fn brief(mut seen: JobSeen) -> JobSeen {
    seen.namespaces.truncate(1);
    seen.namespaces.shrink_to_fit();
    let worker = if let Stand::Running { worker, .. } = &mut seen.stand { Some(worker) } else { None };
    for name in seen.namespaces.iter_mut().chain(worker) {
        name.truncate(name.floor_char_boundary(NAME_BYTES_MAX));
        name.shrink_to_fit();
    }
    seen
}

fn namespace(seen: &JobSeen) -> &str {
    seen.namespaces.first().map_or(UNNAMED, String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_endless_names_little_is_kept() {
        let long = format!("x{}", "\u{e9}".repeat(1 << 20));
        let stand = Stand::Running { worker: long.clone(), since: UnixMillis(1) };
        let seen = JobSeen { stand, queued_at: UnixMillis(1), namespaces: vec![long; 3] };
        let job = JobId::from_bytes([7; 32]);
        let mut view = View::new("m".parse().unwrap());
        view.take_in(Jobs { is_full: true, jobs: vec![(job, seen)], unread: 0 });
        let JobSeen { stand: Stand::Running { worker, .. }, namespaces, .. } = view.get(job).unwrap() else { panic!() };
        assert!(worker.capacity() <= NAME_BYTES_MAX && namespaces.capacity() == 1);
        assert!(namespaces[0].capacity() <= NAME_BYTES_MAX && namespaces[0].starts_with("x\u{e9}"));
        // It is found again under what was kept of its name.
        view.remove(job);
        assert!(view.namespaces.is_empty());
    }
}
