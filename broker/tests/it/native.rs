//! The native dialect's promises beside those of single commands: versions, definitions, explanations, asked claims, coming back,
//! and many who watch.

use std::collections::BTreeMap;

use broker::engine::QueueHandle;
use protocol::codec::Encoding;
use protocol::explain::Standing;
use protocol::id::{Head, JobId};
use protocol::native::{Capacity, DEFINITIONS_ASKED_MAX, FromBroker, HeldRun, Hello, ToBroker};
use protocol::queue::QueueState;
use serde_json::json;

use crate::support::{Socket, TestBroker};

fn queue(broker: &TestBroker) -> QueueHandle {
    broker.handle.engine().queue(&"q".parse().unwrap())
}

fn hello(version: u16, version_min: Option<u16>, resume: Option<Head>) -> ToBroker {
    ToBroker::Hello(Hello { version, version_min, watch: true, resume, worker: None })
}

async fn opened(broker: &TestBroker, hello: &ToBroker) -> Socket {
    let mut socket = broker.socket("/q/q/client", Encoding::MessagePack).await;
    socket.send(hello).await;
    socket
}

#[tokio::test]
async fn a_newer_peer_that_still_speaks_this_version_is_welcome_and_one_that_does_not_is_told_why() {
    let broker = TestBroker::start().await;
    let mut newer = opened(&broker, &hello(3, Some(1), None)).await;
    let welcome = newer.next().await.unwrap();
    assert!(matches!(welcome, FromBroker::Welcome { version: 1, .. }), "{welcome:?}");
    for too_new in [hello(3, Some(2), None), hello(2, None, None)] {
        let Some(FromBroker::Rejected { req: None, code, message }) = opened(&broker, &too_new).await.next().await
        else {
            panic!("a refusal")
        };
        assert_eq!(code, "version");
        assert!(message.contains("this broker speaks version 1"), "{message}");
    }
}

/// The parts of the answer to a request for definitions.
async fn definitions(socket: &mut Socket, req: u64, jobs: Vec<JobId>) -> Result<Vec<Vec<(JobId, String)>>, String> {
    socket.send(&ToBroker::GetDefinitions { req, jobs }).await;
    let mut parts = Vec::new();
    loop {
        let part = socket
            .expect("definitions", |message| match message {
                FromBroker::Definitions { req: of, definitions, is_final } if of == req => {
                    Some(Ok((definitions, is_final)))
                }
                FromBroker::Rejected { req: Some(of), code, .. } if of == req => Some(Err(code)),
                _ => None,
            })
            .await;
        let (part, is_final) = part?;
        parts.push(part.into_iter().map(|one| (one.job, one.definition.as_str().to_owned())).collect());
        if is_final {
            return Ok(parts);
        }
    }
}

#[tokio::test]
async fn definitions_come_in_the_order_asked_without_those_that_are_not_known() {
    let broker = TestBroker::start().await;
    let mut client = broker.client("q").await;
    let mut texts = BTreeMap::new();
    let mut jobs = Vec::new();
    for number in 0..5 {
        let text = format!(r#"{{"command":"echo {number}", "image":"a", "kept":"\ud800 1e999"}}"#);
        client.submit(number, &text).await;
        let job = client.answer(number).await.unwrap().unwrap();
        texts.insert(job, text);
        jobs.push(job);
    }
    jobs.reverse();
    let mut asked = jobs.clone();
    asked.insert(2, JobId::from_bytes([9; 32]));
    let parts = definitions(&mut client, 50, asked).await.unwrap();
    let expected: Vec<_> = jobs.iter().map(|job| (*job, texts[job].clone())).collect();
    assert_eq!(parts, [expected], "as they were submitted, byte for byte");
    assert_eq!(definitions(&mut client, 51, vec![JobId::from_bytes([9; 32])]).await, Ok(vec![vec![]]));
    let too_many = vec![jobs[0]; DEFINITIONS_ASKED_MAX + 1];
    assert_eq!(definitions(&mut client, 52, too_many).await, Err("too_many_definitions".to_owned()));
}

#[tokio::test]
async fn large_definitions_come_in_parts_and_very_large_ones_alone() {
    let broker = TestBroker::start().await;
    let mut client = broker.client("q").await;
    let mut jobs = Vec::new();
    for (number, kilobytes) in [100, 100, 100, 700, 1].into_iter().enumerate() {
        let text = json!({ "image": "a", "command": format!("echo {number}"), "pad": "x".repeat(kilobytes * 1024) });
        client.submit(number as u64, &text.to_string()).await;
        jobs.push(client.answer(number as u64).await.unwrap().unwrap());
    }
    let parts = definitions(&mut client, 50, jobs.clone()).await.unwrap();
    let found: Vec<_> = parts.iter().flatten().map(|(job, _)| *job).collect();
    assert_eq!(found, jobs);
    for part in &parts {
        let bytes: usize = part.iter().map(|(_, text)| text.len()).sum();
        assert!(bytes <= 256 * 1024 || part.len() == 1, "{} definitions of {bytes} bytes", part.len());
    }
    assert!(parts.len() > 2, "{}", parts.len());
}

#[tokio::test]
async fn a_socket_that_asks_for_more_than_it_reads_gets_it_all_in_the_end() {
    let broker = TestBroker::start().await;
    let mut client = broker.client("q").await;
    let text = json!({ "image": "a", "command": "b", "pad": "x".repeat(300 * 1024) }).to_string();
    client.submit(1, &text).await;
    let job = client.answer(1).await.unwrap().unwrap();
    for req in 100..140 {
        client.send(&ToBroker::GetDefinitions { req, jobs: vec![job] }).await;
    }
    let mut answered = Vec::new();
    while answered.len() < 40 {
        answered.push(
            client
                .expect("definitions", |message| match message {
                    FromBroker::Definitions { req, definitions, is_final: true } => {
                        assert_eq!(definitions[0].definition.as_str(), text);
                        Some(req)
                    }
                    _ => None,
                })
                .await,
        );
    }
    answered.sort_unstable();
    assert_eq!(answered, (100..140).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_job_is_explained_over_the_socket() {
    let broker = TestBroker::start().await;
    let job = broker.submit("q", json!({ "image": "a", "command": "b" })).await;
    let mut client = broker.client("q").await;
    for (req, job, standing) in [(1, job, Standing::Waiting), (2, JobId::from_bytes([9; 32]), Standing::Unknown)] {
        client.send(&ToBroker::Explain { req, job }).await;
        let explained = client
            .expect("an explanation", |message| match message {
                FromBroker::Explained { req: of, explanation } if of == req => Some(explanation),
                _ => None,
            })
            .await;
        assert_eq!((explained.job, explained.standing), (job, standing));
        assert!(!explained.reason.is_empty());
    }
}

#[tokio::test]
async fn a_claim_that_asks_is_told_how_much_it_was_granted() {
    let broker = TestBroker::start().await;
    for number in 0..3 {
        broker.submit("q", json!({ "image": "a", "command": format!("echo {number}") })).await;
    }
    let mut worker = broker.worker("q", "w", 2).await;
    let claim = |cpus: u32, grants_seen, req| ToBroker::Claim {
        free: Capacity { cpus_milli: cpus * 1000, memory_bytes: None, gpus: 0 },
        grants_seen,
        req: Some(req),
    };
    let mut seen = 0;
    for (cpus, req, granted) in [(0, 1, 0), (2, 2, 2), (0, 3, 2), (2, 4, 3), (1, 5, 3)] {
        worker.socket.send(&claim(cpus, seen, req)).await;
        let said = worker
            .socket
            .expect("an answer", |message| match message {
                FromBroker::Granted { .. } => {
                    seen += 1;
                    None
                }
                FromBroker::Claimed { req: of, granted } if of == req => Some(granted),
                _ => None,
            })
            .await;
        assert_eq!((said, seen), (granted, granted), "claim {req}: definitions in memory come before the answer");
    }
    let mut client = broker.client("q").await;
    client.send(&claim(1, 0, 9)).await;
    assert_eq!(client.answer(9).await, Err("not_a_worker".to_owned()));
}

#[tokio::test]
async fn grants_come_in_the_order_of_the_line_wherever_their_definitions_are() {
    const JOBS: u32 = 60;
    let broker = TestBroker::start().await;
    let mut client = broker.client("q").await;
    let mut line = Vec::new();
    for number in 0..JOBS {
        // More than is kept in memory: the first are read from disk, the last are not.
        let text = json!({ "image": "a", "command": format!("echo {number}"), "pad": "x".repeat(40 * 1024) });
        client.submit(number.into(), &text.to_string()).await;
        line.push(HeldRun { job: client.answer(number.into()).await.unwrap().unwrap(), run: 1 });
    }
    let mut worker = broker.worker("q", "w", JOBS).await;
    let mut granted = vec![worker.claim().await.0];
    while granted.len() < line.len() {
        granted.push(
            worker
                .socket
                .expect("a grant", |message| match message {
                    FromBroker::Granted { run, .. } => Some(run),
                    _ => None,
                })
                .await,
        );
    }
    assert_eq!(granted, line);
}

/// Reads until the state has reached `to`; says whether there was a snapshot among it.
async fn fold_to(socket: &mut Socket, state: &mut Option<QueueState>, to: u64) -> bool {
    let mut has_snapshot = false;
    while state.as_ref().is_none_or(|state| state.head().seq < to) {
        socket
            .expect("news", |message| match message {
                FromBroker::Snapshot { head, state: bytes } => {
                    has_snapshot = true;
                    let new = QueueState::decode(&bytes.0).unwrap();
                    assert_eq!(new.head(), head);
                    *state = Some(new);
                    Some(())
                }
                FromBroker::Events { from_seq, records } => {
                    let state = state.as_mut().expect("a state comes first");
                    assert_eq!(from_seq, state.head().seq + 1, "no gap, no repeat");
                    records.iter().for_each(|record| {
                        state.apply_bytes(&record.0).unwrap();
                    });
                    Some(())
                }
                _ => None,
            })
            .await;
    }
    has_snapshot
}

#[tokio::test]
async fn who_comes_back_gets_what_was_missed_and_no_snapshot_also_over_a_restart() {
    let broker = TestBroker::start().await;
    let mut socket = opened(&broker, &hello(1, None, None)).await;
    let mut state = None;
    for number in 0..20 {
        broker.submit("q", json!({ "image": "a", "command": format!("echo {number}") })).await;
    }
    fold_to(&mut socket, &mut state, queue(&broker).head().await.unwrap().seq).await;
    let known = state.as_ref().unwrap().head();
    drop(socket);
    for number in 20..30 {
        broker.submit("q", json!({ "image": "a", "command": format!("echo {number}") })).await;
    }
    let mut broker = broker;
    for round in ["from memory", "from disk"] {
        let head = queue(&broker).head().await.unwrap();
        let mut again = state.clone();
        let mut socket = opened(&broker, &hello(1, None, Some(known))).await;
        let has_snapshot = fold_to(&mut socket, &mut again, head.seq).await;
        assert!(!has_snapshot, "{round}");
        assert_eq!(again.unwrap().head(), head, "{round}");
        // With the genesis the whole history comes.
        let genesis = Head { seq: 0, hash: queue(&broker).key().genesis() };
        let mut all = Some(QueueState::new(queue(&broker).key()));
        let mut socket = opened(&broker, &hello(1, None, Some(genesis))).await;
        assert!(!fold_to(&mut socket, &mut all, head.seq).await, "{round}");
        assert_eq!(all.unwrap().head(), head, "{round}");
        broker = broker.restart().await;
    }
    // A head of another history: the state as it is.
    let other = Head { seq: known.seq, hash: protocol::id::Digest::of(b"other") };
    let mut socket = opened(&broker, &hello(1, None, Some(other))).await;
    assert!(fold_to(&mut socket, &mut None, known.seq).await);
}

#[tokio::test]
async fn many_watchers_all_see_every_change_and_so_do_those_that_come_in_between() {
    const WATCHERS: usize = 60;
    const CHANGES: u64 = 150;
    let broker = TestBroker::start().await;
    let mut early = Vec::new();
    for _ in 0..WATCHERS {
        early.push((opened(&broker, &hello(1, None, None)).await, None));
    }
    for (socket, state) in &mut early {
        fold_to(socket, state, 0).await;
    }
    let mut client = broker.socket("/q/q/client", Encoding::MessagePack).await;
    client
        .send(&ToBroker::Hello(Hello { version: 1, version_min: None, watch: false, resume: None, worker: None }))
        .await;
    let mut late = Vec::new();
    for number in 0..CHANGES {
        let text = json!({ "image": "a", "command": format!("echo {number}") }).to_string();
        client.submit(number, &text).await;
        client.answer(number).await.unwrap();
        if number % 10 == 5 {
            // Comes while changes wait to be told.
            late.push((opened(&broker, &hello(1, None, None)).await, None));
        }
    }
    let head = queue(&broker).head().await.unwrap();
    for (socket, state) in early.iter_mut().chain(&mut late) {
        fold_to(socket, state, head.seq).await;
        assert_eq!(state.as_ref().unwrap().head(), head);
    }
}
