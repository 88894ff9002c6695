//! A container that runs, to its end: its output, its time, its outputs. The same for one just started and for one adopted.

use std::sync::Arc;
use std::time::Duration;

use bollard::models::ContainerInspectResponse;
use protocol::definition::Definition;
use protocol::native::{HeldRun, StopReason};
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::ended::Ended;
use crate::adopt::{self, Adopted};
use crate::clock::{parse_rfc3339, unix_now};
use crate::container::{
    Deadline, DiskLimit, EgressError, Frames, Seen, Standing, pump, read_seen, standing, stop_asked, watch,
};
use crate::context::Context;
use crate::files::{Collected, RunDirs};
use crate::logs::RunLog;
use crate::observe::Phase;
use crate::outcome::{Ending, Outputs, exit_code_lines, in_units, out_of_memory_words};
use crate::quarantine::{Mark, STEADY};
use crate::state_machine::run::{End, Happened, Running, Signal, Then};

/// How long an engine that went away is waited for: an upgrade of it takes less.
pub(super) const ENGINE_RETURN: Duration = Duration::from_secs(60);
/// How long the rest of the output may take after the container ended. It is in the engine's buffers by then; a broker that
/// takes nothing is found out sooner.
const OUTPUT_REST: Duration = Duration::from_secs(60);

/// A container that runs or has run.
pub(super) struct Attended {
    pub(super) run: HeldRun,
    pub(super) container: String,
    pub(super) dirs: RunDirs,
    pub(super) log: RunLog,
    /// `None` when it was lost; then the worker's own limits count.
    pub(super) definition: Option<Definition>,
    pub(super) started: Instant,
    /// How long it ran, when it had ended before anybody looked.
    pub(super) duration_ms: Option<u64>,
    /// Says on disk that the run is in a phase in which it could crash the worker.
    pub(super) mark: Mark,
}

/// How long what a stopped job has left may be collected: it was not asked whether it is whole, and its place is wanted.
const PARTIAL_OUTPUTS: Duration = Duration::from_secs(120);

type Pumping = AbortOnDropHandle<(Seen, Result<(), bollard::errors::Error>)>;

/// Goes on with a container of an earlier process.
pub(super) async fn adopted(context: &Arc<Context>, adopted: Adopted, stop: Receiver<Option<StopReason>>) -> Ended {
    let Adopted { run, container, definition, .. } = adopted;
    let found = match context.engine.inspect(&container).await {
        Ok(found) => found,
        Err(error) => {
            let ending = Ending::engine("cannot look at the container after a restart", &error, unix_now());
            return Ended::finished(ending, Some(container));
        }
    };
    if let Err(why) = keep_in(context, &found).await {
        // Nothing of it goes on while it is told of.
        let _ = context.engine.signal(&container, Signal::Kill).await;
        let why = format!("the worker cannot keep the job to the internet any more: {why}");
        return Ended::finished(Ending::bad_input(why, unix_now()), Some(container));
    }
    let state = found.state.as_ref();
    let time = |text: Option<&String>| text.and_then(|text| parse_rfc3339(text));
    let started_at = time(state.and_then(|state| state.started_at.as_ref())).unwrap_or_else(unix_now);
    let duration_ms = matches!(standing(&found), Standing::Exited(_))
        .then(|| time(state.and_then(|state| state.finished_at.as_ref())).map(|at| at.since(started_at)))
        .flatten();
    let now = Instant::now();
    let dirs = context.files.dirs(run);
    let ran_ms = adopt::ran_ms(&dirs.root).unwrap_or_else(|| unix_now().since(started_at));
    let started = now.checked_sub(Duration::from_millis(ran_ms)).unwrap_or(now);
    let seen = read_seen(&dirs.root);
    let log = RunLog::new(run, Arc::clone(&context.outbox), seen.lines);
    let definition = definition.and_then(|text| Definition::parse(text.as_str().as_bytes()).ok());
    if let Some(definition) = &definition
        && seen == Seen::default()
    {
        note_problems(definition, &log).await;
    }
    let frames = context.engine.logs(&container);
    let image = std::future::ready(found.image);
    let mark = context.quarantine.mark(context.key, run);
    let attended = Attended { run, container, dirs, log, definition, started, duration_ms, mark };
    attend(context, attended, frames, seen, stop, image).await
}

/// What kept it from networks that it must not reach may have gone meanwhile.
async fn keep_in(context: &Context, found: &ContainerInspectResponse) -> Result<(), EgressError> {
    if standing(found) != Standing::Running {
        return Ok(());
    }
    let networks = found.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
    let networks: Vec<String> = networks.into_iter().flat_map(|networks| networks.keys().cloned()).collect();
    context.surroundings.adopt(&context.engine, &networks).await
}

/// Follows the container to its end and says how it was. The first `seen` bytes of its output were sent before.
pub(super) async fn attend(
    context: &Context,
    attended: Attended,
    frames: Frames,
    seen: Seen,
    mut stop: Receiver<Option<StopReason>>,
    image: impl Future<Output = Option<String>>,
) -> Ended {
    let container = attended.container.clone();
    let end = match follow(context, &attended, frames, seen, &mut stop).await {
        Ok(end) => end,
        Err(ending) => return Ended::finished(*ending, Some(container)),
    };
    let duration_ms = attended.duration_ms.unwrap_or_else(|| millis(attended.started.elapsed()));
    let ending = match end {
        End::Stopped(_) => return Ended::stopped(Some(container)),
        End::TimedOut(_) => {
            attended
                .log
                .note(format!("the job was stopped at its time limit, after {} s", duration_ms / 1000), unix_now())
                .await;
            attended.log.note("ask for more with maxDuration, up to what the worker allows", unix_now()).await;
            tokio::select! {
                biased;
                _ = stop_asked(&mut stop) => return Ended::stopped(Some(container)),
                outputs = partial_outputs(context, &attended) => {
                    Ending::timed_out(duration_ms, attended.log.take_result()).with_outputs(outputs)
                }
            }
        }
        End::OverDisk(_) => {
            let limit = context.config.limits.disk_bytes.unwrap_or_default();
            let why = format!(
                "the job was stopped because it took more than {} of disk: outputs, log and changes to its image's files",
                in_units(limit)
            );
            attended.log.note(why.clone(), unix_now()).await;
            tokio::select! {
                biased;
                _ = stop_asked(&mut stop) => return Ended::stopped(Some(container)),
                outputs = partial_outputs(context, &attended) => {
                    Ending::over_limit(duration_ms, attended.log.take_result(), why).with_outputs(outputs)
                }
            }
        }
        End::Exited(code) => {
            tokio::select! {
                biased;
                _ = stop_asked(&mut stop) => return Ended::stopped(Some(container)),
                ending = exited(context, &attended, code, duration_ms) => ending,
            }
        }
    };
    Ended::finished(ending.with_image(image.await), Some(container))
}

/// Waits for the end; takes up the wait again when the engine went away and came back.
async fn follow(
    context: &Context,
    attended: &Attended,
    frames: Frames,
    seen: Seen,
    stop: &mut Receiver<Option<StopReason>>,
) -> Result<End, Box<Ending>> {
    let limit_ms = context.config.max_job_duration_ms;
    let limit_ms = attended.definition.as_ref().map_or(limit_ms, |definition| definition.time_limit_ms(limit_ms));
    let mut deadline = Deadline(attended.started.checked_add(Duration::from_millis(limit_ms)));
    let mut running = Running::Free;
    let disk = context.config.limits.disk_bytes.map(|bytes| DiskLimit::new(bytes, &attended.dirs));
    let mut pumping = start_pump(attended, frames, seen, true);
    let container = attended.container.as_str();
    let lost = |what: &str, error: &bollard::errors::Error| Box::new(Ending::engine(what, error, unix_now()));
    loop {
        let watched = watch(&context.engine, container, &mut running, &mut deadline, disk.clone(), stop);
        let away = match beside(steady(&attended.mark), watched).await {
            Ok(end) => {
                finish_pump(context, attended, pumping).await;
                return Ok(end);
            }
            Err(error) => error,
        };
        tracing::warn!(job.id = %attended.run.job, "the container engine went away during run {} of job {}: {away}", attended.run.run, attended.run.job);
        context.board.engine_failed();
        let seen = join_pump(pumping).await.map_or(Seen::default(), |(seen, _)| seen);
        match context.engine.after_return(container, ENGINE_RETURN).await {
            Ok(Some(Standing::Running)) => {
                pumping = start_pump(attended, context.engine.logs(container), seen, false);
            }
            Ok(Some(Standing::Exited(code))) => {
                finish_pump(context, attended, start_pump(attended, context.engine.logs(container), seen, false)).await;
                attended.log.note("the container engine was restarted while the job ran", unix_now()).await;
                if let Then::End(end) = running.on(Happened::Exited(code)) {
                    return Ok(end);
                }
                return Err(lost("the container engine went away during the run", &away));
            }
            Ok(Some(Standing::Created) | None) => return Err(lost("the container engine lost the container", &away)),
            Err(now) => return Err(lost("the container engine went away during the run", &now)),
        }
    }
}

/// After a while beside its container, a run is not what crashes the worker.
async fn steady(mark: &Mark) {
    tokio::time::sleep(STEADY).await;
    mark.unset();
}

/// Does one thing beside another, until that is done.
async fn beside<T>(this: impl Future<Output = ()>, that: impl Future<Output = T>) -> T {
    let mut that = std::pin::pin!(that);
    tokio::select! {
        biased;
        done = &mut that => return done,
        () = this => {}
    }
    that.await
}

fn start_pump(attended: &Attended, frames: Frames, seen: Seen, keep_skipped: bool) -> Pumping {
    let directory = attended.dirs.root.clone();
    AbortOnDropHandle::new(tokio::spawn(pump(frames, attended.log.clone(), seen, keep_skipped, directory)))
}

async fn join_pump(pumping: Pumping) -> Option<(Seen, Result<(), bollard::errors::Error>)> {
    timeout(OUTPUT_REST, pumping).await.ok()?.ok()
}

/// Waits for the last of the output; reads it again from the engine's copy if the stream broke.
async fn finish_pump(context: &Context, attended: &Attended, pumping: Pumping) {
    let again = match join_pump(pumping).await {
        Some((_, Ok(()))) => return,
        Some((seen, Err(_))) => {
            let frames = context.engine.logs(&attended.container);
            join_pump(start_pump(attended, frames, seen, false)).await
        }
        None => None,
    };
    if !matches!(again, Some((_, Ok(())))) {
        attended.log.note("the container engine did not give all of the output", unix_now()).await;
    }
}

/// The container ended by itself: collects what it left.
async fn exited(context: &Context, attended: &Attended, code: i64, duration_ms: u64) -> Ending {
    context.show(attended.run, Phase::Outputs);
    attended.mark.set();
    let has_memory_limit = context.config.limits.memory_bytes.is_some()
        || attended.definition.as_ref().is_none_or(|definition| definition.requirements.memory.is_some());
    // A limit can be hit inside and the exit code still be 0.
    let out_of_memory =
        if code != 0 || has_memory_limit { memory_hit(context, &attended.container).await } else { None };
    if code != 0 {
        for line in exit_code_lines(code, &attended.container, duration_ms, out_of_memory) {
            attended.log.note(line, unix_now()).await;
        }
    } else if out_of_memory.is_some() {
        attended.log.note("a process in the container was killed for want of memory", unix_now()).await;
    }
    match context.files.collect(&attended.dirs.outputs, None).await {
        Ok(collected) => {
            note_outputs(&attended.log, &collected).await;
            if let Some(why) = collected.failure() {
                let ending = Ending::outputs_failed(code, duration_ms, attended.log.take_result(), why);
                return ending.with_outputs(collected.outputs);
            }
            let ending = Ending::success(code, duration_ms, attended.log.take_result(), collected.outputs);
            match out_of_memory {
                Some(limit) if code != 0 => ending.with_error(out_of_memory_words(limit)),
                Some(_) | None => ending,
            }
        }
        Err(error) => {
            attended.log.note(error.to_string(), unix_now()).await;
            Ending::outputs_failed(code, duration_ms, attended.log.take_result(), error.to_string())
        }
    }
}

/// What a job that was stopped has left, as far as it can be had: it is stopped all the same.
async fn partial_outputs(context: &Context, attended: &Attended) -> Outputs {
    match context.files.collect(&attended.dirs.outputs, Some(PARTIAL_OUTPUTS)).await {
        Ok(collected) => {
            note_outputs(&attended.log, &collected).await;
            collected.outputs
        }
        Err(error) => {
            attended.log.note(error.to_string(), unix_now()).await;
            Outputs::new()
        }
    }
}

async fn note_outputs(log: &RunLog, collected: &Collected) {
    for line in collected.skipped.iter().chain(&collected.failed) {
        log.note(line.clone(), unix_now()).await;
    }
}

/// The memory that it was allowed, if something in it was killed for want of more; 0: all that the machine had.
async fn memory_hit(context: &Context, container: &str) -> Option<u64> {
    let found = context.engine.inspect(container).await.ok()?;
    let limit = found.host_config.and_then(|host| host.memory).and_then(|bytes| u64::try_from(bytes).ok());
    found.state.and_then(|state| state.oom_killed).unwrap_or(false).then(|| limit.unwrap_or(0))
}

/// Tells what of the definition was not understood and does not count.
pub(super) async fn note_problems(definition: &Definition, log: &RunLog) {
    for problem in &definition.problems {
        log.note(format!("{problem}; it is left out"), unix_now()).await;
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
