//! The engine over a real journal, without sockets.

use std::time::Duration;

use protocol::event::Via;
use protocol::id::{Digest, QueueKey, QueueName};
use protocol::native::{Callbacks, FromBroker, Hello};
use protocol::queue::QueueState;
use protocol::raw::RawJson;
use tokio::sync::mpsc::Receiver;

use super::outbox::{OUTBOX_FRAMES_MAX, Outbox, Outgoing};
use super::*;
use crate::journal::JournalConfig;
use crate::logs::LogLimits;

struct Bench {
    engine: Engine,
    queue: QueueHandle,
    folder: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Self {
        Self::open(tempfile::TempDir::new().unwrap())
    }

    fn open(folder: tempfile::TempDir) -> Self {
        Self::open_with(folder, EngineConfig::default())
    }

    fn open_with(folder: tempfile::TempDir, config: EngineConfig) -> Self {
        let (journal, _) = Journal::open(JournalConfig::new(folder.path().join("journal"))).unwrap();
        let logs = LogStore::open(folder.path().join("logs"), LogLimits::default()).unwrap();
        let engine = Engine::start(journal, logs, config);
        let queue = engine.queue(&"q".parse::<QueueName>().unwrap());
        Self { engine, queue, folder }
    }

    async fn submit(&self, number: usize) -> Done {
        let definition = RawJson::new(format!(r#"{{"image":"i","command":"echo {number}"}}"#));
        let submit = SubmitJob {
            id: None,
            definition,
            namespace: None,
            priority: 0,
            debug: false,
            retry: false,
            callbacks: Callbacks::default(),
            via: Via::Http,
        };
        self.queue.submit(submit).await.unwrap()
    }

    async fn watch(&self) -> Receiver<Outgoing> {
        let (outbox, line, _) = Outbox::new();
        let hello = Hello { version: 1, version_min: None, watch: true, resume: None, worker: None };
        let attach = Attach { session: self.engine.new_session(), outbox, hello };
        self.queue.send(Ask::Attach(Box::new(attach))).await.unwrap();
        line
    }
}

/// Folds what waits in a line, as a page would; says whether a snapshot was among it.
async fn fold(line: &mut Receiver<Outgoing>, state: &mut Option<QueueState>, until_seq: u64) -> usize {
    let mut snapshots = 0;
    while state.as_ref().is_none_or(|state| state.head().seq < until_seq) {
        let outgoing = tokio::time::timeout(Duration::from_secs(20), line.recv()).await.expect("news").unwrap();
        let message = match outgoing {
            Outgoing::Message(message) | Outgoing::Large(message, _) => *message,
            Outgoing::Shared(shared) => shared.message(),
            Outgoing::Close { code, .. } => panic!("closed: {code}"),
        };
        match message {
            FromBroker::Snapshot { state: bytes, .. } => {
                snapshots += 1;
                *state = Some(QueueState::decode(&bytes.0).unwrap());
            }
            FromBroker::Events { records, .. } => {
                for record in records {
                    state.as_mut().expect("a snapshot comes first").apply_bytes(&record.0).unwrap();
                }
            }
            FromBroker::Welcome { .. }
            | FromBroker::Claimed { .. }
            | FromBroker::Definitions { .. }
            | FromBroker::Explained { .. }
            | FromBroker::Presence { .. }
            | FromBroker::Ok { .. }
            | FromBroker::Rejected { .. }
            | FromBroker::Granted { .. }
            | FromBroker::Stop { .. }
            | FromBroker::Logs { .. } => {}
        }
    }
    snapshots
}

#[tokio::test]
async fn a_reader_that_falls_behind_slows_nobody_and_starts_anew_from_a_snapshot() {
    let bench = Bench::start().await;
    let mut slow = bench.watch().await;
    let mut quick = bench.watch().await;
    let (mut seen_by_quick, mut seen_by_slow) = (None, None);
    let rounds = OUTBOX_FRAMES_MAX + 50;
    for number in 0..rounds {
        // One at a time, so that each is a frame of its own; the quick reader keeps up, the slow one reads nothing.
        let done = bench.submit(number).await;
        assert_eq!(fold(&mut quick, &mut seen_by_quick, done.head.seq).await, usize::from(number == 0));
    }
    let head = bench.queue.head().await.unwrap();
    assert_eq!(
        fold(&mut slow, &mut seen_by_slow, head.seq).await,
        2,
        "the first snapshot and the one after falling behind"
    );
    assert_eq!(seen_by_slow.as_ref().map(QueueState::hash), seen_by_quick.as_ref().map(QueueState::hash));
    assert_eq!(bench.engine.stats().snapshots_for_lag, 1);
}

#[tokio::test]
async fn nothing_is_told_that_a_crash_could_take_back() {
    // Every answer's head is in the journal by the time it arrives: read from another handle on the same files.
    let bench = Bench::start().await;
    let key = QueueKey::of(&"q".parse().unwrap());
    for number in 0..20 {
        let done = bench.submit(number).await;
        let rows = crate::audit::log(&bench.folder.path().join("journal"), Some(key)).unwrap();
        let last = rows.filter_map(Result::ok).map(|row| row.seq).max();
        assert!(last >= Some(done.head.seq), "{last:?} on disk, {} told", done.head.seq);
    }
}

#[tokio::test]
async fn an_idle_queue_is_put_away_and_comes_back_as_it_was() {
    let bench = Bench::start().await;
    bench.engine.queue(&"never-written".parse().unwrap()).jobs().await.unwrap();
    let before = bench.submit(1).await.head;
    tokio::time::timeout(Duration::from_secs(20), async {
        while bench.engine.stats().live_queues > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("a queue that was only looked at goes");
    bench.engine.stop().await;
    let again = Bench::open(bench.folder);
    assert_eq!(again.queue.head().await.unwrap(), before);
}

impl Bench {
    async fn resume(&self, known: Head) -> Receiver<Outgoing> {
        let (outbox, line, _) = Outbox::new();
        let hello = Hello { version: 1, version_min: None, watch: true, resume: Some(known), worker: None };
        let attach = Attach { session: self.engine.new_session(), outbox, hello };
        self.queue.send(Ask::Attach(Box::new(attach))).await.unwrap();
        line
    }
}

#[tokio::test]
async fn a_watcher_that_comes_back_gets_what_it_missed_and_no_snapshot() {
    let bench = Bench::start().await;
    let mut line = bench.watch().await;
    let mut state = None;
    let mut heads = vec![Head { seq: 0, hash: bench.queue.key().genesis() }];
    for number in 0..30 {
        let done = bench.submit(number).await;
        fold(&mut line, &mut state, done.head.seq).await;
        heads.push(done.head);
    }
    let last = *heads.last().unwrap();
    let live = state.as_ref().map(QueueState::hash);
    // Once from memory; once from disk, the queue just loaded again; while others go on submitting.
    let mut bench = bench;
    for round in ["from memory", "from disk"] {
        for known in [heads[0], heads[1], heads[17], last] {
            let mut seen = QueueState::new(bench.queue.key());
            let journal = bench.folder.path().join("journal");
            if known.seq > 0 {
                seen = crate::audit::state_at(&journal, bench.queue.key(), crate::audit::At::Seq(known.seq)).unwrap();
            }
            let mut seen = Some(seen);
            let mut line = bench.resume(known).await;
            assert_eq!(fold(&mut line, &mut seen, last.seq).await, 0, "{round}, from {}", known.seq);
            assert_eq!(seen.as_ref().map(QueueState::hash), live, "{round}, from {}", known.seq);
        }
        if round == "from memory" {
            bench.engine.stop().await;
            bench = Bench::open(bench.folder);
        }
    }
    // News follow what was missed, without a gap or a repeat.
    let mut seen = Some(QueueState::new(bench.queue.key()));
    let mut line = bench.resume(heads[0]).await;
    let (_, done) = tokio::join!(fold(&mut line, &mut seen, last.seq + 1), bench.submit(99));
    assert_eq!(seen.map(|state| state.head()), Some(done.head));
}

#[tokio::test]
async fn a_watcher_that_comes_back_from_another_chain_or_the_future_starts_from_a_snapshot() {
    let bench = Bench::start().await;
    let head = bench.submit(1).await.head;
    let head = {
        bench.submit(2).await;
        head
    };
    for wrong in [Head { seq: head.seq, hash: Digest::of(b"other") }, Head { seq: 999, hash: head.hash }] {
        let mut seen = None;
        let mut line = bench.resume(wrong).await;
        assert_eq!(fold(&mut line, &mut seen, head.seq + 1).await, 1);
    }
    bench.engine.stop().await;
    let bench = Bench::open(bench.folder);
    let mut seen = None;
    let mut line = bench.resume(Head { seq: head.seq, hash: Digest::of(b"other") }).await;
    assert_eq!(fold(&mut line, &mut seen, head.seq + 1).await, 1, "also when the records are on disk only");
}

#[tokio::test]
async fn a_damaged_queue_says_so_to_everyone_and_the_others_go_on() {
    let bench = Bench::start().await;
    let (other, key) = (bench.engine.queue(&"other".parse().unwrap()), bench.queue.key());
    let submit = |number: usize| SubmitJob {
        id: None,
        definition: RawJson::new(format!(r#"{{"image":"i","command":"echo {number}"}}"#)),
        namespace: None,
        priority: 0,
        debug: false,
        retry: false,
        callbacks: Callbacks::default(),
        via: Via::Http,
    };
    for number in 0..5 {
        bench.submit(number).await;
        other.submit(submit(number)).await.unwrap();
    }
    bench.engine.stop().await;
    // One byte of one of the queue's records.
    let segments = bench.folder.path().join("journal/segments");
    let segment = std::fs::read_dir(segments).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&segment).unwrap();
    let row = crate::audit::log(&bench.folder.path().join("journal"), Some(key)).unwrap().nth(2).unwrap().unwrap();
    let at = usize::try_from(row.offset).unwrap() + 60;
    bytes[at] ^= 0x10;
    std::fs::write(&segment, bytes).unwrap();

    let bench = Bench::open(bench.folder);
    let journal = bench.engine.0.journal.clone();
    tokio::task::spawn_blocking(move || journal.scrub()).await.unwrap().unwrap();
    let code = |refusal: Refusal| refusal.code;
    assert_eq!(bench.queue.jobs().await.unwrap_err().code, "quarantined");
    assert_eq!(bench.queue.presence().await.map_err(code), Err("quarantined"));
    assert_eq!(bench.queue.submit(submit(9)).await.map_err(code), Err("quarantined"));
    let mut line = bench.watch().await;
    let said = tokio::time::timeout(Duration::from_secs(20), line.recv()).await.expect("a word").unwrap();
    assert!(
        matches!(&said, Outgoing::Message(message) if matches!(&**message, FromBroker::Rejected { code, .. } if code == "quarantined")),
        "{said:?}"
    );
    let other = bench.engine.queue(&"other".parse().unwrap());
    other.submit(submit(9)).await.unwrap();
    assert_eq!(other.jobs().await.unwrap().len(), 6);
}

#[tokio::test]
async fn what_has_left_the_queue_is_still_explained_and_its_definition_found() {
    let limits = Limits { success_stays_ms: 0, ..Limits::default() };
    let config = EngineConfig { limits, ..EngineConfig::default() };
    let bench = Bench::open_with(tempfile::TempDir::new().unwrap(), config);
    let job = bench.submit(1).await.job;
    bench.queue.cancel(job, CancelScope::All, Some("enough".to_owned())).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), async {
        while bench.queue.job(job).await.unwrap().is_none_or(|found| found.live) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it leaves");
    let explained = bench.queue.explain(job).await.unwrap();
    assert_eq!(explained.standing, protocol::explain::Standing::Cancelled);
    assert!(explained.reason.contains("enough"), "{}", explained.reason);
    let (part, is_final) = bench.queue.definitions(vec![job]).await.unwrap().next_part().await.unwrap();
    assert_eq!((part.len(), part[0].job, is_final), (1, job, true));
}

#[tokio::test]
async fn who_missed_who_is_connected_hears_it_when_it_has_read_the_rest() {
    let bench = Bench::start().await;
    let mut slow = bench.watch().await;
    for number in 0..OUTBOX_FRAMES_MAX + 50 {
        bench.submit(number).await;
    }
    // Told to the newcomer, while the other's line is full.
    let mut other = bench.watch().await;
    let told = |outgoing: Option<Outgoing>| {
        let Outgoing::Shared(shared) = outgoing.expect("the line is open") else { return None };
        let FromBroker::Presence { clients, .. } = shared.message() else { return None };
        Some(clients)
    };
    let until_two = |line: &mut Receiver<Outgoing>| {
        let mut line = std::mem::replace(line, tokio::sync::mpsc::channel(1).1);
        async move { while told(line.recv().await) != Some(2) {} }
    };
    tokio::time::timeout(Duration::from_secs(20), until_two(&mut other)).await.expect("the newcomer hears it");
    tokio::time::timeout(Duration::from_secs(20), until_two(&mut slow)).await.expect("and the slow one in the end");
}

#[tokio::test]
async fn who_comes_while_changes_wait_to_be_told_gets_each_once() {
    let bench = Bench::start().await;
    let mut crowd = Vec::new();
    for _ in 0..4_000 {
        crowd.push(bench.watch().await);
    }
    // The first is told at once; so many watch that what follows waits for a while.
    bench.submit(0).await;
    bench.submit(1).await;
    let late = bench.watch().await;
    let done = bench.submit(2).await;
    for mut line in crowd.into_iter().step_by(1_000).chain([late]) {
        let mut state = None;
        assert_eq!(fold(&mut line, &mut state, done.head.seq).await, 1);
        assert_eq!(state.map(|state| state.head()), Some(done.head));
    }
}

#[tokio::test]
async fn who_comes_after_all_have_left_while_changes_waited_misses_nothing() {
    let bench = Bench::start().await;
    let mut crowd = Vec::new();
    for _ in 0..4_000 {
        let (outbox, line, _) = Outbox::new();
        let hello = Hello { version: 1, version_min: None, watch: true, resume: None, worker: None };
        let session = bench.engine.new_session();
        bench.queue.send(Ask::Attach(Box::new(Attach { session, outbox, hello }))).await.unwrap();
        crowd.push((session, line));
    }
    // The first is told at once, the second waits; then nobody is left to tell.
    bench.submit(0).await;
    bench.submit(1).await;
    for (session, _) in &crowd {
        bench.queue.send(Ask::Detach(*session)).await.unwrap();
    }
    bench.submit(2).await;
    let mut late = bench.watch().await;
    let done = bench.submit(3).await;
    let mut state = None;
    assert_eq!(fold(&mut late, &mut state, done.head.seq).await, 1);
    assert_eq!(state.map(|state| state.head()), Some(done.head));
}
