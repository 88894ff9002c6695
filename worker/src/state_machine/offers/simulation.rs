//! A worker and the brokers of its queues, with messages under way between them: whatever happens in whichever order,
//! nothing that fits waits beside free capacity, everything is granted in the end, and turns are fair.

use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// More jobs than any of these stories starts: a backlog without end.
const JOBS: usize = 300;
/// More messages than any of these stories takes to come to rest.
const STEPS_MAX: usize = 20_000;

fn cpus(count: u32) -> Capacity {
    Capacity { cpus_milli: count * 1000, memory_bytes: None, gpus: 0 }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Job {
    cpus: u32,
}

#[derive(Clone, Copy, Debug)]
enum ToBroker {
    Claim(Offer),
    HandBack(Job),
}

#[derive(Clone, Copy, Debug)]
enum ToWorker {
    Granted(Job),
    Claimed { ask: AskNumber, granted: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Grants, then the answer.
    Answers,
    /// The answer, then grants: their definitions had to be read.
    AnswersFirst,
    /// An older one.
    NeverAnswers,
}

#[derive(Debug)]
struct Broker {
    manner: Manner,
    is_connected: bool,
    waiting: VecDeque<Job>,
    /// Handed back as busy: not to be offered before the next claim.
    handed_back: Vec<Job>,
    free: u32,
    grants: u64,
    unseen: VecDeque<(u64, u32)>,
    to_broker: VecDeque<ToBroker>,
    to_worker: VecDeque<ToWorker>,
}

impl Broker {
    fn new(manner: Manner) -> Self {
        Self {
            manner,
            is_connected: false,
            waiting: VecDeque::new(),
            handed_back: Vec::new(),
            free: 0,
            grants: 0,
            unseen: VecDeque::new(),
            to_broker: VecDeque::new(),
            to_worker: VecDeque::new(),
        }
    }

    fn grant(&mut self) {
        while let Some(at) = self.waiting.iter().position(|job| job.cpus <= self.free) {
            let job = self.waiting.remove(at).unwrap();
            self.free -= job.cpus;
            self.grants += 1;
            self.unseen.push_back((self.grants, job.cpus));
            self.to_worker.push_back(ToWorker::Granted(job));
        }
    }

    fn receive(&mut self) {
        match self.to_broker.pop_front() {
            Some(ToBroker::Claim(offer)) => {
                self.unseen.retain(|(number, _)| *number > offer.grants_seen);
                let unseen: u32 = self.unseen.iter().map(|(_, cpus)| cpus).sum();
                self.free = (offer.free.cpus_milli / 1000).saturating_sub(unseen);
                self.handed_back.drain(..).for_each(|job| self.waiting.push_front(job));
                let before = self.to_worker.len();
                self.grant();
                if let Some(ask) = offer.ask.filter(|_| self.manner != Manner::NeverAnswers) {
                    let claimed = ToWorker::Claimed { ask, granted: self.grants };
                    let at = if self.manner == Manner::Answers { self.to_worker.len() } else { before };
                    self.to_worker.insert(at, claimed);
                }
            }
            Some(ToBroker::HandBack(job)) => self.handed_back.push(job),
            None => {}
        }
    }

    /// What is under way is lost; runs that the worker does not know are queued again.
    fn disconnect(&mut self) {
        self.is_connected = false;
        let lost = self.to_worker.drain(..).filter_map(|message| match message {
            ToWorker::Granted(job) => Some(job),
            ToWorker::Claimed { .. } => None,
        });
        let returned = self.to_broker.drain(..).filter_map(|message| match message {
            ToBroker::HandBack(job) => Some(job),
            ToBroker::Claim(_) => None,
        });
        let again: Vec<Job> = lost.chain(returned).chain(self.handed_back.drain(..)).collect();
        again.into_iter().for_each(|job| self.waiting.push_front(job));
        (self.free, self.grants) = (0, 0);
        self.unseen.clear();
    }
}

#[derive(Debug)]
struct World {
    offers: Offers,
    brokers: Vec<Broker>,
    runs: Vec<(usize, Job)>,
    cpus: u32,
    now_ms: u64,
    /// Claims that are replaced before they are sent.
    coalesces: bool,
    handed_back: u32,
}

impl World {
    fn new(cpus: u32, manners: &[Manner], coalesces: bool) -> Self {
        Self {
            offers: Offers::new(manners.len()),
            brokers: manners.iter().map(|manner| Broker::new(*manner)).collect(),
            runs: Vec::new(),
            cpus,
            now_ms: 0,
            coalesces,
            handed_back: 0,
        }
    }

    fn used(&self, queue: usize) -> u32 {
        self.runs.iter().filter(|(of, _)| *of == queue).map(|(_, job)| job.cpus).sum()
    }

    fn free(&self) -> u32 {
        self.cpus
            .checked_sub(self.runs.iter().map(|(_, job)| job.cpus).sum())
            .expect("no more runs than there is room for")
    }

    fn plan(&mut self) {
        let used: Vec<u32> = (0..self.brokers.len()).map(|queue| self.used(queue) * 1000).collect();
        for offer in self.offers.plan(self.now_ms, cpus(self.free()), |queue| used[queue.0]) {
            let broker = &mut self.brokers[offer.queue.0];
            assert!(broker.is_connected, "nothing is said on a broken line");
            if self.coalesces && matches!(broker.to_broker.back(), Some(ToBroker::Claim(_))) {
                broker.to_broker.pop_back();
            }
            broker.to_broker.push_back(ToBroker::Claim(offer));
        }
    }

    fn connect(&mut self, queue: usize) {
        if !self.brokers[queue].is_connected {
            self.brokers[queue].is_connected = true;
            self.offers.connected(QueueIndex(queue));
            self.plan();
        }
    }

    fn disconnect(&mut self, queue: usize) {
        if self.brokers[queue].is_connected {
            self.brokers[queue].disconnect();
            self.offers.lost(QueueIndex(queue));
            self.plan();
        }
    }

    fn submit(&mut self, queue: usize, job: Job) {
        self.brokers[queue].waiting.push_back(job);
        self.brokers[queue].grant();
    }

    fn worker_receives(&mut self, queue: usize) {
        match self.brokers[queue].to_worker.pop_front() {
            Some(ToWorker::Granted(job)) => {
                let has_room = job.cpus <= self.free();
                let is_busy = self.offers.granted(QueueIndex(queue), cpus(job.cpus), has_room);
                if has_room {
                    self.runs.push((queue, job));
                } else {
                    assert!(is_busy, "it is a race, nothing worse");
                    self.handed_back += 1;
                    self.brokers[queue].to_broker.push_back(ToBroker::HandBack(job));
                }
                self.plan();
            }
            Some(ToWorker::Claimed { ask, granted }) => {
                self.offers.answered(QueueIndex(queue), ask, granted);
                self.plan();
            }
            None => {}
        }
    }

    fn end(&mut self, which: usize) {
        if !self.runs.is_empty() {
            self.runs.remove(which % self.runs.len());
            self.plan();
        }
    }

    /// Lets everything under way arrive, and time pass while something is waited for.
    fn come_to_rest(&mut self) {
        for _ in 0..STEPS_MAX {
            let busy =
                self.brokers.iter().position(|broker| !broker.to_broker.is_empty() || !broker.to_worker.is_empty());
            match busy {
                Some(queue) if !self.brokers[queue].to_broker.is_empty() => self.brokers[queue].receive(),
                Some(queue) => self.worker_receives(queue),
                None => match self.offers.due_ms() {
                    Some(due_ms) => {
                        self.now_ms = self.now_ms.max(due_ms);
                        self.plan();
                    }
                    None => return,
                },
            }
        }
        panic!("it does not come to rest: {self:?}");
    }

    fn assert_nothing_idles(&self) {
        let free = self.free();
        for broker in self.brokers.iter().filter(|broker| broker.is_connected) {
            let waits = broker.waiting.iter().find(|job| job.cpus <= free);
            assert_eq!(waits, None, "{free} CPUs idle: {self:?}");
            assert!(broker.handed_back.is_empty() || free == 0 || broker.handed_back.iter().all(|job| job.cpus > free));
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    ToBroker(usize),
    ToWorker(usize),
    End(usize),
    Submit(usize, u32),
    Disconnect(usize),
    Connect(usize),
    Wait(u64),
    Rest,
}

fn step(jobs: bool) -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any::<usize>().prop_map(Step::ToBroker),
        8 => any::<usize>().prop_map(Step::ToWorker),
        4 => any::<usize>().prop_map(Step::End),
        if jobs { 6 } else { 0 } => (any::<usize>(), 1..=3_u32).prop_map(|(queue, cpus)| Step::Submit(queue, cpus)),
        1 => any::<usize>().prop_map(Step::Disconnect),
        2 => any::<usize>().prop_map(Step::Connect),
        2 => prop_oneof![Just(1), Just(DRY_MS), Just(ANSWER_MS), Just(DRY_PER_ANSWER * ANSWER_MS)].prop_map(Step::Wait),
        1 => Just(Step::Rest),
    ]
}

fn manner() -> impl Strategy<Value = Manner> {
    prop_oneof![4 => Just(Manner::Answers), 4 => Just(Manner::AnswersFirst), 1 => Just(Manner::NeverAnswers)]
}

fn take(world: &mut World, step: Step) {
    let queues = world.brokers.len();
    match step {
        Step::ToBroker(queue) => world.brokers[queue % queues].receive(),
        Step::ToWorker(queue) => world.worker_receives(queue % queues),
        Step::End(which) => world.end(which),
        Step::Submit(queue, cpus) => world.submit(queue % queues, Job { cpus: cpus.min(world.cpus) }),
        Step::Disconnect(queue) => world.disconnect(queue % queues),
        Step::Connect(queue) => world.connect(queue % queues),
        Step::Wait(ms) => {
            world.now_ms += ms;
            world.plan();
        }
        Step::Rest => {
            world.come_to_rest();
            world.assert_nothing_idles();
        }
    }
}

proptest! {
    #[test]
    fn nothing_that_fits_waits_beside_free_capacity_and_everything_is_granted_in_the_end(
        cpus in 1..=6_u32,
        manners in vec(manner(), 1..=4),
        coalesces: bool,
        steps in vec(step(true), 0..200),
    ) {
        let mut world = World::new(cpus, &manners, coalesces);
        steps.into_iter().for_each(|step| take(&mut world, step));
        (0..manners.len()).for_each(|queue| world.connect(queue));
        world.come_to_rest();
        world.assert_nothing_idles();
        while !world.runs.is_empty() {
            world.end(0);
            world.come_to_rest();
            world.assert_nothing_idles();
        }
        let left: usize = world.brokers.iter().map(|broker| broker.waiting.len() + broker.handed_back.len()).sum();
        prop_assert_eq!(left, 0);
    }

    #[test]
    fn queues_with_endless_work_use_the_same_but_for_one_job(
        cpus in 1..=6_u32,
        manners in vec(manner().prop_filter("answers", |manner| *manner != Manner::NeverAnswers), 2..=4),
        coalesces: bool,
        steps in vec(step(false), 0..200),
    ) {
        let mut world = World::new(cpus, &manners, coalesces);
        let queues = manners.len();
        (0..queues).for_each(|queue| (0..JOBS).for_each(|_| world.submit(queue, Job { cpus: 1 })));
        steps.into_iter().for_each(|step| take(&mut world, step));
        (0..queues).for_each(|queue| world.connect(queue));
        world.come_to_rest();
        // Those that did not answer in time are asked again.
        world.now_ms += DRY_PER_ANSWER * ANSWER_MS;
        // Whoever was connected alone has everything; as its runs end, the others come to theirs.
        for _ in 0..cpus {
            world.end(0);
            world.come_to_rest();
        }
        let handed_back = world.handed_back;
        for round in 0..4 * cpus as usize {
            let used: Vec<u32> = (0..queues).map(|queue| world.used(queue)).collect();
            let (most, least) = (used.iter().max().unwrap(), used.iter().min().unwrap());
            prop_assert!(most - least <= 1, "{:?}", used);
            prop_assert_eq!(world.free(), 0);
            if round % 2 == 0 {
                world.end(round * 7);
                world.end(round * 3);
            } else {
                // Many at once.
                world.runs.truncate(round % cpus as usize);
                world.plan();
            }
            world.come_to_rest();
        }
        prop_assert_eq!(world.handed_back, handed_back, "where turns are taken, nothing is granted twice");
    }
}
