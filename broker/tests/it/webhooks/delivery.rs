//! Tries, dead letters, slow receivers, and answers that are not what they should be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::receiver::{Receiver, listing, open, submission, submit, until_dead, until_nothing_is_left};
use crate::support::{TestBroker, until, within};

#[tokio::test]
async fn a_call_that_fails_is_tried_again_under_the_same_id_with_the_same_body() {
    let broker = TestBroker::start_with(open).await;
    let receiver = Receiver::answering("127.0.0.1", |number| Some((if number < 4 { 500 } else { 204 }, vec![]))).await;
    submit(&broker, 1, "_", json!({ "queued": { "url": receiver.url("/") } })).await;
    until_nothing_is_left(&broker).await;
    let calls = receiver.calls();
    assert_eq!(calls.len(), 4);
    for call in &calls {
        assert_eq!(call.header("webhook-id"), calls[0].header("webhook-id"));
        assert_eq!(call.body, calls[0].body);
    }
    let metrics = broker.get("/metrics").await.text().await.unwrap();
    for series in
        ["webhooks_delivered_total 1\n", "webhook_failures_total 3\n", "webhooks_given_up_total 0\n", "webhooks 0\n"]
    {
        assert!(metrics.contains(&format!("\ngridsocket_{series}")), "{series}: {metrics}");
    }
}

#[tokio::test]
async fn a_call_that_fails_too_often_is_a_dead_letter_that_can_be_sent_again() {
    let broker = TestBroker::start_with(|config| {
        open(config);
        config.limits.webhooks.tries_max = 3;
    })
    .await;
    let is_well = Arc::new(AtomicBool::new(false));
    let well = Arc::clone(&is_well);
    let answer = move |_| Some((if well.load(Ordering::Relaxed) { 200 } else { 503 }, vec![]));
    let receiver = Receiver::answering("127.0.0.1", answer).await;
    let url = receiver.url("/hook").replace("//", "//user:pw@") + "?token=secret";
    let job = submit(&broker, 1, "alice", json!({ "queued": { "url": url } })).await;
    let dead = until_dead(&broker, 1).await;
    assert_eq!(receiver.calls().len(), 3);
    let letter = &dead[0];
    let told = ["event", "jobId", "namespace", "url", "error"].map(|field| letter[field].as_str().unwrap());
    let shown = receiver.url("/hook");
    assert_eq!(told, ["queued", &job, "alice", &shown, "it answered 503 Service Unavailable"]);
    assert_eq!(letter["tries"], 3);
    let id = letter["id"].as_str().unwrap();
    assert_eq!(id, receiver.calls()[0].header("webhook-id"));

    let retry = async |queue: &str, id: &str| broker.post(&format!("/q/{queue}/webhooks/retry{id}"), "").await;
    assert_eq!(retry("other", &format!("?id={id}")).await.0, 404, "it is this queue's");
    assert_eq!(retry("abc", "?id=x").await.1["code"], "bad_webhook_id");
    assert_eq!(retry("abc", &format!("?id={}-queued", "0".repeat(32))).await.0, 404, "another one's is not it");
    assert_eq!(retry("other", "").await, (200, json!({ "success": true, "retried": 0 })));
    is_well.store(true, Ordering::Relaxed);
    assert_eq!(retry("abc", &format!("?id={id}")).await, (200, json!({ "success": true, "retried": 1 })));
    until_nothing_is_left(&broker).await;
    let last = receiver.calls().pop().unwrap();
    assert_eq!((receiver.calls().len(), last.header("webhook-id")), (4, id));
    assert_eq!(retry("abc", &format!("?id={id}")).await.0, 404, "it is delivered");
}

#[tokio::test]
async fn a_slow_receiver_delays_neither_submitters_nor_others() {
    let broker = TestBroker::start_with(open).await;
    let never = Receiver::answering("127.0.0.2", |_| None).await;
    // Each is answered although none of their receivers has answered or ever will.
    for number in 0..20 {
        submit(&broker, number, "_", json!({ "queued": { "url": never.url("/") } })).await;
    }
    never.until_called(2).await;
    let receiver = Receiver::start().await;
    for number in 20..30 {
        submit(&broker, number, "_", json!({ "queued": { "url": receiver.url("/") } })).await;
    }
    receiver.until_called(10).await;
    assert_eq!(never.calls().len(), 2, "as many at once as one host may have");
    assert_eq!(listing(&broker).await["pending"].as_array().unwrap().len(), 20);
}

#[tokio::test]
async fn a_receiver_that_takes_too_long_is_tried_again() {
    let broker = TestBroker::start_with(|config| {
        open(config);
        config.limits.webhooks.timeout = Duration::from_millis(20);
    })
    .await;
    let receiver = Receiver::answering("127.0.0.1", |number| (number > 2).then(|| (200, vec![]))).await;
    submit(&broker, 1, "_", json!({ "queued": { "url": receiver.url("/") } })).await;
    receiver.until_called(3).await;
    until("an end of it", || async {
        let listing = listing(&broker).await;
        listing["pending"] == json!([])
    })
    .await;
}

#[tokio::test]
async fn an_answer_without_an_end_is_not_read() {
    let broker = TestBroker::start_with(open).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let sending = tokio::spawn(async move {
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        assert!(peer.read(&mut request).await.unwrap() > 0);
        peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n").await.unwrap();
        // Until it is cut off.
        while peer.write_all(&[b'x'; 64 * 1024]).await.is_ok() {
            counter.fetch_add(64 * 1024, Ordering::Relaxed);
        }
    });
    submit(&broker, 1, "_", json!({ "queued": { "url": url } })).await;
    until_nothing_is_left(&broker).await;
    within("the connection's end", sending).await.unwrap();
    // What the sockets' buffers take, at most.
    assert!(sent.load(Ordering::Relaxed) < 32 * 1024 * 1024, "{sent:?}");
}

#[tokio::test]
async fn redirects_are_followed_as_calls_and_not_for_ever() {
    let broker = TestBroker::start_with(|config| {
        open(config);
        config.limits.webhooks.tries_max = 1;
    })
    .await;
    let target = Receiver::start().await;
    let there = target.url("/there");
    for status in [301, 302, 307, 308] {
        let there = there.clone();
        let receiver =
            Receiver::answering("127.0.0.1", move |_| Some((status, vec![("location", there.clone())]))).await;
        submit(&broker, usize::from(status), "_", json!({ "queued": { "url": receiver.url("/") } })).await;
        until_nothing_is_left(&broker).await;
        let (first, second) = (receiver.calls().pop().unwrap(), target.calls().pop().unwrap());
        assert_eq!((second.path.as_str(), &second.body), ("/there", &first.body));
        assert_eq!(second.header("webhook-signature"), first.header("webhook-signature"));
    }
    assert_eq!(target.calls().len(), 4);
    let circle = Receiver::answering("127.0.0.1", |_| Some((307, vec![("location", "/again".to_owned())]))).await;
    submit(&broker, 1, "_", json!({ "queued": { "url": circle.url("/") } })).await;
    let dead = until_dead(&broker, 1).await;
    assert_eq!((circle.calls().len(), &dead[0]["error"]), (4, &json!("it redirected more than 3 times")));
    let see = target.url("/see");
    let elsewhere = Receiver::answering("127.0.0.1", move |_| Some((303, vec![("location", see.clone())]))).await;
    submit(&broker, 2, "_", json!({ "queued": { "url": elsewhere.url("/") } })).await;
    until_dead(&broker, 2).await;
    assert_eq!(target.calls().len(), 4, "a redirect to something to look at is no place for a call");
}

#[tokio::test]
async fn a_queue_has_so_many_webhooks_and_is_told_when_it_has_them() {
    let broker = TestBroker::start_with(|config| {
        open(config);
        config.limits.webhooks.per_queue_max = 2;
        config.limits.webhooks.count_max = 3;
        config.limits.webhooks.tries_max = 1;
    })
    .await;
    let finished = json!({ "finished": { "url": "http://127.0.0.1:9/" } });
    submit(&broker, 1, "_", finished.clone()).await;
    submit(&broker, 2, "_", finished.clone()).await;
    let (status, answer) = broker.post("/q/abc", submission(3, "_", finished.clone())).await;
    assert_eq!((status, &answer["code"]), (429, &json!("webhooks_full")));
    assert!(answer["error"].as_str().unwrap().starts_with("2 webhooks of this queue"), "{answer}");
    assert_eq!(broker.post("/q/abc", submission(3, "_", json!(null))).await.0, 200, "without one it is taken");
    assert_eq!(broker.post("/q/other", submission(3, "_", finished.clone())).await.0, 200);
    let (status, answer) = broker.post("/q/third", submission(3, "_", finished.clone())).await;
    assert_eq!((status, &answer["code"]), (429, &json!("webhooks_full")));
    // Dead letters make way.
    broker.run_next("abc", json!({ "StatusCode": 0 })).await;
    until_dead(&broker, 1).await;
    submit(&broker, 4, "_", finished).await;
    assert_eq!(listing(&broker).await["dead"], json!([]));
}

#[tokio::test]
async fn a_queue_keeps_so_many_dead_letters_and_each_so_long() {
    let broker = TestBroker::start_with(|config| {
        open(config);
        config.limits.webhooks.dead_per_queue_max = 2;
        config.limits.webhooks.tries_max = 1;
    })
    .await;
    let mut jobs = Vec::new();
    for number in 0..3 {
        jobs.push(json!(submit(&broker, number, "_", json!({ "queued": { "url": "http://127.0.0.1:9/" } })).await));
        let newest = jobs.last().unwrap();
        until("it to be a dead letter", || async { listing(&broker).await["dead"][0]["jobId"] == *newest }).await;
    }
    let dead = until_dead(&broker, 2).await;
    assert_eq!([&dead[0]["jobId"], &dead[1]["jobId"]], [&jobs[2], &jobs[1]], "the newest first, the oldest gone");
    let mut broker = broker;
    broker.config.limits.webhooks.dead_stays = Duration::from_millis(1);
    let broker = broker.restart().await;
    until_nothing_is_left(&broker).await;
}

#[tokio::test]
async fn payloads_and_all_files_together_have_a_size() {
    let broker = TestBroker::start_with(|config| {
        open(config);
        config.limits.webhooks.payload_bytes_max = 1000;
        config.limits.webhooks.bytes_max = 2000;
    })
    .await;
    let with = |bytes: usize| json!({ "finished": { "url": "http://127.0.0.1:9/", "payload": "x".repeat(bytes - 2) } });
    let (status, answer) = broker.post("/q/abc", submission(1, "_", with(1001))).await;
    assert_eq!((status, &answer["code"]), (400, &json!("webhook_payload_too_large")));
    let text = answer["error"].as_str().unwrap();
    assert!(text.starts_with("control.callbacks.finished.payload is 1001 bytes, the limit is 1000"), "{text}");
    submit(&broker, 1, "_", with(1000)).await;
    let (status, answer) = broker.post("/q/abc", submission(2, "_", with(1000))).await;
    assert_eq!((status, &answer["code"]), (429, &json!("webhooks_full")));
    submit(&broker, 1, "_", json!(null)).await;
    assert_eq!(listing(&broker).await["waiting"], 1);
}
