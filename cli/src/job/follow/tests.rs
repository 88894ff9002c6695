//! What is told of a job, whatever comes over the socket and however often it breaks.

use std::sync::Arc;

use protocol::PROTOCOL_VERSION;
use protocol::event::{Event, RunOutcome, Via};
use protocol::id::{Digest, Namespace, QueueKey, UnixMillis};
use protocol::queue::QueueState;
use protocol::raw::StateBytes;
use protocol::record::{RECORD_VERSION, Record};

use super::*;

const JOB: JobId = JobId::from_bytes([1; 32]);
const OTHER: JobId = JobId::from_bytes([2; 32]);

/// A queue that plays the broker.
struct Queue {
    state: QueueState,
    records: Vec<Arc<[u8]>>,
}

impl Queue {
    fn new() -> Self {
        let key = QueueKey::of(&"q".parse().unwrap());
        Self { state: QueueState::new(key), records: Vec::new() }
    }

    fn happens(&mut self, event: Event) {
        let seq = self.state.head().seq + 1;
        let bytes = Record { v: RECORD_VERSION, seq, at_ms: UnixMillis(seq), event }.encode();
        self.state.apply_bytes(&bytes).unwrap();
        self.records.push(bytes.into());
    }

    fn welcome(&self) -> FromBroker {
        let (queue, head) = (self.state.queue(), self.state.head());
        FromBroker::Welcome { version: PROTOCOL_VERSION, queue, head, lease_ms: 1, gone: Vec::new() }
    }

    fn snapshot(&self) -> FromBroker {
        FromBroker::Snapshot { head: self.state.head(), state: StateBytes(self.state.encode().into()) }
    }

    fn events(&self, from_seq: usize) -> FromBroker {
        let records = self.records[from_seq - 1..].iter().cloned().map(RecordBytes).collect();
        FromBroker::Events { from_seq: from_seq as u64, records }
    }
}

fn queued(job: JobId) -> Event {
    Event::JobQueued {
        job,
        body: Digest::of(b"{}"),
        namespace: Namespace::default(),
        via: Via::Http,
        needs: protocol::definition::Needs::default(),
        priority: 0,
        debug: false,
        runs_before: 0,
    }
}

fn claimed(job: JobId) -> Event {
    Event::RunClaimed { job, run: 1, worker: "w".parse().unwrap() }
}

fn finished(job: JobId) -> Event {
    Event::RunFinished {
        job,
        run: 1,
        outcome: RunOutcome::Success,
        result: Digest::of(b"{}"),
        exit_code: Some(3),
        image: None,
        duration_ms: None,
    }
}

fn line(text: &str) -> LogLine {
    LogLine { text: text.into(), at_ms: UnixMillis(1), stderr: false }
}

fn logs(from: u64, lines: &[&str], is_final: bool) -> FromBroker {
    let lines = lines.iter().map(|text| line(text)).collect();
    FromBroker::Logs { job: JOB, kind: LogKind::Run, from, lines, is_final }
}

fn texts(told: &[Told]) -> Vec<&str> {
    told.iter()
        .filter_map(|told| match told {
            Told::Line(_, line) => Some(line.text.as_str()),
            Told::Gap(..) | Told::Now(_) | Told::Absent | Told::NoWorkers => None,
        })
        .collect()
}

fn statuses(told: &[Told]) -> Vec<&'static str> {
    told.iter()
        .filter_map(|told| match told {
            Told::Now(View { status: Status::Queued { .. }, .. }) => Some("queued"),
            Told::Now(View { status: Status::Running {}, .. }) => Some("running"),
            Told::Now(_) => Some("ended"),
            Told::Absent => Some("absent"),
            Told::Line(..) | Told::Gap(..) | Told::NoWorkers => None,
        })
        .collect()
}

fn follow() -> Follow {
    Follow::new(JOB, &[(LogKind::Run, 0)])
}

#[test]
fn each_state_of_the_job_is_told_once_and_other_jobs_are_not() {
    let (mut queue, mut follow) = (Queue::new(), follow());
    queue.happens(queued(JOB));
    follow.on(queue.welcome()).unwrap();
    assert_eq!(statuses(&follow.on(queue.snapshot()).unwrap()), ["queued"]);
    queue.happens(queued(OTHER));
    queue.happens(claimed(JOB));
    queue.happens(finished(JOB));
    queue.happens(Event::JobRemoved { job: JOB });
    assert_eq!(statuses(&follow.on(queue.events(2)).unwrap()), ["running", "ended"]);
    assert!(follow.has_ended());
    assert_eq!(follow.view().unwrap().run, 1);
}

#[test]
fn it_is_over_when_the_job_has_ended_and_the_last_line_is_here() {
    let (mut queue, mut follow) = (Queue::new(), follow());
    queue.happens(queued(JOB));
    queue.happens(claimed(JOB));
    follow.on(queue.snapshot()).unwrap();
    follow.on(logs(0, &["a\n"], false)).unwrap();
    queue.happens(finished(JOB));
    follow.on(queue.events(3)).unwrap();
    assert!(!follow.is_over());
    assert_eq!(texts(&follow.on(logs(1, &["b\n"], true)).unwrap()), ["b\n"]);
    assert!(follow.is_over());
}

#[test]
fn a_new_socket_goes_on_at_the_next_line_and_at_the_next_record() {
    let (mut queue, mut follow) = (Queue::new(), follow());
    queue.happens(queued(JOB));
    follow.on(queue.welcome()).unwrap();
    follow.on(queue.snapshot()).unwrap();
    follow.on(logs(0, &["a\n", "b\n"], false)).unwrap();
    let opening = follow.opening();
    assert!(matches!(&opening[0], ToBroker::Hello(hello) if hello.resume == Some(queue.state.head()) && hello.watch));
    assert!(matches!(&opening[1], ToBroker::FollowLogs { since: 2, kind: LogKind::Run, .. }));
    queue.happens(claimed(JOB));
    assert_eq!(statuses(&follow.on(queue.events(1)).unwrap()), ["running"], "a repeated record is passed over");
    assert_eq!(
        texts(&follow.on(logs(1, &["b\n", "c\n"], false)).unwrap()),
        ["c\n"],
        "a repeated line is not said twice"
    );
    assert_eq!(follow.on(queue.snapshot()).unwrap(), [], "a snapshot that brings nothing new tells nothing");
}

#[test]
fn lines_that_are_not_kept_are_announced() {
    let mut follow = follow();
    let told = follow.on(logs(5, &["x\n"], false)).unwrap();
    assert_eq!(told, [Told::Gap(LogKind::Run, 5), Told::Line(LogKind::Run, line("x\n"))]);
}

#[test]
fn logs_of_other_jobs_and_kinds_are_not_taken() {
    let mut follow = follow();
    let build = FromBroker::Logs { job: JOB, kind: LogKind::Build, from: 0, lines: vec![line("x")], is_final: true };
    let other = FromBroker::Logs { job: OTHER, kind: LogKind::Run, from: 0, lines: vec![line("x")], is_final: true };
    assert_eq!(follow.on(build).unwrap(), []);
    assert_eq!(follow.on(other).unwrap(), []);
}

#[test]
fn a_job_that_is_not_there_is_told_as_absent_and_can_still_come() {
    let (mut queue, mut follow) = (Queue::new(), follow());
    queue.happens(queued(OTHER));
    assert_eq!(statuses(&follow.on(queue.snapshot()).unwrap()), ["absent"]);
    assert!(follow.has_ended());
    queue.happens(queued(JOB));
    assert_eq!(statuses(&follow.on(queue.events(2)).unwrap()), ["queued"]);
    assert!(!follow.has_ended());
}

#[test]
fn a_job_that_left_while_the_socket_was_broken_is_absent() {
    let (mut queue, mut follow) = (Queue::new(), follow());
    queue.happens(queued(JOB));
    follow.on(queue.snapshot()).unwrap();
    queue.happens(claimed(JOB));
    queue.happens(finished(JOB));
    queue.happens(Event::JobRemoved { job: JOB });
    assert_eq!(statuses(&follow.on(queue.snapshot()).unwrap()), ["absent"]);
}

#[test]
fn a_log_that_is_refused_does_not_keep_us_from_the_end() {
    let mut follow = follow();
    let refused = |req| FromBroker::Rejected { req, code: "unknown_job".into(), message: "no such job".into() };
    follow.on(Queue::new().snapshot()).unwrap();
    assert!(!follow.is_over());
    follow.on(refused(Some(1))).unwrap();
    assert!(follow.is_over());
    assert!(matches!(follow.on(refused(None)), Err(FollowError::Rejected { .. })));
}

#[test]
fn a_broker_that_lost_what_it_had_shown_is_found_out() {
    let (mut queue, mut follow) = (Queue::new(), follow());
    queue.happens(queued(JOB));
    follow.on(queue.snapshot()).unwrap();
    let lost = follow.on(Queue::new().welcome()).unwrap_err();
    assert!(matches!(lost, FollowError::WentBack { seen: 1, now: 0 }));
    assert!(!lost.is_transient());
}

#[test]
fn a_gap_in_the_records_asks_for_a_fresh_snapshot() {
    let (mut queue, mut follow) = (Queue::new(), follow());
    queue.happens(queued(JOB));
    follow.on(queue.snapshot()).unwrap();
    queue.happens(claimed(JOB));
    queue.happens(finished(JOB));
    let gap = follow.on(queue.events(3)).unwrap_err();
    assert!(gap.is_transient() && gap.needs_snapshot());
    follow.start_afresh();
    assert!(matches!(&follow.opening()[0], ToBroker::Hello(hello) if hello.resume.is_none()));
    assert_eq!(statuses(&follow.on(queue.snapshot()).unwrap()), ["ended"]);
}

#[test]
fn another_version_of_the_dialect_is_refused() {
    let FromBroker::Welcome { queue, head, lease_ms, gone, .. } = Queue::new().welcome() else { panic!() };
    let welcome = FromBroker::Welcome { version: PROTOCOL_VERSION + 1, queue, head, lease_ms, gone };
    assert!(matches!(follow().on(welcome), Err(FollowError::Version(_))));
}

#[test]
fn that_no_worker_is_there_is_said_once_and_only_of_a_job_that_waits() {
    let (mut queue, mut follow) = (Queue::new(), follow());
    let nobody = || FromBroker::Presence { workers: Vec::new(), clients: 1 };
    assert_eq!(follow.on(nobody()).unwrap(), []);
    queue.happens(queued(JOB));
    assert!(follow.on(queue.snapshot()).unwrap().contains(&Told::NoWorkers));
    assert_eq!(follow.on(nobody()).unwrap(), []);
}

#[test]
fn a_broker_that_is_stopping_is_worth_another_try_and_a_refusal_is_not() {
    let refused = |code: &str| FromBroker::Rejected { req: None, code: code.into(), message: "no".into() };
    let stopping = follow().on(refused("stopping")).unwrap_err();
    assert!(stopping.is_transient() && !stopping.needs_snapshot());
    assert!(!follow().on(refused("quarantined")).unwrap_err().is_transient());
}
