//! Workers of the original's kind, as sentences.

use protocol::explain::Fit;

use super::*;

impl Bench {
    pub(super) fn register(&mut self, session: u64, name: &str) -> Step {
        let total = Capacity { cpus_milli: 2000, memory_bytes: None, gpus: 0 };
        let (version, tags) = ("o".to_owned(), Vec::new());
        let hello =
            WorkerHello { id: name.parse().unwrap(), version, total, tags, max_duration_ms: None, holds: Vec::new() };
        self.handle(Command::Register { session: SessionId(session), hello }).unwrap()
    }

    pub(super) fn takes(&mut self, session: u64, number: u8, at: u64) -> Step {
        let at = UnixMillis(at);
        self.handle(Command::ClaimJob { session: SessionId(session), job: job(number), at }).unwrap()
    }

    fn holder(&self, number: u8) -> Option<(String, u32)> {
        let job = self.job(number)?;
        matches!(job.status, Status::Running {}).then(|| (job.worker.as_ref().unwrap().to_string(), job.run))
    }

    fn held_by(&self, number: u8, worker: &str, run: u32) -> bool {
        self.holder(number) == Some((worker.to_owned(), run))
    }
}

#[test]
fn a_worker_takes_a_waiting_job_and_is_granted_none() {
    let mut bench = Bench::new();
    bench.register(1, "a");
    let submitted = bench.submit(1, "_");
    assert!(grants(&submitted).is_empty());
    assert_eq!(names(&bench.takes(1, 1, 10)), ["RunClaimed"]);
    assert!(bench.held_by(1, "a", 1));
    assert!(names(&bench.takes(1, 1, 10)).is_empty(), "a reminder");
    assert!(names(&bench.takes(1, 9, 10)).is_empty(), "no such job");
    assert_eq!(names(&bench.finish(1, 1, 1).unwrap()), ["RunFinished"]);
    assert!(names(&bench.takes(1, 1, 20)).is_empty(), "it is over");
}

#[test]
fn only_a_registered_worker_takes_jobs() {
    let mut bench = Bench::new();
    bench.submit(1, "_");
    let claim = Command::ClaimJob { session: SessionId(1), job: job(1), at: UnixMillis(1) };
    assert_eq!(bench.handle(claim).unwrap_err(), Rejection::NotAWorker);
}

#[test]
fn of_two_workers_with_one_job_the_one_whose_id_sorts_first_keeps_it_as_a_new_run() {
    let mut bench = Bench::new();
    bench.register(1, "b");
    bench.register(2, "a");
    bench.register(3, "B");
    bench.submit(1, "_");
    bench.takes(1, 1, 10);
    assert!(names(&bench.takes(3, 1, 11)).is_empty(), "B sorts after b");
    assert_eq!(names(&bench.takes(2, 1, 12)), ["RunClaimed"]);
    assert!(bench.held_by(1, "a", 2));
    assert!(names(&bench.takes(1, 1, 10)).is_empty(), "it has to let go");
    assert_eq!(bench.finish(1, 1, 1).unwrap_err(), Rejection::StaleRun(HeldRun { job: job(1), run: 1 }));
    assert!(bench.finish(2, 1, 2).is_ok());
}

#[test]
fn a_granted_run_is_never_given_to_a_worker_that_takes_by_itself() {
    let mut bench = Bench::new();
    bench.register(1, "a");
    bench.connect(2, "z");
    bench.submit(1, "_");
    bench.claim(2, 1, 0);
    assert!(bench.held_by(1, "z", 1));
    assert!(names(&bench.takes(1, 1, 10)).is_empty());
    assert!(bench.held_by(1, "z", 1));
}

#[test]
fn a_lost_run_goes_on_when_its_worker_says_so_and_an_attempt_begun_anew_is_a_new_run() {
    let mut bench = Bench::new();
    bench.register(1, "a");
    bench.submit(1, "_");
    bench.takes(1, 1, 10);
    bench.handle(Command::Disconnect { session: SessionId(1) }).unwrap();
    assert_eq!(names(&bench.after(30_000)), ["RunLost", "JobRequeued", "WorkerLeft"]);
    bench.register(2, "a");
    assert_eq!(names(&bench.takes(2, 1, 10)), ["RunResumed"]);
    assert!(bench.held_by(1, "a", 1));
    assert_eq!(names(&bench.takes(2, 1, 99)), ["RunLost", "JobRequeued", "RunClaimed"]);
    assert!(bench.held_by(1, "a", 2));
    assert_eq!(names(&bench.takes(2, 1, 100)), ["RunLost", "JobAbandoned"], "it cannot go on like that");
    assert!(names(&bench.takes(2, 1, 101)).is_empty());
}

#[test]
fn after_a_restart_of_the_broker_a_run_goes_on() {
    let mut bench = Bench::new();
    bench.register(1, "a");
    bench.submit(1, "_");
    bench.takes(1, 1, 10);
    bench.restart();
    bench.after(20_000);
    assert_eq!(names(&bench.register(1, "a")), ["WorkerJoined"]);
    assert!(names(&bench.takes(1, 1, 10)).is_empty());
    assert!(names(&bench.after(20_000)).is_empty(), "its lease was renewed");
    assert!(bench.held_by(1, "a", 1));
}

#[test]
fn registering_again_changes_nothing_and_a_new_socket_takes_the_place_of_the_old_one() {
    let mut bench = Bench::new();
    bench.register(1, "a");
    bench.submit(1, "_");
    bench.takes(1, 1, 10);
    let again = bench.register(1, "a");
    assert!(again.effects.is_empty() && again.records.is_empty());
    let moved = bench.register(2, "a");
    assert!(moved.effects.contains(&Effect::Replace { session: SessionId(1) }));
    assert!(bench.held_by(1, "a", 1), "no run is lost by it");
    assert!(names(&bench.after(29_999)).is_empty());
    assert!(bench.finish(2, 1, 1).is_ok());
}

#[test]
fn a_worker_that_takes_by_itself_is_not_kept_free_for_a_job_that_was_passed_by() {
    let mut bench = Bench::new();
    // Of equals the last would be kept; it would never be granted the job.
    bench.register(1, "z");
    bench.connect_with(2, "a", 2, &[], Vec::new());
    bench.submit(2, "_");
    bench.submit(3, "_");
    bench.claim(2, 2, 0);
    bench.submit_with(1, "_", Needs { cpus_milli: Some(2000), ..Needs::default() }, 0).unwrap();
    for _ in 0..4 {
        bench.after(20_000);
        let runs = [2, 3].map(|number| HeldRun { job: job(number), run: 1 }).to_vec();
        bench.handle(Command::Renew { session: SessionId(2), runs }).unwrap();
    }
    let fits = bench.core.explain(job(1), bench.now).workers;
    let fit = |id: &str| fits.iter().find(|worker| worker.id.as_str() == id).map(|worker| worker.fit);
    assert_eq!((fit("z"), fit("a")), (Some(Fit::Now), Some(Fit::Held)));
}
