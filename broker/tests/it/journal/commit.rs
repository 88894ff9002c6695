//! Handing in, reading back, and the limits of both.

use std::path::Path;
use std::process::Command;

use broker::journal::{Batch, Durability, Journal, JournalConfig, JournalError, Tail};
use protocol::id::{Digest, UnixMillis};

use super::model::{Dice, Model, config, copy_dir, is_finished, models, open, open_small, play, play_together, wait};

#[test]
fn what_was_acknowledged_is_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let mut queues = models(&["a", "b"]);
    let mut dice = Dice(1);
    for round in 0..5 {
        play_together(&journal, &mut queues, 40, &mut dice);
        // The folder at this moment, as a kill would leave it: nothing is flushed or closed.
        let crashed = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), crashed.path());
        let (again, report) = open(crashed.path());
        assert_eq!(report.quarantined, vec![], "round {round}");
        for queue in &queues {
            queue.check(&again).unwrap();
        }
    }
}

#[test]
fn what_waits_shares_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let mut queues: Vec<Model> = (0..50).map(|number| Model::new(&format!("queue {number}"))).collect();
    play_together(&journal, &mut queues, 2000, &mut Dice(2));
    let stats = journal.stats();
    assert!(stats.groups < 1000, "{stats:?}");
    assert_eq!(stats.syncs, stats.groups);
    for queue in &queues {
        queue.check(&journal).unwrap();
    }
}

#[test]
fn many_bodies_are_read_at_once_in_the_order_asked_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open_small(dir.path());
    let mut queues = models(&["a", "b"]);
    play_together(&journal, &mut queues, 200, &mut Dice(17));
    let queue = &queues[0];
    let large = vec![b'l'; 70_000];
    journal.store_large_body(queue.queue(), Digest::of(&large), &large).unwrap();
    let mut wanted: Vec<(Digest, Option<Vec<u8>>)> =
        queue.bodies.iter().map(|(digest, bytes)| (*digest, Some(bytes.clone()))).collect();
    wanted.push((Digest::of(b"unknown"), None));
    let foreign = queues[1].bodies.keys().find(|digest| !queue.bodies.contains_key(digest));
    wanted.push((*foreign.unwrap(), None));
    wanted.insert(7, (Digest::of(&large), Some(large)));
    wanted.push(wanted[3].clone());
    let digests: Vec<Digest> = wanted.iter().map(|(digest, _)| *digest).collect();
    let all: Vec<_> = wanted.into_iter().map(|(_, bytes)| bytes).collect();
    // Some of them may still wait for the index; when it is closed and opened again, none does.
    assert_eq!(journal.bodies(queue.queue(), &digests, usize::MAX).unwrap(), all);
    journal.close();
    let (journal, _) = open_small(dir.path());
    assert_eq!(journal.bodies(queue.queue(), &digests, usize::MAX).unwrap(), all);
    assert_eq!(journal.bodies(queue.queue(), &[], 0).unwrap(), Vec::<Option<Vec<u8>>>::new());
    for bytes_max in [0, 1_000, 5_000, 60_000] {
        let some = journal.bodies(queue.queue(), &digests, bytes_max).unwrap();
        assert_eq!(some[..], all[..some.len()]);
        let bytes = |found: &[Option<Vec<u8>>]| found.iter().flatten().map(Vec::len).sum::<usize>();
        assert!(some.len() == 1 || bytes(&some) <= bytes_max, "{bytes_max}");
        assert!(!some.is_empty() && some.len() < all.len(), "{bytes_max}");
    }
}

#[test]
fn commits_resolve_in_the_order_of_the_calls() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let mut queue = Model::new("a");
    let first = journal.enqueue(queue.submit());
    let second = journal.enqueue(queue.submit());
    let last = journal.enqueue(queue.submit());
    wait(async {
        last.await.unwrap();
        tokio::time::timeout(std::time::Duration::ZERO, async { first.await.and(second.await) })
            .await
            .unwrap()
            .unwrap();
    });
    queue.check(&journal).unwrap();
}

#[test]
fn a_body_and_what_stays_of_a_job_are_found_before_they_are_indexed() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let mut queue = Model::new("a");
    let mut dice = Dice(3);
    while queue.archived.is_empty() || queue.bodies.len() < 20 {
        let batch = queue.step(&mut dice);
        let (bodies, archives, key) = (batch.bodies.clone(), batch.archives.clone(), batch.queue);
        let commit = journal.enqueue(batch);
        for body in bodies {
            assert_eq!(journal.body(key, body.digest).unwrap().as_deref(), Some(&body.bytes[..]));
        }
        for (job, archived) in archives {
            assert_eq!(journal.archived(key, job).unwrap(), Some(archived));
        }
        drop(commit);
    }
    queue.check(&journal).unwrap();
}

#[test]
fn a_batch_that_does_not_continue_its_queue_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let mut queue = Model::new("a");
    wait(journal.append(queue.submit())).unwrap();
    let mut fork = queue.clone();
    wait(journal.append(queue.submit())).unwrap();
    let forked = wait(journal.append(fork.submit()));
    assert!(matches!(forked, Err(JournalError::Invalid { .. })), "{forked:?}");
    queue.check(&journal).unwrap();
}

#[test]
fn a_batch_over_a_bound_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let mut queue = Model::new("a");
    let mut long_body = queue.clone().submit();
    long_body.bodies[0].bytes = vec![b' '; broker::journal::INLINE_BODY_BYTES_MAX + 1].into();
    let mut long_record = queue.clone().submit();
    long_record.records[0].bytes = vec![0; protocol::record::RECORD_BYTES_MAX + 1].into();
    for batch in [long_body, long_record] {
        assert!(matches!(wait(journal.append(batch)), Err(JournalError::Invalid { .. })));
    }
    wait(journal.append(queue.submit())).unwrap();
    queue.check(&journal).unwrap();
}

#[test]
fn a_folder_in_use_is_refused_with_a_clear_text() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let refused = Journal::open(config(dir.path())).err().unwrap();
    assert!(matches!(&refused, JournalError::InUse { .. }), "{refused}");
    assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
    journal.close();
    open(dir.path());
}

#[test]
fn a_closed_journal_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let mut queue = Model::new("a");
    let waiting = journal.enqueue(queue.submit());
    journal.clone().close();
    wait(waiting).unwrap();
    assert!(matches!(wait(journal.append(queue.clone().submit())), Err(JournalError::Closed)));
    assert!(matches!(journal.load(queue.queue()), Err(JournalError::Closed)));
    let (journal, report) = open(dir.path());
    assert_eq!((report.filled, report.records), (0, 1));
    queue.check(&journal).unwrap();
}

#[test]
fn with_an_interval_a_crash_of_the_broker_alone_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let lossy = JournalConfig { durability: Durability::Interval, ..config(dir.path()) };
    let (journal, _) = Journal::open(lossy).unwrap();
    let mut queues = models(&["a"]);
    play(&journal, &mut queues, 200, &mut Dice(4));
    let stats = journal.stats();
    assert!(stats.syncs < stats.groups, "{stats:?}");
    let crashed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), crashed.path());
    queues[0].check(&open(crashed.path()).0).unwrap();
}

#[test]
fn a_large_body_is_a_file_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let queue = Model::new("a").queue();
    let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let digest = Digest::of(&bytes);
    assert_eq!(journal.body(queue, digest).unwrap(), None);
    journal.store_large_body(queue, digest, &bytes).unwrap();
    journal.store_large_body(queue, digest, &bytes).unwrap();
    assert_eq!(journal.body(queue, digest).unwrap(), Some(bytes.clone()));
    assert_eq!(journal.body(Model::new("b").queue(), digest).unwrap(), None);
    journal.close();
    let (journal, _) = open(dir.path());
    assert_eq!(journal.body(queue, digest).unwrap(), Some(bytes.clone()));
    let file = dir.path().join("bodies").join(queue.to_string()).join(digest.to_string());
    std::fs::write(&file, b"something else").unwrap();
    assert!(journal.body(queue, digest).is_err());
    // Handing it in again mends it.
    journal.store_large_body(queue, digest, &bytes).unwrap();
    assert_eq!(journal.body(queue, digest).unwrap(), Some(bytes));
}

#[test]
fn records_are_read_in_bounded_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let mut queues = models(&["a", "b"]);
    play(&journal, &mut queues, 60, &mut Dice(5));
    let queue = &queues[0];
    let (key, all) = (queue.queue(), &queue.records);
    assert_eq!(journal.records(key, 3, 4, usize::MAX).unwrap(), all[2..6]);
    assert_eq!(journal.records(key, 3, 100, 1).unwrap(), all[2..3]);
    let two = all[0].bytes.len() + all[1].bytes.len();
    assert_eq!(journal.records(key, 0, 100, two).unwrap(), all[..2]);
    assert_eq!(journal.records(key, all.len() as u64 + 1, 10, 10).unwrap(), vec![]);
    let heads: Vec<_> = journal.queues().unwrap();
    assert_eq!(heads.len(), 2);
    for queue in &queues {
        assert!(heads.contains(&(queue.queue(), queue.state.head())));
    }
}

#[test]
fn a_queue_nobody_has_written_to_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let queue = Model::new("nobody");
    queue.check(&journal).unwrap();
    assert_eq!(journal.archived(queue.queue(), super::model::job_id(queue.queue(), 1)).unwrap(), None);
    assert_eq!(journal.queues().unwrap(), vec![]);
}

#[test]
fn due_times_are_found_in_order_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let mut queues = models(&["a", "b", "c"]);
    for (queue, due) in queues.iter_mut().zip([30, 10, 20]) {
        let batch = Batch { due: Some(UnixMillis(due)), ..queue.submit() };
        wait(journal.append(batch)).unwrap();
    }
    let keys: Vec<_> = queues.iter().map(Model::queue).collect();
    journal.queues().unwrap();
    assert_eq!(journal.due_queues(UnixMillis(20), 10), vec![(keys[1], UnixMillis(10)), (keys[2], UnixMillis(20))]);
    assert_eq!(journal.due_queues(UnixMillis(20), 1), vec![(keys[1], UnixMillis(10))]);
    journal.set_due(keys[1], Some(UnixMillis(40))).unwrap();
    journal.set_due(keys[2], None).unwrap();
    journal.close();
    let (journal, _) = open(dir.path());
    assert_eq!(journal.due_queues(UnixMillis(100), 10), vec![(keys[0], UnixMillis(30)), (keys[1], UnixMillis(40))]);
}

#[test]
fn a_snapshot_shortens_the_tail_and_a_bad_one_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let mut queues = models(&["a"]);
    let mut dice = Dice(6);
    for _ in 0..3 {
        play(&journal, &mut queues, 30, &mut dice);
        journal.save_snapshot(&queues[0].state).unwrap();
    }
    let snapshot_seq = queues[0].state.head().seq;
    play(&journal, &mut queues, 5, &mut dice);
    let queue = &queues[0];
    let tail_events = queue.state.head().seq - snapshot_seq;
    let (state, tail) = journal.load_with_tail(queue.queue()).unwrap();
    assert_eq!((state, tail.events), (queue.state.clone(), tail_events));

    let folder = dir.path().join("snapshots").join(queue.queue().to_string());
    let mut saved: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    saved.sort();
    assert_eq!(saved.len(), 2, "older ones are removed");
    let mut bytes = std::fs::read(&saved[1]).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&saved[1], bytes).unwrap();
    let (state, tail) = journal.load_with_tail(queue.queue()).unwrap();
    assert_eq!(state, queue.state);
    assert!(tail.events > tail_events && tail.events < state.head().seq, "the one before is used");

    // One of another history is whole, but not of this chain.
    let mut other = Model::new("a");
    while other.state.head().seq < 20 {
        other.step(&mut dice);
    }
    journal.save_snapshot(&other.state).unwrap();
    queue.check(&journal).unwrap();
}

#[test]
fn a_snapshot_is_wanted_when_replaying_costs_more() {
    assert!(!Tail { events: 9_999, bytes: 1 << 30, snapshot_bytes: 0 }.wants_snapshot());
    assert!(Tail { events: 10_000, bytes: 2_000_000, snapshot_bytes: 1_000_000 }.wants_snapshot());
    assert!(!Tail { events: 10_000, bytes: 1_999_999, snapshot_bytes: 1_000_000 }.wants_snapshot());
}

#[test]
fn jobs_are_known_by_all_queues_that_had_them() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open_small(dir.path());
    let mut queues = models(&["a", "b"]);
    let job = super::model::job_id(queues[0].queue(), 7);
    for queue in &mut queues {
        let batch = queue.batch(vec![super::model::queued(job, Digest::of(b"{}"))], vec![b"{}".to_vec()]);
        wait(journal.append(batch)).unwrap();
    }
    let mut keys: Vec<_> = queues.iter().map(Model::queue).collect();
    keys.sort();
    assert_eq!(journal.retained(job).unwrap(), keys);
    play(&journal, &mut queues, 200, &mut Dice(8));
    let finished =
        queues.iter().flat_map(|queue| queue.archived.values()).filter(|kept| is_finished(&kept.status)).count();
    assert!(finished > 0, "the dice must come by finished jobs");
    for queue in &queues {
        assert!(journal.retained(job).unwrap().contains(&queue.queue()));
    }
}

/// A small file system of its own, where this process may make one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().ok()?;
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", size, "tmpfs"]).arg(dir.path()).output().ok()?;
        mounted.status.success().then_some(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

#[test]
fn a_full_disk_stops_the_journal_and_loses_nothing_acknowledged() {
    let Some(disk) = SmallDisk::mount("size=12m") else {
        eprintln!("skipped: this process may not mount a small tmpfs");
        return;
    };
    let (journal, _) = open(disk.path());
    let mut queue = Model::new("a");
    let failure = loop {
        let mut next = queue.clone();
        let mut batch = next.submit();
        let filler = vec![b' '; 60_000];
        batch.bodies.push(broker::journal::Body { digest: Digest::of(&filler), bytes: filler.into() });
        match wait(journal.append(batch)) {
            Ok(()) => queue = next,
            Err(failure) => break failure,
        }
        assert!(queue.records.len() < 1000, "the disk must be full by now");
    };
    assert!(matches!(&failure, JournalError::Failed { .. }), "{failure}");
    let again = wait(journal.append(queue.clone().submit())).unwrap_err();
    assert!(matches!(&again, JournalError::Failed { .. }), "{again}");
    assert!(!wait(journal.failure()).is_empty());
    drop(journal);

    // With room again, on another disk.
    let roomy = tempfile::tempdir().unwrap();
    copy_dir(&disk.path().join("segments"), &roomy.path().join("segments"));
    let (journal, report) = open(roomy.path());
    assert_eq!(report.quarantined, vec![]);
    let loaded = journal.load(queue.queue()).unwrap();
    assert!(loaded.head().seq >= queue.state.head().seq);
    assert_eq!(journal.records(queue.queue(), 1, queue.records.len(), usize::MAX).unwrap(), queue.records);
}
