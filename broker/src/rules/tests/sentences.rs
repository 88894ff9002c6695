//! Given, when, then.

use super::*;
use crate::rules::command::CancelBefore;
use crate::rules::presence::UNSEEN_GRANTS_MAX;
use protocol::native::StopReason;

fn held(number: u8, run: u32) -> HeldRun {
    HeldRun { job: job(number), run }
}

#[test]
fn a_submission_that_meets_a_waiting_worker_is_queued_and_claimed_in_one_step() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    let step = bench.submit(1, "_");
    assert_eq!(names(&step), ["JobQueued", "RunClaimed"]);
    assert_eq!(grants(&step), [(1, held(1, 1))]);
    assert_eq!(step.bodies.len(), 1);
}

#[test]
fn a_thousand_identical_submissions_are_one_run() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 4, 0);
    let runs: usize = (0..1000).map(|_| grants(&bench.submit(1, "_")).len()).sum();
    assert_eq!(runs, 1);
    assert_eq!(bench.records.len(), 3, "joined, queued, claimed");
}

#[test]
fn older_jobs_go_first_and_higher_priority_before_them() {
    let mut bench = Bench::new();
    for (number, priority) in [(1, 0), (2, 0), (3, 5)] {
        bench.submit_with(number, "_", Needs::default(), priority).unwrap();
    }
    bench.connect(1, "w");
    let granted: Vec<_> = grants(&bench.claim(1, 3, 0)).into_iter().map(|(_, run)| run.job).collect();
    assert_eq!(granted, [job(3), job(1), job(2)]);
}

#[test]
fn a_job_that_does_not_fit_is_passed_by() {
    let mut bench = Bench::new();
    bench.submit_with(1, "_", Needs { gpus: 1, ..Needs::default() }, 0).unwrap();
    bench.submit(2, "_");
    bench.connect(1, "w");
    assert_eq!(grants(&bench.claim(1, 4, 0)), [(1, held(2, 1))]);
    assert!(matches!(bench.status(1), Some(Status::Queued { .. })));
}

#[test]
fn fractions_of_a_cpu_share_one() {
    let mut bench = Bench::new();
    for number in 1..=3 {
        bench.submit_with(number, "_", Needs { cpus_milli: Some(400), ..Needs::default() }, 0).unwrap();
    }
    bench.connect(1, "w");
    assert_eq!(grants(&bench.claim(1, 1, 0)).len(), 2);
}

#[test]
fn a_worker_with_tags_takes_only_jobs_that_have_one_of_them() {
    let mut bench = Bench::new();
    bench.submit(1, "_");
    bench.submit_with(2, "_", Needs { tags: vec!["gpu-lab".to_owned()], ..Needs::default() }, 0).unwrap();
    bench.connect_with(1, "picky", 4, &["gpu-lab"], Vec::new());
    assert_eq!(grants(&bench.claim(1, 4, 0)), [(1, held(2, 1))]);
    bench.connect_with(2, "any", 4, &[], Vec::new());
    assert_eq!(grants(&bench.claim(2, 4, 0)), [(2, held(1, 1))]);
}

#[test]
fn a_worker_cannot_keep_anothers_run_alive() {
    let mut bench = Bench::new();
    bench.submit(1, "_");
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.connect(2, "other");
    bench.after(bench.limits.lease_ms - 1);
    bench.handle(Command::Renew { session: SessionId(2), runs: vec![held(1, 1)] }).unwrap();
    let step = bench.after(1);
    assert!(names(&step).contains(&"RunLost"), "{:?}", names(&step));
}

#[test]
fn a_large_result_is_stored_only_for_whoever_has_the_run() {
    let mut bench = Bench::new();
    bench.submit(1, "_");
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.connect(2, "other");
    assert_eq!(bench.core.may_finish(SessionId(1), held(1, 1)), Ok(()));
    assert_eq!(bench.core.may_finish(SessionId(1), held(1, 2)), Err(Rejection::StaleRun(held(1, 2))));
    assert_eq!(bench.core.may_finish(SessionId(2), held(1, 1)), Err(Rejection::StaleRun(held(1, 1))));
    assert_eq!(bench.core.may_finish(SessionId(3), held(1, 1)), Err(Rejection::NotAWorker));
    bench.finish(1, 1, 1).unwrap();
    assert_eq!(bench.core.may_finish(SessionId(1), held(1, 1)), Ok(()), "its own, sent again");
}

#[test]
fn a_worker_that_sees_no_grants_gets_no_more_of_them() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    let mut granted = 0;
    // Each ends, so that only its being unseen counts.
    for run in 1..=u32::try_from(UNSEEN_GRANTS_MAX).unwrap() + 5 {
        bench.submit_with(1, "_", Needs { cpus_milli: Some(0), ..Needs::default() }, 0).unwrap();
        bench.claim(1, 1, 0);
        if matches!(bench.status(1), Some(Status::Running {})) {
            granted += 1;
            bench.finish(1, 1, run).unwrap();
            bench.handle(Command::Delete { job: job(1), scope: CancelScope::All, archived: None }).unwrap();
        }
    }
    assert_eq!(granted, UNSEEN_GRANTS_MAX);
    assert_eq!(grants(&bench.claim(1, 1, granted as u64)).len(), 1, "it has seen them");
}

#[test]
fn a_grant_under_way_is_not_counted_twice() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    // The worker's next claim was sent before it saw the grant.
    let step = bench.claim(1, 1, 0);
    bench.submit(2, "_");
    assert!(grants(&step).is_empty());
    assert!(matches!(bench.status(2), Some(Status::Queued { .. })));
    assert_eq!(grants(&bench.claim(1, 1, 1)), [(1, held(2, 1))]);
}

#[test]
fn a_finish_of_a_run_that_was_not_granted_is_refused() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.connect(2, "thief");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    assert_eq!(bench.finish(2, 1, 1).unwrap_err(), Rejection::StaleRun(held(1, 1)));
    assert_eq!(bench.finish(1, 1, 2).unwrap_err(), Rejection::StaleRun(held(1, 2)));
    assert_eq!(bench.finish(9, 1, 1).unwrap_err(), Rejection::NotAWorker);
    assert_eq!(names(&bench.finish(1, 1, 1).unwrap()), ["RunFinished"]);
}

#[test]
fn a_finish_sent_again_is_answered_like_the_first() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    bench.finish(1, 1, 1).unwrap();
    assert!(bench.finish(1, 1, 1).unwrap().records.is_empty());
}

#[test]
fn a_late_finish_counts_until_a_newer_run_is_claimed() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    assert_eq!(names(&bench.after(30_000)), ["RunLost", "JobRequeued"]);
    assert_eq!(names(&bench.finish(1, 1, 1).unwrap()), ["RunFinished"]);

    bench.submit(2, "_");
    bench.claim(1, 1, 1);
    assert_eq!(bench.job(2).unwrap().run, 1);
    bench.after(30_000);
    bench.connect(2, "other");
    let step = bench.claim(2, 1, 0);
    assert_eq!(grants(&step), [(2, held(2, 2))]);
    assert!(step.effects.contains(&Effect::Stop {
        session: SessionId(1),
        run: held(2, 1),
        why: StopReason::Superseded
    }));
    assert_eq!(bench.finish(1, 2, 1).unwrap_err(), Rejection::StaleRun(held(2, 1)));
}

#[test]
fn renewals_keep_a_run() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    for _ in 0..10 {
        assert!(bench.after(20_000).records.is_empty());
        bench.handle(Command::Renew { session: SessionId(1), runs: vec![held(1, 1)] }).unwrap();
    }
    assert_eq!(bench.status(1), Some(&Status::Running {}));
}

#[test]
fn a_worker_that_comes_back_within_its_lease_carries_on() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    bench.handle(Command::Disconnect { session: SessionId(1) }).unwrap();
    bench.after(29_000);
    let step = bench.connect_with(2, "w", 1, &[], vec![held(1, 1)]);
    assert_eq!(step.answer, Answer::Connected { gone: Vec::new() });
    bench.after(29_000);
    assert_eq!(bench.status(1), Some(&Status::Running {}));
}

#[test]
fn a_worker_that_comes_back_later_resumes_unless_someone_else_has_the_job() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 2, 0);
    bench.submit(1, "_");
    bench.submit(2, "_");
    bench.handle(Command::Disconnect { session: SessionId(1) }).unwrap();
    bench.after(30_000);
    bench.connect(2, "other");
    assert_eq!(grants(&bench.claim(2, 1, 0)), [(2, held(1, 2))]);
    let step = bench.connect_with(3, "w", 2, &[], vec![held(1, 1), held(2, 1)]);
    assert_eq!(step.answer, Answer::Connected { gone: vec![held(1, 1)] });
    assert_eq!(names(&step), ["WorkerJoined", "RunResumed"]);
    assert_eq!(bench.status(2), Some(&Status::Running {}));
}

#[test]
fn a_worker_that_comes_back_without_its_run_loses_it_at_once() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    let step = bench.connect(2, "w");
    assert_eq!(names(&step), ["RunLost", "JobRequeued"]);
    assert!(step.effects.contains(&Effect::Replace { session: SessionId(1) }));
}

#[test]
fn a_restart_of_the_broker_gives_every_run_a_full_lease() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    bench.now = bench.now.plus(3_600_000);
    bench.restart();
    assert!(bench.after(29_999).records.is_empty());
    assert_eq!(names(&bench.after(1)), ["RunLost", "JobRequeued"]);
}

#[test]
fn after_three_lost_runs_a_job_is_abandoned_with_a_result_that_says_why() {
    let mut bench = Bench::new();
    bench.submit(1, "_");
    for round in 1..=3u64 {
        bench.connect(round, "w");
        bench.claim(round, 1, 0);
        assert_eq!(u64::from(bench.job(1).unwrap().run), round);
        bench.handle(Command::Disconnect { session: SessionId(round) }).unwrap();
        let step = bench.after(30_000);
        if round == 3 {
            assert_eq!(names(&step)[..2], ["RunLost", "JobAbandoned"]);
            let said = String::from_utf8_lossy(&step.bodies[0].bytes).into_owned();
            assert!(said.contains("given up after 3 lost runs"), "{said}");
        }
    }
    assert!(matches!(bench.status(1), Some(Status::Finished { outcome: RunOutcome::Error, abandoned: true, .. })));
}

#[test]
fn a_run_handed_back_is_not_counted_and_not_offered_to_the_same_worker_at_once() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    let step = bench.handle(Command::HandBack { session: SessionId(1), run: held(1, 1), busy: false }).unwrap();
    assert_eq!(names(&step), ["RunLost", "JobRequeued"]);
    assert!(grants(&bench.claim(1, 1, 1)).is_empty());
    assert_eq!(bench.job(1).unwrap().lost, 0);
    bench.connect(2, "other");
    assert_eq!(grants(&bench.claim(2, 1, 0)), [(2, held(1, 2))]);
}

#[test]
fn a_run_handed_back_is_offered_again_when_nobody_else_took_it() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    bench.handle(Command::HandBack { session: SessionId(1), run: held(1, 1), busy: false }).unwrap();
    bench.claim(1, 1, 1);
    // Nothing else happens: time alone must bring it back.
    let due = bench.core.due().expect("a moment at which it is offered again");
    assert_eq!(due, bench.now.plus(30_000));
    assert!(grants(&bench.after(29_999)).is_empty());
    assert_eq!(grants(&bench.after(1)), [(1, held(1, 2))]);
}

#[test]
fn a_lost_job_goes_before_all_of_its_priority() {
    let mut bench = Bench::new();
    bench.submit(1, "_");
    bench.submit(2, "_");
    bench.connect(1, "w");
    bench.claim(1, 2, 0);
    bench.submit(3, "_");
    bench.after(30_000);
    let order: Vec<_> = bench.core.state().waiting().map(|(id, _)| id).collect();
    assert_eq!(order, [job(1), job(2), job(3)]);
}

#[test]
fn a_cancel_takes_one_wish_and_the_last_one_ends_the_job() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "a");
    bench.submit(1, "b");
    let cancel = |ns| Command::Cancel { job: job(1), scope: one(ns), message: Some("enough".to_owned()) };
    assert_eq!(names(&bench.handle(cancel("a")).unwrap()), ["NamespaceLeft"]);
    assert!(bench.handle(cancel("_")).unwrap().records.is_empty(), "a wish nobody had");
    let step = bench.handle(cancel("b")).unwrap();
    assert_eq!(names(&step), ["NamespaceLeft", "JobCancelled"]);
    assert_eq!(step.answer, Answer::Cancelled(CancelBefore::Live));
    assert!(step.effects.contains(&Effect::Stop {
        session: SessionId(1),
        run: held(1, 1),
        why: StopReason::Cancelled
    }));
    assert_eq!(bench.finish(1, 1, 1).unwrap_err(), Rejection::StaleRun(held(1, 1)));
    assert_eq!(bench.handle(cancel("b")).unwrap().answer, Answer::Cancelled(CancelBefore::Ended));
}

#[test]
fn a_success_cannot_be_cancelled() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    bench.finish(1, 1, 1).unwrap();
    let cancel = Command::Cancel { job: job(1), scope: CancelScope::All, message: None };
    assert!(bench.handle(cancel).unwrap().records.is_empty());
}

#[test]
fn whoever_asks_again_for_a_cancelled_job_gets_a_new_run_with_a_new_number() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    bench.handle(Command::Cancel { job: job(1), scope: CancelScope::All, message: None }).unwrap();
    bench.submit(1, "_");
    assert_eq!(grants(&bench.claim(1, 1, 1)), [(1, held(1, 2))]);
}

#[test]
fn in_a_namespace_of_its_own_the_last_submission_stays() {
    let mut bench = Bench::new();
    bench.submit(1, "doc");
    let step = bench.submit(2, "doc");
    assert_eq!(names(&step), ["JobQueued", "NamespaceLeft", "JobReplaced"]);
    assert_eq!(bench.status(1), Some(&Status::Replaced { by: job(2) }));
    // A, B, A leaves A.
    bench.submit(1, "doc");
    assert!(matches!(bench.status(1), Some(Status::Queued { .. })));
    assert_eq!(bench.status(2), Some(&Status::Replaced { by: job(1) }));
}

#[test]
fn a_superseded_job_that_has_waited_long_gets_a_grace() {
    for (age_ms, grace_ms) in [(20_000, 0), (20_001, 4_000), (60_000, 4_000), (60_001, 8_000)] {
        let mut bench = Bench::new();
        bench.submit(1, "doc");
        bench.now = bench.now.plus(age_ms);
        bench.submit(2, "doc");
        if grace_ms > 0 {
            assert!(matches!(bench.status(1), Some(Status::Queued { .. })), "age {age_ms}");
            assert_eq!(bench.core.due(), Some(bench.now.plus(grace_ms)));
            assert!(bench.after(grace_ms - 1).records.is_empty());
            bench.after(1);
        }
        assert_eq!(bench.status(1), Some(&Status::Replaced { by: job(2) }), "age {age_ms}");
    }
}

#[test]
fn a_grace_is_not_prolonged_by_what_comes_later_and_ends_with_its_reason() {
    let mut bench = Bench::new();
    bench.submit(1, "doc");
    bench.now = bench.now.plus(60_001);
    bench.submit(2, "doc");
    let must_leave_at = bench.now.plus(8_000);
    for newer in 3..7 {
        bench.after(1_500);
        bench.submit(newer, "doc");
        assert_eq!(bench.core.due(), Some(must_leave_at), "and the young one before it went at once");
    }
    assert!(bench.job(1).unwrap().is_live());
    bench.after(2_000);
    assert_eq!(bench.status(1), Some(&Status::Replaced { by: job(6) }));
    // Whoever asks for it again is not superseded, and gets a grace of its own when it is.
    bench.now = bench.now.plus(30_000);
    bench.submit(7, "doc");
    assert_eq!(bench.core.due(), Some(bench.now.plus(4_000)));
    bench.submit(6, "doc");
    assert_eq!(bench.status(7), Some(&Status::Replaced { by: job(6) }), "it is young");
    bench.now = bench.now.plus(10_000);
    bench.submit(8, "doc");
    assert_eq!(bench.core.due(), Some(bench.now.plus(4_000)));
    // After a restart of the broker a grace ends at the same moment or is given anew, but it ends.
    bench.restart();
    let due = bench.core.due().unwrap();
    assert!(due <= bench.now.plus(8_000));
    bench.after(due.since(bench.now));
    assert_eq!(bench.status(6), Some(&Status::Replaced { by: job(8) }));
}

#[test]
fn all_whose_grace_is_over_leave_in_one_step_and_each_as_itself() {
    let mut bench = Bench::new();
    for name in ["a", "b"] {
        bench.submit(1, name);
    }
    bench.submit(2, "c");
    bench.now = bench.now.plus(60_001);
    for (newer, name) in [(3, "a"), (4, "b"), (5, "c")] {
        bench.submit(newer, name);
    }
    assert!(bench.after(7_999).records.is_empty());
    let left = bench.after(1).records.len();
    assert_eq!(left, 5, "three left a namespace, and with that two are gone");
    assert_eq!(bench.status(1), Some(&Status::Replaced { by: job(4) }));
    assert_eq!(bench.status(2), Some(&Status::Replaced { by: job(5) }));
    assert_eq!(bench.core.due(), bench.core.due().filter(|due| *due > bench.now), "nothing is left to do now");
}

#[test]
fn a_replaced_job_that_others_want_goes_on() {
    let mut bench = Bench::new();
    bench.submit(1, "doc");
    bench.submit(1, "_");
    assert_eq!(names(&bench.submit(2, "doc")), ["JobQueued", "NamespaceLeft"]);
    assert!(bench.job(1).unwrap().is_live());
}

#[test]
fn a_finished_job_asked_for_again_is_answered_from_its_result_also_after_it_left() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    bench.finish(1, 1, 1).unwrap();
    assert!(bench.submit(1, "_").records.is_empty());
    bench.handle(Command::Disconnect { session: SessionId(1) }).unwrap();
    assert_eq!(names(&bench.after(60_000)), ["WorkerLeft", "JobRemoved"]);
    assert_eq!(bench.job(1), None);
    assert_eq!(names(&bench.submit(1, "_")), ["JobRecalled"]);
    let recalled = bench.job(1).unwrap();
    assert!(matches!(recalled.status, Status::Finished { outcome: RunOutcome::Success, .. }));
    assert_eq!(recalled.run, 1);
}

#[test]
fn a_job_that_is_asked_for_again_after_it_left_stays_as_long_as_one_that_has_just_ended() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    bench.finish(1, 1, 1).unwrap();
    bench.after(3_600_000);
    let ended = bench.submit(1, "_").records;
    assert_eq!(ended.len(), 1, "it is recalled");
    assert!(!names(&bench.after(59_999)).contains(&"JobRemoved"), "whoever asked gets to see it");
    assert!(names(&bench.after(1)).contains(&"JobRemoved"));
}

#[test]
fn a_deleted_job_runs_anew_also_after_it_left() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    bench.finish(1, 1, 1).unwrap();
    bench.after(60_000);
    let archived = bench.archive.get(&job(1)).cloned();
    let delete = Command::Delete { job: job(1), scope: one("_"), archived };
    assert_eq!(names(&bench.handle(delete).unwrap()), ["JobRecalled", "NamespaceLeft", "JobDeleted"]);
    bench.after(60_000);
    bench.submit(1, "_");
    assert_eq!(bench.job(1).unwrap().run, 1, "the next run is the second");
    assert!(matches!(bench.status(1), Some(Status::Queued { .. })));
}

#[test]
fn failures_stay_longer_than_successes() {
    let mut bench = Bench::new();
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.submit(1, "_");
    bench.handle(Command::Abandon { run: held(1, 1), why: "test".to_owned() }).unwrap();
    bench.after(60_000);
    assert!(bench.job(1).is_some());
    bench.after(24 * 60 * 60 * 1000);
    assert!(bench.job(1).is_none());
}

#[test]
fn over_a_limit_a_submission_is_refused_and_nothing_changes() {
    let mut bench = Bench::new();
    for number in 0..20 {
        bench.submit(number, "_");
    }
    let full = bench.submit_with(99, "_", Needs::default(), 0).unwrap_err();
    assert_eq!(full, Rejection::QueueFull { live_max: 20 });
    bench.submit(1, "a");
    bench.submit(1, "b");
    let before = bench.core.state().hash();
    let many = bench.submit_with(1, "c", Needs::default(), 0).unwrap_err();
    assert_eq!(many, Rejection::NamespacesFull { namespaces_max: 3 });
    assert_eq!(before, bench.core.state().hash());
}

#[test]
fn a_clock_set_back_does_not_take_history_back() {
    let mut bench = Bench::new();
    bench.submit(1, "_");
    bench.now = UnixMillis(5);
    bench.submit(2, "_");
    let times: Vec<_> = bench.records.iter().map(|record| Record::decode(&record.bytes).unwrap().at_ms).collect();
    assert_eq!(times, [UnixMillis(1_000_000), UnixMillis(1_000_000)]);
}

#[test]
fn a_job_that_failed_runs_again_when_that_is_asked_for_and_only_then() {
    for (outcome, exit_code) in [
        (RunOutcome::Error, None),
        (RunOutcome::TimedOut, None),
        (RunOutcome::Success, Some(1)),
        (RunOutcome::Success, Some(0)),
    ] {
        for has_left in [false, true] {
            let mut bench = Bench::new();
            bench.submit(1, "a");
            bench.connect(1, "w");
            bench.claim(1, 1, 0);
            bench.end(1, 1, 1, outcome, exit_code).unwrap();
            if has_left {
                bench.after(25 * 60 * 60 * 1000);
                assert!(bench.job(1).is_none());
            }
            assert!(!names(&bench.submit(1, "_")).contains(&"JobQueued"), "{outcome:?}");
            let again = bench.submit_as(1, "b", Needs::default(), 0, true).unwrap();
            let fails = (outcome, exit_code) != (RunOutcome::Success, Some(0));
            assert_eq!(names(&again).contains(&"JobQueued"), fails, "{outcome:?} {exit_code:?} {has_left}");
            let job = bench.job(1).unwrap();
            assert_eq!(job.is_live(), fails);
            assert_eq!(job.run, if fails { 1 } else { job.run }, "run numbers go on");
            assert!(!names(&bench.submit_as(1, "b", Needs::default(), 0, true).unwrap()).contains(&"JobQueued"));
        }
    }
}

fn wanted_by(bench: &Bench, number: u8) -> Vec<String> {
    bench.job(number).unwrap().namespaces.keys().map(ToString::to_string).collect()
}

#[test]
fn a_job_that_runs_again_is_still_wanted_by_all_who_have_asked_for_nothing_newer() {
    let mut bench = Bench::new();
    bench.submit(1, "a");
    bench.submit(1, "b");
    bench.submit(1, "_");
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    bench.end(1, 1, 1, RunOutcome::Error, None).unwrap();
    let full = bench.submit_as(1, "c", Needs::default(), 0, true).unwrap_err();
    assert_eq!(full, Rejection::NamespacesFull { namespaces_max: 3 });
    bench.submit(2, "b");
    let again = bench.submit_as(1, "a", Needs::default(), 0, true).unwrap();
    assert_eq!(names(&again), ["JobQueued", "NamespaceJoined"]);
    assert_eq!(wanted_by(&bench, 1), ["_", "a"], "b has asked for another job since");
    assert!(bench.job(2).unwrap().is_live());
    // Whoever asked for it again may leave it again: it goes on for the other.
    bench.handle(Command::Cancel { job: job(1), scope: one("a"), message: None }).unwrap();
    assert!(bench.job(1).unwrap().is_live());
    assert_eq!(wanted_by(&bench, 1), ["_"]);
}

#[test]
fn to_ask_again_for_a_job_that_waits_or_runs_is_to_want_it_too() {
    let mut bench = Bench::new();
    bench.submit(1, "a");
    assert_eq!(names(&bench.submit_as(1, "b", Needs::default(), 0, true).unwrap()), ["NamespaceJoined"]);
    bench.connect(1, "w");
    bench.claim(1, 1, 0);
    assert_eq!(names(&bench.submit_as(1, "b", Needs::default(), 0, true).unwrap()), Vec::<&str>::new());
    assert_eq!(names(&bench.submit_as(1, "_", Needs::default(), 0, true).unwrap()), ["NamespaceJoined"]);
    assert_eq!(bench.job(1).unwrap().run, 1);
    assert_eq!(wanted_by(&bench, 1), ["_", "a", "b"]);
}
