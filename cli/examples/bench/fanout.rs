//! Rows about a thousand watchers: what they cost at rest, how soon a change is with all of them, and what happens when all
//! come back at once.

use std::time::Duration;

use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::crowd::Crowd;
use crate::definitions::Fit;
use crate::http::{Latencies, ms};
use crate::process::{Meter, Served};
use crate::report::{Row, Target};
use crate::socket::fill;
use crate::{Bench, pages};

/// Targets: how soon all but one in a hundred have a change, and what it costs on the wire.
const DELIVERED_P99_MS: f64 = 100.0;
const BYTES_PER_CHANGE: f64 = 200.0;

const PER_SECOND: u32 = 100;

/// Changes that all miss before they come back.
const MISSED: u64 = 100;

pub(crate) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    LocalSet::new().run_until(crowd(bench)).await
}

async fn crowd(bench: &mut Bench) -> anyhow::Result<()> {
    let folder = bench.fresh_folder("fanout")?;
    let broker = Served::broker(&bench.binary, &folder).await?;
    let watchers: usize = bench.scale.pick(200, 1_000, 1_000);
    let jobs: u64 = bench.scale.pick(1_000, 10_000, 10_000);
    fill(broker.port, "fanout", "fill", jobs, Fit::Plain).await?;
    broker.quiet().await;
    let mut crowd = Crowd::new(broker.port, "fanout", watchers).await?;
    pages::measure(bench, &broker, &mut crowd, jobs).await?;
    changes(bench, &broker, &mut crowd, jobs).await?;
    storm(bench, &broker, &mut crowd).await
}

/// Changes at a steady rate, each timed from its submission to its arrival at every watcher.
async fn changes(bench: &mut Bench, broker: &Served, crowd: &mut Crowd, jobs: u64) -> anyhow::Result<()> {
    let watchers = crowd.board.seen.len();
    let count = u64::from(PER_SECOND) * bench.scale.pick(3, 10, 20);
    crowd.board.from.set(crowd.board.highest());
    crowd.board.reset_counts();
    let meter = Meter::start(broker);
    let (head, acknowledged) = crowd.change(count, PER_SECOND).await?;
    let usage = meter.read();
    crowd.all_at(head.seq).await?;
    crowd.check(head)?;
    let board = &crowd.board;
    let each = board.delays_us.take().into_iter().map(|us| Duration::from_micros(us.into())).collect();
    let (each, acknowledged) = (Latencies::new(each), Latencies::new(acknowledged));
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let [changes, sockets, event_bytes, bytes, messages] =
        [count, watchers as u64, board.event_bytes.get(), board.bytes.get(), board.event_messages.get()]
            .map(|count| count as f64);
    let what = |percent| {
        format!("{watchers} watchers, {jobs} jobs queued, {PER_SECOND} changes/s, submission to arrival, p{percent}")
    };
    let note = format!("the submitter's own answer: {}", acknowledged.text());
    bench.report.add(Row::new("fanout", what(50), ms(each.at(50)), "ms").usage(usage).note(note));
    let note = format!("max {:.1} ms; fresh snapshots because of lag: {}", ms(each.at(100)), board.snapshots.get());
    let row = Row::new("fanout", what(99), ms(each.at(99)), "ms").target(Target::AtMost(DELIVERED_P99_MS));
    bench.report.add(row.note(note));
    let row = Row::new("fanout", "bytes per change and watcher", event_bytes / changes / sockets, "bytes");
    let note = format!("{:.0} with everything else that came", bytes / changes / sockets);
    bench.report.add(row.target(Target::AtMost(BYTES_PER_CHANGE)).note(note));
    let row = Row::new(
        "fanout",
        "changes delivered, all watchers together",
        changes * sockets / (changes / f64::from(PER_SECOND)),
        "/s",
    );
    let note = format!("in {:.2} messages per change and watcher", messages / changes / sockets);
    bench.report.add(row.usage(usage).note(note));
    pages::resident_after(bench, broker, "after these changes")
}

/// All sockets break, changes go on, and all come back at once, each with the position that it had.
async fn storm(bench: &mut Bench, broker: &Served, crowd: &mut Crowd) -> anyhow::Result<()> {
    let watchers = crowd.board.seen.len();
    crowd.disconnect().await;
    let (head, _) = crowd.change(MISSED, 1_000).await?;
    broker.quiet().await;
    broker.forget_peak()?;
    crowd.board.from.set(u64::MAX);
    crowd.board.reset_counts();
    let meter = Meter::start(broker);
    let started = Instant::now();
    crowd.connect(watchers);
    crowd.all_at(head.seq).await?;
    let took = started.elapsed();
    let usage = meter.read();
    crowd.check(head)?;
    let what = format!("{watchers} watchers come back at once, {MISSED} changes missed, until all are current");
    let note = format!("{:.0} MiB resident at the most", broker.peak_mib()?);
    bench.report.add(Row::new("fanout", what, ms(took), "ms").usage(usage).note(note));
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
    let snapshots = crowd.board.snapshots.get() as f64;
    let row = Row::new("fanout", "snapshots sent to those that came back", snapshots, "snapshots");
    bench.report.add(row.target(Target::AtMost(0.0)));
    Ok(())
}
