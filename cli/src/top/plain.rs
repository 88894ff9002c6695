//! A worker as lines of text, for scripts and for terminals that can do no more. Pure.

use std::fmt::Write as _;

use worker::observe::{Outcome, Snapshot};

use super::text::{bytes, count, cpus, cut, printable, short, time, with_short_ids};
use super::view::{engine_words, memory_words, outcome_words, queue_words, standing_words};

/// How many ends and lines of the log are shown.
const LAST: usize = 10;

/// The whole of it, in lines of at most so many columns.
pub(super) fn text(snapshot: &Snapshot, columns: usize) -> String {
    let mut lines = Vec::new();
    let up = time(snapshot.at_ms.saturating_sub(snapshot.started_ms));
    lines.push(format!(
        "worker {} {} up {up}, {}",
        printable(&snapshot.worker),
        printable(&snapshot.version),
        standing_words(snapshot)
    ));
    lines.extend(snapshot.queues.iter().map(|queue| format!("queue {}", queue_words(queue, snapshot.at_ms))));
    lines.push(format!("engine {}", engine_words(&snapshot.engine)));
    let (offered, taken) = (snapshot.offered, snapshot.taken);
    lines.push(format!("CPUs {} of {}", cpus(taken.cpus_milli), cpus(offered.cpus_milli)));
    lines.extend(memory_words(snapshot).map(|words| format!("memory {words}")));
    for gpu in &snapshot.gpus {
        let holder = gpu.job.as_deref().map_or_else(|| "free".to_owned(), |job| format!("job {}", short(job)));
        lines.push(format!("GPU {}: {holder}", printable(&gpu.name)));
    }
    lines.extend(snapshot.disk.as_ref().map(|disk| {
        format!("disk {} free of {}, {}", bytes(disk.free_bytes), bytes(disk.total_bytes), printable(&disk.path))
    }));
    let ended =
        Outcome::ALL.map(|outcome| format!("{} {}", snapshot.counts.ended[outcome as usize], outcome_words(outcome)));
    lines.push(format!("ended {}", ended.join(", ")));
    lines.push(format!("unacknowledged {}", snapshot.unacknowledged));
    lines.push(format!("here {}", count(snapshot.runs.len(), "job")));
    for run in &snapshot.runs {
        lines.push(format!(
            "  {} run {} {} {} {} CPUs {} {}",
            short(&run.job),
            run.run,
            run.phase.word(),
            time(run.age_ms),
            cpus(run.cpus_milli.into()),
            printable(&run.image),
            printable(&run.command)
        ));
    }
    lines.push("last".to_owned());
    for result in snapshot.results.iter().take(LAST) {
        let code = result.exit_code.map_or_else(String::new, |code| format!(" exit code {code}"));
        let why = result.why.as_deref().map_or_else(String::new, |why| format!(" {}", printable(why)));
        let ago = time(snapshot.at_ms.saturating_sub(result.at_ms));
        lines.push(format!(
            "  {} run {} {}{code} after {}, {ago} ago{why}",
            short(&result.job),
            result.run,
            outcome_words(result.outcome),
            time(result.duration_ms)
        ));
    }
    lines.push("log".to_owned());
    let skipped = snapshot.lines.len().saturating_sub(LAST);
    for line in &snapshot.lines[skipped..] {
        let ago = time(snapshot.at_ms.saturating_sub(line.at_ms));
        lines.push(format!("  {ago} ago {} {}", printable(&line.level), printable(&with_short_ids(&line.text))));
    }
    lines.iter().fold(String::new(), |mut text, line| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", cut(line, columns));
        text
    })
}
