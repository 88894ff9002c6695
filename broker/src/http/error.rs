//! What a request that cannot be done is answered with.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::reply;
use crate::blobs::BlobError;
use crate::logs::LogError;
use crate::refusal::{Refusal, RefusalKind};

/// Why a request is not done. The text is for the caller; a source is for the broker's log alone.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// The engine says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The request itself is wrong.
    #[error("{message}")]
    Request {
        /// The status.
        status: StatusCode,
        /// A word for programs.
        code: &'static str,
        /// A sentence for people.
        message: String,
    },
    /// What is asked for is not there, told in plain text, as the original's clients know it.
    #[error("{message}")]
    Plain {
        /// The status.
        status: StatusCode,
        /// The text.
        message: String,
    },
    /// Something of ours failed.
    #[error("{message}")]
    Ours {
        /// The status.
        status: StatusCode,
        /// A word for programs.
        code: &'static str,
        /// A sentence for people, without inner texts.
        message: &'static str,
        /// What failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ApiError {
    /// The status that it is answered with.
    pub(super) const fn status(&self) -> StatusCode {
        match self {
            Self::Refused(refusal) => status_of(refusal.kind),
            Self::Request { status, .. } | Self::Plain { status, .. } | Self::Ours { status, .. } => *status,
        }
    }

    /// A request that is wrong and stays wrong.
    pub(super) fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::Request { status: StatusCode::BAD_REQUEST, code, message: message.into() }
    }

    /// A wrong request with a status of its own.
    pub(super) fn request(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self::Request { status, code, message: message.into() }
    }

    /// 404 in plain text.
    pub(super) fn plain_not_found(message: impl Into<String>) -> Self {
        Self::Plain { status: StatusCode::NOT_FOUND, message: message.into() }
    }

    /// Something of ours failed in a way that nobody foresaw.
    pub(super) fn internal(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Ours {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            code: "internal",
            message: "something went wrong inside the broker; its log says what",
            source: source.into(),
        }
    }
}

impl From<BlobError> for ApiError {
    fn from(error: BlobError) -> Self {
        let message = error.to_string();
        let request = |status, code| Self::Request { status, code, message };
        match error {
            BlobError::BadKey => request(StatusCode::BAD_REQUEST, "bad_blob_key"),
            BlobError::WrongDigest { .. } => request(StatusCode::UNPROCESSABLE_ENTITY, "wrong_digest"),
            BlobError::Taken(_) => request(StatusCode::CONFLICT, "blob_key_taken"),
            BlobError::TooLarge(_) => request(StatusCode::PAYLOAD_TOO_LARGE, "blob_too_large"),
            BlobError::NoSuchRange(_) => request(StatusCode::RANGE_NOT_SATISFIABLE, "no_such_range"),
            BlobError::BrokenOff(_) => request(StatusCode::BAD_REQUEST, "upload_broken_off"),
            BlobError::Removed { .. } => Self::plain_not_found(error.to_string()),
            BlobError::Checking(_) => request(StatusCode::SERVICE_UNAVAILABLE, "blob_being_checked"),
            BlobError::Full(_) => Self::Ours {
                status: StatusCode::INSUFFICIENT_STORAGE,
                code: "store_full",
                message: "the broker's blob store is full; nothing was stored",
                source: error.into(),
            },
            BlobError::Store(_) | BlobError::Folder { .. } | BlobError::Bucket { .. } => Self::Ours {
                status: StatusCode::SERVICE_UNAVAILABLE,
                code: "store_failed",
                message: "the broker's blob store failed; try again in a moment",
                source: error.into(),
            },
        }
    }
}

impl From<LogError> for ApiError {
    fn from(error: LogError) -> Self {
        Self::internal(error)
    }
}

const fn status_of(kind: RefusalKind) -> StatusCode {
    match kind {
        RefusalKind::BadRequest => StatusCode::BAD_REQUEST,
        RefusalKind::NotFound => StatusCode::NOT_FOUND,
        RefusalKind::Conflict => StatusCode::CONFLICT,
        RefusalKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        RefusalKind::Busy => StatusCode::TOO_MANY_REQUESTS,
        RefusalKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}

#[derive(Serialize)]
struct Told<'a> {
    error: &'a str,
    code: &'a str,
}

impl ApiError {
    /// The word for programs, when there is one.
    pub(super) const fn code(&self) -> Option<&'static str> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            Self::Request { code, .. } | Self::Ours { code, .. } => Some(*code),
            Self::Plain { .. } => None,
        }
    }

    /// Notes in the broker's log what is not the caller's doing.
    pub(super) fn note(&self) {
        if let Self::Ours { code, source, .. } = self {
            tracing::error!(error = source.as_ref(), code, "a request failed");
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let Some(code) = self.code() else { return reply::text(status, self.to_string()) };
        self.note();
        let mut response = reply::json(status, &Told { error: &self.to_string(), code });
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
