//! Durable submits over REST: clients with keep-alive, against queues of several lengths.

use crate::Bench;
use crate::definitions::{Fit, definition};
use crate::http::{load, post};
use crate::process::{Meter, Served};
use crate::report::{Row, Target};
use crate::socket::fill;

/// More live jobs than a queue takes unless told so: the longest queue here begins where the others end.
const LIMITS: &str = "live-jobs=1000000";

/// The target with 64 clients.
const PER_SECOND: f64 = 10_000.0;

/// What must be left of an empty queue's speed when it is full.
const LEFT_WHEN_LONG: f64 = 0.9;

pub(crate) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let folder = bench.fresh_folder("rest")?;
    let broker = Served::broker_with(&bench.binary, &folder, LIMITS).await?;
    let lengths: &[u64] = bench.scale.pick(&[0, 10_000], &[0, 10_000, 100_000], &[0, 10_000, 100_000]);
    let mut empty = None;
    for &length in lengths {
        for clients in [1, 16, 64] {
            // A queue of its own for each, so that each starts with as many.
            let queue = format!("rest-{length}-{clients}");
            fill(broker.port, &queue, "fill", length, Fit::Plain).await?;
            broker.quiet().await;
            let path = format!("/q/{queue}");
            let request =
                move |number| post(&path, &format!(r#"{{"definition":{}}}"#, definition("rest", number, Fit::Plain)));
            let meter = Meter::start(&broker);
            let done = load(broker.port, clients, bench.scale.point(), u64::MAX, request).await?;
            let usage = meter.read();
            let what = match (clients, thousands(length), thousands(length + done.latencies.len() as u64)) {
                (1, from, to) => format!("one client, {from} to {to} jobs queued"),
                (_, from, to) => format!("{clients} clients, {from} to {to} jobs queued"),
            };
            let floors = &bench.floors;
            let row = Row::new("rest", what, done.per_second, "submits/s").usage(usage).note(done.latencies.text());
            let row = match clients {
                1 => row.floor("one request + one fdatasync", floors.one_request_and_sync()),
                16 => row.floor("idle handler or grouped fdatasync", floors.http_16.min(floors.append_16)),
                _ => row.floor("idle handler or grouped fdatasync", floors.http_64.min(floors.append_64)),
            };
            let row = match (clients, empty) {
                (64, None) => {
                    empty = Some(done.per_second);
                    row.target(Target::AtLeast(PER_SECOND))
                }
                (64, Some(empty)) => row.target(Target::AtLeast(empty * LEFT_WHEN_LONG)),
                _ => row,
            };
            bench.report.add(row);
        }
    }
    Ok(())
}

fn thousands(count: u64) -> String {
    if count < 1_000 { count.to_string() } else { format!("{}k", count / 1_000) }
}
