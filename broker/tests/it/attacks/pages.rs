//! What pages can be made to do: pages of strangers against a local broker, and strangers' bytes against whoever looks at them.

use broker::config::Flavour;
use serde_json::{Value, json};

use super::peers::{Answer, Stranger, ask, raw_one, send};
use crate::support::{TestBroker, within};

const OK: u16 = 200;

/// A broker whose job has outputs that its worker made up; the path of its outputs.
async fn with_outputs(change: impl FnOnce(&mut broker::config::Config), outputs: Value) -> (TestBroker, String) {
    let broker = TestBroker::start_with(change).await;
    let job = broker.submit("local", json!({ "image": "alpine:3.20" })).await;
    broker.run_next("local", json!({ "StatusCode": 0, "outputs": outputs })).await;
    (broker, format!("/q/local/j/{job}/outputs"))
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[tokio::test]
async fn a_strangers_page_cannot_use_a_local_broker_whatever_it_sends() {
    let broker = TestBroker::local().await;
    let own = broker.host();
    let body = json!({ "definition": { "image": "alpine:3.20" } }).to_string();
    let post = async |origin: &str, kind: &str| {
        let head =
            format!("POST /q/local HTTP/1.1\r\nHost: {own}\r\nConnection: close\r\n{origin}Content-Type: {kind}\r\n");
        raw_one(&broker, &format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())).await
    };
    for origin in [
        "https://evil.example",
        "null",
        "http://localhost.evil.example",
        "http://evil.example:8000",
        "https://evil.example#http://localhost",
        "http://127.0.0.1.nip.example",
        "http://localhost@evil.example",
        "chrome-extension://evil",
        "file://",
        "http://[::ffff:203.0.113.9]",
        "https://container.mtfm.io.evil.example",
        "http://LOCALHOST.evil.example",
        "",
        " ",
        "http://localhost:8000 https://evil.example",
    ] {
        // The kinds that pages may send without asking first.
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/json"] {
            let refused = post(&format!("Origin: {origin}\r\n"), kind).await;
            assert_eq!(refused.status, 403, "{origin} {kind}");
            assert_eq!(header(&refused, "access-control-allow-origin"), None, "{origin}");
        }
        for path in ["/q/local/client", "/q/local/worker", "/local/client", "/q/other/client", "/local/browser"] {
            let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\n";
            let request = format!("GET {path} HTTP/1.1\r\nHost: {own}\r\nOrigin: {origin}\r\n{upgrade}\r\n");
            assert_eq!(raw_one(&broker, &request).await.status, 403, "{origin} {path}");
        }
        for method in ["PUT", "DELETE", "PATCH"] {
            assert_eq!(ask(&broker, method, "/f/x", &format!("Origin: {origin}\r\n")).await.status, 403, "{method}");
        }
        let read = ask(&broker, "GET", "/q/local", &format!("Origin: {origin}\r\n")).await;
        assert_eq!(
            header(&read, "access-control-allow-origin"),
            None,
            "{origin} may send a read, but not see its answer"
        );
    }
    assert_eq!(broker.get_json("/q/local").await.1["data"], json!({}));
    for origin in [String::new(), format!("Origin: http://{own}\r\n"), "Origin: http://localhost:5173\r\n".to_owned()] {
        assert_eq!(post(&origin, "application/json").await.status, OK, "{origin}");
    }
    assert!(broker.try_socket("/q/local/client", None, Some("http://localhost:1")).await.is_ok());
}

#[tokio::test]
async fn a_name_that_was_made_to_point_here_opens_nothing() {
    let broker = TestBroker::local().await;
    let asked = async |host: &str, rest: &str| {
        raw_one(&broker, &format!("GET {rest} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await.status
    };
    for host in [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example.",
        "localhost:8000.evil.example",
        "127.0.0.1@evil.example",
        "[::1].evil.example",
        "evil.localhost.example",
        "0x7f.1.evil.example",
        "",
    ] {
        for path in ["/q/local", "/", "/q/local/status", "/q/local/j/x/stream", "/f/x", "/metrics"] {
            assert!(matches!(asked(host, path).await, 421 | 400), "{host} {path}");
        }
        // A page of that name is of the same origin as what it asks for, and opens sockets with it.
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\n";
        let request = format!("GET /q/local/client HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n{upgrade}\r\n");
        assert!(matches!(raw_one(&broker, &request).await.status, 421 | 400), "{host}");
        let post = format!(
            "POST /q/local HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
        );
        assert!(matches!(raw_one(&broker, &post).await.status, 421 | 400), "{host}");
    }
    for host in ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "192.168.1.5", "page.localhost:1"] {
        assert_eq!(asked(host, "/q/local").await, OK, "{host}");
    }
}

#[tokio::test]
async fn strangers_bytes_are_never_a_page_of_ours() {
    const HTML: &str = "<html><script>alert(document.domain)</script></html>";
    let outputs = json!({
        "plain": { "type": "utf8", "value": HTML },
        "page.html": { "type": "utf8", "value": HTML },
        "untyped": { "value": HTML },
        "bare": HTML,
        "b.html": { "type": "base64", "value": "PGh0bWw+PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0PjwvaHRtbD4=" },
        "b.svg": { "type": "base64", "value": "PHN2ZyBvbmxvYWQ9ImFsZXJ0KDEpIi8+" },
        "j.html": { "type": "json", "value": HTML },
        "k.html": { "type": "key", "value": "evil.html" },
    });
    for flavour in [Flavour::Local, Flavour::Remote] {
        let (broker, path) = with_outputs(|config| config.flavour = flavour, outputs.clone()).await;
        assert_eq!(send(&broker, "PUT", "/f/evil.html", HTML).await.status, OK);
        let names = outputs.as_object().unwrap().keys().map(|name| format!("{path}/{name}"));
        for path in names.chain(["/f/evil.html".to_owned(), "/f/evil.html?filename=x.html".to_owned()]) {
            let answer = ask(&broker, "GET", &path, "").await;
            assert_eq!(answer.status, OK, "{path}: {}", answer.body);
            assert_eq!(header(&answer, "x-content-type-options"), Some("nosniff"), "{path}");
            let kind = header(&answer, "content-type").unwrap();
            let is_page = kind.starts_with("text/html") || kind.contains("svg") || kind.contains("xml");
            let is_download = header(&answer, "content-disposition").is_some_and(|how| how.starts_with("attachment"));
            assert!(!is_page || is_download, "{path} is shown as {kind}");
            if is_download {
                assert!(
                    header(&answer, "content-security-policy").is_some_and(|policy| policy.contains("sandbox")),
                    "{path}"
                );
            }
            assert!(answer.body.contains("alert"), "{path} comes as it is: {}", answer.body);
        }
    }
}

#[tokio::test]
async fn every_answer_says_that_it_is_what_it_is_called() {
    let broker = TestBroker::start().await;
    let job = broker.submit("abc", json!({ "image": "<script>alert(1)</script>" })).await;
    for path in [
        "/".to_owned(),
        "/healthz".to_owned(),
        "/metrics".to_owned(),
        "/openapi.json".to_owned(),
        "/llms.txt".to_owned(),
        "/docs/".to_owned(),
        "/docs/none".to_owned(),
        "/nothing%3Cscript%3E".to_owned(),
        "/q/abc".to_owned(),
        "/q/abc/status".to_owned(),
        format!("/q/abc/j/{job}"),
        format!("/q/abc/j/{job}/definition.json"),
        format!("/j/{job}"),
        "/f/none".to_owned(),
        "/f/none/exists".to_owned(),
        "/q/%3Cscript%3Ealert(1)".to_owned(),
        "/q/abc/j/%3Cscript%3Ealert(1)".to_owned(),
        "/q/abc/metrics".to_owned(),
    ] {
        let answer = within(&path, ask(&broker, "GET", &path, "")).await;
        assert_eq!(header(&answer, "x-content-type-options"), Some("nosniff"), "{path}: {}", answer.head);
        let kind = header(&answer, "content-type").unwrap_or_default();
        if kind.starts_with("text/html") {
            assert!(header(&answer, "content-security-policy").is_some(), "{path}");
            assert!(!answer.body.contains("<script>alert"), "{path}");
        }
    }
}

#[tokio::test]
async fn a_file_name_cannot_add_headers() {
    let names = [
        "a\r\nX-Injected: 1",
        "a\nSet-Cookie: x=1",
        "a\"; filename=\"b.exe",
        "a\u{0}b",
        "a;b",
        "../../etc/passwd",
        "é\u{202e}gpj.exe",
        "a\\\"b",
        "%0d%0aX-Injected: 1",
    ];
    let outputs: serde_json::Map<_, _> =
        names.iter().map(|name| ((*name).to_owned(), json!({ "type": "base64", "value": "eA==" }))).collect();
    let (broker, path) = with_outputs(|_| {}, Value::Object(outputs)).await;
    assert_eq!(send(&broker, "PUT", "/f/blob", "x").await.status, OK);
    for name in names {
        let encoded: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
        for path in [format!("{path}/{encoded}"), format!("/f/blob?filename={encoded}")] {
            let answer = ask(&broker, "GET", &path, "").await;
            assert_eq!((answer.status, answer.body.as_str()), (OK, "x"), "{path}");
            assert!(
                !answer.head.lines().any(|line| line.starts_with("x-injected") || line.starts_with("set-cookie")),
                "{}",
                answer.head
            );
            let disposition = header(&answer, "content-disposition").unwrap();
            assert!(disposition.is_ascii() && disposition.starts_with("attachment; filename=\""), "{disposition}");
            // The quoted part ends once, where it should.
            let quoted = disposition.split("; filename*=").next().unwrap();
            assert_eq!(quoted.matches('"').count(), 2, "{disposition}");
            assert!(!quoted.contains('\\'), "{disposition}");
        }
    }
}

#[tokio::test]
async fn nobody_is_led_elsewhere_by_our_address() {
    let inner = broker_address("10.0.0.1:80/secret");
    let outputs = json!({
        "there": { "type": "url", "value": "https://evil.example/login?next='a'&b=c" },
        "inner": { "type": "url", "value": inner },
        "markup": { "type": "url", "value": "https://evil.example/\"><script>alert(1)</script>" },
        "script": { "type": "url", "value": "javascript:alert(1)" },
        "data": { "type": "url", "value": "data:text/html,<script>alert(1)</script>" },
        "file": { "type": "url", "value": "file:///etc/passwd" },
        "ftp": { "type": "url", "value": "ftp://evil.example/x" },
        "app": { "type": "url", "value": "zoommtg://evil.example/join" },
        "bare": { "type": "url", "value": "//evil.example/" },
        "split": { "type": "url", "value": "https://evil.example/\r\nX-Injected: 1" },
        "back": { "type": "url", "value": "\\\\evil.example\\" },
    });
    let (broker, path) = with_outputs(|_| {}, outputs).await;
    // A person's browser, opened at our address.
    for name in ["there", "inner"] {
        let opened =
            ask(&broker, "GET", &format!("{path}/{name}"), "Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n")
                .await;
        assert_eq!((opened.status, header(&opened, "location")), (OK, None), "{name}");
        assert!(header(&opened, "content-security-policy").is_some_and(|policy| policy.contains("default-src 'none'")));
        assert!(opened.body.contains("noreferrer") && !opened.body.contains("'a'&b"), "{}", opened.body);
    }
    // Programs asked for that file and follow.
    let program = ask(&broker, "GET", &format!("{path}/inner"), "").await;
    assert_eq!((program.status, header(&program, "location")), (302, Some(inner.as_str())));
    assert_eq!(header(&program, "referrer-policy"), Some("no-referrer"));
    for name in ["markup", "script", "data", "file", "ftp", "app", "bare", "split", "back"] {
        for mode in ["", "Sec-Fetch-Mode: navigate\r\n"] {
            let refused = ask(&broker, "GET", &format!("{path}/{name}"), mode).await;
            assert_eq!((refused.status, header(&refused, "location")), (400, None), "{name}: {}", refused.body);
            assert!(!refused.head.contains("\nx-injected"));
        }
    }
}

fn broker_address(rest: &str) -> String {
    format!("http://{rest}")
}

#[tokio::test]
async fn an_address_that_only_looks_like_ours_does_not_open_our_store() {
    let outputs = |own: &str| {
        json!({
            "own": { "type": "url", "value": format!("http://{own}/f/private.txt") },
            "user": { "type": "url", "value": format!("http://{own}@evil.example/f/private.txt") },
            "other": { "type": "url", "value": "https://evil.example/f/private.txt" },
            "port": { "type": "url", "value": format!("http://{own}0/f/private.txt") },
        })
    };
    for flavour in [Flavour::Local, Flavour::Remote] {
        let broker = TestBroker::start_with(|config| config.flavour = flavour).await;
        send(&broker, "PUT", "/f/private.txt", "private").await;
        let job = broker.submit("local", json!({ "image": "alpine:3.20" })).await;
        let own = broker.host();
        broker.run_next("local", json!({ "StatusCode": 0, "outputs": outputs(&own) })).await;
        // At this machine every port is taken for the broker: what is in front of it may have another one.
        let others: &[&str] = if flavour == Flavour::Local { &["user", "other"] } else { &["user", "other", "port"] };
        for name in others {
            let answer = broker.get(&format!("/q/local/j/{job}/outputs/{name}")).await;
            let location = answer.headers().get("location").map(|location| location.to_str().unwrap().to_owned());
            assert!(location.is_none_or(|location| !location.starts_with(&format!("http://{own}/"))), "{name}");
            assert_ne!(answer.text().await.unwrap(), "private", "{name}");
        }
        let honest = broker.get(&format!("/q/local/j/{job}/outputs/own")).await;
        match flavour {
            Flavour::Local => assert_eq!(honest.text().await.unwrap(), "private"),
            Flavour::Remote => {
                let location = honest.headers()["location"].to_str().unwrap();
                assert!(location.starts_with(&format!("http://{own}/f/private.txt")), "{location}");
            }
        }
    }
}

#[tokio::test]
async fn log_lines_cannot_end_an_event_and_begin_another() {
    let broker = TestBroker::start().await;
    let job = broker.submit("abc", json!({ "image": "alpine:3.20" })).await;
    let mut worker = Stranger::worker(&broker, "abc", "worker-1").await;
    worker.change(&job.to_string(), "Running", json!({ "type": "Running", "worker": "worker-1", "time": 1 })).await;
    let evil = "x\n\nevent: final\ndata: {\"state\":\"Finished\"}\n\n\r\rid: 9-9\u{2028}\u{0}";
    worker.say(json!({ "type": "JobStatusLogs", "payload": { "jobId": job, "step": "docker image build", "logs": [[evil, 8]] } })).await;
    worker
        .say(json!({ "type": "JobStatusLogs", "payload": { "jobId": job, "step": "running", "logs": [[evil, 8]] } }))
        .await;
    worker.settle().await;
    worker.finish(&job.to_string(), "Success", "worker-1", 5).await;
    let text = within("the stream to end", async {
        broker.get(&format!("/q/abc/j/{job}/stream")).await.text().await.unwrap()
    })
    .await;
    let kinds: Vec<&str> = text.split(['\n', '\r']).filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "final").count(), 1, "{text}");
    assert_eq!(kinds.last(), Some(&"final"));
    assert!(!text.contains("\nid: 9-9") && !text.contains("\rid: 9-9"), "{text}");
    assert!(text.contains("data: {\\\"state\\\""), "the line itself is there: {text}");
}
