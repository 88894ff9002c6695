//! What a change costs each subscriber, in bytes on the wire.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use protocol::event::RunOutcome;
use protocol::native::{FinishedRun, FromBroker, ToBroker};
use protocol::raw::RawJson;
use protocol::record::Record;

use crate::Bench;
use crate::definitions::{Fit, submit};
use crate::process::Served;
use crate::report::{Row, Target};
use crate::socket::{Native, capacity, fill};

/// The target, for the usual changes.
const BYTES_PER_CHANGE: f64 = 200.0;

/// Changes of each kind, one at a time: nothing shares a frame, which is the worst case.
const CHANGES: u32 = 100;

pub(crate) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let folder = bench.fresh_folder("wire")?;
    let broker = Served::broker(&bench.binary, &folder).await?;
    let lengths: &[u64] = bench.scale.pick(&[0, 1_000], &[0, 10_000], &[0, 10_000]);
    for &length in lengths {
        let queue = format!("wire-{length}");
        fill(broker.port, &queue, "fill", length, Fit::Plain).await?;
        let mut watcher = Watcher { native: Native::client(broker.port, &queue, true).await?, bytes: BTreeMap::new() };
        watcher.until("Snapshot").await?;
        let at_snapshot = watcher.native.read.load(Ordering::Relaxed);
        watcher.live_through(broker.port, &queue).await?;
        for change in ["JobQueued", "RunClaimed", "RunFinished"] {
            let (count, bytes) = watcher.bytes.get(change).copied().unwrap_or_default();
            let what = format!("{change}, {length} jobs queued");
            let row =
                Row::new("wire", what, f64::from(bytes) / f64::from(count.max(1)), "bytes per change and subscriber");
            bench.report.add(row.target(Target::AtMost(BYTES_PER_CHANGE)));
        }
        let all = watcher.native.read.load(Ordering::Relaxed) - at_snapshot;
        let (_, snapshot) = watcher.bytes.get("Snapshot").copied().unwrap_or_default();
        let what = format!("everything a subscriber got, by change, {length} jobs queued");
        let each = f64::from(u32::try_from(all)?) / f64::from(3 * CHANGES);
        bench
            .report
            .add(Row::new("wire", what, each, "bytes").note(format!("presence included; snapshot {snapshot} bytes")));
    }
    Ok(())
}

/// A subscriber that counts.
struct Watcher {
    native: Native,
    /// By kind of message or event: how many, and their bytes.
    bytes: BTreeMap<&'static str, (u32, u32)>,
}

impl Watcher {
    /// Reads until a message or a single event of that kind came.
    async fn until(&mut self, kind: &str) -> anyhow::Result<()> {
        loop {
            let (message, bytes) = self.native.next().await?;
            let found = match &message {
                FromBroker::Snapshot { .. } => "Snapshot",
                FromBroker::Presence { .. } => "Presence",
                FromBroker::Events { records, .. } => match records.as_slice() {
                    [record] => Record::decode(&record.0)?.event.name(),
                    _ => "several",
                },
                _ => "other",
            };
            let (count, sum) = self.bytes.entry(found).or_default();
            *count += 1;
            *sum += u32::try_from(bytes)?;
            if found == kind {
                return Ok(());
            }
        }
    }

    /// Lets changes happen one at a time.
    async fn live_through(&mut self, port: u16, queue: &str) -> anyhow::Result<()> {
        let mut client = Native::client(port, queue, false).await?;
        for number in 0..CHANGES.into() {
            client.send(&submit(number, "wire", number, Fit::Plain)).await?;
            client.next().await?;
            self.until("JobQueued").await?;
        }
        let mut worker = Native::worker(port, queue, 0, 1).await?;
        for grants_seen in 0..CHANGES.into() {
            worker.send(&ToBroker::Claim { free: capacity(1), grants_seen, req: None }).await?;
            let run = loop {
                if let FromBroker::Granted { run, .. } = worker.next().await?.0 {
                    break run;
                }
            };
            self.until("RunClaimed").await?;
            let finished = FinishedRun {
                job: run.job,
                run: run.run,
                outcome: RunOutcome::Success,
                exit_code: Some(0),
                image: Some(protocol::id::ImageId::from_bytes([7; 32])),
                duration_ms: Some(1_234),
                finished: RawJson::new(r#"{"type":"Finished","reason":"Success"}"#),
            };
            worker.send(&ToBroker::Finish { req: grants_seen, run: finished }).await?;
            self.until("RunFinished").await?;
        }
        Ok(())
    }
}
