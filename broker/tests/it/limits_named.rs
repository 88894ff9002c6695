//! Each limit that has a name has a test that goes exactly to it and one that goes one over it, and says what it is when it is hit.

use serde_json::Value;

use crate::support::{TestBroker, json_of};

/// Limit, the test that goes to it, the test that goes over it.
const TESTED: &[(&str, &str, &str)] = &[
    (
        "body",
        "http_edges::a_body_of_the_limit_is_taken_and_one_byte_more_is_not",
        "http_edges::the_default_body_limit_is_told_to_whoever_sends_more",
    ),
    (
        "blob",
        "blobs::a_blob_of_the_limit_is_kept_and_one_byte_more_is_not",
        "blobs::a_blob_of_the_limit_is_kept_and_one_byte_more_is_not",
    ),
    (
        "bodies",
        "http::room::tests::room_is_held_for_as_much_as_there_is",
        "limits::bodies_that_are_under_way_have_room_together_only_up_to_the_limit",
    ),
    (
        "answers",
        "http::room::tests::room_is_held_for_as_much_as_there_is",
        "attacks::exhaustion::answers_that_nobody_reads_have_room_together_only_up_to_the_limit",
    ),
    (
        "connections",
        "http_edges::one_connection_over_the_limit_is_told_so",
        "http_edges::one_connection_over_the_limit_is_told_so",
    ),
    (
        "sockets-per-address",
        "limits::one_socket_too_many_of_an_address_is_refused_until_another_ends",
        "limits::event_streams_count_as_sockets",
    ),
    (
        "requests-per-address",
        "http::rates::tests::a_burst_is_taken_then_the_rate_holds",
        "limits::an_address_that_asks_too_often_is_told_to_wait_and_others_are_not",
    ),
    (
        "unread-timeout",
        "http::patient::tests::a_peer_that_takes_nothing_is_given_up_and_a_slow_one_is_not",
        "limits::a_peer_that_never_reads_its_answer_is_cut_off",
    ),
    (
        "header-timeout",
        "limits_named::a_slow_request_that_goes_on_is_answered",
        "http_edges::requests_that_never_end_are_ended",
    ),
    ("body-timeout", "limits_named::a_slow_request_that_goes_on_is_answered", "blobs::a_stalled_upload_is_given_up"),
    (
        "log",
        "limits_named::a_log_of_the_limit_is_whole_and_one_line_more_takes_the_oldest",
        "logs::over_the_limit_the_oldest_lines_go_and_the_tail_keeps_its_numbers",
    ),
    (
        "log-line",
        "logs::a_line_of_the_limit_is_kept_and_one_byte_more_is_cut",
        "logs::a_line_of_the_limit_is_kept_and_one_byte_more_is_cut",
    ),
    (
        "lease",
        "rules::tests::limits::a_silent_worker_keeps_its_run_for_the_lease_and_not_a_moment_longer",
        "rules::tests::limits::a_silent_worker_keeps_its_run_for_the_lease_and_not_a_moment_longer",
    ),
    (
        "lost-runs",
        "rules::tests::limits::a_job_waits_again_until_its_last_lost_run",
        "rules::tests::limits::a_job_waits_again_until_its_last_lost_run",
    ),
    (
        "overtaken",
        "rules::tests::limits::a_job_is_passed_by_until_it_has_waited_for_so_long",
        "rules::tests::limits::a_job_is_passed_by_until_it_has_waited_for_so_long",
    ),
    (
        "live-jobs",
        "rules::tests::limits::the_last_job_and_the_last_namespace_fit",
        "limits::a_queue_takes_so_many_jobs_and_a_job_so_many_namespaces",
    ),
    (
        "namespaces",
        "rules::tests::limits::the_last_job_and_the_last_namespace_fit",
        "limits::a_queue_takes_so_many_jobs_and_a_job_so_many_namespaces",
    ),
    (
        "success-stays",
        "rules::tests::limits::a_success_and_a_failure_stay_for_their_time_and_no_longer",
        "rules::tests::limits::a_success_and_a_failure_stay_for_their_time_and_no_longer",
    ),
    (
        "failure-stays",
        "rules::tests::limits::a_success_and_a_failure_stay_for_their_time_and_no_longer",
        "rules::tests::limits::a_success_and_a_failure_stay_for_their_time_and_no_longer",
    ),
    (
        "keep-jobs",
        "retention::jobs::a_job_is_forgotten_when_its_time_is_over_and_not_before",
        "retention::jobs::a_job_is_forgotten_when_its_time_is_over_and_not_before",
    ),
    (
        "keep-logs",
        "retention::jobs::logs_go_a_week_after_their_job_ended_and_never_while_it_runs",
        "retention::jobs::logs_go_a_week_after_their_job_ended_and_never_while_it_runs",
    ),
    (
        "keep-blobs",
        "retention::blobs::a_blob_stays_as_long_as_the_job_that_named_it_or_put_it_out_and_no_longer",
        "retention::blobs::a_blob_stays_as_long_as_the_job_that_named_it_or_put_it_out_and_no_longer",
    ),
    (
        "webhooks",
        "webhooks::delivery::a_queue_has_so_many_webhooks_and_is_told_when_it_has_them",
        "webhooks::delivery::a_queue_has_so_many_webhooks_and_is_told_when_it_has_them",
    ),
    (
        "webhooks-per-queue",
        "webhooks::delivery::a_queue_has_so_many_webhooks_and_is_told_when_it_has_them",
        "webhooks::delivery::a_queue_has_so_many_webhooks_and_is_told_when_it_has_them",
    ),
    (
        "webhook-bytes",
        "webhooks::delivery::payloads_and_all_files_together_have_a_size",
        "webhooks::delivery::payloads_and_all_files_together_have_a_size",
    ),
    (
        "webhook-payload",
        "webhooks::delivery::payloads_and_all_files_together_have_a_size",
        "webhooks::delivery::payloads_and_all_files_together_have_a_size",
    ),
    (
        "webhook-tries",
        "webhooks::delivery::a_call_that_fails_is_tried_again_under_the_same_id_with_the_same_body",
        "webhooks::delivery::a_call_that_fails_too_often_is_a_dead_letter_that_can_be_sent_again",
    ),
    (
        "webhook-timeout",
        "webhooks::delivery::a_slow_receiver_delays_neither_submitters_nor_others",
        "webhooks::delivery::a_receiver_that_takes_too_long_is_tried_again",
    ),
    (
        "webhook-wait",
        "webhooks::limits::tests::waits_grow_and_are_at_most_a_quarter_longer_than_said",
        "webhooks::limits::tests::waits_grow_and_are_at_most_a_quarter_longer_than_said",
    ),
    (
        "webhooks-at-once",
        "webhooks::line::tests::bounds_hold_and_nothing_is_forgotten",
        "webhooks::line::tests::bounds_hold_and_nothing_is_forgotten",
    ),
    (
        "webhooks-per-host",
        "webhooks::line::tests::bounds_hold_and_nothing_is_forgotten",
        "webhooks::delivery::a_slow_receiver_delays_neither_submitters_nor_others",
    ),
    (
        "dead-letters",
        "webhooks::delivery::a_queue_keeps_so_many_dead_letters_and_each_so_long",
        "webhooks::delivery::a_queue_keeps_so_many_dead_letters_and_each_so_long",
    ),
    (
        "keep-dead-letters",
        "webhooks::restart::dead_letters_outlive_a_restart_and_are_not_tried_by_themselves",
        "webhooks::delivery::a_queue_keeps_so_many_dead_letters_and_each_so_long",
    ),
];

#[test]
fn every_limit_that_has_a_name_is_tested_at_it_and_beyond_it() {
    for name in broker::config::LIMIT_NAMES {
        let tested = TESTED.iter().find(|(limit, ..)| *limit == name);
        let (_, at, over) = tested.unwrap_or_else(|| panic!("{name} has no tests: name them in TESTED"));
        for test in [at, over] {
            crate::named::assert_exists(test);
        }
    }
}

#[tokio::test]
async fn a_slow_request_that_goes_on_is_answered() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    // Each pause is far below the limit, and all of them together above it: a pause counts, not the sum.
    let limit = std::time::Duration::from_secs(1);
    let broker = TestBroker::start_with(|config| {
        config.limits.header_timeout = limit * 10;
        config.limits.body_idle_timeout = limit;
    })
    .await;
    let body = br#"{"definition":{"image":"slow"}}"#;
    let mut peer = tokio::net::TcpStream::connect(broker.handle.addr()).await.unwrap();
    let head =
        format!("POST /q/abc HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut pieces: Vec<&[u8]> = head.as_bytes().chunks(40).collect();
    pieces.extend(body.chunks(3));
    for piece in pieces {
        peer.write_all(piece).await.unwrap();
        tokio::time::sleep(limit / 8).await;
    }
    let mut answer = String::new();
    crate::support::within("the answer", peer.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_log_of_the_limit_is_whole_and_one_line_more_takes_the_oldest() {
    use broker::config::LogLimits;
    use broker::logs::LogStore;
    use protocol::id::{JobId, QueueKey, UnixMillis};
    use protocol::native::{LogKind, LogLine, LogStep};
    const LINES: u64 = 100;
    let line = |number: u64| LogLine { text: format!("line {number:04}\n"), at_ms: UnixMillis(1), stderr: false };
    let (queue, job) = (QueueKey::from_bytes([1; 16]), JobId::from_bytes([2; 32]));
    // What so many lines take: tried with a limit that is out of reach.
    let taken = |limits: LogLimits, lines: u64| async move {
        let dir = tempfile::TempDir::new().unwrap();
        let store = LogStore::open(dir.path(), limits).unwrap();
        for number in 0..lines {
            store.append(queue, job, 1, LogStep::Run, number, vec![line(number)]).await.unwrap();
        }
        let first = store.read(queue, job, LogKind::Run, 0, 1).await.unwrap().lines.remove(0).text;
        let bytes: u64 = std::fs::read_dir(dir.path()).unwrap().flatten().map(|entry| below(&entry.path())).sum();
        (bytes, first)
    };
    let (bytes, first) = taken(LogLimits::default(), LINES).await;
    assert_eq!(first, "line 0000\n");
    let limits = LogLimits { job_bytes_max: bytes, ..LogLimits::default() };
    assert_eq!(taken(limits, LINES).await, (bytes, "line 0000\n".to_owned()), "exactly at it nothing goes");
    let (kept, first) = taken(limits, LINES + 1).await;
    assert!(kept <= bytes && first.contains("not kept"), "{kept} {first}");
}

/// Bytes of a file, or of all files below a folder.
fn below(path: &std::path::Path) -> u64 {
    match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| below(&entry.path())).sum(),
        Err(_) => std::fs::metadata(path).map_or(0, |found| found.len()),
    }
}

/// Whoever is told of a limit is told its number, and what to do.
#[tokio::test]
async fn a_refusal_names_the_limit_and_what_to_do() {
    let broker = TestBroker::start_with(|config| {
        config.limits.body_bytes_max = 1_000;
        config.limits.blob_bytes_max = 2_000;
        config.limits.queue.live_jobs_max = 1;
        config.limits.queue.namespaces_max = 1;
        config.limits.bodies_bytes_max = 100_000;
    })
    .await;
    broker.submit("abc", serde_json::json!({ "image": "a" })).await;
    let submission = |image: &str, namespace: &str| {
        serde_json::json!({ "definition": { "image": image }, "control": { "namespace": namespace } }).to_string()
    };
    let cases: Vec<(u16, Value, &str, &str, &str)> = vec![
        told(broker.post("/q/abc", vec![b' '; 1_001]).await, "body_too_large", "1000", "PUT /f/"),
        told(json_of(broker.put("/f/x", vec![b' '; 2_001]).await).await, "blob_too_large", "2000", "limit"),
        told(broker.post("/q/abc", submission("b", "_")).await, "queue_full", "1", "cancel some"),
        told(broker.post("/q/abc", submission("a", "other")).await, "namespaces_full", "1", "another"),
    ];
    for (status, answer, code, number, advice) in cases {
        assert!((400..500).contains(&status), "{answer}");
        assert_eq!(answer["code"], code);
        let text = answer["error"].as_str().unwrap();
        assert!(text.contains(number) && text.contains(advice), "{code}: {text}");
    }
}

fn told<'a>(
    (status, answer): (u16, Value),
    code: &'a str,
    number: &'a str,
    advice: &'a str,
) -> (u16, Value, &'a str, &'a str, &'a str) {
    (status, answer, code, number, advice)
}
