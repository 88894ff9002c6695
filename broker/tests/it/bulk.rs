//! Many submissions in one request: what goes in line by line, and what comes back.

use std::time::Duration;

use futures_util::stream;
use protocol::canonical::job_id;
use protocol::json as js;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::support::{TestBroker, within};

const ECHO: &str = r#"{"definition":{"image":"alpine:3.20","command":"echo hello"}}"#;
const ECHO_ID: &str = "84696046848ef38f50a2f6182fc7674eaee3d1fac23fe57466d6cb5f771794e4";

fn submission(number: usize) -> String {
    json!({ "definition": { "image": "a", "command": number.to_string() } }).to_string()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"))).collect()
}

async fn bulk(broker: &TestBroker, body: impl Into<reqwest::Body>) -> Vec<Value> {
    let response = within("a bulk", broker.http.post(broker.url("/q/abc/bulk")).body(body).send()).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    lines(&within("its answers", response.text()).await.unwrap())
}

/// A bulk whose body is open.
struct Open {
    body: mpsc::Sender<Result<String, std::io::Error>>,
    answer: reqwest::Response,
    text: String,
}

impl Open {
    async fn start(broker: &TestBroker) -> Self {
        let (body, pieces) = mpsc::channel(1);
        let pieces = stream::unfold(pieces, |mut pieces| async { Some((pieces.recv().await?, pieces)) });
        let request = broker.http.post(broker.url("/q/abc/bulk")).body(reqwest::Body::wrap_stream(pieces));
        let answer = within("the head of the answer", request.send()).await.unwrap();
        Self { body, answer, text: String::new() }
    }

    async fn send(&self, text: impl Into<String>) {
        self.body.send(Ok(text.into())).await.unwrap();
    }

    /// The next whole line; `None` at the end.
    async fn line(&mut self) -> Option<Value> {
        loop {
            if let Some((line, rest)) = self.text.split_once('\n') {
                let line = serde_json::from_str(line).unwrap();
                self.text = rest.to_owned();
                return Some(line);
            }
            let piece = within("an answer", self.answer.chunk()).await.unwrap()?;
            self.text.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }
}

#[tokio::test]
async fn each_line_is_acknowledged_in_order_and_the_sum_comes_last() {
    let broker = TestBroker::start().await;
    let body = format!(
        "{ECHO}\n\n  \r\n{}\r\n{ECHO}\n{{\"id\":\"{ECHO_ID}\",\"definition\":{{\"command\":\"echo hello\",\"image\":\"alpine:3.20\"}},\
         \"control\":{{\"namespace\":\"n\"}}}}",
        submission(1)
    );
    let told = bulk(&broker, body).await;
    let other = job_id(&js::parse(br#"{"image":"a","command":"1"}"#).unwrap()).to_string();
    let ids: Vec<_> =
        told[..4].iter().map(|line| (line["line"].as_u64().unwrap(), line["jobId"].as_str().unwrap())).collect();
    assert_eq!(ids, [(1, ECHO_ID), (4, &other), (5, ECHO_ID), (6, ECHO_ID)]);
    assert!(told[..4].iter().all(|line| line["success"] == true && line.get("index").is_none()));
    assert_eq!(told.len(), 5);
    let sum = &told[4];
    assert_eq!((&sum["lines"], &sum["queued"], &sum["refused"]), (&json!(4), &json!(4), &json!(0)));
    assert_eq!(sum["head"]["hash"].as_str().unwrap().len(), 64);
    assert_eq!(sum["head"]["seq"], told[3]["seq"]);
    let (_, list) = broker.get_json("/q/abc").await;
    assert_eq!(list["data"].as_object().unwrap().len(), 2);
    assert_eq!(list["data"][ECHO_ID]["namespaces"], json!(["_", "n"]));
}

#[tokio::test]
async fn an_empty_body_is_answered_with_an_empty_sum() {
    let broker = TestBroker::start().await;
    for body in ["", "\n", " \n\t\n"] {
        let told = bulk(&broker, body).await;
        assert_eq!(told.len(), 1);
        assert_eq!((&told[0]["lines"], &told[0]["head"]["seq"]), (&json!(0), &json!(0)));
    }
}

#[tokio::test]
async fn a_bad_line_is_told_by_its_number_and_the_next_ones_are_taken() {
    let broker = TestBroker::start_with(|config| config.limits.body_bytes_max = 1000).await;
    let long = format!(r#"{{"definition":{{"image":"{}"}}}}"#, "x".repeat(1000));
    let cases: &[(&[u8], &str)] = &[
        (b"hello", "not_json"),
        (b"{\"definition\":", "not_json"),
        (b"[]", "not_an_object"),
        (b"{}", "no_definition"),
        (b"{\"definition\":{\"image\":\"\xff\"}}", "not_utf8"),
        (br#"{"definition":{"inputs":{"../x":{"value":"y"}}}}"#, "bad_file_name"),
        (br#"{"id":"x","definition":{}}"#, "bad_job_id"),
        (br#"{"definition":{},"control":{"namespace":7}}"#, "bad_namespace"),
        (br#"{"definition":{},"array":7}"#, "bad_array"),
        (br#"{"definition":{},"array":{"to":3,"step":0}}"#, "bad_array"),
        (br#"{"definition":{"command":"{{i}}"},"array":{"to":3}}"#, "bad_array"),
        (long.as_bytes(), "line_too_long"),
    ];
    let mut body = Vec::new();
    for (number, (line, _)) in cases.iter().enumerate() {
        body.extend_from_slice(line);
        body.extend_from_slice(format!("\n{}\n", submission(number)).as_bytes());
    }
    let told = bulk(&broker, body).await;
    for (at, (line, code)) in cases.iter().enumerate() {
        let (bad, good) = (&told[2 * at], &told[2 * at + 1]);
        let shown = String::from_utf8_lossy(&line[..line.len().min(60)]);
        assert_eq!((&bad["line"], &bad["code"]), (&json!(2 * at + 1), &json!(code)), "{shown}: {bad}");
        let words = bad["error"].as_str().unwrap();
        assert!(words.len() > 10 && !words.contains("line 1"), "{words}");
        assert_eq!((&good["line"], &good["success"]), (&json!(2 * at + 2), &json!(true)), "{good}");
    }
    let sum = &told[2 * cases.len()];
    assert_eq!((&sum["queued"], &sum["refused"]), (&json!(cases.len()), &json!(cases.len())));
    assert_eq!(broker.get_json("/q/abc").await.1["data"].as_object().unwrap().len(), cases.len());
}

#[tokio::test]
async fn an_answer_comes_before_the_next_line_is_sent() {
    let broker = TestBroker::start().await;
    let mut open = Open::start(&broker).await;
    for number in 0..5_usize {
        let text = submission(number) + "\n";
        let (first, second) = text.split_at(7);
        open.send(first).await;
        open.send(second).await;
        assert_eq!(open.line().await.unwrap()["line"], number + 1);
        assert_eq!(broker.get_json("/q/abc").await.1["data"].as_object().unwrap().len(), number + 1, "it is there");
    }
    let Open { body, mut answer, .. } = open;
    drop(body);
    let sum = within("the sum", answer.chunk()).await.unwrap().unwrap();
    assert_eq!(lines(std::str::from_utf8(&sum).unwrap())[0]["queued"], 5);
}

#[tokio::test]
async fn ten_thousand_lines_are_answered_in_order() {
    const LINES: usize = 10_000;
    let broker = TestBroker::start().await;
    let body: Vec<String> = (0..LINES).map(submission).collect();
    let told = bulk(&broker, body.join("\n")).await;
    assert_eq!(told.len(), LINES + 1);
    for (at, line) in told[..LINES].iter().enumerate() {
        assert_eq!(line["line"], at + 1);
        let definition = js::parse(format!(r#"{{"image":"a","command":"{at}"}}"#).as_bytes()).unwrap();
        assert_eq!(line["jobId"], job_id(&definition).to_string());
    }
    assert_eq!(told[LINES]["queued"], LINES);
    assert_eq!(told[LINES]["head"]["seq"], LINES);
    let metrics = broker.get("/metrics").await.text().await.unwrap();
    let syncs = metrics.lines().find_map(|line| line.strip_prefix("gridsocket_journal_syncs_total ")).unwrap();
    assert!(syncs.parse::<usize>().unwrap() < LINES / 4, "lines share their trips to the disk: {syncs}");
}

#[tokio::test]
async fn an_array_is_a_job_for_each_number_and_each_is_the_one_written_by_hand() {
    let broker = TestBroker::start().await;
    let array = r#"{"array":{"from":2,"to":8,"step":3,"index":"i"},"definition":{"image":"a","command":"x {{i}}","inputs":{"f{{i}}":{"value":"{{i}}"}}},"control":{"namespace":"_"}}"#;
    let told = bulk(&broker, format!("{array}\n{ECHO}\n")).await;
    let numbers: Vec<_> = told[..3].iter().map(|line| (line["line"].as_u64(), line["index"].as_u64())).collect();
    assert_eq!(numbers, [(Some(1), Some(2)), (Some(1), Some(5)), (Some(1), Some(8))]);
    assert_eq!((&told[3]["line"], &told[3]["jobId"]), (&json!(2), &json!(ECHO_ID)));
    assert_eq!((&told[4]["lines"], &told[4]["queued"]), (&json!(2), &json!(4)));
    for line in &told[..3] {
        let i = &line["index"];
        let by_hand = json!({ "inputs": { format!("f{i}"): { "value": i.to_string() } }, "command": format!("x {i}"), "image": "a" });
        assert_eq!(line["jobId"], broker.submit("abc", by_hand).await.to_string());
    }
    assert_eq!(broker.get_json("/q/abc").await.1["data"].as_object().unwrap().len(), 4);
}

#[tokio::test]
async fn one_job_of_an_array_that_cannot_be_is_told_by_its_number() {
    let broker = TestBroker::start().await;
    let array = r#"{"array":{"to":2},"definition":{"inputs":{"f1":{"value":"a"},"f{{index}}":{"value":"b"}}}}"#;
    let told = bulk(&broker, array).await;
    assert_eq!((&told[0]["success"], &told[2]["success"]), (&json!(true), &json!(true)));
    assert_eq!((&told[1]["index"], &told[1]["code"]), (&json!(1), &json!("bad_array")));
    assert!(told[1]["error"].as_str().unwrap().contains("f1"));
}

#[tokio::test]
async fn a_template_is_shorter_than_a_line_may_be() {
    let broker = TestBroker::start().await;
    let line = |bytes: usize, array: &str| {
        let start = format!(r#"{{"array":{array},"definition":{{"command":"{{{{index}}}}","image":""#);
        format!("{start}{}\"}}}}", "x".repeat(bytes - start.len() - 3))
    };
    let most = 1024 * 1024;
    let lines = [line(most, r#"{"to":1}"#), line(most + 1, r#"{"to":1}"#), line(most + 1, "null")];
    let told = bulk(&broker, lines.join("\n")).await;
    assert_eq!((&told[0]["success"], &told[1]["success"]), (&json!(true), &json!(true)), "{told:?}");
    assert_eq!((&told[2]["line"], &told[2]["code"]), (&json!(2), &json!("template_too_large")), "{told:?}");
    assert!(told[2]["error"].as_str().unwrap().contains("1048576"), "{told:?}");
    assert_eq!((&told[3]["line"], &told[3]["success"]), (&json!(3), &json!(true)), "it is no template: {told:?}");
}

#[tokio::test]
async fn a_single_submission_takes_no_array_and_says_where_it_belongs() {
    let broker = TestBroker::start().await;
    let array = r#"{"array":{"to":2},"definition":{"command":"{{index}}"}}"#;
    let (status, told) = broker.post("/q/abc", array).await;
    assert_eq!((status, &told["code"]), (400, &json!("array_not_here")));
    assert!(told["error"].as_str().unwrap().contains("bulk"));
    assert_eq!(broker.post("/q/abc", r#"{"array":null,"definition":{}}"#).await.0, 200);
}

#[tokio::test]
async fn what_is_no_stream_of_lines_is_refused_before_it_begins() {
    let broker = TestBroker::start().await;
    let encoded = |encoding: &str| {
        broker.http.post(broker.url("/q/abc/bulk")).header("content-encoding", encoding).body(ECHO).send()
    };
    let refused = within("the refusal", encoded("gzip")).await.unwrap();
    assert_eq!(refused.status(), 415);
    assert!(refused.text().await.unwrap().contains("encoded_body"));
    assert_eq!(within("the answer", encoded("identity")).await.unwrap().status(), 200);
    assert_eq!(broker.post("/q/a%2Fb/bulk", ECHO).await.0, 400);
    assert_eq!(broker.get("/q/abc/bulk").await.status(), 405);
}

#[tokio::test]
async fn what_was_acknowledged_to_a_client_that_goes_away_stays_and_half_a_line_is_nothing() {
    let broker = TestBroker::start().await;
    let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
    peer.write_all(b"POST /q/abc/bulk HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    // A whole submission, but its line was not ended and neither was the body.
    let sent = format!("{ECHO}\n{}\n{}", submission(1), submission(2));
    peer.write_all(format!("{:x}\r\n{sent}\r\n", sent.len()).as_bytes()).await.unwrap();
    let mut answered = Vec::new();
    within("two answers", async {
        while String::from_utf8_lossy(&answered).matches("\"success\":true").count() < 2 {
            assert!(peer.read_buf(&mut answered).await.unwrap() > 0);
        }
    })
    .await;
    drop(peer);
    // In its stop the broker waits for all connections, so nothing is under way after it.
    let broker = broker.restart().await;
    let jobs = broker.get_json("/q/abc").await.1["data"].as_object().unwrap().len();
    assert_eq!(jobs, 2);
    let told = bulk(&broker, sent).await;
    assert_eq!(told[3]["queued"], 3, "sent again as a whole it is the same and what was missing");
    assert_eq!(broker.get_json("/q/abc").await.1["data"].as_object().unwrap().len(), 3);
}

#[tokio::test]
async fn a_client_that_reads_late_gets_every_answer_and_holds_up_nobody() {
    const LINES: usize = 30_000;
    let broker = TestBroker::start().await;
    let mut open = Open::start(&broker).await;
    let body = open.body.clone();
    let sending = tokio::spawn(async move {
        for _ in 0..LINES / 100 {
            body.send(Ok(format!("{}\n", "x".repeat(500)).repeat(100))).await.unwrap();
        }
    });
    for number in 0..20 {
        broker.submit("abc", json!({ "command": number.to_string() })).await;
    }
    for number in 1..=LINES {
        let line = open.line().await.unwrap();
        assert_eq!((&line["line"], &line["code"]), (&json!(number), &json!("not_json")));
    }
    within("the sender", sending).await.unwrap();
}

#[tokio::test]
async fn a_body_that_stalls_is_told_where_and_has_no_sum() {
    let broker = TestBroker::start_with(|config| config.limits.body_idle_timeout = Duration::from_millis(100)).await;
    let mut open = Open::start(&broker).await;
    open.send(format!("{ECHO}\n{{\"defi")).await;
    assert_eq!(open.line().await.unwrap()["line"], 1);
    let end = open.line().await.unwrap();
    assert_eq!((&end["line"], &end["code"]), (&json!(2), &json!("body_stalled")));
    assert_eq!(open.line().await, None);
}

#[tokio::test]
async fn a_broker_that_stops_ends_the_stream_and_says_after_which_line() {
    let broker = TestBroker::start().await;
    let mut open = Open::start(&broker).await;
    open.send(format!("{ECHO}\n")).await;
    assert_eq!(open.line().await.unwrap()["line"], 1);
    let stopping = tokio::spawn(broker.restart());
    let end = open.line().await.unwrap();
    assert_eq!((&end["line"], &end["code"]), (&json!(2), &json!("stopping")));
    assert_eq!(open.line().await, None);
    drop(open);
    let broker = within("the restart", stopping).await.unwrap();
    assert_eq!(broker.get_json("/q/abc").await.1["data"].as_object().unwrap().len(), 1);
}
