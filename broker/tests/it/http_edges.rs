//! Bad input, limits, origins, and sockets: each gets a clear answer, and the broker goes on.

use std::time::Duration;

use broker::config::Config;
use futures_util::StreamExt;
use protocol::codec::{Encoding, FRAME_BYTES_MAX};
use protocol::native::{FromBroker, Hello, ToBroker};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::support::{TestBroker, json_of, until, within};

const ECHO: &str = "84696046848ef38f50a2f6182fc7674eaee3d1fac23fe57466d6cb5f771794e4";

#[tokio::test]
async fn a_bad_submission_is_told_what_is_wrong() {
    let broker = TestBroker::start().await;
    let deep = format!(r#"{{"definition":{{"image":{}1{}}}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let cases: &[(&[u8], u16, &str)] = &[
        (b"", 400, "not_json"),
        (b"{", 400, "not_json"),
        (b"{} {}", 400, "not_json"),
        (b"hello", 400, "not_json"),
        (b"null", 400, "not_an_object"),
        (b"[{}]", 400, "not_an_object"),
        (b"\"text\"", 400, "not_an_object"),
        (b"{\"definition\":{\"image\":\"\xff\"}}", 400, "not_utf8"),
        (b"{}", 400, "no_definition"),
        (br#"{"id":"","definition":null}"#, 400, "no_definition"),
        (br#"{"definition":"text"}"#, 400, "bad_definition"),
        (br#"{"definition":[]}"#, 400, "bad_definition"),
        (deep.as_bytes(), 400, "bad_definition"),
        (br#"{"id":"../../etc/passwd","definition":{}}"#, 400, "bad_job_id"),
        (br#"{"id":7,"definition":{}}"#, 400, "bad_job_id"),
        (
            br#"{"id":"84696046848EF38F50A2F6182FC7674EAEE3D1FAC23FE57466D6CB5F771794E4","definition":{}}"#,
            400,
            "bad_job_id",
        ),
        (
            br#"{"id":"84696046848ef38f50a2f6182fc7674eaee3d1fac23fe57466d6cb5f771794e4","definition":{}}"#,
            400,
            "id_mismatch",
        ),
        (br#"{"definition":{"inputs":{"../x":{"value":"y"}}}}"#, 400, "bad_file_name"),
        (br#"{"definition":{"configFiles":{"/a/../b":{"value":"y"}}}}"#, 400, "bad_file_name"),
        (br#"{"definition":{},"control":"x"}"#, 400, "bad_control"),
        (br#"{"definition":{},"control":{"namespace":7}}"#, 400, "bad_namespace"),
        (br#"{"definition":{},"control":{"namespace":"a\nb"}}"#, 400, "bad_namespace"),
        (br#"{"definition":{},"control":{"namespace":"\ud800"}}"#, 400, "bad_namespace"),
    ];
    for (body, status, code) in cases {
        let (found, told) = broker.post("/q/abc", body.to_vec()).await;
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]);
        assert_eq!((found, &told["code"]), (*status, &json!(code)), "{shown}: {told}");
        assert!(told["error"].as_str().is_some_and(|text| !text.is_empty()));
    }
    assert_eq!(broker.get_json("/q/abc").await, (200, json!({ "data": {} })), "nothing was queued");
}

#[tokio::test]
async fn what_may_be_missing_or_odd_in_a_submission_is_taken() {
    let broker = TestBroker::start().await;
    for body in [
        r#"{"definition":{}}"#,
        r#"{"id":null,"definition":{},"control":null,"debug":null}"#,
        r#"{"id":"","definition":{},"control":{},"debug":0}"#,
        r#"{"definition":{},"control":{"namespace":null,"callbacks":{"queued":{"url":"https://hooks.example/q","payload":1e999},"later":7}}}"#,
        r#"{"definition":{},"type":"unknown","payload":"\ud800"}"#,
    ] {
        let (status, told) = broker.post("/q/abc", body).await;
        assert_eq!(status, 200, "{body}: {told}");
    }
    assert_eq!(broker.get_json("/q/abc").await.1["data"].as_object().unwrap().len(), 1, "all five are the same job");
}

#[tokio::test]
async fn bad_names_in_addresses_are_refused() {
    let broker = TestBroker::start().await;
    let long = "x".repeat(257);
    for name in ["a%2Fb", "a%0Ab", "%ff", &long] {
        let (status, told) = broker.get_json(&format!("/q/{name}")).await;
        assert_eq!(status, 400, "{name}: {told}");
        let (status, _) = broker.post(&format!("/q/{name}"), r#"{"definition":{}}"#).await;
        assert_eq!(status, 400, "{name}");
    }
    assert_eq!(broker.get_json(&format!("/q/{}", "x".repeat(256))).await.0, 200);
    for id in ["x", "..%2F..%2Fetc", &ECHO.to_uppercase(), &ECHO[1..]] {
        for rest in ["", "/definition.json", "/result.json", "/inputs/a", "/run-logs.json"] {
            let (status, told) = broker.get_json(&format!("/q/abc/j/{id}{rest}")).await;
            assert_eq!((status, &told["code"]), (400, &json!("bad_job_id")), "{id}{rest}");
        }
        assert_eq!(broker.post(&format!("/q/abc/j/{id}/cancel"), "").await.0, 400);
    }
}

#[tokio::test]
async fn a_body_of_the_limit_is_taken_and_one_byte_more_is_not() {
    let limit = 1000;
    let broker = TestBroker::start_with(|config| config.limits.body_bytes_max = limit).await;
    let body = |bytes: usize| {
        let frame = r#"{"definition":{"image":""}}"#;
        frame.replace("\"\"", &format!("\"{}\"", "x".repeat(bytes - frame.len())))
    };
    assert_eq!(broker.post("/q/abc", body(limit)).await.0, 200);
    let (status, told) = broker.post("/q/abc", body(limit + 1)).await;
    assert_eq!((status, &told["code"]), (413, &json!("body_too_large")));
    assert!(told["error"].as_str().unwrap().contains("1000"));
    let text = body(limit + 1).into_bytes();
    let pieces: Vec<_> = text.chunks(100).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    let unsized_body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    assert_eq!(broker.post("/q/abc", unsized_body).await.0, 413);
}

#[tokio::test]
async fn the_default_body_limit_is_told_to_whoever_sends_more() {
    let broker = TestBroker::start().await;
    let bytes = Config::new("unused").limits.body_bytes_max + 1;
    let (status, told) = broker.post("/q/abc", vec![b' '; bytes]).await;
    assert_eq!((status, &told["code"]), (413, &json!("body_too_large")));
}

#[tokio::test]
async fn requests_that_never_end_are_ended() {
    let broker = TestBroker::start_with(|config| {
        config.limits.header_timeout = Duration::from_millis(50);
        config.limits.body_idle_timeout = Duration::from_millis(50);
    })
    .await;
    for (sent, expected) in [
        ("GET /q/abc HTTP/1.1\r\nHost: x\r\n", ""),
        ("POST /q/abc HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{", "HTTP/1.1 408"),
    ] {
        let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
        peer.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // Closed in order or cut: both end it.
        let _ = within("the end", peer.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(expected), "{answer}");
    }
}

#[tokio::test]
async fn headers_beyond_reason_are_refused() {
    let broker = TestBroker::start().await;
    let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(200_000));
    // The broker may close before all of it is written.
    let _ = peer.write_all(head.as_bytes()).await;
    let mut answer = [0; 12];
    if within("the answer", peer.read_exact(&mut answer)).await.is_ok() {
        assert_eq!(&answer, b"HTTP/1.1 431");
    }
    assert_eq!(broker.get("/healthz").await.status(), 200);
}

#[tokio::test]
async fn one_connection_over_the_limit_is_told_so() {
    let broker = TestBroker::start_with(|config| config.limits.connections_max = 2).await;
    let held: Vec<TcpStream> = {
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
            peer.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut answer = [0; 15];
            within("the answer", peer.read_exact(&mut answer)).await.unwrap();
            held.push(peer);
        }
        held
    };
    let mut over = TcpStream::connect(broker.handle.addr()).await.unwrap();
    let mut answer = String::new();
    within("the refusal", over.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
    let told: Value = serde_json::from_str(body).unwrap();
    assert_eq!(told["code"], "too_many_connections");
    drop(held);
    until("a free place", || async {
        broker.http.get(broker.url("/healthz")).send().await.is_ok_and(|response| response.status() == 200)
    })
    .await;
}

#[tokio::test]
async fn a_socket_holds_its_place_among_the_connections() {
    let broker = TestBroker::start_with(|config| config.limits.connections_max = 1).await;
    let socket = broker.client("abc").await;
    let mut over = TcpStream::connect(broker.handle.addr()).await.unwrap();
    let mut answer = String::new();
    within("the refusal", over.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    drop(socket);
    until("a free place", || async {
        broker.http.get(broker.url("/healthz")).send().await.is_ok_and(|response| response.status() == 200)
    })
    .await;
}

#[tokio::test]
async fn a_remote_broker_lets_every_page_in() {
    let broker = TestBroker::start().await;
    let with_origin = broker.http.get(broker.url("/q/abc")).header("origin", "https://any.example");
    for response in [broker.get("/healthz").await, broker.get("/nothing").await, with_origin.send().await.unwrap()] {
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
    }
    let preflight = broker.http.request(reqwest::Method::OPTIONS, broker.url("/f/any/where"));
    let response = preflight.header("access-control-request-headers", "content-type,x-y").send().await.unwrap();
    assert_eq!(response.status(), 204);
    let headers = response.headers();
    assert_eq!(headers["access-control-allow-origin"], "*");
    assert_eq!(headers["access-control-allow-methods"], "GET,HEAD,PUT,POST,DELETE,PATCH");
    assert_eq!(headers["access-control-allow-headers"], "content-type,x-y");
    assert_eq!(headers["vary"], "Access-Control-Request-Headers");
}

#[tokio::test]
async fn a_local_broker_lets_in_only_pages_it_knows() {
    let broker = TestBroker::local().await;
    let post = async |origin: Option<&str>| {
        let mut request = broker.http.post(broker.url("/q/local")).body(r#"{"definition":{}}"#);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        request.send().await.unwrap()
    };
    let own = broker.url("");
    for origin in [own.as_str(), "http://localhost:1234", "https://container.mtfm.io"] {
        let response = post(Some(origin)).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["access-control-allow-origin"], origin);
        assert_eq!(response.headers()["access-control-allow-credentials"], "true");
    }
    let from_no_page = post(None).await;
    assert_eq!(from_no_page.status(), 200);
    assert!(!from_no_page.headers().contains_key("access-control-allow-origin"));

    for origin in ["https://evil.example", "null"] {
        let refused = post(Some(origin)).await;
        assert_eq!(refused.status(), 403, "{origin}");
        assert!(!refused.headers().contains_key("access-control-allow-origin"));
        let read = broker.http.get(broker.url("/q/local")).header("origin", origin).send().await.unwrap();
        assert!(!read.headers().contains_key("access-control-allow-origin"));
        let put = broker.http.put(broker.url("/f/x")).header("origin", origin).body("y").send().await.unwrap();
        assert_eq!(put.status(), 403);
        let socket = broker.try_socket("/q/local/client", Some("gridsocket.v1"), Some(origin)).await;
        assert_eq!(refused_with(socket.err()), Some(403));
    }
    assert!(broker.try_socket("/q/local/client", Some("gridsocket.v1"), Some("http://localhost:1")).await.is_ok());
    let preflight = broker.http.request(reqwest::Method::OPTIONS, broker.url("/q/local"));
    let response = preflight.header("origin", "http://localhost:1").send().await.unwrap();
    assert_eq!(response.headers()["access-control-allow-methods"], "GET, HEAD, POST, PUT, OPTIONS");
    assert_eq!(response.headers()["access-control-allow-headers"], "*");
    assert_eq!(response.headers()["access-control-max-age"], "86400");
    for (origin, allowed) in [("https://container.mtfm.io", true), ("https://evil.example", false)] {
        let preflight = broker.http.request(reqwest::Method::OPTIONS, broker.url("/q/local")).header("origin", origin);
        let response = preflight.header("access-control-request-private-network", "true").send().await.unwrap();
        assert_eq!(response.headers().contains_key("access-control-allow-private-network"), allowed);
    }
}

#[tokio::test]
async fn whoever_a_local_broker_turns_away_is_told_what_can_be_done() {
    let broker = TestBroker::local().await;
    for (header, value, status, code) in
        [("host", "evil.example", 421, "host_not_known"), ("origin", "https://evil.example", 403, "origin_not_allowed")]
    {
        let request = broker.http.post(broker.url("/q/abc")).header(header, value).body("{}");
        let (found, told) = json_of(within("an answer", request.send()).await.unwrap()).await;
        assert_eq!((found, &told["code"]), (status, &json!(code)));
        let words = told["error"].as_str().unwrap();
        assert!(words.contains("`gridsocket serve`") && !words.contains("setting"), "{words}");
    }
}

fn refused_with(error: Option<tungstenite::Error>) -> Option<u16> {
    match error {
        Some(tungstenite::Error::Http(response)) => Some(response.status().as_u16()),
        _ => None,
    }
}

#[tokio::test]
async fn sockets_open_where_queues_are_in_a_dialect_that_is_spoken() {
    let broker = TestBroker::start().await;
    for path in
        ["/q/abc/client", "/q/abc/browser", "/q/abc/worker", "/abc/client", "/abc/worker", "/q/abc/client/more?x=1"]
    {
        for subprotocol in ["gridsocket.v1", "gridsocket.v1.json", "other, gridsocket.v1"] {
            let socket = broker.try_socket(path, Some(subprotocol), None).await;
            assert!(socket.is_ok(), "{path} {subprotocol}: {:?}", socket.err());
        }
    }
    for (path, subprotocol, status) in [
        ("/q/abc/client", Some("unknown"), 400),
        ("/q/abc/nothing", Some("gridsocket.v1"), 404),
        ("/", Some("gridsocket.v1"), 404),
        ("/q/undefined/client", Some("gridsocket.v1"), 400),
        ("/q/a%2Fb/client", Some("gridsocket.v1"), 400),
    ] {
        let socket = broker.try_socket(path, subprotocol, None).await;
        assert_eq!(refused_with(socket.err()), Some(status), "{path} {subprotocol:?}");
    }
}

#[tokio::test]
async fn a_request_that_is_no_whole_handshake_is_refused() {
    let broker = TestBroker::start().await;
    let upgrade = || {
        let request = broker.http.get(broker.url("/q/abc/client")).header("upgrade", "websocket");
        request.header("connection", "upgrade").header("sec-websocket-protocol", "gridsocket.v1")
    };
    for request in [
        upgrade(),
        upgrade().header("sec-websocket-key", "x3JJHMbDL1EzLkh9GBhXDw=="),
        upgrade().header("sec-websocket-key", "x3JJHMbDL1EzLkh9GBhXDw==").header("sec-websocket-version", "8"),
    ] {
        assert_eq!(request.send().await.unwrap().status(), 400);
    }
}

#[tokio::test]
async fn both_encodings_say_the_same() {
    let broker = TestBroker::start().await;
    for encoding in [Encoding::MessagePack, Encoding::Json] {
        let mut socket = broker.socket("/q/abc/client", encoding).await;
        socket
            .send(&ToBroker::Hello(Hello { version: 1, version_min: None, watch: true, resume: None, worker: None }))
            .await;
        socket.expect("Welcome", |message| matches!(message, FromBroker::Welcome { .. }).then_some(())).await;
        socket.expect("Snapshot", |message| matches!(message, FromBroker::Snapshot { .. }).then_some(())).await;
        socket.submit(7, r#"{"image":"alpine:3.20","command":"echo hello"}"#).await;
        assert_eq!(socket.answer(7).await.unwrap().unwrap().to_string(), ECHO);
    }
}

#[tokio::test]
async fn a_frame_of_100_mb_ends_its_socket_and_nothing_else() {
    let broker = TestBroker::start().await;
    let mut socket = broker.client("abc").await;
    // The head of a masked binary frame that announces 100 MB.
    let head = [&[0x82, 0xff][..], &100_000_000_u64.to_be_bytes(), &[0; 4]].concat();
    socket.stream.get_mut().write_all(&head).await.unwrap();
    assert_ne!(FRAME_BYTES_MAX, 100_000_000);
    within("the end", async {
        while let Some(Ok(message)) = socket.stream.next().await {
            if matches!(message, Message::Close(_)) {
                break;
            }
        }
    })
    .await;
    assert_eq!(broker.get_json("/q/abc").await.0, 200);
}

#[tokio::test]
async fn a_shutdown_ends_connections_and_sockets() {
    let broker = TestBroker::start().await;
    let mut idle = TcpStream::connect(broker.handle.addr()).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 15];
    within("the answer", idle.read_exact(&mut first)).await.unwrap();
    let mut client = broker.client("abc").await;
    let mut silent = broker.socket("/q/abc/client", Encoding::Json).await;
    within("the shutdown", broker.handle.shutdown()).await;
    let mut rest = Vec::new();
    within("the idle connection to end", idle.read_to_end(&mut rest)).await.unwrap();
    within("the sockets to end", async {
        while client.next().await.is_some() {}
        while silent.next().await.is_some() {}
    })
    .await;
}
