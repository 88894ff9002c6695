//! How a container that runs comes to its end: who asks for what, which signal follows, and what the end then means.
//!
//! The shell feeds it what happens and does what it says; see `container::watch`.

use protocol::native::StopReason;

/// How long a container has after SIGTERM when its job is cancelled. With the kill itself it stays within the second in
/// which a cancelled container must be gone.
pub(crate) const TERM_GRACE_MS: u64 = 500;

/// A signal for the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Asks it to end.
    Term,
    /// Ends it.
    Kill,
}

impl Signal {
    /// The name that the engine takes.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Term => "SIGTERM",
            Self::Kill => "SIGKILL",
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happened {
    /// The broker, or whoever stops the worker, wants it stopped.
    StopAsked(StopReason),
    /// Its time is up.
    DeadlineReached,
    /// It takes more disk than it may.
    DiskExceeded,
    /// The time after SIGTERM is up.
    GraceOver,
    /// The container ended.
    Exited(i64),
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Nothing.
    Wait,
    /// Send the signal and wait on.
    Send(Signal),
    /// Send SIGTERM and tell of [`Happened::GraceOver`] after [`TERM_GRACE_MS`].
    SendThenGrace,
    /// It is over.
    End(End),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself, with this exit code.
    Exited(i64),
    /// It was stopped at its time limit.
    TimedOut(i64),
    /// It was stopped because it took more disk than it may.
    OverDisk(i64),
    /// It was stopped because somebody asked; nothing is reported.
    Stopped(StopReason),
}

/// A running container. What was decided first stands: a cancelled run that then exits 0 stays cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Running {
    /// Nobody wants it stopped.
    Free,
    /// Stopping on request.
    Stopping(StopReason),
    /// Stopping because its time was up.
    Expiring,
    /// Stopping because it took too much disk.
    Overfull,
}

impl Running {
    /// Takes in what happened and says what to do.
    pub(crate) fn on(&mut self, happened: Happened) -> Then {
        match (*self, happened) {
            (Self::Free, Happened::Exited(code)) => Then::End(End::Exited(code)),
            (Self::Expiring, Happened::Exited(code)) => Then::End(End::TimedOut(code)),
            (Self::Overfull, Happened::Exited(code)) => Then::End(End::OverDisk(code)),
            (Self::Stopping(reason), Happened::Exited(_)) => Then::End(End::Stopped(reason)),
            (Self::Free, Happened::DeadlineReached) => {
                *self = Self::Expiring;
                Then::Send(Signal::Kill)
            }
            (Self::Free, Happened::DiskExceeded) => {
                *self = Self::Overfull;
                Then::Send(Signal::Kill)
            }
            (Self::Free | Self::Expiring | Self::Overfull, Happened::StopAsked(reason)) => {
                *self = Self::Stopping(reason);
                if is_urgent(reason) { Then::Send(Signal::Kill) } else { Then::SendThenGrace }
            }
            (Self::Stopping(before), Happened::StopAsked(reason)) if is_urgent(reason) && !is_urgent(before) => {
                *self = Self::Stopping(reason);
                Then::Send(Signal::Kill)
            }
            (Self::Stopping(_), Happened::GraceOver) => Then::Send(Signal::Kill),
            (Self::Stopping(_), Happened::StopAsked(_) | Happened::DeadlineReached | Happened::DiskExceeded)
            | (
                Self::Expiring | Self::Overfull,
                Happened::DeadlineReached | Happened::DiskExceeded | Happened::GraceOver,
            )
            | (Self::Free, Happened::GraceOver) => Then::Wait,
        }
    }
}

/// Whether there is no time for a SIGTERM: somebody else owns the job, or its data is being deleted.
const fn is_urgent(reason: StopReason) -> bool {
    match reason {
        StopReason::Deleted | StopReason::Superseded => true,
        StopReason::Cancelled | StopReason::Replaced => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(happened: &[Happened]) -> Vec<Then> {
        let mut running = Running::Free;
        happened.iter().map(|&what| running.on(what)).collect()
    }

    #[test]
    fn a_cancelled_container_is_asked_first_and_killed_after_the_grace() {
        let steps = after(&[Happened::StopAsked(StopReason::Cancelled), Happened::GraceOver, Happened::Exited(137)]);
        assert_eq!(
            steps,
            [Then::SendThenGrace, Then::Send(Signal::Kill), Then::End(End::Stopped(StopReason::Cancelled))]
        );
    }

    #[test]
    fn a_deleted_or_superseded_one_is_killed_at_once() {
        for reason in [StopReason::Deleted, StopReason::Superseded] {
            assert_eq!(after(&[Happened::StopAsked(reason)]), [Then::Send(Signal::Kill)]);
        }
        let steps = after(&[Happened::StopAsked(StopReason::Cancelled), Happened::StopAsked(StopReason::Deleted)]);
        assert_eq!(steps[1], Then::Send(Signal::Kill));
    }

    #[test]
    fn a_cancelled_run_stays_cancelled_whatever_its_exit_code() {
        let steps = after(&[Happened::StopAsked(StopReason::Cancelled), Happened::Exited(0)]);
        assert_eq!(steps[1], Then::End(End::Stopped(StopReason::Cancelled)));
    }

    #[test]
    fn the_deadline_kills_and_the_end_is_timed_out() {
        let steps = after(&[Happened::DeadlineReached, Happened::Exited(137)]);
        assert_eq!(steps, [Then::Send(Signal::Kill), Then::End(End::TimedOut(137))]);
    }

    #[test]
    fn too_much_disk_kills_and_what_was_first_stands() {
        let steps = after(&[Happened::DiskExceeded, Happened::DeadlineReached, Happened::Exited(137)]);
        assert_eq!(steps, [Then::Send(Signal::Kill), Then::Wait, Then::End(End::OverDisk(137))]);
        let steps = after(&[Happened::DeadlineReached, Happened::DiskExceeded, Happened::Exited(137)]);
        assert_eq!(steps[2], Then::End(End::TimedOut(137)));
    }

    #[test]
    fn a_cancel_wins_over_a_deadline_on_its_way() {
        let steps =
            after(&[Happened::DeadlineReached, Happened::StopAsked(StopReason::Cancelled), Happened::Exited(137)]);
        assert_eq!(steps[2], Then::End(End::Stopped(StopReason::Cancelled)));
    }
}
