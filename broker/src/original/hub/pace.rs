//! How often sockets are sent whole states that nobody asked for.
//!
//! What is only absent can only be told by a whole state, and in a long queue one is millions of bytes for each socket. So each
//! reason has its hurry: a worker that runs a job which nobody wants any more has to hear of it now, a page within the
//! original's 10 s, and that ended jobs have left, of which nothing follows for anybody, is told when it is cheap.

use std::time::Duration;

use tokio::time::Instant;

use super::Times;
use crate::session::Role;

/// How many bytes of whole states a worker is sent per second at most because jobs were withdrawn.
const WORKER_BYTES_PER_SECOND: usize = 4 * 1024 * 1024;

/// The same for a page, which has nothing to stop; it waits no longer than for the original's, which comes every 10 s.
const PAGE_BYTES_PER_SECOND: usize = 256 * 1024;

/// How many bytes of whole states a socket is sent per second at most because ended jobs have left: less than news are, at
/// twenty changes a second. 10,000 jobs are 2.3 MB, so that is every five minutes; 350 jobs are told every 10 s.
const LEAVERS_BYTES_PER_SECOND: usize = 8 * 1024;

/// A part of all jobs: when as many have left as one in so many, they are told no matter how large the state is.
const LEFT_PART: usize = 2;

/// When the sockets of a role are sent a whole state.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Next.
    pub(super) at: Option<Instant>,
    /// And last.
    was: Option<Instant>,
    /// How many ended jobs have left since.
    left: usize,
}

impl Pace {
    /// A job is gone that may have been at work: everyone of that role is to be told soon.
    pub(super) fn withdrawn(&mut self, role: Role, bytes: usize, times: &Times, now: Instant) {
        let pause = match role {
            Role::Worker => seconds(bytes, WORKER_BYTES_PER_SECOND),
            Role::Client => seconds(bytes, PAGE_BYTES_PER_SECOND).min(times.whole_for_leavers_every),
        };
        self.not_before(times.whole_every.max(pause), now);
    }

    /// An ended job has left; so many are there still.
    pub(super) fn left(&mut self, jobs: usize, bytes: usize, times: &Times, now: Instant) {
        self.left += 1;
        let are_many = self.left >= jobs.div_ceil(LEFT_PART);
        let pause = if are_many { Duration::ZERO } else { seconds(bytes, LEAVERS_BYTES_PER_SECOND) };
        self.not_before(times.whole_for_leavers_every.max(pause), now);
    }

    /// They are sent one now.
    pub(super) fn told(&mut self, now: Instant) {
        *self = Self { at: None, was: Some(now), left: 0 };
    }

    fn not_before(&mut self, pause: Duration, now: Instant) {
        let at = self.was.map_or(now, |was| now.max(was + pause));
        self.at = Some(self.at.map_or(at, |sooner| sooner.min(at)));
    }
}

fn seconds(bytes: usize, per_second: usize) -> Duration {
    Duration::from_secs((bytes / per_second) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What 10,000 waiting jobs take.
    const LONG: usize = 2_300_000;

    /// How long after a whole state the next comes.
    fn next(why: impl FnOnce(&mut Pace, &Times, Instant)) -> u64 {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.told(start);
        why(&mut pace, &Times::default(), start);
        (pace.at.unwrap() - start).as_secs()
    }

    #[test]
    fn a_withdrawn_job_is_told_to_workers_at_once_and_to_pages_within_the_originals_time() {
        let withdrawn = |role, bytes| next(move |pace, times, now| pace.withdrawn(role, bytes, times, now));
        assert_eq!([Role::Worker, Role::Client].map(|role| withdrawn(role, 1_000)), [1, 1]);
        assert_eq!([Role::Worker, Role::Client].map(|role| withdrawn(role, LONG)), [1, 8]);
        assert_eq!([Role::Worker, Role::Client].map(|role| withdrawn(role, 10 * LONG)), [5, 10]);
    }

    #[test]
    fn jobs_that_leave_a_long_queue_are_told_seldom_unless_they_are_many() {
        let left = |jobs, bytes| next(move |pace, times, now| pace.left(jobs, bytes, times, now));
        assert_eq!(left(100, 23_000), 10);
        assert_eq!(left(10_000, LONG), 280);
        let after =
            |count: usize| next(move |pace, times, now| (0..count).for_each(|_| pace.left(10_000, LONG, times, now)));
        assert_eq!((after(4_999), after(5_000)), (280, 10));
    }

    #[test]
    fn a_hurry_is_not_slowed_down_by_what_has_none() {
        let both = next(|pace, times, now| {
            pace.left(10_000, LONG, times, now);
            pace.withdrawn(Role::Worker, LONG, times, now);
            pace.left(10_000, LONG, times, now);
        });
        assert_eq!(both, 1);
    }
}
