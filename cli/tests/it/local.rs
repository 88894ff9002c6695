//! `gridsocket local` as a process: the broker in it, as pages and programs of the original's local mode meet it, and the worker.

use reqwest::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::grid::Serving;
use crate::run::gridsocket;

/// A local grid without a container engine: its worker looks for one, its broker serves meanwhile.
struct Local {
    serving: Serving,
    http: Client,
    data: tempfile::TempDir,
}

impl Local {
    async fn start(more: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let folder = data.path().to_str().unwrap();
        let words = [&["local", "--port", "0", "--data-directory", folder], more].concat();
        let mut command = gridsocket(&words);
        command.env("DOCKER_HOST", format!("unix://{folder}/no-engine"));
        let serving = Serving::of(command, data.path()).await;
        // A second call changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { serving, http: Client::new(), data }
    }

    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
        let url = format!("{}{path}", self.serving.api.trim_end_matches('/'));
        let request = self.http.request(method, url).body(body.to_owned());
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send().await.unwrap()
    }

    async fn get(&self, path: &str) -> Response {
        self.send(Method::GET, path, &[], "").await
    }

    async fn json(&self, path: &str) -> (StatusCode, Value) {
        let response = self.get(path).await;
        (response.status(), response.json().await.unwrap())
    }
}

#[tokio::test]
async fn what_the_originals_clients_see_of_its_storage_is_there() {
    let local = Local::start(&[]).await;
    for path in ["/health", "/healthz"] {
        assert_eq!(local.get(path).await.text().await.unwrap(), "OK");
    }
    // Blobs: any name that is no path, kept at once, never elsewhere.
    assert_eq!(local.json("/f/a.json/exists").await, (StatusCode::NOT_FOUND, json!({ "exists": false })));
    assert_eq!(local.send(Method::PUT, "/f/a.json", &[], "[1]").await.status(), StatusCode::OK);
    assert_eq!(local.json("/f/a.json/exists").await, (StatusCode::OK, json!({ "exists": true })));
    let read = local.get("/f/a.json").await;
    assert_eq!(read.headers()[CONTENT_TYPE].to_str().unwrap().split(';').next(), Some("application/json"));
    assert!(read.headers()[CONTENT_DISPOSITION].to_str().unwrap().starts_with("attachment"));
    assert_eq!(read.text().await.unwrap(), "[1]");
    assert_eq!(local.send(Method::PUT, "/f/plain", &[], "x").await.status(), StatusCode::OK);
    assert_eq!(local.get("/f/plain").await.headers()[CONTENT_TYPE], "application/octet-stream");
    for path in ["/f/..%2F..%2Fetc%2Fpasswd", "/f/..%2Fworker%2Flock"] {
        assert_ne!(local.get(path).await.status(), StatusCode::OK, "{path}");
        assert_ne!(local.send(Method::PUT, path, &[], "x").await.status(), StatusCode::OK, "{path}");
    }
    // Jobs: of its own queue also without naming it.
    let definition = json!({ "image": "x", "command": "y", "inputs": { "i": { "type": "utf8", "value": "in" } } });
    let body = json!({ "definition": definition }).to_string();
    let told: Value = local.send(Method::POST, "/q/local", &[], &body).await.json().await.unwrap();
    assert_eq!(told["success"], true);
    let job = told["jobId"].as_str().unwrap();
    let (_, listed) = local.json("/q/local").await;
    assert_eq!(listed["data"][job]["state"], "Queued");
    for prefix in ["/q/local", ""] {
        let (_, found) = local.json(&format!("{prefix}/j/{job}/definition.json")).await;
        assert_eq!(found["data"], definition);
        for name in ["result.json", "results.json"] {
            assert_eq!(local.json(&format!("{prefix}/j/{job}/{name}")).await.1["data"], Value::Null);
        }
        let (_, log) = local.json(&format!("{prefix}/j/{job}/run-logs.json?since=0")).await;
        assert_eq!((&log["data"], &log["isFinal"]), (&json!([]), &json!(false)));
        assert_eq!(local.get(&format!("{prefix}/j/{job}/inputs/i")).await.text().await.unwrap(), "in");
    }
    let (status, _) = local.json(&format!("/q/local/j/{}", "0".repeat(64))).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let copied = local.send(Method::POST, &format!("/j/{job}/copy"), &[], r#"{"queue":"b"}"#).await;
    assert_eq!(copied.status(), StatusCode::BAD_REQUEST);
    let metrics = local.get("/q/local/metrics").await.text().await.unwrap();
    assert!(metrics.contains("queue_length 1"), "{metrics}");
    assert!(local.get("/").await.headers()[CONTENT_TYPE].to_str().unwrap().starts_with("text/html"));
    let cancelled = local.send(Method::POST, &format!("/q/local/j/{job}/cancel"), &[], "").await;
    assert_eq!(cancelled.json::<Value>().await.unwrap()["success"], true);
    // All of it in the one folder.
    assert!(local.data.path().join("local/broker").is_dir() && local.data.path().join("local/worker").is_dir());
    assert_eq!(local.serving.end("-TERM").await, Some(0));
}

#[tokio::test]
async fn local_mode_is_this_machines_and_lets_in_who_is_named() {
    let words =
        ["--allow-origin", "https://app.example", "--public-url", "https://grid.example", "--limit", "body=1KiB"];
    let local = Local::start(&words).await;
    assert!(local.serving.api.starts_with("http://localhost:"), "{}", local.serving.api);
    let from = async |origin: &str| {
        let headers = [("origin", origin)];
        let answer = local.send(Method::POST, "/q/q", &headers, r#"{"definition":{"image":"x"}}"#).await;
        let allowed =
            answer.headers().get("access-control-allow-origin").map(|value| value.to_str().unwrap().to_owned());
        (answer.status(), allowed)
    };
    let own = local.serving.api.trim_end_matches('/').to_owned();
    for origin in
        [&own, "https://app.example", "https://container.mtfm.io", "https://grid.example", "http://localhost:1"]
    {
        assert_eq!(from(origin).await, (StatusCode::OK, Some(origin.to_owned())));
    }
    assert_eq!(from("https://evil.example").await, (StatusCode::FORBIDDEN, None));
    let host = async |host: &str| local.send(Method::GET, "/q/q", &[("host", host)], "").await.status();
    assert_eq!(host("grid.example").await, StatusCode::OK);
    assert_eq!(host("evil.example").await, StatusCode::MISDIRECTED_REQUEST);
    let long =
        local.send(Method::POST, "/q/q", &[], &format!(r#"{{"definition":{{"x":"{}"}}}}"#, "x".repeat(2000))).await;
    assert_eq!(long.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_healthcheck_says_whether_it_is_well() {
    let local = Local::start(&[]).await;
    let address = local.serving.listen().trim_end_matches('/').to_owned();
    let well = crate::run::run(&["healthcheck", &address]).await;
    assert_eq!((well.code, well.out.as_str()), (Some(0), "ok\n"), "{well:?}");
    assert_eq!(local.serving.end("-TERM").await, Some(0));
    let gone = crate::run::run(&["healthcheck", &address]).await;
    assert_eq!(gone.code, Some(1));
    assert!(gone.err.contains("nothing answers"), "{gone:?}");
}

#[tokio::test]
async fn a_healthcheck_ends_with_1_when_it_is_told_that_something_is_wrong() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answering = async {
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut asked = vec![0; 1024];
        assert!(peer.read(&mut asked).await.unwrap() > 0);
        peer.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    };
    let words = ["healthcheck", &address];
    let (said, ()) = tokio::join!(crate::run::run(&words), answering);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("503"), "{said:?}");
}
