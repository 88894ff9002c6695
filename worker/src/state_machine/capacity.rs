//! Arithmetic of capacity.

use protocol::native::Capacity;

use super::slots::CPUS_MILLI_UNSTATED;

/// Nothing on offer: what a worker claims that takes no more runs.
pub(crate) const NOTHING: Capacity = Capacity { cpus_milli: 0, memory_bytes: Some(0), gpus: 0 };

/// The level up to which those that use less can be filled with what is free.
pub(super) fn level(free: u32, used: impl Iterator<Item = u64>) -> u64 {
    let mut used: Vec<u64> = used.collect();
    used.sort_unstable();
    let mut sum = u64::from(free);
    let mut level = sum;
    for (count, used) in (1..).zip(used) {
        if count > 1 && used >= level {
            break;
        }
        sum += used;
        level = sum / count;
    }
    level
}

/// What is free, but of the CPUs no more than `cpus_milli`, in whole CPUs and at least one.
pub(super) fn capped(free: Capacity, cpus_milli: u64) -> Capacity {
    let step = u64::from(CPUS_MILLI_UNSTATED);
    let cap = cpus_milli.div_ceil(step).max(1).saturating_mul(step);
    Capacity { cpus_milli: free.cpus_milli.min(u32::try_from(cap).unwrap_or(u32::MAX)), ..free }
}

/// What is left when `needs` are met.
pub(crate) fn less(free: Capacity, needs: Capacity) -> Capacity {
    Capacity {
        cpus_milli: free.cpus_milli.saturating_sub(needs.cpus_milli),
        memory_bytes: free.memory_bytes.map(|free| free.saturating_sub(needs.memory_bytes.unwrap_or(0))),
        gpus: free.gpus.saturating_sub(needs.gpus),
    }
}

/// The lesser of both, thing by thing. Memory that is not counted is more than any that is.
pub(super) fn at_most(one: Capacity, other: Capacity) -> Capacity {
    let memory_bytes = match (one.memory_bytes, other.memory_bytes) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    Capacity { cpus_milli: one.cpus_milli.min(other.cpus_milli), memory_bytes, gpus: one.gpus.min(other.gpus) }
}

/// Whether there is more of anything.
pub(super) fn has_grown(before: &Capacity, now: &Capacity) -> bool {
    now.cpus_milli > before.cpus_milli || now.memory_bytes > before.memory_bytes || now.gpus > before.gpus
}
