//! Frozen bytes: what is stored and what crosses a socket stays readable for ever.
//!
//! `fixtures/wire.txt` has a line `name hex` for each sample in MessagePack and `name json` in JSON. A line is never edited,
//! only added to: a sample that changed its bytes is a broken peer or an unreadable journal. A missing line fails with the
//! line to add.

use protocol::codec::{CodecError, Encoding, MESSAGE_BYTES_MAX};
use protocol::definition::Needs;
use protocol::event::{Event, LostReason, RunOutcome, Via};
use protocol::explain::{Estimate, Explanation, Fit, Lack, Line, Resource, Standing, WorkerFit};
use protocol::id::{Digest, Head, ImageId, JobId, QueueKey, UnixMillis};
use protocol::native::{
    Callback, Callbacks, Capacity, FinishedRun, FromBroker, HeldRun, Hello, JobDefinition, LogKind, LogLine, LogStep,
    StopReason, Submission, ToBroker, WorkerHello, WorkerView,
};
use protocol::queue::QueueState;
use protocol::raw::{RawJson, RecordBytes, StateBytes};
use protocol::record::{RECORD_BYTES_MAX, RECORD_VERSION, Record, RecordError, chain};

const FROZEN: &str = include_str!("../fixtures/wire.txt");

const JOB: JobId = JobId::from_bytes([0xa1; 32]);
const OTHER: JobId = JobId::from_bytes([0xb2; 32]);
const BODY: Digest = Digest::from_bytes([0xc3; 32]);
const RESULT: Digest = Digest::from_bytes([0xd4; 32]);
const QUEUE: QueueKey = QueueKey::from_bytes([0xe5; 16]);
const RUN: HeldRun = HeldRun { job: JOB, run: 2 };
const HEAD: Head = Head { seq: 7, hash: RESULT };
const AT: UnixMillis = UnixMillis(1_765_432_100_000);

fn frozen(name: &str) -> Option<&'static str> {
    FROZEN.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares with the fixture; collects the lines that are missing or differ.
fn compare(wrong: &mut Vec<String>, name: &str, found: &str) {
    if frozen(name) != Some(found) {
        wrong.push(format!("{name} {found}"));
    }
}

fn worker() -> protocol::id::WorkerId {
    "7d0c1f58-2b7a-4c55-9d6e-0a4e5f6b7c8d".parse().unwrap()
}

fn namespace() -> protocol::id::Namespace {
    "alice/doc1".parse().unwrap()
}

fn needs() -> Needs {
    Needs {
        cpus_milli: Some(2500),
        memory_bytes: Some(4 << 30),
        gpus: 1,
        tags: vec!["lab".to_owned()],
        max_duration_ms: Some(600_000),
    }
}

fn events() -> Vec<Event> {
    vec![
        Event::JobQueued {
            job: JOB,
            body: BODY,
            namespace: protocol::id::Namespace::default(),
            via: Via::Http,
            needs: Needs::default(),
            priority: 0,
            debug: false,
            runs_before: 0,
        },
        Event::JobRecalled {
            job: JOB,
            body: BODY,
            namespace: namespace(),
            queued_at_ms: AT,
            finished_at_ms: AT,
            run: 2,
            worker: Some(worker()),
            outcome: RunOutcome::TimedOut,
            result: RESULT,
            exit_code: None,
        },
        Event::NamespaceJoined { job: JOB, namespace: namespace() },
        Event::NamespaceLeft { job: JOB, namespace: namespace() },
        Event::RunClaimed { job: JOB, run: 2, worker: worker() },
        Event::RunFinished {
            job: JOB,
            run: 2,
            outcome: RunOutcome::Success,
            result: RESULT,
            exit_code: Some(0),
            image: Some(ImageId::from_bytes([0x0f; 32])),
            duration_ms: Some(184),
        },
        Event::RunLost { job: JOB, run: 2, why: LostReason::LeaseExpired },
        Event::RunResumed { job: JOB, run: 2 },
        Event::JobRequeued { job: JOB },
        Event::JobAbandoned { job: JOB, result: RESULT },
        Event::JobCancelled { job: JOB, message: Some("enough".to_owned()) },
        Event::JobReplaced { job: JOB, by: OTHER },
        Event::JobDeleted { job: JOB },
        Event::JobRemoved { job: JOB },
        Event::WorkerJoined { worker: worker(), version: "0.1.0".to_owned() },
        Event::WorkerLeft { worker: worker() },
        Event::PresenceReset {},
        Event::Checkpoint { through_seq: 7, head: RESULT, state_hash: BODY },
    ]
}

fn record(seq: u64, event: Event) -> Record {
    Record { v: RECORD_VERSION, seq, at_ms: AT, event }
}

#[test]
fn every_event_has_the_bytes_it_always_had() {
    let mut wrong = Vec::new();
    for event in events() {
        let name = format!("event.{}", event.name());
        let record = record(7, event);
        let bytes = record.encode();
        compare(&mut wrong, &name, &hex(&bytes));
        assert_eq!(Record::decode(&bytes).unwrap(), record, "{name}");
    }
    let full = Event::JobQueued {
        job: JOB,
        body: BODY,
        namespace: namespace(),
        via: Via::Copy,
        needs: needs(),
        priority: -3,
        debug: true,
        runs_before: 4,
    };
    compare(&mut wrong, "event.JobQueued.full", &hex(&record(7, full).encode()));
    assert!(wrong.is_empty(), "not as frozen:\n{}", wrong.join("\n"));
}

#[test]
fn the_usual_changes_are_small() {
    for event in events() {
        let usual = matches!(event, Event::JobQueued { .. } | Event::RunClaimed { .. } | Event::RunFinished { .. });
        let bytes = record(1_000_000, event).encode();
        assert!(!usual || bytes.len() <= 230, "{} bytes", bytes.len());
        assert!(bytes.len() < RECORD_BYTES_MAX);
    }
}

#[test]
fn a_fold_of_frozen_records_has_the_hash_it_always_had() {
    let mut state = QueueState::new(QUEUE);
    let mut head = QUEUE.genesis();
    for (seq, event) in (1..).zip(events()) {
        let bytes = record(seq, event).encode();
        head = chain(&head, &bytes);
        state.apply_bytes(&bytes).unwrap();
        assert_eq!(state.head().hash, head);
        assert_eq!(QueueState::decode(&state.encode()).unwrap(), state);
    }
    let mut wrong = Vec::new();
    compare(&mut wrong, "chain.head", &head.to_string());
    compare(&mut wrong, "state.hash", &state.hash().to_string());
    assert!(wrong.is_empty(), "not as frozen:\n{}", wrong.join("\n"));
}

#[test]
fn a_record_of_a_newer_version_is_told_from_a_broken_one() {
    let mut newer = record(1, Event::PresenceReset {});
    newer.v = RECORD_VERSION + 1;
    assert!(
        matches!(Record::decode(&newer.encode()), Err(RecordError::Newer(version)) if version == RECORD_VERSION + 1)
    );
    assert!(matches!(Record::decode(b"\x80"), Err(RecordError::Malformed(_))));
}

#[test]
fn a_record_out_of_order_changes_nothing() {
    let mut state = QueueState::new(QUEUE);
    let before = state.hash();
    assert!(state.apply_bytes(&record(2, Event::PresenceReset {}).encode()).is_err());
    assert_eq!(state.hash(), before);
}

#[test]
fn a_record_of_another_queue_gives_another_head() {
    let bytes = record(1, Event::PresenceReset {}).encode();
    let mut here = QueueState::new(QUEUE);
    let mut there = QueueState::new(QueueKey::from_bytes([1; 16]));
    here.apply_bytes(&bytes).unwrap();
    there.apply_bytes(&bytes).unwrap();
    assert_ne!(here.head(), there.head());
}

#[test]
fn a_reader_takes_fields_that_a_newer_writer_added() {
    #[derive(serde::Serialize)]
    struct Newer {
        v: u16,
        seq: u64,
        at_ms: UnixMillis,
        event: std::collections::BTreeMap<&'static str, Fields>,
        later: &'static str,
    }
    #[derive(serde::Serialize)]
    struct Fields {
        job: JobId,
        later: u8,
    }
    let event = [("JobRemoved", Fields { job: JOB, later: 1 })].into();
    let bytes = rmp_serde::to_vec_named(&Newer { v: 1, seq: 7, at_ms: AT, event, later: "x" }).unwrap();
    assert_eq!(Record::decode(&bytes).unwrap(), record(7, Event::JobRemoved { job: JOB }));
}

fn to_broker() -> Vec<(&'static str, ToBroker)> {
    let capacity = Capacity { cpus_milli: 4000, memory_bytes: Some(8 << 30), gpus: 2 };
    let definition = RawJson::new(r#"{"image":"alpine","command":"true"}"#);
    vec![
        (
            "Hello.watch",
            ToBroker::Hello(Hello { version: 1, version_min: None, watch: true, resume: Some(HEAD), worker: None }),
        ),
        (
            "Hello.range",
            ToBroker::Hello(Hello { version: 3, version_min: Some(1), watch: true, resume: None, worker: None }),
        ),
        (
            "Hello.worker",
            ToBroker::Hello(Hello {
                version: 1,
                version_min: None,
                watch: false,
                resume: None,
                worker: Some(WorkerHello {
                    id: worker(),
                    version: "0.1.0".to_owned(),
                    total: capacity,
                    tags: vec!["lab".to_owned()],
                    max_duration_ms: Some(300_000),
                    holds: vec![RUN],
                }),
            }),
        ),
        (
            "Submit",
            ToBroker::Submit {
                req: 1,
                job: Submission {
                    id: Some(JOB),
                    definition,
                    namespace: Some(namespace()),
                    priority: 1,
                    debug: true,
                    retry: false,
                    callbacks: Callbacks::default(),
                },
            },
        ),
        (
            "SubmitRetry",
            ToBroker::Submit {
                req: 11,
                job: Submission {
                    id: None,
                    definition: RawJson::new("{}"),
                    namespace: None,
                    priority: 0,
                    debug: false,
                    retry: true,
                    callbacks: Callbacks::default(),
                },
            },
        ),
        (
            "SubmitCallbacks",
            ToBroker::Submit {
                req: 12,
                job: Submission {
                    id: None,
                    definition: RawJson::new("{}"),
                    namespace: None,
                    priority: 0,
                    debug: false,
                    retry: false,
                    callbacks: Callbacks {
                        queued: Some(Callback { url: "https://a.example/".to_owned(), payload: None }),
                        finished: Some(Callback {
                            url: "https://b.example/".to_owned(),
                            payload: Some(RawJson::new(r#"{"k":1}"#)),
                        }),
                    },
                },
            },
        ),
        (
            "Cancel",
            ToBroker::Cancel { req: 2, job: JOB, namespace: Some(namespace()), message: Some("enough".to_owned()) },
        ),
        ("Delete", ToBroker::Delete { req: 3, job: JOB, namespace: None }),
        ("FollowLogs", ToBroker::FollowLogs { req: 4, job: JOB, kind: LogKind::Run, since: 10 }),
        ("UnfollowLogs", ToBroker::UnfollowLogs { req: 5, job: JOB, kind: LogKind::Build }),
        ("Claim", ToBroker::Claim { free: capacity, grants_seen: 3, req: None }),
        ("ClaimAsked", ToBroker::Claim { free: capacity, grants_seen: 3, req: Some(8) }),
        ("GetDefinitions", ToBroker::GetDefinitions { req: 9, jobs: vec![JOB, OTHER] }),
        ("Explain", ToBroker::Explain { req: 10, job: JOB }),
        ("Renew", ToBroker::Renew { runs: vec![RUN] }),
        (
            "Finish",
            ToBroker::Finish {
                req: 6,
                run: FinishedRun {
                    job: JOB,
                    run: 2,
                    outcome: RunOutcome::Success,
                    exit_code: Some(0),
                    image: Some(ImageId::from_bytes([0x0f; 32])),
                    duration_ms: Some(184),
                    finished: RawJson::new(r#"{"type":"Finished","reason":"Success"}"#),
                },
            },
        ),
        ("HandBack", ToBroker::HandBack { req: 7, run: RUN, why: "disk full".to_owned(), busy: false }),
        ("HandBackBusy", ToBroker::HandBack { req: 7, run: RUN, why: "no room".to_owned(), busy: true }),
        (
            "RunLogs",
            ToBroker::RunLogs {
                run: RUN,
                step: LogStep::Run,
                first: 12,
                lines: vec![
                    LogLine { text: "out\n".to_owned(), at_ms: AT, stderr: false },
                    LogLine { text: "err\n".to_owned(), at_ms: AT, stderr: true },
                ],
            },
        ),
    ]
}

fn unknown() -> Explanation {
    Explanation {
        job: OTHER,
        standing: Standing::Unknown,
        reason: "there is no such job in this queue".to_owned(),
        since_ms: None,
        run: 0,
        worker: None,
        lost: 0,
        line: None,
        workers: Vec::new(),
        workers_total: 0,
        estimate: None,
    }
}

fn explanation() -> Explanation {
    let lack = Lack { what: Resource::Gpus, needs: 1, free: 0, total: 0 };
    Explanation {
        job: JOB,
        standing: Standing::Waiting,
        reason: "no worker offers a GPU".to_owned(),
        since_ms: Some(AT),
        run: 2,
        worker: Some(worker()),
        lost: 1,
        line: Some(Line {
            ahead: 4,
            ahead_in_namespace: 1,
            namespace: namespace(),
            waiting: 9,
            priority: -3,
            needs: needs(),
        }),
        workers: vec![WorkerFit { id: worker(), fit: Fit::Never, lacks: vec![lack] }],
        workers_total: 1,
        estimate: Some(Estimate { starts_in_ms: 90_000, median_run_ms: 30_000, runs: 12, slots: 4 }),
    }
}

fn from_broker() -> Vec<(&'static str, FromBroker)> {
    let records = vec![RecordBytes(record(7, Event::JobRemoved { job: JOB }).encode().into())];
    let view = WorkerView {
        id: worker(),
        version: "0.1.0".to_owned(),
        total: Capacity { cpus_milli: 4000, memory_bytes: None, gpus: 0 },
        running: 1,
        silent_since_ms: Some(AT),
    };
    let line = LogLine { text: "hi\n".to_owned(), at_ms: AT, stderr: false };
    vec![
        ("Welcome", FromBroker::Welcome { version: 1, queue: QUEUE, head: HEAD, lease_ms: 30_000, gone: vec![RUN] }),
        ("Snapshot", FromBroker::Snapshot { head: HEAD, state: StateBytes(QueueState::new(QUEUE).encode().into()) }),
        ("Events", FromBroker::Events { from_seq: 7, records }),
        ("Presence", FromBroker::Presence { workers: vec![view], clients: 3 }),
        ("Ok", FromBroker::Ok { req: 1, head: HEAD, job: Some(JOB) }),
        (
            "Rejected",
            FromBroker::Rejected { req: Some(1), code: "stale_run".to_owned(), message: "not yours".to_owned() },
        ),
        (
            "Granted",
            FromBroker::Granted {
                run: RUN,
                definition: RawJson::new(r#"{"image":"alpine"}"#),
                lease_ms: 30_000,
                debug: false,
            },
        ),
        ("Stop", FromBroker::Stop { run: RUN, why: StopReason::Cancelled }),
        ("Claimed", FromBroker::Claimed { req: 8, granted: 4 }),
        (
            "Definitions",
            FromBroker::Definitions {
                req: 9,
                definitions: vec![JobDefinition { job: JOB, definition: RawJson::new(r#"{"image":"alpine"}"#) }],
                is_final: true,
            },
        ),
        ("Explained", FromBroker::Explained { req: 10, explanation: Box::new(explanation()) }),
        ("Explained.unknown", FromBroker::Explained { req: 10, explanation: Box::new(unknown()) }),
        ("Logs", FromBroker::Logs { job: JOB, kind: LogKind::Run, from: 10, lines: vec![line], is_final: false }),
    ]
}

#[test]
fn every_message_has_the_bytes_it_always_had_in_both_encodings() {
    let mut wrong = Vec::new();
    let mut check = |name: &str, packed: Vec<u8>, json: Vec<u8>| {
        compare(&mut wrong, &format!("{name}.messagepack"), &hex(&packed));
        compare(&mut wrong, &format!("{name}.json"), std::str::from_utf8(&json).unwrap());
    };
    for (name, message) in to_broker() {
        let (packed, json) = (Encoding::MessagePack.encode(&message), Encoding::Json.encode(&message));
        assert_eq!(Encoding::MessagePack.decode::<ToBroker>(&packed).unwrap(), message, "{name}");
        assert_eq!(Encoding::Json.decode::<ToBroker>(&json).unwrap(), message, "{name}");
        check(&format!("to_broker.{name}"), packed, json);
    }
    for (name, message) in from_broker() {
        let (packed, json) = (Encoding::MessagePack.encode(&message), Encoding::Json.encode(&message));
        assert_eq!(Encoding::MessagePack.decode::<FromBroker>(&packed).unwrap(), message, "{name}");
        assert_eq!(Encoding::Json.decode::<FromBroker>(&json).unwrap(), message, "{name}");
        check(&format!("from_broker.{name}"), packed, json);
    }
    assert!(wrong.is_empty(), "not as frozen:\n{}", wrong.join("\n"));
}

#[test]
fn json_that_no_library_keeps_crosses_unchanged() {
    let text = r#"{"a":"\ud800","b":1e400,"c":0.10000000000000000555}"#;
    let message = ToBroker::Submit {
        req: 1,
        job: Submission {
            id: None,
            definition: RawJson::new(text),
            namespace: None,
            priority: 0,
            debug: false,
            retry: false,
            callbacks: Callbacks::default(),
        },
    };
    for encoding in [Encoding::MessagePack, Encoding::Json] {
        let ToBroker::Submit { job, .. } = encoding.decode(&encoding.encode(&message)).unwrap() else {
            panic!("a submit")
        };
        assert_eq!(job.definition.as_str(), text);
    }
}

#[test]
fn what_is_no_message_is_refused() {
    let decode = |encoding: Encoding, bytes: &[u8]| encoding.decode::<ToBroker>(bytes);
    assert!(matches!(decode(Encoding::Json, b"{"), Err(CodecError::Json(_))));
    assert!(matches!(decode(Encoding::Json, b"\xff"), Err(CodecError::Json(_))));
    assert!(matches!(decode(Encoding::Json, br#"{"Nonsense":{}}"#), Err(CodecError::Json(_))));
    assert!(matches!(decode(Encoding::MessagePack, b"\xc1"), Err(CodecError::MessagePack(_))));
    assert!(matches!(decode(Encoding::MessagePack, &vec![0; MESSAGE_BYTES_MAX + 1]), Err(CodecError::TooLarge(_))));
}
