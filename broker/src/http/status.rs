//! What operators and scalers ask: a queue's status, its metrics, the broker's metrics.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use protocol::id::{JobId, UnixMillis, WorkerId};
use protocol::native::WorkerView;
use protocol::queue::{Job, Status};
use serde::Serialize;
use serde_json::value::RawValue;

use super::app::AppState;
use super::error::ApiError;
use super::find::raw;
use super::params::Params;
use super::reply;
use super::shape::{Cpus, Sendable, state};
use crate::config::Flavour;
use crate::engine::QueueHandle;

/// The most running jobs whose definitions are shown: this is for a person's eyes.
const SHOWN_DEFINITIONS_MAX: usize = 100;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct QueueStatus<'a, J> {
    jobs: J,
    other_servers: NoServers,
    local_workers: BTreeMap<&'a WorkerId, Worker<'a>>,
    client_count: u32,
    queue_info: QueueInfo<'a>,
}

/// A queue lives in one broker.
#[derive(Serialize)]
struct NoServers {}

#[derive(Serialize)]
struct JobStateOnly {
    state: &'static str,
}

#[derive(Serialize)]
struct Worker<'a> {
    time: UnixMillis,
    id: &'a WorkerId,
    version: &'a str,
    cpus: Cpus,
    gpus: u32,
    queue: BTreeMap<JobId, Running<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Running<'a> {
    job_id: JobId,
    definition: Option<&'a RawValue>,
    finished: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct QueueInfo<'a> {
    address: &'a str,
    server_id: &'static str,
    broadcast_channel: &'static str,
    job_count: usize,
    local_worker_count: usize,
    other_worker_count: usize,
    client_count: u32,
    job_states: Vec<JobState<'a>>,
}

#[derive(Serialize)]
struct JobState<'a> {
    id: String,
    state: &'static str,
    worker: &'a str,
}

/// `GET /q/:queue/status`
pub(super) async fn status(State(app): State<AppState>, params: Params) -> Result<Response, ApiError> {
    let name = params.queue()?;
    let queue = app.engine.queue(&name);
    let jobs = queue.jobs().await?;
    let presence = queue.presence().await?;
    let definitions = running_definitions(&queue, &jobs).await?;
    let now = crate::clock::now();
    let mut running = BTreeMap::<&WorkerId, Vec<JobId>>::new();
    for (id, job) in jobs.iter().filter(|(_, job)| is_running(job)) {
        if let Some(worker) = &job.worker {
            running.entry(worker).or_default().push(*id);
        }
    }
    let mut local_workers = BTreeMap::new();
    for worker in &presence.workers {
        let own = running.get(&worker.id).map(Vec::as_slice).unwrap_or_default();
        local_workers.insert(&worker.id, worker_status(worker, own, &definitions, now)?);
    }
    let status = QueueStatus {
        jobs: Sendable(&jobs, |job: &Job| JobStateOnly { state: state(&job.status) }),
        other_servers: NoServers {},
        local_workers,
        client_count: presence.clients,
        queue_info: QueueInfo {
            address: name.as_str(),
            server_id: match app.config.flavour {
                Flavour::Local => "local",
                Flavour::Remote => "gridsocket",
            },
            broadcast_channel: "in-isolate",
            job_count: jobs.len(),
            local_worker_count: presence.workers.len(),
            other_worker_count: 0,
            client_count: presence.clients,
            job_states: jobs.iter().map(|(id, job)| job_state(*id, job)).collect(),
        },
    };
    Ok(reply::json(StatusCode::OK, &status))
}

async fn running_definitions(
    queue: &QueueHandle,
    jobs: &[(JobId, Job)],
) -> Result<BTreeMap<JobId, bytes::Bytes>, ApiError> {
    let mut definitions = BTreeMap::new();
    for (id, job) in jobs.iter().filter(|(_, job)| is_running(job)).take(SHOWN_DEFINITIONS_MAX) {
        if let Some(text) = queue.body(job.body).await? {
            definitions.insert(*id, text);
        }
    }
    Ok(definitions)
}

fn is_running(job: &Job) -> bool {
    matches!(job.status, Status::Running {})
}

fn worker_status<'a>(
    worker: &'a WorkerView,
    own: &[JobId],
    definitions: &'a BTreeMap<JobId, bytes::Bytes>,
    now: UnixMillis,
) -> Result<Worker<'a>, ApiError> {
    let queue = own
        .iter()
        .map(|id| {
            let definition = definitions.get(id).map(raw).transpose()?;
            Ok((*id, Running { job_id: *id, definition, finished: false }))
        })
        .collect::<Result<_, ApiError>>()?;
    Ok(Worker {
        time: worker.silent_since_ms.unwrap_or(now),
        id: &worker.id,
        version: &worker.version,
        cpus: Cpus(worker.total.cpus_milli),
        gpus: worker.total.gpus,
        queue,
    })
}

/// Ids cut to six characters, as people compare them.
fn job_state(id: JobId, job: &Job) -> JobState<'_> {
    let worker = job.worker.as_ref().filter(|_| is_running(job)).map_or("none", |worker| {
        let text = worker.as_str();
        text.char_indices().nth(6).map_or(text, |(end, _)| &text[..end])
    });
    let mut id = id.to_string();
    id.truncate(6);
    JobState { id, state: state(&job.status), worker }
}

/// `GET /q/:queue/metrics`
pub(super) async fn queue_metrics(State(app): State<AppState>, params: Params) -> Result<Response, ApiError> {
    let length = queue_length(&app.engine.queue(&params.queue()?)).await?;
    Ok(plain(length))
}

async fn queue_length(queue: &QueueHandle) -> Result<String, ApiError> {
    let counts = queue.counts().await?;
    let length = counts.waiting + counts.running;
    Ok(format!(
        "\n# HELP queue_length The number of outstanding jobs in the queue\n# TYPE queue_length gauge\nqueue_length {length}\n"
    ))
}

fn plain(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain")], text).into_response()
}

/// `GET /metrics`: what the whole broker does. No number here is of one queue, except a local broker's only one.
pub(super) async fn broker_metrics(State(app): State<AppState>) -> Result<Response, ApiError> {
    let mut text = match app.config.flavour {
        Flavour::Local => queue_length(&app.local_queue()?).await?,
        Flavour::Remote => String::new(),
    };
    let stats = app.engine.stats();
    let mut metric = |name: &str, kind: &str, help: &str, value: u64| {
        let full = format!("gridsocket_{name}");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {full} {help}\n# TYPE {full} {kind}\n{full} {value}");
    };
    metric("live_queues", "gauge", "Queues in memory", stats.live_queues);
    metric("sockets", "gauge", "Open websockets", stats.sockets);
    metric("submits_total", "counter", "Submissions accepted since start", stats.submits);
    metric("claims_total", "counter", "Runs granted since start", stats.claims);
    metric("finishes_total", "counter", "Runs finished since start", stats.finishes);
    metric(
        "lag_snapshots_total",
        "counter",
        "Times that a watcher fell behind and was given a fresh snapshot",
        stats.snapshots_for_lag,
    );
    let journal = stats.journal;
    metric("journal_bytes", "gauge", "Bytes of journal on disk", journal.bytes);
    metric("journal_segments", "gauge", "Files of the journal", journal.segments);
    metric("journal_records_total", "counter", "Records written since start", journal.records);
    metric("journal_syncs_total", "counter", "Syncs to disk since start", journal.syncs);
    metric("journal_waiting_bytes", "gauge", "Bytes that wait to be written", journal.waiting_bytes);
    metric("journal_index_lag_bytes", "gauge", "Bytes that the event store is behind", journal.index_lag_bytes);
    metric("journal_quarantined_queues", "gauge", "Queues not served because of damage", journal.quarantined);
    Ok(plain(text))
}
