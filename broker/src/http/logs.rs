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
use super::params::{Params, query};
use super::reply;
use crate::logs::{LogPage, LogStore};

/// The most lines that are in memory at once for one answer.
const LINES_PER_PAGE: usize = 4096;

/// The highest position that can be asked for: a client in JavaScript counts exactly up to here.
const SINCE_MAX: u64 = (1 << 53) - 1;

pub(super) async fn build(State(app): State<AppState>, params: Params, uri: Uri) -> Result<Response, ApiError> {
    answer(&app, &params, &uri, LogKind::Build).await
}

pub(super) async fn run(State(app): State<AppState>, params: Params, uri: Uri) -> Result<Response, ApiError> {
    answer(&app, &params, &uri, LogKind::Run).await
}

async fn answer(app: &AppState, params: &Params, uri: &Uri, kind: LogKind) -> Result<Response, ApiError> {
    let (scope, job) = (app.scope(params)?, params.job()?);
    let since = since(uri)?;
    // Asked before reading: the log of a job that is over by now is then read to its end.
    let mut kept = app.kept(&scope, job).await?;
    let is_final = !kept.is_empty() && kept.iter().all(|(_, record)| !record.job.is_live());
    let (Some((queue, _)), true) = (kept.pop(), kept.is_empty()) else {
        // Nobody has it, or several have: whose lines would they be? That it is over everywhere can be told all the same.
        let nothing = format!(r#"{{"data":[],"sliceStart":{since},"nextCursor":0,"isFinal":{is_final}}}"#);
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
        is_final,
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

/// `since=N`, a number as JavaScript reads one: fractions are cut, less than none is none.
fn since(uri: &Uri) -> Result<u64, ApiError> {
    let number = number(query(uri, "since").unwrap_or_default().trim());
    let number = number.ok_or_else(|| ApiError::bad("bad_since", "`since` must be a number"))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts of floats saturate")]
    let since = number.floor() as u64;
    Ok(since.min(SINCE_MAX))
}

/// JavaScript's `Number`.
fn number(text: &str) -> Option<f64> {
    let of_base = |digits: &str, base| u64::from_str_radix(digits, base).ok();
    let based = match text.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => Some(of_base(&text[2..], 16)),
        Some("0o") => Some(of_base(&text[2..], 8)),
        Some("0b") => Some(of_base(&text[2..], 2)),
        Some(_) | None => None,
    };
    #[expect(clippy::cast_precision_loss, reason = "as in JavaScript")]
    match (text, based) {
        ("", _) => Some(0.0),
        ("Infinity" | "+Infinity", _) => Some(f64::INFINITY),
        ("-Infinity", _) => Some(f64::NEG_INFINITY),
        (_, Some(number)) => number.map(|number| number as f64),
        // Rust also reads words such as `inf`.
        _ if text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte)) => text.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(query: &str) -> Result<u64, ApiError> {
        since(&format!("/run-logs.json?{query}").parse().unwrap())
    }

    #[test]
    fn since_is_a_number_as_javascript_reads_one_or_nothing() {
        for (query, expected) in [
            ("", 0),
            ("since", 0),
            ("since=", 0),
            ("since=7", 7),
            ("x=1&since=7.9", 7),
            ("since=-3", 0),
            ("since=1e3", 1000),
            ("since=%31%20", 1),
            ("since=+5", 5),
            ("since=0x10", 16),
            ("since=.5", 0),
            ("since=1&since=2", 1),
            ("since=Infinity", SINCE_MAX),
            ("since=-Infinity", 0),
        ] {
            assert_eq!(asked(query).unwrap(), expected, "{query}");
        }
        for query in
            ["since=x", "since=NaN", "since=inf", "since=infinity", "since=1_0", "since=0x", "since=1,5", "since=--1"]
        {
            assert!(asked(query).is_err(), "{query}");
        }
    }
}
