//! What the original's peers rely on, to the letter, where no other module looks: escapes, streams as text, cursors over everything that
//! happens to a job, namespaces, and what queues may know of each other.

use protocol::event::RunOutcome;
use protocol::id::{JobId, UnixMillis};
use protocol::native::{HeldRun, LogLine, LogStep, ToBroker};
use serde_json::{Value, json};

use crate::support::{Socket, TestBroker, until, within};

const ECHO: &str = "84696046848ef38f50a2f6182fc7674eaee3d1fac23fe57466d6cb5f771794e4";

fn echo() -> Value {
    json!({ "image": "alpine:3.20", "command": "echo hello" })
}

fn id() -> JobId {
    ECHO.parse().unwrap()
}

fn lines(from: u64, count: u64) -> Vec<LogLine> {
    let line = |number| LogLine { text: format!("line {number}\n"), at_ms: UnixMillis(number), stderr: false };
    (from..from + count).map(line).collect()
}

/// Deletes over a socket, which HTTP has no route for, and waits until it is on disk.
async fn delete(client: &mut Socket, req: u64) {
    client.send(&ToBroker::Delete { req, job: id(), namespace: Some("*".parse().unwrap()) }).await;
    client.answer(req).await.unwrap();
}

#[tokio::test]
async fn names_are_escaped_once_and_a_cancel_takes_a_namespace_that_is_escaped_twice() {
    let broker = TestBroker::start().await;
    let named = "a b/ü%41&+é";
    let queue = "/q/my%20queue%3F%25";
    let body = json!({ "definition": echo(), "control": { "namespace": named } });
    let submit = async |namespace: &str| {
        let body = json!({ "definition": echo(), "control": { "namespace": namespace } });
        assert_eq!(broker.post(queue, body.to_string()).await.0, 200);
    };
    assert_eq!(broker.post(queue, body.to_string()).await.0, 200);
    assert_eq!(broker.get_json("/q/my%20queue%3f%25/status").await.1["queueInfo"]["address"], "my queue?%");
    submit("keeps").await;
    let of = |rest: &str| format!("{queue}/j/{ECHO}{rest}");
    let namespaces = async || broker.get_json(&of("/namespaces.json")).await.1["data"].clone();
    let once = "a%20b%2F%C3%BC%2541%26%2B%C3%A9";
    let twice = once.replace('%', "%25");
    for (rest, told) in [
        (format!("/cancel?message=x&namespace={once}"), named),
        (format!("/cancel?namespace={twice}"), named),
        (format!("/cancel?namespace={}", once.replace("%20", "+")), named),
        (format!("/{once}/cancel"), named),
        // A name that it does not have is nobody's wish, and no error, whatever its escapes.
        ("/cancel?namespace=%25".to_owned(), "%"),
        ("/cancel?namespace=%25zz%25ff".to_owned(), "%zz%ff"),
        ("/cancel?namespace=100%".to_owned(), "100%"),
    ] {
        submit(named).await;
        assert_eq!(namespaces().await, json!([named, "keeps"]));
        let answer = broker.post(&of(&rest), "").await;
        assert_eq!(answer, (200, json!({ "success": true, "jobId": ECHO, "namespace": told })), "{rest}");
        let left = if told == named { json!(["keeps"]) } else { json!([named, "keeps"]) };
        assert_eq!(namespaces().await, left, "{rest}");
    }
    // The names as they are go before what they could be read as.
    submit("100%25").await;
    submit("100%").await;
    broker.post(&of("/cancel?namespace=100%2525"), "").await;
    assert_eq!(namespaces().await, json!(["100%", named, "keeps"]));
    broker.post(&of("/cancel?namespace=%252A"), "").await;
    assert_eq!(broker.get_json(queue).await, (200, json!({ "data": {} })), "a star that is escaped twice is a star");
}

#[tokio::test]
async fn a_stream_is_to_the_letter_what_clients_take_apart() {
    let broker = TestBroker::start().await;
    broker.submit("abc", echo()).await;
    let mut worker = broker.worker("abc", "worker-1", 1).await;
    let (run, _) = worker.claim().await;
    let line = |text: &str, at, stderr| LogLine { text: text.to_owned(), at_ms: UnixMillis(at), stderr };
    worker.logs(run, LogStep::Build, 0, vec![line("#5 DONE", 1, true)]).await;
    worker.logs(run, LogStep::Run, 0, vec![line("hi\n", 2, false), line("é \"\\\r\n\u{2028}", 3, false)]).await;
    worker.end(run, RunOutcome::TimedOut, json!({ "isTimedOut": true })).await.unwrap();
    let answer = broker.get(&format!("/q/abc/j/{ECHO}/stream")).await;
    assert_eq!(answer.status(), 200);
    for (name, value) in
        [("content-type", "text/event-stream"), ("cache-control", "no-cache"), ("transfer-encoding", "chunked")]
    {
        assert_eq!(answer.headers()[name], value);
    }
    let expected = concat!(
        "event: build-log\ndata: {\"lines\":[[\"#5 DONE\",1,true]],\"cursor\":1}\nid: 1-0\n\n",
        "event: run-log\ndata: {\"lines\":[[\"hi\\n\",2],[\"é \\\"\\\\\\r\\n\u{2028}\",3]],\"cursor\":2}\nid: 1-2\n\n",
        "event: state\ndata: {\"state\":\"Finished\",\"reason\":\"TimedOut\"}\nid: 1-2\n\n",
        "event: final\ndata: {\"state\":\"Finished\",\"reason\":\"TimedOut\"}\nid: 1-2\n\n",
    );
    assert_eq!(within("the stream", answer.text()).await.unwrap(), expected);
}

/// Somebody who polls a log: each line once and in order, or told of as gone, and never a cursor that goes back.
struct Poller<'a> {
    broker: &'a TestBroker,
    next: u64,
    texts: Vec<String>,
}

impl Poller<'_> {
    async fn poll(&mut self) -> Value {
        let path = format!("/q/abc/j/{ECHO}/run-logs.json?since={}", self.next);
        let (status, page) = self.broker.get_json(&path).await;
        assert_eq!((status, &page["sliceStart"]), (200, &json!(self.next)));
        let next = page["nextCursor"].as_u64().unwrap();
        assert!(next >= self.next, "the cursor went back from {} to {next}", self.next);
        self.next = next;
        let text = |line: &Value| line[0].as_str().unwrap().to_owned();
        self.texts.extend(page["data"].as_array().unwrap().iter().map(text));
        page
    }

    async fn until(&mut self, end: u64) {
        within("lines", async {
            while self.next < end {
                self.poll().await;
            }
        })
        .await;
        assert_eq!(self.next, end);
    }
}

#[tokio::test]
async fn a_logs_cursors_never_go_back_whatever_happens_to_the_job() {
    let broker = TestBroker::start().await;
    for namespace in ["a", "b"] {
        broker.submit_as("abc", echo(), Some(namespace)).await;
    }
    let mut worker = broker.worker("abc", "worker-1", 1).await;
    let (run, _) = worker.claim().await;
    worker.logs(run, LogStep::Run, 0, lines(0, 3)).await;
    let mut poller = Poller { broker: &broker, next: 0, texts: Vec::new() };
    poller.until(3).await;
    // One namespace's cancel stops nothing and takes no line.
    broker.post(&format!("/q/abc/j/{ECHO}/cancel?namespace=a"), "").await;
    assert_eq!(poller.poll().await["isFinal"], false);
    worker.logs(run, LogStep::Run, 3, lines(3, 2)).await;
    poller.until(5).await;
    // The run is given back and another one begins; its lines follow.
    worker.socket.send(&ToBroker::HandBack { req: 90, run, why: "test".to_owned(), busy: true }).await;
    worker.socket.answer(90).await.unwrap();
    let mut other = broker.worker("abc", "worker-2", 1).await;
    let (second, _) = other.claim().await;
    assert_eq!(second.run, run.run + 1);
    worker.logs(run, LogStep::Run, 5, lines(900, 2)).await;
    other.logs(second, LogStep::Run, 0, lines(5, 2)).await;
    poller.until(7).await;
    let (next, texts) = (poller.next, std::mem::take(&mut poller.texts));
    // The broker stops and comes back.
    let broker = broker.restart().await;
    let mut poller = Poller { broker: &broker, next, texts };
    let page = poller.poll().await;
    assert_eq!((&page["data"], &page["isFinal"]), (&json!([]), &json!(false)));
    let mut other = broker.worker_holding("abc", "worker-2", 1, vec![second]).await;
    other.logs(second, LogStep::Run, 1, lines(6, 3)).await;
    poller.until(9).await;
    other.end(second, RunOutcome::Error, json!({ "error": "x" })).await.unwrap();
    assert_eq!(poller.poll().await["isFinal"], true);
    // It runs again; whoever has read it to its end reads on.
    broker.post("/q/abc?retry=1", json!({ "definition": echo() }).to_string()).await;
    assert_eq!(poller.poll().await["isFinal"], false);
    let mut worker = broker.worker("abc", "worker-3", 1).await;
    let (third, _) = worker.claim().await;
    worker.logs(third, LogStep::Run, 0, lines(9, 1)).await;
    poller.until(10).await;
    // Everyone withdraws.
    broker.post(&format!("/q/abc/j/{ECHO}/cancel?namespace=*"), "").await;
    assert_eq!(poller.poll().await["isFinal"], true);
    let expected: Vec<String> = lines(0, 10).into_iter().map(|line| line.text).collect();
    assert_eq!(poller.texts, expected);
}

#[tokio::test]
async fn over_the_cap_the_oldest_lines_go_and_every_reader_is_told_how_many() {
    let broker = TestBroker::start_with(|config| {
        config.limits.logs.job_bytes_max = 20_000;
        config.limits.logs.chunk_bytes_max = 2_000;
    })
    .await;
    broker.submit("abc", echo()).await;
    let mut worker = broker.worker("abc", "worker-1", 1).await;
    let (run, _) = worker.claim().await;
    worker.logs(run, LogStep::Run, 0, lines(0, 10)).await;
    let mut poller = Poller { broker: &broker, next: 0, texts: Vec::new() };
    poller.until(10).await;
    for first in (10..5_000).step_by(10) {
        worker.logs(run, LogStep::Run, first, lines(first, 10)).await;
    }
    worker.finish(run, json!({ "StatusCode": 0 })).await;
    // Line 10 and some after it are gone: one line stands for them, and the cursor counts them.
    poller.poll().await;
    assert_eq!(poller.next, 5_000);
    let gone: u64 = poller.texts[10].strip_prefix("[gridsocket: ").unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(poller.texts[10].ends_with(" lines are not kept here]\n"), "{}", poller.texts[10]);
    let kept: Vec<String> = lines(10 + gone, 4_990 - gone).into_iter().map(|line| line.text).collect();
    assert_eq!(poller.texts[11..], kept);
    // The same in a stream, also for whoever comes back at a line that is gone meanwhile.
    for (last, since) in [("", 0), ("0-10", 10), ("0-7", 7)] {
        let request = broker.http.get(broker.url(&format!("/q/abc/j/{ECHO}/stream"))).header("last-event-id", last);
        let text = within("the stream", request.send()).await.unwrap().text().await.unwrap();
        let event = text.split("\n\n").next().unwrap();
        let (count, cursor) = (10 + gone - since, 10 + gone);
        let expected =
            format!("event: run-log\ndata: {{\"lines\":[[\"[gridsocket: {count} lines are not kept here]\\n\",");
        assert!(
            event.starts_with(&expected) && event.ends_with(&format!("\"cursor\":{cursor}}}\nid: 0-{cursor}")),
            "{event}"
        );
        assert!(text.contains("line 4999\\n") && text.ends_with("id: 0-5000\n\n"), "{last}");
    }
}

#[tokio::test]
async fn a_running_job_goes_on_until_nobody_wants_it() {
    let broker = TestBroker::start().await;
    for namespace in ["b", "a", "_", "c"] {
        broker.submit_as("abc", echo(), Some(namespace)).await;
    }
    let mut worker = broker.worker("abc", "worker-1", 1).await;
    let (run, _) = worker.claim().await;
    let entry = async || broker.get_json("/q/abc").await.1["data"][ECHO].clone();
    assert_eq!(entry().await["namespaces"], json!(["_", "a", "b", "c"]), "in order");
    for (namespace, left) in [("b", json!(["_", "a", "c"])), ("_", json!(["a", "c"])), ("none", json!(["a", "c"]))] {
        let (_, told) = broker.post(&format!("/q/abc/j/{ECHO}/cancel?namespace={namespace}"), "").await;
        assert_eq!(told, json!({ "success": true, "jobId": ECHO, "namespace": namespace }));
        let entry = entry().await;
        assert_eq!((&entry["state"], &entry["namespaces"]), (&json!("Running"), &left));
    }
    // A newer job takes one of two: the run goes on. It takes the other as well: it is stopped.
    broker.submit_as("abc", json!({ "image": "newer" }), Some("a")).await;
    assert_eq!(entry().await["namespaces"], json!(["c"]));
    worker.logs(run, LogStep::Run, 0, lines(0, 1)).await;
    until("its line", || async {
        broker.get_json(&format!("/q/abc/j/{ECHO}/run-logs.json")).await.1["nextCursor"] == 1
    })
    .await;
    let newest = broker.submit_as("abc", json!({ "image": "newest" }), Some("c")).await;
    worker
        .socket
        .expect("the order to stop", |message| {
            matches!(message, protocol::native::FromBroker::Stop { run: stopped, .. } if stopped == run).then_some(())
        })
        .await;
    assert_eq!(entry().await, Value::Null);
    let (_, single) = broker.get_json(&format!("/q/abc/j/{ECHO}")).await;
    let status =
        json!({ "state": "Finished", "finishedReason": "JobReplacedByClient", "run": 1, "replacedBy": newest });
    assert_eq!(single["data"]["status"], status, "what became of it can be asked");
    assert_eq!(broker.get_json(&format!("/q/abc/j/{ECHO}/result.json")).await.1, json!({ "data": null }));
}

/// The same job in two queues, with a result and a line of its own in each.
async fn in_two_queues(broker: &TestBroker) -> [HeldRun; 2] {
    let run = async |queue: &str, code: i64, text: &str| {
        broker.submit(queue, echo()).await;
        let mut worker = broker.worker(queue, "worker-1", 1).await;
        let (run, _) = worker.claim().await;
        let line = LogLine { text: text.to_owned(), at_ms: UnixMillis(1), stderr: false };
        worker.logs(run, LogStep::Run, 0, vec![line]).await;
        worker.finish(run, json!({ "StatusCode": code })).await;
        run
    };
    [run("one", 1, "one\n").await, run("two", 2, "two\n").await]
}

#[tokio::test]
async fn what_is_deleted_in_one_queue_stays_in_the_others() {
    let broker = TestBroker::start().await;
    in_two_queues(&broker).await;
    let of = |queue: &str, rest: &str| format!("/q/{queue}/j/{ECHO}/{rest}");
    let result = async |queue: &str| broker.get_json(&of(queue, "result.json")).await.1["data"].clone();
    let two = (result("two").await, broker.get_json(&of("two", "run-logs.json")).await.1);
    delete(&mut broker.client("one").await, 1).await;
    assert_eq!(result("one").await, Value::Null);
    assert_eq!(broker.get_json(&of("one", "run-logs.json")).await.1["data"], json!([]));
    let (_, single) = broker.get_json(&format!("/q/one/j/{ECHO}")).await;
    assert_eq!(single["data"]["status"]["finishedReason"], "Deleted");
    assert_eq!(single["data"]["definition"], echo(), "what it was is known until it is forgotten");
    assert_eq!((result("two").await, broker.get_json(&of("two", "run-logs.json")).await.1), two);
    // The one that is left is the only answer where no queue is named.
    assert_eq!(broker.get_json(&format!("/j/{ECHO}/result.json")).await.1["data"], two.0);
    delete(&mut broker.client("two").await, 1).await;
    assert_eq!(broker.get_json(&format!("/j/{ECHO}/result.json")).await.1["data"], Value::Null);
}

#[tokio::test]
async fn without_a_queue_nobody_is_given_lines_or_a_result_that_another_queue_made_up() {
    let broker = TestBroker::start().await;
    let unscoped = async |rest: &str| broker.get_json(&format!("/j/{ECHO}/{rest}")).await.1;
    // Somebody else was first; whoever submits it now waits for a run of his own, also where no queue is named.
    broker.submit("attacker", echo()).await;
    broker
        .run_next("attacker", json!({ "StatusCode": 0, "outputs": { "o": { "type": "utf8", "value": "forged" } } }))
        .await;
    assert_eq!(unscoped("result.json").await["data"]["finishedReason"], "Success", "it is the only one");
    broker.submit("victim", echo()).await;
    assert_eq!(unscoped("result.json").await["data"], Value::Null);
    assert_eq!(broker.get_json(&format!("/j/{ECHO}.json")).await.1["data"].get("results"), None);
    assert_eq!(broker.get(&format!("/j/{ECHO}/outputs/o")).await.status(), 404);
    let logs = unscoped("run-logs.json?since=3").await;
    assert_eq!(logs, json!({ "data": [], "sliceStart": 3, "nextCursor": 0, "isFinal": false }));
    broker.run_next("victim", json!({ "StatusCode": 0 })).await;
    assert_eq!(unscoped("run-logs.json").await["isFinal"], true, "that it is over everywhere can be said");
    assert_eq!(unscoped("result.json").await["data"], Value::Null, "two results are none");
}

#[tokio::test]
async fn a_copy_takes_the_definition_alone_and_only_one_that_all_queues_agree_on() {
    let broker = TestBroker::start().await;
    in_two_queues(&broker).await;
    let copy = async |queue: &str| {
        broker.post(&format!("/j/{ECHO}/copy"), json!({ "queue": queue, "debug": true }).to_string()).await
    };
    assert_eq!(copy("three").await, (200, json!({ "success": true })));
    let entry = broker.get_json("/q/three").await.1["data"][ECHO].clone();
    assert_eq!((&entry["state"], &entry["namespaces"], entry.get("debug")), (&json!("Queued"), &json!(["_"]), None));
    assert_eq!(broker.get_json(&format!("/q/three/j/{ECHO}/run-logs.json")).await.1["nextCursor"], 0);
    assert_eq!(broker.get_json(&format!("/q/three/j/{ECHO}/result.json")).await.1["data"], Value::Null);
    // Of the same id, but with another file behind it: a digest that says what to take for the input is in no id.
    let with =
        |hash: &str| json!({ "image": "x", "inputs": { "f": { "type": "url", "value": "http://h/f", "hash": hash } } });
    let own = broker.submit("mine", with("aa")).await;
    assert_eq!(broker.submit("attacker", with("bb")).await, own, "ids do not tell them apart");
    let to = json!({ "queue": "mine2" }).to_string();
    let (status, told) = broker.post(&format!("/j/{own}/copy"), to).await;
    assert_eq!((status, &told["error"]), (404, &json!("Job definition not found")), "nobody's word counts more");
    assert_eq!(broker.get_json(&format!("/j/{own}/definition.json")).await.1["data"], Value::Null);
    // A queue that has the job keeps the definition that it was given first.
    broker.submit("mine", with("bb")).await;
    assert_eq!(broker.get_json(&format!("/q/mine/j/{own}/definition.json")).await.1["data"], with("aa"));
}
