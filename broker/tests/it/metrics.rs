//! The numbers that operators watch, in the form that Prometheus reads.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::TestBroker;

/// One family of series.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    samples: Vec<(String, String, f64)>,
}

/// Reads the text format, and fails at what Prometheus would not take.
fn parse(text: &str) -> BTreeMap<String, Family> {
    assert!(text.ends_with('\n'));
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut helped = String::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap();
            assert!(!text.is_empty());
            helped = name.to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, helped, "help comes first");
            assert!(["gauge", "counter", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            let family = Family { kind: kind.to_owned(), ..Family::default() };
            assert!(families.insert(name.to_owned(), family).is_none(), "{name} twice");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) =
                series.split_once('{').map_or((series, ""), |(name, labels)| (name, labels.strip_suffix('}').unwrap()));
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{line}");
            let family = families.get_mut(&helped).unwrap();
            let is_own = name == helped || (family.kind == "histogram" && name.starts_with(&helped));
            assert!(is_own, "{line}");
            family.samples.push((name.to_owned(), labels.to_owned(), value.parse().unwrap()));
        }
    }
    families
}

async fn numbers(broker: &TestBroker, path: &str) -> BTreeMap<String, Family> {
    let families = parse(&broker.get(path).await.text().await.unwrap());
    assert!(families.values().all(|family| !family.samples.is_empty()));
    families
}

fn value(families: &BTreeMap<String, Family>, name: &str) -> f64 {
    let family = families.get(name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(family.samples.len(), 1);
    family.samples[0].2
}

#[tokio::test]
async fn the_broker_tells_what_it_has_done_and_what_there_is_to_do() {
    let broker = TestBroker::start().await;
    for number in 0..3 {
        broker.submit("one", json!({ "image": "a", "command": number.to_string() })).await;
    }
    broker.submit("two", json!({ "image": "a" })).await;
    let mut worker = broker.worker("one", "w", 2).await;
    let (run, _) = worker.claim().await;
    worker.finish(run, json!({ "StatusCode": 0 })).await;
    broker.get("/nothing").await;
    let families = numbers(&broker, "/metrics").await;
    let value = |name: &str| value(&families, name);
    assert_eq!(value("gridsocket_submits_total"), 4.0);
    assert_eq!(value("gridsocket_finishes_total"), 1.0);
    assert_eq!(value("gridsocket_claims_total"), value("gridsocket_running_jobs") + 1.0);
    assert_eq!(value("gridsocket_waiting_jobs") + value("gridsocket_running_jobs"), 3.0);
    assert!(value("gridsocket_first_waiting_seconds") < 60.0);
    assert_eq!(value("gridsocket_sockets"), 1.0);
    assert_eq!(value("gridsocket_live_queues"), 2.0);
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(value("process_start_time_seconds") > 1.7e9);
    let class = |class: &str| {
        let samples = &families["gridsocket_http_responses_total"].samples;
        samples.iter().find(|(_, labels, _)| labels == &format!("class=\"{class}\"")).unwrap().2
    };
    assert_eq!((class("2xx"), class("4xx"), class("1xx")), (4.0, 1.0, 1.0));
}

#[tokio::test]
async fn every_sync_is_in_the_histogram() {
    let broker = TestBroker::start().await;
    broker.submit("one", json!({ "image": "a" })).await;
    let families = numbers(&broker, "/metrics").await;
    let samples = &families["gridsocket_journal_sync_seconds"].samples;
    let buckets: Vec<f64> =
        samples.iter().filter(|(name, ..)| name.ends_with("_bucket")).map(|(.., value)| *value).collect();
    assert!(buckets.len() > 5 && buckets.is_sorted(), "{buckets:?}");
    let of = |end: &str| samples.iter().find(|(name, ..)| name.ends_with(end)).unwrap().2;
    assert_eq!(buckets.last(), Some(&of("_count")));
    assert_eq!(of("_count"), value(&families, "gridsocket_journal_syncs_total"));
    assert!(of("_count") >= 1.0 && of("_sum") > 0.0);
    assert!(samples.iter().any(|(_, labels, _)| labels == "le=\"+Inf\""));
}

#[tokio::test]
async fn a_queues_numbers_begin_as_the_originals_scalers_know_them() {
    let broker = TestBroker::start().await;
    let head = |length: u32| {
        format!(
            "\n# HELP queue_length The number of outstanding jobs in the queue\n# TYPE queue_length gauge\nqueue_length {length}\n"
        )
    };
    assert!(broker.get("/q/abc/metrics").await.text().await.unwrap().starts_with(&head(0)));
    broker.submit("abc", json!({ "image": "a" })).await;
    broker.submit("abc", json!({ "image": "b", "requirements": { "gpus": 4 } })).await;
    let mut worker = broker.worker("abc", "w", 2).await;
    worker.claim().await;
    let _client = broker.client("abc").await;
    for path in ["/q/abc/metrics", "/abc/metrics"] {
        let answer = broker.get(path).await;
        assert_eq!(answer.headers()["content-type"], "text/plain");
        assert!(answer.text().await.unwrap().starts_with(&head(2)));
        let families = numbers(&broker, path).await;
        let value = |name: &str| value(&families, name);
        assert_eq!((value("gridsocket_queue_waiting"), value("gridsocket_queue_running")), (1.0, 1.0));
        assert_eq!((value("gridsocket_queue_workers"), value("gridsocket_queue_worker_cpus")), (1.0, 2.0));
        assert_eq!(value("gridsocket_queue_clients"), 1.0);
        assert!(value("gridsocket_queue_oldest_waiting_seconds") < 60.0);
    }
}

#[tokio::test]
async fn what_there_is_to_do_is_counted_also_in_queues_that_are_put_away_and_after_a_look_at_them() {
    let broker = TestBroker::start().await;
    broker.submit("abc", json!({ "image": "a" })).await;
    let broker = broker.restart().await;
    assert_eq!(value(&numbers(&broker, "/metrics").await, "gridsocket_waiting_jobs"), 0.0, "not looked at since");
    broker.get("/q/abc").await;
    assert_eq!(value(&numbers(&broker, "/metrics").await, "gridsocket_waiting_jobs"), 1.0);
    let job = broker.get_json("/q/abc").await.1["data"].as_object().unwrap().keys().next().unwrap().clone();
    broker.post(&format!("/q/abc/j/{job}/cancel"), "").await;
    assert_eq!(value(&numbers(&broker, "/metrics").await, "gridsocket_waiting_jobs"), 0.0);
}

#[tokio::test]
async fn the_brokers_numbers_name_no_queue_and_a_local_broker_tells_of_its_own() {
    let broker = TestBroker::start().await;
    broker.submit("secret-name", json!({ "image": "a" })).await;
    let text = broker.get("/metrics").await.text().await.unwrap();
    assert!(!text.contains("secret-name") && !text.contains("queue_length"));
    let local = TestBroker::local().await;
    local.submit("local", json!({ "image": "a" })).await;
    assert_eq!(value(&numbers(&local, "/metrics").await, "queue_length"), 1.0);
}

/// Every text under a key, at any depth.
fn texts<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| texts(value, key, found)),
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == key => found.push(text),
                    other => texts(other, key, found),
                }
            }
        }
        _ => {}
    }
}

#[tokio::test]
async fn every_series_of_the_dashboard_is_told() {
    let dashboard = include_str!("../../../deploy/grafana-dashboard.json");
    let dashboard: Value = serde_json::from_str(dashboard).unwrap();
    let mut queries = Vec::new();
    texts(&dashboard, "expr", &mut queries);
    assert!(queries.len() > 10, "{queries:?}");
    let broker = TestBroker::start().await;
    let mut told: Vec<String> = Vec::new();
    for path in ["/metrics", "/q/abc/metrics"] {
        told.extend(
            numbers(&broker, path).await.into_values().flat_map(|family| family.samples).map(|(name, ..)| name),
        );
    }
    // Workers have numbers of their own, and a test that tells of them.
    for query in queries.into_iter().filter(|query| !query.contains("$worker")) {
        let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let series: Vec<&str> = words
            .filter(|word| ["gridsocket_", "process_", "queue_"].iter().any(|start| word.starts_with(start)))
            .collect();
        assert!(!series.is_empty(), "{query}");
        for name in series {
            assert!(told.iter().any(|told| told == name), "{name} is not told by the broker");
        }
    }
}

#[tokio::test]
async fn the_manual_names_every_series_and_every_limit() {
    let manual = include_str!("../../../docs/operating.md");
    let broker = TestBroker::start().await;
    for path in ["/metrics", "/q/abc/metrics"] {
        for name in numbers(&broker, path).await.into_keys() {
            assert!(manual.contains(&format!("`{name}`")), "{name}");
        }
    }
    for name in broker::config::LIMIT_NAMES {
        assert!(manual.contains(&format!("`{name}`")), "{name}");
    }
}
