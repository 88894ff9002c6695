//! What operators and scalers watch: the numbers of the broker, and of one queue at its own address.

mod process;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use std::sync::atomic::{AtomicU64, Ordering};

use super::app::AppState;
use super::error::ApiError;
use super::params::Params;
use crate::clock;
use crate::config::Flavour;
use crate::engine::QueueHandle;
use crate::webhooks::Book;
use axum::http::StatusCode;
pub(super) use protocol::exposition::CONTENT_TYPE;
use protocol::exposition::{Exposition, Kind};
use protocol::id::UnixMillis;

/// Answers counted since the start, by the first digit of their status.
#[derive(Debug)]
pub(super) struct Answers {
    by_class: [AtomicU64; 5],
    started_at: UnixMillis,
}

impl Answers {
    pub(super) fn new() -> Self {
        Self { by_class: Default::default(), started_at: clock::now() }
    }

    pub(super) fn count(&self, status: StatusCode) {
        if let Some(counter) =
            usize::from(status.as_u16() / 100).checked_sub(1).and_then(|class| self.by_class.get(class))
        {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// `GET /q/:queue/metrics`
pub(super) async fn of_queue(State(app): State<AppState>, params: Params) -> Result<Response, ApiError> {
    let queue = app.engine.queue(&params.queue()?);
    let mut text = Exposition::default();
    let counts = write_length(&mut text, &queue).await?;
    let presence = queue.presence().await?;
    text.metric("gridsocket_queue_waiting", Kind::Gauge, "Jobs that wait", counts.waiting);
    text.metric("gridsocket_queue_running", Kind::Gauge, "Jobs that run", counts.running);
    let oldest = seconds(counts.oldest_waiting_ms.unwrap_or(0));
    text.metric(
        "gridsocket_queue_oldest_waiting_seconds",
        Kind::Gauge,
        "How long the oldest waiting job has waited",
        oldest,
    );
    let present = presence.workers.iter().filter(|worker| worker.silent_since_ms.is_none());
    text.metric("gridsocket_queue_workers", Kind::Gauge, "Connected workers", present.clone().count() as u64);
    let cpus = present.map(|worker| u64::from(worker.total.cpus_milli)).sum::<u64>();
    text.metric("gridsocket_queue_worker_cpus", Kind::Gauge, "CPUs of connected workers", seconds(cpus));
    text.metric("gridsocket_queue_clients", Kind::Gauge, "Pages and programs that watch", u64::from(presence.clients));
    Ok(([(header::CONTENT_TYPE, "text/plain")], text.into_text()).into_response())
}

/// The first lines, letter by letter what the original's scalers read.
async fn write_length(text: &mut Exposition, queue: &QueueHandle) -> Result<crate::engine::Counts, ApiError> {
    let counts = queue.counts().await?;
    text.empty_line();
    let help = "The number of outstanding jobs in the queue";
    text.metric("queue_length", Kind::Gauge, help, counts.waiting + counts.running);
    Ok(counts)
}

/// Thousandths as wholes with a fraction.
#[expect(clippy::cast_precision_loss, reason = "what is shown is not exact to a thousandth in thousands of years")]
fn seconds(thousandths: u64) -> f64 {
    thousandths as f64 / 1000.0
}

/// `GET /metrics`: what the whole broker does. No number here is of one queue, except a local broker's only one.
pub(super) async fn of_broker(State(app): State<AppState>) -> Result<Response, ApiError> {
    let mut text = Exposition::default();
    match app.config.flavour {
        Flavour::Local => drop(write_length(&mut text, &app.local_queue()?).await?),
        Flavour::Remote => {}
    }
    write_work(&mut text, &app);
    write_journal(&mut text, &app);
    write_retention(&mut text, &app);
    write_webhooks(&mut text, &app);
    write_process(&mut text, &app).await;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text.into_text()).into_response())
}

fn write_work(text: &mut Exposition, app: &AppState) {
    let stats = app.engine.stats();
    let mut gauge = |name: &str, help: &str, value: u64| text.metric(name, Kind::Gauge, help, value);
    gauge("gridsocket_live_queues", "Queues in memory", stats.live_queues);
    gauge("gridsocket_waiting_jobs", "Jobs that wait, in all queues used since the start", stats.waiting);
    gauge("gridsocket_running_jobs", "Jobs that run, in all queues used since the start", stats.running);
    gauge("gridsocket_sockets", "Open websockets", stats.sockets);
    let first = seconds(stats.first_waiting_ms.unwrap_or(0));
    text.metric(
        "gridsocket_first_waiting_seconds",
        Kind::Gauge,
        "How long the jobs that are first in their lines have waited: the longest of them",
        first,
    );
    let mut counter = |name: &str, help: &str, value: u64| text.metric(name, Kind::Counter, help, value);
    counter("gridsocket_submits_total", "Submissions accepted since start", stats.submits);
    counter("gridsocket_claims_total", "Runs granted since start", stats.claims);
    counter("gridsocket_finishes_total", "Runs finished since start", stats.finishes);
    counter(
        "gridsocket_outbox_drops_total",
        "Times that a watcher's line was full and it missed something",
        stats.outbox_drops,
    );
    counter(
        "gridsocket_lag_snapshots_total",
        "Times that a watcher fell behind and was given a fresh snapshot",
        stats.snapshots_for_lag,
    );
    let classes = app.answers.by_class.iter().zip(["1xx", "2xx", "3xx", "4xx", "5xx"]);
    let answers = classes.map(|(counter, class)| (class, counter.load(Ordering::Relaxed)));
    text.labelled(
        "gridsocket_http_responses_total",
        Kind::Counter,
        "Answers to requests since start",
        "class",
        answers,
    );
}

fn write_retention(text: &mut Exposition, app: &AppState) {
    let swept = app.retention.swept();
    text.labelled(
        "gridsocket_swept_total",
        Kind::Counter,
        "What was removed since start because its time was over",
        "what",
        [("jobs", swept.jobs), ("bodies", swept.bodies), ("logs", swept.logs), ("blobs", swept.blobs)],
    );
    let last = seconds(app.retention.last_at().0);
    text.metric("gridsocket_last_sweep_seconds", Kind::Gauge, "When the last sweep began, since 1970", last);
}

fn write_webhooks(text: &mut Exposition, app: &AppState) {
    let stats = app.engine.webhooks().map(Book::stats).unwrap_or_default();
    let mut gauge = |name: &str, help: &str, value: u64| text.metric(name, Kind::Gauge, help, value);
    gauge("gridsocket_webhooks", "Webhooks kept: waiting for their job, being delivered, dead letters", stats.kept);
    gauge("gridsocket_webhook_dead_letters", "Calls that were given up and are kept", stats.dead_letters);
    let mut counter = |name: &str, help: &str, value: u64| text.metric(name, Kind::Counter, help, value);
    counter("gridsocket_webhooks_delivered_total", "Calls delivered since start", stats.delivered);
    counter("gridsocket_webhook_failures_total", "Tries of calls that failed since start", stats.failures);
    counter("gridsocket_webhooks_given_up_total", "Calls given up since start", stats.dead);
}

fn write_journal(text: &mut Exposition, app: &AppState) {
    let journal = app.engine.stats().journal;
    let mut gauge = |name: &str, help: &str, value: u64| text.metric(name, Kind::Gauge, help, value);
    gauge("gridsocket_journal_bytes", "Bytes of journal on disk", journal.bytes);
    gauge("gridsocket_journal_segments", "Files of the journal", journal.segments);
    gauge("gridsocket_journal_waiting_bytes", "Bytes that wait to be written", journal.waiting_bytes);
    gauge("gridsocket_journal_index_lag_bytes", "Bytes that the event store is behind", journal.index_lag_bytes);
    gauge("gridsocket_journal_quarantined_queues", "Queues not served because of damage", journal.quarantined);
    let mut counter = |name: &str, help: &str, value: u64| text.metric(name, Kind::Counter, help, value);
    counter("gridsocket_journal_records_total", "Records written since start", journal.records);
    counter("gridsocket_journal_syncs_total", "Syncs to disk since start", journal.syncs);
    text.histogram("gridsocket_journal_sync_seconds", "How long syncs to disk took since start", &journal.sync_times);
}

async fn write_process(text: &mut Exposition, app: &AppState) {
    let started = seconds(app.answers.started_at.0);
    text.metric("process_start_time_seconds", Kind::Gauge, "When the broker started, since 1970", started);
    // Missing where the system does not say.
    if let Some(bytes) = tokio::task::spawn_blocking(process::resident_bytes).await.ok().flatten() {
        text.metric("process_resident_memory_bytes", Kind::Gauge, "Memory in use", bytes);
    }
    let version = [(env!("CARGO_PKG_VERSION"), 1)];
    text.labelled("gridsocket_build_info", Kind::Gauge, "Which build this is", "version", version);
}
