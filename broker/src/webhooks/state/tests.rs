//! The state without files, receivers or time.

use proptest::prelude::*;
use protocol::definition::Needs;
use protocol::event::{RunOutcome, Via};
use protocol::id::{Digest, QueueName};
use protocol::record::RECORD_VERSION;

use super::super::stored::StoredCall;
use super::*;

const JOB: JobId = JobId::from_bytes([7; 32]);
const NOW: UnixMillis = UnixMillis(1_000);

fn queue() -> QueueName {
    "q".parse().unwrap()
}

fn key() -> QueueKey {
    QueueKey::of(&queue())
}

fn id(number: u8) -> HookId {
    HookId::from_bytes([number; 16])
}

fn call(number: u8, kind: Kind) -> CallId {
    CallId { hook: id(number), kind }
}

fn hook(job: JobId, namespace: &str, kinds: &[Kind], bytes: u64) -> Hook {
    let call = |kind| {
        let url = "http://a.example/".to_owned();
        let call = StoredCall { url, payload: None, tries: 0, next_at_ms: None, dead_at_ms: None, error: None };
        kinds.contains(&kind).then_some(call)
    };
    let (queued, finished) = (call(Kind::Queued), call(Kind::Finished));
    let stored = Stored::new(queue(), job, namespace.parse().unwrap(), 0, NOW, queued, finished);
    Hook::new(&stored, bytes, NOW, &Limits::default())
}

fn hear(state: &mut State, events: &[(Seq, Event)]) {
    let bytes: Vec<Vec<u8>> = events
        .iter()
        .map(|(seq, event)| Record { v: RECORD_VERSION, seq: *seq, at_ms: NOW, event: event.clone() }.encode())
        .collect();
    state.hear(key(), bytes.iter().map(Vec::as_slice), NOW);
}

fn finished(job: JobId) -> Event {
    let (outcome, result) = (RunOutcome::Success, Digest::of(b"r"));
    Event::RunFinished { job, run: 1, outcome, result, exit_code: None, image: None, duration_ms: None }
}

/// Everything that is due, delivered.
fn deliver(state: &mut State) -> Vec<CallId> {
    let mut delivered = Vec::new();
    while let Some((id, host)) = state.next(UnixMillis(u64::MAX)) {
        state.tried(id, &host, Ok(()), NOW);
        delivered.push(id);
    }
    delivered
}

#[test]
fn files_of_the_limit_fit_and_one_byte_more_does_not() {
    let mut state = State::new(Limits { bytes_max: 100, ..Limits::default() });
    state.add(id(1), hook(JOB, "a", &[Kind::Queued], 60));
    assert_eq!(state.make_room(key(), 40), Ok(vec![]));
    assert_eq!(state.make_room(key(), 41), Err(Full::Broker));
    state.forget(id(1));
    assert_eq!(state.make_room(key(), 100), Ok(vec![]));
}

#[test]
fn a_dead_letter_stays_for_its_time_and_no_longer() {
    let limits = Limits { tries_max: 1, ..Limits::default() };
    let stays_ms = limits.dead_stays_ms();
    let mut state = State::new(limits);
    state.add(id(1), hook(JOB, "a", &[Kind::Queued], 1));
    state.taken(id(1), true, 1, NOW);
    let (call, host) = state.next(NOW).unwrap();
    assert!(state.tried(call, &host, Err("no".to_owned()), NOW).0);
    assert_eq!(state.sweep(NOW.plus(stays_ms - 1)), []);
    assert_eq!(state.sweep(NOW.plus(stays_ms)), [id(1)]);
    assert_eq!(state.counts(), (0, 0));
}

#[test]
fn a_later_submission_replaces_a_finished_that_waits_and_nothing_that_is_due() {
    let mut state = State::new(Limits::default());
    for number in 1..=3 {
        state.add(id(number), hook(JOB, "a", &Kind::ALL, 1));
        state.taken(id(number), number == 1, number.into(), NOW);
    }
    state.add(id(4), hook(JOB, "b", &[Kind::Finished], 1));
    state.taken(id(4), false, 4, NOW);
    hear(&mut state, &[(5, finished(JOB))]);
    let mut delivered = deliver(&mut state);
    delivered.sort_unstable();
    assert_eq!(delivered, [call(1, Kind::Queued), call(3, Kind::Finished), call(4, Kind::Finished)]);
}

#[test]
fn an_end_that_was_before_the_submission_is_not_its_end() {
    let mut state = State::new(Limits::default());
    state.add(id(1), hook(JOB, "a", &[Kind::Finished], 1));
    state.taken(id(1), true, 6, NOW);
    hear(&mut state, &[(5, finished(JOB))]);
    assert_eq!(deliver(&mut state), []);
    hear(&mut state, &[(7, finished(JOB))]);
    assert_eq!(deliver(&mut state), [call(1, Kind::Finished)]);
}

#[test]
fn a_worker_that_had_the_job_with_its_submission_is_named() {
    let mut state = State::new(Limits::default());
    state.add(id(1), hook(JOB, "a", &[Kind::Finished], 1));
    // Queued and claimed in one step, which ends at 2.
    state.taken(id(1), true, 2, NOW);
    hear(&mut state, &[(2, Event::RunClaimed { job: JOB, run: 1, worker: "w".parse().unwrap() })]);
    hear(&mut state, &[(3, finished(JOB))]);
    let ending = state.hook(id(1)).unwrap().ending.clone().unwrap();
    assert_eq!(ending.worker, Some("w".parse().unwrap()));
}

#[test]
fn what_is_heard_while_the_journal_is_read_counts_too() {
    let mut state = State::new(Limits::default());
    state.add(id(1), hook(JOB, "a", &[Kind::Finished], 1));
    state.listen_after(id(1), 5);
    hear(&mut state, &[(6, finished(JOB))]);
    assert_eq!(deliver(&mut state), [], "it is not known yet whether the submission was taken");
    let past = Fate { is_submitted: true, ..Fate::default() };
    state.looked(id(1), Found { past, ..Found::default() }, NOW);
    assert_eq!(deliver(&mut state), [call(1, Kind::Finished)]);
}

proptest! {
    /// Whatever is submitted, refused, looked up, heard, tried and revived: in the end nothing is left, in no index.
    #[test]
    fn nothing_is_left_of_what_is_over(steps in proptest::collection::vec((0..8_u8, 0..12_u8, 0..2_u8), 1..120)) {
        let limits = Limits { tries_max: 2, dead_per_queue_max: 3, per_queue_max: 6, ..Limits::default() };
        let mut state = State::new(limits);
        let job = |number: u8| JobId::from_bytes([number % 2; 32]);
        let mut seq = 1;
        for (what, number, choice) in steps {
            seq += 1;
            let namespace = if number % 3 == 0 { "a" } else { "b" };
            match what {
                0 | 1 => {
                    let kinds: &[Kind] = if choice == 0 { &Kind::ALL } else { &[Kind::Finished] };
                    if state.hook(id(number)).is_none() && state.make_room(key(), 5).is_ok() {
                        state.add(id(number), hook(job(number), namespace, kinds, 5));
                    }
                }
                2 => { state.taken(id(number), choice == 0, seq, NOW); }
                3 => { state.forget(id(number)); }
                4 => {
                    state.listen_after(id(number), seq);
                    let past = Fate { is_submitted: choice == 0, is_new: choice == 0, ..Fate::default() };
                    state.looked(id(number), Found { past, ..Found::default() }, NOW);
                }
                5 => hear(&mut state, &[(seq, finished(job(number)))]),
                6 => if let Some((call, host)) = state.next(UnixMillis(u64::MAX)) {
                    let result = if choice == 0 { Ok(()) } else { Err("no".to_owned()) };
                    state.tried(call, &host, result, NOW);
                },
                _ => { state.revive(key(), None, NOW); }
            }
            let dead = state.queues.get(&key()).map_or(0, |of| of.dead.len());
            prop_assert!(dead <= 3 && dead == state.dead.len() && state.hooks.len() <= 6);
            prop_assert_eq!(state.bytes, 5 * state.hooks.len() as u64);
            let waiting = state.hooks.values().filter(|hook| hook.waits()).count();
            prop_assert_eq!(state.listening.values().map(Vec::len).sum::<usize>(), waiting);
            prop_assert_eq!(state.queues.get(&key()).map_or(0, |of| of.listening), waiting);
        }
        // Everything is taken and over, and receivers are well.
        for number in 0..12 {
            if state.hook(id(number)).is_some_and(|hook| !hook.is_sure) {
                state.taken(id(number), true, seq, NOW);
            }
        }
        let queued = |number| Event::JobQueued {
            job: job(number),
            body: Digest::of(b"d"),
            namespace: Namespace::default(),
            via: Via::Http,
            needs: Needs::default(),
            priority: 0,
            debug: false,
            runs_before: 0,
        };
        for number in 0..2 {
            hear(&mut state, &[(seq + 1, queued(number)), (seq + 2, finished(job(number)))]);
        }
        state.revive(key(), None, NOW);
        deliver(&mut state);
        prop_assert_eq!(state.counts(), (0, 0));
        prop_assert!(state.listening.is_empty() && state.queues.is_empty() && state.bytes == 0);
        prop_assert_eq!(state.next_at(), None);
    }
}
