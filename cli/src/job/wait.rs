//! Following a job over sockets that may break: reconnects with a bounded backoff, and tells people what there is to tell.

use std::time::Duration;

use protocol::event::RunOutcome;
use protocol::id::JobId;
use protocol::native::LogKind;
use protocol::queue::Status;
use tokio::time::{Instant, sleep, sleep_until};

use super::api::Api;
use super::follow::{Follow, FollowError, Told, View};
use crate::args::job::Target;
use crate::progress::{Console, one_line};
use crate::socket::{Socket, SocketError};

/// The first pause after a socket broke.
const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// The longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long a broker may be away: it restarts in seconds, a machine in a minute or two.
const AWAY_MAX: Duration = Duration::from_secs(180);
/// How long the last lines of a job that has ended may take.
const LAST_LINES_MAX: Duration = Duration::from_secs(10);

/// How often a state that does not add up is thrown away for a fresh one: once may be a slip, this often is a fault.
const FRESH_STARTS_MAX: u32 = 3;

/// What is wanted of a job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// The job.
    pub(crate) job: JobId,
    /// Which logs.
    pub(crate) kinds: &'a [LogKind],
    /// From which line on.
    pub(crate) since: u64,
    /// Whether lines of getting the image go to standard output, as what was asked for, or to standard error.
    pub(crate) build_is_output: bool,
    /// Whether to say in which state the job is.
    pub(crate) tell_states: bool,
}

/// Follows the job to its end; answers its last state, or nothing when the queue does not hold it.
pub(crate) async fn follow(
    api: &Api,
    target: &Target,
    wanted: Wanted<'_>,
    console: &mut Console,
) -> anyhow::Result<Option<View>> {
    let mut follow = Follow::new(wanted.job, wanted.kinds, wanted.since);
    let mut backoff = BACKOFF_MIN;
    let mut last_good = None;
    let mut fresh_starts = 0;
    loop {
        let error = match conversation(api, target, wanted, &mut follow, console, &mut last_good).await {
            Ok(()) => return Ok(follow.view().cloned()),
            Err(error) => error,
        };
        let is_transient = error.downcast_ref().is_some_and(SocketError::is_transient)
            || error.downcast_ref().is_some_and(FollowError::is_transient);
        if error.downcast_ref().is_some_and(FollowError::needs_snapshot) {
            follow.start_afresh();
            fresh_starts += 1;
        }
        match last_good {
            // Nobody was ever there: that is for the user to look at, now.
            None => return Err(error),
            Some(_) if !is_transient || fresh_starts > FRESH_STARTS_MAX => return Err(error),
            Some(at) if Instant::now().duration_since(at) > AWAY_MAX => {
                return Err(
                    error.context(format!("gave up after {} s; the job goes on without us", AWAY_MAX.as_secs()))
                );
            }
            Some(at) => {
                if Instant::now().duration_since(at) < BACKOFF_MAX {
                    backoff = BACKOFF_MIN;
                    console.note(&format!("{error}; trying again"));
                }
            }
        }
        sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

async fn conversation(
    api: &Api,
    target: &Target,
    wanted: Wanted<'_>,
    follow: &mut Follow,
    console: &mut Console,
    last_good: &mut Option<Instant>,
) -> anyhow::Result<()> {
    let mut socket = Socket::open(api, &api.socket_url(&target.queue)).await?;
    socket.send(&follow.opening()).await?;
    let mut last_lines_by = None;
    while !follow.is_over() {
        if follow.has_ended() && last_lines_by.is_none() {
            last_lines_by = Some(Instant::now() + LAST_LINES_MAX);
        }
        let message = tokio::select! {
            message = socket.receive() => message?,
            () = until(last_lines_by) => {
                console.note("the last lines of the log did not come in time; `gridsocket job logs` has them when they do");
                break;
            }
        };
        *last_good = Some(Instant::now());
        follow.on(message)?.into_iter().try_for_each(|told| tell(told, wanted, console))?;
    }
    socket.close().await;
    Ok(())
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn tell(told: Told, wanted: Wanted<'_>, console: &mut Console) -> std::io::Result<()> {
    match told {
        Told::Line(LogKind::Build, line) if !wanted.build_is_output => console.build(&line)?,
        Told::Line(_, line) => console.output(&line)?,
        Told::Gap(_, lines) => console.note(&format!("({lines} earlier lines are not kept any more)")),
        Told::Now(view) if wanted.tell_states => {
            if let Some(text) = state_line(&view) {
                console.note(&text);
            }
        }
        Told::NoWorkers if wanted.tell_states => {
            console.note("no worker is connected to this queue; the job waits for one (`gridsocket run <queue>`)");
        }
        Told::Now(_) | Told::NoWorkers | Told::Absent => {}
    }
    Ok(())
}

/// A live state in words; how a job ended is said when its result is here.
fn state_line(view: &View) -> Option<String> {
    match &view.status {
        Status::Queued { front: false } => Some("queued".to_owned()),
        Status::Queued { front: true } => Some(format!("run {} was lost; queued again, at the front", view.run)),
        Status::Running {} => {
            let worker = view.worker.as_ref().map_or("a worker", |worker| worker.as_str());
            let again = if view.run > 1 { format!(", run {}", view.run) } else { String::new() };
            Some(format!("running on {}{again}", one_line(worker)))
        }
        Status::Finished { outcome: RunOutcome::Success | RunOutcome::Error | RunOutcome::TimedOut, .. }
        | Status::Cancelled { .. }
        | Status::Replaced { .. }
        | Status::Deleted {} => None,
    }
}
