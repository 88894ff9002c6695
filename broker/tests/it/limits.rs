//! One over each limit of requests and connections: it is told, and nothing else is disturbed.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{TestBroker, until, within};

/// A broker behind a proxy on this machine, so that tests can come from anywhere.
async fn behind_a_proxy(change: impl FnOnce(&mut broker::config::Limits)) -> TestBroker {
    TestBroker::start_with(|config| {
        config.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
        change(&mut config.limits);
    })
    .await
}

async fn ask_as(broker: &TestBroker, client: &str) -> reqwest::Response {
    let request = broker.http.get(broker.url("/healthz")).header("x-forwarded-for", client);
    within("an answer", request.send()).await.unwrap()
}

#[tokio::test]
async fn an_address_that_asks_too_often_is_told_to_wait_and_others_are_not() {
    let broker = behind_a_proxy(|limits| limits.requests_per_address_max = 1).await;
    let mut refused = None;
    // Five at once are taken; were each to take over a second, so would all.
    for _ in 0..100 {
        let answer = ask_as(&broker, "203.0.113.9").await;
        if answer.status() != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.unwrap();
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    assert_eq!(refused.headers()["access-control-allow-origin"], "*", "pages can read it, too");
    let told: Value = serde_json::from_str(&refused.text().await.unwrap()).unwrap();
    assert_eq!(told["code"], "too_many_requests");
    assert!(told["error"].as_str().unwrap().contains("more than 1 request"), "{told}");
    assert_eq!(
        ask_as(&broker, "203.0.113.9, 203.0.113.10").await.status(),
        200,
        "what a client makes up is not believed"
    );
    for _ in 0..20 {
        assert_eq!(broker.get("/healthz").await.status(), 200, "this machine has no limit");
    }
}

#[tokio::test]
async fn an_address_that_only_says_where_it_comes_from_is_not_believed() {
    let broker = TestBroker::start_with(|config| config.limits.requests_per_address_max = 1).await;
    for _ in 0..20 {
        assert_eq!(ask_as(&broker, "203.0.113.9").await.status(), 200);
    }
}

#[tokio::test]
async fn whoever_is_forwarded_as_this_machine_is_not_taken_for_it() {
    let broker = behind_a_proxy(|limits| limits.requests_per_address_max = 1).await;
    let mut answered = Vec::new();
    while answered.len() < 100 && answered.last() != Some(&429) {
        answered.push(ask_as(&broker, "127.0.0.1").await.status().as_u16());
    }
    assert_eq!(answered.last(), Some(&429));
}

/// A websocket's handshake from an address; the connection and the first line of the answer.
async fn handshake(broker: &TestBroker, client: &str) -> (TcpStream, String) {
    let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
    let request = format!(
        "GET /q/abc/client HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\nSec-WebSocket-Protocol: gridsocket.v1\r\nX-Forwarded-For: {client}\r\n\r\n"
    );
    peer.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    within("the answer", peer.read_exact(&mut answer)).await.unwrap();
    (peer, String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn one_socket_too_many_of_an_address_is_refused_until_another_ends() {
    let broker = behind_a_proxy(|limits| limits.sockets_per_address_max = 2).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let (peer, answer) = handshake(&broker, "2001:db8::1").await;
        assert_eq!(answer, "HTTP/1.1 101");
        held.push(peer);
    }
    assert_eq!(handshake(&broker, "2001:db8::2").await.1, "HTTP/1.1 429", "the network counts, not the address");
    assert_eq!(handshake(&broker, "2001:db8:0:1::1").await.1, "HTTP/1.1 101");
    held.pop();
    until("a free place", || async { handshake(&broker, "2001:db8::2").await.1 == "HTTP/1.1 101" }).await;
}

#[tokio::test]
async fn event_streams_count_as_sockets() {
    let broker = behind_a_proxy(|limits| limits.sockets_per_address_max = 2).await;
    let job = broker.submit("abc", json!({ "image": "x" })).await;
    let follow = async || {
        let stream = broker.http.get(broker.url(&format!("/q/abc/j/{job}/stream")));
        within("a stream", stream.header("x-forwarded-for", "203.0.113.9").send()).await.unwrap()
    };
    let (one, two) = (follow().await, handshake(&broker, "203.0.113.9").await);
    assert_eq!((one.status().as_u16(), two.1.as_str()), (200, "HTTP/1.1 101"));
    let refused = follow().await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    assert!(refused.text().await.unwrap().contains("too_many_sockets"));
    assert_eq!(handshake(&broker, "203.0.113.9").await.1, "HTTP/1.1 429");
    drop(one);
    until("a free place", || async { handshake(&broker, "203.0.113.9").await.1 == "HTTP/1.1 101" }).await;
}

fn submission(bytes: usize) -> String {
    json!({ "definition": { "image": "x".repeat(bytes) } }).to_string()
}

/// Sends most of a request and leaves it so.
async fn send_most(broker: &TestBroker, head: &str, length: usize, sent: usize) -> TcpStream {
    let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
    peer.write_all(format!("{head} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n").as_bytes()).await.unwrap();
    peer.write_all(&vec![b' '; sent]).await.unwrap();
    peer
}

/// Lets a request that is under way and one that is sent meanwhile compete until the first has the room.
async fn taken(broker: &TestBroker, head: &str, length: usize, sent: usize, other: impl AsyncFn() -> u16) -> TcpStream {
    within("the room to be taken", async {
        loop {
            let slow = send_most(broker, head, length, sent).await;
            for _ in 0..20 {
                match other().await {
                    503 => return slow,
                    // It was first, or it was so fast that it took all and the slow one was refused.
                    status => assert_eq!(status, 200),
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn bodies_that_are_under_way_have_room_together_only_up_to_the_limit() {
    const BYTES: usize = 300_000;
    let broker = TestBroker::start_with(|config| config.limits.bodies_bytes_max = 500_000).await;
    let other = async || broker.post("/q/abc", submission(BYTES)).await.0;
    assert_eq!(other().await, 200);
    let slow = taken(&broker, "POST /q/abc", BYTES, BYTES - 1, other).await;
    let (status, told) = broker.post("/q/abc", submission(BYTES + 1)).await;
    assert_eq!((status, &told["code"]), (503, &json!("bodies_full")));
    assert!(told["error"].as_str().unwrap().contains("500000"), "{told}");
    assert_eq!(broker.post("/q/abc", submission(100)).await.0, 200, "small ones need none");
    drop(slow);
    until("the room to be free", async || other().await == 200).await;
}

#[tokio::test]
async fn a_line_of_a_bulk_that_comes_in_pieces_needs_room_until_it_is_whole() {
    let broker = TestBroker::start_with(|config| config.limits.bodies_bytes_max = 500_000).await;
    let bulk = async |bytes: usize, lines: usize| {
        let body = format!("{}\n", submission(bytes)).repeat(lines);
        let answer = within("a bulk", broker.http.post(broker.url("/q/abc/bulk")).body(body).send()).await.unwrap();
        within("its answers", answer.text()).await.unwrap()
    };
    assert!(bulk(400_000, 3).await.ends_with("}\n"), "each has its room in turn");
    assert!(bulk(400_000, 3).await.contains("\"queued\":3"));
    assert!(bulk(600_000, 1).await.contains("bodies_full"));
    assert!(bulk(400_000, 1).await.contains("\"queued\":1"), "and it was given back");
}

#[tokio::test]
async fn uploads_that_are_under_way_have_room_together_only_up_to_the_limit() {
    let broker = TestBroker::start_with(|config| config.limits.bodies_bytes_max = 1_500_000).await;
    // The same bytes again are no conflict.
    let other = async || broker.put("/f/other", vec![0; 1_000_000]).await.status().as_u16();
    let slow = taken(&broker, "PUT /f/slow", 9_000_000, 1_000_000, other).await;
    assert_eq!(broker.put("/f/small", "x").await.status(), 200);
    drop(slow);
    until("the room to be free", async || other().await == 200).await;
}

#[tokio::test]
async fn uploads_that_bring_nothing_take_no_room_from_others() {
    let broker = TestBroker::start_with(|config| config.limits.bodies_bytes_max = 1_500_000).await;
    let mut idle = Vec::new();
    for number in 0..5 {
        let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
        let head = format!(
            "PUT /f/idle{number} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9000000\r\n\r\n"
        );
        peer.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        within("the broker to wait for the body", peer.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 100");
        idle.push(peer);
    }
    assert_eq!(broker.put("/f/other", vec![0; 1_000_000]).await.status(), 200);
}

#[tokio::test]
async fn an_upload_gives_back_the_room_of_what_is_written() {
    let broker = TestBroker::start_with(|config| config.limits.bodies_bytes_max = 1_500_000).await;
    for key in ["one", "other"] {
        assert_eq!(broker.put(&format!("/f/{key}"), vec![0; 8 * 1024 * 1024]).await.status(), 200);
    }
}

#[tokio::test]
async fn a_peer_that_never_reads_its_answer_is_cut_off() {
    let broker = TestBroker::start_with(|config| {
        config.limits.unread_timeout = Duration::from_millis(50);
        config.limits.connections_max = 1;
    })
    .await;
    // More than both ends' buffers hold. Its connection must be over before the next one is let in.
    {
        let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        let put = client.put(broker.url("/f/large")).body(vec![7; 64 * 1024 * 1024]);
        assert_eq!(within("the upload", put.send()).await.unwrap().status(), 200);
    }
    let mut silent = within("a place", async {
        loop {
            let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
            peer.write_all(b"GET /f/large HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut head = [0; 12];
            if peer.read_exact(&mut head).await.is_ok() && &head == b"HTTP/1.1 200" {
                break peer;
            }
        }
    })
    .await;
    until("its place to be free", || async {
        let answer = reqwest::Client::builder().no_proxy().build().unwrap().get(broker.url("/healthz")).send().await;
        answer.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    let mut rest = Vec::new();
    let _ = within("the rest", silent.read_to_end(&mut rest)).await;
    assert!(rest.len() < 64 * 1024 * 1024, "it got all of it");
}

#[tokio::test]
async fn a_queue_takes_so_many_jobs_and_a_job_so_many_namespaces() {
    let broker = TestBroker::start_with(|config| {
        config.limits.queue.live_jobs_max = 2;
        config.limits.queue.namespaces_max = 2;
    })
    .await;
    for namespace in ["a", "b"] {
        broker.submit_as("abc", json!({ "image": "one" }), Some(namespace)).await;
    }
    let third = json!({ "definition": { "image": "one" }, "control": { "namespace": "c" } }).to_string();
    let (status, told) = broker.post("/q/abc", third).await;
    assert_eq!((status, &told["code"]), (413, &json!("namespaces_full")));
    assert!(told["error"].as_str().unwrap().contains('2'), "{told}");
    broker.submit("abc", json!({ "image": "two" })).await;
    let (status, told) = broker.post("/q/abc", json!({ "definition": { "image": "three" } }).to_string()).await;
    assert_eq!((status, &told["code"]), (429, &json!("queue_full")));
    assert!(told["error"].as_str().unwrap().contains('2'), "{told}");
    assert_eq!(broker.get_json("/q/abc").await.1["data"].as_object().unwrap().len(), 2);
}
