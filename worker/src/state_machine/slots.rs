//! Which runs fit: what the worker has, who holds how much of it, what is left.

use std::collections::{BTreeMap, BTreeSet};

use protocol::definition::Needs;
use protocol::id::JobId;
use protocol::native::{Capacity, HeldRun};

use super::{QueueIndex, QueueRun};

/// What a job takes that states no CPUs: one, so that `--cpus` bounds how many such jobs run at once.
pub(crate) const CPUS_MILLI_UNSTATED: u32 = 1000;

/// What one run holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// Thousandths of a CPU.
    pub(crate) cpus_milli: u32,
    /// Bytes of memory.
    pub(crate) memory_bytes: u64,
    /// GPUs, as the engine names them, in the worker's order.
    pub(crate) gpus: Vec<String>,
}

/// Why a run does not fit now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it needs {needed} {what}, {free} are free")]
pub(crate) struct DoesNotFit {
    what: &'static str,
    needed: u64,
    free: u64,
}

/// The worker's capacity and its holders. A run holds at most one share.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    cpus_milli: u32,
    memory_bytes: Option<u64>,
    gpus: Vec<String>,
    /// The most memory that one job may state: what is above it must never be offered.
    memory_per_job_max: Option<u64>,
    held: BTreeMap<QueueRun, Share>,
    /// How many remains were counted: each has a place of its own among the holders.
    remains: usize,
}

impl Slots {
    /// Everything free.
    pub(crate) fn new(
        cpus: u32,
        memory_bytes: Option<u64>,
        gpus: Vec<String>,
        memory_per_job_max: Option<u64>,
    ) -> Self {
        let (cpus_milli, held) = (cpus.saturating_mul(1000), BTreeMap::new());
        Self { cpus_milli, memory_bytes, gpus, memory_per_job_max, held, remains: 0 }
    }

    /// All there is.
    pub(crate) fn total(&self) -> Capacity {
        self.offer(self.cpus_milli, self.memory_bytes, self.gpus.len())
    }

    /// What is offered to all runs together: thousandths of a CPU, and bytes of memory if they are counted.
    pub(crate) const fn offered(&self) -> (u32, Option<u64>) {
        (self.cpus_milli, self.memory_bytes)
    }

    /// What all runs hold together: thousandths of a CPU, and bytes of memory. Adopted runs may hold more than there is.
    pub(crate) fn held(&self) -> (u64, u64) {
        self.held.values().fold((0, 0), |(cpus, memory): (u64, u64), share| {
            (cpus.saturating_add(share.cpus_milli.into()), memory.saturating_add(share.memory_bytes))
        })
    }

    /// The GPUs in order, each with the run that has it.
    pub(crate) fn gpu_holders(&self) -> Vec<(String, Option<QueueRun>)> {
        let holder = |gpu: &String| self.held.iter().find(|(_, share)| share.gpus.contains(gpu)).map(|(run, _)| *run);
        self.gpus.iter().map(|gpu| (gpu.clone(), holder(gpu))).collect()
    }

    /// What is left. Adopted runs may hold more than there is; then nothing is left.
    pub(crate) fn free(&self) -> Capacity {
        let memory = self.memory_bytes.map(|total| {
            total.saturating_sub(self.held.values().fold(0, |sum: u64, share| sum.saturating_add(share.memory_bytes)))
        });
        self.offer(self.free_cpus_milli(), memory, self.free_gpus().count())
    }

    /// The thousandths of a CPU that a queue's runs hold.
    pub(crate) fn used_cpus_milli(&self, queue: QueueIndex) -> u32 {
        let first = QueueRun { queue, run: HeldRun { job: JobId::from_bytes([0; 32]), run: 0 } };
        let of_queue = self.held.range(first..).take_while(|(run, _)| run.queue == queue);
        of_queue.fold(0, |sum: u32, (_, share)| sum.saturating_add(share.cpus_milli))
    }

    fn offer(&self, cpus_milli: u32, memory_bytes: Option<u64>, gpus: usize) -> Capacity {
        let memory_bytes = match (memory_bytes, self.memory_per_job_max) {
            (Some(free), Some(max)) => Some(free.min(max)),
            (one, other) => one.or(other),
        };
        Capacity { cpus_milli, memory_bytes, gpus: u32::try_from(gpus).unwrap_or(u32::MAX) }
    }

    fn free_cpus_milli(&self) -> u32 {
        let held = self.held.values().fold(0, |sum: u32, share| sum.saturating_add(share.cpus_milli));
        self.cpus_milli.saturating_sub(held)
    }

    fn free_gpus(&self) -> impl Iterator<Item = &String> {
        let held: BTreeSet<&String> = self.held.values().flat_map(|share| &share.gpus).collect();
        self.gpus.iter().filter(move |gpu| !held.contains(gpu))
    }

    /// Whether something of the run holds anything: also when it is over, but its container is not gone.
    pub(crate) fn holds(&self, run: QueueRun) -> bool {
        self.held.contains_key(&run)
    }

    /// Gives `run` what it needs, if that is free. It must not hold anything.
    pub(crate) fn take(&mut self, run: QueueRun, needs: &Needs) -> Result<Share, DoesNotFit> {
        let free = self.free();
        let cpus_milli = needs.cpus_milli.unwrap_or(CPUS_MILLI_UNSTATED);
        let memory_bytes = needs.memory_bytes.unwrap_or(0);
        let fits = |what, needed: u64, free: u64| {
            if needed > free { Err(DoesNotFit { what, needed, free }) } else { Ok(()) }
        };
        fits("thousandths of a CPU", cpus_milli.into(), free.cpus_milli.into())?;
        fits("bytes of memory", memory_bytes, free.memory_bytes.unwrap_or(u64::MAX))?;
        fits("GPUs", needs.gpus.into(), free.gpus.into())?;
        let gpus = self.free_gpus().take(needs.gpus as usize).cloned().collect();
        let share = Share { cpus_milli, memory_bytes, gpus };
        self.held.insert(run, share.clone());
        Ok(share)
    }

    /// Counts a run that is already going on, whether it fits or not.
    pub(crate) fn adopt(&mut self, run: QueueRun, needs: &Needs, gpus: Vec<String>) -> Share {
        let share = Share {
            cpus_milli: needs.cpus_milli.unwrap_or(CPUS_MILLI_UNSTATED),
            memory_bytes: needs.memory_bytes.unwrap_or(0),
            gpus,
        };
        self.held.insert(run, share.clone());
        share
    }

    /// Counts the GPUs of a run that is over, but whose container may not be gone.
    pub(crate) fn keep_gpus(&mut self, run: QueueRun, gpus: Vec<String>) {
        if !gpus.is_empty() {
            self.held.insert(run, Share { gpus, ..Share::default() });
        }
    }

    /// The same for a container that is no run's here. Gives the holder to be released when it is gone: never that of a run, which
    /// may come again.
    pub(crate) fn keep_remains(&mut self, of: HeldRun, gpus: Vec<String>) -> QueueRun {
        let holder = QueueRun { queue: QueueIndex(usize::MAX - self.remains), run: of };
        self.remains += 1;
        self.keep_gpus(holder, gpus);
        holder
    }

    /// Frees all of a run but its GPUs, which are free only when its container is gone.
    pub(crate) fn release_all_but_gpus(&mut self, run: QueueRun) {
        match self.held.get_mut(&run) {
            Some(share) if !share.gpus.is_empty() => {
                share.cpus_milli = 0;
                share.memory_bytes = 0;
            }
            Some(_) | None => {
                self.release(run);
            }
        }
    }

    /// Frees what a run held; `false` when that was nothing.
    pub(crate) fn release(&mut self, run: QueueRun) -> bool {
        self.held.remove(&run).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(number: u32) -> QueueRun {
        of(0, number)
    }

    fn of(queue: usize, number: u32) -> QueueRun {
        QueueRun { queue: QueueIndex(queue), run: HeldRun { job: JobId::from_bytes([1; 32]), run: number } }
    }

    fn gpus(count: u32) -> Vec<String> {
        (0..count).map(|gpu| gpu.to_string()).collect()
    }

    #[test]
    fn a_job_that_states_nothing_takes_one_cpu() {
        let mut slots = Slots::new(2, None, Vec::new(), None);
        slots.take(run(1), &Needs::default()).unwrap();
        assert_eq!(slots.free().cpus_milli, 1000);
        slots.take(run(2), &Needs { cpus_milli: Some(600), ..Needs::default() }).unwrap();
        assert!(slots.take(run(3), &Needs::default()).is_err());
        slots.take(run(4), &Needs { cpus_milli: Some(400), ..Needs::default() }).unwrap();
        assert_eq!(slots.free().cpus_milli, 0);
    }

    #[test]
    fn gpus_are_given_in_order_and_never_twice() {
        let mut slots = Slots::new(9, None, gpus(3), None);
        let needs = |gpus| Needs { gpus, ..Needs::default() };
        assert_eq!(slots.take(run(1), &needs(2)).unwrap().gpus, ["0", "1"]);
        assert!(slots.take(run(2), &needs(2)).is_err());
        assert_eq!(slots.take(run(3), &needs(1)).unwrap().gpus, ["2"]);
        slots.release(run(1));
        assert_eq!(slots.take(run(4), &needs(1)).unwrap().gpus, ["0"]);
        let holders = [("0", Some(run(4))), ("1", None), ("2", Some(run(3)))];
        assert_eq!(slots.gpu_holders(), holders.map(|(gpu, run)| (gpu.to_owned(), run)));
        assert_eq!((slots.offered(), slots.held()), ((9000, None), (2000, 0)));
    }

    #[test]
    fn gpus_stay_taken_until_the_container_is_gone() {
        let mut slots = Slots::new(1, None, gpus(1), None);
        slots.take(run(1), &Needs { gpus: 1, ..Needs::default() }).unwrap();
        slots.release_all_but_gpus(run(1));
        assert_eq!((slots.free().cpus_milli, slots.free().gpus), (1000, 0));
        slots.release(run(1));
        assert_eq!(slots.free().gpus, 1);
    }

    #[test]
    fn gpus_of_a_run_that_is_over_are_counted_while_its_container_may_be_there() {
        let mut slots = Slots::new(2, None, gpus(3), None);
        let one = slots.keep_remains(run(1).run, vec!["1".to_owned()]);
        let none = slots.keep_remains(run(2).run, Vec::new());
        // The same run may have left two, and may be granted once more.
        let other = slots.keep_remains(run(1).run, vec!["2".to_owned()]);
        assert_eq!((slots.free().cpus_milli, slots.free().gpus), (2000, 1));
        let share = slots.take(run(1), &Needs { gpus: 1, ..Needs::default() }).unwrap();
        assert_eq!(share.gpus, ["0"]);
        assert!(slots.release(one) && !slots.release(none) && slots.release(other));
        assert_eq!(slots.free().gpus, 2, "what was left is gone, and the run still has its own");
        assert!(slots.holds(run(1)) && slots.release(run(1)));
        assert_eq!(slots.free(), slots.total());
    }

    #[test]
    fn memory_is_counted_and_one_jobs_cap_is_never_offered_beyond() {
        let mut slots = Slots::new(9, Some(100), Vec::new(), Some(60));
        assert_eq!(slots.total().memory_bytes, Some(60));
        let needs = |memory| Needs { memory_bytes: Some(memory), ..Needs::default() };
        assert!(slots.take(run(1), &needs(61)).is_err());
        slots.take(run(1), &needs(60)).unwrap();
        assert_eq!(slots.free().memory_bytes, Some(40));
        assert_eq!(Slots::new(1, None, Vec::new(), None).free().memory_bytes, None);
    }

    #[test]
    fn adopted_runs_count_even_when_they_do_not_fit() {
        let mut slots = Slots::new(1, None, gpus(1), None);
        slots.adopt(run(1), &Needs { cpus_milli: Some(3000), ..Needs::default() }, gpus(1));
        assert_eq!((slots.free().cpus_milli, slots.free().gpus), (0, 0));
        slots.release(run(1));
        assert_eq!(slots.free(), slots.total());
    }

    #[test]
    fn the_same_run_of_two_queues_is_two_and_each_queue_is_counted_apart() {
        let mut slots = Slots::new(4, None, Vec::new(), None);
        slots.take(of(0, 1), &Needs::default()).unwrap();
        slots.take(of(1, 1), &Needs { cpus_milli: Some(2500), ..Needs::default() }).unwrap();
        assert_eq!((slots.used_cpus_milli(QueueIndex(0)), slots.used_cpus_milli(QueueIndex(1))), (1000, 2500));
        slots.release(of(0, 1));
        assert_eq!((slots.used_cpus_milli(QueueIndex(0)), slots.free().cpus_milli), (0, 1500));
    }
}
