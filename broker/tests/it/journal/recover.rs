//! Starting again: after a clean end, a crash, a torn write, and with parts missing.

use std::fs::OpenOptions;
use std::path::Path;

use broker::journal::{JournalError, Touched};
use proptest::prelude::*;

use super::model::{Dice, Model, copy_dir, models, open, open_small, play, play_together, segments, store_dir, wait};

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn whatever_was_handed_in_a_new_start_answers_the_same(
        seed: u64,
        rounds in proptest::collection::vec((1..40_u64, any::<bool>(), 0..4_u8), 1..5),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut queues = models(&["a", "b", "c"]);
        let mut dice = Dice(seed);
        let (mut journal, _) = open_small(dir.path());
        for (steps, together, ending) in rounds {
            if together {
                play_together(&journal, &mut queues, steps, &mut dice);
            } else {
                play(&journal, &mut queues, steps, &mut dice);
            }
            if ending == 3 {
                for queue in &queues {
                    journal.save_snapshot(&journal.load(queue.queue()).unwrap()).unwrap();
                }
            }
            journal.close();
            if ending == 1 {
                std::fs::remove_dir_all(store_dir(dir.path())).unwrap();
            }
            let (again, report) = open_small(dir.path());
            prop_assert_eq!(&report.losses, &vec![]);
            prop_assert_eq!(&report.quarantined, &vec![]);
            prop_assert_eq!(report.torn_bytes, 0);
            for queue in &queues {
                queue.check(&again).unwrap();
            }
            journal = again;
        }
    }
}

#[test]
fn a_store_that_lags_is_filled_in() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open_small(dir.path());
    let mut queues = models(&["a", "b"]);
    let mut dice = Dice(20);
    play(&journal, &mut queues, 150, &mut dice);
    journal.close();
    let old = tempfile::tempdir().unwrap();
    copy_dir(&store_dir(dir.path()), &old.path().join("store"));
    let before: usize = queues.iter().map(|queue| queue.records.len()).sum();

    let (journal, report) = open_small(dir.path());
    assert_eq!(report.filled, 0);
    play(&journal, &mut queues, 150, &mut dice);
    journal.close();
    let store = store_dir(dir.path());
    std::fs::remove_dir_all(&store).unwrap();
    copy_dir(&old.path().join("store"), &store);

    let (journal, report) = open_small(dir.path());
    let after: usize = queues.iter().map(|queue| queue.records.len()).sum();
    assert_eq!(report.filled, (after - before) as u64);
    assert_eq!(report.rebuilt, None);
    for queue in &queues {
        queue.check(&journal).unwrap();
        assert!(journal.due_queues(protocol::id::UnixMillis(0), 10).iter().any(|(key, _)| *key == queue.queue()));
    }
}

#[test]
fn a_store_of_another_history_is_made_again() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut dice = Dice(21);
    let mut queues = models(&["a", "b"]);
    for (place, steps) in [(other.path(), 20), (dir.path(), 60)] {
        queues = models(&["a", "b"]);
        let (journal, _) = open(place);
        play(&journal, &mut queues, steps, &mut dice);
        journal.close();
    }
    let store = store_dir(dir.path());
    std::fs::remove_dir_all(&store).unwrap();
    copy_dir(&store_dir(other.path()), &store);
    let (journal, report) = open(dir.path());
    assert!(report.rebuilt.is_some(), "{report:?}");
    assert_eq!(report.quarantined, vec![]);
    for queue in &queues {
        queue.check(&journal).unwrap();
    }
}

#[test]
fn after_the_machine_stopped_the_store_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open_small(dir.path());
    let mut queues = models(&["a", "b"]);
    play(&journal, &mut queues, 60, &mut Dice(28));
    journal.close();
    let head = dir.path().join("head.json");
    let closed: serde_json::Value = serde_json::from_slice(&std::fs::read(&head).unwrap()).unwrap();
    for (was_closed, rebuilt) in [(true, false), (false, true)] {
        let mut other = closed.clone();
        other["boot"] = "another life".into();
        other["closed"] = was_closed.into();
        std::fs::write(&head, other.to_string()).unwrap();
        let (journal, report) = open_small(dir.path());
        assert_eq!(report.rebuilt.is_some(), rebuilt, "{report:?}");
        assert_eq!(report.quarantined, vec![]);
        for queue in &queues {
            queue.check(&journal).unwrap();
        }
    }
}

fn set_len(path: &Path, len: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

#[test]
fn a_write_torn_at_any_byte_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let mut queues = models(&["a", "b"]);
    play_together(&journal, &mut queues, 20, &mut Dice(22));
    journal.close();
    let base = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), base.path());
    let path = segments(dir.path()).pop().unwrap();
    let len = std::fs::metadata(&path).unwrap().len();
    let (journal, _) = open(dir.path());
    let before = queues.clone();
    play(&journal, &mut queues[..1], 1, &mut Dice(23));
    journal.close();
    let whole = std::fs::read(&path).unwrap();
    assert!(whole.len() as u64 > len + 100);

    // The files as they were before the last write, and then some of it: no start is told more than what was acknowledged.
    let torn = base.path().join("segments").join(path.file_name().unwrap());
    let after = whole.len();
    for cut in usize::try_from(len).unwrap()..=after {
        std::fs::write(&torn, &whole[..cut]).unwrap();
        let (journal, report) = open(base.path());
        assert_eq!(report.quarantined, vec![], "cut at {cut}");
        let expected = if cut == after { &queues } else { &before };
        assert_eq!(report.torn_bytes, if cut == after { 0 } else { cut as u64 - len }, "cut at {cut}");
        for queue in expected {
            queue.check(&journal).unwrap();
        }
    }
}

#[test]
fn garbage_after_the_last_write_is_cut_off_and_the_journal_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let mut queues = models(&["a"]);
    let mut dice = Dice(24);
    play(&journal, &mut queues, 20, &mut dice);
    journal.close();
    let path = segments(dir.path()).pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend_from_slice(&[0; 5000]);
    std::fs::write(&path, &bytes).unwrap();
    let (journal, report) = open(dir.path());
    assert_eq!(report.torn_bytes, 5000);
    play(&journal, &mut queues, 20, &mut dice);
    journal.close();
    let (journal, report) = open(dir.path());
    assert_eq!((report.torn_bytes, report.losses.len()), (0, 0));
    queues[0].check(&journal).unwrap();
}

#[test]
fn a_segment_that_was_just_being_made_is_made_again() {
    for len in [0, 1, 31, 32] {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open_small(dir.path());
        let mut queues = models(&["a"]);
        let mut dice = Dice(25);
        while segments(dir.path()).len() < 3 {
            play(&journal, &mut queues, 1, &mut dice);
        }
        journal.close();
        // The write that came with the new segment is undone, and so is what is known of it.
        let last = segments(dir.path()).pop().unwrap();
        set_len(&last, len);
        std::fs::remove_file(dir.path().join("head.json")).unwrap();
        std::fs::remove_dir_all(store_dir(dir.path())).unwrap();
        let (journal, report) = open_small(dir.path());
        assert_eq!((report.quarantined.len(), report.losses.len()), (0, 0), "{report:?}");
        let kept = journal.load(queues[0].queue()).unwrap().head();
        assert_eq!(kept, queues[0].past[usize::try_from(kept.seq).unwrap()].head());
        assert!(kept.seq < queues[0].state.head().seq);
    }
}

#[test]
fn a_missing_segment_quarantines_the_queues_that_it_held() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open_small(dir.path());
    let mut dice = Dice(26);
    let (mut early, mut both, mut late) = (models(&["early"]), models(&["both"]), models(&["late"]));
    play(&journal, &mut early, 2, &mut dice);
    while segments(dir.path()).len() < 5 {
        play(&journal, &mut both, 1, &mut dice);
    }
    play(&journal, &mut late, 5, &mut dice);
    journal.close();
    let lost = segments(dir.path()).remove(2);
    let moved = dir.path().join("moved");
    std::fs::rename(&lost, &moved).unwrap();
    for store_too in [false, true] {
        if store_too {
            std::fs::remove_dir_all(store_dir(dir.path())).unwrap();
        }
        let (journal, report) = open_small(dir.path());
        assert!(report.losses.iter().any(|loss| loss.touched == Touched::Unknown), "{report:?}");
        early[0].check(&journal).unwrap();
        late[0].check(&journal).unwrap();
        assert!(matches!(both[0].check(&journal), Err(JournalError::Quarantined { .. })));
        assert!(matches!(wait(journal.append(both[0].clone().submit())), Err(JournalError::Quarantined { .. })));
        play(&journal, &mut late, 5, &mut dice);
    }
    // Put back, all is well again.
    std::fs::rename(&moved, &lost).unwrap();
    let (journal, report) = open_small(dir.path());
    assert_eq!(report.cleared, vec![both[0].queue()], "{report:?}");
    for queue in [&early[0], &both[0], &late[0]] {
        queue.check(&journal).unwrap();
    }
}

#[test]
fn an_end_that_was_acknowledged_and_is_gone_quarantines_its_queues_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let mut dice = Dice(27);
    let (mut early, mut late) = (models(&["early"]), models(&["late"]));
    play(&journal, &mut early, 10, &mut dice);
    play(&journal, &mut late, 10, &mut dice);
    journal.close();
    let path = segments(dir.path()).pop().unwrap();
    let len = std::fs::metadata(&path).unwrap().len();
    set_len(&path, len - 10);
    for _ in 0..3 {
        let (journal, report) = open(dir.path());
        assert_eq!(report.quarantined.len(), 1, "{report:?}");
        assert!(matches!(journal.load(late[0].queue()), Err(JournalError::Quarantined { .. })));
        early[0].check(&journal).unwrap();
        play(&journal, &mut early, 3, &mut dice);
    }
}

#[test]
fn a_segment_of_a_newer_build_is_refused_with_its_version() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    wait(journal.append(Model::new("a").submit())).unwrap();
    journal.close();
    let path = segments(dir.path()).pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 9;
    let crc = crc32fast::hash(&bytes[..28]);
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let refused = broker::journal::Journal::open(super::model::config(dir.path())).err().unwrap();
    assert!(matches!(refused, JournalError::Newer { version: 9, .. }), "{refused}");
}
