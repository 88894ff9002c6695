//! Every route's shape, over real connections.

use protocol::event::RunOutcome;
use protocol::id::UnixMillis;
use protocol::native::{LogLine, LogStep};
use serde_json::{Value, json};

use crate::support::{TestBroker, json_of, until};

const ECHO: &str = "84696046848ef38f50a2f6182fc7674eaee3d1fac23fe57466d6cb5f771794e4";

fn echo() -> Value {
    json!({ "image": "alpine:3.20", "command": "echo hello" })
}

fn result() -> Value {
    json!({ "StatusCode": 0, "duration": 3, "isTimedOut": false, "logs": [["hi\n", 5]], "outputs": {} })
}

#[tokio::test]
async fn health_and_the_page_are_there() {
    let broker = TestBroker::start().await;
    for path in ["/healthz", "/health"] {
        let response = broker.get(path).await;
        assert_eq!((response.status().as_u16(), response.text().await.unwrap().as_str()), (200, "OK"));
    }
    let page = broker.get("/").await;
    assert_eq!(page.headers()["content-type"], "text/html; charset=UTF-8");
    assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
    assert!(page.text().await.unwrap().contains("gridsocket.v1.json"));
}

#[tokio::test]
async fn what_is_not_there_is_said_in_json() {
    let broker = TestBroker::start().await;
    for path in ["/nothing", "/q", "/q/x/y/z", "/q/x/j/", "/q/x/j/y/", "/f/", "/j/"] {
        let (status, told) = broker.get_json(path).await;
        assert_eq!((status, &told["code"]), (404, &json!("no_such_route")), "{path}");
    }
    for path in ["/q/x", "/healthz", "/f/x", &format!("/q/x/j/{ECHO}/cancel")] {
        let response = broker.http.delete(broker.url(path)).send().await.unwrap();
        let (status, told) = json_of(response).await;
        assert_eq!((status, &told["code"]), (405, &json!("method_not_allowed")), "{path}");
    }
    let (status, told) = broker.get_json("/q/x/client").await;
    assert_eq!((status, &told["code"]), (426, &json!("websocket_expected")));
}

#[tokio::test]
async fn a_submitted_job_is_in_the_list_and_has_its_definition() {
    let broker = TestBroker::start().await;
    let body = json!({ "id": ECHO, "definition": echo(), "control": { "namespace": "alice/doc1" }, "debug": true });
    for path in ["/q/abc", "/q/abc/j"] {
        let response = broker.http.post(broker.url(path)).body(body.to_string()).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/json; charset=UTF-8");
        let head = response.headers()["gridsocket-head"].to_str().unwrap().to_owned();
        assert!(head.starts_with("1 ") && head.len() == 66, "{head}");
        assert_eq!(json_of(response).await, (200, json!({ "success": true, "jobId": ECHO })));
    }
    for path in ["/q/abc", "/q/abc/j"] {
        let (status, list) = broker.get_json(path).await;
        assert_eq!(status, 200);
        let job = &list["data"][ECHO];
        let keys: Vec<&String> = job.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["queuedTime", "state", "time", "worker", "namespaces", "debug"]);
        assert_eq!(job["queuedTime"], job["time"]);
        assert_eq!(
            (&job["state"], &job["worker"], &job["namespaces"], &job["debug"]),
            (&json!("Queued"), &json!(""), &json!(["alice/doc1"]), &json!(true))
        );
    }
    let of = |rest: &str| format!("/q/abc/j/{ECHO}{rest}");
    assert_eq!(broker.get_json(&of("/definition.json")).await, (200, json!({ "data": echo() })));
    assert_eq!(broker.get_json(&of("/namespaces.json")).await, (200, json!({ "data": ["alice/doc1"] })));
    for rest in ["/result.json", "/results.json"] {
        assert_eq!(broker.get_json(&of(rest)).await, (200, json!({ "data": null })));
    }
    let (status, single) = broker.get_json(&of("")).await;
    assert_eq!((status, &single["data"]["definition"]), (200, &echo()));
    assert_eq!(single["data"].get("results"), None);
    assert_eq!(single["data"]["status"], json!({ "state": "Queued", "run": 0 }));
}

#[tokio::test]
async fn what_a_definition_needs_is_in_the_list() {
    let broker = TestBroker::start().await;
    let definition = json!({ "image": "x", "tags": ["a"], "requirements": { "cpus": 2.5, "gpus": 1, "memory": "1g" } });
    let job = broker.submit("abc", definition).await.to_string();
    let (_, list) = broker.get_json("/q/abc").await;
    let listed = &list["data"][&job];
    assert_eq!(listed["tags"], json!(["a"]));
    assert_eq!(listed["requirements"], json!({ "cpus": 2.5, "gpus": 1, "memory": "1073741824" }));
    assert_eq!(listed.get("debug"), None);
}

#[tokio::test]
async fn a_job_that_nobody_knows_looks_as_clients_expect() {
    let broker = TestBroker::start().await;
    for scope in ["/q/abc", ""] {
        let of = |rest: &str| format!("{scope}/j/{ECHO}{rest}");
        for rest in ["/definition.json", "/result.json", "/results.json"] {
            assert_eq!(broker.get_json(&of(rest)).await, (200, json!({ "data": null })), "{scope}{rest}");
        }
        for rest in ["/build-logs.json", "/run-logs.json?since=4"] {
            let (status, logs) = broker.get_json(&of(rest)).await;
            assert_eq!((status, &logs["data"], &logs["isFinal"]), (200, &json!([]), &json!(false)));
        }
        for (rest, text) in [("/inputs/a", "Job not found"), ("/outputs/a", "Finished job not found")] {
            let response = broker.get(&of(rest)).await;
            assert_eq!((response.status().as_u16(), response.text().await.unwrap().as_str()), (404, text));
        }
    }
    for path in [format!("/q/abc/j/{ECHO}"), format!("/j/{ECHO}.json")] {
        let (status, told) = broker.get_json(&path).await;
        assert_eq!((status, &told["error"]), (404, &json!("Job not found")));
    }
    assert_eq!(broker.get_json("/q/abc").await, (200, json!({ "data": {} })));
    assert_eq!(broker.get_json(&format!("/q/abc/j/{ECHO}/namespaces.json")).await, (200, json!({ "data": [] })));
}

#[tokio::test]
async fn a_finished_job_has_its_result_everywhere() {
    let broker = TestBroker::start().await;
    broker.submit("abc", echo()).await;
    broker.run_next("abc", result()).await;
    let check = |data: &Value| {
        assert_eq!(data["state"], "Finished");
        assert_eq!(data["finishedReason"], "Success");
        assert_eq!(data["worker"], "worker-1");
        assert_eq!(data["finished"]["reason"], "Success");
        assert_eq!(data["finished"]["result"], result());
    };
    for path in [
        format!("/q/abc/j/{ECHO}/result.json"),
        format!("/q/abc/j/{ECHO}/results.json"),
        format!("/abc/j/{ECHO}/result.json"),
        format!("/j/{ECHO}/result.json"),
        format!("/j/{ECHO}/results.json"),
    ] {
        let (status, answer) = broker.get_json(&path).await;
        assert_eq!(status, 200);
        check(&answer["data"]);
    }
    for path in [format!("/q/abc/j/{ECHO}"), format!("/j/{ECHO}.json")] {
        let (_, single) = broker.get_json(&path).await;
        check(&single["data"]["results"]);
        assert_eq!(
            single["data"]["status"],
            json!({ "state": "Finished", "finishedReason": "Success", "run": 1, "exitCode": 0 })
        );
    }
    let (_, list) = broker.get_json("/q/abc").await;
    assert_eq!(list["data"][ECHO]["state"], "Finished");
    assert_eq!(list["data"][ECHO].get("finished"), None);
}

#[tokio::test]
async fn jobs_and_results_outlive_a_restart() {
    let broker = TestBroker::start().await;
    broker.submit("abc", echo()).await;
    broker.run_next("abc", result()).await;
    let waiting = broker.submit("abc", json!({ "image": "other" })).await.to_string();
    let before = broker.get_json(&format!("/q/abc/j/{ECHO}/result.json")).await;
    let broker = broker.restart().await;
    assert_eq!(broker.get_json(&format!("/q/abc/j/{ECHO}/result.json")).await, before);
    let (_, list) = broker.get_json("/q/abc").await;
    assert_eq!(list["data"][&waiting]["state"], "Queued");
}

#[tokio::test]
async fn a_definition_comes_back_as_it_was_sent() {
    let broker = TestBroker::start().await;
    let definition = r#"{ "command":"a\ud800b", "zeta": 1, "alpha": 1e400, "2":-0.0, "1": 12345678901234567890, "image" : "é \u00e9" }"#;
    let (status, answer) = broker.post("/q/abc", format!(r#"{{"definition": {definition}, "more": [1e999]}}"#)).await;
    assert_eq!(status, 200, "{answer}");
    let job = answer["jobId"].as_str().unwrap();
    for path in [format!("/q/abc/j/{job}/definition.json"), format!("/j/{job}/definition.json")] {
        assert_eq!(broker.get(&path).await.text().await.unwrap(), format!(r#"{{"data":{definition}}}"#));
    }
}

#[tokio::test]
async fn queues_know_nothing_of_each_other() {
    let broker = TestBroker::start().await;
    broker.submit("abc", echo()).await;
    broker.run_next("abc", result()).await;
    assert_eq!(broker.get_json("/q/other").await, (200, json!({ "data": {} })));
    for rest in ["definition.json", "result.json"] {
        assert_eq!(broker.get_json(&format!("/q/other/j/{ECHO}/{rest}")).await, (200, json!({ "data": null })));
    }
    // A name is the same queue however it is escaped.
    assert_eq!(broker.get_json("/q/%61bc").await, broker.get_json("/q/abc").await);
}

#[tokio::test]
async fn without_a_queue_there_is_an_answer_only_while_all_queues_agree() {
    let broker = TestBroker::start().await;
    broker.submit("one", echo()).await;
    let unscoped = format!("/j/{ECHO}");
    // The same value, other spelling.
    broker.post("/q/two", r#"{"definition": {"command": "echo hello", "image": "alpine:3.20"}}"#).await;
    assert_eq!(broker.get_json(&format!("{unscoped}/definition.json")).await.1["data"], echo());

    broker.run_next("one", result()).await;
    let unscoped_result = async || broker.get_json(&format!("{unscoped}/result.json")).await.1["data"].clone();
    assert_eq!(unscoped_result().await, Value::Null, "whoever waits in the other queue waits for its own run");
    broker.post(&format!("/q/two/j/{ECHO}/cancel"), "").await;
    assert_eq!(unscoped_result().await["finishedReason"], "Success", "a queue where it is cancelled has no say");
    broker.submit("two", echo()).await;

    broker.run_next("two", json!({ "StatusCode": 1, "outputs": { "o": { "type": "utf8", "value": "forged" } } })).await;
    assert_eq!(broker.get_json(&format!("{unscoped}/result.json")).await, (200, json!({ "data": null })));
    assert_eq!(broker.get(&format!("{unscoped}/outputs/o")).await.status(), 404);
    assert_eq!(
        broker.get_json(&format!("/q/one/j/{ECHO}/result.json")).await.1["data"]["finished"]["result"],
        result()
    );

    broker.submit("three", json!({ "image": "alpine:3.20", "command": "echo hello", "env": { "channel": "x" } })).await;
    assert_eq!(broker.get_json(&format!("{unscoped}/definition.json")).await, (200, json!({ "data": null })));
}

#[tokio::test]
async fn inputs_and_outputs_of_every_type_are_served() {
    let broker = TestBroker::start().await;
    broker.put("/f/stored.bin", "stored bytes").await;
    let digest = "9834876dcfb05cb167a5c24953eba58c4ac89b1adf57f28f2f9d09af107ee8f0"; // "aaa"
    broker.put(&format!("/f/{digest}"), "aaa").await;
    let files = json!({
        "dir/text.txt": { "type": "utf8", "value": "text é" },
        "plain": { "value": "no type" },
        "b.png": { "type": "base64", "value": "aGVsbG8K" },
        "bad.b64": { "type": "base64", "value": "*" },
        "j.json": { "type": "json", "value": { "b": [1, null], "a": {} } },
        "key": { "type": "key", "value": "stored.bin" },
        "own": { "type": "url", "value": broker.url("/f/stored.bin") },
        "digest": { "type": "url", "value": format!("https://elsewhere.example/f/{digest}") },
        "away": { "type": "url", "value": "https://elsewhere.example/f/stored.bin?x=1" },
        "script": { "type": "url", "value": "javascript:alert(1)" },
        "odd": { "type": "odd", "value": "x" },
        "a b%.txt": { "type": "utf8", "value": "escaped" },
    });
    let job = broker.submit("abc", json!({ "image": "x", "inputs": files })).await;
    broker.run_next("abc", json!({ "StatusCode": 0, "outputs": files })).await;
    for kind in ["inputs", "outputs"] {
        for scope in ["/q/abc", ""] {
            let get = async |name: &str| broker.get(&format!("{scope}/j/{job}/{kind}/{name}")).await;
            for (name, content_type, bytes) in [
                ("dir/text.txt", "text/plain;charset=UTF-8", "text é"),
                ("dir%2Ftext.txt", "text/plain;charset=UTF-8", "text é"),
                ("plain", "text/plain;charset=UTF-8", "no type"),
                ("b.png", "image/png", "hello\n"),
                ("j.json", "application/json; charset=UTF-8", r#"{"b":[1,null],"a":{}}"#),
                ("key", "application/octet-stream", "stored bytes"),
                ("a%20b%25.txt", "text/plain;charset=UTF-8", "escaped"),
            ] {
                let response = get(name).await;
                assert_eq!(response.status(), 200, "{name}");
                assert_eq!(response.headers()["content-type"], content_type, "{name}");
                assert_eq!(response.text().await.unwrap(), bytes, "{name}");
            }
            let download = get("b.png").await;
            assert_eq!(download.headers()["content-disposition"], "attachment; filename=\"b.png\"");
            assert_eq!(download.headers()["x-content-type-options"], "nosniff");
            for (name, key, bytes) in [("own", "stored.bin", "stored bytes"), ("digest", digest, "aaa")] {
                let sent_on = get(name).await;
                assert_eq!(sent_on.status(), 302, "{name}");
                let location = sent_on.headers()["location"].to_str().unwrap().to_owned();
                assert_eq!(location, broker.url(&format!("/f/{key}?filename={name}")));
                assert_eq!(broker.http.get(location).send().await.unwrap().text().await.unwrap(), bytes);
            }
            let away = get("away").await;
            assert_eq!(away.status(), 302);
            assert_eq!(away.headers()["location"], "https://elsewhere.example/f/stored.bin?x=1");
            for (name, error) in [
                ("bad.b64", "Invalid base64 data"),
                ("odd", "Unknown data type"),
                ("script", "the file's address is not an http or https address"),
            ] {
                let (status, told) = json_of(get(name).await).await;
                assert_eq!((status, &told["error"]), (400, &json!(error)));
            }
            let missing = get("").await;
            assert_eq!((missing.status().as_u16(), missing.text().await.unwrap().as_str()), (400, "Missing filename"));
            let unknown = get("none").await;
            let what = if kind == "inputs" { "Input" } else { "Output" };
            assert_eq!(unknown.status(), 404);
            assert_eq!(unknown.text().await.unwrap(), format!("{what} file 'none' not found"));
        }
    }
}

#[tokio::test]
async fn a_local_broker_never_redirects_and_routes_without_a_queue_mean_its_own() {
    let broker = TestBroker::local().await;
    let files = json!({
        "away": { "type": "url", "value": "https://elsewhere.example/f/x" },
        "own": { "type": "url", "value": "http://localhost:1/f/stored" },
    });
    broker.put("/f/stored", "bytes").await;
    let job = broker.submit("local", json!({ "image": "x", "inputs": files })).await;
    broker.submit("other", json!({ "image": "x", "inputs": files, "more": 1 })).await;
    let away = broker.get(&format!("/j/{job}/inputs/away")).await;
    assert_eq!((away.status().as_u16(), away.text().await.unwrap().as_str()), (404, "File not found"));
    assert_eq!(broker.get(&format!("/j/{job}/inputs/own")).await.text().await.unwrap(), "bytes");
    assert_eq!(broker.get_json(&format!("/j/{job}/definition.json")).await.1["data"].get("more"), None);
    let text = broker.get(&format!("/j/{job}/outputs/x")).await.text().await.unwrap();
    assert_eq!(text, "Job results not found");
    let (status, told) = broker.post(&format!("/j/{job}/copy"), r#"{"queue":"b"}"#).await;
    assert_eq!(status, 400);
    assert!(told["message"].is_string());
    let metrics = broker.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("\nqueue_length 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_cancel_says_what_it_found() {
    let broker = TestBroker::start().await;
    let cancel = format!("/q/abc/j/{ECHO}/cancel");
    assert_eq!(broker.post(&cancel, "").await, (200, json!({ "message": "Job not found" })));
    broker.submit("abc", echo()).await;
    let done = json!({ "success": true, "jobId": ECHO, "namespace": "_" });
    assert_eq!(broker.post(&format!("{cancel}?message=by+me"), "").await, (200, done));
    assert_eq!(broker.post(&cancel, "").await, (200, json!({ "message": "Job already Finished" })));
    assert_eq!(broker.get_json("/q/abc").await, (200, json!({ "data": {} })), "cancelled jobs are not listed");
    let (_, single) = broker.get_json(&format!("/q/abc/j/{ECHO}")).await;
    let status = json!({ "state": "Finished", "finishedReason": "Cancelled", "run": 0, "message": "by me" });
    assert_eq!(single["data"]["status"], status);
    assert_eq!(single["data"].get("results"), None);
    let (_, logs) = broker.get_json(&format!("/q/abc/j/{ECHO}/run-logs.json")).await;
    assert_eq!(logs["isFinal"], true, "nobody waits for its log");

    let local = TestBroker::local().await;
    local.submit("local", echo()).await;
    let cancel = format!("/q/local/j/{ECHO}/cancel");
    local.post(&cancel, "").await;
    assert_eq!(local.post(&cancel, "").await, (200, json!({ "success": true })));
}

#[tokio::test]
async fn a_cancel_means_one_namespace_or_all() {
    let broker = TestBroker::start().await;
    for namespace in ["a/b", "c", "d", "e"] {
        broker.submit_as("abc", echo(), Some(namespace)).await;
    }
    let job = format!("/q/abc/j/{ECHO}");
    let namespaces = async || broker.get_json(&format!("{job}/namespaces.json")).await.1["data"].clone();
    assert_eq!(namespaces().await, json!(["a/b", "c", "d", "e"]));
    let (_, told) = broker.post(&format!("{job}/cancel?namespace=a%2Fb"), "").await;
    assert_eq!(told, json!({ "success": true, "jobId": ECHO, "namespace": "a/b" }));
    assert_eq!(namespaces().await, json!(["c", "d", "e"]));
    broker.post(&format!("{job}/c/cancel"), "").await;
    assert_eq!(namespaces().await, json!(["d", "e"]));
    broker.post(&format!("{job}/cancel"), "").await;
    assert_eq!(namespaces().await, json!(["d", "e"]), "nobody's wish is in the default namespace");
    assert_eq!(broker.get_json("/q/abc").await.1["data"][ECHO]["state"], "Queued");
    let (_, told) = broker.post(&format!("{job}/cancel?namespace=*"), "").await;
    assert_eq!(told["namespace"], "*");
    assert_eq!(broker.get_json("/q/abc").await, (200, json!({ "data": {} })));
}

#[tokio::test]
async fn a_job_is_copied_into_another_queue() {
    let broker = TestBroker::start().await;
    let copy = format!("/j/{ECHO}/copy");
    let body = r#"{"queue":"target","control":{"namespace":"n"}}"#;
    let (status, told) = broker.post(&copy, body).await;
    assert_eq!((status, &told["error"]), (404, &json!("Job definition not found")));
    broker.submit("abc", echo()).await;
    assert_eq!(broker.post(&copy, body).await, (200, json!({ "success": true })));
    let (_, list) = broker.get_json("/q/target").await;
    assert_eq!(list["data"][ECHO]["namespaces"], json!(["n"]));
    for body in ["{}", r#"{"queue":""}"#, r#"{"queue":7}"#, r#"{"queue":"a/b"}"#, "[]", "x"] {
        assert_eq!(broker.post(&copy, body).await.0, 400, "{body}");
    }
}

fn line(text: &str, at_ms: u64, stderr: bool) -> LogLine {
    LogLine { text: text.to_owned(), at_ms: UnixMillis(at_ms), stderr }
}

#[tokio::test]
async fn logs_are_read_from_a_line_on() {
    let broker = TestBroker::start().await;
    broker.submit("abc", echo()).await;
    let mut worker = broker.worker("abc", "worker-1", 1).await;
    let (run, _) = worker.claim().await;
    worker.logs(run, LogStep::Pull, 0, vec![line("pulled\n", 1, false)]).await;
    worker.logs(run, LogStep::Run, 0, vec![line("out\n", 5, false), line("err\n", 6, true)]).await;
    let logs = |kind: &str, query: &str| format!("/q/abc/j/{ECHO}/{kind}-logs.json{query}");
    until("the lines", || async {
        let end = async |kind: &str| broker.get_json(&logs(kind, "")).await.1["nextCursor"].clone();
        (end("run").await, end("build").await) == (json!(2), json!(1))
    })
    .await;
    let whole =
        json!({ "data": [["out\n", 5], ["err\n", 6, true]], "sliceStart": 0, "nextCursor": 2, "isFinal": false });
    for query in ["", "?since=", "?since=0", "?since=-7", "?since=0.9"] {
        assert_eq!(broker.get_json(&logs("run", query)).await, (200, whole.clone()), "{query}");
    }
    let rest = json!({ "data": [["err\n", 6, true]], "sliceStart": 1, "nextCursor": 2, "isFinal": false });
    assert_eq!(broker.get_json(&logs("run", "?since=1")).await, (200, rest));
    let beyond = json!({ "data": [], "sliceStart": 9, "nextCursor": 2, "isFinal": false });
    assert_eq!(broker.get_json(&logs("run", "?since=9")).await, (200, beyond));
    let (status, told) = broker.get_json(&logs("run", "?since=abc")).await;
    assert_eq!((status, &told["error"]), (400, &json!("`since` must be a number")));

    worker.end(run, RunOutcome::Success, result()).await.unwrap();
    for path in [logs("build", ""), format!("/j/{ECHO}/build-logs.json")] {
        let build = json!({ "data": [["pulled\n", 1]], "sliceStart": 0, "nextCursor": 1, "isFinal": true });
        assert_eq!(broker.get_json(&path).await, (200, build));
    }
}

#[tokio::test]
async fn a_long_log_is_one_answer() {
    let broker = TestBroker::start_with(|config| config.limits.logs.chunk_bytes_max = 10_000).await;
    broker.submit("abc", echo()).await;
    let mut worker = broker.worker("abc", "worker-1", 1).await;
    let (run, _) = worker.claim().await;
    let lines: Vec<LogLine> = (0..9000).map(|n| line(&format!("line {n}\n"), n, false)).collect();
    for (batch, lines) in lines.chunks(1000).enumerate() {
        worker.logs(run, LogStep::Run, batch as u64 * 1000, lines.to_vec()).await;
    }
    worker.finish(run, result()).await;
    let (status, logs) = broker.get_json(&format!("/q/abc/j/{ECHO}/run-logs.json?since=10")).await;
    assert_eq!((status, &logs["sliceStart"], &logs["nextCursor"]), (200, &json!(10), &json!(9000)));
    let data = logs["data"].as_array().unwrap();
    assert_eq!(data.len(), 8990);
    for (n, line) in (10..).zip(data) {
        assert_eq!(line, &json!([format!("line {n}\n"), n]));
    }
}

#[tokio::test]
async fn a_status_has_its_shape() {
    let broker = TestBroker::start().await;
    let running = broker.submit("abc", echo()).await.to_string();
    let mut worker = broker.worker("abc", "worker-1", 2).await;
    worker.claim().await;
    let _client = broker.client("abc").await;
    let waiting = broker.submit("abc", json!({ "image": "x", "requirements": { "gpus": 4 } })).await.to_string();
    let (_, status) = broker.get_json("/q/abc/status").await;
    assert_eq!(status["queueInfo"], broker.get_json("/abc/status").await.1["queueInfo"]);
    let keys: Vec<&String> = status.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["jobs", "otherServers", "localWorkers", "clientCount", "queueInfo"]);
    assert_eq!(status["jobs"][&running], json!({ "state": "Running" }));
    assert_eq!(status["jobs"][&waiting], json!({ "state": "Queued" }));
    let shown = &status["localWorkers"]["worker-1"];
    assert_eq!((&shown["id"], &shown["cpus"], &shown["gpus"]), (&json!("worker-1"), &json!(2), &json!(0)));
    assert_eq!(shown["queue"][&running], json!({ "jobId": running, "definition": echo(), "finished": false }));
    let info = &status["queueInfo"];
    assert_eq!((&info["address"], &info["jobCount"], &info["localWorkerCount"]), (&json!("abc"), &json!(2), &json!(1)));
    let states = info["jobStates"].as_array().unwrap();
    assert!(states.contains(&json!({ "id": running[..6], "state": "Running", "worker": "worker" })));
    assert!(states.contains(&json!({ "id": waiting[..6], "state": "Queued", "worker": "none" })));
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let broker = TestBroker::start().await;
    let head = broker.http.head(broker.url("/q/abc")).send().await.unwrap();
    assert_eq!(head.status(), 200);
    assert!(head.bytes().await.unwrap().is_empty());
}
