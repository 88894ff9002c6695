//! Who is next: waiting jobs by what they need and who wants them, and the turns that namespaces take.
//!
//! All of it is derived from the state but the turns, which a restart begins anew. Jobs of equal needs (a [`Kind`]) fit the same
//! workers, so one look answers for all of them. Within a kind the order is: priority; jobs that a worker lost; then the
//! namespace that has least running; then the one whose turn it is (start-time fair queueing: each grant moves a namespace's turn on
//! by what the job costs, and a namespace that comes to wait begins at the present, so that neither a flood nor a long absence
//! counts for anything), of equal ones that which was served least lately; then age.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use protocol::definition::Needs;
use protocol::id::{JobId, Namespace};
use protocol::queue::{Job, Place, QueueState, Status};

use super::presence::CPUS_MILLI_DEFAULT;

/// What a GPU counts beside thousandths of a CPU when namespaces are compared: as much as one CPU.
const GPU_COST: u64 = 1000;

/// How many namespaces that have nothing waiting or running are remembered; of more the one whose turn is longest past is
/// forgotten, which makes it as good as new.
const RESTING_MAX: usize = 1_000;

/// What a job needs of a worker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    pub(crate) cpus_milli: u32,
    /// `None` fits any worker.
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) gpus: u32,
    /// Sorted, each once.
    pub(crate) tags: Vec<String>,
}

impl Kind {
    /// The kind of a job. Its time limit is no part: a worker shortens what it finds too long, as in the original.
    pub(crate) fn of(needs: &Needs) -> Self {
        let mut tags = needs.tags.clone();
        tags.sort_unstable();
        tags.dedup();
        Self {
            cpus_milli: needs.cpus_milli.unwrap_or(CPUS_MILLI_DEFAULT),
            memory_bytes: needs.memory_bytes,
            gpus: needs.gpus,
            tags,
        }
    }
}

/// What a running job counts for its namespace.
fn cost(job: &Job) -> u64 {
    u64::from(job.needs.cpus_milli.unwrap_or(CPUS_MILLI_DEFAULT)) + GPU_COST * u64::from(job.needs.gpus)
}

/// Where the first job of a namespace stands among those of its kind; the smallest goes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    class: (i64, bool),
    running: u64,
    start: u64,
    served: u64,
    pub(crate) place: Place,
    namespace: Namespace,
}

impl Turn {
    /// The turn of another job of the same namespace.
    pub(crate) fn at(&self, place: Place) -> Self {
        Self { class: place.class(), place, ..self.clone() }
    }
}

/// A namespace with jobs that wait or run.
#[derive(Clone, Debug, Default)]
struct Account {
    /// What its running jobs cost together.
    running: u64,
    /// Where its next grant begins on the line's own clock.
    start: u64,
    /// The number of its last grant; 0 when that is not remembered.
    served: u64,
    /// The kinds of its waiting jobs.
    kinds: BTreeSet<Arc<Kind>>,
    /// How many of its jobs run.
    runs: usize,
}

impl Account {
    fn is_idle(&self) -> bool {
        self.kinds.is_empty() && self.runs == 0
    }

    fn turn(&self, place: Place, namespace: &Namespace) -> Turn {
        let Self { running, start, served, .. } = *self;
        Turn { class: place.class(), running, start, served, place, namespace: namespace.clone() }
    }
}

/// The waiting jobs of one kind.
#[derive(Clone, Debug, Default)]
struct Lanes {
    by_namespace: BTreeMap<Namespace, BTreeSet<Place>>,
    turns: BTreeSet<Turn>,
}

/// The line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    kinds: BTreeMap<Arc<Kind>, Lanes>,
    accounts: BTreeMap<Namespace, Account>,
    /// How many grants there were.
    grants: u64,
    /// The line's own clock: where the last grant began.
    clock: u64,
    /// How far any namespace's turn has moved.
    furthest: u64,
    /// Namespaces with nothing waiting or running, the one whose turn is longest past first.
    resting: BTreeSet<(u64, Namespace)>,
}

/// A namespace that a job without any takes its turn in: such a job is about to leave.
fn turn_of(job: &Job) -> Namespace {
    job.wanted_first_by().cloned().unwrap_or_default()
}

impl Line {
    /// The line of a state, everyone's turn equal.
    pub(crate) fn of(state: &QueueState) -> Self {
        let mut line = Self::default();
        for (id, job) in state.waiting().chain(state.running()) {
            line.insert(id, job);
        }
        line
    }

    /// Takes a job in that waits or runs.
    pub(crate) fn insert(&mut self, id: JobId, job: &Job) {
        let namespace = turn_of(job);
        if let Some(place) = job.place(id) {
            let kind = Kind::of(&job.needs);
            let kind = self.kinds.get_key_value(&kind).map_or_else(|| Arc::new(kind), |(kind, _)| kind.clone());
            self.wake(&namespace);
            self.change_lane(&kind, &namespace, |places| places.insert(place));
        } else if matches!(job.status, Status::Running {}) {
            self.wake(&namespace);
            self.change_account(&namespace, |account| {
                account.running += cost(job);
                account.runs += 1;
            });
        }
    }

    /// Takes a job out, as it was taken in.
    pub(crate) fn remove(&mut self, id: JobId, job: &Job) {
        let namespace = turn_of(job);
        if let Some(place) = job.place(id) {
            self.change_lane(&Arc::new(Kind::of(&job.needs)), &namespace, |places| places.remove(&place));
        } else if matches!(job.status, Status::Running {}) {
            self.change_account(&namespace, |account| {
                account.running = account.running.saturating_sub(cost(job));
                account.runs = account.runs.saturating_sub(1);
            });
        }
        self.rest_if_idle(&namespace);
    }

    /// A waiting job was granted: its namespace's turn moves on.
    pub(crate) fn charge(&mut self, job: &Job) {
        let cost = cost(job);
        self.grants += 1;
        let (mut start, number) = (0, self.grants);
        self.change_account(&turn_of(job), |account| {
            start = account.start;
            account.start = start.saturating_add(cost);
            account.served = number;
        });
        self.clock = self.clock.max(start);
        self.furthest = self.furthest.max(start.saturating_add(cost));
    }

    /// The kinds that wait.
    pub(crate) fn kinds(&self) -> impl DoubleEndedIterator<Item = &Arc<Kind>> {
        self.kinds.keys()
    }

    /// The kind as it is shared here, if jobs of it wait.
    pub(crate) fn kind(&self, kind: &Kind) -> Option<&Arc<Kind>> {
        self.kinds.get_key_value(kind).map(|(kind, _)| kind)
    }

    /// Whose turn it is among the jobs of a kind.
    pub(crate) fn first(&self, kind: &Kind) -> Option<&Turn> {
        self.kinds.get(kind)?.turns.first()
    }

    /// The namespaces that wait for a kind, by their turns, each with the places of its jobs.
    pub(crate) fn lanes(&self, kind: &Kind) -> impl Iterator<Item = (&Turn, impl Iterator<Item = Place>)> {
        self.kinds.get(kind).into_iter().flat_map(|lanes| {
            let places = |turn: &Turn| lanes.by_namespace.get(&turn.namespace).into_iter().flatten().copied();
            lanes.turns.iter().map(move |turn| (turn, places(turn)))
        })
    }

    /// A namespace has something again: one that had nothing waiting begins at the present, not with turns that it saved up.
    fn wake(&mut self, namespace: &Namespace) {
        let clock = self.clock;
        let account = match self.accounts.get_mut(namespace) {
            Some(account) => account,
            None => self.accounts.entry(namespace.clone()).or_default(),
        };
        if account.is_idle() {
            self.resting.remove(&(account.start, namespace.clone()));
        }
        if account.kinds.is_empty() {
            account.start = account.start.max(clock);
        }
    }

    /// A namespace that has nothing any more is remembered for a while: for its turn, and for when it was served.
    fn rest_if_idle(&mut self, namespace: &Namespace) {
        let Some(account) = self.accounts.get(namespace).filter(|account| account.is_idle()) else { return };
        self.resting.insert((account.start, namespace.clone()));
        if self.resting.len() > RESTING_MAX
            && let Some((_, namespace)) = self.resting.pop_first()
        {
            self.accounts.remove(&namespace);
        }
    }

    /// Changes a namespace's waiting jobs of one kind, and its turn if another is first then.
    fn change_lane(
        &mut self,
        kind: &Arc<Kind>,
        namespace: &Namespace,
        change: impl FnOnce(&mut BTreeSet<Place>) -> bool,
    ) {
        let Some(account) = self.accounts.get_mut(namespace) else { return };
        let lanes = self.kinds.entry(kind.clone()).or_default();
        // Found before it is made: the name is copied only for a lane that is new.
        let places = match lanes.by_namespace.get_mut(namespace) {
            Some(places) => places,
            None => {
                account.kinds.insert(kind.clone());
                lanes.by_namespace.entry(namespace.clone()).or_default()
            }
        };
        let before = places.first().copied();
        change(places);
        let after = places.first().copied();
        if before != after {
            before.map(|place| lanes.turns.remove(&account.turn(place, namespace)));
            after.map(|place| lanes.turns.insert(account.turn(place, namespace)));
        }
        if after.is_none() {
            lanes.by_namespace.remove(namespace);
            account.kinds.remove(kind);
        }
        if lanes.by_namespace.is_empty() {
            self.kinds.remove(kind);
        }
        if self.kinds.is_empty() {
            // Nobody waits: whoever comes next begins where all are equal.
            self.clock = self.furthest;
        }
    }

    /// Changes what a namespace's turns are made of.
    fn change_account(&mut self, namespace: &Namespace, change: impl FnOnce(&mut Account)) {
        let Some(account) = self.accounts.get_mut(namespace) else { return };
        let firsts: Vec<_> = account
            .kinds
            .iter()
            .filter_map(|kind| {
                let place = *self.kinds.get(kind)?.by_namespace.get(namespace)?.first()?;
                Some((kind.clone(), account.turn(place, namespace)))
            })
            .collect();
        change(account);
        for (kind, before) in firsts {
            let Some(lanes) = self.kinds.get_mut(&kind) else { continue };
            let after = account.turn(before.place, namespace);
            lanes.turns.remove(&before);
            lanes.turns.insert(after);
        }
    }
}

#[cfg(test)]
impl Line {
    /// Whether what is kept twice agrees: each namespace's turn is that of its first job, and counts what runs.
    pub(super) fn is_sound(&self) -> bool {
        let turns = self.kinds.iter().all(|(kind, lanes)| {
            let made = lanes.by_namespace.iter().filter_map(|(namespace, places)| {
                let account = self.accounts.get(namespace).filter(|account| account.kinds.contains(kind))?;
                Some(account.turn(*places.first()?, namespace))
            });
            made.collect::<BTreeSet<_>>() == lanes.turns && lanes.turns.len() == lanes.by_namespace.len()
        });
        let resting = self.accounts.iter().filter(|(_, account)| account.is_idle());
        turns
            && self.accounts.values().all(|account| (account.runs == 0) == (account.running == 0))
            && resting.map(|(namespace, account)| (account.start, namespace.clone())).collect::<BTreeSet<_>>()
                == self.resting
    }
}
