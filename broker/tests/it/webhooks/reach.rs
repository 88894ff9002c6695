//! What may be called: nothing of the broker's own network, however it is written, named or come to.

use std::net::IpAddr;

use broker::config::Config;
use serde_json::{Value, json};

use super::receiver::{Receiver, open, submission, submit, until_dead, until_nothing_is_left};
use crate::support::TestBroker;

/// Nothing private, but calls are tried once and at once.
fn closed(config: &mut Config) {
    open(config);
    config.webhooks.allows_private = false;
    config.limits.webhooks.tries_max = 1;
}

fn loopback() -> IpAddr {
    IpAddr::from([127, 0, 0, 1])
}

#[tokio::test]
async fn a_submission_that_names_a_private_address_is_refused_in_every_spelling() {
    let broker = TestBroker::start_with(closed).await;
    for host in [
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "2130706433",
        "017700000001",
        "localhost",
        "LOCALHOST.",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
        "10.0.0.1",
        "100.64.0.1",
        "[fd00::1]",
        "[fe80::1]",
        "[64:ff9b::a9fe:a9fe]",
        "0.0.0.0",
    ] {
        for event in ["queued", "finished"] {
            let callbacks = json!({ event: { "url": format!("http://{host}:8000/hook") } });
            let (status, answer) = broker.post("/q/abc", submission(1, "_", callbacks)).await;
            assert_eq!((status, &answer["code"]), (400, &json!("bad_webhook_url")), "{host} {answer}");
            let text = answer["error"].as_str().unwrap();
            assert!(text.starts_with(&format!("control.callbacks.{event}.url leads to a private address")), "{text}");
        }
    }
    for (url, what) in [
        ("ftp://example.org/".to_owned(), "must start with https:// or http://"),
        ("hook".to_owned(), "is no address"),
        (format!("https://example.org/{}", "x".repeat(2048)), "is 2068 bytes long, the limit is 2048"),
    ] {
        let (status, answer) = broker.post("/q/abc", submission(1, "_", json!({ "queued": { "url": url } }))).await;
        let text = answer["error"].as_str().unwrap();
        assert!(status == 400 && text.starts_with(&format!("control.callbacks.queued.url {what}")), "{text}");
    }
    assert_eq!(broker.get_json("/q/abc").await.1, json!({ "data": {} }), "nothing of it was submitted");
    assert!(std::fs::read_dir(broker.path().join("webhooks")).unwrap().next().is_none(), "or kept");
    let local = TestBroker::start_with(|config| config.flavour = broker::config::Flavour::Local).await;
    let callbacks = json!({ "queued": { "url": "http://127.0.0.1:8000/" } });
    assert_eq!(local.post("/q/local", submission(1, "_", callbacks)).await.0, 400, "a page's link could have named it");
}

#[tokio::test]
async fn a_name_that_leads_to_a_private_address_is_not_called() {
    let receiver = Receiver::start().await;
    let port = receiver.addr.port();
    let named = move |config: &mut Config| {
        closed(config);
        for name in ["inner.example", "both.example"] {
            config.webhooks.hosts.insert(name.to_owned(), vec![loopback(), "::1".parse().unwrap()]);
        }
    };
    let callbacks = |name: &str| json!({ "queued": { "url": format!("http://{name}:{port}/") } });
    let broker = TestBroker::start_with(named).await;
    submit(&broker, 1, "_", callbacks("inner.example")).await;
    submit(&broker, 2, "_", callbacks("INNER.example.")).await;
    let dead = until_dead(&broker, 2).await;
    let private = "the address leads to a private address; this broker calls public ones, and others only if it was started with --allow-webhooks-to";
    assert!(dead.iter().all(|letter| letter["error"] == private), "{dead:?}");
    assert!(receiver.calls().is_empty());

    // The same where it is allowed is called, so it was this that kept it from being called.
    let open = TestBroker::start_with(move |config| {
        named(config);
        config.webhooks.allows_private = true;
    })
    .await;
    submit(&open, 1, "_", callbacks("inner.example")).await;
    until_nothing_is_left(&open).await;
    let called = receiver.calls().pop().unwrap();
    assert_eq!(called.header("host"), format!("inner.example:{port}"));
}

#[tokio::test]
async fn a_redirect_to_a_private_address_is_not_followed() {
    let inner = Receiver::start().await;
    let port = inner.addr.port();
    let targets = [inner.url("/"), format!("http://inner.example:{port}/"), "file:///etc/passwd".to_owned()];
    let outer = Receiver::answering("127.0.0.2", {
        let targets = targets.clone();
        move |number| Some((307, vec![("location", targets[(number - 1) % targets.len()].clone())]))
    })
    .await;
    let except = |allowed: &'static str| {
        move |config: &mut Config| {
            closed(config);
            config.webhooks.exceptions = vec![allowed.parse().unwrap()];
            config.webhooks.hosts.insert("inner.example".to_owned(), vec![loopback()]);
        }
    };
    let broker = TestBroker::start_with(except("127.0.0.2")).await;
    for number in 0..targets.len() {
        submit(&broker, number, "_", json!({ "queued": { "url": outer.url("/") } })).await;
        until_dead(&broker, number + 1).await;
    }
    let errors: Vec<Value> = until_dead(&broker, 3).await.iter().rev().map(|letter| letter["error"].clone()).collect();
    let private = "the address leads to a private address; this broker calls public ones, and others only if it was started with --allow-webhooks-to";
    assert_eq!(errors, [private, private, "the address must start with https:// or http://"]);
    assert_eq!((outer.calls().len(), inner.calls().len()), (3, 0));

    let wider = TestBroker::start_with(except("127.0.0.0/8")).await;
    for number in 0..2 {
        submit(&wider, number, "_", json!({ "queued": { "url": outer.url("/") } })).await;
        until_nothing_is_left(&wider).await;
    }
    assert_eq!(inner.calls().len(), 2, "where both are excepted it is followed");
}
