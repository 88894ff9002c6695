//! What holds whatever is asked, in whatever order.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// Something that happens to a queue. Small numbers, so that jobs, workers and namespaces meet.
#[derive(Clone, Debug)]
enum Act {
    Submit { number: u8, ns: usize, gpu: bool, priority: i32 },
    Cancel { number: u8, ns: Option<usize> },
    Delete { number: u8, ns: Option<usize> },
    Connect { worker: usize, remembers: bool },
    Disconnect { worker: usize },
    Claim { worker: usize, cpus: u32, saw_all: bool },
    Renew { worker: usize },
    Finish { worker: usize, pick: usize, old: bool },
    HandBack { worker: usize, pick: usize, busy: bool },
    Register { worker: usize },
    Take { worker: usize, number: u8, at: u64 },
    Wait { ms: u64 },
    Restart,
}

const NAMESPACES: [&str; 3] = ["_", "doc", "other"];
/// Three that are granted jobs, and two that take them by themselves; one of these sorts before and one after the others.
const WORKERS: [&str; 5] = ["w0", "w1", "w2", "a3", "z4"];
const GRANTED: usize = 3;

fn act() -> impl Strategy<Value = Act> {
    let number = || 0..6u8;
    let ns = || 0..NAMESPACES.len();
    let worker = || 0..GRANTED;
    let any_worker = || 0..WORKERS.len();
    let taker = || GRANTED..WORKERS.len();
    prop_oneof![
        6 => (number(), ns(), proptest::bool::weighted(0.1), -1..=1i32)
            .prop_map(|(number, ns, gpu, priority)| Act::Submit { number, ns, gpu, priority }),
        1 => (number(), proptest::option::of(ns())).prop_map(|(number, ns)| Act::Cancel { number, ns }),
        1 => (number(), proptest::option::of(ns())).prop_map(|(number, ns)| Act::Delete { number, ns }),
        2 => (worker(), any::<bool>()).prop_map(|(worker, remembers)| Act::Connect { worker, remembers }),
        1 => any_worker().prop_map(|worker| Act::Disconnect { worker }),
        5 => (worker(), 0..3u32, any::<bool>()).prop_map(|(worker, cpus, saw_all)| Act::Claim { worker, cpus, saw_all }),
        2 => any_worker().prop_map(|worker| Act::Renew { worker }),
        2 => taker().prop_map(|worker| Act::Register { worker }),
        4 => (taker(), number(), 0..3u64).prop_map(|(worker, number, at)| Act::Take { worker, number, at }),
        4 => (any_worker(), 0..4usize, proptest::bool::weighted(0.2)).prop_map(|(worker, pick, old)| Act::Finish { worker, pick, old }),
        1 => (worker(), 0..4usize, any::<bool>()).prop_map(|(worker, pick, busy)| Act::HandBack { worker, pick, busy }),
        3 => prop_oneof![Just(1), Just(3_000), Just(25_000), Just(61_000), Just(90_000_000)].prop_map(|ms| Act::Wait { ms }),
        1 => Just(Act::Restart),
    ]
}

/// What the outside has seen: workers with what they were granted, and every promise made.
#[derive(Default)]
struct Outside {
    sessions: BTreeMap<usize, u64>,
    next_session: u64,
    granted: BTreeMap<usize, Vec<HeldRun>>,
    grants_on_socket: BTreeMap<usize, u64>,
    acknowledged: BTreeSet<JobId>,
    runs_ever: BTreeSet<HeldRun>,
    finished_runs: BTreeSet<HeldRun>,
}

impl Outside {
    fn see(&mut self, step: &Step) {
        for (session, run) in grants(step) {
            let worker =
                *self.sessions.iter().find(|(_, open)| **open == session).expect("grants go to open sockets").0;
            assert!(self.runs_ever.insert(run), "run {run:?} was granted twice");
            self.granted.entry(worker).or_default().push(run);
            *self.grants_on_socket.entry(worker).or_default() += 1;
        }
    }
}

fn scope(ns: Option<usize>) -> CancelScope {
    ns.map_or(CancelScope::All, |ns| one(NAMESPACES[ns]))
}

fn play(bench: &mut Bench, outside: &mut Outside, act: Act) {
    match act {
        Act::Submit { number, ns, gpu, priority } => {
            // Some need a GPU, which nobody has; some two CPUs, so that they are passed by.
            let cpus_milli = (number == 5).then_some(2000);
            let needs = Needs { gpus: u32::from(gpu), cpus_milli, ..Needs::default() };
            if let Ok(step) = bench.submit_with(number, NAMESPACES[ns], needs, priority) {
                outside.acknowledged.insert(job(number));
                outside.see(&step);
            }
        }
        Act::Cancel { number, ns } => {
            let step = bench.handle(Command::Cancel { job: job(number), scope: scope(ns), message: None }).unwrap();
            outside.see(&step);
        }
        Act::Delete { number, ns } => {
            let archived = bench.archive.get(&job(number)).cloned();
            let step = bench.handle(Command::Delete { job: job(number), scope: scope(ns), archived }).unwrap();
            outside.see(&step);
        }
        Act::Connect { worker, remembers } => {
            outside.next_session += 1;
            let session = outside.next_session;
            let holds = if remembers { outside.granted.entry(worker).or_default().clone() } else { Vec::new() };
            outside.sessions.insert(worker, session);
            outside.grants_on_socket.insert(worker, 0);
            let step = bench.connect_with(session, WORKERS[worker], 2, &[], holds.clone());
            let Answer::Connected { gone } = &step.answer else { panic!("a connect is answered as one") };
            outside.granted.insert(worker, holds.into_iter().filter(|run| !gone.contains(run)).collect());
            outside.see(&step);
        }
        Act::Disconnect { worker } => {
            if let Some(session) = outside.sessions.remove(&worker) {
                let step = bench.handle(Command::Disconnect { session: SessionId(session) }).unwrap();
                outside.see(&step);
            }
        }
        Act::Claim { worker, cpus, saw_all } => {
            let Some(session) = outside.sessions.get(&worker) else { return };
            let seen = if saw_all { outside.grants_on_socket[&worker] } else { 0 };
            let step = bench.claim(*session, cpus, seen);
            outside.see(&step);
        }
        Act::Renew { worker } => {
            let Some(session) = outside.sessions.get(&worker) else { return };
            let runs = outside.granted.get(&worker).cloned().unwrap_or_default();
            bench.handle(Command::Renew { session: SessionId(*session), runs }).unwrap();
        }
        Act::Finish { worker, pick, old } => {
            let (Some(session), Some(runs)) = (outside.sessions.get(&worker), outside.granted.get_mut(&worker)) else {
                return;
            };
            let Some(mut run) = (!runs.is_empty()).then(|| runs[pick % runs.len()]) else { return };
            if old {
                run.run = run.run.saturating_sub(1);
            }
            let session = *session;
            let number = run.job.as_bytes()[0];
            let holder = bench.job(number).and_then(|job| job.worker.clone());
            let newest = bench.job(number).map(|job| job.run);
            if let Ok(step) = bench.finish(session, number, run.run) {
                if names(&step).contains(&"RunFinished") {
                    assert!(outside.finished_runs.insert(run), "run {run:?} finished twice");
                    assert_eq!(holder.unwrap().as_str(), WORKERS[worker], "only who claimed a run finishes it");
                    assert_eq!(newest, Some(run.run), "only the newest run is finished");
                }
                outside.granted.entry(worker).or_default().retain(|held| *held != run);
                outside.see(&step);
            }
        }
        Act::HandBack { worker, pick, busy } => {
            let (Some(session), Some(runs)) = (outside.sessions.get(&worker), outside.granted.get(&worker)) else {
                return;
            };
            let Some(run) = (!runs.is_empty()).then(|| runs[pick % runs.len()]) else { return };
            if let Ok(step) = bench.handle(Command::HandBack { session: SessionId(*session), run, busy }) {
                outside.granted.entry(worker).or_default().retain(|held| *held != run);
                outside.see(&step);
            }
        }
        Act::Register { worker } => {
            if !outside.sessions.contains_key(&worker) {
                outside.next_session += 1;
                outside.sessions.insert(worker, outside.next_session);
            }
            let step = bench.register(outside.sessions[&worker], WORKERS[worker]);
            outside.see(&step);
        }
        Act::Take { worker, number, at } => {
            let Some(session) = outside.sessions.get(&worker) else { return };
            let was_granted = |bench: &Bench| {
                let job = bench.job(number).filter(|job| matches!(job.status, Status::Running {}))?;
                job.worker
                    .clone()
                    .filter(|holder| WORKERS[..GRANTED].contains(&holder.as_str()))
                    .map(|id| (id, job.run))
            };
            let before = was_granted(bench);
            let step = bench.takes(*session, number, at);
            assert!(before.is_none() || was_granted(bench) == before, "a granted run is nobody else's");
            outside.see(&step);
        }
        Act::Wait { ms } => {
            let step = bench.after(ms);
            outside.see(&step);
        }
        Act::Restart => {
            bench.restart();
            outside.sessions.clear();
        }
    }
}

fn check(bench: &Bench, outside: &Outside) {
    let state = bench.core.state();
    for id in &outside.acknowledged {
        assert!(state.job(*id).is_some() || bench.archive.contains_key(id), "job {id} is gone without a trace");
    }
    for (namespace, jobs) in state.contested() {
        let jobs: Vec<_> = jobs.collect();
        let keeper = state.job(*jobs.last().unwrap()).unwrap();
        let young = jobs[..jobs.len() - 1].iter().filter_map(|id| state.job(*id)).any(|job| {
            let age = keeper.namespaces[namespace].at_ms.since(job.queued_at_ms);
            age <= 20_000 || bench.now.since(keeper.namespaces[namespace].at_ms) >= 8_000
        });
        assert!(!young, "superseded jobs go once the dust has settled");
    }
    for (id, job) in state.jobs() {
        assert!(!job.is_live() || !job.namespaces.is_empty(), "live job {id} is wanted by nobody");
        assert!(!matches!(job.status, Status::Running {}) || job.worker.is_some());
        assert!(job.lost < 3 || !job.is_live(), "job {id} was lost too often and still lives");
    }
    let running: BTreeSet<_> = state.running().map(|(id, _)| id).collect();
    let by_walk: BTreeSet<_> =
        state.jobs().iter().filter(|(_, job)| matches!(job.status, Status::Running {})).map(|(id, _)| *id).collect();
    assert_eq!(running, by_walk, "what is derived follows what is stored");
    assert!(bench.core.line_follows_state(), "the line follows the state");
    assert_eq!(bench.core.left_waiting(bench.now), None, "nothing waits that a worker has room for");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn the_invariants_hold_for_any_sequence_of_commands(acts in proptest::collection::vec(act(), 1..80)) {
        let mut bench = Bench::new();
        let mut outside = Outside::default();
        for act in acts {
            play(&mut bench, &mut outside, act);
            check(&bench, &outside);
        }
        // Replayed from the stored bytes: the same state at every seq as a fold of the events alone, and at the end as lived.
        let mut replayed = QueueState::new(bench.core.queue());
        for record in &bench.records {
            replayed.apply_bytes(&record.bytes).unwrap();
            prop_assert_eq!(replayed.head().hash, record.hash);
            let decoded = QueueState::decode(&replayed.encode()).unwrap();
            prop_assert_eq!(&decoded, &replayed, "a snapshot is the state");
        }
        prop_assert_eq!(replayed.hash(), bench.core.state().hash());
        prop_assert_eq!(&replayed, bench.core.state());
    }

    #[test]
    fn a_running_job_always_has_a_moment_at_which_it_is_given_up(acts in proptest::collection::vec(act(), 1..60)) {
        let mut bench = Bench::new();
        let mut outside = Outside::default();
        for act in acts {
            play(&mut bench, &mut outside, act);
        }
        // Everyone leaves and only time goes on: nothing runs for ever, and nothing stays for ever but what waits.
        for session in outside.sessions.values() {
            bench.handle(Command::Disconnect { session: SessionId(*session) }).unwrap();
        }
        for _ in 0..100 {
            let Some(due) = bench.core.due() else { break };
            let ms = due.since(bench.now).max(1);
            bench.after(ms);
        }
        prop_assert_eq!(bench.core.due(), None);
        let all_wait = bench.core.state().jobs().values().all(|job| matches!(job.status, Status::Queued { .. }));
        prop_assert!(all_wait);
    }
}
