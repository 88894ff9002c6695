//! Rows about what watchers cost the broker in memory.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Bench;
use crate::crowd::Crowd;
use crate::process::{Meter, Served};
use crate::report::{Row, Target};

/// The target for a thousand pages on a queue of 10,000 jobs. Megabytes, so a little less in the MiB that are printed.
const RESIDENT_MIB: f64 = 100e6 / 1024.0 / 1024.0;

/// How many pages open at the same time: each waits for its snapshot before the next one opens.
const OPENING: usize = 32;

/// Memory has settled when it did not fall for this long, and is taken as it is after [`SETTLED_MAX`]: the allocator gives pages back over
/// ten seconds.
const SETTLED_FOR: Duration = Duration::from_secs(4);
const SETTLED_MAX: Duration = Duration::from_secs(14);

/// Less than this, in MiB, is no fall.
const FALL_MIB: f64 = 0.5;

/// Opens all watchers and says what they take.
pub(crate) async fn measure(bench: &mut Bench, broker: &Served, crowd: &mut Crowd, jobs: u64) -> anyhow::Result<()> {
    let watchers = crowd.board.seen.len();
    let before = broker.resident_mib()?;
    broker.forget_peak()?;
    let meter = Meter::start(broker);
    let started = Instant::now();
    crowd.connect(OPENING);
    crowd.all_at(1).await?;
    let (took, usage) = (started.elapsed(), meter.read());
    let peak = broker.peak_mib()?;
    let resident = settled(broker).await?;
    let what = format!("{watchers} connected watchers on a queue of {jobs} jobs, resident");
    let note = format!(
        "{before:.0} MiB with the queue alone, {peak:.0} at the most while the snapshots went out; snapshot {} bytes",
        crowd.board.snapshot_bytes.get()
    );
    bench.report.add(Row::new("fanout", what, resident, "MiB").target(Target::AtMost(RESIDENT_MIB)).note(note));
    let what = format!("until all {watchers} had their snapshot, {OPENING} opening at a time");
    bench.report.add(Row::new("fanout", what, took.as_secs_f64(), "s").usage(usage));
    Ok(())
}

/// Another look at the memory.
pub(crate) fn resident_after(bench: &mut Bench, broker: &Served, when: &str) -> anyhow::Result<()> {
    let row = Row::new("fanout", format!("resident {when}"), broker.resident_mib()?, "MiB");
    bench.report.add(row.target(Target::AtMost(RESIDENT_MIB)).note(format!("{:.0} at the most", broker.peak_mib()?)));
    Ok(())
}

/// Resident memory once it does not fall any more.
async fn settled(broker: &Served) -> anyhow::Result<f64> {
    let (mut least, mut since, started) = (f64::MAX, Instant::now(), Instant::now());
    loop {
        let now = broker.resident_mib()?;
        if now < least - FALL_MIB {
            (least, since) = (now, Instant::now());
        }
        if since.elapsed() >= SETTLED_FOR || started.elapsed() >= SETTLED_MAX {
            return Ok(now);
        }
        sleep(Duration::from_millis(250)).await;
    }
}
