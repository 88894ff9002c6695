//! What the worker hears and the server is sent, sentence by sentence.

mod bench;

use protocol::definition::Definition;
use protocol::event::RunOutcome;
use protocol::id::{JobId, UnixMillis};
use protocol::native::{
    Capacity, FinishedRun, FromBroker, HeldRun, LogLine, LogStep, RequestId, StopReason, ToBroker, WorkerHello,
};
use protocol::raw::RawJson;
use serde_json::{Value, json};

use self::bench::Bench;
use super::FIRST_RUN;
use super::hearing::UNANSWERED_FRAMES;
use super::mine::GRACE_MS;

const ME: &str = "m";
/// Goes before.
const EARLIER: &str = "a";
/// Goes after.
const LATER: &str = "z";

pub(super) fn hello(id: &str, cpus: u32) -> WorkerHello {
    WorkerHello {
        id: id.parse().unwrap(),
        version: "1".to_owned(),
        total: cpus_free(cpus),
        tags: Vec::new(),
        max_duration_ms: Some(300_000),
        holds: Vec::new(),
    }
}

pub(super) fn cpus_free(cpus: u32) -> Capacity {
    Capacity { cpus_milli: cpus * 1000, memory_bytes: None, gpus: 0 }
}

pub(super) fn job(number: usize) -> (JobId, String) {
    let text = format!(r#"{{"image":"i","command":"echo {number}"}}"#);
    (Definition::parse(text.as_bytes()).unwrap().job_id(), text)
}

fn queued(at: u64) -> Value {
    json!({"state": "Queued", "queuedTime": at, "time": at, "worker": "", "namespaces": ["_"]})
}

fn running(worker: &str) -> Value {
    json!({"state": "Running", "queuedTime": 1, "time": 77, "worker": worker, "namespaces": ["_"]})
}

fn over() -> Value {
    json!({"state": "Finished", "finishedReason": "Success", "queuedTime": 1, "time": 99, "worker": ME, "namespaces": ["_"]})
}

fn finish(run: HeldRun, req: RequestId) -> ToBroker {
    let finished = RawJson::new(r#"{"type":"Finished","reason":"Success","worker":"m","time":9,"result":{}}"#);
    let HeldRun { job, run } = run;
    let outcome = RunOutcome::Success;
    ToBroker::Finish {
        req,
        run: FinishedRun { job, run, outcome, exit_code: None, image: None, duration_ms: None, finished },
    }
}

fn lines(run: HeldRun) -> ToBroker {
    let lines = vec![LogLine { text: "a\n".to_owned(), at_ms: UnixMillis(1), stderr: false }];
    ToBroker::RunLogs { run, step: LogStep::Run, first: 0, lines }
}

#[test]
fn a_job_is_claimed_when_its_definition_is_known_and_starts_when_the_server_shows_it_as_ours() {
    let mut bench = Bench::new(1);
    assert_eq!(bench.sent("WorkerRegistration").len(), 1);
    let (id, text) = job(1);
    bench.show(json!({id.to_string(): queued(1)}));
    assert!(matches!(bench.words[..], [FromBroker::Welcome { .. }]));
    assert_eq!(bench.sent("RequestJobDefinitions"), [&json!({"jobIds": [id.to_string()]})]);
    // Not the one that the id stands for.
    bench.define((id, job(2).1));
    assert!(bench.sent("Running").is_empty());
    bench.pass(31_000, &[]);
    bench.define((id, text.clone()));
    let claims = bench.sent("Running");
    assert_eq!((claims.len(), &claims[0]["value"]["worker"]), (1, &json!(ME)));
    assert!(bench.granted().is_empty());
    bench.update(json!({id.to_string(): running(ME)}));
    let Some(FromBroker::Granted { run, definition, .. }) = bench.words.last() else { panic!() };
    assert_eq!((run.job, definition.as_str()), (id, text.as_str()));
    assert!(run.run >= FIRST_RUN);
    // Once.
    bench.show(json!({id.to_string(): running(ME)}));
    assert_eq!(bench.granted(), [id]);
}

#[test]
fn the_oldest_goes_first_and_namespaces_take_turns() {
    let mut bench = Bench::new(3);
    let mut jobs = serde_json::Map::new();
    let in_namespace = |at: u64, name: &str| {
        let mut entry = queued(at);
        entry["namespaces"] = json!([name]);
        entry
    };
    for number in 0..6 {
        jobs.insert(job(number).0.to_string(), in_namespace(number as u64, "greedy"));
    }
    jobs.insert(job(6).0.to_string(), in_namespace(100, "modest"));
    bench.show(Value::Object(jobs));
    let asked: Vec<_> = bench.sent("RequestJobDefinitions").iter().map(|asked| asked["jobIds"][0].clone()).collect();
    let wanted = [job(0).0, job(6).0, job(1).0].map(|id| json!(id.to_string()));
    assert_eq!(asked, wanted);
    [0, 1, 6].into_iter().for_each(|number| bench.define(job(number)));
    let claimed: Vec<_> = bench.sent("Running").iter().map(|claim| claim["job"].clone()).collect();
    assert_eq!(claimed.len(), 3);
    assert!(wanted.iter().all(|id| claimed.contains(id)), "{claimed:?}");
}

#[test]
fn a_claim_that_another_worker_won_is_let_go_and_the_next_job_is_taken() {
    let mut bench = Bench::new(1);
    let (first, second) = (job(1), job(2));
    bench.show(json!({first.0.to_string(): queued(1), second.0.to_string(): queued(2)}));
    bench.define(first.clone());
    bench.update(json!({first.0.to_string(): running(EARLIER)}));
    bench.define(second.clone());
    bench.update(json!({second.0.to_string(): running(ME)}));
    assert_eq!(bench.granted(), [second.0]);
    assert!(bench.stops().is_empty());
}

#[test]
fn a_claim_is_repeated_while_the_server_shows_the_job_waiting_and_given_up_at_last() {
    let mut bench = Bench::new(1);
    let first = job(1);
    bench.show(json!({first.0.to_string(): queued(1)}));
    bench.define(first.clone());
    bench.pass(2_000, &[]);
    let claims = bench.sent("Running");
    assert_eq!(claims.len(), 2);
    assert_eq!(claims[0]["value"], claims[1]["value"], "the same attempt");
    // A worker that goes after us has it: the server will see that we go before.
    bench.update(json!({first.0.to_string(): running(LATER)}));
    bench.pass(2_000, &[]);
    assert_eq!(bench.sent("Running").len(), 3);
    bench.update(json!({first.0.to_string(): queued(1)}));
    bench.pass(20_000, &[]);
    let count = bench.sent("Running").len();
    bench.pass(5_000, &[]);
    assert_eq!(bench.sent("Running").len(), count);
    assert!(bench.granted().is_empty());
}

#[test]
fn a_run_that_a_preferred_worker_has_too_is_stopped_after_the_grace() {
    let mut bench = Bench::new(1);
    let run = bench.started(job(1));
    bench.update(json!({run.job.to_string(): running(LATER)}));
    bench.pass(2 * GRACE_MS, &[run]);
    assert!(bench.stops().is_empty(), "we go before that one");
    bench.update(json!({run.job.to_string(): running(EARLIER)}));
    bench.pass(GRACE_MS - 1, &[run]);
    assert!(bench.stops().is_empty());
    bench.update(json!({run.job.to_string(): running(ME)}));
    bench.update(json!({run.job.to_string(): running(EARLIER)}));
    bench.pass(GRACE_MS - 1, &[run]);
    assert!(bench.stops().is_empty(), "it was ours in between");
    bench.pass(1, &[run]);
    assert_eq!(bench.stops(), [(run, StopReason::Superseded)]);
    bench.pass(GRACE_MS, &[run]);
    assert_eq!(bench.stops().len(), 1, "it is told once");
}

#[test]
fn a_run_whose_job_is_gone_is_stopped_at_once_but_after_a_break_only_after_the_grace() {
    let mut bench = Bench::new(1);
    let run = bench.started(job(1));
    bench.show(json!({}));
    assert_eq!(bench.stops(), [(run, StopReason::Cancelled)]);
    bench.free(cpus_free(1));
    let run = bench.started(job(2));
    bench.reconnect(&[run]);
    assert_eq!(bench.sent("Running").len(), 1, "it is said again, as it was claimed");
    bench.show(json!({}));
    bench.pass(GRACE_MS - 1, &[run]);
    assert!(bench.stops().is_empty());
    bench.pass(1, &[run]);
    assert_eq!(bench.stops(), [(run, StopReason::Cancelled)]);
}

#[test]
fn an_end_is_sent_until_the_server_shows_it_and_the_job_is_not_run_again() {
    let mut bench = Bench::new(1);
    let run = bench.started(job(1));
    bench.order(finish(run, 7));
    assert_eq!(bench.sent("Finished").len(), 1);
    bench.free(cpus_free(1));
    // It was lost.
    bench.show(json!({run.job.to_string(): running(ME)}));
    bench.pass(9_000, &[run]);
    assert_eq!(bench.sent("Finished").len(), 1);
    bench.pass(1_000, &[run]);
    assert_eq!(bench.sent("Finished").len(), 2);
    assert!(bench.settled().is_empty() && bench.granted().is_empty());
    bench.update(json!({run.job.to_string(): over()}));
    assert_eq!(bench.settled(), [7]);
    bench.pass(20_000, &[]);
    assert_eq!(bench.sent("Finished").len(), 2);
}

#[test]
fn an_end_of_a_run_that_the_server_queued_again_is_claimed_and_sent() {
    let mut bench = Bench::new(1);
    let run = bench.started(job(1));
    bench.reconnect(&[run]);
    bench.order(finish(run, 7));
    bench.frames.clear();
    bench.show(json!({run.job.to_string(): queued(1)}));
    let kinds: Vec<_> = bench.frames.iter().map(|frame| frame["payload"]["state"].clone()).collect();
    assert_eq!(kinds, ["Running", "Finished"]);
}

#[test]
fn an_end_is_dropped_when_another_worker_has_the_job_or_it_is_gone() {
    for shown in [json!({}), json!({job(1).0.to_string(): running(EARLIER)})] {
        let mut bench = Bench::new(1);
        let run = bench.started(job(1));
        bench.show(shown.clone());
        bench.order(finish(run, 7));
        bench.pass(GRACE_MS, &[run]);
        assert_eq!((bench.sent("Finished").len(), bench.settled().len()), (0, 1), "{shown}");
    }
}

#[test]
fn the_end_of_an_earlier_process_is_sent_on_the_first_connection() {
    let run = HeldRun { job: job(1).0, run: FIRST_RUN + 5 };
    let mut bench = Bench::of(hello(ME, 1), &[run]);
    assert_eq!(bench.frames.len(), 1, "since when it runs is not known");
    bench.show(json!({run.job.to_string(): running(ME)}));
    bench.order(finish(run, 3));
    assert_eq!(bench.sent("Finished").len(), 1);
    assert!(bench.stops().is_empty() && bench.granted().is_empty());
}

#[test]
fn lines_wait_until_the_server_shows_the_run_as_ours() {
    let mut bench = Bench::new(1);
    let run = bench.started(job(1));
    bench.order(lines(run));
    assert_eq!(bench.sent("JobStatusLogs").len(), 1);
    bench.reconnect(&[run]);
    bench.show(json!({run.job.to_string(): queued(1)}));
    bench.order(lines(run));
    bench.order(finish(run, 1));
    assert!(bench.sent("JobStatusLogs").is_empty() && bench.sent("Finished").is_empty() && bench.desk.holds_logs());
    bench.update(json!({run.job.to_string(): running(ME)}));
    let kinds: Vec<_> = bench.frames.iter().rev().take(2).map(|frame| frame["type"].clone()).collect();
    assert_eq!(kinds, ["StateChange", "JobStatusLogs"], "the end comes after its lines");
    assert!(!bench.desk.holds_logs());
}

#[test]
fn what_cannot_be_started_is_given_back() {
    let mut bench = Bench::new(1);
    let run = bench.started(job(1));
    bench.order(ToBroker::HandBack { req: 4, run, why: "test".to_owned(), busy: false });
    assert_eq!(bench.settled(), [4]);
    assert_eq!(bench.sent("Finished")[0]["value"]["reason"], "WorkerLost");
    bench.free(cpus_free(1));
    bench.update(json!({run.job.to_string(): queued(1)}));
    assert!(bench.sent("Running").is_empty(), "not by us, for a while");
    bench.pass(30_000, &[]);
    assert_eq!(bench.sent("Running").len(), 1);
}

#[test]
fn what_the_server_leaves_to_us_though_it_was_given_back_is_run_when_there_is_room() {
    let mut bench = Bench::new(1);
    let run = bench.started(job(1));
    bench.free(cpus_free(0));
    bench.order(ToBroker::HandBack { req: 4, run, why: "test".to_owned(), busy: true });
    bench.pass(10_000, &[]);
    assert!(bench.granted().is_empty());
    bench.free(cpus_free(1));
    let Some(FromBroker::Granted { run: again, .. }) = bench.words.last() else { panic!("{:?}", bench.words) };
    assert!(again.job == run.job && again.run > run.run);
}

#[test]
fn a_job_that_runs_here_by_the_servers_word_alone_is_run() {
    let mut bench = Bench::new(1);
    let (id, text) = job(1);
    bench.show(json!({id.to_string(): running(ME)}));
    bench.define((id, text));
    assert_eq!(bench.granted(), [id]);
    assert!(bench.sent("Running").is_empty());
}

#[test]
fn a_deleted_job_is_stopped_at_once_and_not_started_again() {
    let mut bench = Bench::new(1);
    let run = bench.started(job(1));
    bench.hear(&protocol::original::to_peer::clear_job_cache(run.job, "_"));
    assert_eq!(bench.stops(), [(run, StopReason::Deleted)]);
    bench.free(cpus_free(1));
    bench.pass(1_000, &[]);
    bench.pass(1_000, &[]);
    bench.define(job(1));
    assert!(bench.granted().is_empty());
}

#[test]
fn a_server_that_only_asks_and_takes_nothing_is_not_answered_without_end() {
    let mut bench = Bench::new(1);
    for _ in 0..10 * UNANSWERED_FRAMES {
        bench.desk.on_frame(bench.now, protocol::original::to_peer::STATUS_REQUEST).unwrap();
    }
    assert_eq!(bench.desk.waiting_frames(), UNANSWERED_FRAMES);
    bench.look();
    bench.frames.clear();
    bench.hear(protocol::original::to_peer::STATUS_REQUEST);
    assert_eq!(bench.frames.len(), 1, "it takes what is sent again");
}

#[test]
fn the_worker_registers_again_and_again_and_when_the_server_does_not_know_it() {
    let mut bench = Bench::new(1);
    let run = bench.started(job(1));
    bench.pass(10_000, &[run]);
    assert_eq!((bench.sent("WorkerRegistration").len(), bench.sent("Running").len()), (1, 1));
    bench.pass(1_000, &[run]);
    bench.hear("PONG m");
    assert_eq!(bench.sent("WorkerRegistration").len(), 1);
    bench.hear("PONG unknown");
    bench.hear("PONG unknown");
    assert_eq!(bench.sent("WorkerRegistration").len(), 2);
}

#[test]
fn an_ask_is_answered_when_all_that_it_led_to_is_decided() {
    let mut bench = Bench::new(1);
    bench.free(cpus_free(0));
    let (id, text) = job(1);
    bench.show(json!({id.to_string(): queued(1)}));
    bench.order(ToBroker::Claim { free: cpus_free(1), grants_seen: 0, req: Some(9) });
    let answers = |bench: &Bench| {
        let answer = |word: &FromBroker| {
            if let FromBroker::Claimed { req, granted } = word { Some((*req, *granted)) } else { None }
        };
        bench.words.iter().filter_map(answer).collect::<Vec<_>>()
    };
    bench.define((id, text));
    assert_eq!(answers(&bench), []);
    bench.update(json!({id.to_string(): running(ME)}));
    assert_eq!(answers(&bench), [(9, 1)]);
    bench.order(ToBroker::Claim { free: cpus_free(1), grants_seen: 1, req: Some(10) });
    assert_eq!(answers(&bench), [(9, 1), (10, 1)]);
}

#[test]
fn no_more_is_claimed_than_there_is_room_for() {
    let mut bench = Bench::new(2);
    let jobs: serde_json::Map<_, _> = (0..5).map(|number| (job(number).0.to_string(), queued(1))).collect();
    bench.show(Value::Object(jobs));
    (0..5).for_each(|number| bench.define(job(number)));
    assert_eq!(bench.sent("Running").len(), 2);
    let claimed: Vec<String> =
        bench.sent("Running").iter().map(|claim| claim["job"].as_str().unwrap().to_owned()).collect();
    for id in &claimed {
        bench.update(json!({id.as_str(): running(ME)}));
    }
    // The claim that the worker sent before it saw the grants.
    bench.order(ToBroker::Claim { free: cpus_free(2), grants_seen: 0, req: None });
    assert_eq!(bench.sent("Running").len(), 2);
    bench.order(ToBroker::Claim { free: cpus_free(1), grants_seen: 2, req: None });
    (0..5).for_each(|number| bench.define(job(number)));
    assert_eq!(bench.sent("Running").len(), 3);
}

#[test]
fn a_worker_with_tags_takes_only_jobs_that_have_one() {
    let mut bench = Bench::of(WorkerHello { tags: vec!["x".to_owned()], ..hello(ME, 1) }, &[]);
    let text = r#"{"image":"i","tags":["x","y"]}"#.to_owned();
    let tagged = (Definition::parse(text.as_bytes()).unwrap().job_id(), text);
    bench.show(json!({job(1).0.to_string(): queued(1), tagged.0.to_string(): queued(2)}));
    bench.define(job(1));
    bench.define(tagged.clone());
    let claims = bench.sent("Running");
    assert_eq!((claims.len(), &claims[0]["job"]), (1, &json!(tagged.0.to_string())));
}

#[test]
fn jobs_that_are_too_big_hold_up_nobody_and_are_asked_about_once() {
    const BIG: usize = 300;
    let big = |number: usize| {
        let text = format!(r#"{{"image":"i","command":"echo {number}","requirements":{{"cpus":{}}}}}"#, 2 + number % 2);
        (Definition::parse(text.as_bytes()).unwrap().job_id(), text)
    };
    // Two CPUs there are, but one is taken.
    let mut bench = Bench::new(2);
    bench.free(cpus_free(1));
    let mut jobs: serde_json::Map<_, _> = (0..BIG).map(|at| (big(at).0.to_string(), queued(at as u64))).collect();
    jobs.insert(job(1).0.to_string(), queued(BIG as u64));
    bench.show(jobs.clone().into());
    for _ in 0..=BIG {
        (0..BIG).for_each(|number| bench.define(big(number)));
        bench.define(job(1));
        if !bench.sent("Running").is_empty() {
            break;
        }
    }
    assert_eq!(bench.sent("Running")[0]["job"], json!(job(1).0.to_string()));
    let asked = bench.sent("RequestJobDefinitions").len();
    assert!(asked <= BIG + 1, "{asked}");
    bench.show(jobs.into());
    assert_eq!(bench.sent("RequestJobDefinitions").len(), asked);
}

#[test]
fn a_server_that_asks_is_told_what_the_worker_does() {
    let mut bench = Bench::new(2);
    let run = bench.started(job(1));
    bench.hear(protocol::original::to_peer::STATUS_REQUEST);
    let told = bench.sent("WorkerStatusResponse");
    assert_eq!((&told[0]["id"], &told[0]["cpus"]), (&json!(ME), &json!(2)));
    let id = run.job.to_string();
    assert_eq!(told[0]["queue"], json!({id.clone(): {"jobId": id, "finished": true}}));
}

#[test]
fn lines_are_not_held_back_for_ever() {
    let mut bench = Bench::new(1);
    let run = bench.started(job(1));
    bench.update(json!({run.job.to_string(): running(LATER)}));
    bench.order(lines(run));
    bench.pass(14_000, &[run]);
    assert!(bench.sent("JobStatusLogs").is_empty());
    bench.pass(1_000, &[run]);
    assert_eq!(bench.sent("JobStatusLogs").len(), 1);
}

#[test]
fn rubbish_changes_nothing() {
    let mut bench = Bench::new(1);
    let run = bench.started(job(1));
    for frame in ["", "hello", "{", r#"{"type":"JobStates","payload":{"state":{}}}"#, r#"{"type":"JobStates"}"#] {
        assert!(bench.desk.on_frame(bench.now, frame).is_err(), "{frame}");
    }
    bench.look();
    assert!(bench.stops().is_empty() && bench.frames.is_empty());
    // One entry that cannot be read does not take the others with it.
    bench.show(json!({run.job.to_string(): running(ME), "../../x": queued(1), job(2).0.to_string(): 5}));
    assert!(bench.stops().is_empty());
}
