//! Texts that look like others, requests that read in two ways, and addresses that nobody should ask.

use serde_json::json;
use tokio::net::TcpListener;

use super::peers::{Stranger, ask, job, raw, send};
use crate::support::{TestBroker, until, within};

#[tokio::test]
async fn names_that_look_alike_are_other_queues() {
    let broker = TestBroker::start().await;
    // Composed and decomposed, case, width, spaces, dots, direction marks, look-alikes: each is its own bytes and nothing else.
    let alike = [
        "caf\u{e9}",
        "cafe\u{301}",
        "Caf\u{e9}",
        "CAF\u{c9}",
        "cafe",
        "cafe.",
        "cafe ",
        " cafe",
        "caf\u{435}",
        "\u{ff43}afe",
        "cafe\u{200b}",
        "cafe\u{202e}",
        "c\u{ad}afe",
        "cafe%",
        "cafe%20",
        "cafe+",
        "..",
        ".",
        "cafe;x",
        "cafe?x",
        "cafe#x",
        "cafe&x",
        "cafe\u{130}",
        "cafei",
        "cafe\\",
    ];
    for (number, name) in alike.iter().enumerate() {
        let path = format!("/q/{}", encoded(name));
        let body = json!({ "definition": { "image": number.to_string() } }).to_string();
        // Not through a client that has opinions about dots.
        assert_eq!(send(&broker, "POST", &path, &body).await.status, 200, "{name:?}");
    }
    for (number, name) in alike.iter().enumerate() {
        let (id, _) = job(json!({ "image": number.to_string() }));
        let listed = ask(&broker, "GET", &format!("/q/{}", encoded(name)), "").await;
        let listed: serde_json::Value = serde_json::from_str(&listed.body).unwrap();
        let ids: Vec<&String> = listed["data"].as_object().unwrap().keys().collect();
        assert_eq!(ids, [&id], "{name:?}");
        // A socket's address means the same queue.
        let mut page = Stranger::connect(&broker, &format!("/q/{}/client", encoded(name))).await;
        assert!(page.until("the jobs", |text| text.contains("JobStates")).await.contains(&id), "{name:?}");
    }
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn names_that_could_end_an_address_or_a_line_are_refused() {
    let broker = TestBroker::start().await;
    for name in
        ["a%2Fb", "%2F", "a%00", "%00", "a%0d%0aX-Injected:%201", "a%0a", "a%7f", "a%c2%85", "%ff", "%c3", "%ed%a0%80"]
    {
        for path in [
            format!("/q/{name}"),
            format!("/q/{name}/status"),
            format!("/q/{name}/metrics"),
            format!("/{name}/metrics"),
        ] {
            let answer = ask(&broker, "GET", &path, "").await;
            assert_eq!(answer.status, 400, "{path}: {}", answer.body);
            assert!(!answer.head.contains("\nx-injected"), "{path}");
        }
        assert_eq!(send(&broker, "POST", &format!("/q/{name}"), r#"{"definition":{}}"#).await.status, 400, "{name}");
        let socket = broker.try_socket(&format!("/q/{name}/client"), None, None).await;
        assert!(socket.is_err(), "{name}");
    }
    // What is said in bare bytes is no request.
    for request in [
        "GET /q/a\0b HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /q/a b HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /q/a\tb HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        assert_eq!(raw(&broker, request).await.status, 400, "{request:?}");
    }
    assert_eq!(ask(&broker, "GET", "/q/a%20b", "").await.status, 200);
}

#[tokio::test]
async fn a_request_that_hides_another_is_not_read_on() {
    let broker = TestBroker::start().await;
    let hidden = "POST /q/smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\n\r\n{\"definition\":{}}";
    for head in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 6",
        "Content-Length: +5",
        "Content-Length: 0x5",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:\u{b}chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "X: a\rTransfer-Encoding: chunked",
    ] {
        let answer = raw(&broker, &format!("POST /q/a HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n0\r\n\r\n{hidden}")).await;
        assert!((400..500).contains(&answer.status), "{head:?}: {}", answer.status);
    }
    for chunk in ["ffffffffffffffff1\r\n", "-1\r\n", "0x4\r\n", "4\n\r\n", " 4\r\n", "4;\r\r\n"] {
        let request = format!(
            "POST /q/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{chunk}abcd\r\n0\r\n\r\n{hidden}"
        );
        raw(&broker, &request).await;
    }
    assert_eq!(broker.get_json("/q/smuggled").await.1["data"], json!({}), "none of the hidden ones was read");
    let two = format!(
        "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n{}",
        hidden.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1)
    );
    assert_eq!(raw(&broker, &two).await.status, 200);
    assert_eq!(
        broker.get_json("/q/smuggled").await.1["data"].as_object().unwrap().len(),
        1,
        "an honest second request is"
    );
}

#[tokio::test]
async fn the_broker_asks_no_address_that_a_job_names() {
    let inner = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/secret", inner.local_addr().unwrap());
    for flavour in [broker::config::Flavour::Local, broker::config::Flavour::Remote] {
        let broker = TestBroker::start_with(|config| config.flavour = flavour).await;
        let at = |url: &str| json!({ "type": "url", "value": url, "hash": "ab".repeat(32) });
        let definition = json!({
            "image": format!("{}/image", inner.local_addr().unwrap()),
            "build": { "context": address, "buildContext": address },
            "inputs": { "a": at(&address) },
            "configFiles": { "/b": at(&address) },
        });
        let id = broker.submit("local", definition).await;
        broker.run_next("local", json!({ "StatusCode": 0, "outputs": { "o": at(&address) } })).await;
        for rest in ["", "/inputs/a", "/inputs//b", "/outputs/o", "/result.json", "/definition.json"] {
            let found = broker.get(&format!("/q/local/j/{id}{rest}")).await;
            assert!(!found.text().await.unwrap().contains("internal answer"), "{rest}");
        }
        // Copying takes a queue's name and nothing that could be an address.
        for target in [json!(address), json!({ "url": address }), json!(format!("..@{address}"))] {
            let (status, _) = broker.post(&format!("/j/{id}/copy"), json!({ "queue": target }).to_string()).await;
            assert_eq!(status, 400, "{target}");
        }
    }
    // Whoever had asked would be waiting to be let in; this one, which does ask, is.
    let asked = tokio::net::TcpStream::connect(inner.local_addr().unwrap()).await.unwrap();
    let (_, first) = within("a connection", inner.accept()).await.unwrap();
    assert_eq!(first, asked.local_addr().unwrap(), "somebody asked before");
}

#[tokio::test]
async fn a_made_up_host_is_believed_by_nobody_but_its_sender() {
    // Addresses that the broker gives out are made of what the asker called it; what is kept and told to others is not.
    let broker = TestBroker::start_with(|config| config.public_url = Some("https://grid.example".to_owned())).await;
    let evil = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: evil.example\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n"
        )
    };
    for path in ["/upload/key", "/download/key", "/", "/openapi.json", "/metaframe.json", "/llms.txt", "/docs/"] {
        let answer = raw(&broker, &evil(path)).await;
        assert!(
            !answer.body.contains("evil.example") && !answer.head.contains("evil.example"),
            "{path}: {}",
            answer.body
        );
    }
    assert!(raw(&broker, &evil("/upload/key")).await.body.contains("https://grid.example/f/key"));
}

#[tokio::test]
async fn metrics_cannot_be_forged_through_a_queues_name() {
    let broker = TestBroker::start().await;
    let name = "a\"} 1\\n# TYPE forged counter\\nforged{x=\"y";
    let body = json!({ "definition": { "image": "a" } }).to_string();
    assert_eq!(broker.post(&format!("/q/{}", encoded(name)), body).await.0, 200);
    let text = broker.get(&format!("/q/{}/metrics", encoded(name))).await.text().await.unwrap();
    assert!(text.contains("queue_length"), "{text}");
    assert!(!text.lines().any(|line| line.starts_with("forged") || line.contains("# TYPE forged")), "{text}");
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let value = line.rsplit(' ').next().unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
}

#[tokio::test]
async fn numbers_and_depths_beyond_reason_change_nothing_for_others() {
    let broker = TestBroker::start().await;
    let deep = format!("{}1{}", "[".repeat(200_000), "]".repeat(200_000));
    let wide = format!("{{{}}}", (0..50_000).map(|number| format!("\"{number}\":{{}}")).collect::<Vec<_>>().join(","));
    let mut page = Stranger::connect(&broker, "/q/abc/client").await;
    for evil in [
        deep.clone(),
        format!("{{\"type\":\"StateChange\",\"payload\":{deep}}}"),
        format!("{{\"type\":{deep}}}"),
        "{\"a\":".repeat(100_000),
        "{\"type\":\"QueryJob\",\"payload\":{\"jobId\":1e999999}}".to_owned(),
        "-".repeat(1_000_000),
        "\"\\ud800".to_owned(),
        "1e-99999999999".to_owned(),
    ] {
        use futures_util::SinkExt as _;
        page.stream.send(tokio_tungstenite::tungstenite::Message::text(evil.clone())).await.unwrap();
        assert_eq!(page.settle().await, "PONG");
        let (status, _) = broker.post("/q/abc", evil).await;
        assert_eq!(status, 400);
    }
    assert_eq!(broker.get_json("/q/abc").await.1["data"], json!({}));
    let (status, told) = broker.post("/q/abc", format!(r#"{{"definition":{{"image":"a","inputs":{wide}}}}}"#)).await;
    assert!(status == 200 || status == 413 || status == 400, "{told}");
    let (id, definition) = job(json!({ "image": "honest" }));
    page.submit(&id, &definition).await;
    until("the honest one", async || broker.get_json("/q/abc").await.1["data"][&id].is_object()).await;
}
