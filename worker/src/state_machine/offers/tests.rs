//! Which queue is asked when, in sentences.

use super::*;
use crate::state_machine::capacity::capped;

/// Offers with what is used and free beside them, as the slots would say it.
struct Worker {
    offers: Offers,
    now_ms: u64,
    free: u32,
    used: Vec<u32>,
}

const ANSWER: u64 = ANSWER_MS;

fn cpus(count: u32) -> Capacity {
    Capacity { cpus_milli: count * 1000, memory_bytes: None, gpus: 0 }
}

/// What was said to whom: queue, CPUs, whether it was asked.
type Said = (usize, u32, bool);

impl Worker {
    fn new(queues: usize, free: u32) -> Self {
        Self { offers: Offers::new(queues), now_ms: 0, free, used: vec![0; queues] }
    }

    /// All connected, and what follows from it.
    fn connected(queues: usize, free: u32) -> (Self, Vec<Said>) {
        let mut worker = Self::new(queues, free);
        (0..queues).for_each(|queue| worker.offers.connected(QueueIndex(queue)));
        let said = worker.say();
        (worker, said)
    }

    /// All connected, and none has anything.
    fn dry(queues: usize, free: u32) -> Self {
        let (mut worker, mut said) = Self::connected(queues, free);
        while let [.., (queue, _, true)] = said[..] {
            said = worker.has_nothing(queue);
        }
        worker.is_open_to_all(free);
        worker
    }

    fn is_open_to_all(&self, free: u32) {
        assert!(
            self.offers.lines().all(|(_, line)| line.ask.is_none() && line.told == cpus(free)),
            "{:?}",
            self.offers
        );
    }

    fn plan(&mut self) -> Vec<Offer> {
        let used = self.used.clone();
        self.offers.plan(self.now_ms, cpus(self.free), |queue| used[queue.0] * 1000)
    }

    fn say(&mut self) -> Vec<Said> {
        let said = |offer: Offer| (offer.queue.0, offer.free.cpus_milli / 1000, offer.ask.is_some());
        let mut said: Vec<Said> = self.plan().into_iter().map(said).collect();
        // What is taken away first.
        said.sort_by_key(|(_, free, _)| *free > 0);
        said
    }

    fn asked(&self, queue: usize) -> AskNumber {
        self.offers.queues[queue].line.as_ref().unwrap().ask.as_ref().expect("it is asked").number
    }

    fn seen(&self, queue: usize) -> u64 {
        self.offers.queues[queue].line.as_ref().unwrap().grants_seen
    }

    fn granted(&mut self, queue: usize) -> bool {
        let has_room = self.free > 0;
        if has_room {
            self.free -= 1;
            self.used[queue] += 1;
        }
        self.offers.granted(QueueIndex(queue), cpus(1), has_room)
    }

    fn grants(&mut self, queue: usize) -> Vec<Said> {
        self.granted(queue);
        self.say()
    }

    fn has_nothing(&mut self, queue: usize) -> Vec<Said> {
        let (ask, seen) = (self.asked(queue), self.seen(queue));
        self.offers.answered(QueueIndex(queue), ask, seen);
        self.say()
    }

    fn ends(&mut self, queue: usize) -> Vec<Said> {
        self.used[queue] -= 1;
        self.free += 1;
        self.say()
    }
}

#[test]
fn a_worker_of_one_queue_claims_what_is_free_whenever_it_may_have_changed() {
    let mut worker = Worker::new(1, 2);
    assert_eq!(worker.say(), []);
    worker.offers.connected(QueueIndex(0));
    let offer = |free, grants_seen| Offer { queue: QueueIndex(0), free: cpus(free), grants_seen, ask: None };
    assert_eq!(worker.plan(), [offer(2, 0)]);
    assert_eq!(worker.plan(), [offer(2, 0)]);
    assert!(!worker.granted(0));
    assert_eq!(worker.plan(), [offer(1, 1)]);
    worker.free = 0;
    assert!(!worker.granted(0), "with one queue, no other was faster");
    assert_eq!(worker.plan(), [offer(0, 2)]);
    assert_eq!(worker.offers.due_ms(), None);
    worker.offers.lost(QueueIndex(0));
    assert_eq!(worker.plan(), []);
}

#[test]
fn one_queue_is_asked_at_a_time_and_the_next_when_it_has_nothing() {
    let (mut worker, said) = Worker::connected(3, 1);
    assert_eq!(said, [(0, 1, true)]);
    assert_eq!(worker.say(), []);
    assert_eq!(worker.has_nothing(0), [(0, 0, false), (1, 1, true)]);
    assert_eq!(worker.has_nothing(1), [(1, 0, false), (2, 1, true)]);
    // All are dry: whoever has something first may have it.
    assert_eq!(worker.has_nothing(2), [(0, 1, false), (1, 1, false)]);
    worker.is_open_to_all(1);
    assert_eq!(worker.say(), []);
}

#[test]
fn an_answer_that_overtakes_its_grants_waits_for_them() {
    let (mut worker, _) = Worker::connected(2, 3);
    let ask = worker.asked(0);
    worker.offers.answered(QueueIndex(0), ask, 2);
    assert_eq!(worker.say(), []);
    assert_eq!(worker.grants(0), []);
    // Both are here: the turn goes on with who uses least.
    assert_eq!(worker.grants(0), [(1, 1, true)]);
}

#[test]
fn when_everything_is_open_a_grant_makes_it_smaller_for_the_others_at_once() {
    let mut worker = Worker::dry(3, 2);
    assert_eq!(worker.grants(1), [(0, 1, false), (1, 1, false), (2, 1, false)]);
    assert_eq!(worker.grants(1), [(0, 0, false), (2, 0, false)]);
}

#[test]
fn what_two_queues_granted_at_once_is_handed_back_as_busy_by_the_later() {
    let mut worker = Worker::dry(2, 1);
    assert!(!worker.granted(1));
    assert!(worker.granted(0), "another queue was faster");
    assert_eq!(worker.say(), []);
    // Its turn comes when there is room.
    assert_eq!(worker.ends(1), [(0, 1, true)]);
}

#[test]
fn a_queue_whose_runs_never_fit_is_not_called_busy_for_ever() {
    let (mut worker, _) = Worker::connected(2, 0);
    let busy = (0..2 * BUSY_MAX).filter(|_| worker.granted(0)).count();
    assert_eq!(busy, BUSY_MAX as usize);
    worker.free = 1;
    worker.granted(0);
    worker.free = 0;
    assert!(worker.granted(0));
}

#[test]
fn a_slot_that_comes_free_is_offered_to_whoever_uses_least_and_then_to_whoever_waited_longest() {
    let (mut worker, _) = Worker::connected(3, 3);
    for queue in 0..3 {
        worker.grants(queue);
    }
    assert_eq!((worker.free, &worker.used[..]), (0, &[1, 1, 1][..]));
    assert_eq!(worker.ends(2), [(2, 1, true)]);
    worker.grants(2);
    assert_eq!(worker.ends(1), [(1, 1, true)]);
    worker.grants(1);
    worker.used = vec![0, 0, 0];
    worker.free = 1;
    assert_eq!(worker.say(), [(0, 1, true)]);
}

#[test]
fn dry_queues_are_asked_together_and_not_for_each_run_that_ends() {
    let mut worker = Worker::dry(3, 1);
    worker.grants(0);
    // Those that have nothing use least, but were asked a moment ago.
    assert_eq!(worker.ends(0), [(0, 1, true)]);
    worker.grants(0);
    worker.now_ms += DRY_MS;
    assert_eq!(worker.ends(0), [(1, 1, true), (2, 1, true)]);
    assert_eq!(worker.has_nothing(1), [(1, 0, false)]);
    assert_eq!(worker.has_nothing(2), [(2, 0, false), (0, 1, true)]);
    worker.grants(0);
    worker.now_ms += DRY_MS - 1;
    assert_eq!(worker.ends(0), [(0, 1, true)]);
}

#[test]
fn a_slow_broker_that_has_nothing_costs_a_tenth_of_the_time() {
    let (mut worker, _) = Worker::connected(2, 1);
    worker.grants(0);
    worker.ends(0);
    worker.now_ms += 1_000;
    assert_eq!(worker.has_nothing(1), [(1, 0, false), (0, 1, true)]);
    worker.grants(0);
    worker.now_ms += 9_999;
    assert_eq!(worker.ends(0), [(0, 1, true)]);
    worker.grants(0);
    worker.now_ms += 1;
    assert_eq!(worker.ends(0), [(1, 1, true)]);
}

#[test]
fn many_free_slots_are_shared_out_between_queues_that_have_work() {
    let (mut worker, said) = Worker::connected(2, 9);
    // Up to the level that both can reach, in whole CPUs.
    assert_eq!(said, [(0, 5, true)]);
    (0..4).for_each(|_| assert_eq!(worker.grants(0), []));
    assert_eq!(worker.grants(0), [(1, 4, true)]);
    (0..4).for_each(|_| drop(worker.grants(1)));
    assert_eq!(worker.used, [5, 4]);
}

#[test]
fn a_queue_that_has_nothing_as_small_as_its_share_is_offered_everything() {
    let (mut worker, said) = Worker::connected(2, 8);
    assert_eq!(said, [(0, 4, true)]);
    assert_eq!(worker.has_nothing(0), [(0, 8, true)]);
    assert_eq!(worker.has_nothing(0), [(0, 0, false), (1, 8, true)]);
}

#[test]
fn an_asked_queue_is_told_when_there_is_less_for_it_and_never_that_there_is_more() {
    let mut worker = Worker::dry(2, 2);
    worker.grants(0);
    assert_eq!(worker.say(), []);
    assert_eq!(worker.ends(0), [(1, 0, false), (0, 2, true)]);
    let older = worker.asked(0);
    // On its way when the offer to it was withdrawn.
    assert_eq!(worker.grants(1), [(0, 1, true)]);
    worker.offers.answered(QueueIndex(0), older, 1);
    assert_eq!(worker.say(), [], "that answer was to the larger offer");
    worker.free = 5;
    assert_eq!(worker.say(), []);
}

#[test]
fn a_queue_that_does_not_answer_is_passed_over_and_still_gets_what_is_open_to_all() {
    let (mut worker, said) = Worker::connected(2, 1);
    assert_eq!(said, [(0, 1, true)]);
    assert_eq!(worker.offers.due_ms(), Some(ANSWER));
    worker.now_ms = ANSWER - 1;
    assert_eq!(worker.say(), []);
    worker.now_ms = ANSWER;
    assert_eq!(worker.say(), [(0, 0, false), (1, 1, true)]);
    assert_eq!(worker.has_nothing(1), [(0, 1, false)]);
    worker.is_open_to_all(1);
    assert_eq!(worker.offers.due_ms(), None);
    // A broker that never answers is asked rarely, and its first grant is the answer.
    worker.grants(1);
    assert_eq!(worker.ends(1), [(1, 1, true)]);
    worker.grants(1);
    worker.now_ms += DRY_PER_ANSWER * ANSWER;
    worker.free = 1;
    assert_eq!(worker.ends(1), [(0, 1, true)]);
    assert_eq!(worker.grants(0), [(1, 1, true)]);
}

#[test]
fn a_worker_that_slept_for_hours_does_not_hold_it_against_a_queue() {
    let (mut worker, _) = Worker::connected(2, 1);
    worker.now_ms = 10 * 60 * 60 * 1000;
    assert_eq!(worker.say(), [(0, 0, false), (1, 1, true)]);
    worker.grants(1);
    worker.now_ms += DRY_PER_ANSWER * ANSWER;
    assert_eq!(worker.ends(1), [(0, 1, true)]);
}

#[test]
fn a_queue_whose_grants_do_not_arrive_is_passed_over_too() {
    let (mut worker, _) = Worker::connected(2, 1);
    let ask = worker.asked(0);
    worker.offers.answered(QueueIndex(0), ask, 1);
    assert_eq!(worker.say(), []);
    worker.now_ms = ANSWER;
    assert_eq!(worker.say(), [(0, 0, false), (1, 1, true)]);
}

#[test]
fn the_turn_of_a_queue_whose_connection_breaks_goes_on() {
    let (mut worker, _) = Worker::connected(2, 1);
    worker.offers.lost(QueueIndex(0));
    assert_eq!(worker.say(), [(1, 1, true)]);
    worker.has_nothing(1);
    // Everything is open to one that comes back, too.
    worker.offers.connected(QueueIndex(0));
    assert_eq!(worker.say(), [(0, 1, false)]);
}

#[test]
fn nothing_is_offered_by_a_worker_that_stops() {
    let mut worker = Worker::dry(2, 2);
    worker.free = 0;
    assert_eq!(worker.say(), [(0, 0, false), (1, 0, false)]);
    worker.offers.lost(QueueIndex(0));
    worker.offers.connected(QueueIndex(0));
    assert_eq!(worker.say(), []);
}

#[test]
fn levels_and_caps() {
    assert_eq!(level(4_000, [0, 0].into_iter()), 2_000);
    assert_eq!(level(4_000, [5_000, 0].into_iter()), 4_000);
    assert_eq!(level(4_000, [2_000, 0, 3_000].into_iter()), 3_000);
    assert_eq!(level(4_000, std::iter::empty()), 4_000);
    assert_eq!(capped(cpus(4), 0), cpus(1));
    assert_eq!(capped(cpus(4), 1_001), cpus(2));
    assert_eq!(capped(cpus(4), u64::MAX), cpus(4));
    assert_eq!(capped(Capacity { cpus_milli: 500, ..cpus(0) }, 0).cpus_milli, 500);
}
