//! What a worker depends on, in words. Pure.

use ratatui::text::{Line, Span};
use worker::observe::{EngineView, Outcome, QueueView, Snapshot, Standing};

use super::super::text::{bytes, count, printable, time};
use super::Theme;

/// Less than one part in so many of a disk is alarming.
const DISK_LOW: u64 = 20;

/// Whether it takes jobs.
pub(in super::super) fn standing_words(snapshot: &Snapshot) -> String {
    match (snapshot.standing, &snapshot.obstacle) {
        (Standing::Working, None) => "working".to_owned(),
        (Standing::Working, Some(why)) => format!("takes no new jobs: {}", printable(why)),
        (Standing::Draining, _) => "waiting for its jobs, takes no new ones".to_owned(),
        (Standing::Stopping, _) => "stopping".to_owned(),
    }
}

/// A queue and its line.
pub(in super::super) fn queue_words(queue: &QueueView, at_ms: u64) -> String {
    let lost = match queue.losses {
        0 => String::new(),
        losses => format!(", lost {}", count(usize::try_from(losses).unwrap_or(usize::MAX), "time")),
    };
    let line = match queue.connected_since_ms {
        Some(since) => format!("connected {}{lost}", time(at_ms.saturating_sub(since))),
        None => format!("NOT CONNECTED{lost}"),
    };
    let dialect = if queue.dialect.is_empty() { String::new() } else { format!(", {}", printable(&queue.dialect)) };
    format!("{} ({}) {line}{dialect}", printable(&queue.name), printable(&queue.key))
}

/// The engine.
pub(in super::super) fn engine_words(engine: &EngineView) -> String {
    let version = engine.version.as_deref().map_or_else(String::new, |version| format!("{} ", printable(version)));
    let address = printable(&engine.address);
    match (&engine.why, engine.is_reachable) {
        (None, true) => format!("{version}at {address}"),
        (why, _) => {
            let why = why.as_deref().map_or_else(String::new, |why| format!(": {}", printable(why)));
            format!("{version}at {address} DOES NOT ANSWER{why}")
        }
    }
}

/// How much memory is taken; nothing where it is not counted.
pub(in super::super) fn memory_words(snapshot: &Snapshot) -> Option<String> {
    let (offered, taken) = (snapshot.offered.memory_bytes?, snapshot.taken.memory_bytes?);
    Some(format!("{} of {}", bytes(taken), bytes(offered)))
}

/// How a run ended, for people.
pub(in super::super) const fn outcome_words(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Success => "success",
        Outcome::Failed => "failed",
        Outcome::Error => "error",
        Outcome::TimedOut => "timed out",
        Outcome::Stopped => "stopped",
        Outcome::HandedBack => "handed back",
    }
}

/// What is kept on this machine: results, disk.
pub(super) fn keeping(snapshot: &Snapshot, theme: Theme, columns: usize) -> Line<'static> {
    let ended: u64 = snapshot.counts.ended.iter().sum();
    let succeeded = snapshot.counts.ended[Outcome::Success as usize];
    let mut spans = vec![Span::raw(format!("ended   {ended}, {succeeded} well"))];
    if snapshot.unacknowledged > 0 {
        spans.push(Span::styled(format!(", {} not confirmed", snapshot.unacknowledged), theme.doubtful()));
    }
    if let Some(disk) = &snapshot.disk {
        let text = format!("  disk {} of {} free", bytes(disk.free_bytes), bytes(disk.total_bytes));
        let is_low = disk.free_bytes < disk.total_bytes / DISK_LOW;
        spans.push(if is_low { Span::styled(text, theme.bad()) } else { Span::raw(text) });
    }
    super::line(spans, columns)
}
