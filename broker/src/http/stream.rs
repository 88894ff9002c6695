//! `GET /q/:queue/j/:job/stream`: a job's logs and states as server-sent events, until it is over.
//!
//! Every event carries an id that says how many lines of each log were sent by then; a client that comes back with it (browsers
//! do so by themselves) goes on from there.

use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use protocol::id::JobId;
use protocol::native::{LogKind, LogLine};
use protocol::queue::Status;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::app::AppState;
use super::client::Client;
use super::error::ApiError;
use super::params::Params;
use super::shape::{finished_reason, state};
use crate::engine::QueueHandle;
use crate::logs::LogStore;

/// How often the job's state is looked at while no line comes; lines and the end are told at once.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How often the reader is told that this is alive: proxies give up connections that are silent for a minute.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(15);

/// Lines per event: the first of a million arrive at once, and little is in memory for a reader who is slow.
const LINES_PER_EVENT: usize = 500;

/// Events that wait for the reader; the follower waits when there are more.
const EVENTS_WAITING_MAX: usize = 2;

/// How many lines of each log a reader has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cursors {
    build: u64,
    run: u64,
}

impl Cursors {
    /// Reads an event's id; anything else means from the start.
    fn read(id: &str) -> Self {
        let read = || {
            let (build, run) = id.split_once('-')?;
            Some(Self { build: build.parse().ok()?, run: run.parse().ok()? })
        };
        read().unwrap_or_default()
    }

    const fn of(&mut self, kind: LogKind) -> &mut u64 {
        match kind {
            LogKind::Build => &mut self.build,
            LogKind::Run => &mut self.run,
        }
    }
}

impl fmt::Display for Cursors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.build, self.run)
    }
}

#[derive(Serialize)]
struct Lines<'a> {
    lines: &'a [LogLine],
    cursor: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
struct Stands {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

impl Stands {
    fn of(status: &Status) -> Self {
        Self { state: state(status), reason: finished_reason(status) }
    }
}

/// The events of one job.
pub(super) async fn stream(
    State(app): State<AppState>,
    Extension(stop): Extension<CancellationToken>,
    Extension(client): Extension<Client>,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (queue, job) = (app.engine.queue(&params.queue()?), params.job()?);
    if queue.job(job).await?.is_none() {
        return Err(ApiError::request(StatusCode::NOT_FOUND, "no_such_job", "Job not found"));
    }
    let counted = app.sockets.count(client.counted())?;
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    let (out, events) = mpsc::channel(EVENTS_WAITING_MAX);
    let follower = Follower { logs: app.logs.clone(), queue, job, cursors: Cursors::read(last), out };
    tokio::spawn(async move {
        tokio::select! {
            _ = follower.run() => {}
            // Without a final event: the reader comes back and goes on with the next broker.
            () = stop.cancelled() => {}
        }
    });
    // Its place in the count is held until the last event is read, or the reader is gone.
    let events = stream::unfold((events, counted), |(mut events, counted)| async move {
        let event = events.recv().await?;
        Some((Ok::<_, Infallible>(event), (events, counted)))
    });
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("keep-alive"));
    // What nginx is told not to gather.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// Nobody reads any more, or the broker cannot read on.
struct Ended;

impl From<mpsc::error::SendError<Bytes>> for Ended {
    fn from(_: mpsc::error::SendError<Bytes>) -> Self {
        Self
    }
}

struct Follower {
    logs: LogStore,
    queue: QueueHandle,
    job: JobId,
    cursors: Cursors,
    out: mpsc::Sender<Bytes>,
}

impl Follower {
    async fn run(mut self) -> Result<(), Ended> {
        let watch = |kind| self.logs.watch(self.queue.key(), self.job, kind);
        let mut watches = [watch(LogKind::Build), watch(LogKind::Run)];
        let mut told = None;
        let mut heartbeat_at = Instant::now() + HEARTBEAT_EVERY;
        loop {
            // Asked before reading: lines that were stored before the job ended are then seen by the read.
            let found = self.queue.job(self.job).await.map_err(|_| Ended)?;
            let stands = found.as_ref().map(|found| Stands::of(&found.job.status));
            self.send_lines(LogKind::Build, "build-log").await?;
            self.send_lines(LogKind::Run, "run-log").await?;
            if let Some(stands) = stands.filter(|stands| told != Some(*stands)) {
                self.send("state", &stands).await?;
                told = Some(stands);
            }
            if found.is_none_or(|found| !found.job.is_live()) {
                let unknown = Stands { state: "Finished", reason: Some("Unknown") };
                return self.send("final", &stands.unwrap_or(unknown)).await;
            }
            let [build, run] = &mut watches;
            tokio::select! {
                () = build.changed() => {}
                () = run.changed() => {}
                () = sleep(LOOK_EVERY) => {}
                () = self.out.closed() => return Err(Ended),
            }
            if heartbeat_at <= Instant::now() {
                heartbeat_at = Instant::now() + HEARTBEAT_EVERY;
                self.out.send(Bytes::from_static(b": \n\n")).await?;
            }
        }
    }

    async fn send_lines(&mut self, kind: LogKind, name: &str) -> Result<(), Ended> {
        loop {
            let since = *self.cursors.of(kind);
            let page =
                self.logs.read(self.queue.key(), self.job, kind, since, LINES_PER_EVENT).await.map_err(|error| {
                    tracing::error!(error = &error as &dyn std::error::Error, "a log that is followed cannot be read");
                    Ended
                })?;
            if page.lines.is_empty() || page.next <= since {
                return Ok(());
            }
            *self.cursors.of(kind) = page.next;
            self.send(name, &Lines { lines: &page.lines, cursor: page.next }).await?;
        }
    }

    async fn send<T: Serialize + Sync>(&self, name: &str, data: &T) -> Result<(), Ended> {
        let data = serde_json::to_string(data).map_err(|_| Ended)?;
        let event = format!("event: {name}\ndata: {data}\nid: {}\n\n", self.cursors);
        Ok(self.out.send(event.into()).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_where_to_go_on() {
        let cursors = Cursors { build: 3, run: 70 };
        assert_eq!(Cursors::read(&cursors.to_string()), cursors);
        for other in ["", "x", "1", "1-", "-1-2", "1-2-3"] {
            assert_eq!(Cursors::read(other), Cursors::default(), "{other}");
        }
    }
}
