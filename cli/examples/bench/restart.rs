//! Starts: of an idle broker, of one with a long log, and the fold alone.

use std::path::Path;
use std::time::Duration;

use protocol::definition::Needs;
use protocol::event::{Event, RunOutcome, Via};
use protocol::id::{Digest, JobId, Namespace, QueueKey, UnixMillis};
use protocol::queue::QueueState;
use protocol::record::{RECORD_VERSION, Record, chain};
use tokio::time::{Instant, sleep};

use crate::Bench;
use crate::floors::ask;
use crate::http::{Latencies, ms};
use crate::life::{self, Plan};
use crate::process::Served;
use crate::report::{Row, Target, number};

/// Targets of design: an idle broker, and starts.
const IDLE_MIB: f64 = 30.0;
const READY_MS: f64 = 200.0;
const FIRST_ANSWER_MS_PER_MILLION: f64 = 2_000.0;
const REPLAY_PER_SECOND: f64 = 700_000.0;

/// Starts of an idle broker, for the median.
const STARTS: usize = 7;

/// Events of one life.
const EVENTS_PER_LIFE: u64 = 3;

/// Memory and time to ready of a broker that has nothing.
pub(crate) async fn idle(bench: &mut Bench) -> anyhow::Result<()> {
    let mut each = Vec::new();
    for start in 0..STARTS {
        let folder = bench.fresh_folder("idle")?;
        let broker = Served::broker(&bench.binary, &folder).await?;
        each.push(broker.ready);
        if start + 1 == STARTS {
            sleep(Duration::from_secs(1)).await;
            let row = Row::new("idle", "resident memory, empty store", broker.resident_mib()?, "MiB");
            bench.report.add(row.target(Target::AtMost(IDLE_MIB)));
        }
        broker.kill()?;
    }
    let each = Latencies::new(each);
    let row =
        Row::new("idle", format!("exec to first answer, empty folder, median of {STARTS}"), ms(each.at(50)), "ms");
    bench.report.add(row.target(Target::AtMost(READY_MS)).note(format!("slowest {:.0} ms", ms(each.at(100)))));
    Ok(())
}

/// A broker that was killed with a long log, to its first answer about the queue.
pub(crate) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let events: u64 = bench.scale.pick(30_000, 1_000_000, 1_000_000);
    let folder = bench.fresh_folder("restart")?;
    let broker = Served::broker(&bench.binary, &folder).await?;
    let plan = Plan {
        port: broker.port,
        queue: "restart".to_owned(),
        series: "restart",
        workers: 4,
        slots: 64,
        in_life_max: 1_024,
        time: Duration::from_secs(bench.scale.pick(15, 120, 400)),
        lives_max: events / EVENTS_PER_LIFE,
    };
    life::run(&plan).await?;
    broker.quiet().await;
    let resident = broker.resident_mib()?;
    broker.kill()?;
    let started = Instant::now();
    let broker = Served::broker(&bench.binary, &folder).await?;
    let (_, length) = ask(broker.port, "/q/restart/metrics").await?;
    let took = ms(started.elapsed());
    #[expect(clippy::cast_precision_loss, reason = "a million")]
    let target = FIRST_ANSWER_MS_PER_MILLION * (events as f64 / 1e6).max(0.5);
    let row =
        Row::new("restart", format!("after kill -9, {events} events, to the first answer about the queue"), took, "ms");
    let note = format!(
        "listening after {:.0} ms; answer {length} bytes; {resident:.0} MiB resident before the kill, {:.0} after",
        ms(broker.ready),
        broker.resident_mib()?
    );
    bench.report.add(row.target(Target::AtMost(target)).note(note));
    broker.quiet().await;
    broker.kill()?;
    verify(bench, &folder.join("journal"))
}

/// What an auditor does: every frame, link and body of the segments, read from the disk.
fn verify(bench: &mut Bench, journal: &Path) -> anyhow::Result<()> {
    let started = Instant::now();
    let found = broker::audit::verify(journal, None)?;
    let seconds = started.elapsed().as_secs_f64();
    if let Some(bad) = found.first_bad {
        anyhow::bail!("the journal does not verify: {bad:?}");
    }
    let bodies: u64 = found.queues.iter().map(|queue| queue.bodies).sum();
    #[expect(clippy::cast_precision_loss, reason = "a million")]
    let per_second = found.records as f64 / seconds;
    let row =
        Row::new("restart", format!("audit verify of that log, {} events", found.records), per_second, "events/s");
    let note = format!("with {bodies} bodies, {} MB of segments, after kill -9", found.position / 1_000_000);
    bench.report.add(row.target(Target::AtLeast(REPLAY_PER_SECOND)).note(note));
    Ok(())
}

/// The fold that live, recovery, audit and page share, in memory, with every link of the chain made again.
pub(crate) fn replay(bench: &mut Bench) -> anyhow::Result<()> {
    let lives: u32 = bench.scale.pick(30_000, 150_000, 300_000);
    let queue = QueueKey::of(&"replay".parse()?);
    let records = records(lives);
    let count = records.len();
    let bytes: usize = records.iter().map(Vec::len).sum();
    let started = Instant::now();
    let mut state = QueueState::new(queue);
    for record in &records {
        state.apply_bytes(record)?;
    }
    let took = started.elapsed().as_secs_f64();
    let hashing = Instant::now();
    let head = records.iter().fold(queue.genesis(), |head, bytes| chain(&head, bytes));
    let hashing = hashing.elapsed().as_secs_f64();
    anyhow::ensure!(head == state.head().hash, "the fold's chain is not the records'");
    #[expect(clippy::cast_precision_loss, reason = "a million")]
    let (per_second, floor) = (count as f64 / took, count as f64 / hashing);
    let row = Row::new(
        "replay",
        format!("fold of {count} events with the chain verified, in memory"),
        per_second,
        "events/s",
    );
    let note = format!("{} bytes per event; hashing alone {} events/s", bytes / count.max(1), number(floor));
    bench
        .report
        .add(row.target(Target::AtLeast(REPLAY_PER_SECOND)).floor("blake3 of the chain alone", floor).note(note));
    Ok(())
}

/// The records of `lives` lives, 256 at a time, each ended and removed.
fn records(lives: u32) -> Vec<Vec<u8>> {
    let worker = |number: u32| format!("00000000-0000-4000-8000-{:012}", number % 4).parse();
    let job = |number: u32| JobId::from_bytes(*Digest::of(&number.to_be_bytes()).as_bytes());
    let body = |number: u32| Digest::of(&(u64::from(number) << 8).to_be_bytes());
    let mut records = Vec::new();
    let mut put = |event: Event| {
        let seq = records.len() as u64 + 1;
        let record = Record { v: RECORD_VERSION, seq, at_ms: UnixMillis(1_700_000_000_000 + seq / 10), event };
        records.push(record.encode());
    };
    for first in (0..lives).step_by(256) {
        let these = first..(first + 256).min(lives);
        for number in these.clone() {
            put(Event::JobQueued {
                job: job(number),
                body: body(number),
                namespace: Namespace::default(),
                via: Via::Http,
                needs: Needs::default(),
                priority: 0,
                debug: false,
                runs_before: 0,
            });
        }
        for number in these.clone() {
            if let Ok(worker) = worker(number) {
                put(Event::RunClaimed { job: job(number), run: 1, worker });
            }
        }
        for number in these.clone() {
            put(Event::RunFinished {
                job: job(number),
                run: 1,
                outcome: RunOutcome::Success,
                result: body(!number),
                exit_code: Some(0),
                image: None,
                duration_ms: Some(1),
            });
        }
        these.for_each(|number| put(Event::JobRemoved { job: job(number) }));
    }
    records
}
