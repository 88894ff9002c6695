//! Prints the fixture `tests/fixtures/fold.json`: records of every kind of event, with the hashes that this machine's own code gives them.
//!
//! ```text
//! cargo run -p client-wasm --example freeze_fold > client-wasm/tests/fixtures/fold.json
//! ```
//!
//! Records once written are read for ever, so after the first release the fixture only grows.

use protocol::definition::Needs;
use protocol::event::{Event, LostReason, RunOutcome, Via};
use protocol::id::{Digest, ImageId, JobId, Namespace, QueueKey, QueueName, UnixMillis, WorkerId};
use protocol::queue::QueueState;
use protocol::record::{RECORD_VERSION, Record};
use serde_json::json;

const QUEUE: &str = "a queue to freeze";
/// The snapshot is taken after this many records, in the middle of things.
const SNAPSHOT_AFTER: usize = 9;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let queue = QueueKey::of(&QUEUE.parse::<QueueName>()?);
    let mut state = QueueState::new(queue);
    let mut records = Vec::new();
    let mut snapshot = None;
    for (seq, event) in (1..).zip(events()?) {
        let record = Record { v: RECORD_VERSION, seq, at_ms: UnixMillis(1_700_000_000_000 + seq * 1_000), event };
        let bytes = record.encode();
        state.apply_bytes(&bytes)?;
        records.push(hex(&bytes));
        if records.len() == SNAPSHOT_AFTER {
            snapshot =
                Some(json!({ "seq": seq, "state": hex(&state.encode()), "state_hash": state.hash().to_string() }));
        }
    }
    let fixture = json!({
        "queue": QUEUE,
        "key": queue.to_string(),
        "records": records,
        "snapshot": snapshot,
        "seq": state.head().seq,
        "head": state.head().hash.to_string(),
        "state_hash": state.hash().to_string(),
    });
    println!("{fixture:#}");
    Ok(())
}

fn events() -> Result<Vec<Event>, Box<dyn std::error::Error>> {
    let [a, b, c, d, e] = [1, 2, 3, 4, 5].map(|n| JobId::from_bytes([n; 32]));
    let digest = |text: &str| Digest::of(text.as_bytes());
    let own = Namespace::default();
    let team: Namespace = "user/document".parse()?;
    let (first, second): (WorkerId, WorkerId) = ("4e9c1f7a-worker".parse()?, "zweiter Rechner".parse()?);
    let queued = |job, namespace: &Namespace, via, priority| Event::JobQueued {
        job,
        body: digest(&format!("definition of {job}")),
        namespace: namespace.clone(),
        via,
        needs: Needs::default(),
        priority,
        debug: priority < 0,
        runs_before: 0,
    };
    let finished = |job, run, outcome, exit_code| Event::RunFinished {
        job,
        run,
        outcome,
        result: digest(&format!("result of {job}")),
        exit_code,
        image: Some(ImageId::from_bytes([0x0f; 32])),
        duration_ms: Some(1_234),
    };
    Ok(vec![
        Event::WorkerJoined { worker: first.clone(), version: "0.1.0".to_owned() },
        queued(a, &own, Via::Http, 0),
        queued(b, &team, Via::Socket, 7),
        queued(c, &own, Via::Copy, -7),
        Event::RunClaimed { job: b, run: 1, worker: first.clone() },
        Event::NamespaceJoined { job: a, namespace: team.clone() },
        Event::JobReplaced { job: b, by: a },
        Event::RunClaimed { job: a, run: 1, worker: first.clone() },
        Event::RunLost { job: a, run: 1, why: LostReason::LeaseExpired },
        Event::JobRequeued { job: a },
        Event::WorkerJoined { worker: second.clone(), version: "0.1.0".to_owned() },
        Event::RunResumed { job: a, run: 1 },
        finished(a, 1, RunOutcome::Success, Some(0)),
        Event::NamespaceLeft { job: a, namespace: team },
        Event::RunClaimed { job: c, run: 1, worker: second.clone() },
        Event::RunLost { job: c, run: 1, why: LostReason::HandedBack },
        Event::JobRequeued { job: c },
        Event::JobCancelled { job: c, message: Some("nicht mehr nötig".to_owned()) },
        queued(d, &own, Via::Http, i32::MAX),
        Event::RunClaimed { job: d, run: 1, worker: second.clone() },
        finished(d, 1, RunOutcome::TimedOut, None),
        Event::JobRemoved { job: d },
        Event::JobRecalled {
            job: d,
            body: digest(&format!("definition of {d}")),
            namespace: own.clone(),
            queued_at_ms: UnixMillis(1_700_000_019_000),
            finished_at_ms: UnixMillis(1_700_000_021_000),
            run: 1,
            worker: Some(second.clone()),
            outcome: RunOutcome::TimedOut,
            result: digest(&format!("result of {d}")),
            exit_code: None,
        },
        queued(e, &own, Via::Socket, i32::MIN),
        Event::JobAbandoned { job: e, result: digest("lost three times") },
        Event::JobDeleted { job: b },
        Event::WorkerLeft { worker: second },
        Event::PresenceReset {},
        Event::Checkpoint { through_seq: 9, head: digest("a head"), state_hash: digest("a state") },
        Event::RunClaimed { job: JobId::from_bytes([9; 32]), run: 1, worker: first },
    ])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
