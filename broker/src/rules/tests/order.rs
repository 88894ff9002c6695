//! Who is next: turns between namespaces, what bounds overtaking, and what is said of it.

use protocol::explain::{Fit, Resource, Standing};

use super::*;

/// The jobs that were granted, in order, while one worker of one CPU finishes each at once.
fn served(bench: &mut Bench, session: u64, count: usize) -> Vec<u8> {
    let mut order = Vec::new();
    let mut step = bench.claim(session, 1, 0);
    for seen in 1..=count as u64 {
        let Some((_, run)) = grants(&step).first().copied() else { break };
        let number = run.job.as_bytes()[0];
        order.push(number);
        bench.finish(session, number, run.run).unwrap();
        step = bench.claim(session, 1, seen);
    }
    order
}

fn roomy() -> Bench {
    let mut bench = Bench::new();
    bench.limits.live_jobs_max = 1_000;
    bench.core = Core::new(QueueState::new(bench.core.queue()), bench.limits.clone(), bench.now);
    bench
}

#[test]
fn namespaces_take_turns_however_many_jobs_one_of_them_has() {
    // Given a flood in one namespace, and then single jobs in two others (all want them: a namespace keeps its newest job only).
    let mut bench = roomy();
    (1..=6).for_each(|number| drop(bench.submit(number, "_")));
    bench.submit(7, "bob");
    bench.submit(8, "eve");
    bench.connect(1, "w");
    // When one worker takes them one by one, then the single ones wait for one job of the flood, not for all.
    assert_eq!(served(&mut bench, 1, 9), [1, 7, 8, 2, 3, 4, 5, 6]);
}

#[test]
fn a_namespace_that_comes_later_has_saved_no_turns_up() {
    // Given one worker that has served five jobs of one namespace while another was away,
    let mut bench = roomy();
    bench.connect(1, "w");
    (1..=10).for_each(|number| drop(bench.submit(number, "_")));
    assert_eq!(served(&mut bench, 1, 5), [1, 2, 3, 4, 5]);
    // when the other comes with one job after the other, then it gets every second turn and not five in a row.
    let mut order = Vec::new();
    let mut running = 6;
    for seen in 6..12 {
        let next = 20 + u8::try_from(seen).unwrap();
        bench.finish(1, running, 1).unwrap();
        if bench.core.state().live_in(&namespace("bob")).next().is_none() {
            bench.submit(next, "bob");
        }
        running = grants(&bench.claim(1, 1, seen))[0].1.job.as_bytes()[0];
        order.push(if running > 20 { "bob" } else { "_" });
    }
    assert_eq!(order, ["bob", "_", "bob", "_", "bob", "_"]);
}

#[test]
fn of_equal_turns_the_namespace_served_least_lately_goes_first() {
    // Given a worker busy with one namespace's job, another's that was served before, waiting for long, and one that is new,
    let mut bench = roomy();
    bench.connect(1, "w");
    bench.submit(1, "old");
    bench.submit(2, "now");
    assert_eq!(served(&mut bench, 1, 1), [1]);
    bench.submit(3, "old");
    bench.submit(4, "new");
    // then the new one goes before the older wish of the one that had its turn.
    bench.finish(1, 2, 1).unwrap();
    assert_eq!(grants(&bench.claim(1, 1, 2)), [(1, HeldRun { job: job(4), run: 1 })]);
}

#[test]
fn the_namespace_with_less_running_goes_first() {
    // Given a worker of three that runs two jobs of one namespace,
    let mut bench = roomy();
    bench.connect_with(1, "w", 3, &[], Vec::new());
    (1..=4).for_each(|number| drop(bench.submit(number, "_")));
    bench.claim(1, 2, 0);
    bench.submit(5, "bob");
    // when room for one more comes, then another namespace's younger job is next.
    let step = bench.claim(1, 1, 2);
    assert_eq!(grants(&step), [(1, HeldRun { job: job(5), run: 1 })]);
}

#[test]
fn priority_goes_before_turns() {
    let mut bench = roomy();
    bench.submit_with(1, "_", Needs::default(), 0).unwrap();
    bench.submit_with(2, "_", Needs::default(), 5).unwrap();
    bench.submit_with(3, "_", Needs::default(), 5).unwrap();
    bench.submit(4, "bob");
    bench.connect(1, "w");
    assert_eq!(served(&mut bench, 1, 5), [2, 3, 4, 1]);
}

#[test]
fn one_claim_of_many_slots_is_granted_at_once() {
    let mut bench = roomy();
    (1..=70).for_each(|number| drop(bench.submit(number, "_")));
    bench.connect_with(1, "w", 64, &[], Vec::new());
    let step = bench.claim(1, 64, 0);
    assert_eq!(grants(&step).len(), 64);
    assert_eq!(step.answer, Answer::Claimed { granted: 64 });
}

/// Needs of a whole worker of two.
fn big() -> Needs {
    Needs { cpus_milli: Some(2000), ..Needs::default() }
}

#[test]
fn a_job_that_is_passed_by_for_long_gets_a_worker_kept_free_for_it() {
    // Given a worker of two slots with a small job in each, and a job that needs both.
    let mut bench = roomy();
    bench.connect_with(1, "w", 2, &[], Vec::new());
    (2..=3).for_each(|number| drop(bench.submit(number, "_")));
    bench.claim(1, 2, 0);
    bench.submit_with(1, "_", big(), 0).unwrap();
    // When every ten seconds one small job ends and another comes, then for a minute the new one goes first,
    for round in 0..6u8 {
        assert_eq!(grants(&bench.submit(4 + round, "_")), []);
        bench.finish(1, 2 + round, 1).unwrap();
        let step = bench.claim(1, 1, u64::from(2 + round));
        assert_eq!(grants(&step), [(1, HeldRun { job: job(4 + round), run: 1 })], "round {round}");
        bench.after(10_000);
    }
    // and after that none does: what becomes free is kept until it is enough.
    bench.submit(20, "_");
    bench.finish(1, 8, 1).unwrap();
    assert_eq!(grants(&bench.claim(1, 1, 8)), []);
    bench.finish(1, 9, 1).unwrap();
    assert_eq!(grants(&bench.claim(1, 2, 8)), [(1, HeldRun { job: job(1), run: 1 })]);
    bench.finish(1, 1, 1).unwrap();
    assert_eq!(grants(&bench.claim(1, 2, 9)), [(1, HeldRun { job: job(20), run: 1 })]);
}

#[test]
fn a_worker_that_is_kept_free_still_takes_what_comes_before() {
    let mut bench = roomy();
    bench.connect_with(1, "w", 2, &[], Vec::new());
    bench.submit(2, "_");
    bench.claim(1, 2, 0);
    bench.submit_with(1, "_", big(), 0).unwrap();
    for _ in 0..4 {
        bench.after(20_000);
        bench.handle(Command::Renew { session: SessionId(1), runs: vec![HeldRun { job: job(2), run: 1 }] }).unwrap();
    }
    assert!(grants(&bench.submit(3, "_")).is_empty(), "it comes later, so the free slot is not for it");
    let explained = bench.core.explain(job(3), bench.now);
    assert_eq!(explained.workers[0].fit, Fit::HeldForOthers, "{explained:?}");
    assert_eq!(bench.core.explain(job(1), bench.now).workers[0].fit, Fit::Held);
    let step = bench.submit_with(4, "_", Needs::default(), 1).unwrap();
    assert_eq!(grants(&step).len(), 1, "a higher priority comes before");
    // When the job that it was kept for goes away, what waits is granted.
    bench.finish(1, 4, 1).unwrap();
    bench.claim(1, 1, 2);
    let step = bench.handle(Command::Cancel { job: job(1), scope: CancelScope::All, message: None }).unwrap();
    assert_eq!(grants(&step), [(1, HeldRun { job: job(3), run: 1 })]);
}

#[test]
fn a_busy_worker_that_hands_back_is_asked_again_with_its_next_claim() {
    let mut bench = roomy();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    let run = HeldRun { job: job(1), run: 1 };
    let step = bench.handle(Command::HandBack { session: SessionId(1), run, busy: true }).unwrap();
    assert!(grants(&step).is_empty(), "it has just said that it has no room");
    assert_eq!(bench.job(1).unwrap().lost, 0);
    let step = bench.claim(1, 1, 1);
    assert_eq!(grants(&step), [(1, HeldRun { job: job(1), run: 2 })]);
}

#[test]
fn a_waiting_job_can_say_what_it_waits_for() {
    let mut bench = roomy();
    let needs = Needs { gpus: 2, ..Needs::default() };
    bench.submit_with(1, "_", needs, 0).unwrap();
    let explained = bench.core.explain(job(1), bench.now);
    assert_eq!((explained.standing, explained.workers_total), (Standing::Waiting, 0));
    assert!(explained.reason.contains("no worker is connected"), "{}", explained.reason);
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    let explained = bench.core.explain(job(1), bench.now);
    assert_eq!(explained.reason, "no worker of this queue offers 2 GPUs.");
    let lack = &explained.workers[0].lacks[0];
    assert_eq!((explained.workers[0].fit, lack.what, lack.needs, lack.total), (Fit::Never, Resource::Gpus, 2, 0));
    assert_eq!(bench.core.explain(job(9), bench.now).standing, Standing::Unknown);
}

#[test]
fn an_estimate_is_made_from_what_ran_lately() {
    let mut bench = roomy();
    bench.connect(1, "w");
    bench.submit(1, "_");
    bench.claim(1, 1, 0);
    bench.after(4_000);
    bench.finish(1, 1, 1).unwrap();
    bench.claim(1, 0, 1);
    (2..=4).for_each(|number| drop(bench.submit(number, "_")));
    let explained = bench.core.explain(job(4), bench.now);
    let line = explained.line.unwrap();
    assert_eq!((line.ahead, line.ahead_in_namespace, line.waiting), (2, 2, 3));
    let estimate = explained.estimate.unwrap();
    assert_eq!((estimate.median_run_ms, estimate.slots, estimate.starts_in_ms), (4_000, 1, 12_000));
}

#[test]
fn a_worker_that_other_queues_use_is_not_kept_for_nothing() {
    // Given a worker of two slots that offers one here, as the other is for another queue,
    let mut bench = roomy();
    bench.connect_with(1, "w", 2, &[], Vec::new());
    bench.submit_with(1, "_", big(), 0).unwrap();
    bench.claim(1, 1, 0);
    // when a job that needs both has waited for long, then later ones still pass it by, as it would wait for ever.
    (0..4).for_each(|_| drop(bench.after(20_000)));
    assert_eq!(grants(&bench.submit(2, "_")), [(1, HeldRun { job: job(2), run: 1 })]);
}

#[test]
fn a_worker_that_stops_taking_jobs_is_let_go() {
    let mut bench = roomy();
    bench.connect_with(1, "w", 2, &[], Vec::new());
    bench.connect_with(2, "v", 2, &[], Vec::new());
    bench.submit(2, "_");
    bench.claim(1, 2, 0);
    bench.submit_with(1, "_", big(), 0).unwrap();
    let renew = Command::Renew { session: SessionId(1), runs: vec![HeldRun { job: job(2), run: 1 }] };
    for _ in 0..4 {
        bench.after(20_000);
        bench.handle(renew.clone()).unwrap();
    }
    assert_eq!(bench.core.explain(job(1), bench.now).workers[0].fit, Fit::Held);
    // It says that it takes nothing new: after a while it is not counted on any more.
    bench.claim(1, 0, 1);
    bench.after(1);
    assert_eq!(bench.core.explain(job(1), bench.now).workers[0].fit, Fit::Held, "it may only be between two claims");
    bench.after(20_000);
    assert_eq!(bench.core.explain(job(1), bench.now).workers[0].fit, Fit::Later);
}

#[test]
fn a_job_that_was_handed_back_gives_its_namespace_no_turns() {
    // Given a worker that cannot start one job of a namespace, which waits at the front for another worker,
    let mut bench = roomy();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    bench.submit(2, "_");
    bench.submit(3, "bob");
    let run = HeldRun { job: job(1), run: 1 };
    let step = bench.handle(Command::HandBack { session: SessionId(1), run, busy: false }).unwrap();
    // then what is granted meanwhile is not that namespace's next job, but who is next in line.
    let step = if grants(&step).is_empty() { bench.claim(1, 1, 1) } else { step };
    assert_eq!(grants(&step), [(1, HeldRun { job: job(3), run: 1 })]);
}

#[test]
fn who_comes_first_when_the_job_that_a_worker_is_kept_for_goes_is_granted() {
    let mut bench = roomy();
    bench.connect_with(1, "w", 2, &[], Vec::new());
    bench.submit(2, "_");
    bench.claim(1, 2, 0);
    bench.submit_with(1, "_", big(), 5).unwrap();
    bench.submit_with(4, "_", big(), 0).unwrap();
    for _ in 0..4 {
        bench.after(20_000);
        bench.handle(Command::Renew { session: SessionId(1), runs: vec![HeldRun { job: job(2), run: 1 }] }).unwrap();
    }
    assert_eq!(grants(&bench.submit_with(3, "_", Needs::default(), 3).unwrap()), []);
    let step = bench.handle(Command::Cancel { job: job(1), scope: CancelScope::All, message: None }).unwrap();
    assert_eq!(grants(&step), [(1, HeldRun { job: job(3), run: 1 })]);
}
