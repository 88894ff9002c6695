//! Bulks over a real journal, without HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt;
use futures_util::stream;
use serde_json::Value;

use super::*;
use crate::engine::{Engine, EngineConfig};
use crate::journal::{Journal, JournalConfig};
use crate::logs::{LogLimits, LogStore};

struct Bench {
    queue: QueueHandle,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn start(live_jobs_max: usize) -> Self {
        let folder = tempfile::TempDir::new().unwrap();
        let (journal, _) = Journal::open(JournalConfig::new(folder.path().join("journal"))).unwrap();
        let logs = LogStore::open(folder.path().join("logs"), LogLimits::default()).unwrap();
        let mut config = EngineConfig::default();
        config.limits.live_jobs_max = live_jobs_max;
        let queue = Engine::start(journal, logs, config).queue(&"q".parse().unwrap());
        Self { queue, _folder: folder }
    }

    fn answers(&self, body: Body) -> impl futures_util::Stream<Item = Bytes> + Unpin {
        let answers =
            start(self.queue.clone(), &Limits::default(), Room::new(u64::MAX), CancellationToken::new(), false, body);
        Box::pin(answers.into_stream().map(|piece| piece.unwrap()))
    }
}

fn submission(number: usize) -> String {
    format!("{{\"definition\":{{\"command\":\"{number}\"}}}}\n")
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    std::str::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn in_a_full_queue_each_line_is_refused_and_the_stream_goes_on() {
    let bench = Bench::start(3);
    let body: String = (0..5).map(submission).chain([submission(0)]).collect();
    let answers: Vec<Bytes> = bench.answers(Body::from(body)).collect().await;
    let lines = lines(&answers.concat());
    let told: Vec<_> =
        lines.iter().map(|line| line["code"].as_str().or(line["success"].as_bool().map(|_| "ok"))).collect();
    let (ok, full) = (Some("ok"), Some("queue_full"));
    assert_eq!(told, [ok, ok, ok, full, full, ok, None], "what is there already is taken again: {lines:?}");
    assert_eq!((&lines[6]["queued"], &lines[6]["refused"]), (&4.into(), &2.into()));
}

#[tokio::test]
async fn of_a_body_that_breaks_off_what_was_acknowledged_stays_and_half_a_line_is_nothing() {
    let bench = Bench::start(usize::MAX);
    // The last one is a whole submission, but its line was not ended and neither was the body.
    let last = submission(2);
    let text = submission(0) + &submission(1) + last.trim_end();
    let pieces = [Ok(text), Err(std::io::Error::other("the peer went away"))];
    let answers: Vec<Bytes> = bench.answers(Body::from_stream(stream::iter(pieces))).collect().await;
    let lines = lines(&answers.concat());
    let told: Vec<_> = lines.iter().map(|line| (line["line"].as_u64(), line["code"].as_str())).collect();
    assert_eq!(told, [(Some(1), None), (Some(2), None), (Some(3), Some("body_broken_off"))], "and no sum");
    assert_eq!(bench.queue.jobs().await.unwrap().len(), 2);
}

#[tokio::test]
async fn who_does_not_take_answers_is_not_read_from() {
    const LINES: usize = 3 * JOBS_UNANSWERED_MAX;
    let bench = Bench::start(usize::MAX);
    let read = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&read);
    let pieces = (0..LINES).map(move |number| {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok::<_, std::io::Error>(submission(number))
    });
    let mut answers = bench.answers(Body::from_stream(stream::iter(pieces)));
    let until_full = async {
        while read.load(Ordering::Relaxed) <= JOBS_UNANSWERED_MAX {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), until_full).await.expect("it reads as far as it may");
    // On this one thread everything that can go on does so in between.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(read.load(Ordering::Relaxed), JOBS_UNANSWERED_MAX + 1, "one more waits for room");
    let mut told = Vec::new();
    while let Some(piece) = answers.next().await {
        told.extend_from_slice(&piece);
    }
    let lines = lines(&told);
    assert_eq!(lines.len(), LINES + 1);
    assert!((1..=LINES).zip(&lines).all(|(number, line)| line["line"] == number), "in order, none lost");
}

#[tokio::test]
async fn when_nobody_takes_answers_any_more_nothing_more_is_begun() {
    let bench = Bench::start(usize::MAX);
    let read = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&read);
    // Lines without an end, and so long that draining them does not take long.
    let pieces = stream::iter(0..).map(move |number| {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok::<_, std::io::Error>(" ".repeat(100_000) + &submission(number))
    });
    let mut answers = bench.answers(Body::from_stream(pieces));
    answers.next().await.unwrap();
    drop(answers);
    let until_let_go = async {
        while Arc::strong_count(&read) > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), until_let_go).await.expect("an end of the reading");
    let begun = bench.queue.head().await.unwrap().seq;
    assert!(begun + 50 < read.load(Ordering::Relaxed) as u64, "{begun} begun, what was read after it was dropped");
}
