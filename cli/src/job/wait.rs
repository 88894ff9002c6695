//! Following a job over sockets that may break: reconnects with a bounded backoff, and tells people what there is to tell.

use std::time::Duration;

use protocol::event::RunOutcome;
use protocol::id::JobId;
use protocol::native::LogKind;
use protocol::queue::Status;
use tokio::time::{Instant, sleep_until};

use super::api::Api;
use super::follow::{Follow, Told, View};
use super::patience::{Again, Patience};
use crate::args::job::Target;
use crate::progress::{Console, one_line};
use crate::socket::Socket;

/// How long the last lines of a job that has ended may take.
const LAST_LINES_MAX: Duration = Duration::from_secs(10);

/// What is wanted of a job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// The job.
    pub(crate) job: JobId,
    /// Which logs, and from which line on.
    pub(crate) logs: &'a [(LogKind, u64)],
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
    let mut follow = Follow::new(wanted.job, wanted.logs);
    let mut patience = Patience::new();
    loop {
        let error = match conversation(api, target, wanted, &mut follow, console, &mut patience).await {
            Ok(()) => return Ok(follow.view().cloned()),
            Err(error) => error,
        };
        if patience.after(error, |text| console.note(text)).await? == Again::Afresh {
            follow.start_afresh();
        }
    }
}

async fn conversation(
    api: &Api,
    target: &Target,
    wanted: Wanted<'_>,
    follow: &mut Follow,
    console: &mut Console,
    patience: &mut Patience,
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
        patience.renew();
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
