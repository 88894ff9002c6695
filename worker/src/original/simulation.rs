//! Several desks and a server that keeps the original's rules, with everything between them late and lines that break.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use protocol::event::RunOutcome;
use protocol::id::{JobId, UnixMillis};
use protocol::native::{FinishedRun, FromBroker, HeldRun, ToBroker};
use protocol::original::from_peer::FromPeer;
use protocol::original::preferred::goes_before;
use protocol::raw::RawJson;
use serde_json::{Value, json};

use super::tests::{cpus_free, hello, job};
use super::{Desk, Now};

const CPUS: u32 = 2;
const IDS: [&str; 3] = ["a", "m", "z"];

#[derive(Clone, Debug, PartialEq)]
enum State {
    Queued,
    Running(String, UnixMillis),
    Finished,
}

/// The server's rules, as far as workers see them.
struct Server {
    jobs: BTreeMap<JobId, State>,
    texts: BTreeMap<JobId, String>,
}

impl Server {
    fn entry(&self, job: JobId) -> Value {
        let (state, worker, time) = match &self.jobs[&job] {
            State::Queued => ("Queued", "", 0),
            State::Running(worker, since) => ("Running", worker.as_str(), since.0),
            State::Finished => ("Finished", "", 0),
        };
        json!({"state": state, "queuedTime": 1, "time": time, "worker": worker, "namespaces": ["_"]})
    }

    fn all(&self) -> String {
        let jobs: serde_json::Map<_, _> = self.jobs.keys().map(|job| (job.to_string(), self.entry(*job))).collect();
        json!({"type": "JobStates", "payload": {"state": {"jobs": jobs}, "isSubset": false}}).to_string()
    }

    fn one(&self, job: JobId) -> String {
        let jobs = json!({job.to_string(): self.entry(job)});
        json!({"type": "JobStateUpdates", "payload": {"state": {"jobs": jobs}, "isSubset": true}}).to_string()
    }

    /// What everybody is told of a frame.
    fn hear(&mut self, frame: &str) -> Option<String> {
        match FromPeer::read(frame) {
            Ok(FromPeer::Running { job, worker: Some(worker), at }) => {
                let state = self.jobs.get_mut(&job)?;
                let is_accepted = match state {
                    State::Queued => true,
                    State::Running(holder, _) => *holder != worker && goes_before(&worker, holder),
                    State::Finished => false,
                };
                is_accepted.then(|| *state = State::Running(worker.into_owned(), at))?;
                Some(self.one(job))
            }
            Ok(FromPeer::Ended(ended)) => {
                let state = self.jobs.get_mut(&ended.job)?;
                (*state != State::Finished).then(|| *state = State::Finished)?;
                Some(self.one(ended.job))
            }
            Ok(FromPeer::RequestDefinitions { jobs }) => {
                let job = jobs[0];
                let text = self.texts.get(&job)?;
                Some(format!(r#"{{"type":"BroadcastJobDefinitions","payload":{{"definitions":{{"{job}":{text}}}}}}}"#))
            }
            // Only what it says of a worker that is gone is not read as a message of workers.
            Err(_) => {
                let told: Value = serde_json::from_str(frame).ok()?;
                let job: JobId = told["payload"]["job"].as_str()?.parse().ok()?;
                let state = self.jobs.get_mut(&job)?;
                matches!(state, State::Running(..)).then(|| *state = State::Queued)?;
                Some(self.one(job))
            }
            Ok(_) => None,
        }
    }

    fn lose(&mut self, worker: &str) {
        for state in self.jobs.values_mut() {
            if matches!(state, State::Running(holder, _) if holder == worker) {
                *state = State::Queued;
            }
        }
    }
}

/// A worker: its desk, and the agent behind it.
struct Worker {
    id: &'static str,
    desk: Desk,
    to_server: VecDeque<String>,
    to_worker: VecDeque<String>,
    grants_seen: u64,
    running: BTreeSet<HeldRun>,
    stopping: BTreeSet<HeldRun>,
    ended: BTreeMap<HeldRun, u64>,
    returned: BTreeMap<HeldRun, u64>,
    is_connected: bool,
}

impl Worker {
    fn holds(&self) -> Vec<HeldRun> {
        let over = self.ended.keys().chain(self.returned.keys());
        self.running.iter().chain(&self.stopping).chain(over).copied().collect()
    }

    fn claim(&mut self, now: Now) {
        let taken = u32::try_from(self.running.len() + self.stopping.len()).unwrap();
        let free = cpus_free(CPUS.checked_sub(taken).expect("no more is granted than there is room for"));
        self.desk.on_order(now, ToBroker::Claim { free, grants_seen: self.grants_seen, req: None });
    }

    fn open(&mut self, now: Now, server: &Server) {
        self.is_connected = true;
        self.grants_seen = 0;
        self.desk.open(now, &self.holds());
        self.to_worker.push_back(server.all());
    }

    /// Takes what the desk says; gives the jobs that it began.
    fn settle(&mut self, now: Now) -> Vec<JobId> {
        let mut begun = Vec::new();
        let mut is_changed = true;
        while std::mem::take(&mut is_changed) {
            while let Some(word) = self.desk.next_word() {
                is_changed = true;
                match word {
                    FromBroker::Welcome { gone, .. } => {
                        assert_eq!(gone, []);
                        for (run, req) in self.ended.clone() {
                            self.desk.on_order(now, finish(run, req, self.id));
                        }
                        for (run, req) in self.returned.clone() {
                            self.desk.on_order(now, hand_back(run, req));
                        }
                    }
                    FromBroker::Granted { run, .. } => {
                        self.grants_seen += 1;
                        assert!(self.holds().iter().all(|held| held.job != run.job), "two runs of one job");
                        self.running.insert(run);
                        begun.push(run.job);
                    }
                    FromBroker::Stop { run, .. } => {
                        if self.running.remove(&run) {
                            self.stopping.insert(run);
                        }
                        self.ended.remove(&run);
                        self.returned.remove(&run);
                    }
                    FromBroker::Ok { req, .. } => {
                        self.ended.retain(|_, known| *known != req);
                        self.returned.retain(|_, known| *known != req);
                    }
                    other @ (FromBroker::Snapshot { .. }
                    | FromBroker::Events { .. }
                    | FromBroker::Presence { .. }
                    | FromBroker::Rejected { .. }
                    | FromBroker::Claimed { .. }
                    | FromBroker::Definitions { .. }
                    | FromBroker::Explained { .. }
                    | FromBroker::Logs { .. }) => panic!("{other:?}"),
                }
            }
            if is_changed && self.is_connected {
                self.claim(now);
            }
        }
        while let Some(frame) = self.desk.next_frame(now) {
            self.to_server.push_back(frame);
        }
        begun
    }
}

fn finish(HeldRun { job, run }: HeldRun, req: u64, worker: &str) -> ToBroker {
    let finished = format!(r#"{{"type":"Finished","reason":"Success","worker":"{worker}","time":9,"result":{{}}}}"#);
    let (outcome, finished) = (RunOutcome::Success, RawJson::new(finished));
    let run = FinishedRun { job, run, outcome, exit_code: None, image: None, duration_ms: None, finished };
    ToBroker::Finish { req, run }
}

fn hand_back(run: HeldRun, req: u64) -> ToBroker {
    ToBroker::HandBack { req, run, why: "test".to_owned(), busy: req.is_multiple_of(2) }
}

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Happens {
    /// The server hears a frame of that worker.
    Up(usize),
    /// That worker hears a frame.
    Down(usize),
    Tick,
    Everything,
    RunEnds(usize),
    GivesBack(usize),
    Breaks(usize),
    /// It notices, or the server does, that a worker is gone.
    Lost(usize),
    Connects(usize),
    Stopped(usize),
}

fn happens(with_breaks: bool) -> impl Strategy<Value = Happens> {
    let which = 0..IDS.len();
    let breaks = u32::from(with_breaks);
    prop_oneof![
        8 => which.clone().prop_map(Happens::Up),
        8 => which.clone().prop_map(Happens::Down),
        2 => Just(Happens::Tick),
        1 => Just(Happens::Everything),
        2 => which.clone().prop_map(Happens::RunEnds),
        breaks => which.clone().prop_map(Happens::GivesBack),
        2 => which.clone().prop_map(Happens::Stopped),
        1 => which.clone().prop_map(Happens::Connects),
        breaks => which.clone().prop_map(Happens::Breaks),
        breaks => which.prop_map(Happens::Lost),
    ]
}

struct World {
    server: Server,
    workers: Vec<Worker>,
    now: Now,
    next_req: u64,
    /// How often each worker began each job.
    begun: BTreeMap<(&'static str, JobId), usize>,
}

impl World {
    fn new(jobs: usize) -> Self {
        let all: Vec<_> = (0..jobs).map(job).collect();
        let server =
            Server { jobs: all.iter().map(|(id, _)| (*id, State::Queued)).collect(), texts: all.into_iter().collect() };
        let now = Now { ms: 0, at: UnixMillis(1_700_000_000_000) };
        let worker = |id: &'static str| Worker {
            id,
            desk: Desk::new(hello(id, CPUS)),
            to_server: VecDeque::new(),
            to_worker: VecDeque::new(),
            grants_seen: 0,
            running: BTreeSet::new(),
            stopping: BTreeSet::new(),
            ended: BTreeMap::new(),
            returned: BTreeMap::new(),
            is_connected: false,
        };
        let mut world = Self { server, workers: IDS.map(worker).into(), now, next_req: 0, begun: BTreeMap::new() };
        (0..IDS.len()).for_each(|at| world.step(Happens::Connects(at)));
        world
    }

    fn tell_all(&mut self, frame: &str) {
        for worker in self.workers.iter_mut().filter(|worker| worker.is_connected) {
            worker.to_worker.push_back(frame.to_owned());
        }
    }

    fn step(&mut self, happens: Happens) {
        let now = self.now;
        match happens {
            Happens::Up(at) => {
                let heard = self.workers[at].to_server.pop_front();
                if let Some(told) = heard.and_then(|frame| self.server.hear(&frame)) {
                    self.tell_all(&told);
                }
            }
            Happens::Down(at) => {
                if let Some(frame) = self.workers[at].to_worker.pop_front() {
                    self.workers[at].desk.on_frame(now, &frame).unwrap();
                }
            }
            Happens::Tick => {
                self.now = Now { ms: now.ms + 1_000, at: now.at.plus(1_000) };
                for worker in self.workers.iter_mut().filter(|worker| worker.is_connected) {
                    let holds = worker.holds();
                    worker.desk.tick(self.now, &holds);
                }
            }
            Happens::Everything => {
                let all = self.server.all();
                self.tell_all(&all);
            }
            Happens::RunEnds(at) => {
                let worker = &mut self.workers[at];
                if let Some(run) = worker.running.pop_first() {
                    self.next_req += 1;
                    worker.ended.insert(run, self.next_req);
                    if worker.is_connected {
                        worker.desk.on_order(now, finish(run, self.next_req, worker.id));
                        worker.claim(now);
                    }
                }
            }
            Happens::GivesBack(at) => {
                let worker = &mut self.workers[at];
                if let Some(run) = worker.running.pop_first() {
                    self.next_req += 1;
                    *self.begun.entry((worker.id, run.job)).or_default() -= 1;
                    worker.returned.insert(run, self.next_req);
                    if worker.is_connected {
                        worker.desk.on_order(now, hand_back(run, self.next_req));
                        worker.claim(now);
                    }
                }
            }
            Happens::Stopped(at) => {
                let worker = &mut self.workers[at];
                if worker.stopping.pop_first().is_some() && worker.is_connected {
                    worker.claim(now);
                }
            }
            Happens::Breaks(at) => {
                let worker = &mut self.workers[at];
                worker.to_server.clear();
                worker.to_worker.clear();
                worker.is_connected = false;
            }
            Happens::Lost(at) => {
                if !self.workers[at].is_connected {
                    self.server.lose(IDS[at]);
                    let all = self.server.all();
                    self.tell_all(&all);
                }
            }
            Happens::Connects(at) => {
                if !self.workers[at].is_connected {
                    self.workers[at].open(now, &self.server);
                }
            }
        }
        for worker in self.workers.iter_mut().filter(|worker| worker.is_connected) {
            for job in worker.settle(self.now) {
                *self.begun.entry((worker.id, job)).or_default() += 1;
            }
        }
    }

    /// Lets all come to rest: everybody is connected, hears all, and ends what it runs.
    fn rest(&mut self) {
        for _ in 0..200 {
            for at in 0..IDS.len() {
                self.step(Happens::Connects(at));
                for _ in 0..40 {
                    self.step(Happens::Up(at));
                    self.step(Happens::Down(at));
                }
                self.step(Happens::Stopped(at));
                self.step(Happens::RunEnds(at));
            }
            self.step(Happens::Tick);
            self.step(Happens::Everything);
        }
    }

    fn is_done(&self) -> bool {
        let is_idle = |worker: &Worker| worker.holds().is_empty();
        self.server.jobs.values().all(|state| *state == State::Finished) && self.workers.iter().all(is_idle)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn while_lines_stand_no_worker_runs_a_job_twice_and_all_come_to_an_end(
        happened in prop::collection::vec(happens(false), 0..300),
    ) {
        let mut world = World::new(8);
        happened.into_iter().for_each(|happens| world.step(happens));
        world.rest();
        prop_assert!(world.is_done(), "{:?}", world.server.jobs);
        prop_assert!(world.begun.values().all(|times| *times <= 1), "{:?}", world.begun);
    }

    #[test]
    fn whatever_breaks_all_jobs_come_to_an_end_and_nothing_is_left(
        happened in prop::collection::vec(happens(true), 0..300),
    ) {
        let mut world = World::new(8);
        happened.into_iter().for_each(|happens| world.step(happens));
        world.rest();
        prop_assert!(world.is_done(), "{:?}", world.server.jobs);
    }
}
