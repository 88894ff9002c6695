//! What all peers of the run share: where the broker is, what phase it is, what they count, and what each of them knows.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::view::View;
use crate::tally::{Count, Delays, Wrong};

/// What the peers do just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// They are there, and nobody wants anything.
    Idle,
    /// They submit, cancel, delete, lose their connections.
    Load,
    /// Nothing new comes; what is under way ends.
    Calm,
}

/// Who a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// An original worker.
    Worker,
    /// An original page.
    Page,
    /// An original command line.
    Line,
}

impl Role {
    pub(super) const ALL: [Self; 3] = [Self::Worker, Self::Page, Self::Line];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Worker => "workers",
            Self::Page => "pages",
            Self::Line => "command lines",
        }
    }
}

/// What the sockets of a role come to.
#[derive(Default)]
pub(super) struct Sockets {
    /// Opened, closed by us on purpose, and ended although nobody on this side wanted it.
    pub(super) opened: Count,
    pub(super) dropped: Count,
    pub(super) lost: Count,
    /// Watchdogs that bit.
    pub(super) watchdogs: Count,
    pub(super) pings: Count,
    pub(super) pongs: Count,
    /// Pings whose answer we did not wait for, as we closed.
    pub(super) pings_cut: Count,
    pub(super) pong_delays: Delays,
    /// Between two messages about jobs.
    pub(super) silences: Delays,
    pub(super) frames: Count,
    pub(super) bytes: Count,
}

/// What peers did, and how long they waited for it.
#[derive(Default)]
pub(super) struct Deeds {
    pub(super) submitted: Count,
    pub(super) resent: Count,
    /// From a submission to a message that shows the job to its sender.
    pub(super) shown: Delays,
    pub(super) resubmitted_finished: Count,
    pub(super) cancelled: Count,
    pub(super) deleted: Count,
    pub(super) replaced_back: Count,
    pub(super) shared: Count,
    pub(super) copied: Count,
    pub(super) over_http: Count,
    pub(super) statuses: Count,
    /// From a cancel or deletion to the kill at the worker that ran the job.
    pub(super) killed: Delays,
    pub(super) claims: Count,
    /// Runs that let go because another worker goes first.
    pub(super) let_go: Count,
    /// Runs that were begun again, as their worker saw an old state after their end.
    pub(super) begun_again: Count,
    /// Results that their worker itself threw away.
    pub(super) discarded: Count,
    pub(super) ended: Count,
    pub(super) ended_native: Count,
    pub(super) definitions_asked: Count,
    pub(super) definitions_given_up: Count,
    pub(super) offline_frames: Count,
    pub(super) log_lines_sent: Count,
    pub(super) log_lines_seen: Count,
    pub(super) blobs_put: Count,
    pub(super) blobs_got: Count,
    pub(super) results_got: Count,
    pub(super) results_null: Count,
    pub(super) lines_done: Count,
    /// Of command lines, from start to result.
    pub(super) line_delays: Delays,
}

/// What is told to a peer from outside.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// Lose the connection, and find no way back for so long.
    Drop(Duration),
    /// Ask for the whole state.
    AskWhole,
}

/// What one peer knows, for all to see.
pub(super) struct Seen {
    pub(super) role: Role,
    pub(super) queue: String,
    pub(super) name: String,
    view: Mutex<View>,
    is_connected: AtomicBool,
    /// Whether it is about to do more of what somebody began.
    is_busy: AtomicBool,
    /// Since when a worker has had a free slot.
    free_since: Mutex<Option<Instant>>,
}

impl Seen {
    pub(super) fn new(role: Role, queue: &str, name: String) -> Arc<Self> {
        let (view, is_connected, is_busy, free_since) = Default::default();
        Arc::new(Self { role, queue: queue.to_owned(), name, view, is_connected, is_busy, free_since })
    }

    pub(super) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    pub(super) fn set_connected(&self, is_connected: bool) {
        self.is_connected.store(is_connected, Ordering::Relaxed);
    }

    pub(super) fn is_busy(&self) -> bool {
        self.is_busy.load(Ordering::Relaxed)
    }

    /// Whether it is connected, if it is to be: command lines come and go.
    pub(super) fn is_here(&self) -> bool {
        self.role == Role::Line || self.is_connected()
    }

    pub(super) fn set_busy(&self, is_busy: bool) {
        self.is_busy.store(is_busy, Ordering::Relaxed);
    }

    pub(super) fn free_since(&self) -> Option<Instant> {
        *self.free_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of whether a slot is free.
    pub(super) fn set_free(&self, is_free: bool) {
        let mut since = self.free_since.lock().unwrap_or_else(PoisonError::into_inner);
        match is_free {
            true => *since = Some(since.unwrap_or_else(Instant::now)),
            false => *since = None,
        }
    }
}

/// What all share.
pub(super) struct Scene {
    pub(super) address: String,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) stop: CancellationToken,
    pub(super) wrong: Arc<Wrong>,
    pub(super) deeds: Deeds,
    sockets: [Sockets; 3],
    /// When whom nobody wants any more was withdrawn, by queue and job.
    withdrawn: Mutex<HashMap<(String, String), Instant>>,
    /// Jobs that original workers cannot run: they would die of them, or have no GPU.
    not_for_originals: Mutex<HashSet<String>>,
}

impl Scene {
    pub(super) fn new(address: String, phase: watch::Receiver<Phase>) -> Self {
        Self {
            address,
            phase,
            stop: CancellationToken::new(),
            wrong: Arc::default(),
            deeds: Deeds::default(),
            sockets: Default::default(),
            withdrawn: Mutex::default(),
            not_for_originals: Mutex::default(),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(super) const fn sockets(&self, role: Role) -> &Sockets {
        &self.sockets[role as usize]
    }

    /// Somebody cancels or deletes a job.
    pub(super) fn withdraws(&self, queue: &str, job: &str) {
        let mut withdrawn = self.withdrawn.lock().unwrap_or_else(PoisonError::into_inner);
        withdrawn.insert((queue.to_owned(), job.to_owned()), Instant::now());
    }

    /// When that was, unless somebody has wanted it since.
    pub(super) fn withdrawn(&self, queue: &str, job: &str) -> Option<Instant> {
        let withdrawn = self.withdrawn.lock().unwrap_or_else(PoisonError::into_inner);
        withdrawn.get(&(queue.to_owned(), job.to_owned())).copied()
    }

    /// Somebody wants it.
    pub(super) fn wants(&self, queue: &str, job: &str) {
        let mut withdrawn = self.withdrawn.lock().unwrap_or_else(PoisonError::into_inner);
        withdrawn.remove(&(queue.to_owned(), job.to_owned()));
    }

    pub(super) fn is_not_for_originals(&self, job: &str) -> bool {
        self.not_for_originals.lock().unwrap_or_else(PoisonError::into_inner).contains(job)
    }

    pub(super) fn keep_from_originals(&self, job: &str) {
        self.not_for_originals.lock().unwrap_or_else(PoisonError::into_inner).insert(job.to_owned());
    }
}

/// The heartbeat of one socket: what was asked, what was answered, when jobs were last spoken of.
pub(super) struct Pulse {
    unanswered: VecDeque<Instant>,
    pub(super) pong: Instant,
    pub(super) frame: Instant,
    pub(super) states: Instant,
}

impl Pulse {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { unanswered: VecDeque::new(), pong: now, frame: now, states: now }
    }

    /// Of the next socket: how long nothing was said of jobs is counted over both.
    pub(super) fn on_new_socket(&self) -> Self {
        Self { states: self.states, ..Self::new() }
    }

    pub(super) fn pinged(&mut self, sockets: &Sockets) {
        sockets.pings.add(1);
        self.unanswered.push_back(Instant::now());
    }

    /// An answer came; one that nobody asked for is an error.
    pub(super) fn ponged(&mut self, sockets: &Sockets) -> anyhow::Result<()> {
        self.pong = Instant::now();
        let Some(asked) = self.unanswered.pop_front() else { anyhow::bail!("a PONG that nobody asked for") };
        sockets.pongs.add(1);
        sockets.pong_delays.add(millis(asked.elapsed()));
        Ok(())
    }

    pub(super) fn heard(&mut self, sockets: &Sockets, text: &str) {
        sockets.frames.add(1);
        sockets.bytes.add(text.len() as u64);
        self.frame = Instant::now();
    }

    pub(super) fn told_jobs(&mut self, sockets: &Sockets) {
        sockets.silences.add(millis(self.states.elapsed()));
        self.states = Instant::now();
    }

    /// The socket is closed by us.
    pub(super) fn cut(&mut self, sockets: &Sockets) {
        sockets.pings_cut.add(self.unanswered.len() as u64);
        self.unanswered.clear();
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
