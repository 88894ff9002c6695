//! What happens in a queue between the looks of a sweep and its taking out.

use std::path::Path;
use std::sync::Arc;

use protocol::definition::Needs;
use protocol::event::{Event, Via};
use protocol::id::Namespace;
use protocol::queue::QueueState;
use protocol::record::{RECORD_VERSION, Record};

use super::super::{Batch, Body, EncodedRecord, JournalConfig};
use super::*;

const JOB: JobId = JobId::from_bytes([1; 32]);
const TEXT: &[u8] = b"a definition";

struct Queue {
    journal: Journal,
    state: QueueState,
}

impl Queue {
    fn open(dir: &Path) -> Self {
        let (journal, _) = Journal::open(JournalConfig { scrub: false, ..JournalConfig::new(dir) }).unwrap();
        let state = QueueState::new(QueueKey::from_bytes([7; 16]));
        Self { journal, state }
    }

    fn key(&self) -> QueueKey {
        self.state.queue()
    }

    fn append(&mut self, events: Vec<Event>, bodies: &[&[u8]]) {
        let (mut records, mut archives) = (Vec::new(), Vec::new());
        for event in events {
            let seq = self.state.head().seq + 1;
            let at_ms = UnixMillis(seq * 10);
            if let Event::JobRemoved { job } = event {
                archives.push((job, Archived::of(self.state.job(job).unwrap(), at_ms)));
            }
            let bytes: Arc<[u8]> = Record { v: RECORD_VERSION, seq, at_ms, event }.encode().into();
            self.state.apply_bytes(&bytes).unwrap();
            records.push(EncodedRecord { seq, hash: self.state.head().hash, bytes });
        }
        let bodies = bodies.iter().map(|bytes| Body { digest: Digest::of(bytes), bytes: Arc::from(*bytes) }).collect();
        let batch = Batch { queue: self.key(), records, bodies, archives, due: None };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.journal.append(batch)).unwrap();
        self.journal.shared().wait_indexed().unwrap();
    }

    /// A life of the job, from being queued until it has left or not.
    fn live(&mut self, leaves: bool) {
        let queued = Event::JobQueued {
            job: JOB,
            body: Digest::of(TEXT),
            namespace: Namespace::default(),
            via: Via::Http,
            needs: Needs::default(),
            priority: 0,
            debug: false,
            runs_before: 0,
        };
        let end = [Event::JobCancelled { job: JOB, message: None }, Event::JobRemoved { job: JOB }];
        let events = std::iter::once(queued).chain(end.into_iter().filter(|_| leaves));
        self.append(events.collect(), &[TEXT]);
    }

    /// The looks of a sweep that forgets everything up to now.
    fn look(&self) -> (Forgetting, Vec<Gone>, Vec<(Digest, Place)>) {
        let now = UnixMillis(self.state.at_ms().0 + 1);
        self.journal.forget_before(now, now).unwrap();
        let forgetting = self.journal.begin_forgetting(self.key()).unwrap();
        let places = forgetting.places(&[Digest::of(TEXT)]).unwrap();
        let page = self.journal.kept_page(None, None, 10).unwrap();
        let gone = page.rows.into_iter().map(|(_, job, kept)| Gone { job, kept, is_back: false }).collect();
        (forgetting, gone, places)
    }

    fn is_known(&self) -> bool {
        self.journal.retained(JOB).unwrap() == [self.key()]
    }

    fn has_body(&self) -> bool {
        self.journal.body(self.key(), Digest::of(TEXT)).unwrap().is_some()
    }
}

#[test]
fn what_is_forgotten_leaves_no_row() {
    let dir = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(dir.path());
    queue.live(true);
    assert!(queue.is_known() && queue.has_body());
    let (forgetting, gone, places) = queue.look();
    assert_eq!(forgetting.take_out(&gone, &places).unwrap(), 1);
    assert!(!queue.is_known() && !queue.has_body());
    assert!(queue.journal.kept_page(None, None, 10).unwrap().rows.is_empty());
    assert_eq!(queue.journal.load(queue.key()).unwrap(), queue.state);
}

#[test]
fn a_job_that_is_queued_again_meanwhile_stays_known_with_its_body() {
    let dir = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(dir.path());
    queue.live(true);
    let (forgetting, gone, places) = queue.look();
    queue.live(false);
    assert_eq!(forgetting.take_out(&gone, &places).unwrap(), 1, "what was kept of the first life goes");
    assert!(queue.is_known() && queue.has_body());
}

#[test]
fn a_job_that_came_and_left_again_meanwhile_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(dir.path());
    queue.live(true);
    let (forgetting, gone, places) = queue.look();
    queue.live(true);
    assert_eq!(forgetting.take_out(&gone, &places).unwrap(), 0);
    assert!(queue.is_known() && queue.has_body());
    assert!(queue.journal.archived(queue.key(), JOB).unwrap().is_some());
}

#[test]
fn nothing_is_taken_out_of_a_store_that_is_not_the_one_that_was_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(dir.path());
    queue.live(true);
    let (forgetting, gone, places) = queue.look();
    let failures = std::cell::Cell::new(1);
    let break_once = |_: &Store| match failures.replace(0) {
        0 => Ok(()),
        _ => Err(StoreError("it was told to".to_owned())),
    };
    queue.journal.shared().ask(break_once).unwrap();
    assert_eq!(forgetting.take_out(&gone, &places).unwrap(), 0);
    assert!(queue.is_known());
    drop(forgetting);
    let (forgetting, gone, places) = queue.look();
    assert_eq!(forgetting.take_out(&gone, &places).unwrap(), 1);
}

#[test]
fn a_large_body_that_is_handed_in_again_is_young_again() {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::open(dir.path());
    let (key, digest) = (queue.key(), Digest::of(TEXT));
    let store = || queue.journal.store_large_body(key, digest, TEXT).unwrap();
    store();
    let path = dir.path().join("bodies").join(key.to_string()).join(digest.to_string());
    let backdate = || std::fs::File::options().write(true).open(&path).unwrap().set_modified(UNIX_EPOCH).unwrap();
    backdate();
    let horizon = UnixMillis(10 * FILE_GRACE_MS);
    queue.journal.forget_before(horizon, horizon).unwrap();
    assert_eq!(queue.journal.old_files(key, 10).unwrap(), [digest]);
    // Between the look and the removal someone hands it in: for them it was there before.
    store();
    assert!(!queue.journal.remove_file(key, digest).unwrap());
    backdate();
    assert!(queue.journal.remove_file(key, digest).unwrap());
    assert!(!path.exists());
}
