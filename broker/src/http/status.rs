//! `GET /q/:queue/status`: who is connected to a queue and what they do. Only workers of the original's kind are asked, and
//! waited for at most 2 s; the rest is known.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
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
use super::shape::{Cpus, Sendable, finished_reason, state};
use crate::config::Flavour;
use crate::engine::{PresenceView, QueueHandle};

/// The most running jobs whose definitions are shown: this is for a person's eyes.
const SHOWN_DEFINITIONS_MAX: usize = 100;
/// The most bytes of them; those that do not fit are left out.
const SHOWN_DEFINITIONS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long they may take to read: on a busy disk the rest is answered without them.
const DEFINITIONS_WITHIN: Duration = Duration::from_secs(2);
/// From this many jobs on the answer is written on a thread of its own.
const LARGE_QUEUE: usize = 1_000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct QueueStatus<'a, J> {
    jobs: J,
    other_servers: NoServers,
    local_workers: BTreeMap<&'a WorkerId, Told<'a>>,
    client_count: u32,
    queue_info: QueueInfo<'a>,
}

/// A queue lives in one broker.
#[derive(Serialize)]
struct NoServers {}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JobStateOnly {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_reason: Option<&'static str>,
}

/// What is known of a worker, or what it says of itself: those of the original's kind are asked.
#[derive(Serialize)]
#[serde(untagged)]
enum Told<'a> {
    Known(Worker<'a>),
    Said(&'a RawValue),
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

/// What a status is written from.
struct Seen {
    address: String,
    flavour: Flavour,
    jobs: Vec<(JobId, Job)>,
    presence: PresenceView,
    definitions: BTreeMap<JobId, Bytes>,
    said: Arc<BTreeMap<WorkerId, Box<RawValue>>>,
    now: UnixMillis,
}

pub(super) async fn status(State(app): State<AppState>, params: Params) -> Result<Response, ApiError> {
    let name = params.queue()?;
    let queue = app.engine.queue(&name);
    let jobs = queue.jobs().await?;
    let presence = queue.presence().await?;
    let mut definitions = BTreeMap::new();
    // What was read by then is shown.
    let reading = tokio::time::timeout(DEFINITIONS_WITHIN, read_definitions(&queue, &jobs, &mut definitions));
    let (said, _) = tokio::join!(app.originals.statuses(queue.key()), reading);
    let (address, flavour, now) = (name.as_str().to_owned(), app.config.flavour, crate::clock::now());
    let seen = Seen { address, flavour, jobs, presence, definitions, said, now };
    if seen.jobs.len() < LARGE_QUEUE && seen.definitions.is_empty() {
        return write(&seen);
    }
    tokio::task::spawn_blocking(move || write(&seen)).await.map_err(ApiError::internal)?
}

async fn read_definitions(queue: &QueueHandle, jobs: &[(JobId, Job)], definitions: &mut BTreeMap<JobId, Bytes>) {
    let mut bytes = 0;
    for (id, job) in jobs.iter().filter(|(_, job)| is_running(job)).take(SHOWN_DEFINITIONS_MAX) {
        let Ok(Some(text)) = queue.body(job.body).await else { continue };
        bytes += text.len();
        if bytes > SHOWN_DEFINITIONS_BYTES_MAX {
            return;
        }
        definitions.insert(*id, text);
    }
}

fn write(seen: &Seen) -> Result<Response, ApiError> {
    let Seen { address, flavour, jobs, presence, definitions, said, now } = seen;
    let mut running = BTreeMap::<&WorkerId, Vec<JobId>>::new();
    for (id, job) in jobs.iter().filter(|(_, job)| is_running(job)) {
        if let Some(worker) = &job.worker {
            running.entry(worker).or_default().push(*id);
        }
    }
    let mut local_workers = BTreeMap::new();
    // A silent one is counted below, but says nothing for itself.
    for worker in presence.workers.iter().filter(|worker| worker.silent_since_ms.is_none()) {
        let own = running.get(&worker.id).map(Vec::as_slice).unwrap_or_default();
        let told = match said.get(&worker.id) {
            Some(said) => Told::Said(said),
            None => Told::Known(worker_status(worker, own, definitions, *now)?),
        };
        local_workers.insert(&worker.id, told);
    }
    let state_only =
        |job: &Job| JobStateOnly { state: state(&job.status), finished_reason: finished_reason(&job.status) };
    let status = QueueStatus {
        jobs: Sendable(jobs, state_only),
        other_servers: NoServers {},
        local_workers,
        client_count: presence.clients,
        queue_info: QueueInfo {
            address,
            server_id: match flavour {
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

fn is_running(job: &Job) -> bool {
    matches!(job.status, Status::Running {})
}

fn worker_status<'a>(
    worker: &'a WorkerView,
    own: &[JobId],
    definitions: &'a BTreeMap<JobId, Bytes>,
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
        time: now,
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
