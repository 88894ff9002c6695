//! A log that is larger than what the broker may take more of memory goes in and comes out again, in each way, whole and in order.
//! (`just soak logs` does it with a million lines.)

use serde_json::Value;

use crate::grid::{DEADLINE, Serving, Worker};
use crate::run::run;

const LINES: u64 = 40_000;
const LINE_BYTES: usize = 1_000;
const LINES_PER_MESSAGE: usize = 100;
/// What is written before memory is first looked at.
const WARM_LINES: u64 = 5_000;
/// How much more memory it may have from then on: half of what is written.
const GROWTH_BYTES_MAX: u64 = LINES * LINE_BYTES as u64 / 2;

fn text(number: u64) -> String {
    let mut text = format!("line {number} ");
    text.extend(std::iter::repeat_n('.', LINE_BYTES - text.len() - 1));
    text + "\n"
}

fn resident_bytes(broker: &Serving) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", broker.child.id().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Lines as they come; fails on one that is not the next.
struct Seen(u64);

impl Seen {
    fn take(&mut self, lines: &Value) {
        for line in lines.as_array().unwrap() {
            assert_eq!(line[0], text(self.0));
            self.0 += 1;
        }
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("the broker does not answer")
}

/// Reads server-sent events up to the final one.
async fn follow(mut answer: reqwest::Response, mut seen: Seen) {
    let mut begun = Vec::new();
    loop {
        begun.extend_from_slice(&within(answer.chunk()).await.unwrap().expect("it ends without a final event"));
        while let Some(end) = begun.windows(2).position(|two| two == b"\n\n") {
            let event = String::from_utf8(begun.drain(..end + 2).collect()).unwrap();
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
            match field("event: ") {
                Some("run-log") => {
                    let data: Value = serde_json::from_str(field("data: ").unwrap()).unwrap();
                    seen.take(&data["lines"]);
                    assert_eq!(data["cursor"], seen.0);
                    assert_eq!(field("id: "), Some(&*format!("0-{}", seen.0)));
                }
                Some("final") => return assert_eq!(seen.0, LINES),
                Some(_) | None => {}
            }
        }
    }
}

#[tokio::test]
async fn a_long_log_goes_in_and_out_while_the_brokers_memory_stays_as_it_is() {
    let data = tempfile::tempdir().unwrap();
    let broker = Serving::start(data.path(), "127.0.0.1:0").await;
    let added = run(&["job", "add", "q", "--api", &broker.api, "-c", "yes"]).await;
    let url = format!("{}/q/q/j/{}", broker.api, added.out.trim());
    // This test speaks no TLS, but the client asks for a provider when it is made.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let events = async |last: &str| {
        let request = http.get(format!("{url}/stream")).header("last-event-id", last);
        within(request.send()).await.unwrap().error_for_status().unwrap()
    };
    let page = async |since: u64| -> Value {
        let answer = within(http.get(format!("{url}/run-logs.json?since={since}")).send()).await.unwrap();
        serde_json::from_slice(&within(answer.bytes()).await.unwrap()).unwrap()
    };
    let mut worker = Worker::connect(&broker.api, Vec::new()).await;
    let held = worker.claim().await;
    let write = async |worker: &mut Worker, numbers: std::ops::Range<u64>| {
        for first in numbers.step_by(LINES_PER_MESSAGE) {
            let lines: Vec<String> = (first..).take(LINES_PER_MESSAGE).map(text).collect();
            let lines: Vec<_> = lines.iter().map(|line| (line.as_str(), false)).collect();
            worker.write(held, first, &lines).await;
        }
    };
    write(&mut worker, 0..WARM_LINES).await;
    let mut polled = Seen(0);
    while polled.0 < WARM_LINES {
        let page = page(polled.0).await;
        polled.take(&page["data"]);
        assert_eq!(page["nextCursor"], polled.0);
    }
    let before = resident_bytes(&broker);
    let grown = || resident_bytes(&broker).saturating_sub(before);

    let (live, unread) = (tokio::spawn(follow(events("").await, Seen(0))), events("").await);
    write(&mut worker, WARM_LINES..LINES).await;
    worker.finish(held).await;
    let written = grown();
    live.await.unwrap();
    follow(unread, Seen(0)).await;
    follow(events(&format!("0-{}", LINES / 2)).await, Seen(LINES / 2)).await;
    let whole = page(polled.0).await;
    polled.take(&whole["data"]);
    assert_eq!((polled.0, &whole["nextCursor"], &whole["isFinal"]), (LINES, &LINES.into(), &true.into()));
    let read = grown();
    assert!(written.max(read) < GROWTH_BYTES_MAX, "{written} bytes more when written, {read} when read");
    assert_eq!(broker.end("-TERM").await, Some(0));
}
