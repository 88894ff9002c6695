//! One flipped byte: it is found, it touches no other queue, and nothing stops.

use std::path::{Path, PathBuf};

use broker::audit;
use broker::journal::{Journal, JournalError};
use protocol::id::UnixMillis;

use super::model::{Dice, Model, copy_dir, models, open, open_small, play, play_together, segments, store_dir};

fn flip(path: &Path, dice: &mut Dice) -> u64 {
    let mut bytes = std::fs::read(path).unwrap();
    let at = dice.roll(bytes.len() as u64);
    bytes[usize::try_from(at).unwrap()] ^= 1 << dice.roll(8);
    std::fs::write(path, bytes).unwrap();
    at
}

/// A closed journal of three queues over some segments.
fn prepared() -> (tempfile::TempDir, Vec<Model>) {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open_small(dir.path());
    let mut queues = models(&["a", "b", "c"]);
    let mut dice = Dice(40);
    for _ in 0..6 {
        play(&journal, &mut queues, 10, &mut dice);
        play_together(&journal, &mut queues, 10, &mut dice);
    }
    journal.close();
    assert!(segments(dir.path()).len() > 4);
    (dir, queues)
}

/// The queues that are quarantined; the others must be as they were.
fn quarantined(journal: &Journal, queues: &[Model], context: &str) -> usize {
    let mut count = 0;
    for queue in queues {
        match queue.check(journal) {
            Ok(()) => {}
            Err(JournalError::Quarantined { .. }) => count += 1,
            Err(error) => panic!("{context}: {error}"),
        }
    }
    count
}

#[test]
fn a_flipped_byte_in_a_segment_is_found_and_touches_one_queue_at_most() {
    let (base, queues) = prepared();
    let mut dice = Dice(41);
    let mut harmed = 0;
    for number in 0..50 {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(base.path(), dir.path());
        let files = segments(dir.path());
        let file: &PathBuf = &files[usize::try_from(dice.roll(files.len() as u64)).unwrap()];
        let whole = std::fs::read(file).unwrap();
        let at = flip(file, &mut dice);
        let context = format!("flip {number}: byte {at} of {}", file.display());

        let verdict = audit::verify(dir.path(), None).unwrap();
        assert!(!verdict.is_good(), "{context}: the audit must see it");
        if number % 3 == 0 {
            // Without the store everything is read from the segments at the start.
            std::fs::remove_dir_all(store_dir(dir.path())).unwrap();
        }
        let (journal, report) = open_small(dir.path());
        assert_eq!(report.torn_bytes, 0, "{context}");
        let scrub = journal.scrub().unwrap();
        assert!(!report.losses.is_empty() || !scrub.losses.is_empty(), "{context}: must be found");
        let count = quarantined(&journal, &queues, &context);
        assert!(count <= 1, "{context}");
        harmed += count;
        // The others are woken, however few are asked for at a time.
        let served = queues.len() - count;
        assert_eq!(journal.due_queues(UnixMillis(u64::MAX), served).len(), served, "{context}");
        journal.close();

        // A new start knows it at once, and with the byte put right all is well again.
        let (journal, report) = open_small(dir.path());
        assert_eq!(report.quarantined.len(), count, "{context}");
        assert_eq!(quarantined(&journal, &queues, &context), count, "{context}");
        journal.close();
        std::fs::write(file, whole).unwrap();
        let (journal, report) = open_small(dir.path());
        assert_eq!(report.cleared.len(), count, "{context}");
        assert_eq!(quarantined(&journal, &queues, &context), 0, "{context}");
    }
    assert!(harmed > 10, "most bytes are of records and bodies: {harmed}");
}

#[test]
fn a_flipped_byte_in_the_event_store_harms_nobody() {
    let (base, mut queues) = prepared();
    let mut dice = Dice(42);
    // Enough for a store of several of its own segments: in the last one damage is only a shorter log.
    let (journal, _) = open_small(base.path());
    play_together(&journal, &mut queues, 700, &mut dice);
    journal.close();
    let (mut rebuilt, mut refilled, mut repaired) = (0, 0, 0);
    for number in 0..50 {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(base.path(), dir.path());
        let store = store_dir(dir.path());
        // Any of its files, most of them in the one that holds the rows.
        let mut files: Vec<_> = std::fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.is_file() && std::fs::metadata(path).unwrap().len() > 0);
        files.sort();
        let db = store.join("db");
        let file = if number % 10 == 0 { &files[usize::try_from(dice.roll(files.len() as u64)).unwrap()] } else { &db };
        let at = flip_used(file, &mut dice);
        let context = format!("flip {number}: byte {at} of {}", file.display());
        let (journal, report) = open_small(dir.path());
        assert_eq!(report.losses, vec![], "{context}");
        rebuilt += usize::from(report.rebuilt.is_some());
        refilled += usize::from(report.rebuilt.is_none() && report.filled > 0);
        let scrub = journal.scrub().unwrap();
        assert_eq!(scrub.losses, vec![], "{context}");
        repaired += usize::from(!scrub.repaired.is_empty() || journal.stats().rebuilds > 0);
        assert_eq!(quarantined(&journal, &queues, &context), 0, "{context}");
    }
    eprintln!(
        "of 50 flips in the event store: made again {rebuilt}, filled in {refilled}, found by the scrub {repaired}"
    );
    assert!(rebuilt + refilled > 10, "flips must hit what is in use: {rebuilt} and {refilled}");
    // And it goes on being used.
    let (journal, _) = open(base.path());
    play(&journal, &mut queues, 10, &mut dice);
    assert_eq!(quarantined(&journal, &queues, "the base"), 0);
}

/// Flips a byte that is not one of the zeros that a store's file is filled up with.
fn flip_used(path: &Path, dice: &mut Dice) -> u64 {
    let mut bytes = std::fs::read(path).unwrap();
    loop {
        let at = dice.roll(bytes.len() as u64);
        let index = usize::try_from(at).unwrap();
        if bytes[index] != 0 || bytes.iter().all(|byte| *byte == 0) {
            bytes[index] ^= 1 << dice.roll(8);
            std::fs::write(path, bytes).unwrap();
            return at;
        }
    }
}

#[test]
fn damage_in_many_places_stops_nobody_who_is_whole() {
    let (base, queues) = prepared();
    let mut dice = Dice(43);
    for number in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(base.path(), dir.path());
        let files = segments(dir.path());
        for place in 0..=dice.roll(6) {
            // What is broken at the very end of the last file was never acknowledged and is no damage: one place is elsewhere.
            let of = files.len() - usize::from(place == 0);
            let file = &files[usize::try_from(dice.roll(of as u64)).unwrap()];
            let mut bytes = std::fs::read(file).unwrap();
            let from = usize::try_from(dice.roll(bytes.len() as u64)).unwrap();
            let to = bytes.len().min(from + 1 + usize::try_from(dice.roll(700)).unwrap());
            bytes[from..to].iter_mut().for_each(|byte| *byte ^= u8::try_from(1 + dice.roll(255)).unwrap());
            std::fs::write(file, bytes).unwrap();
        }
        let context = format!("case {number}");
        let (journal, report) = open_small(dir.path());
        let scrub = journal.scrub().unwrap();
        assert!(!report.losses.is_empty() || !scrub.losses.is_empty(), "{context}");
        let verdict = audit::verify(dir.path(), None).unwrap();
        assert!(!verdict.is_good(), "{context}");
        for queue in &queues {
            // Whoever the audit finds whole, record for record and body for body, is served, and nobody else.
            let found = verdict.queues.iter().find(|found| found.queue == queue.queue());
            let whole = found.is_some_and(|found| found.first_bad.is_none() && found.head == queue.state.head());
            match queue.check(&journal) {
                Ok(()) => assert!(whole, "{context}: {found:?}"),
                Err(JournalError::Quarantined { .. }) => assert!(!whole, "{context}: {found:?}"),
                Err(error) => panic!("{context}: {error}"),
            }
        }
        audit::salvage(dir.path(), None, None).unwrap();
    }
}

#[test]
fn a_store_that_is_no_store_is_made_again() {
    let (base, queues) = prepared();
    for junk in [&b""[..], b"junk", &[0xFF; 100_000]] {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(base.path(), dir.path());
        std::fs::write(store_dir(dir.path()).join("db"), junk).unwrap();
        let (journal, report) = open_small(dir.path());
        assert!(report.rebuilt.is_some(), "{report:?}");
        assert_eq!(quarantined(&journal, &queues, "junk"), 0);
    }
}

#[test]
fn a_record_changed_with_its_checksum_put_right_breaks_the_chain() {
    let (base, queues) = prepared();
    let file = segments(base.path()).remove(1);
    let mut bytes = std::fs::read(&file).unwrap();
    // The first frame of a record; its bytes name the event, whose first letter is changed.
    let at = (0..bytes.len()).find(|at| bytes[*at..].starts_with(&[0xF5, 0xC1, 2, 0])).unwrap();
    let len = usize::try_from(u32::from_le_bytes(bytes[at + 12..at + 16].try_into().unwrap())).unwrap();
    let time = bytes[at..at + 20 + len].windows(5).position(|window| window == b"at_ms").unwrap();
    bytes[at + time + 9] ^= 1;
    let mut checked = bytes[at + 2..at + 16].to_vec();
    checked.extend_from_slice(&bytes[at + 20..at + 20 + len]);
    let crc = crc32fast::hash(&checked);
    bytes[at + 16..at + 20].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();

    let verdict = audit::verify(base.path(), None).unwrap();
    let bad = verdict.first_bad.unwrap();
    assert_eq!((bad.segment, bad.offset), (2, at as u64), "{bad:?}");
    assert!(bad.what.contains("chain"), "{bad:?}");

    let (journal, _) = open_small(base.path());
    let scrub = journal.scrub().unwrap();
    assert_eq!(scrub.repaired, vec![bad.queue.unwrap()]);
    assert_eq!(quarantined(&journal, &queues, "tampered"), 1);
}
