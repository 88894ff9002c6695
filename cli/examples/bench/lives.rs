//! Rows about lives: pipelined submits, whole lives, and the time from submission to grant.

use std::time::Duration;

use crate::Bench;
use crate::definitions::Fit;
use crate::http::ms;
use crate::life::{self, Plan};
use crate::process::{Meter, Served};
use crate::report::{Row, Target};
use crate::socket::fill;

/// The target of pipelined submits over one socket.
const SUBMITS_PER_SECOND: f64 = 30_000.0;

/// The target of whole lives.
const LIVES_PER_SECOND: f64 = 5_000.0;

/// Jobs per second while dispatch is measured.
const DISPATCH_PER_SECOND: u32 = 1_000;

/// The target of dispatch beside one fdatasync, in milliseconds: at the median, and for all but one in a hundred.
const DISPATCH_P50_MS: f64 = 1.0;
const DISPATCH_P99_MS: f64 = 15.0;

/// Records of one life, all of which reach the disk: queued, claimed, finished.
const RECORDS_PER_LIFE: f64 = 3.0;

/// Durable submits over one native socket, pipelined.
pub(crate) async fn submit_over_socket(bench: &mut Bench) -> anyhow::Result<()> {
    let folder = bench.fresh_folder("socket")?;
    let broker = Served::broker(&bench.binary, &folder).await?;
    let count: u32 = bench.scale.pick(20_000, 80_000, 90_000);
    let meter = Meter::start(&broker);
    let took = fill(broker.port, "socket", "pipelined", count.into(), Fit::Plain).await?;
    let per_second = f64::from(count) / took.as_secs_f64();
    let floor = bench.floors.echo.min(bench.floors.append_1024);
    let row = Row::new("socket", format!("one native socket, pipelined, {count} jobs"), per_second, "submits/s");
    let row = row.target(Target::AtLeast(SUBMITS_PER_SECOND)).floor("websocket echo or grouped fdatasync", floor);
    bench.report.add(row.usage(meter.read()));
    Ok(())
}

/// Whole no-op lives with nothing else queued, with jobs that fit nowhere, and with a line of jobs before them.
pub(crate) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let folder = bench.fresh_folder("life")?;
    let broker = Served::broker(&bench.binary, &folder).await?;
    let usual = [(0, Fit::Plain), (10_000, Fit::Plain), (10_000, Fit::Never), (90_000, Fit::Never)];
    let cases = if bench.scale == crate::Scale::Quick { &usual[..3] } else { &usual[..] };
    for &(length, fit) in cases {
        let before = match (length, fit) {
            (0, _) => "nothing else queued".to_owned(),
            (_, Fit::Plain) => format!("behind {length} jobs in line"),
            (_, Fit::Never) => format!("past {length} jobs that no worker fits"),
        };
        let queue = format!("life-{}", before.replace(' ', "-"));
        fill(broker.port, &queue, "fill", length, fit).await?;
        broker.quiet().await;
        let plan = Plan {
            port: broker.port,
            queue,
            series: "life",
            workers: 4,
            slots: 64,
            in_life_max: 1_024,
            time: bench.scale.point(),
            lives_max: u64::MAX,
        };
        let meter = Meter::start(&broker);
        let per_second = life::run(&plan).await?;
        let floor = bench.floors.append_64 / RECORDS_PER_LIFE;
        let row = Row::new("life", format!("submit, claim, finish; {before}"), per_second, "jobs/s");
        let row = row.target(Target::AtLeast(LIVES_PER_SECOND)).floor("three records in fdatasyncs of 64", floor);
        bench.report.add(row.usage(meter.read()));
        broker.quiet().await;
    }
    Ok(())
}

/// Submission to grant at a steady rate.
pub(crate) async fn dispatch(bench: &mut Bench) -> anyhow::Result<()> {
    let folder = bench.fresh_folder("dispatch")?;
    let broker = Served::broker(&bench.binary, &folder).await?;
    let lengths: &[u64] = bench.scale.pick(&[0, 10_000], &[0, 10_000, 90_000], &[0, 10_000, 90_000]);
    for &length in lengths {
        let queue = format!("dispatch-{length}");
        fill(broker.port, &queue, "fill", length, Fit::Never).await?;
        broker.quiet().await;
        let meter = Meter::start(&broker);
        let time = Duration::from_secs(bench.scale.pick(2, 6, 10));
        let each = life::dispatch(broker.port, &queue, DISPATCH_PER_SECOND, time).await?;
        let usage = meter.read();
        let sync_ms = ms(bench.floors.sync_p50);
        let what =
            |percent| format!("submit to grant at {DISPATCH_PER_SECOND} jobs/s, {length} others queued, p{percent}");
        let row =
            Row::new("dispatch", what(50), ms(each.at(50)), "ms").target(Target::AtMost(sync_ms + DISPATCH_P50_MS));
        bench.report.add(row.floor("one fdatasync", sync_ms).usage(usage));
        let row = Row::new("dispatch", what(99), ms(each.at(99)), "ms").target(Target::AtMost(DISPATCH_P99_MS));
        bench.report.add(row.floor("one fdatasync", sync_ms).note(format!("max {:.1} ms", ms(each.at(100)))));
        broker.quiet().await;
    }
    Ok(())
}
