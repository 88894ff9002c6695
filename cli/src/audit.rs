//! `gridsocket audit …`: reads an event log, from disk beside a broker or over a running broker's socket, and proves it.
//!
//! Standard output carries what was asked for; damage and words about it go to standard error, and make the exit code 1.

mod describe;
mod remote;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use broker::audit::{At, AuditError, AuditRow, SalvageReport, VerifyReport};
use protocol::id::{QueueKey, QueueName, UnixMillis};
use protocol::record::{RECORD_VERSION, Record};

use crate::args::Env;
use crate::args::audit::{Command, From, Log, Moment, Salvage, State, Wanted};
use crate::exit;
use crate::job::api::Api;
use crate::job::ls::table;
use crate::progress::{print, say};

/// Where a journal may lie below the folder that was given: a broker's own folder, or that of local mode around it.
const JOURNALS: [&str; 4] = ["journal", "broker/journal", "local/broker/journal", ""];
/// How many digits of a queue's key the log's tables and lines show.
const SHORT_KEY_DIGITS: usize = 8;

/// Runs an audit command.
pub(crate) async fn command(command: &Command, env: Env<'_>) -> anyhow::Result<ExitCode> {
    let is_good = match command {
        Command::Log(log) => run_log(log, env).await?,
        Command::Verify(source) => match source.settings(env)? {
            Wanted { from: From::Data(data), queue } => verify(&data, queue.as_ref())?,
            Wanted { from: From::Api(api), queue: Some(queue) } => verify_remote(&api, &queue).await?,
            Wanted { from: From::Api(_), queue: None } => bail!("name the queue"),
        },
        Command::State(state) => run_state(state, env).await.map(|()| true)?,
        Command::Salvage(options) => salvage(options).map(|()| true)?,
    };
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILED) })
}

/// Prints records; answers whether all of them could be.
async fn run_log(log: &Log, env: Env<'_>) -> anyhow::Result<bool> {
    let mut show = Show { is_json: log.json, has_begun: false };
    match log.source.settings(env)? {
        Wanted { from: From::Data(data), queue } => {
            let journal = journal(&data)?;
            let key = queue.as_ref().map(|queue| key(&journal, queue)).transpose()?;
            let mut is_good = true;
            for row in broker::audit::log(&journal, key)? {
                match row {
                    Ok(AuditRow { queue, seq, at_ms, event, hash, segment: _, offset: _ }) => {
                        show.record(queue, &Record { v: RECORD_VERSION, seq, at_ms, event }, &hash)?;
                    }
                    Err(damage) => {
                        is_good = false;
                        say(&format!("damaged: {damage}"));
                    }
                }
            }
            if !show.has_begun && is_good {
                say("no records");
            }
            Ok(is_good)
        }
        Wanted { from: From::Api(api), queue: Some(queue) } => {
            let api = Api::new(&api)?;
            let key = QueueKey::of(&queue);
            remote::replay(&api, &queue, Moment::Now, &mut |record, hash| show.record(key, record, &hash)).await?;
            Ok(true)
        }
        Wanted { from: From::Api(_), queue: None } => bail!("name the queue"),
    }
}

/// How records are printed: as they come.
struct Show {
    is_json: bool,
    has_begun: bool,
}

impl Show {
    fn record(&mut self, queue: QueueKey, record: &Record, hash: &protocol::id::Digest) -> anyhow::Result<()> {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        if self.is_json {
            print(&describe::line(queue, record, hash)?)?;
        } else {
            if is_first {
                print(&describe::header())?;
            }
            print(&describe::row(queue, record))?;
        }
        Ok(())
    }
}

/// Proves the log on disk; answers whether it is what was written.
fn verify(data: &Path, queue: Option<&QueueName>) -> anyhow::Result<bool> {
    let journal = journal(data)?;
    let key = queue.map(|queue| key(&journal, queue)).transpose()?;
    let report = broker::audit::verify(&journal, key)?;
    print(&verified(&report))?;
    if let Some(bad) = &report.first_bad {
        say(&format!("first bad record: {}, byte {}: {}", bad.file.display(), bad.offset, bad.what));
    }
    Ok(report.is_good())
}

fn verified(report: &VerifyReport) -> String {
    let mut lines = Vec::new();
    if !report.queues.is_empty() {
        let mut table = table(&["QUEUE", "RECORDS", "BODIES", "PROVEN TO", "CHAIN HASH", ""]);
        for queue in &report.queues {
            let verdict = queue.first_bad.as_ref().map_or("good", |_| "BAD");
            table.add_row([
                queue.queue.to_string(),
                queue.records.to_string(),
                queue.bodies.to_string(),
                queue.head.seq.to_string(),
                queue.head.hash.to_string(),
                verdict.to_owned(),
            ]);
        }
        lines.push(table.trim_fmt());
    }
    let verdict = if report.is_good() { "good" } else { "BAD" };
    let (queues, segments) = (report.queues.len(), report.segments);
    lines.push(format!("{verdict}; records proven: {}, queues: {queues}, segments: {segments}", report.records));
    let expired: u64 = report.queues.iter().map(|queue| queue.expired).sum();
    if expired > 0 {
        lines.push(format!("body expired: {expired} (of jobs that left their queue longer ago than jobs are kept)"));
    }
    if report.unfinished_bytes > 0 {
        lines.push(format!(
            "the last {} bytes are a write that is going on, or one that was never acknowledged",
            report.unfinished_bytes
        ));
    }
    lines.join("\n")
}

async fn verify_remote(api: &str, queue: &QueueName) -> anyhow::Result<bool> {
    let state = remote::replay(&Api::new(api)?, queue, Moment::Now, &mut |_, _| Ok(())).await?;
    print(&format!("good; records proven: {}, chain hash {}", state.head().seq, state.head().hash))?;
    say("definitions and results are checked only with --data");
    Ok(true)
}

async fn run_state(options: &State, env: Env<'_>) -> anyhow::Result<()> {
    let moment = options.moment()?;
    let Wanted { from, queue } = options.source.settings(env)?;
    let queue = queue.ok_or_else(|| crate::args::UsageError::new("queue", "a state is that of one queue: name it"))?;
    let state = match from {
        From::Data(data) => {
            let journal = journal(&data)?;
            let at = match moment {
                Moment::Now => At::Time(UnixMillis(u64::MAX)),
                Moment::Seq(seq) => At::Seq(seq),
                Moment::Time(time) => At::Time(time),
            };
            broker::audit::state_at(&journal, key(&journal, &queue)?, at)?
        }
        From::Api(api) => {
            let api = Api::new(&api)?;
            match moment {
                Moment::Now => remote::state_now(&api, &queue).await?,
                Moment::Seq(_) | Moment::Time(_) => remote::replay(&api, &queue, moment, &mut |_, _| Ok(())).await?,
            }
        }
    };
    print(&describe::state(&state)?)?;
    Ok(())
}

fn salvage(options: &Salvage) -> anyhow::Result<()> {
    let journal = journal(&options.data)?;
    let queue = options.queue()?.map(|queue| key(&journal, &queue)).transpose()?;
    let report = match &options.export {
        None => broker::audit::salvage(&journal, queue, None)?,
        Some(path) => {
            let file = std::fs::File::create_new(path).with_context(|| format!("cannot create {}", path.display()))?;
            let mut export = std::io::BufWriter::new(file);
            let report = broker::audit::salvage(&journal, queue, Some(&mut export))?;
            std::io::Write::flush(&mut export).with_context(|| format!("cannot write {}", path.display()))?;
            report
        }
    };
    print(&salvaged(&report))?;
    Ok(())
}

fn salvaged(report: &SalvageReport) -> String {
    let mut lines = Vec::new();
    for queue in &report.queues {
        let stretches: Vec<_> = queue.stretches.iter().map(|(first, last)| format!("{first}–{last}")).collect();
        let stretches = stretches.join(", ");
        lines.push(format!(
            "queue {}: {} records ({stretches}), {} bodies; the chain proves records up to {}",
            queue.queue, queue.records, queue.bodies, queue.proven_through
        ));
        lines.extend(queue.gaps().iter().map(|(first, last)| format!("  missing: {first}–{last}")));
    }
    lines.extend(
        report
            .losses
            .iter()
            .map(|loss| format!("damaged: segment {}, byte {}: {}", loss.segment, loss.offset, loss.what)),
    );
    if report.losses.is_empty() {
        lines.push("nothing is damaged".to_owned());
    }
    lines.join("\n")
}

/// Finds the journal in the folder that was given.
fn journal(data: &Path) -> anyhow::Result<PathBuf> {
    for below in JOURNALS {
        let dir = if below.is_empty() { data.to_owned() } else { data.join(below) };
        match broker::audit::log(&dir, None) {
            Ok(_) => return Ok(dir),
            Err(AuditError::NoJournal { .. }) => {}
            Err(other) => return Err(other.into()),
        }
    }
    bail!("{} holds no event log; give the folder that a broker has as its --data", data.display());
}

/// The key of a queue that was given by name, by key, or by the first digits of its key as logs show them.
fn key(journal: &Path, queue: &QueueName) -> anyhow::Result<QueueKey> {
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let by_name = QueueKey::of(queue);
    let text = queue.as_str();
    if let Ok(key) = text.parse::<QueueKey>()
        && broker::audit::log(journal, Some(key))?.next().is_some()
    {
        return Ok(key);
    }
    if text.len() == SHORT_KEY_DIGITS && is_hex(text) && broker::audit::log(journal, Some(by_name))?.next().is_none() {
        let found = broker::audit::log(journal, None)?.filter_map(Result::ok).find(|row| row.queue.short() == text);
        return Ok(found.map_or(by_name, |row| row.queue));
    }
    Ok(by_name)
}
