//! `GET …/build-logs.json` and `…/run-logs.json`: a log from a line on, in one answer that is read and sent page by page.

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use protocol::id::{JobId, QueueKey};
use protocol::native::LogKind;

use super::app::AppState;
use super::error::ApiError;
use super::params::Params;
use super::reply;
use crate::logs::{LogPage, LogStore};

/// The most lines that are in memory at once for one answer.
const LINES_PER_PAGE: usize = 4096;

pub(super) async fn build(State(app): State<AppState>, params: Params, uri: Uri) -> Result<Response, ApiError> {
    answer(&app, &params, &uri, LogKind::Build).await
}

pub(super) async fn run(State(app): State<AppState>, params: Params, uri: Uri) -> Result<Response, ApiError> {
    answer(&app, &params, &uri, LogKind::Run).await
}

async fn answer(app: &AppState, params: &Params, uri: &Uri, kind: LogKind) -> Result<Response, ApiError> {
    let (scope, job) = (app.scope(params)?, params.job()?);
    let since = since(uri.query().unwrap_or_default())?;
    // Asked before reading: the log of a job that is over by now is then read to its end.
    let Some((queue, record)) = app.one(&scope, job).await? else {
        let nothing = r#"{"data":[],"sliceStart":0,"nextCursor":0,"isFinal":false}"#;
        return Ok(reply::raw_json(StatusCode::OK, nothing));
    };
    let first = app.logs.read(queue.key(), job, kind, since, LINES_PER_PAGE).await?;
    let reading = Reading {
        logs: app.logs.clone(),
        queue: queue.key(),
        job,
        kind,
        since,
        end: first.end,
        is_final: !record.job.is_live(),
        page: Some(first),
        is_first: true,
    };
    Ok(reply::raw_json(StatusCode::OK, Body::from_stream(stream::unfold(reading, Reading::next))))
}

/// An answer on its way out.
struct Reading {
    logs: LogStore,
    queue: QueueKey,
    job: JobId,
    kind: LogKind,
    since: u64,
    /// How many lines there were at the start; later ones belong to the next answer.
    end: u64,
    is_final: bool,
    /// The page to write next; absent when all is written.
    page: Option<LogPage>,
    is_first: bool,
}

impl Reading {
    async fn next(mut self) -> Option<(Result<Bytes, std::io::Error>, Self)> {
        let page = self.page.take()?;
        let mut text = Vec::new();
        if self.is_first {
            text.extend_from_slice(br#"{"data":["#);
        }
        let keep = usize::try_from(self.end.saturating_sub(page.from)).unwrap_or(usize::MAX);
        for (index, line) in page.lines.iter().take(keep).enumerate() {
            if index > 0 || !self.is_first {
                text.push(b',');
            }
            if let Err(error) = serde_json::to_writer(&mut text, line) {
                return Some((Err(error.into()), self));
            }
        }
        self.is_first &= page.lines.is_empty();
        if page.lines.is_empty() || page.next >= self.end {
            let Self { since, end, is_final, .. } = self;
            let tail = format!(r#"],"sliceStart":{since},"nextCursor":{end},"isFinal":{is_final}}}"#);
            text.extend_from_slice(tail.as_bytes());
        } else {
            match self.logs.read(self.queue, self.job, self.kind, page.next, LINES_PER_PAGE).await {
                Ok(page) => self.page = Some(page),
                // Headers are out; breaking the body off is all that can still be said.
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "a log could not be read to its end");
                    return Some((Err(std::io::Error::other(error)), self));
                }
            }
        }
        Some((Ok(text.into()), self))
    }
}

/// `since=N`: fractions are cut, less than none is none.
fn since(query: &str) -> Result<u64, ApiError> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("since=")).unwrap_or_default();
    if value.is_empty() {
        return Ok(0);
    }
    let number = value.parse::<f64>().ok().filter(|number| !number.is_nan());
    let number = number.ok_or_else(|| ApiError::bad("bad_since", "`since` must be a number"))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts of floats saturate")]
    Ok(number.floor() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_number_or_nothing() {
        for (query, expected) in
            [("", 0), ("since=", 0), ("since=7", 7), ("x=1&since=7.9", 7), ("since=-3", 0), ("since=1e3", 1000)]
        {
            assert_eq!(since(query).unwrap(), expected, "{query}");
        }
        for query in ["since=x", "since=NaN", "since=1%20"] {
            assert!(since(query).is_err(), "{query}");
        }
    }
}
