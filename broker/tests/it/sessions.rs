//! The native dialect over real sockets.

use broker::audit::At;
use futures_util::{SinkExt, StreamExt};
use protocol::codec::{Encoding, FRAME_BYTES_MAX};
use protocol::event::RunOutcome;
use protocol::id::{JobId, QueueKey, UnixMillis};
use protocol::native::{FromBroker, HeldRun, Hello, LogKind, LogLine, LogStep, StopReason, ToBroker};
use protocol::queue::QueueState;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::support::{Socket, TestBroker, until, within};

/// A subscriber that folds what it is sent, as the page does.
struct Subscriber {
    socket: Socket,
    state: QueueState,
}

impl Subscriber {
    async fn watch(broker: &TestBroker, queue: &str, encoding: Encoding) -> Self {
        let mut socket = broker.socket(&format!("/q/{queue}/client"), encoding).await;
        socket
            .send(&ToBroker::Hello(Hello { version: 1, version_min: None, watch: true, resume: None, worker: None }))
            .await;
        let state = socket
            .expect("a snapshot", |message| match message {
                FromBroker::Snapshot { head, state } => {
                    let state = QueueState::decode(&state.0).unwrap();
                    assert_eq!(state.head(), head);
                    Some(state)
                }
                _ => None,
            })
            .await;
        Self { socket, state }
    }

    /// Folds until the state has reached `seq`; the chain is checked on the way.
    async fn fold_to(&mut self, seq: u64) {
        while self.state.head().seq < seq {
            let state = &mut self.state;
            self.socket
                .expect("events", |message| {
                    let FromBroker::Events { from_seq, records } = message else { return None };
                    assert_eq!(from_seq, state.head().seq + 1, "no gap, no repeat");
                    for record in records {
                        state.apply_bytes(&record.0).unwrap();
                    }
                    Some(())
                })
                .await;
        }
    }
}

fn definition(number: usize) -> String {
    json!({ "image": "alpine:3.20", "command": format!("echo {number}") }).to_string()
}

#[tokio::test]
async fn every_subscriber_folds_to_the_same_state_in_both_encodings() {
    let broker = TestBroker::start().await;
    let mut early = Subscriber::watch(&broker, "q", Encoding::MessagePack).await;
    let mut json = Subscriber::watch(&broker, "q", Encoding::Json).await;
    let mut sender = broker.client("q").await;
    for number in 0..50 {
        sender.submit(number as u64, &definition(number)).await;
    }
    for number in 0..50 {
        sender.answer(number).await.unwrap();
    }
    let mut late = Subscriber::watch(&broker, "q", Encoding::MessagePack).await;
    let mut worker = broker.worker("q", "w", 1).await;
    for _ in 0..10 {
        let (run, _) = worker.claim().await;
        worker.finish(run, json!({ "StatusCode": 0 })).await;
    }
    let head = broker.handle.engine().queue(&"q".parse().unwrap()).head().await.unwrap();
    for subscriber in [&mut early, &mut json, &mut late] {
        subscriber.fold_to(head.seq).await;
        assert_eq!(subscriber.state.head(), head);
    }
    assert_eq!(early.state.hash(), late.state.hash());
    assert_eq!(early.state.hash(), json.state.hash());
    assert_eq!(early.state.jobs().len(), 50);
}

#[tokio::test]
async fn a_large_snapshot_comes_whole_though_no_frame_is_large() {
    let broker = TestBroker::start().await;
    let mut client = broker.client("q").await;
    for number in 0..500 {
        client.submit(number, &definition(number as usize)).await;
    }
    for number in 0..500 {
        client.answer(number).await.unwrap();
    }
    for encoding in [Encoding::MessagePack, Encoding::Json] {
        let config = WebSocketConfig::default().max_frame_size(Some(64 * 1024));
        let mut socket = broker.socket_with("/q/q/client", encoding, config).await;
        socket
            .send(&ToBroker::Hello(Hello { version: 1, version_min: None, watch: true, resume: None, worker: None }))
            .await;
        let state = socket
            .expect("a snapshot", |message| match message {
                FromBroker::Snapshot { state, .. } => Some(QueueState::decode(&state.0).unwrap()),
                _ => None,
            })
            .await;
        assert!(state.encode().len() > 64 * 1024, "it did not fit into one frame");
        assert_eq!(state.jobs().len(), 500);
    }
}

#[tokio::test]
async fn an_audit_of_the_past_finds_the_state_that_a_subscriber_had_then() {
    let broker = TestBroker::start().await;
    let mut subscriber = Subscriber::watch(&broker, "q", Encoding::MessagePack).await;
    let mut client = broker.client("q").await;
    let mut worker = broker.worker("q", "w", 1).await;
    let mut seen = Vec::new();
    for number in 0..9 {
        client.submit(number as u64, &definition(number)).await;
        client.answer(number as u64).await.unwrap();
        if number % 3 == 2 {
            let (run, _) = worker.claim().await;
            worker.finish(run, json!({ "StatusCode": 0 })).await;
            let head = broker.handle.engine().queue(&"q".parse().unwrap()).head().await.unwrap();
            subscriber.fold_to(head.seq).await;
            seen.push((head.seq, subscriber.state.hash()));
        }
    }
    let (journal, key) = (broker.config.journal_dir(), QueueKey::of(&"q".parse().unwrap()));
    for (seq, hash) in seen {
        let then = broker::audit::state_at(&journal, key, At::Seq(seq)).unwrap();
        assert_eq!(then.hash(), hash, "at {seq}");
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let broker = TestBroker::start().await;
    let mut client = broker.client("q").await;
    client.submit(1, &definition(1)).await;
    let job = client.answer(1).await.unwrap().unwrap();
    let head = broker.handle.engine().queue(&"q".parse().unwrap()).head().await.unwrap();
    let broker = broker.restart().await;
    let after = Subscriber::watch(&broker, "q", Encoding::MessagePack).await;
    assert_eq!(after.state.head(), head);
    assert!(after.state.job(job).unwrap().is_live());
}

#[tokio::test]
async fn many_workers_share_jobs_without_sharing_a_run() {
    let broker = TestBroker::start().await;
    let mut client = broker.client("q").await;
    for number in 0..40 {
        client.submit(number as u64, &definition(number)).await;
    }
    let mut tasks = tokio::task::JoinSet::new();
    for name in 0..4 {
        let mut worker = broker.worker("q", &format!("w{name}"), 1).await;
        tasks.spawn(async move {
            let mut runs = Vec::new();
            for _ in 0..10 {
                let (run, _) = worker.claim().await;
                runs.push(run);
                worker.finish(run, json!({ "StatusCode": 0 })).await;
            }
            runs
        });
    }
    let mut runs: Vec<HeldRun> = tasks.join_all().await.concat();
    runs.sort();
    runs.dedup();
    assert_eq!(runs.len(), 40, "each job was run once");
    assert!(runs.iter().all(|run| run.run == 1));
}

#[tokio::test]
async fn a_worker_cannot_finish_what_it_was_not_granted() {
    let broker = TestBroker::start().await;
    let job = broker.submit("q", json!({ "image": "a", "command": "b" })).await;
    let mut worker = broker.worker("q", "thief", 1).await;
    let refused = worker.end(HeldRun { job, run: 1 }, RunOutcome::Success, json!({})).await;
    assert_eq!(refused, Err("stale_run".to_owned()));
    let (_, answer) = broker.get_json(&format!("/q/q/j/{job}/result.json")).await;
    assert_eq!(answer, json!({ "data": null }));
}

#[tokio::test]
async fn a_cancel_reaches_the_worker_as_an_order_to_stop() {
    let broker = TestBroker::start().await;
    let job = broker.submit("q", json!({ "image": "a", "command": "sleep 100" })).await;
    let mut worker = broker.worker("q", "w", 1).await;
    let (run, _) = worker.claim().await;
    let mut client = broker.client("q").await;
    client.send(&ToBroker::Cancel { req: 1, job, namespace: None, message: Some("enough".to_owned()) }).await;
    client.answer(1).await.unwrap();
    let stopped = worker
        .socket
        .expect("an order to stop", |message| match message {
            FromBroker::Stop { run, why } => Some((run, why)),
            _ => None,
        })
        .await;
    assert_eq!(stopped, (run, StopReason::Cancelled));
    assert_eq!(worker.end(run, RunOutcome::Success, json!({})).await, Err("stale_run".to_owned()));
}

#[tokio::test]
async fn a_worker_that_reconnects_keeps_its_run_also_over_a_restart_of_the_broker() {
    let broker = TestBroker::start().await;
    broker.submit("q", json!({ "image": "a", "command": "b" })).await;
    let mut worker = broker.worker("q", "w", 1).await;
    let (run, _) = worker.claim().await;
    drop(worker);
    let worker = broker.worker_holding("q", "w", 1, vec![run]).await;
    drop(worker);
    let broker = broker.restart().await;
    let mut worker = broker.worker_holding("q", "w", 1, vec![run]).await;
    worker.finish(run, json!({ "StatusCode": 0 })).await;
    let jobs = broker.handle.engine().queue(&"q".parse().unwrap()).jobs().await.unwrap();
    assert_eq!(jobs[0].1.run, 1, "no second run was made");
}

#[tokio::test]
async fn runs_that_are_not_the_workers_any_more_are_named_when_it_says_hello() {
    let broker = TestBroker::start().await;
    let mut socket = broker.socket("/q/q/worker", Encoding::MessagePack).await;
    let gone = HeldRun { job: JobId::from_bytes([9; 32]), run: 3 };
    let hello = json!({ "version": 1, "watch": false, "worker": {
        "id": "w", "version": "t", "total": { "cpus_milli": 1000 }, "holds": [gone] } });
    let ToBroker::Hello(hello) = serde_json::from_value(json!({ "Hello": hello })).unwrap() else { panic!("a hello") };
    socket.send(&ToBroker::Hello(hello)).await;
    let welcome = socket.next().await.unwrap();
    assert!(matches!(&welcome, FromBroker::Welcome { gone: found, .. } if *found == [gone]), "{welcome:?}");
}

#[tokio::test]
async fn a_second_socket_of_a_worker_takes_the_place_of_the_first() {
    let broker = TestBroker::start().await;
    let mut first = broker.worker("q", "w", 1).await;
    let mut second = broker.worker("q", "w", 1).await;
    let said = first
        .socket
        .expect("a goodbye", |message| match message {
            FromBroker::Rejected { code, .. } => Some(code),
            _ => None,
        })
        .await;
    assert_eq!(said, "replaced");
    assert_eq!(first.socket.next().await, None);
    broker.submit("q", json!({ "image": "a", "command": "b" })).await;
    second.claim().await;
}

fn lines(texts: &[&str]) -> Vec<LogLine> {
    texts.iter().map(|text| LogLine { text: (*text).to_owned(), at_ms: UnixMillis(5), stderr: false }).collect()
}

#[tokio::test]
async fn followers_get_the_lines_there_are_and_those_that_come_and_are_told_of_the_end() {
    let broker = TestBroker::start().await;
    let job = broker.submit("q", json!({ "image": "a", "command": "b" })).await;
    let mut worker = broker.worker("q", "w", 1).await;
    let (run, _) = worker.claim().await;
    worker.logs(run, LogStep::Run, 0, lines(&["one\n", "two\n"])).await;
    let mut client = broker.client("q").await;
    client.send(&ToBroker::FollowLogs { req: 1, job, kind: LogKind::Run, since: 1 }).await;
    client.answer(1).await.unwrap();
    let mut got = Vec::new();
    let mut is_over = false;
    let mut sent = false;
    while !is_over {
        client
            .expect("lines", |message| {
                let FromBroker::Logs { from, lines, is_final, .. } = message else { return None };
                assert_eq!(from, 1 + got.len() as u64, "no gap, no repeat");
                got.extend(lines.into_iter().map(|line| line.text));
                is_over = is_final;
                Some(())
            })
            .await;
        if !sent {
            sent = true;
            worker.logs(run, LogStep::Run, 2, lines(&["three\n"])).await;
            worker.finish(run, json!({ "StatusCode": 0 })).await;
        }
    }
    assert_eq!(got, ["two\n", "three\n"]);
}

#[tokio::test]
async fn log_lines_of_a_run_that_the_worker_does_not_have_are_not_kept() {
    let broker = TestBroker::start().await;
    let job = broker.submit("q", json!({ "image": "a", "command": "b" })).await;
    let mut owner = broker.worker("q", "owner", 1).await;
    let (run, _) = owner.claim().await;
    let mut thief = broker.worker("q", "thief", 1).await;
    thief.logs(run, LogStep::Run, 0, lines(&["forged\n"])).await;
    // An answer to a later command of the same socket shows that the lines were looked at.
    assert!(thief.end(run, RunOutcome::Success, json!({})).await.is_err());
    owner.logs(run, LogStep::Run, 0, lines(&["true\n"])).await;
    until("the line", || async {
        let (_, answer) = broker.get_json(&format!("/q/q/j/{job}/run-logs.json")).await;
        answer["data"] == json!([["true\n", 5]])
    })
    .await;
}

#[tokio::test]
async fn deleting_a_job_takes_its_logs_with_it() {
    let broker = TestBroker::start().await;
    let job = broker.submit("q", json!({ "image": "a", "command": "b" })).await;
    let mut worker = broker.worker("q", "w", 1).await;
    let (run, _) = worker.claim().await;
    worker.logs(run, LogStep::Run, 0, lines(&["secret\n"])).await;
    worker.finish(run, json!({ "StatusCode": 0 })).await;
    let page = async || broker.get_json(&format!("/q/q/j/{job}/run-logs.json")).await.1;
    assert_eq!(page().await["data"], json!([["secret\n", 5]]));
    let mut client = broker.client("q").await;
    client.send(&ToBroker::Delete { req: 1, job, namespace: None }).await;
    client.answer(1).await.unwrap();
    until("the lines to go", || async { page().await["data"] == json!([]) }).await;
}

async fn first_answer(broker: &TestBroker, path: &str, message: Message) -> Option<FromBroker> {
    let mut socket = broker.socket(path, Encoding::Json).await;
    within("a send", socket.stream.send(message)).await.ok();
    socket.next().await
}

fn code(answer: &Option<FromBroker>) -> Option<&str> {
    match answer {
        Some(FromBroker::Rejected { code, .. }) => Some(code),
        _ => None,
    }
}

#[tokio::test]
async fn a_socket_that_does_not_say_hello_properly_is_told_so() {
    let broker = TestBroker::start().await;
    let try_text = |path: &'static str, text: &'static str| first_answer(&broker, path, Message::text(text));
    assert_eq!(code(&try_text("/q/q/client", "nonsense").await), Some("bad_message"));
    let renew = r#"{"Renew":{"runs":[]}}"#;
    assert_eq!(code(&try_text("/q/q/client", renew).await), Some("hello_expected"));
    let old = r#"{"Hello":{"version":99,"watch":true}}"#;
    assert_eq!(code(&try_text("/q/q/client", old).await), Some("version"));
    let no_worker = r#"{"Hello":{"version":1,"watch":true}}"#;
    assert_eq!(code(&try_text("/q/q/worker", no_worker).await), Some("worker_expected"));
}

#[tokio::test]
async fn bad_messages_are_answered_and_the_socket_goes_on() {
    let broker = TestBroker::start().await;
    let mut client = broker.client("q").await;
    client.stream.send(Message::binary(vec![0xc1, 0xff])).await.unwrap();
    let refusal = |message| match message {
        FromBroker::Rejected { req, code, .. } => Some((req, code)),
        _ => None,
    };
    assert_eq!(client.expect("a refusal", refusal).await, (None, "bad_message".to_owned()));
    let cases =
        [("{", "bad_definition"), ("[1]", "bad_definition"), (r#"{"inputs":{"../x":{"value":"y"}}}"#, "bad_file_name")];
    for (req, (definition, expected)) in (1..).zip(cases) {
        client.submit(req, definition).await;
        assert_eq!(client.answer(req).await, Err(expected.to_owned()), "{definition}");
    }
    client.send(&ToBroker::Claim { free: protocol::native::Capacity::default(), grants_seen: 0, req: None }).await;
    assert_eq!(client.expect("a refusal", refusal).await, (None, "not_a_worker".to_owned()));
    client.submit(9, &definition(1)).await;
    client.answer(9).await.unwrap();
}

#[tokio::test]
async fn a_frame_over_the_limit_ends_the_socket_with_the_reason() {
    let broker = TestBroker::start().await;
    let mut client = broker.client("q").await;
    let frame = Message::binary(vec![0; FRAME_BYTES_MAX + 1]);
    // The broker may hang up while we still send.
    let _ = within("a send", client.stream.send(frame)).await;
    let mut said = None;
    while let Some(Ok(message)) = within("the end", client.stream.next()).await {
        if let Message::Binary(bytes) = message
            && let Ok(FromBroker::Rejected { code, .. }) = Encoding::MessagePack.decode(&bytes)
        {
            said = Some(code);
        }
    }
    assert!(
        said.is_none_or(|code| code == "frame_too_large"),
        "the reason, unless the connection broke before it came"
    );
    // The broker is well.
    let mut other = broker.client("q").await;
    other.submit(1, &definition(1)).await;
    other.answer(1).await.unwrap();
}

#[tokio::test]
async fn only_the_owner_may_look_into_what_is_stored() {
    use std::os::unix::fs::PermissionsExt;
    let broker = TestBroker::start().await;
    broker.submit("q", json!({ "image": "a", "command": "b" })).await;
    for folder in ["journal", "logs", "blobs"] {
        let mode = std::fs::metadata(broker.path().join(folder)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{folder} is {mode:o}");
    }
}
