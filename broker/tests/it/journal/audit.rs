//! The audit reads the segments alone, while the broker runs and after it.

use broker::audit::{self, At, AuditError, AuditRow};
use protocol::id::{Digest, UnixMillis};

use super::model::{Dice, Model, models, open, open_small, play, play_together, queued, segments, wait};

#[test]
fn the_log_tells_every_record_beside_a_running_broker() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open_small(dir.path());
    let mut queues = models(&["a", "b"]);
    let mut dice = Dice(60);
    for _ in 0..4 {
        play_together(&journal, &mut queues, 25, &mut dice);
        for queue in &queues {
            let rows: Vec<AuditRow> =
                audit::log(dir.path(), Some(queue.queue())).unwrap().map(Result::unwrap).collect();
            assert_eq!(rows.len(), queue.records.len());
            assert!(
                rows.iter().zip(&queue.records).all(|(row, record)| row.seq == record.seq && row.hash == record.hash)
            );
        }
        let all = audit::log(dir.path(), None).unwrap().map(Result::unwrap).count();
        assert_eq!(all, queues.iter().map(|queue| queue.records.len()).sum::<usize>());
        let verdict = audit::verify(dir.path(), None).unwrap();
        assert!(verdict.is_good(), "{verdict:?}");
    }
}

#[test]
fn a_whole_journal_verifies_with_every_head() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open_small(dir.path());
    let mut queues = models(&["a", "b"]);
    play(&journal, &mut queues, 150, &mut Dice(61));
    let large = vec![b' '; 100_000];
    let digest = Digest::of(&large);
    journal.store_large_body(queues[0].queue(), digest, &large).unwrap();
    let job = super::model::job_id(queues[0].queue(), 1_000_000);
    wait(journal.append(queues[0].batch(vec![queued(job, digest)], vec![]))).unwrap();
    journal.close();

    let verdict = audit::verify(dir.path(), None).unwrap();
    assert!(verdict.is_good(), "{verdict:?}");
    assert_eq!(verdict.records, queues.iter().map(|queue| queue.records.len() as u64).sum::<u64>());
    for queue in &queues {
        let one = audit::verify(dir.path(), Some(queue.queue())).unwrap();
        assert_eq!(one.queues.len(), 1);
        assert_eq!(one.queues[0].head, queue.state.head());
        assert!(verdict.queues.contains(&one.queues[0]));
    }
    let nobody = audit::verify(dir.path(), Some(Model::new("nobody").queue()));
    assert!(matches!(nobody, Err(AuditError::NoQueue(_))));

    // The file of the large body is part of what is proven.
    let file = dir.path().join("bodies").join(queues[0].queue().to_string()).join(digest.to_string());
    std::fs::write(&file, b"changed").unwrap();
    let bad = audit::verify(dir.path(), None).unwrap().first_bad.unwrap();
    assert_eq!((bad.queue, bad.seq), (Some(queues[0].queue()), Some(queues[0].state.head().seq)));
    std::fs::remove_file(&file).unwrap();
    let bad = audit::verify(dir.path(), Some(queues[0].queue())).unwrap().first_bad.unwrap();
    assert!(bad.what.contains("missing"), "{bad:?}");
    assert!(audit::verify(dir.path(), Some(queues[1].queue())).unwrap().is_good());
}

#[test]
fn a_write_that_is_going_on_is_not_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let mut queues = models(&["a"]);
    play(&journal, &mut queues, 20, &mut Dice(62));
    let path = segments(dir.path()).pop().unwrap();
    let whole = std::fs::read(&path).unwrap();
    let before = queues[0].clone();
    play(&journal, &mut queues, 1, &mut Dice(63));
    drop(journal);
    std::fs::remove_file(dir.path().join("head.json")).unwrap();
    let more = std::fs::read(&path).unwrap();
    for len in whole.len()..more.len() {
        std::fs::write(&path, &more[..len]).unwrap();
        let verdict = audit::verify(dir.path(), None).unwrap();
        assert!(verdict.is_good(), "{verdict:?}");
        assert_eq!(verdict.unfinished_bytes, (len - whole.len()) as u64);
        assert_eq!(verdict.queues[0].head, before.state.head());
        assert_eq!(audit::log(dir.path(), None).unwrap().map(Result::unwrap).count(), before.records.len());
    }
}

#[test]
fn the_state_at_any_point_is_what_it_was_then() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open_small(dir.path());
    let mut queues = models(&["a", "b"]);
    play(&journal, &mut queues, 120, &mut Dice(64));
    let queue = &queues[0];
    let last = queue.state.head().seq;
    for seq in [0, 1, 2, last / 2, last - 1, last] {
        let expected = &queue.past[usize::try_from(seq).unwrap()];
        let state = audit::state_at(dir.path(), queue.queue(), At::Seq(seq)).unwrap();
        assert_eq!((&state, state.hash()), (expected, expected.hash()));
        if seq > 0 {
            for late in [0, 9] {
                let at = At::Time(UnixMillis(expected.at_ms().0 + late));
                assert_eq!(audit::state_at(dir.path(), queue.queue(), at).unwrap(), *expected);
            }
        }
    }
    let beyond = audit::state_at(dir.path(), queue.queue(), At::Seq(last + 1));
    assert!(matches!(beyond, Err(AuditError::NotYet { last: known }) if known == last));
    let nobody = audit::state_at(dir.path(), Model::new("nobody").queue(), At::Seq(1));
    assert!(matches!(nobody, Err(AuditError::NoQueue(_))));
    assert!(matches!(audit::log(&dir.path().join("elsewhere"), None).err(), Some(AuditError::NoJournal { .. })));
}

#[test]
fn the_first_bad_record_is_named_and_the_rest_is_salvaged() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open_small(dir.path());
    let mut queues = models(&["a", "b"]);
    play_together(&journal, &mut queues, 150, &mut Dice(65));
    journal.close();
    let rows: Vec<AuditRow> = audit::log(dir.path(), Some(queues[0].queue())).unwrap().map(Result::unwrap).collect();
    let broken = &rows[rows.len() / 2];
    let path = &segments(dir.path())[usize::try_from(broken.segment - 1).unwrap()];
    let mut bytes = std::fs::read(path).unwrap();
    bytes[usize::try_from(broken.offset).unwrap() + 60] ^= 0x10;
    std::fs::write(path, bytes).unwrap();

    for named in [None, Some(queues[0].queue())] {
        let verdict = audit::verify(dir.path(), named).unwrap();
        let bad = verdict.first_bad.unwrap();
        assert_eq!((bad.segment, bad.offset), (broken.segment, broken.offset));
        assert_eq!((bad.queue, bad.seq), (Some(queues[0].queue()), Some(broken.seq)));
        assert_eq!(&bad.file, path);
    }
    assert!(audit::verify(dir.path(), Some(queues[1].queue())).unwrap().is_good());

    let told: Vec<_> = audit::log(dir.path(), Some(queues[0].queue())).unwrap().collect();
    assert_eq!(told.iter().filter(|row| row.is_err()).count(), 1);
    assert_eq!(told.iter().filter(|row| row.is_ok()).count(), rows.len() - 1);

    let state = audit::state_at(dir.path(), queues[0].queue(), At::Seq(broken.seq - 1)).unwrap();
    assert_eq!(state, queues[0].past[usize::try_from(broken.seq - 1).unwrap()]);
    assert!(audit::state_at(dir.path(), queues[0].queue(), At::Seq(broken.seq)).is_err());

    let mut export = Vec::new();
    let report = audit::salvage(dir.path(), None, Some(&mut export)).unwrap();
    assert_eq!(report.losses.len(), 1);
    let salvaged = report.queues.iter().find(|queue| queue.queue == queues[0].queue()).unwrap();
    assert_eq!(salvaged.gaps(), vec![(broken.seq, broken.seq)]);
    assert_eq!(salvaged.records, rows.len() as u64 - 1);
    assert_eq!(salvaged.proven_through, broken.seq - 1);
    let lines: Vec<serde_json::Value> =
        std::str::from_utf8(&export).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), queues.iter().map(|queue| queue.records.len()).sum::<usize>() - 1);
    assert_eq!(lines[0]["queue"].as_str().unwrap().len(), 32);
    let proven = |line: &&serde_json::Value| line["proven"] == serde_json::Value::Bool(true);
    assert!(lines.iter().filter(proven).count() < lines.len());
}
