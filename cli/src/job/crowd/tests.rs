//! When a job of many counts as ended, whatever comes first.

use protocol::PROTOCOL_VERSION;
use protocol::event::{Event, Via};
use protocol::id::{Digest, Namespace, QueueKey, UnixMillis};
use protocol::queue::QueueState;
use protocol::raw::{RecordBytes, StateBytes};
use protocol::record::{RECORD_VERSION, Record};

use super::*;

const A: JobId = JobId::from_bytes([1; 32]);
const B: JobId = JobId::from_bytes([2; 32]);

/// A queue that plays the broker.
struct Queue(QueueState);

impl Queue {
    fn new() -> Self {
        Self(QueueState::new(QueueKey::of(&"q".parse().unwrap())))
    }

    fn happens(&mut self, event: Event) -> FromBroker {
        let from_seq = self.0.head().seq + 1;
        let bytes = Record { v: RECORD_VERSION, seq: from_seq, at_ms: UnixMillis(from_seq), event }.encode();
        self.0.apply_bytes(&bytes).unwrap();
        FromBroker::Events { from_seq, records: vec![RecordBytes(bytes.into())] }
    }

    fn opening(&self) -> [FromBroker; 2] {
        let (queue, head) = (self.0.queue(), self.0.head());
        let welcome = FromBroker::Welcome { version: PROTOCOL_VERSION, queue, head, lease_ms: 1, gone: Vec::new() };
        [welcome, FromBroker::Snapshot { head, state: StateBytes(self.0.encode().into()) }]
    }

    fn seq(&self) -> Seq {
        self.0.head().seq
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

fn claimed(job: JobId, run: u32) -> Event {
    Event::RunClaimed { job, run, worker: "w1".parse().unwrap() }
}

fn finished(job: JobId, run: u32, exit_code: i64) -> Event {
    let (outcome, result) = (RunOutcome::Success, Digest::of(b"{}"));
    Event::RunFinished { job, run, outcome, result, exit_code: Some(exit_code), image: None, duration_ms: None }
}

fn opened(queue: &Queue) -> Crowd {
    let mut crowd = Crowd::default();
    queue.opening().into_iter().for_each(|message| crowd.on(message).unwrap());
    crowd
}

/// Jobs that ended, with what went wrong.
fn ends(crowd: &mut Crowd) -> Vec<(JobId, Option<String>)> {
    let end = |end| match end {
        End::Ended(job, view) => (job, failure(&view)),
        End::Left(job) => (job, Some("left".to_owned())),
    };
    crowd.take_ended().into_iter().map(end).collect()
}

#[test]
fn each_job_ends_once_and_the_others_are_waited_for() {
    let mut queue = Queue::new();
    let mut crowd = opened(&queue);
    for job in [A, B] {
        crowd.on(queue.happens(queued(job))).unwrap();
        assert!(crowd.add(job, queue.seq()));
    }
    assert!(!crowd.add(A, queue.seq()), "twice is once");
    crowd.on(queue.happens(claimed(A, 1))).unwrap();
    assert_eq!(ends(&mut crowd), []);
    crowd.on(queue.happens(finished(A, 1, 0))).unwrap();
    assert_eq!((ends(&mut crowd), crowd.len()), (vec![(A, None)], 1));
    crowd.on(queue.happens(Event::JobCancelled { job: B, message: None })).unwrap();
    assert_eq!((ends(&mut crowd), crowd.len()), (vec![(B, Some("was cancelled".to_owned()))], 0));
}

#[test]
fn an_end_that_comes_before_its_acknowledgement_counts() {
    let mut queue = Queue::new();
    let mut crowd = opened(&queue);
    crowd.on(queue.happens(queued(A))).unwrap();
    let acknowledged_at = queue.seq();
    crowd.on(queue.happens(claimed(A, 1))).unwrap();
    crowd.on(queue.happens(finished(A, 1, 3))).unwrap();
    assert_eq!(ends(&mut crowd), []);
    crowd.add(A, acknowledged_at);
    assert_eq!(ends(&mut crowd), [(A, Some("finished with exit code 3".to_owned()))]);
}

#[test]
fn what_a_job_was_before_it_was_acknowledged_does_not_count() {
    let mut queue = Queue::new();
    queue.happens(queued(A));
    let mut crowd = opened(&queue);
    // It fails and is submitted again; the acknowledgement overtakes what the socket tells of it.
    let told = [claimed(A, 1), finished(A, 1, 1), queued(A)].map(|event| queue.happens(event));
    crowd.add(A, queue.seq());
    for message in told {
        crowd.on(message).unwrap();
        assert_eq!(ends(&mut crowd), [], "its old end is not the one");
    }
    crowd.on(queue.happens(claimed(A, 2))).unwrap();
    crowd.on(queue.happens(finished(A, 2, 0))).unwrap();
    assert_eq!(ends(&mut crowd), [(A, None)]);
}

#[test]
fn a_job_that_had_ended_and_is_acknowledged_as_it_is_ends_when_the_state_is_as_late() {
    let mut queue = Queue::new();
    for event in [queued(A), claimed(A, 1), finished(A, 1, 0)] {
        queue.happens(event);
    }
    let mut crowd = opened(&queue);
    let other = queue.happens(queued(B));
    crowd.add(A, queue.seq());
    assert_eq!(ends(&mut crowd), []);
    crowd.on(other).unwrap();
    assert_eq!(ends(&mut crowd), [(A, None)], "no event of its own tells it");
}

#[test]
fn after_a_fresh_snapshot_all_are_looked_at_and_those_that_left_are_told() {
    let mut queue = Queue::new();
    let mut crowd = opened(&queue);
    for job in [A, B] {
        crowd.on(queue.happens(queued(job))).unwrap();
        crowd.add(job, queue.seq());
    }
    for event in [
        claimed(A, 1),
        finished(A, 1, 0),
        Event::JobRemoved { job: A },
        Event::JobCancelled { job: B, message: Some("x".into()) },
    ] {
        queue.happens(event);
    }
    crowd.start_afresh();
    queue.opening().into_iter().for_each(|message| crowd.on(message).unwrap());
    let mut told = ends(&mut crowd);
    told.sort();
    assert_eq!(told, [(A, Some("left".to_owned())), (B, Some("was cancelled: x".to_owned()))]);
    assert_eq!(crowd.len(), 0);
}
