//! Records in words, and as JSON: pure.

use protocol::event::{Event, LostReason, RunOutcome};
use protocol::id::{Digest, JobId, QueueKey};
use protocol::queue::QueueState;
use protocol::record::Record;
use serde::Serialize;

use crate::job::ls::utc;
use crate::progress::one_line;

/// As many digits of an id as tell jobs apart in a table; `--json` has all.
const SHORT_DIGITS: usize = 12;

/// The header over [`row`]s.
pub(crate) fn header() -> String {
    columns("QUEUE", "SEQ", "TIME (UTC)", "EVENT", "JOB", "")
}

/// A record as a row. Rows are written one by one, so a log of any length takes no memory.
pub(crate) fn row(queue: QueueKey, record: &Record) -> String {
    let job = record.event.job().map_or_else(String::new, short);
    let (time, event, detail) = (utc(record.at_ms.0), record.event.name(), detail(&record.event));
    columns(&queue.short(), &record.seq.to_string(), &time, event, &job, &one_line(&detail))
}

fn columns(queue: &str, seq: &str, time: &str, event: &str, job: &str, detail: &str) -> String {
    format!("{queue:8} {seq:>9}  {time:19}  {event:15}  {job:12}  {detail}").trim_end().to_owned()
}

/// A record as a line of JSON, with the chain hash that vouches for it and all before it.
pub(crate) fn line(queue: QueueKey, record: &Record, hash: &Digest) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Line<'a> {
        queue: QueueKey,
        hash: &'a Digest,
        record: &'a Record,
    }
    serde_json::to_string(&Line { queue, hash, record })
}

/// A state as a line of JSON: its hash, where the chain stands, and the state with all its maps in key order.
pub(crate) fn state(state: &QueueState) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Line<'a> {
        hash: Digest,
        head: protocol::id::Head,
        state: &'a QueueState,
    }
    serde_json::to_string(&Line { hash: state.hash(), head: state.head(), state })
}

fn short(job: JobId) -> String {
    job.to_string()[..SHORT_DIGITS].to_owned()
}

fn detail(event: &Event) -> String {
    match event {
        Event::JobQueued { namespace, via, priority, .. } => {
            let priority = if *priority == 0 { String::new() } else { format!(", priority {priority}") };
            format!("namespace {namespace}, over {}{priority}", format!("{via:?}").to_lowercase())
        }
        Event::JobRecalled { namespace, outcome, .. } => {
            format!("namespace {namespace}, answered from before: {}", words(*outcome))
        }
        Event::NamespaceJoined { namespace, .. } | Event::NamespaceLeft { namespace, .. } => {
            format!("namespace {namespace}")
        }
        Event::RunClaimed { run, worker, .. } => format!("run {run} by {worker}"),
        Event::RunFinished { run, outcome, exit_code, duration_ms, .. } => {
            let code = exit_code.map_or_else(String::new, |code| format!(", exit code {code}"));
            let took = duration_ms.map_or_else(String::new, |ms| format!(", {ms} ms"));
            format!("run {run}: {}{code}{took}", words(*outcome))
        }
        Event::RunLost { run, why, .. } => {
            let why = match why {
                LostReason::LeaseExpired => "its worker was silent too long",
                LostReason::HandedBack => "its worker handed it back",
                LostReason::Forgotten => "its worker came back without it",
            };
            format!("run {run}: {why}")
        }
        Event::RunResumed { run, .. } => format!("run {run}"),
        Event::JobCancelled { message: Some(message), .. } => message.clone(),
        Event::JobReplaced { by, .. } => format!("by {}", short(*by)),
        Event::WorkerJoined { worker, version } => format!("{worker}, version {version}"),
        Event::WorkerLeft { worker } => worker.to_string(),
        Event::Checkpoint { through_seq, .. } => format!("through {through_seq}"),
        Event::JobCancelled { message: None, .. }
        | Event::JobRequeued { .. }
        | Event::JobAbandoned { .. }
        | Event::JobDeleted { .. }
        | Event::JobRemoved { .. }
        | Event::PresenceReset {} => String::new(),
    }
}

const fn words(outcome: RunOutcome) -> &'static str {
    match outcome {
        RunOutcome::Success => "success",
        RunOutcome::Error => "error",
        RunOutcome::TimedOut => "timed out",
    }
}

#[cfg(test)]
mod tests {
    use protocol::id::UnixMillis;
    use protocol::record::RECORD_VERSION;

    use super::*;

    fn queue() -> QueueKey {
        QueueKey::of(&"q".parse().unwrap())
    }

    fn record(event: Event) -> Record {
        Record { v: RECORD_VERSION, seq: 1, at_ms: UnixMillis(1_793_793_600_000), event }
    }

    #[test]
    fn a_row_says_who_did_what_when() {
        let job = JobId::from_bytes([0xab; 32]);
        let record = record(Event::RunClaimed { job, run: 2, worker: "w1".parse().unwrap() });
        let expected =
            format!("{}         1  2026-11-04 12:00:00  RunClaimed       abababababab  run 2 by w1", queue().short());
        assert_eq!(row(queue(), &record), expected);
    }

    #[test]
    fn what_a_worker_calls_itself_cannot_move_the_cursor() {
        let record =
            record(Event::JobCancelled { job: JobId::from_bytes([1; 32]), message: Some("a\x1b[2J\nb".into()) });
        assert!(!row(queue(), &record).contains(['\x1b', '\n']));
    }

    #[test]
    fn a_line_holds_the_whole_record_and_its_hash() {
        let record = record(Event::PresenceReset {});
        let hash = Digest::of(b"x");
        let parsed: serde_json::Value = serde_json::from_str(&line(queue(), &record, &hash).unwrap()).unwrap();
        assert_eq!(parsed["hash"], hash.to_string());
        let read: Record = serde_json::from_value(parsed["record"].clone()).unwrap();
        assert_eq!(read, record);
    }

    #[test]
    fn a_state_is_told_with_its_hash() {
        let empty = QueueState::new(QueueKey::of(&"q".parse().unwrap()));
        let parsed: serde_json::Value = serde_json::from_str(&state(&empty).unwrap()).unwrap();
        assert_eq!(parsed["hash"], empty.hash().to_string());
        assert_eq!(serde_json::from_value::<QueueState>(parsed["state"].clone()).unwrap(), empty);
    }
}
