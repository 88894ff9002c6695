//! `gridsocket job …`: submits jobs over REST and follows them over a native socket.
//!
//! Standard output carries what was asked for (an id, a job's output, JSON, a table) and nothing else; all words about it go
//! to standard error.

pub(crate) mod api;
mod bulk;
mod crowd;
mod define;
mod explain;
mod fold;
mod follow;
pub(crate) mod ls;
mod many;
mod outputs;
mod patience;
mod upload;
mod verdict;
mod wait;

use std::io::{IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use protocol::array::Template;
use protocol::canonical::job_id;
use protocol::id::{JobId, UnixMillis};
use protocol::json::{self, Value};
use protocol::native::{LogKind, LogLine};

use crate::args::job::{AddSettings, Await, Cancel, Command, Explain, Kind, Logs, Source, Spec, Target};
use crate::args::{Env, UsageError};
use crate::exit;
use crate::progress::{Console, print, say};

use api::{Api, Cancelled};
use bulk::Lines;
use follow::View;
use verdict::Verdict;
use wait::Wanted;

/// The largest definition that is read from standard input: several times what a broker takes, so that it is the broker
/// that says its limit.
const DEFINITION_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How often a result is asked for that must be there: a broker that is just coming back may not have it at once.
const RESULT_TRIES: u32 = 5;
/// The pause between.
const RESULT_PAUSE: std::time::Duration = std::time::Duration::from_millis(300);

/// Both logs of a job from their first lines on.
const WHOLE_LOGS: [(LogKind, u64); 2] = [(LogKind::Build, 0), (LogKind::Run, 0)];
/// A line number that no log reaches: an answer from there on has no lines and says where the log ends.
const BEYOND_EVERY_LOG: u64 = 1 << 52;

/// Runs a job command.
pub(crate) async fn command(command: &Command, env: Env<'_>) -> anyhow::Result<ExitCode> {
    match command {
        Command::Add(add) => run_add(&add.settings(env)?).await,
        Command::Await(options) => run_await(options, env).await,
        Command::Logs(options) => run_logs(options, env).await,
        Command::Result(one) => {
            let (target, job) = one.settings(env)?;
            run_result(&target, job).await
        }
        Command::Cancel(options) => run_cancel(options, env).await,
        Command::Explain(options) => run_explain(options, env).await,
        Command::Run(other) => Err(other.refusal("run", "write `gridsocket job add <queue> --wait …`").into()),
        Command::Outputs(other) => {
            Err(other.refusal("outputs", "write `gridsocket job await <queue> <job> --output-dir DIR`").into())
        }
        Command::Upload(other) => Err(other
            .refusal(
                "upload",
                "files are sent with the job that needs them: `gridsocket job add <queue> --file FILE …`",
            )
            .into()),
        Command::Status(other) => Err(other.refusal("status", "write `gridsocket job ls <queue>`").into()),
        Command::Url(other) => Err(other
            .refusal("url", "the page at the broker's address shows a queue's jobs once they are submitted")
            .into()),
        Command::Ls(ls) => {
            let target = ls.settings(env)?;
            let jobs = Api::new(&target.api)?.list(&target.queue).await?;
            if ls.json {
                ls::as_lines(&jobs).iter().try_for_each(|line| print(line))?;
            } else if jobs.is_empty() {
                say("no jobs");
            } else {
                print(&ls::as_table(&jobs))?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn run_add(settings: &AddSettings) -> anyhow::Result<ExitCode> {
    let api = Api::new(&settings.target.api)?;
    let (definition, text) = match &settings.source {
        Source::Lines(file) => {
            let lines = file.clone().map_or(Lines::Stdin, Lines::File);
            return many::run(&api, &settings.target, lines, settings.retry, settings.wait).await;
        }
        Source::Stdin => definition_from_stdin().await?,
        Source::Flags(spec) => {
            let inputs = upload::inputs(&api, &spec.files).await?;
            let definition = define::definition(&with_dockerfile(Spec::clone(spec))?, &inputs);
            let text = json::to_json(&definition);
            (definition, text)
        }
    };
    let namespace = settings.namespace.as_ref().map(|namespace| namespace.as_str());
    let with = define::With { namespace, debug: settings.debug, retry: settings.retry };
    if let Some(array) = &settings.array {
        // The broker would say the same of it, but this way nothing is sent and the flag is named.
        Template::new(array.clone(), definition.clone())
            .map_err(|error| UsageError::new("--array", error.to_string()))?;
        let line = define::template(array, &definition, with);
        return many::run(&api, &settings.target, Lines::Text(line), false, settings.wait).await;
    }
    let (id, definition) = (job_id(&definition), text);
    let body = define::submission(&id.to_string(), &definition, with);
    let logs = match settings.retry && settings.wait {
        true => after_the_failure(&api, &settings.target, id).await?,
        false => WHOLE_LOGS,
    };
    let accepted = api.submit(&settings.target.queue, body).await?;
    ensure!(
        accepted == id,
        "the broker calls the job {accepted}, but its definition is {id}: one of the two is out of date"
    );
    if !settings.wait {
        if settings.output_dir.is_some() {
            say("without --wait no result files are fetched; `gridsocket job await` does that later");
        }
        print(&id.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!("job {id}"));
    to_the_end(&api, &settings.target, id, logs, settings.output_dir.as_deref()).await
}

/// With the text of the Dockerfile that it names.
fn with_dockerfile(mut spec: Spec) -> anyhow::Result<Spec> {
    if let Some(build) = &mut spec.build
        && let Some(path) = build.dockerfile.take()
    {
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        build.fields.push(("dockerfile", text));
    }
    Ok(spec)
}

/// Where the logs of a job that has failed end: what it printed then is not what it prints when it runs again.
async fn after_the_failure(api: &Api, target: &Target, job: JobId) -> anyhow::Result<[(LogKind, u64); 2]> {
    match api.result(target, job).await? {
        Some(document) if Verdict::of_result(&document).code != 0 => {
            let (build, run) = tokio::try_join!(
                api.logs(target, job, "build", BEYOND_EVERY_LOG),
                api.logs(target, job, "run", BEYOND_EVERY_LOG)
            )?;
            Ok([(LogKind::Build, build.next), (LogKind::Run, run.next)])
        }
        Some(_) | None => Ok(WHOLE_LOGS),
    }
}

async fn run_await(options: &Await, env: Env<'_>) -> anyhow::Result<ExitCode> {
    let (target, job) = options.one.settings(env)?;
    to_the_end(&Api::new(&target.api)?, &target, job, WHOLE_LOGS, options.output_dir.as_deref()).await
}

/// Follows the job, says how it ended, fetches its files; Ctrl-C leaves it running.
async fn to_the_end(
    api: &Api,
    target: &Target,
    job: JobId,
    logs: [(LogKind, u64); 2],
    output_dir: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    let waiting = async {
        let wanted = Wanted { job, logs: &logs, build_is_output: false, tell_states: true };
        let view = wait::follow(api, target, wanted, &mut Console::new()).await?;
        let verdict = verdict(api, target, job, view.as_ref()).await?;
        say(&verdict.text);
        let stored = store(api, target, job, &verdict.outputs, output_dir).await;
        Ok(if stored { verdict.code } else { verdict.code.max(exit::FAILED) })
    };
    tokio::select! {
        code = waiting => code.map(ExitCode::from),
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            say(&format!(
                "\nthe job goes on without us; to go on watching it:  gridsocket job await {q} {job}{api}\n\
                 to cancel it:                              gridsocket job cancel {q} {job}{api}",
                q = shell_word(target.queue.as_str()),
                api = api_flag(target),
            ));
            Ok(ExitCode::from(exit::INTERRUPTED))
        }
    }
}

async fn verdict(api: &Api, target: &Target, job: JobId, view: Option<&View>) -> anyhow::Result<Verdict> {
    if let Some(verdict) = view.and_then(Verdict::of_view) {
        return Ok(verdict);
    }
    for _ in 0..RESULT_TRIES {
        if let Some(document) = api.result(target, job).await? {
            return Ok(Verdict::of_result(&document));
        }
        if view.is_none() {
            return Ok(Verdict::of_absence(api.knows(target, job).await?));
        }
        tokio::time::sleep(RESULT_PAUSE).await;
    }
    bail!("the job has ended, but the broker has no result of it");
}

/// Fetches result files when a folder is given, else names them; answers whether all that was asked for is there.
async fn store(api: &Api, target: &Target, job: JobId, names: &[String], output_dir: Option<&Path>) -> bool {
    match output_dir {
        Some(folder) => {
            let failures = outputs::fetch(api, target, job, names, folder).await;
            failures.iter().for_each(|failure| say(&format!("error: {failure}")));
            failures.is_empty()
        }
        None if names.is_empty() => true,
        None => {
            let names: Vec<_> = names.iter().map(|name| crate::progress::one_line(name)).collect();
            say(&format!("result files: {} (--output-dir DIR fetches them)", names.join(", ")));
            true
        }
    }
}

async fn run_logs(options: &Logs, env: Env<'_>) -> anyhow::Result<ExitCode> {
    let (target, job) = options.one.settings(env)?;
    let api = Api::new(&target.api)?;
    let kinds: &[LogKind] = match options.kind {
        Kind::Build => &[LogKind::Build],
        Kind::Run => &[LogKind::Run],
        Kind::Both => &[LogKind::Build, LogKind::Run],
    };
    if options.follow {
        let logs: Vec<_> = kinds.iter().map(|kind| (*kind, options.since)).collect();
        let wanted = Wanted { job, logs: &logs, build_is_output: true, tell_states: false };
        let mut console = Console::new();
        let followed = tokio::select! {
            view = wait::follow(&api, &target, wanted, &mut console) => view?,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                return Ok(ExitCode::from(exit::INTERRUPTED));
            }
        };
        if followed.is_some() {
            return Ok(ExitCode::SUCCESS);
        }
        // Not in the queue any more: what is stored of its log is all there is.
    }
    print_stored(&api, &target, job, kinds, options.since).await?;
    Ok(ExitCode::SUCCESS)
}

async fn print_stored(api: &Api, target: &Target, job: JobId, kinds: &[LogKind], since: u64) -> anyhow::Result<()> {
    let mut console = Console::new();
    let mut is_empty = true;
    for kind in kinds {
        let name = match kind {
            LogKind::Build => "build",
            LogKind::Run => "run",
        };
        let mut from = since;
        loop {
            let page = api.logs(target, job, name, from).await?;
            for (text, stderr) in page.lines {
                is_empty = false;
                console.output(&LogLine { text, at_ms: UnixMillis(0), stderr })?;
            }
            if page.next <= from {
                break;
            }
            from = page.next;
        }
    }
    if is_empty && !api.knows(target, job).await? {
        bail!("the queue has no job of that id");
    }
    Ok(())
}

async fn run_result(target: &Target, job: JobId) -> anyhow::Result<ExitCode> {
    let api = Api::new(&target.api)?;
    if let Some(document) = api.result(target, job).await? {
        print(&pretty(&document))?;
        return Ok(ExitCode::SUCCESS);
    }
    if api.knows(target, job).await? {
        bail!("the job has no result: it is not over yet, or it was cancelled, replaced or deleted");
    }
    bail!("the queue has no job of that id");
}

async fn run_cancel(options: &Cancel, env: Env<'_>) -> anyhow::Result<ExitCode> {
    let (target, job) = options.one.settings(env)?;
    let api = Api::new(&target.api)?;
    match api.cancel(&target, job, options.namespace.as_ref(), options.message.as_deref()).await? {
        Cancelled::Done => say("cancelled"),
        Cancelled::Nothing(why) if why.contains("not found") => bail!("the queue has no live job of that id"),
        Cancelled::Nothing(why) => say(&why),
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_explain(options: &Explain, env: Env<'_>) -> anyhow::Result<ExitCode> {
    let (target, job) = options.one.settings(env)?;
    let Some((explanation, text)) = Api::new(&target.api)?.explain(&target, job).await? else {
        bail!("the queue has no job of that id");
    };
    print(&if options.json { text } else { explain::for_people(&explanation) })?;
    Ok(ExitCode::SUCCESS)
}

/// Reads a whole definition; it goes on as it was written.
async fn definition_from_stdin() -> anyhow::Result<(Value, String)> {
    if std::io::stdin().is_terminal() {
        say("reading a definition in JSON from standard input; Ctrl-D ends it");
    }
    let read = tokio::task::spawn_blocking(|| {
        let mut text = Vec::new();
        std::io::stdin().lock().take(DEFINITION_BYTES_MAX + 1).read_to_end(&mut text).map(|_| text)
    });
    let text = read.await?.context("cannot read standard input")?;
    let refuse = |problem: String| UsageError::new("standard input", problem);
    if text.len() as u64 > DEFINITION_BYTES_MAX {
        return Err(refuse(format!("a definition has at most {DEFINITION_BYTES_MAX} bytes")).into());
    }
    let value = json::parse(&text).map_err(|error| refuse(format!("not a definition in JSON: {error}")))?;
    if value.as_object().is_none() {
        return Err(refuse(format!("a definition is a JSON object, this is a JSON {}", value.kind())).into());
    }
    Ok((value, String::from_utf8(text).context("JSON is UTF-8")?.trim().to_owned()))
}

/// Indented, or, where it holds what no other JSON library takes (lone surrogates), in one line.
fn pretty(document: &Value) -> String {
    let text = json::to_json(document);
    let parsed = serde_json::from_str::<serde_json::Value>(&text);
    parsed.and_then(|value| serde_json::to_string_pretty(&value)).unwrap_or(text)
}

/// The flag that leads to the same broker, unless it is the usual one.
fn api_flag(target: &Target) -> String {
    match target.api.as_str() {
        "http://localhost:8000" => String::new(),
        api => format!(" --api {}", shell_word(api)),
    }
}

fn shell_word(text: &str) -> String {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./:@%+=,".contains(&byte));
    if is_plain { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}
