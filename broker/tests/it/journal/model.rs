//! What a journal must answer, kept beside it: queues that live, and all that was ever handed in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use broker::journal::{Archived, Batch, Body, EncodedRecord, Journal, JournalConfig, JournalError, OpenReport};
use protocol::event::{Event, LostReason, RunOutcome, Via};
use protocol::id::{Digest, JobId, QueueKey, UnixMillis, WorkerId};
use protocol::queue::{QueueState, Status};
use protocol::record::{RECORD_VERSION, Record};

/// A small generator of numbers, so that a failure can be run again.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % sides
    }
}

/// One queue and all that was handed in for it.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) state: QueueState,
    /// The state after each record; the first is the one before all.
    pub(crate) past: Vec<QueueState>,
    pub(crate) records: Vec<EncodedRecord>,
    pub(crate) bodies: BTreeMap<Digest, Vec<u8>>,
    pub(crate) archived: BTreeMap<JobId, Archived>,
    jobs: u64,
}

pub(crate) fn job_id(queue: QueueKey, number: u64) -> JobId {
    let mut text = queue.as_bytes().to_vec();
    text.extend_from_slice(&number.to_be_bytes());
    JobId::from_bytes(*Digest::of(&text).as_bytes())
}

pub(crate) fn worker() -> WorkerId {
    "worker-1".parse().unwrap()
}

impl Model {
    pub(crate) fn new(name: &str) -> Self {
        let state = QueueState::new(QueueKey::of(&name.parse().unwrap()));
        let past = vec![state.clone()];
        Self { state, past, records: Vec::new(), bodies: BTreeMap::new(), archived: BTreeMap::new(), jobs: 0 }
    }

    pub(crate) fn queue(&self) -> QueueKey {
        self.state.queue()
    }

    /// Folds events and makes the batch that commits them.
    pub(crate) fn batch(&mut self, events: Vec<Event>, bodies: Vec<Vec<u8>>) -> Batch {
        let queue = self.queue();
        let (mut records, mut archives) = (Vec::new(), Vec::new());
        for event in events {
            let seq = self.state.head().seq + 1;
            let at_ms = UnixMillis(1_000_000 + seq * 10);
            if let Event::JobRemoved { job } = event {
                let archived = Archived::of(self.state.job(job).unwrap(), at_ms);
                archives.push((job, archived.clone()));
                self.archived.insert(job, archived);
            }
            let bytes: Arc<[u8]> = Record { v: RECORD_VERSION, seq, at_ms, event }.encode().into();
            self.state.apply_bytes(&bytes).unwrap();
            self.past.push(self.state.clone());
            records.push(EncodedRecord { seq, hash: self.state.head().hash, bytes });
        }
        self.records.extend(records.iter().cloned());
        let body = |bytes: Vec<u8>| Body { digest: Digest::of(&bytes), bytes: bytes.into() };
        let bodies: Vec<Body> = bodies.into_iter().map(body).collect();
        self.bodies.extend(bodies.iter().map(|body| (body.digest, body.bytes.to_vec())));
        Batch { queue, records, bodies, archives, due: Some(UnixMillis(5)) }
    }

    /// A new job.
    pub(crate) fn submit(&mut self) -> Batch {
        self.jobs += 1;
        let text = format!("{{\"image\":\"busybox\",\"command\":\"echo {}\"}}", self.jobs).into_bytes();
        let job = job_id(self.queue(), self.jobs);
        let event = queued(job, Digest::of(&text));
        self.batch(vec![event], vec![text])
    }

    /// Something that may happen next.
    pub(crate) fn step(&mut self, dice: &mut Dice) -> Batch {
        let waiting = self.state.waiting().next().map(|(id, _)| id);
        let running = self.state.running().next().map(|(id, job)| (id, job.run));
        let ended = self.state.jobs().iter().find(|(_, job)| !job.is_live()).map(|(id, _)| *id);
        match (dice.roll(6), waiting, running, ended) {
            (1, Some(job), _, _) => {
                let run = self.state.job(job).unwrap().run + 1;
                self.batch(vec![Event::RunClaimed { job, run, worker: worker() }], vec![])
            }
            (2, _, Some((job, run)), _) => {
                let result = vec![b'r'; usize::try_from(dice.roll(3000)).unwrap()];
                let digest = Digest::of(&result);
                let (exit_code, image, duration_ms) = (Some(0), None, Some(7));
                let outcome = RunOutcome::Success;
                let event = Event::RunFinished { job, run, outcome, result: digest, exit_code, image, duration_ms };
                self.batch(vec![event], vec![result])
            }
            (3, _, Some((job, run)), _) => {
                let lost = Event::RunLost { job, run, why: LostReason::LeaseExpired };
                self.batch(vec![lost, Event::JobRequeued { job }], vec![])
            }
            (4, Some(job), _, _) => {
                self.batch(vec![Event::JobCancelled { job, message: Some("no".to_owned()) }], vec![])
            }
            (5, _, _, Some(job)) => self.batch(vec![Event::JobRemoved { job }], vec![]),
            _ => self.submit(),
        }
    }

    /// Whether the journal answers for this queue as it must.
    pub(crate) fn check(&self, journal: &Journal) -> Result<(), JournalError> {
        let loaded = journal.load(self.queue())?;
        assert_eq!(loaded.head(), self.state.head());
        assert_eq!(loaded, self.state);
        assert_eq!(loaded.hash(), self.state.hash());
        assert_eq!(journal.records(self.queue(), 1, usize::MAX, usize::MAX)?, self.records);
        for (digest, bytes) in &self.bodies {
            assert_eq!(journal.body(self.queue(), *digest)?.as_ref(), Some(bytes));
        }
        for (job, archived) in &self.archived {
            assert_eq!(journal.archived(self.queue(), *job)?.as_ref(), Some(archived));
            assert_eq!(journal.retained(*job)?, vec![self.queue()]);
        }
        for job in self.state.jobs().keys() {
            assert_eq!(journal.retained(*job)?, vec![self.queue()]);
        }
        Ok(())
    }
}

pub(crate) fn queued(job: JobId, body: Digest) -> Event {
    let (namespace, needs) = (protocol::id::Namespace::default(), protocol::definition::Needs::default());
    Event::JobQueued { job, body, namespace, via: Via::Http, needs, priority: 0, debug: false, runs_before: 0 }
}

pub(crate) fn is_finished(status: &Status) -> bool {
    matches!(status, Status::Finished { .. })
}

/// Opens without the scrub, which would make a test's result depend on time.
pub(crate) fn config(dir: &Path) -> JournalConfig {
    JournalConfig { scrub: false, ..JournalConfig::new(dir) }
}

pub(crate) fn open(dir: &Path) -> (Journal, OpenReport) {
    Journal::open(config(dir)).unwrap()
}

/// Opens with segments so small that there are many.
pub(crate) fn open_small(dir: &Path) -> (Journal, OpenReport) {
    Journal::open(JournalConfig { segment_bytes_max: 4096, ..config(dir) }).unwrap()
}

/// Copies a folder as it is on disk, as a crash would leave it.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

pub(crate) fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        std::fs::read_dir(dir.join("segments")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// The folder of the event store.
pub(crate) fn store_dir(dir: &Path) -> PathBuf {
    let is_store = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("events.");
    let mut paths: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(is_store).collect();
    paths.sort();
    paths.pop().unwrap()
}

/// Runs a future to its end.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Fills a journal with `steps` batches over `queues`, each acknowledged before the next.
pub(crate) fn play(journal: &Journal, queues: &mut [Model], steps: u64, dice: &mut Dice) {
    for _ in 0..steps {
        let index = usize::try_from(dice.roll(queues.len() as u64)).unwrap();
        wait(journal.append(queues[index].step(dice))).unwrap();
    }
}

/// Fills a journal by writes that hold several batches each.
pub(crate) fn play_together(journal: &Journal, queues: &mut [Model], steps: u64, dice: &mut Dice) {
    let mut commits = Vec::new();
    for _ in 0..steps {
        let index = usize::try_from(dice.roll(queues.len() as u64)).unwrap();
        commits.push(journal.enqueue(queues[index].step(dice)));
    }
    for commit in commits {
        wait(commit).unwrap();
    }
}

pub(crate) fn models(names: &[&str]) -> Vec<Model> {
    names.iter().map(|name| Model::new(name)).collect()
}
