//! One run from its grant to the started container; `attend` takes it from there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::ContainerCreateBody;
use protocol::definition::{Definition, DefinitionError};
use protocol::native::{HeldRun, StopReason};
use protocol::raw::RawJson;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, timeout};

use super::attend::{Attended, ENGINE_RETURN, attend, note_problems};
use super::ended::Ended;
use super::image::Wanted;
use crate::adopt::write_start;
use crate::clock::unix_now;
use crate::container::{
    Frames, Plan, Seen, Standing, SurroundingsError, create_request, is_ambiguous, is_away, is_not_found, stop_asked,
};
use crate::context::Context;
use crate::files::RunDirs;
use crate::images::InUse;
use crate::logs::RunLog;
use crate::observe::Phase;
use crate::outcome::Ending;
use crate::state_machine::slots::Share;

/// A run that was granted.
pub(super) struct Assignment {
    pub(super) run: HeldRun,
    /// The definition as received.
    pub(super) text: RawJson,
    pub(super) definition: Result<Definition, DefinitionError>,
    pub(super) share: Share,
}

/// Runs it. `has_container` is set before there can be one.
pub(super) async fn execute(
    context: &Arc<Context>,
    assignment: Assignment,
    mut stop: Receiver<Option<StopReason>>,
    has_container: &AtomicBool,
) -> Ended {
    let Assignment { run, text, definition, share } = assignment;
    if let Some(why) = context.quarantine.refuses(context.key, run.job) {
        return Ended::finished(Ending::bad_input(why, unix_now()), None);
    }
    let checked = definition.map_err(|error| error.to_string()).and_then(|definition| check(run, definition));
    let definition = match checked {
        Ok(definition) => definition,
        Err(why) => return Ended::finished(Ending::bad_input(why, unix_now()), None),
    };
    let image = match Wanted::of(&definition) {
        Ok(image) => image,
        Err(why) => return Ended::finished(Ending::no_image(why, unix_now()), None),
    };
    let log = RunLog::new(run, Arc::clone(&context.outbox), 0);
    note_problems(&definition, &log).await;
    let mark = context.quarantine.mark(context.key, run);
    let dirs = context.files.dirs(run);
    let build_ms = if image.is_built() { context.config.builds.duration_ms_max } else { 0 };
    let limit = Duration::from_millis(context.config.prepare_ms_max.saturating_add(build_ms));
    let prepared = tokio::select! {
        biased;
        _ = stop_asked(&mut stop) => return Ended::stopped(None),
        prepared = timeout(limit, prepare(context, &definition, &image, &text, &dirs, &log)) => prepared,
    };
    let (_in_use, (cache, is_open)) = match prepared {
        Ok(Ok(prepared)) => prepared,
        Ok(Err(ending)) if ending.is_engine_away || !context.engine.answers().await => return Ended::engine_away(None),
        Ok(Err(ending)) => return Ended::finished(*ending, None),
        Err(_) => {
            let why = format!("inputs and image were not there after {} s", limit.as_secs());
            return Ended::finished(Ending::bad_input(why, unix_now()), None);
        }
    };
    context.show(run, Phase::Starting);
    let request = create_request(&plan(context, &definition, image.name(), run, &dirs, &share, &cache));
    let request = match request {
        Ok(request) => request,
        Err(error) => return Ended::finished(Ending::bad_input(error.to_string(), unix_now()), None),
    };
    // The engine is not interrupted from here to the start: a container nobody knows the id of would be left.
    has_container.store(true, Ordering::Relaxed);
    let container = match create(context, request, &image, &log).await {
        Ok(container) => container,
        Err(ending) if ending.is_engine_away => return Ended::engine_away(None),
        Err(ending) => return Ended::finished(*ending, None),
    };
    if !is_open && context.job_user.is_none_or(|(user, _)| user != 0) {
        open_cache(context, &container, &cache).await;
    }
    let refused =
        |what: &str, error: &Error| Ended::finished(Ending::engine(what, error, unix_now()), Some(container.clone()));
    let frames = match context.engine.attach(&container).await {
        Ok(frames) => frames,
        Err(error) if is_away(&error) => return Ended::engine_away(Some(container)),
        Err(error) => return refused("cannot attach to the container", &error),
    };
    if stop.borrow().is_some() {
        return Ended::stopped(Some(container));
    }
    // What it was made from, asked for while it starts.
    let image_id = {
        let (engine, container) = (context.engine.clone(), container.clone());
        tokio::spawn(async move { engine.inspect(&container).await.ok()?.image })
    };
    let frames = match start(context, &container).await {
        Ok(()) => frames,
        // Perhaps it was started, and the answer was lost: what began once must not be begun by somebody else.
        Err(error) if is_away(&error) => match context.engine.after_return(&container, ENGINE_RETURN).await {
            Ok(Some(Standing::Running | Standing::Exited(_))) => context.engine.logs(&container),
            Ok(Some(Standing::Created) | None) => return Ended::engine_away(Some(container)),
            Err(_) => return refused("cannot start the container", &error),
        },
        Err(error) => return refused("cannot start the container", &error),
    };
    let started = Instant::now();
    write_start(&dirs.root);
    context.show(run, Phase::Running);
    let definition = Some(definition);
    let attended = Attended { run, container, dirs, log, definition, started, duration_ms: None, mark };
    run_attended(context, attended, frames, stop, image_id).await
}

async fn run_attended(
    context: &Context,
    attended: Attended,
    frames: Frames,
    stop: Receiver<Option<StopReason>>,
    image_id: tokio::task::JoinHandle<Option<String>>,
) -> Ended {
    let image = async { image_id.await.ok().flatten() };
    attend(context, attended, frames, Seen::default(), stop, image).await
}

/// Refuses what cannot or must not be run.
fn check(run: HeldRun, definition: Definition) -> Result<Definition, String> {
    // Handing it back would bring it here again, for ever.
    if definition.job_id() != run.job {
        return Err("the definition is not the one that the job's id stands for".to_owned());
    }
    definition.check_names().map_err(|error| error.to_string())?;
    let is_fatal = |field: &str| {
        ["inputs", "configFiles"].iter().any(|files| field.starts_with(files))
            || matches!(field, "command" | "entrypoint" | "image" | "build")
    };
    match definition.problems.iter().find(|problem| is_fatal(&problem.field)) {
        Some(problem) => Err(problem.to_string()),
        None => Ok(definition),
    }
}

/// Inputs, image and surroundings, side by side.
async fn prepare(
    context: &Context,
    definition: &Definition,
    image: &Wanted<'_>,
    text: &RawJson,
    dirs: &RunDirs,
    log: &RunLog,
) -> Result<(InUse, (String, bool)), Box<Ending>> {
    let inputs = async {
        let made = context.files.materialise(definition, text, dirs).await;
        made.map_err(|error| Box::new(Ending::bad_input(error.to_string(), unix_now())))
    };
    let surroundings = async {
        let there = context.surroundings.ensure(&context.engine, &context.cache).await;
        there.map_err(|error| {
            Box::new(match error {
                SurroundingsError::Engine(error) => {
                    Ending::engine("cannot make the network or the cache volume for jobs", &error, unix_now())
                }
                SurroundingsError::Egress(why) => Ending::bad_input(
                    format!("the worker cannot keep jobs to the internet any more: {why}"),
                    unix_now(),
                ),
                other @ SurroundingsError::Network(_) => Ending::bad_input(other.to_string(), unix_now()),
            })
        })
    };
    let image_and_surroundings = async {
        if image.is_built() {
            // A build's steps are on the jobs' network.
            let surroundings = surroundings.await?;
            Ok((image.ensure(context, log).await?, surroundings))
        } else {
            tokio::try_join!(image.ensure(context, log), surroundings)
        }
    };
    tokio::try_join!(inputs, image_and_surroundings).map(|(_, ready)| ready)
}

/// A new volume is root's; the job's user is to write to it too.
async fn open_cache(context: &Context, container: &str, cache: &str) {
    match context.engine.open_folder(container, "job-cache/").await {
        Ok(()) => context.surroundings.opened(cache).await,
        Err(error) => tracing::warn!("cannot open the job cache for the job's user: {error}"),
    }
}

fn plan<'a>(
    context: &'a Context,
    definition: &'a Definition,
    image: &'a str,
    run: HeldRun,
    dirs: &'a RunDirs,
    share: &'a Share,
    cache: &'a str,
) -> Plan<'a> {
    let gives_gpus = !context.gpus.offered().is_empty();
    Plan {
        definition,
        image,
        run,
        worker: &context.worker,
        queue: &context.queue,
        api: &context.config.api,
        data: &context.data,
        dirs,
        share,
        limits: &context.config.limits,
        isolation: &context.config.isolation,
        hides_gpus: gives_gpus || context.engine.facts().runtimes.iter().any(|name| name.starts_with("nvidia")),
        network: context.surroundings.network(),
        cache,
        user: context.job_user,
        host_cpus: context.engine.facts().cpus,
    }
}

/// Creates the container; when something is missing that was there before, sees to it and tries once more.
async fn create(
    context: &Context,
    request: ContainerCreateBody,
    image: &Wanted<'_>,
    log: &RunLog,
) -> Result<String, Box<Ending>> {
    let refused = |error: &Error| Box::new(Ending::engine("cannot create the container", error, unix_now()));
    match context.engine.create(request.clone()).await {
        Err(error) if is_not_found(&error) => {}
        created => return created.map_err(|error| refused(&error)),
    }
    let _in_use = image.ensure_again(context, log).await?;
    context.engine.create(request).await.map_err(|error| refused(&error))
}

/// Starts the container; when its network was removed by somebody, or made a second time, sees to that and tries once more.
async fn start(context: &Context, container: &str) -> Result<(), Error> {
    match context.engine.start(container).await {
        Err(error) if is_not_found(&error) || is_ambiguous(&error) => {
            context.surroundings.doubt().await;
            context.surroundings.ensure_network(&context.engine).await.map_err(|error| match error {
                SurroundingsError::Engine(error) => error,
                SurroundingsError::Egress(why) => Error::IOError { err: std::io::Error::other(why) },
                other @ SurroundingsError::Network(_) => Error::IOError { err: std::io::Error::other(other) },
            })?;
            context.engine.start(container).await
        }
        started => started,
    }
}
