//! Peers that mean harm: what they are told, and what they cannot do to others.

use std::path::Path;

use futures_util::{SinkExt, StreamExt};
use protocol::codec::Encoding;
use protocol::event::RunOutcome;
use protocol::id::{JobId, UnixMillis};
use protocol::native::{Capacity, FromBroker, HeldRun, Hello, LogLine, LogStep, ToBroker, WorkerHello};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Socket, TestBroker, until, within};

const ECHO: &str = "84696046848ef38f50a2f6182fc7674eaee3d1fac23fe57466d6cb5f771794e4";
const ALL_THERE_IS: Capacity = Capacity { cpus_milli: u32::MAX, memory_bytes: Some(u64::MAX), gpus: u32::MAX };

fn hello(change: impl FnOnce(&mut WorkerHello)) -> ToBroker {
    let mut worker = WorkerHello {
        id: "hostile".parse().unwrap(),
        version: "test".to_owned(),
        total: ALL_THERE_IS,
        tags: Vec::new(),
        max_duration_ms: None,
        holds: Vec::new(),
    };
    change(&mut worker);
    ToBroker::Hello(Hello { version: 1, version_min: None, watch: false, resume: None, worker: Some(worker) })
}

fn strange_run(number: u32) -> HeldRun {
    HeldRun { job: JobId::from_bytes([7; 32]), run: number }
}

async fn first_refusal(socket: &mut Socket) -> String {
    socket
        .expect("a refusal", |message| match message {
            FromBroker::Rejected { code, .. } => Some(code),
            _ => None,
        })
        .await
}

/// Sends one request as it is and gives the whole answer.
async fn raw(broker: &TestBroker, request: &str) -> String {
    let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
    peer.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Closed in order or cut: both end it.
    let _ = within("the answer", peer.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).map(|entries| entries.flatten().collect()).unwrap_or_default();
    let sizes = Vec::into_iter(entries).map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_below(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

#[tokio::test]
async fn nesting_and_numbers_beyond_reason_are_refused_or_taken_but_never_break_anything() {
    let broker = TestBroker::start().await;
    let deep = "[".repeat(10_000) + &"]".repeat(10_000);
    let nines = "9".repeat(100_000);
    for (body, status) in [
        (format!(r#"{{"definition":{{"image":{deep}}}}}"#), 400),
        (format!(r#"{{"definition":{{}},"control":{{"x":{deep}}}}}"#), 400),
        (format!(r#"{{"definition":{{}},"id":{deep}}}"#), 400),
        (format!(r#"{{"definition":{{}},"debug":{deep}}}"#), 400),
        (format!(r#"{{"definition":{{}},"unknown":{deep}}}"#), 200),
        (format!(r#"{{"definition":{{"n":{nines},"m":-1e-{nines}}}}}"#), 200),
        (r#"{"definition":{"requirements":{"cpus":1e308,"gpus":-1e308,"memory":"99999999999999999999g"},"shmSize":1e999,"maxDuration":"-1e999"}}"#.to_owned(), 200),
        (r#"{"definition":{"image":"\u202e\u0000\ufeff\ud800","env":{"a=b":"c","\u0000":"d"},"__proto__":{"x":1}}}"#.to_owned(), 200),
    ] {
        let (found, told) = broker.post("/q/abc", body.clone()).await;
        assert_eq!(found, status, "{}: {told}", &body[..body.len().min(80)]);
    }
    assert_eq!(broker.get_json("/q/abc").await.0, 200);
    assert_eq!(broker.get_json("/q/abc/status").await.0, 200);
}

#[tokio::test]
async fn no_part_of_an_address_leads_out_of_its_place() {
    let broker = TestBroker::start().await;
    let outside = broker.path().join("outside.txt");
    std::fs::write(&outside, "not yours").unwrap();
    broker.submit("a", json!({ "image": "alpine:3.20", "command": "echo hello" })).await;
    for part in [
        "..%2f..%2foutside.txt",
        "..%2foutside.txt",
        "%2e%2e%2foutside.txt",
        "..%5coutside.txt",
        "%2e%2e",
        "%252e%252e%252foutside.txt",
        "%00",
        "a%00b",
        "%ff",
        "%c0%ae%c0%ae%2foutside.txt",
        "%0d%0aX-Injected:%201",
    ] {
        for (method, path) in [
            ("GET", format!("/f/{part}")),
            ("PUT", format!("/f/{part}")),
            ("GET", format!("/f/{part}/exists")),
            ("GET", format!("/q/a/j/{part}")),
            ("GET", format!("/q/a/j/{part}/result.json")),
            ("GET", format!("/q/a/j/{ECHO}/inputs/{part}")),
            ("GET", format!("/q/a/j/{ECHO}/outputs/{part}")),
            ("GET", format!("/j/{ECHO}/outputs/{part}")),
            ("GET", format!("/j/{part}/definition.json")),
            ("POST", format!("/j/{part}/copy")),
        ] {
            let request =
                format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\nevil");
            let answer = raw(&broker, &request).await;
            assert!(answer.starts_with("HTTP/1.1 4"), "{method} {path}: {answer}");
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(!body.contains("not yours") && !head.contains("X-Injected"), "{method} {path}: {answer}");
        }
    }
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "not yours");
}

#[tokio::test]
async fn requests_that_could_be_read_in_two_ways_are_not_read_on() {
    let broker = TestBroker::start().await;
    let hidden = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    for head in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: -1",
        "Transfer-Encoding: chunked, identity",
    ] {
        let answer = raw(&broker, &format!("POST /q/a HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n0\r\n\r\n{hidden}")).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{head}: {answer}");
        assert!(!answer.contains("HTTP/1.1 200"), "{head}: {answer}");
    }
}

#[tokio::test]
async fn queues_that_someone_made_up_are_forgotten() {
    let broker = TestBroker::start().await;
    for number in 0..300 {
        assert_eq!(broker.get(&format!("/q/made-up-{number}")).await.status(), 200);
        if number % 10 == 0 {
            drop(broker.client(&format!("made-up-socket-{number}")).await);
        }
    }
    until("no live queue", || async {
        let metrics = broker.get("/metrics").await.text().await.unwrap();
        metrics.lines().any(|line| line == "gridsocket_live_queues 0")
    })
    .await;
}

#[tokio::test]
async fn a_hello_beyond_reason_is_refused_with_the_limit_it_is_over() {
    let broker = TestBroker::start().await;
    let cases: [(&str, ToBroker); 4] = [
        ("version_too_long", hello(|worker| worker.version = "v".repeat(1000))),
        ("tags_too_large", hello(|worker| worker.tags = vec![String::new(); 10_000])),
        ("hello_too_large", hello(|worker| worker.version = "v".repeat(2_000_000))),
        ("hello_too_large", hello(|worker| worker.holds = (0..50_000).map(strange_run).collect())),
    ];
    for (code, hello) in cases {
        let mut socket = broker.socket("/q/abc/worker", Encoding::MessagePack).await;
        socket.send(&hello).await;
        assert_eq!(first_refusal(&mut socket).await, code);
        assert!(socket.next().await.is_none(), "it is closed");
    }
}

#[tokio::test]
async fn a_worker_that_says_it_holds_thousands_of_strange_runs_is_told_that_they_are_gone() {
    let broker = TestBroker::start().await;
    let mut socket = broker.socket("/q/abc/worker", Encoding::MessagePack).await;
    socket.send(&hello(|worker| worker.holds = (0..20_000).map(strange_run).collect())).await;
    let gone = socket
        .expect("the welcome", |message| match message {
            FromBroker::Welcome { gone, .. } => Some(gone.len()),
            _ => None,
        })
        .await;
    assert_eq!(gone, 20_000);
    let runs = (0..200_000).map(strange_run).collect();
    socket.send(&ToBroker::Renew { runs }).await;
    socket.send(&ToBroker::HandBack { req: 1, run: strange_run(1), why: "test".to_owned(), busy: false }).await;
    assert_eq!(socket.answer(1).await, Err("stale_run".to_owned()), "and the socket goes on");
}

#[tokio::test]
async fn log_lines_of_a_run_that_a_worker_only_says_it_holds_are_not_kept() {
    let broker = TestBroker::start().await;
    let job = broker.submit("q", json!({ "image": "a", "command": "b" })).await;
    let mut owner = broker.worker("q", "owner", 1).await;
    let (run, _) = owner.claim().await;
    let mut thief = broker.socket("/q/q/worker", Encoding::MessagePack).await;
    let forged = LogLine { text: "forged\n".to_owned(), at_ms: UnixMillis(1), stderr: false };
    // All at once: the lines are there before the broker has said what it thinks of the claim.
    for message in [
        hello(|worker| worker.holds = vec![run]),
        ToBroker::RunLogs { run, step: LogStep::Run, first: 0, lines: vec![forged] },
        ToBroker::HandBack { req: 1, run, why: "test".to_owned(), busy: false },
    ] {
        thief.stream.feed(Message::binary(Encoding::MessagePack.encode(&message))).await.unwrap();
    }
    thief.stream.flush().await.unwrap();
    assert_eq!(thief.answer(1).await, Err("stale_run".to_owned()));
    let (_, log) = broker.get_json(&format!("/q/q/j/{job}/run-logs.json")).await;
    assert_eq!(log["data"], json!([]));
    let own = LogLine { text: "own\n".to_owned(), at_ms: UnixMillis(1), stderr: false };
    owner.logs(run, LogStep::Run, 0, vec![own]).await;
    owner.finish(run, json!({ "StatusCode": 0 })).await;
    let (_, log) = broker.get_json(&format!("/q/q/j/{job}/run-logs.json")).await;
    assert_eq!(log["data"][0][0], "own\n");
}

#[tokio::test]
async fn a_result_from_someone_who_has_no_such_run_takes_no_room() {
    const BYTES: usize = 4_000_000;
    let broker = TestBroker::start().await;
    let job = broker.submit("q", json!({ "image": "a", "command": "b" })).await;
    let run = HeldRun { job, run: 1 };
    let mut worker = broker.worker("q", "thief", 1).await;
    let before = bytes_below(broker.path());
    for number in 0..3 {
        let result = json!({ "error": format!("{number}{}", "x".repeat(BYTES)) });
        assert_eq!(worker.end(run, RunOutcome::Success, result).await, Err("stale_run".to_owned()));
    }
    let mut client = broker.client("q").await;
    let finished = protocol::raw::RawJson::new(json!("y".repeat(BYTES)).to_string());
    let outcome = RunOutcome::Success;
    let run = protocol::native::FinishedRun {
        job,
        run: 1,
        outcome,
        exit_code: None,
        image: None,
        duration_ms: None,
        finished,
    };
    client.send(&ToBroker::Finish { req: 1, run }).await;
    assert_eq!(client.answer(1).await, Err("not_a_worker".to_owned()));
    assert!(bytes_below(broker.path()) < before + BYTES as u64);
}

#[tokio::test]
async fn a_worker_that_claims_all_there_is_gets_it_in_pieces_it_can_take() {
    const JOBS: u64 = 2_500;
    let broker = TestBroker::start().await;
    let mut client = broker.client("q").await;
    for number in 0..JOBS {
        client.submit(number, &json!({ "image": "a", "command": number.to_string() }).to_string()).await;
        // So that neither end's line is ever full.
        if number % 500 == 499 {
            client.answer(number).await.unwrap();
        }
    }
    let mut worker = broker.socket("/q/q/worker", Encoding::MessagePack).await;
    worker.send(&hello(|_| {})).await;
    worker.send(&ToBroker::Claim { free: ALL_THERE_IS, grants_seen: 0, req: None }).await;
    for seen in 1..=JOBS {
        worker.expect("a grant", |message| matches!(message, FromBroker::Granted { .. }).then_some(())).await;
        if seen % 100 == 0 {
            worker.send(&ToBroker::Claim { free: ALL_THERE_IS, grants_seen: seen, req: None }).await;
        }
    }
    let metrics = broker.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains(&format!("gridsocket_claims_total {JOBS}\n")), "{metrics}");
}

#[tokio::test]
async fn large_definitions_that_come_from_disk_all_arrive() {
    const JOBS: u32 = 12;
    let broker = TestBroker::start().await;
    for number in 0..JOBS {
        broker.submit("q", json!({ "image": "a", "command": format!("{number}{}", "x".repeat(200_000)) })).await;
    }
    let mut worker = broker.socket("/q/q/worker", Encoding::MessagePack).await;
    worker.send(&hello(|_| {})).await;
    worker.send(&ToBroker::Claim { free: ALL_THERE_IS, grants_seen: 0, req: None }).await;
    for _ in 0..JOBS {
        let bytes = worker
            .expect("a grant", |message| match message {
                FromBroker::Granted { definition, .. } => Some(definition.as_str().len()),
                _ => None,
            })
            .await;
        assert!(bytes > 200_000);
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_its_answers_holds_up_nobody_and_loses_none() {
    const SUBMITS: u64 = 5_000;
    let broker = TestBroker::start().await;
    let (mut sink, mut stream) = broker.client("q").await.stream.split();
    let sending = tokio::spawn(async move {
        for req in 0..SUBMITS {
            let definition = json!({ "image": "a", "command": format!("{req}{}", "x".repeat(200)) }).to_string();
            let job = protocol::native::Submission {
                id: None,
                definition: protocol::raw::RawJson::new(definition),
                namespace: None,
                priority: 0,
                debug: false,
                retry: false,
                callbacks: protocol::native::Callbacks::default(),
            };
            let frame = Encoding::MessagePack.encode(&ToBroker::Submit { req, job });
            sink.send(Message::binary(frame)).await.unwrap();
        }
        sink
    });
    until("the broker to have taken some", || async {
        broker.get_json("/q/q").await.1["data"].as_object().unwrap().len() > 100
    })
    .await;
    broker.submit("q", json!({ "image": "other" })).await;
    let mut answered = 0;
    while answered < SUBMITS {
        if let Some(Ok(Message::Binary(frame))) = within("an answer", stream.next()).await
            && let Ok(FromBroker::Ok { .. }) = Encoding::MessagePack.decode(&frame)
        {
            answered += 1;
        }
    }
    drop(within("the sender", sending).await.unwrap());
}

#[tokio::test]
async fn a_page_whose_name_was_made_to_point_at_a_local_broker_is_turned_away() {
    let broker = TestBroker::local().await;
    for (host, status) in [("evil.example:8000", "421"), ("localhost:8000", "200"), ("127.0.0.1", "200")] {
        let answer = raw(&broker, &format!("GET /q/local HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{host}: {answer}");
    }
}

#[tokio::test]
async fn the_page_writes_what_strangers_wrote_as_text_only() {
    let broker = TestBroker::start().await;
    let response = broker.get("/").await;
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'"), "{policy}");
    let page = response.text().await.unwrap();
    for unsafe_way in
        ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "srcdoc", "javascript:"]
    {
        assert!(!page.contains(unsafe_way), "{unsafe_way}");
    }
}
