//! The original's dialect, frozen: the frames that its peers send are read, and those that they are sent stay as they are.

use protocol::definition::Needs;
use protocol::event::{Event, RunOutcome, Via};
use protocol::id::{Digest, JobId, Namespace, QueueKey, UnixMillis};
use protocol::native::{Capacity, LogLine, LogStep, WorkerView};
use protocol::original::from_peer::{Ended, FromPeer};
use protocol::original::to_peer::{self, WorkerEntry};
use protocol::original::{JobEntry, preferred};
use protocol::queue::QueueState;
use protocol::record::Record;
use serde_json::value::RawValue;

const JOB: JobId = JobId::from_bytes([0xa1; 32]);
const ID: &str = "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1";

fn read(frame: &str) -> FromPeer<'_> {
    FromPeer::read(frame).unwrap_or_else(|error| panic!("{frame}: {error}"))
}

fn with_id(frame: &str) -> String {
    frame.replace("<id>", ID)
}

#[test]
fn a_page_puts_a_job_into_the_queue() {
    let frame = with_id(
        r#"{"type":"StateChange","payload":{"job":"<id>","tag":"","state":"Queued","value":{"type":"Queued","time":1,"enqueued":{"id":"<id>","definition":{"image":"alpine:3.20", "v":1.0},"control":{"namespace":"n"},"debug":true}}}}"#,
    );
    let FromPeer::Queued(queued) = read(&frame) else { panic!() };
    assert_eq!(queued.id.as_deref(), Some(ID));
    assert_eq!(queued.definition.unwrap().get(), r#"{"image":"alpine:3.20", "v":1.0}"#, "verbatim");
    assert_eq!((queued.namespace.as_deref(), queued.debug), (Some("n"), true));
    // Without type, control and debug, and with nulls in their place.
    for value in
        [r#"{"enqueued":{"definition":{}}}"#, r#"{"enqueued":{"id":"","definition":{},"control":null,"debug":null}}"#]
    {
        let frame = format!(r#"{{"payload":{{"value":{value},"state":"Queued"}},"type":"StateChange"}}"#);
        let FromPeer::Queued(queued) = read(&frame) else { panic!() };
        assert!(queued.id.is_none() && queued.namespace.is_none() && !queued.debug && !queued.retry);
    }
    for (said, retry) in [("true", true), ("1", true), ("\"yes\"", true), ("{}", true)]
        .into_iter()
        .chain(["false", "0", "-0.0", "\"\"", "null"].map(|said| (said, false)))
    {
        let frame = format!(
            r#"{{"payload":{{"value":{{"enqueued":{{"definition":{{}},"control":{{"retry":{said}}}}}}},"state":"Queued"}},"type":"StateChange"}}"#
        );
        let FromPeer::Queued(queued) = read(&frame) else { panic!() };
        assert_eq!(queued.retry, retry, "{said}");
    }
}

#[test]
fn a_page_withdraws_a_job_and_asks_for_jobs() {
    let cancel = with_id(
        r#"{"type":"StateChange","payload":{"job":"<id>","tag":"","state":"Finished","value":{"type":"Finished","reason":"Cancelled","time":1,"message":"by user","namespace":"n"}}}"#,
    );
    let FromPeer::Withdrawn { job, namespace, is_delete, message } = read(&cancel) else { panic!() };
    assert_eq!((job, namespace.as_deref(), is_delete, message.as_deref()), (JOB, Some("n"), false, Some("by user")));
    let delete = with_id(
        r#"{"type":"StateChange","payload":{"job":"<id>","tag":"","state":"Finished","value":{"type":"Finished","reason":"Deleted","time":1}}}"#,
    );
    assert!(matches!(read(&delete), FromPeer::Withdrawn { is_delete: true, namespace: None, .. }));
    assert!(matches!(
        read(&with_id(r#"{"type":"QueryJob","payload":{"jobId":"<id>"}}"#)),
        FromPeer::QueryJob { job: JOB }
    ));
    assert!(matches!(read(r#"{"type":"QueryJobStates"}"#), FromPeer::QueryJobStates));
    assert!(matches!(read("PING"), FromPeer::Ping));
}

#[test]
fn a_worker_registers_and_claims() {
    let registration = r#"{"type":"WorkerRegistration","payload":{"time":1,"version":"0.54.0","id":"w1","cpus":2,"gpus":0,"maxJobDuration":"5m"}}"#;
    let FromPeer::Registration(worker) = read(registration) else { panic!() };
    assert_eq!((worker.id.as_str(), worker.version.as_str(), worker.cpus, worker.gpus), ("w1", "0.54.0", 2, 0));
    assert_eq!(worker.max_job_duration.as_deref(), Some("5m"));
    assert!(registration.contains(worker.registration.get()));
    // A reminder has no type.
    for value in [r#"{"type":"Running","worker":"w1","time":1765432101000}"#, r#"{"worker":"w1","time":1765432101000}"#]
    {
        let frame = format!(
            r#"{{"type":"StateChange","payload":{{"job":"{ID}","tag":"w1","state":"Running","value":{value}}}}}"#
        );
        let FromPeer::Running { job, worker, at } = read(&frame) else { panic!() };
        assert_eq!((job, worker.as_deref(), at), (JOB, Some("w1"), UnixMillis(1_765_432_101_000)));
    }
}

#[test]
fn a_worker_reports_a_run() {
    let value = r#"{"type":"Finished","reason":"Success","worker":"w1","time":9,"result":{"StatusCode":3,"logs":[],"duration":3,"isTimedOut":false,"outputs":{}}}"#;
    let frame =
        format!(r#"{{"type":"StateChange","payload":{{"job":"{ID}","tag":"w1","state":"Finished","value":{value}}}}}"#);
    let FromPeer::Ended(Ended { job, worker, outcome, exit_code, duration_ms, finished }) = read(&frame) else {
        panic!()
    };
    assert_eq!((job, worker.as_deref(), outcome), (JOB, Some("w1"), RunOutcome::Success));
    assert_eq!((exit_code, duration_ms, finished.get()), (Some(3), Some(3), value));
    // Of an unreadable result only the text is kept.
    let frame = frame.replace(r#""StatusCode":3"#, r#""StatusCode":"x""#).replace("Success", "TimedOut");
    assert!(matches!(read(&frame), FromPeer::Ended(Ended { outcome: RunOutcome::TimedOut, exit_code: None, .. })));
    let logs = with_id(
        r##"{"type":"JobStatusLogs","payload":{"jobId":"<id>","step":"docker build","logs":[["#1 ...",1,true],["x",2]]}}"##,
    );
    let FromPeer::Logs { job: JOB, step: LogStep::Build, lines } = read(&logs) else { panic!() };
    assert_eq!(lines[0], LogLine { text: "#1 ...".to_owned(), at_ms: UnixMillis(1), stderr: true });
    assert_eq!(lines.len(), 2);
    let asked = with_id(r#"{"type":"RequestJobDefinitions","payload":{"jobIds":["<id>","../../etc"]}}"#);
    assert!(matches!(read(&asked), FromPeer::RequestDefinitions { jobs } if jobs == [JOB]));
    let status = r#"{"type":"WorkerStatusResponse","payload":{"time":1,"id":"w1","cpus":2,"gpus":0,"queue":{}}}"#;
    assert!(matches!(read(status), FromPeer::Status { status } if status.get().contains("\"w1\"")));
}

#[test]
fn what_says_nothing_is_no_message() {
    let frames = [
        "",
        "ping",
        "undefined",
        "[]",
        "{",
        "{}",
        r#"{"type":"Other","payload":{}}"#,
        r#"{"type":"StateChange"}"#,
        r#"{"type":"QueryJob","payload":{"jobId":"../../etc/passwd"}}"#,
        r#"{"type":"StateChange","payload":{"job":"../..","state":"Finished","value":{"reason":"Deleted"}}}"#,
        &with_id(
            r#"{"type":"StateChange","payload":{"job":"<id>","state":"Finished","value":{"reason":"WorkerLost"}}}"#,
        ),
        &with_id(r#"{"type":"StateChange","payload":{"job":"<id>","state":"Removed","value":{}}}"#),
        r#"{"type":"WorkerRegistration","payload":{"id":""}}"#,
    ];
    for frame in frames {
        assert!(FromPeer::read(frame).is_err(), "{frame}");
    }
}

#[test]
fn any_text_is_read_without_a_panic() {
    use proptest::prelude::*;
    proptest!(|(text in ".{0,80}", cut in 0usize..400)| {
        let _ = FromPeer::read(&text);
        let whole = with_id(r#"{"type":"StateChange","payload":{"job":"<id>","tag":"","state":"Finished","value":{"type":"Finished","reason":"Cancelled","time":1,"message":"by user","namespace":"n"}}}"#);
        let _ = FromPeer::read(whole.get(..cut).unwrap_or(&whole));
    });
}

/// A queue with one job in it, queued at 1 and claimed by `w1` at 5.
fn state(is_running: bool) -> QueueState {
    let mut state = QueueState::new(QueueKey::from_bytes([1; 16]));
    let needs = Needs { cpus_milli: Some(1000), tags: vec!["x".to_owned()], ..Needs::default() };
    let queued = Event::JobQueued {
        job: JOB,
        body: Digest::of(b"{}"),
        namespace: Namespace::default(),
        via: Via::Socket,
        needs: if is_running { Needs::default() } else { needs },
        priority: 0,
        debug: !is_running,
        runs_before: 0,
    };
    let claimed = Event::RunClaimed { job: JOB, run: 1, worker: "w1".parse().unwrap() };
    let facts = if is_running { vec![(1, queued), (5, claimed)] } else { vec![(1, queued)] };
    for (seq, (at, event)) in (1..).zip(facts) {
        let record = Record { v: protocol::record::RECORD_VERSION, seq, at_ms: UnixMillis(at), event };
        state.apply(&record, Digest::of(b""));
    }
    state
}

fn entries(state: &QueueState) -> impl Iterator<Item = (JobId, JobEntry<'_>)> {
    state.jobs().iter().map(|(id, job)| (*id, JobEntry::new(job)))
}

#[test]
fn job_states_are_frozen() {
    let (queued, running) = (state(false), state(true));
    let expected = r#"{"type":"JobStates","payload":{"state":{"jobs":{"<id>":{"queuedTime":1,"state":"Queued","time":1,"worker":"","namespaces":["_"],"debug":true,"tags":["x"],"requirements":{"cpus":1}}}},"isSubset":false}}"#;
    assert_eq!(to_peer::job_states(entries(&queued)), with_id(expected));
    let expected = r#"{"type":"JobStateUpdates","payload":{"state":{"jobs":{"<id>":{"queuedTime":1,"state":"Running","time":5,"worker":"w1","namespaces":["_"]}}},"isSubset":true}}"#;
    assert_eq!(to_peer::job_state_updates(entries(&running)), with_id(expected));
    let shown = running
        .jobs()
        .iter()
        .map(|(id, job)| (*id, JobEntry::new(job).shown_as(preferred::shown_first(job.worker.as_ref().unwrap()))));
    assert_eq!(to_peer::job_state_updates(shown), with_id(expected).replace("\"w1\"", "\" w1\""));
    let finished: &RawValue = serde_json::from_str(r#"{"reason": "Success"}"#).unwrap();
    let with = running.jobs().iter().map(|(id, job)| (*id, JobEntry::new(job).with_finished(finished)));
    assert!(to_peer::job_states(with).contains(r#""namespaces":["_"],"finished":{"reason": "Success"}}"#));
    assert_eq!(
        to_peer::job_states(std::iter::empty()),
        r#"{"type":"JobStates","payload":{"state":{"jobs":{}},"isSubset":false}}"#
    );
    assert_eq!(to_peer::job_state_updates(std::iter::empty()), to_peer::HEARTBEAT);
}

#[test]
fn other_messages_are_frozen() {
    let w1: &RawValue =
        serde_json::from_str(r#"{"time":7,"version":"0.54.0","id":"w1","cpus":2,"gpus":0,"maxJobDuration":"5m"}"#)
            .unwrap();
    let native = WorkerView {
        id: "n1".parse().unwrap(),
        version: "0.1.0".to_owned(),
        total: Capacity { cpus_milli: 4500, memory_bytes: None, gpus: 1 },
        running: 0,
        silent_since_ms: None,
    };
    assert_eq!(
        to_peer::workers(&[WorkerEntry::Registered(w1), WorkerEntry::native(&native, UnixMillis(8))]),
        r#"{"type":"Workers","payload":{"workers":[{"time":7,"version":"0.54.0","id":"w1","cpus":2,"gpus":0,"maxJobDuration":"5m"},{"time":8,"version":"0.1.0","id":"n1","cpus":4.5,"gpus":1}]}}"#
    );
    let line = |text: &str, at, stderr| LogLine { text: text.to_owned(), at_ms: UnixMillis(at), stderr };
    assert_eq!(
        to_peer::job_logs(JOB, LogStep::Run, &[line("hi\n", 8, false), line("oops\n", 9, true)]),
        with_id(
            r#"{"type":"JobStatusPayload","payload":{"jobId":"<id>","step":"Running","logs":[["hi\n",8],["oops\n",9,true]]}}"#
        )
    );
    assert_eq!(
        to_peer::clear_job_cache(JOB, "_"),
        with_id(r#"{"type":"ClearJobCache","payload":{"jobId":"<id>","namespace":"_"}}"#)
    );
    let definition: &RawValue = serde_json::from_str(r#"{"image":"alpine:3.20", "command":"echo hello"}"#).unwrap();
    assert_eq!(
        to_peer::definitions(std::iter::once((JOB, definition))),
        with_id(
            r#"{"type":"BroadcastJobDefinitions","payload":{"definitions":{"<id>":{"image":"alpine:3.20", "command":"echo hello"}}}}"#
        )
    );
    assert_eq!(to_peer::worker_pong(None), "PONG unknown");
    assert_eq!(to_peer::worker_pong(Some(&"w1".parse().unwrap())), "PONG w1");
    assert_eq!(
        to_peer::refused("my id", "no", UnixMillis(3)),
        r#"{"type":"JobStateUpdates","payload":{"state":{"jobs":{"my id":{"queuedTime":3,"state":"Finished","time":3,"worker":"","namespaces":["_"],"finishedReason":"Error","finished":{"type":"Finished","reason":"Error","worker":"","time":3,"message":"no","result":{"error":"no","isTimedOut":false,"duration":0,"logs":[["no\n",3,true]],"outputs":{}}}}}},"isSubset":true}}"#
    );
}
