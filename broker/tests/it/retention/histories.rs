//! Random histories: whatever happened, and whenever it was swept, what is known of a job can be read.

use std::collections::BTreeMap;

use protocol::event::RunOutcome;
use protocol::id::{JobId, QueueKey, UnixMillis};
use serde_json::{Value, json};

use super::{DAY_MS, LARGE, broker, definition, is_stored, moment, restart_without_store, sha256, sweep_after};
use crate::journal::model::Dice;
use crate::support::{TestBroker, until};

const QUEUES: [&str; 2] = ["one", "two"];

/// What a client knows.
#[derive(Default)]
struct Known {
    /// What was submitted where, and when last.
    jobs: BTreeMap<(usize, JobId), Submitted>,
    /// The moment of the last sweep: what left before is forgotten.
    swept: UnixMillis,
}

struct Submitted {
    definition: Value,
    at: UnixMillis,
}

fn blob(number: u64) -> Vec<u8> {
    format!("blob {number}").into_bytes()
}

async fn upload_unless_there(broker: &TestBroker, number: u64) -> String {
    let key = sha256(&blob(number));
    if broker.get(&format!("/f/{key}/exists")).await.status() == 404 {
        super::upload(broker, &blob(number)).await;
    }
    key
}

/// One of a few definitions, so that they come again; some are large, all name a blob.
async fn submit(broker: &TestBroker, dice: &mut Dice, known: &mut Known) {
    let (queue, number, retry) = (dice.roll(2) as usize, dice.roll(8), dice.roll(2) == 0);
    let key = upload_unless_there(broker, number).await;
    let filling = if number.is_multiple_of(3) { "x".repeat(LARGE) } else { String::new() };
    let definition = json!({
        "image": "a", "command": format!("echo {number} {filling}"), "inputs": { "x": { "type": "key", "value": key } },
    });
    let at = moment().await;
    let body = json!({ "definition": definition, "control": { "retry": retry } }).to_string();
    let (status, answer) = broker.post(&format!("/q/{}", QUEUES[queue]), body).await;
    assert_eq!(status, 200, "{answer}");
    let job = answer["jobId"].as_str().unwrap().parse().unwrap();
    known.jobs.insert((queue, job), Submitted { definition, at });
}

/// Runs the next job that waits, if any does.
async fn run(broker: &TestBroker, dice: &mut Dice) {
    let queue = QUEUES[dice.roll(2) as usize];
    let handle = broker.handle.engine().queue(&queue.parse().unwrap());
    if handle.counts().await.unwrap().waiting == 0 {
        return;
    }
    let mut worker = broker.worker(queue, "worker-1", 1).await;
    let (run, _) = worker.claim().await;
    let key = upload_unless_there(broker, 100 + dice.roll(4)).await;
    let outputs = json!({ "y": { "type": "url", "value": format!("http://grid.example/f/{key}") } });
    let filling = if dice.roll(3) == 0 { "x".repeat(LARGE) } else { String::new() };
    let outcome = if dice.roll(3) == 0 { RunOutcome::Error } else { RunOutcome::Success };
    worker.end(run, outcome, json!({ "StatusCode": 0, "outputs": outputs, "error": filling })).await.unwrap();
}

async fn withdraw(broker: &TestBroker, dice: &mut Dice, known: &Known) {
    let count = known.jobs.len().max(1) as u64;
    let Some(((queue, job), _)) = known.jobs.iter().nth(dice.roll(count) as usize) else { return };
    let handle = broker.handle.engine().queue(&QUEUES[*queue].parse().unwrap());
    let scope = broker::engine::CancelScope::All;
    if dice.roll(2) == 0 {
        handle.cancel(*job, scope, None).await.unwrap();
    } else {
        handle.delete(*job, scope).await.unwrap();
    }
}

/// Everything that is known can be read, and what was submitted since the last sweep is known.
async fn check(broker: &TestBroker, known: &Known) {
    for ((queue, job), submitted) in &known.jobs {
        let queue = QUEUES[*queue];
        let found = broker.handle.engine().queue(&queue.parse().unwrap()).job(*job).await.unwrap();
        if submitted.at >= known.swept {
            assert!(found.is_some(), "a job that was submitted since is not known");
        }
        let everywhere = broker.handle.engine().unscoped(*job).await.unwrap();
        assert_eq!(everywhere.contains(&QueueKey::of(&queue.parse().unwrap())), found.is_some(), "{found:?}");
        let Some(found) = found else { continue };
        assert_eq!(definition(broker, queue, *job).await, submitted.definition);
        let key = submitted.definition["inputs"]["x"]["value"].as_str().unwrap();
        assert!(is_stored(broker, key).await, "an input of {found:?}");
        if let protocol::queue::Status::Finished { .. } = found.job.status {
            let finished = super::result(broker, queue, *job).await;
            let address = finished["finished"]["result"]["outputs"]["y"]["value"].as_str();
            let key = address.unwrap_or_else(|| panic!("no result of {found:?}")).rsplit('/').next().unwrap();
            assert!(is_stored(broker, key).await, "an output of {found:?}");
        }
    }
}

async fn history(seed: u64) {
    let mut dice = Dice(seed);
    let (mut broker, mut known) = (broker().await, Known::default());
    let mut moments = vec![moment().await];
    for _ in 0..40 {
        match dice.roll(10) {
            0..=3 => submit(&broker, &mut dice, &mut known).await,
            4..=6 => run(&broker, &mut dice).await,
            7 => withdraw(&broker, &mut dice, &known).await,
            8 => moments.push(moment().await),
            _ => {
                // A broker notes what was used since its start; without notes more goes.
                broker = match dice.roll(3) {
                    0 => broker,
                    1 => broker.restart().await,
                    _ => restart_without_store(broker).await,
                };
                let at = moments[dice.roll(moments.len() as u64) as usize];
                known.swept = known.swept.max(at);
                // Files of large bodies go a day later.
                sweep_after(&broker, at).await;
                let journal_only = broker.handle.retention();
                journal_only.sweep_blobs(at.plus(super::KEPT_MS + DAY_MS)).await.unwrap();
                check(&broker, &known).await;
            }
        }
    }
    let last = moment().await;
    until("all jobs that ended to leave", || async {
        let mut shown = 0;
        for queue in QUEUES {
            let jobs = broker.handle.engine().queue(&queue.parse().unwrap()).jobs().await.unwrap();
            shown += jobs.iter().filter(|(_, job)| !job.is_live()).count();
        }
        shown == 0
    })
    .await;
    broker = broker.restart().await;
    known.swept = moment().await.max(last);
    sweep_after(&broker, known.swept.plus(2 * DAY_MS)).await;
    known.swept = known.swept.plus(2 * DAY_MS);
    check(&broker, &known).await;
    let broker = restart_without_store(broker).await;
    sweep_after(&broker, known.swept).await;
    check(&broker, &known).await;
    let report = broker::audit::verify(&broker.path().join("journal"), None).unwrap();
    assert!(report.is_good(), "seed {seed}: {:?}", report.first_bad);
}

#[tokio::test]
async fn after_any_sweep_what_is_known_of_a_job_can_be_read() {
    for seed in 0..6 {
        eprintln!("seed {seed}");
        history(seed).await;
    }
}
