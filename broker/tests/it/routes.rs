//! Routes that stand for more than a job's data: the page, documents, history, events, retries, and what queues may not do to each other.

use protocol::event::RunOutcome;
use protocol::id::UnixMillis;
use protocol::native::{LogLine, LogStep};
use serde_json::{Value, json};

use crate::support::{TestBroker, until, within};

const ECHO: &str = "84696046848ef38f50a2f6182fc7674eaee3d1fac23fe57466d6cb5f771794e4";

fn echo() -> Value {
    json!({ "image": "alpine:3.20", "command": "echo hello" })
}

async fn text(broker: &TestBroker, path: &str) -> (u16, String, String) {
    let answer = broker.get(path).await;
    let kind = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned()).unwrap_or_default();
    (answer.status().as_u16(), kind, answer.text().await.unwrap())
}

#[tokio::test]
async fn a_jobs_address_is_the_page_and_with_json_the_job() {
    let broker = TestBroker::start().await;
    let (status, kind, page) = text(&broker, &format!("/j/{ECHO}")).await;
    assert_eq!((status, kind.as_str()), (200, "text/html; charset=UTF-8"));
    assert!(page.contains("<base href=\"/\""), "its addresses start at the top");
    assert_eq!(broker.get_json(&format!("/j/{ECHO}.json")).await.0, 404);
    broker.submit("abc", echo()).await;
    assert_eq!(broker.get_json(&format!("/j/{ECHO}.json")).await.1["data"]["definition"], echo());
    assert_eq!(broker.get_json("/j/x.json").await.0, 400);
}

#[tokio::test]
async fn a_page_that_embeds_ours_learns_which_parameters_to_keep() {
    let broker = TestBroker::start().await;
    for path in ["/metaframe.json".to_owned(), format!("/j/{ECHO}/metaframe.json")] {
        let (status, about) = broker.get_json(&path).await;
        assert_eq!((status, &about["version"], &about["allow"]), (200, &json!("2"), &json!("clipboard-write")));
        assert_eq!(about["hashParams"].as_array().unwrap().len(), 14);
        assert_eq!(about["metadata"]["title"], "Run a docker container");
    }
}

#[tokio::test]
async fn the_documents_are_part_of_the_broker() {
    let broker = TestBroker::start().await;
    let answer = broker.get("/docs").await;
    assert_eq!((answer.status().as_u16(), &answer.headers()["location"]), (301, &"/docs/".parse().unwrap()));
    let (status, kind, index) = text(&broker, "/docs/").await;
    assert_eq!((status, kind.as_str()), (200, "text/html; charset=UTF-8"));
    for name in index.split("href=\"/docs/").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        let (status, kind, page) = text(&broker, &format!("/docs/{name}")).await;
        assert_eq!((status, kind.as_str()), (200, "text/html; charset=UTF-8"), "{name}");
        assert!(page.contains("<h1") && !page.contains("<script"), "{name}");
        let (status, kind, written) = text(&broker, &format!("/docs/{name}.md")).await;
        assert_eq!((status, kind.as_str()), (200, "text/markdown; charset=UTF-8"));
        assert!(written.starts_with("# "), "{name}");
    }
    let (status, kind, page) = text(&broker, "/docs/nothing").await;
    assert_eq!((status, kind.as_str()), (404, "text/html; charset=UTF-8"));
    assert!(page.contains("/docs/"));
}

#[tokio::test]
async fn what_language_models_are_told_names_every_route() {
    let broker = TestBroker::start().await;
    let (status, kind, told) = text(&broker, "/llms.txt").await;
    assert_eq!((status, kind.as_str()), (200, "text/plain;charset=UTF-8"));
    let (_, document) = broker.get_json("/openapi.json").await;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, says) in item.as_object().unwrap() {
            if says.get("deprecated").is_none() {
                assert!(told.contains(&format!("\n- {} {path}: ", method.to_uppercase())), "{method} {path}");
            }
        }
    }
    for said in [
        "JOB_INPUTS",
        "JOB_OUTPUTS",
        "JOB_CACHE",
        "JOB_ID",
        "CUDA_VISIBLE_DEVICES",
        "ignoreQueueOverride",
        "gridsocket run",
    ] {
        assert!(told.contains(said), "{said}");
    }
}

#[tokio::test]
async fn old_clients_are_told_where_blobs_go() {
    let broker = TestBroker::start().await;
    let url = broker.url("/f/some.key");
    let put = json!({ "url": url, "ref": { "value": "some.key", "type": "key" } });
    assert_eq!(broker.get_json("/upload/some.key").await, (200, put));
    assert_eq!(broker.http.put(&url).body("bytes").send().await.unwrap().status(), 200);
    let get = json!({ "url": url, "ref": { "value": url, "type": "url" } });
    assert_eq!(broker.get_json("/download/some.key").await, (200, get));
    assert_eq!(broker.get_json("/upload/..%2Fx").await.0, 400);

    let public = TestBroker::start_with(|config| config.public_url = Some("https://grid.example/".to_owned())).await;
    assert_eq!(public.get_json("/upload/k").await.1["url"], "https://grid.example/f/k");
}

#[tokio::test]
async fn a_remote_brokers_files_are_sent_on_to_with_their_names() {
    let broker = TestBroker::start().await;
    broker.put("/f/stored.bin", "<b>bytes</b>").await;
    let files = json!({ "a/o \"1\".html": { "type": "url", "value": broker.url("/f/stored.bin") } });
    let job = broker.submit("abc", json!({ "image": "x", "inputs": files })).await;
    let sent_on = broker.get(&format!("/q/abc/j/{job}/inputs/a/o%20%221%22.html")).await;
    assert_eq!(sent_on.status(), 302);
    let location = sent_on.headers()["location"].to_str().unwrap().to_owned();
    assert!(location.starts_with(&broker.url("/f/stored.bin?filename=")), "{location}");
    let file = broker.http.get(&location).send().await.unwrap();
    assert_eq!(file.headers()["content-type"], "text/html; charset=UTF-8");
    assert!(
        file.headers()["content-disposition"].to_str().unwrap().starts_with("attachment; filename=\"a/o _1_.html\"")
    );
    assert_eq!(file.headers()["x-content-type-options"], "nosniff");
    assert_eq!(file.text().await.unwrap(), "<b>bytes</b>");
}

#[tokio::test]
async fn what_happened_to_a_job_is_in_its_history() {
    let broker = TestBroker::start().await;
    let history = |query: &str| format!("/q/abc/j/{ECHO}/history.json{query}");
    assert_eq!(broker.get_json(&history("")).await, (200, json!({ "data": [], "before": null })));
    broker.submit("abc", echo()).await;
    broker.submit("abc", json!({ "image": "other" })).await;
    broker.post(&format!("/q/abc/j/{ECHO}/cancel?message=enough"), "").await;
    broker.submit("abc", echo()).await;
    broker.run_next("abc", json!({ "StatusCode": 0 })).await;
    let names = |answer: &Value| -> Vec<String> {
        let name = |record: &Value| record["event"].as_object().unwrap().keys().next().unwrap().clone();
        answer["data"].as_array().unwrap().iter().map(name).collect()
    };
    // The other one came first, so it is run first.
    broker.run_next("abc", json!({ "StatusCode": 3 })).await;
    let (status, newest) = broker.get_json(&history("")).await;
    assert_eq!(
        (status, names(&newest)),
        (200, vec!["JobQueued".to_owned(), "RunClaimed".into(), "RunFinished".into()])
    );
    let finished = &newest["data"][2];
    assert_eq!((&finished["v"], &finished["event"]["RunFinished"]["exit_code"]), (&json!(1), &json!(3)));
    assert_eq!(finished["hash"].as_str().unwrap().len(), 64);
    let (_, older) = broker.get_json(&history(&format!("?before={}", newest["before"]))).await;
    assert_eq!(names(&older), ["JobQueued", "NamespaceLeft", "JobCancelled"]);
    assert_eq!(older["data"][2]["event"]["JobCancelled"]["message"], "enough");
    assert_eq!((&older["data"][0]["seq"], &older["before"]), (&json!(1), &json!(null)));
    assert_eq!(broker.get_json(&history("?before=x")).await.0, 400);
    assert_eq!(broker.get_json(&history("?before=18446744073709551615")).await.1, newest);
    let elsewhere = format!("/q/other/j/{ECHO}/history.json");
    assert_eq!(broker.get_json(&elsewhere).await.1["data"], json!([]), "other queues know nothing of it");
}

/// The events of a stream, as `(name, data, id)`.
struct Events {
    answer: reqwest::Response,
    text: String,
}

impl Events {
    async fn open(broker: &TestBroker, job: &str, last: Option<&str>) -> Self {
        let mut request = broker.http.get(broker.url(&format!("/q/abc/j/{job}/stream")));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = within("the stream", request.send()).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        assert_eq!(answer.headers()["cache-control"], "no-cache");
        Self { answer, text: String::new() }
    }

    async fn next(&mut self) -> Option<(String, Value, String)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = event.to_owned();
                self.text = rest.to_owned();
                if event.starts_with(':') {
                    continue;
                }
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
                return Some((field("event: "), serde_json::from_str(&field("data: ")).unwrap(), field("id: ")));
            }
            let piece = within("an event", self.answer.chunk()).await.unwrap()?;
            self.text.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }

    async fn expect(&mut self, name: &str, data: Value) -> String {
        let (found, said, id) = self.next().await.unwrap();
        assert_eq!((found.as_str(), said), (name, data));
        id
    }
}

fn line(text: &str, at_ms: u64, stderr: bool) -> LogLine {
    LogLine { text: text.to_owned(), at_ms: UnixMillis(at_ms), stderr }
}

#[tokio::test]
async fn a_job_can_be_followed_as_events_and_followed_on() {
    let broker = TestBroker::start().await;
    broker.submit("abc", echo()).await;
    let mut events = Events::open(&broker, ECHO, None).await;
    events.expect("state", json!({ "state": "Queued" })).await;
    let mut worker = broker.worker("abc", "worker-1", 1).await;
    let (run, _) = worker.claim().await;
    events.expect("state", json!({ "state": "Running" })).await;
    worker.logs(run, LogStep::Build, 0, vec![line("#5 DONE", 1, true)]).await;
    events.expect("build-log", json!({ "lines": [["#5 DONE", 1, true]], "cursor": 1 })).await;
    worker.logs(run, LogStep::Run, 0, vec![line("hi\n", 2, false)]).await;
    let id = events.expect("run-log", json!({ "lines": [["hi\n", 2]], "cursor": 1 })).await;
    drop(events);

    worker.logs(run, LogStep::Run, 1, vec![line("there\n", 3, false)]).await;
    let mut events = Events::open(&broker, ECHO, Some(&id)).await;
    let mut seen = Vec::new();
    worker.end(run, RunOutcome::Success, json!({ "StatusCode": 0 })).await.unwrap();
    while let Some((name, data, _)) = events.next().await {
        seen.push((name, data));
    }
    let of =
        |name: &str| seen.iter().filter(|(found, _)| found == name).map(|(_, data)| data.clone()).collect::<Vec<_>>();
    assert_eq!(
        of("run-log"),
        [json!({ "lines": [["there\n", 3]], "cursor": 2 })],
        "nothing is lost and nothing comes twice"
    );
    assert_eq!(of("build-log"), [] as [Value; 0]);
    let over = json!({ "state": "Finished", "reason": "Success" });
    assert_eq!(seen[seen.len() - 2..], [("state".to_owned(), over.clone()), ("final".to_owned(), over)]);
}

#[tokio::test]
async fn a_stream_says_also_how_a_job_without_a_result_ended() {
    let broker = TestBroker::start().await;
    broker.submit("abc", echo()).await;
    let mut events = Events::open(&broker, ECHO, None).await;
    events.expect("state", json!({ "state": "Queued" })).await;
    broker.post(&format!("/q/abc/j/{ECHO}/cancel"), "").await;
    let over = json!({ "state": "Finished", "reason": "Cancelled" });
    events.expect("state", over.clone()).await;
    events.expect("final", over).await;
    assert_eq!(events.next().await, None);
    let (status, told) = broker.get_json(&format!("/q/other/j/{ECHO}/stream")).await;
    assert_eq!((status, &told["code"]), (404, &json!("no_such_job")), "nobody is kept waiting for what is not there");
}

#[tokio::test]
async fn a_stream_ends_with_the_broker_without_saying_that_the_job_is_over() {
    let broker = TestBroker::start().await;
    broker.submit("abc", echo()).await;
    let mut events = Events::open(&broker, ECHO, None).await;
    events.expect("state", json!({ "state": "Queued" })).await;
    let TestBroker { handle, .. } = broker;
    within("the shutdown", handle.shutdown()).await;
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn a_failed_job_is_answered_again_or_run_again_as_asked() {
    let broker = TestBroker::start().await;
    let body = json!({ "definition": echo() }).to_string();
    let state = async || broker.get_json("/q/abc").await.1["data"][ECHO]["state"].clone();
    let fail = async || {
        let mut worker = broker.worker("abc", "worker-1", 1).await;
        let (run, _) = worker.claim().await;
        worker.end(run, RunOutcome::Error, json!({ "error": "no such image" })).await.unwrap();
        run.run
    };
    let retry_in_body = json!({ "definition": echo(), "control": { "retry": true } }).to_string();
    broker.post("/q/abc", body.clone()).await;
    assert_eq!(fail().await, 1);
    for (path, body) in
        [("/q/abc", &body), ("/q/abc?retry=0", &body), ("/q/abc?retry=", &body), ("/q/abc?xretry=1", &body)]
    {
        assert_eq!(broker.post(path, body.clone()).await.0, 200);
        assert_eq!(state().await, "Finished", "{path}");
    }
    for (number, (path, body)) in
        [("/q/abc?retry=1", &body), ("/q/abc/j?a=b&retry", &body), ("/q/abc", &retry_in_body)].into_iter().enumerate()
    {
        for _ in 0..2 {
            assert_eq!(broker.post(path, body.clone()).await.0, 200);
            assert_eq!(state().await, "Queued", "{path}");
        }
        assert_eq!(fail().await as usize, number + 2, "each is a run of its own");
    }
    let bulk = within("a bulk", broker.http.post(broker.url("/q/abc/bulk")).body(retry_in_body).send()).await.unwrap();
    assert!(bulk.text().await.unwrap().starts_with(r#"{"line":1,"success":true"#));
    assert_eq!(state().await, "Queued");
}

#[tokio::test]
async fn a_result_forged_in_one_queue_reaches_no_other() {
    let broker = TestBroker::start().await;
    let forged = json!({ "StatusCode": 0, "outputs": { "o": { "type": "utf8", "value": "forged" } } });
    broker.submit("attacker", echo()).await;
    broker.run_next("attacker", forged).await;
    // Whoever submits or copies the same job elsewhere waits for a run of his own.
    broker.submit("victim", echo()).await;
    let copy = json!({ "queue": "copied" }).to_string();
    assert_eq!(broker.post(&format!("/j/{ECHO}/copy"), copy).await.0, 200);
    for queue in ["victim", "copied"] {
        assert_eq!(broker.get_json(&format!("/q/{queue}")).await.1["data"][ECHO]["state"], "Queued");
        assert_eq!(broker.get_json(&format!("/q/{queue}/j/{ECHO}/result.json")).await.1, json!({ "data": null }));
        assert_eq!(broker.get(&format!("/q/{queue}/j/{ECHO}/outputs/o")).await.status(), 404);
        assert_eq!(broker.get_json(&format!("/q/{queue}/j/{ECHO}/run-logs.json")).await.1["isFinal"], false);
    }
    let own = json!({ "StatusCode": 0, "outputs": { "o": { "type": "utf8", "value": "own" } } });
    broker.run_next("victim", own.clone()).await;
    assert_eq!(broker.get_json(&format!("/q/victim/j/{ECHO}/result.json")).await.1["data"]["finished"]["result"], own);
    // Without a queue there is nothing where queues disagree: neither the one nor the other.
    for path in ["result.json", "results.json"] {
        assert_eq!(broker.get_json(&format!("/j/{ECHO}/{path}")).await.1, json!({ "data": null }));
    }
    assert_eq!(broker.get(&format!("/j/{ECHO}/outputs/o")).await.status(), 404);
    assert_eq!(broker.get_json(&format!("/j/{ECHO}.json")).await.1["data"].get("results"), None);
    // Deleting it in one queue takes nothing from the other.
    broker.post(&format!("/q/attacker/j/{ECHO}/cancel?namespace=*"), "").await;
    assert_eq!(broker.get_json(&format!("/q/victim/j/{ECHO}/result.json")).await.1["data"]["finished"]["result"], own);
}

#[tokio::test]
async fn a_status_is_of_those_who_are_there_and_waits_for_nobody() {
    let broker = TestBroker::start().await;
    let large = json!({ "image": "x".repeat(5_000_000) });
    let running = broker.submit("abc", large).await.to_string();
    let mut silent = broker.worker("abc", "silent", 1).await;
    silent.claim().await;
    let (_, status) = broker.get_json("/q/abc/status").await;
    assert_eq!(status["localWorkers"]["silent"]["queue"][&running]["definition"], json!(null), "too large to show");
    drop(silent);
    until("the worker to be silent", || async {
        let (_, status) = broker.get_json("/q/abc/status").await;
        status["localWorkers"] == json!({}) && status["queueInfo"]["localWorkerCount"] == 1
    })
    .await;
    broker.post(&format!("/q/abc/j/{running}/cancel"), "").await;
    let (_, status) = broker.get_json("/q/abc/status").await;
    assert_eq!(status["jobs"], json!({}), "cancelled jobs are not shown");
    assert_eq!(status["queueInfo"]["jobStates"][0]["state"], "Finished", "but counted");
}

#[tokio::test]
async fn whoever_has_a_blob_is_not_sent_it_again() {
    let broker = TestBroker::start().await;
    broker.put("/f/some.key", "0123456789").await;
    let get = async |path: &str, name: &'static str, value: &str, range: bool| {
        let mut request = broker.http.get(broker.url(path)).header(name, value);
        if range {
            request = request.header("range", "bytes=2-3");
        }
        let answer = request.send().await.unwrap();
        let tag = answer.headers().get("etag").map(|tag| tag.to_str().unwrap().to_owned());
        (answer.status().as_u16(), tag, answer.text().await.unwrap())
    };
    let tag = Some("\"some.key\"".to_owned());
    for same in ["\"some.key\"", "W/\"some.key\"", "\"other\", \"some.key\"", "*"] {
        assert_eq!(get("/f/some.key", "if-none-match", same, false).await, (304, tag.clone(), String::new()), "{same}");
    }
    assert_eq!(get("/f/some.key", "if-none-match", "\"other\"", false).await, (200, tag.clone(), "0123456789".into()));
    assert_eq!(get("/f/some.key", "if-range", "\"some.key\"", true).await, (206, tag.clone(), "23".into()));
    assert_eq!(get("/f/some.key", "if-range", "\"other\"", true).await, (200, tag, "0123456789".into()));
    assert_eq!(get("/f/none", "if-none-match", "*", false).await.0, 404);
}

/// What is said to prove compatibility is there.
#[test]
fn every_test_that_the_table_names_exists() {
    let named = crate::named::named_in(include_str!("../../../docs/compatibility.md"));
    assert!(named > 150, "{named}");
}
