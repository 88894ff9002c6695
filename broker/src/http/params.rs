//! What addresses name, and bodies within their limits.

use std::ops::Deref;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use percent_encoding::percent_decode_str;
use protocol::id::{JobId, QueueName};

use super::error::ApiError;
use super::room::{Room, Taken};

/// The percent-decoded parts of a route.
pub(super) struct Params(RawPathParams);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, state).await;
        params.map(Self).map_err(|_| ApiError::bad("not_utf8", "the address has escapes that are not UTF-8"))
    }
}

impl Params {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// The queue, which the route has.
    pub(super) fn queue(&self) -> Result<QueueName, ApiError> {
        queue(self.get("queue").unwrap_or_default())
    }

    /// The job, which the route has.
    pub(super) fn job(&self) -> Result<JobId, ApiError> {
        job(self.get("job").unwrap_or_default())
    }
}

/// A parameter after the `?`, decoded as forms are; of several with one name the first.
pub(super) fn query(uri: &Uri, name: &str) -> Option<String> {
    let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let mut pairs = uri.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| decoded(key) == name).map(|(_, value)| decoded(value))
}

pub(super) fn queue(text: &str) -> Result<QueueName, ApiError> {
    text.parse().map_err(|error: protocol::id::IdError| ApiError::bad("bad_queue_name", error.to_string()))
}

pub(super) fn job(text: &str) -> Result<JobId, ApiError> {
    text.parse().map_err(|error: protocol::id::IdError| ApiError::bad("bad_job_id", error.to_string()))
}

/// How much of a body that is too large is still read, so that its sender, who is writing, gets to see the answer.
const DRAINED_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How long that may take.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// A whole body, with the room that it takes.
pub(super) struct Whole {
    bytes: Bytes,
    _taken: Taken,
}

impl Deref for Whole {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads a body of at most `bytes_max` bytes.
pub(super) async fn body(
    headers: &HeaderMap,
    mut body: Body,
    bytes_max: usize,
    idle: Duration,
    room: &Room,
) -> Result<Whole, ApiError> {
    let too_large = || {
        let message = format!(
            "the body is larger than the limit of {bytes_max} bytes; upload large inputs with PUT /f/<sha256> and refer to them"
        );
        ApiError::request(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    if content_length(headers).is_some_and(|length| length > bytes_max as u64) {
        drain(body).await;
        return Err(too_large());
    }
    // Nearly every body comes in one piece, which is then not copied and is no larger than what a connection reads at once.
    let mut taken = Taken::default();
    let mut only = Bytes::new();
    let mut gathered = BytesMut::new();
    while let Some(bytes) = piece(&mut body, idle).await? {
        if only.len() + gathered.len() + bytes.len() > bytes_max {
            drain(body).await;
            return Err(too_large());
        }
        if only.is_empty() && gathered.is_empty() {
            only = bytes;
        } else {
            if let Err(full) = room.take(&mut taken, (only.len() + bytes.len()) as u64) {
                drain(body).await;
                return Err(full);
            }
            gathered.extend_from_slice(&std::mem::take(&mut only));
            gathered.extend_from_slice(&bytes);
        }
    }
    let bytes = if gathered.is_empty() { only } else { gathered.freeze() };
    Ok(Whole { bytes, _taken: taken })
}

/// The next piece of a body; `None` at its end.
pub(super) async fn piece(body: &mut Body, idle: Duration) -> Result<Option<Bytes>, ApiError> {
    loop {
        let frame = tokio::time::timeout(idle, body.frame()).await.map_err(|_| {
            let message = format!("nothing of the body came for {} s", idle.as_secs());
            ApiError::request(StatusCode::REQUEST_TIMEOUT, "body_stalled", message)
        })?;
        match frame {
            None => return Ok(None),
            Some(Err(_)) => return Err(ApiError::bad("body_broken_off", "the body broke off")),
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data()
                    && !bytes.is_empty()
                {
                    return Ok(Some(bytes));
                }
            }
        }
    }
}

pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads on without keeping anything. A connection that is closed while its peer writes loses the answer.
pub(super) async fn drain(mut body: Body) {
    let drained = async {
        let mut bytes = 0;
        while let Ok(Some(piece)) = piece(&mut body, DRAIN_TIME).await {
            bytes += piece.len() as u64;
            if bytes > DRAINED_BYTES_MAX {
                break;
            }
        }
    };
    // Whether it ended or ran out of time, the answer goes out now.
    let _ = tokio::time::timeout(DRAIN_TIME, drained).await;
}
