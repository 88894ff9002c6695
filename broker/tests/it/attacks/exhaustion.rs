//! Peers that try to fill the memory, the disk or the tables, with little of their own.

use std::time::Duration;

use futures_util::SinkExt;
use protocol::codec::Encoding;
use protocol::native::{FromBroker, ToBroker};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use super::peers::{Stranger, all_below, ask, raw_one};
use crate::support::{TestBroker, until, within};

/// The head of a masked frame, with a mask that changes nothing.
fn frame_head(first: u8, payload: usize) -> Vec<u8> {
    let length = match payload {
        0..126 => vec![0x80 | payload as u8],
        126..65_536 => [&[0x80 | 126][..], &(payload as u16).to_be_bytes()].concat(),
        _ => [&[0x80 | 127][..], &(payload as u64).to_be_bytes()].concat(),
    };
    [&[first][..], &length, &[0; 4]].concat()
}

const BINARY: u8 = 0x82;
const TEXT: u8 = 0x81;
const TEXT_BEGUN: u8 = 0x01;
const GOES_ON: u8 = 0x00;
const ENDS: u8 = 0x80;
const PING: u8 = 0x89;

/// A socket after its handshake, for bytes as they are.
async fn bare_socket(broker: &TestBroker, path: &str, extensions: &str) -> (TcpStream, String) {
    let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\n{extensions}\r\n"
    );
    peer.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    within("the handshake", async {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(peer.read_u8().await.unwrap());
        }
    })
    .await;
    (peer, String::from_utf8(head).unwrap().to_lowercase())
}

/// Whether the broker ends a connection, whatever it says before that.
async fn ends(peer: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let _ = within("the end", peer.read_to_end(&mut rest)).await;
    rest
}

#[tokio::test]
async fn messages_that_never_end_have_room_together_only_up_to_the_limit() {
    const BYTES: usize = 300_000;
    for path in ["/q/abc/client", "/q/abc/worker"] {
        let broker = TestBroker::start_with(|config| config.limits.bodies_bytes_max = 500_000).await;
        let other =
            async || broker.post("/q/abc", json!({ "definition": { "image": "x".repeat(BYTES) } }).to_string()).await.0;
        assert_eq!(other().await, 200);
        // One holds most of the room, in fragments and with pings in between, and does not end.
        let (mut holder, _) = bare_socket(&broker, path, "").await;
        holder.write_all(&frame_head(TEXT_BEGUN, BYTES)).await.unwrap();
        holder.write_all(&vec![b' '; BYTES]).await.unwrap();
        holder.write_all(&frame_head(PING, 0)).await.unwrap();
        holder.write_all(&frame_head(GOES_ON, 1)).await.unwrap();
        // The answer to the ping: all of it has come.
        let mut last = [0; 2];
        within("the pong", async {
            while last != [0x8a, 0] {
                last = [last[1], holder.read_u8().await.unwrap()];
            }
        })
        .await;
        assert_eq!(other().await, 503);
        let (mut second, _) = bare_socket(&broker, path, "").await;
        second.write_all(&frame_head(TEXT, BYTES)).await.unwrap();
        let _ = second.write_all(&vec![b' '; BYTES]).await;
        ends(&mut second).await;
        assert_eq!(broker.post("/q/abc", json!({ "definition": { "image": "small" } }).to_string()).await.0, 200);
        drop(holder);
        until("the room to be free", async || other().await == 200).await;
    }
}

#[tokio::test]
async fn whoever_finds_no_room_for_a_message_is_told_so() {
    let broker = TestBroker::start_with(|config| config.limits.bodies_bytes_max = 100_000).await;
    let submit = |bytes: usize| {
        json!({ "Submit": { "req": 1, "job": { "definition": { "image": "x".repeat(bytes) } } } }).to_string()
    };
    let mut native = super::peers::Native::connect(&broker, "/q/abc/client").await;
    native.stream.send(Message::text(submit(90_000))).await.unwrap();
    assert!(native.answer().await.is_ok());
    native.stream.send(Message::text(submit(110_000))).await.unwrap();
    assert_eq!(native.answer().await, Err("bodies_full".to_owned()));
    assert_eq!(native.answer().await, Err("closed".to_owned()));
}

#[tokio::test]
async fn a_message_in_a_hundred_thousand_fragments_is_one_message_and_endless_ones_end() {
    let broker = TestBroker::start().await;
    let (mut peer, _) = bare_socket(&broker, "/q/abc/client", "").await;
    let message = json!({ "type": "StateChange", "payload": { "tag": "", "state": "Queued", "job": "", "value": { "type": "Queued", "time": 1,
        "enqueued": { "definition": { "image": "x".repeat(100_000) }, "control": {} } } } })
    .to_string();
    let mut stream = Vec::new();
    for (number, byte) in message.bytes().enumerate() {
        let first = match number {
            0 => TEXT_BEGUN,
            _ if number + 1 == message.len() => ENDS,
            _ => GOES_ON,
        };
        stream.extend(frame_head(first, 1));
        stream.push(byte);
        // Empty ones are fragments, too.
        if number + 1 < message.len() && number % 7 == 0 {
            stream.extend(frame_head(GOES_ON, 0));
        }
    }
    within("the fragments", peer.write_all(&stream)).await.unwrap();
    until("the job", async || broker.get_json("/q/abc").await.1["data"].as_object().unwrap().len() == 1).await;

    // Fragment after fragment, and no end: over the limit of a message the socket is over.
    let mut flood = frame_head(TEXT_BEGUN, 0);
    for _ in 0..17 {
        flood.extend(frame_head(GOES_ON, 1024 * 1024));
        flood.extend(vec![b' '; 1024 * 1024]);
    }
    let (mut reading, mut writing) = peer.into_split();
    let writing = tokio::spawn(async move { writing.write_all(&flood).await });
    let mut rest = Vec::new();
    let _ = within("the end", reading.read_to_end(&mut rest)).await;
    let _ = within("the writer", writing).await;
    assert_eq!(ask(&broker, "GET", "/healthz", "").await.status, 200);
}

#[tokio::test]
async fn frames_that_are_none_end_their_socket_and_compression_is_not_spoken() {
    let broker = TestBroker::start().await;
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-webkit-deflate-frame\r\n";
    let (mut peer, head) = bare_socket(&broker, "/q/abc/client", offer).await;
    assert!(head.starts_with("http/1.1 101") && !head.contains("sec-websocket-extensions"), "{head}");
    peer.write_all(&[frame_head(TEXT, 4), b"PING".to_vec()].concat()).await.unwrap();
    let mut heard = Vec::new();
    within("the honest frame's answer", async {
        while !String::from_utf8_lossy(&heard).contains("PONG") {
            heard.push(peer.read_u8().await.unwrap());
        }
    })
    .await;
    // Ten kilobytes of this would be ten megabytes of text.
    let bomb = [frame_head(0xc1, 8), vec![0xec, 0xc1, 0x01, 0x01, 0, 0, 0, 0x80]].concat();
    let unmasked = vec![TEXT, 4, b'P', b'I', b'N', b'G'];
    let not_utf8 = [frame_head(TEXT, 2), vec![0xff, 0xfe]].concat();
    let reserved = frame_head(0x83, 0);
    let long_ping = [frame_head(PING, 200), vec![0; 200]].concat();
    let orphan = frame_head(ENDS, 0);
    let too_large = frame_head(BINARY, 16 * 1024 * 1024 + 1);
    let huge = [&[BINARY, 0xff][..], &u64::MAX.to_be_bytes(), &[0; 4]].concat();
    for (what, frame) in [
        ("compressed", bomb),
        ("unmasked", unmasked),
        ("not UTF-8", not_utf8),
        ("reserved", reserved),
        ("a long ping", long_ping),
        ("no beginning", orphan),
        ("too large", too_large),
        ("huge", huge),
    ] {
        let (mut peer, _) = bare_socket(&broker, "/q/abc/client", "").await;
        peer.write_all(&frame).await.unwrap();
        let rest = ends(&mut peer).await;
        assert!(!String::from_utf8_lossy(&rest).contains("PONG"), "{what}");
    }
}

#[tokio::test]
async fn a_socket_that_never_says_hello_is_closed_though_it_pings() {
    // Time is what this is about, so it is the broker's own: ten seconds, with a ping each second.
    let broker = TestBroker::start().await;
    let (mut peer, _) = bare_socket(&broker, "/q/abc/client", "Sec-WebSocket-Protocol: gridsocket.v1\r\n").await;
    let (mut reading, mut writing) = peer.split();
    let pinging = async {
        loop {
            let _ = writing.write_all(&frame_head(PING, 0)).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let mut rest = Vec::new();
    within("the end", async {
        tokio::select! {
            _ = reading.read_to_end(&mut rest) => {}
            () = pinging => {}
        }
    })
    .await;
    assert!(String::from_utf8_lossy(&rest).contains("hello_expected"));
    let honest = broker.client("abc").await;
    drop(honest);
}

#[tokio::test]
async fn answers_that_nobody_reads_have_room_together_only_up_to_the_limit() {
    const BYTES: usize = 8 * 1024 * 1024;
    let broker =
        TestBroker::start_with(|config| config.limits.answers_bytes_max = 2 * BYTES as u64 + BYTES as u64 / 2).await;
    let job = broker.submit("abc", json!({ "image": "a", "filler": "x".repeat(BYTES) })).await;
    let path = format!("/q/abc/j/{job}/definition.json");
    let mut silent = Vec::new();
    for _ in 0..2 {
        let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
        peer.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut head = [0; 12];
        within("the head", peer.read_exact(&mut head)).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        silent.push(peer);
    }
    let (status, told) = broker.get_json(&path).await;
    assert_eq!((status, &told["code"]), (503, &json!("answers_full")));
    assert!(told["error"].as_str().unwrap().contains(&(2 * BYTES + BYTES / 2).to_string()), "{told}");
    assert_eq!(broker.get_json("/q/abc").await.0, 200, "small ones need none");
    drop(silent.pop());
    until("the room to be free", async || broker.get(&path).await.status() == 200).await;
    // One that is read gives its room back.
    for _ in 0..5 {
        assert_eq!(broker.get_json(&path).await.1["data"]["filler"].as_str().unwrap().len(), BYTES);
    }
}

#[tokio::test]
async fn ten_thousand_made_up_queues_leave_nothing() {
    const QUEUES: usize = 10_000;
    let broker = TestBroker::start().await;
    let _kept = broker.submit("honest", json!({ "image": "a" })).await;
    let stored = |broker: &TestBroker| all_below(&broker.config.data).len();
    let before = stored(&broker);
    let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
    // Many at a time, on one connection; each is touched as a reader and as one who cancels.
    for start in (0..QUEUES).step_by(250) {
        let mut requests = String::new();
        for number in start..start + 250 {
            let rest = ["", "/status", "/metrics", "/j/0/cancel"][number % 4];
            let method = if rest.ends_with("cancel") { "POST" } else { "GET" };
            requests += &format!("{method} /q/made-up-{number}{rest} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        }
        peer.write_all(requests.as_bytes()).await.unwrap();
        let (mut heads, mut piece, mut tail) = (0, vec![0; 65_536], Vec::new());
        within("the answers", async {
            while heads < 250 {
                let bytes = peer.read(&mut piece).await.unwrap();
                assert!(bytes > 0);
                tail.extend_from_slice(&piece[..bytes]);
                heads += String::from_utf8_lossy(&tail).matches("HTTP/1.1 ").count();
                let keep = tail.len().saturating_sub(8);
                heads -= String::from_utf8_lossy(&tail[keep..]).matches("HTTP/1.1 ").count();
                tail.drain(..keep);
            }
        })
        .await;
    }
    until("no more live queues than that one", async || {
        let metrics = broker.get("/metrics").await.text().await.unwrap();
        let live = metrics.lines().find_map(|line| line.strip_prefix("gridsocket_live_queues ")).unwrap();
        live.parse::<u32>().unwrap() <= 1
    })
    .await;
    assert_eq!(stored(&broker), before);
    assert_eq!(broker.get_json("/q/honest").await.1["data"].as_object().unwrap().len(), 1);
}

#[tokio::test]
async fn what_workers_say_of_themselves_is_bounded_in_sum() {
    const WORKERS: usize = 8;
    let broker = TestBroker::start().await;
    let mut workers = Vec::new();
    for number in 0..WORKERS {
        workers.push(Stranger::worker(&broker, "abc", &format!("worker-{number}")).await);
    }
    let answers: Vec<_> = workers
        .into_iter()
        .enumerate()
        .map(|(number, mut worker)| {
            tokio::spawn(async move {
                worker.until("the question", |text| text.contains("StatusRequest")).await;
                // One is short and honest; the others send as much as is taken of one.
                let filler = if number == 0 { "honest".to_owned() } else { "x".repeat(1_000_000) };
                worker.say(json!({ "type": "WorkerStatusResponse", "payload": { "id": worker_name(number), "filler": filler } })).await;
                worker
            })
        })
        .collect();
    let text = broker.get("/q/abc/status").await.text().await.unwrap();
    for answer in answers {
        answer.await.unwrap();
    }
    let status: Value = serde_json::from_str(&text).unwrap();
    assert!(text.len() < 6_000_000, "{} bytes", text.len());
    let said = status["localWorkers"].as_object().unwrap();
    assert_eq!(said.len(), WORKERS, "all of them are there");
    let verbose = said.values().filter(|worker| worker["filler"].is_string()).count();
    assert!((1..WORKERS).contains(&verbose), "those that fit say so themselves: {verbose}");
    assert!(said.values().all(|worker| worker["id"].is_string()));
}

fn worker_name(number: usize) -> String {
    format!("worker-{number}")
}

#[tokio::test]
async fn messages_become_no_larger_in_what_others_are_told() {
    let broker = TestBroker::start().await;
    let mut page = Stranger::connect(&broker, "/q/abc/client").await;
    let job = broker.submit("abc", json!({ "image": "a" })).await.to_string();
    let mut watcher = broker.client("abc").await;
    page.change(
        &job,
        "Finished",
        json!({ "type": "Finished", "reason": "Cancelled", "time": 1, "message": "x".repeat(1_000_000) }),
    )
    .await;
    let bytes = watcher
        .expect("the cancel", |message| match message {
            FromBroker::Events { records, .. } => Some(records.iter().map(|record| record.0.len()).sum::<usize>()),
            _ => None,
        })
        .await;
    assert!(bytes < 20_000, "{bytes}");
    until("the cancel", async || broker.get_json("/q/abc").await.1["data"] == json!({})).await;
}

#[tokio::test]
async fn lists_in_one_request_are_bounded() {
    let broker = TestBroker::start().await;
    let ids = |count: usize| (0..count).map(|number| format!("{number:064x}").parse().unwrap()).collect::<Vec<_>>();
    let mut client = broker.client("abc").await;
    for (count, is_taken) in [(256, true), (257, false)] {
        client.send(&ToBroker::GetDefinitions { req: count as u64, jobs: ids(count) }).await;
        let taken = client
            .expect("an answer", |message| match message {
                FromBroker::Definitions { is_final: true, .. } => Some(Ok(())),
                FromBroker::Rejected { code, message, .. } => Some(Err((code, message))),
                _ => None,
            })
            .await;
        assert_eq!(taken.is_ok(), is_taken, "{count}: {taken:?}");
        if let Err((code, message)) = taken {
            assert_eq!(code, "too_many_definitions");
            assert!(message.contains("256"), "{message}");
        }
    }
    // The original's kind asks for more than it gets, and is answered for the first ones.
    let job = broker.submit("abc", json!({ "image": "a" })).await.to_string();
    let mut worker = Stranger::worker(&broker, "abc", "worker-1").await;
    let mut asked = vec![job.clone()];
    asked.extend(std::iter::repeat_n("0".repeat(64), 100_000));
    worker.say(json!({ "type": "RequestJobDefinitions", "payload": { "jobIds": asked } })).await;
    assert!(worker.until("the definition", |text| text.contains("BroadcastJobDefinitions")).await.contains(&job));
    worker.settle().await;
}

#[tokio::test]
async fn a_request_line_or_a_header_without_end_is_refused() {
    let broker = TestBroker::start().await;
    let long = "x".repeat(300_000);
    for request in [
        format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: x\r\nCookie: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(1_000)),
    ] {
        let answer = raw_one(&broker, &request).await;
        assert!(matches!(answer.status, 0 | 400 | 414 | 431), "{}: {}", answer.status, &request[..40]);
    }
    assert_eq!(
        raw_one(&broker, "GET /healthz HTTP/1.1\r\nHost: x\r\nX: y\r\nConnection: close\r\n\r\n").await.status,
        200
    );
}

/// Says, before it says who it is, that it runs those jobs; each with so many bytes that say nothing.
async fn say_early(broker: &TestBroker, jobs: &[String], bytes: usize, id: &str) -> Stranger {
    let mut worker = Stranger::connect(broker, "/q/abc/worker").await;
    for job in jobs {
        worker
            .change(job, "Running", json!({ "type": "Running", "worker": id, "time": 1, "filler": "x".repeat(bytes) }))
            .await;
    }
    assert_eq!(worker.settle().await, "PONG unknown");
    worker
}

async fn register(worker: &mut Stranger, id: &str) {
    let registration = json!({ "time": 7, "version": "1", "id": id, "cpus": 2, "gpus": 0, "maxJobDuration": "5m" });
    worker.say(json!({ "type": "WorkerRegistration", "payload": registration })).await;
    let expected = format!("PONG {id}");
    within("the registration", async { while worker.settle().await != expected {} }).await;
}

#[tokio::test]
async fn early_frames_of_workers_that_never_register_are_bounded() {
    // A worker may send what it gathered before it says who it is. Whoever never says it takes only so much room, and all of
    // them together.
    const FRAME: usize = 1_000_000;
    let broker = TestBroker::start().await;
    let mut jobs = Vec::new();
    for number in 0..6 {
        jobs.push(broker.submit("abc", json!({ "image": number.to_string() })).await.to_string());
    }
    let running = async || {
        let listed = broker.get_json("/q/abc").await.1["data"].take();
        let jobs = listed.as_object().unwrap().values();
        jobs.filter(|job| job["state"] == "Running")
            .map(|job| job["worker"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let mut silent = Vec::new();
    for _ in 0..17 {
        silent.push(say_early(&broker, &jobs, FRAME, "silent").await);
    }
    let mut late = say_early(&broker, &jobs[5..], FRAME, "late").await;
    register(&mut late, "late").await;
    assert_eq!(running().await, Vec::<String>::new(), "there was no room for it");
    // One of those that took it says who it is: what was kept of it counts, and the rest was passed over.
    register(&mut silent[0], "silent").await;
    assert_eq!(running().await, ["silent"; 4]);
    drop(silent);
    until("the room to be free", async || {
        let mut worker = say_early(&broker, &jobs[5..], FRAME, "honest").await;
        register(&mut worker, "honest").await;
        running().await.contains(&"honest".to_owned())
    })
    .await;
}

#[tokio::test]
async fn whoever_does_not_read_its_answers_is_not_answered_for_ever() {
    let broker = TestBroker::start_with(|config| config.limits.unread_timeout = Duration::from_millis(200)).await;
    for number in 0..300 {
        broker.submit("abc", json!({ "image": number.to_string() })).await;
    }
    let (mut peer, _) = bare_socket(&broker, "/q/abc/client", "").await;
    // Each is answered with all jobs.
    let question = br#"{"type":"QueryJobStates"}"#;
    let questions = [frame_head(TEXT, question.len()), question.to_vec()].concat().repeat(100);
    within("the flood to be cut", async { while peer.write_all(&questions).await.is_ok() {} }).await;
    let mut honest = Stranger::connect(&broker, "/q/abc/client").await;
    assert_eq!(honest.settle().await, "PONG");
}

#[tokio::test]
async fn a_bulk_that_is_one_long_line_is_refused_at_the_limit() {
    let broker = TestBroker::start_with(|config| config.limits.body_bytes_max = 10_000).await;
    let line = |bytes: usize| json!({ "definition": { "image": "x".repeat(bytes) } }).to_string();
    let bulk = async |body: String| {
        let sent = broker.http.post(broker.url("/q/abc/bulk")).body(body).send();
        within("a bulk", sent).await.unwrap().text().await.unwrap()
    };
    assert!(bulk(format!("{}\n", line(9_000))).await.contains("\"queued\":1"));
    let told = bulk(format!("{}\n", line(20_000))).await;
    assert!(told.contains("line_too_long") && told.contains("10000") && told.contains("PUT /f/"), "{told}");
    let mut socket = broker.client("abc").await;
    socket.stream.send(Message::binary(Encoding::MessagePack.encode(&"not a message"))).await.unwrap();
    assert!(socket.next().await.is_some());
}
