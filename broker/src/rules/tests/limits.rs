//! What has a number, exactly at it and one beyond.

use super::*;

fn held(number: u8, run: u32) -> HeldRun {
    HeldRun { job: job(number), run }
}

/// A queue with a worker of one slot that runs the first job.
fn running() -> Bench {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    bench
}

#[test]
fn a_silent_worker_keeps_its_run_for_the_lease_and_not_a_moment_longer() {
    for (silent_ms, is_kept) in [(29_999, true), (30_000, false)] {
        let mut bench = running();
        bench.handle(Command::Disconnect { session: SessionId(1) }).unwrap();
        bench.after(silent_ms);
        assert_eq!(bench.status(1) == Some(&Status::Running {}), is_kept, "{silent_ms}");
    }
}

#[test]
fn a_job_waits_again_until_its_last_lost_run() {
    for (lost_runs_max, lost, is_over) in [(3, 2, false), (3, 3, true), (1, 1, true)] {
        let mut bench = Bench::new();
        bench.limits.lost_runs_max = lost_runs_max;
        bench.core = Core::new(QueueState::new(QueueKey::from_bytes([7; 16])), bench.limits.clone(), bench.now);
        bench.submit(1, "_");
        for session in 1..=lost {
            bench.connect(session, "w");
            bench.claim(session, 1, 0);
            bench.handle(Command::Disconnect { session: SessionId(session) }).unwrap();
            bench.after(30_000);
        }
        assert_eq!(matches!(bench.status(1), Some(Status::Finished { abandoned: true, .. })), is_over, "{lost}");
    }
}

#[test]
fn a_job_is_passed_by_until_it_has_waited_for_so_long() {
    for (waited_ms, is_passed) in [(59_999, true), (60_000, false)] {
        let mut bench = Bench::new();
        bench.connect_with(1, "w", 2, &[], Vec::new());
        bench.submit(2, "_");
        bench.submit(3, "_");
        bench.claim(1, 2, 0);
        bench.submit_with(1, "_", Needs { cpus_milli: Some(2000), ..Needs::default() }, 0).unwrap();
        bench.submit(4, "_");
        for step_ms in [20_000, 20_000, waited_ms - 40_000] {
            bench.after(step_ms);
            let runs = vec![held(2, 1), held(3, 1)];
            bench.handle(Command::Renew { session: SessionId(1), runs }).unwrap();
        }
        bench.finish(1, 2, 1).unwrap();
        assert_eq!(!grants(&bench.claim(1, 1, 2)).is_empty(), is_passed, "{waited_ms}");
    }
}

#[test]
fn a_success_and_a_failure_stay_for_their_time_and_no_longer() {
    for (outcome, stays_ms) in [(RunOutcome::Success, 60_000), (RunOutcome::Error, 24 * 60 * 60 * 1000)] {
        for (waited_ms, is_there) in [(stays_ms - 1, true), (stays_ms, false)] {
            let mut bench = running();
            bench.end(1, 1, 1, outcome, Some(0)).unwrap();
            bench.after(waited_ms);
            assert_eq!(bench.job(1).is_some(), is_there, "{outcome:?} {waited_ms}");
        }
    }
}

#[test]
fn the_last_job_and_the_last_namespace_fit() {
    let mut bench = Bench::new();
    for number in 0..20 {
        assert!(bench.submit_with(number, "_", Needs::default(), 0).is_ok(), "{number}");
    }
    assert_eq!(bench.submit_with(20, "_", Needs::default(), 0).unwrap_err(), Rejection::QueueFull { live_max: 20 });
    for name in ["a", "b"] {
        assert!(bench.submit_with(1, name, Needs::default(), 0).is_ok(), "{name}");
    }
    let many = bench.submit_with(1, "c", Needs::default(), 0).unwrap_err();
    assert_eq!(many, Rejection::NamespacesFull { namespaces_max: 3 });
}
