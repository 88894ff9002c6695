//! What goes out, in which order, and what of it goes again.

use protocol::id::{JobId, UnixMillis};

use super::*;
use crate::link::backlog::LOG_BYTES_MAX;
use crate::state_machine::QueueIndex;

fn run(number: u32) -> HeldRun {
    HeldRun { job: JobId::from_bytes([2; 32]), run: number }
}

fn lines(count: usize, bytes: usize) -> Vec<LogLine> {
    vec![LogLine { text: "x".repeat(bytes), at_ms: UnixMillis(1), stderr: false }; count]
}

fn hand_back() -> Report {
    Report::HandBack { why: "test".to_owned(), busy: true }
}

fn offer(cpus_milli: u32, grants_seen: u64, ask: Option<AskNumber>) -> Offer {
    Offer { queue: QueueIndex(0), free: free(cpus_milli), grants_seen, ask }
}

fn free(cpus_milli: u32) -> Capacity {
    Capacity { cpus_milli, ..Capacity::default() }
}

fn drain(outbox: &Outbox) -> Vec<ToBroker> {
    std::iter::from_fn(|| outbox.next_message(Instant::now())).collect()
}

#[tokio::test]
async fn logs_go_before_the_end_of_their_run() {
    let outbox = Outbox::default();
    outbox.connected(1);
    outbox.push_logs(run(1), LogStep::Run, 0, lines(1, 1)).await;
    outbox.report(run(1), hand_back());
    let sent = drain(&outbox);
    assert!(matches!(sent[..], [ToBroker::RunLogs { .. }, ToBroker::HandBack { .. }]), "{sent:?}");
    // Both may be lost with the line, and go again in the same order.
    outbox.connected(2);
    let sent = drain(&outbox);
    assert!(matches!(sent[..], [ToBroker::RunLogs { .. }, ToBroker::HandBack { .. }]), "{sent:?}");
}

#[tokio::test]
async fn an_end_and_then_the_claim_go_before_what_another_run_prints_later() {
    let outbox = Outbox::default();
    outbox.connected(1);
    outbox.push_logs(run(1), LogStep::Run, 0, lines(1, 1)).await;
    outbox.report(run(2), hand_back());
    outbox.claim(1, &offer(0, 0, None));
    outbox.push_logs(run(1), LogStep::Run, 1, lines(1, 1)).await;
    let sent = drain(&outbox);
    assert!(
        matches!(
            sent[..],
            [
                ToBroker::RunLogs { first: 0, .. },
                ToBroker::HandBack { .. },
                ToBroker::Claim { .. },
                ToBroker::RunLogs { first: 1, .. }
            ]
        ),
        "{sent:?}"
    );
}

#[tokio::test]
async fn an_end_is_sent_again_on_each_connection_until_it_is_settled() {
    let outbox = Outbox::default();
    outbox.connected(1);
    outbox.report(run(1), hand_back());
    assert_eq!(drain(&outbox).len(), 1);
    assert_eq!(drain(&outbox).len(), 0);
    outbox.disconnected();
    outbox.connected(2);
    let sent = drain(&outbox);
    let [ToBroker::HandBack { req, .. }] = sent[..] else { panic!("{sent:?}") };
    assert_eq!(outbox.run_of(req), Some(run(1)));
    outbox.forget(run(1));
    outbox.connected(3);
    assert_eq!(drain(&outbox).len(), 0);
    assert_eq!(outbox.holds(), []);
}

#[tokio::test]
async fn lines_that_a_broken_connection_may_have_lost_are_sent_again_and_those_that_arrived_are_not() {
    let outbox = Outbox::default();
    outbox.connected(1);
    outbox.push_logs(run(1), LogStep::Run, 0, lines(1, 1)).await;
    drain(&outbox);
    let ping = outbox.next_ping(0).unwrap();
    outbox.push_logs(run(1), LogStep::Run, 1, lines(1, 1)).await;
    drain(&outbox);
    outbox.on_pong(ping);
    outbox.disconnected();
    outbox.connected(2);
    let sent = drain(&outbox);
    assert!(matches!(sent[..], [ToBroker::RunLogs { first: 1, .. }]), "{sent:?}");
}

#[tokio::test]
async fn without_a_connection_the_oldest_lines_go_and_a_line_says_so_but_ends_stay() {
    let outbox = Outbox::default();
    for batch in 0..20 {
        outbox.push_logs(run(1), LogStep::Run, batch, lines(1, LOG_BYTES_MAX / 10)).await;
    }
    outbox.report(run(1), hand_back());
    assert!(outbox.log_bytes() <= LOG_BYTES_MAX);
    outbox.connected(1);
    let sent = drain(&outbox);
    let ToBroker::RunLogs { first, lines, .. } = &sent[0] else { panic!("{sent:?}") };
    assert!(lines[0].text.contains("lines were lost"), "{}", lines[0].text);
    assert_eq!(lines.len(), 2);
    // The last batch is number 19, one line each.
    assert_eq!(*first + lines.len() as u64 + sent.len() as u64 - 2, 20);
    assert!(matches!(sent.last(), Some(ToBroker::HandBack { .. })));
}

#[tokio::test]
async fn on_a_slow_connection_nothing_is_dropped_and_the_writer_waits() {
    let outbox = Outbox::default();
    outbox.connected(1);
    outbox.push_logs(run(1), LogStep::Run, 0, lines(1, LOG_BYTES_MAX - 100)).await;
    let second = outbox.push_logs(run(1), LogStep::Run, 1, lines(1, 1000));
    tokio::pin!(second);
    assert!(futures_util::poll!(second.as_mut()).is_pending());
    drain(&outbox);
    outbox.on_pong(outbox.next_ping(0).unwrap());
    second.await;
    assert!(matches!(drain(&outbox)[..], [ToBroker::RunLogs { first: 1, .. }]));
}

#[tokio::test]
async fn a_claim_belongs_to_its_connection_and_only_the_newest_is_sent() {
    let outbox = Outbox::default();
    outbox.connected(2);
    outbox.claim(1, &offer(1, 0, None));
    assert_eq!(drain(&outbox).len(), 0);
    outbox.claim(2, &offer(1, 0, None));
    outbox.claim(2, &offer(2, 1, None));
    assert_eq!(drain(&outbox), [ToBroker::Claim { free: free(2), grants_seen: 1, req: None }]);
}

#[tokio::test]
async fn an_ask_has_a_request_number_of_its_own_and_only_the_newest_is_waited_for() {
    let outbox = Outbox::default();
    outbox.connected(1);
    outbox.report(run(1), hand_back());
    drain(&outbox);
    outbox.claim(1, &offer(1, 0, Some(7)));
    let sent = drain(&outbox);
    let [ToBroker::Claim { req: Some(first), .. }] = sent[..] else { panic!("{sent:?}") };
    assert_eq!((outbox.ask_of(first), outbox.run_of(first)), (Some(7), None));
    outbox.claim(1, &offer(1, 1, Some(8)));
    let sent = drain(&outbox);
    let [ToBroker::Claim { req: Some(second), .. }] = sent[..] else { panic!("{sent:?}") };
    assert_eq!((outbox.ask_of(first), outbox.ask_of(second)), (None, Some(8)));
    outbox.connected(2);
    assert_eq!(outbox.ask_of(second), None);
}

#[tokio::test]
async fn a_hand_back_that_had_to_wait_is_followed_by_the_claim_that_offers_the_run_again() {
    let outbox = Outbox::default();
    outbox.connected(1);
    outbox.report(run(1), hand_back());
    outbox.claim(1, &offer(3, 1, Some(7)));
    assert_eq!(drain(&outbox).len(), 2);
    let now = Instant::now();
    outbox.retry_later(run(1), now);
    assert_eq!(drain(&outbox).len(), 0);
    let sent: Vec<_> = std::iter::from_fn(|| outbox.next_message(now + RETRY)).collect();
    let claim = ToBroker::Claim { free: free(3), grants_seen: 1, req: None };
    assert!(matches!(&sent[..], [ToBroker::HandBack { busy: true, .. }, again] if *again == claim), "{sent:?}");
}
