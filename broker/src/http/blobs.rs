//! `/f/:key`: blobs in and out.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use super::app::AppState;
use super::error::ApiError;
use super::params::{self, Params};
use super::reply;
use crate::blobs::{Blob, BlobError, BlobKey, Part};

fn key(params: &Params) -> Result<BlobKey, ApiError> {
    Ok(params.get("key").unwrap_or_default().parse::<BlobKey>()?)
}

/// `PUT /f/:key`
pub(super) async fn put(
    State(app): State<AppState>,
    params: Params,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let (head, mut body) = request.into_parts();
    let idle = app.config.limits.body_idle_timeout;
    let bytes_max = app.config.limits.blob_bytes_max;
    let stored = match key(&params) {
        Ok(_) if params::content_length(&head.headers).is_some_and(|length| length > bytes_max) => {
            Err(BlobError::TooLarge(bytes_max).into())
        }
        Ok(key) => {
            let pieces = stream::unfold(&mut body, |body| async move {
                params::piece(body, idle).await.transpose().map(|piece| (piece, body))
            });
            app.blobs.put(&key, pieces).await.map(|_| key).map_err(told)
        }
        Err(error) => Err(error),
    };
    match stored {
        Ok(key) => Ok(reply::text(StatusCode::OK, format!("file saved to f/{key}"))),
        Err(error) => {
            // Of a sender that fell silent there is nothing to wait for.
            if error.status() != StatusCode::REQUEST_TIMEOUT {
                params::drain(body).await;
            }
            Err(error)
        }
    }
}

/// A body that broke off or stalled says so itself.
fn told(error: BlobError) -> ApiError {
    let BlobError::BrokenOff(source) = error else { return error.into() };
    match source.downcast::<ApiError>() {
        Ok(own) => *own,
        Err(source) => BlobError::BrokenOff(source).into(),
    }
}

/// `GET /f/:key`
pub(super) async fn get(State(app): State<AppState>, params: Params, headers: HeaderMap) -> Result<Response, ApiError> {
    let key = key(&params)?;
    send(&app, &key, key.as_str(), octets_or_json(key.as_str()), &headers).await
}

/// `GET /f/:key/exists`
pub(super) async fn exists(State(app): State<AppState>, params: Params) -> Result<Response, ApiError> {
    #[derive(Serialize)]
    struct Exists {
        exists: bool,
    }
    let exists = app.blobs.exists(&key(&params)?).await?;
    let status = if exists { StatusCode::OK } else { StatusCode::NOT_FOUND };
    Ok(reply::json(status, &Exists { exists }))
}

fn octets_or_json(name: &str) -> &'static str {
    if name.ends_with(".json") { "application/json" } else { "application/octet-stream" }
}

/// Sends a blob as a download called `name`.
pub(super) async fn send(
    app: &AppState,
    key: &BlobKey,
    name: &str,
    content_type: &'static str,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let part = headers.get(header::RANGE).and_then(|range| range.to_str().ok()).and_then(parse_range);
    let blob = match app.blobs.get(key, part).await {
        Ok(Some(blob)) => blob,
        Ok(None) => return Err(ApiError::plain_not_found("File not found")),
        Err(BlobError::NoSuchRange(size)) => {
            let mut response = ApiError::from(BlobError::NoSuchRange(size)).into_response();
            response.headers_mut().insert(header::CONTENT_RANGE, ascii(&format!("bytes */{size}")));
            return Ok(response);
        }
        Err(error) => return Err(error.into()),
    };
    let Blob { size, range, bytes } = blob;
    let length = range.end - range.start;
    let mut response = download(name, content_type, length, Body::from_stream(bytes));
    response.headers_mut().insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if part.is_some() && length > 0 {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let said = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        response.headers_mut().insert(header::CONTENT_RANGE, ascii(&said));
    }
    Ok(response)
}

/// Sends bytes as a download called `name`.
pub(super) fn send_bytes(name: &str, content_type: &'static str, bytes: Bytes) -> Response {
    let length = bytes.len() as u64;
    download(name, content_type, length, bytes.into())
}

fn download(name: &str, content_type: &'static str, length: u64, body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::CONTENT_DISPOSITION, ascii(&disposition(name)));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// For texts that are ASCII by how they were made.
fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("attachment"))
}

/// RFC 8187's attr-char: what may stand unescaped in `filename*`.
const NOT_ATTR_CHAR: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// RFC 6266: the name in quotes with nothing in it that could end them, and its exact form beside it when they differ.
fn disposition(name: &str) -> String {
    let plain = |c: char| if matches!(c, ' '..='~') && c != '"' && c != '\\' { c } else { '_' };
    let quoted: String = name.chars().map(plain).collect();
    let mut text = format!("attachment; filename=\"{quoted}\"");
    if quoted != name {
        text.push_str("; filename*=UTF-8''");
        text.extend(utf8_percent_encode(name, NOT_ATTR_CHAR));
    }
    text
}

/// One range of bytes. Several at once, other units and nonsense count as none, and the whole is sent, as RFC 9110 allows.
fn parse_range(text: &str) -> Option<Part> {
    let (start, end) = text.strip_prefix("bytes=")?.split_once('-')?;
    match (start, end) {
        // The last none are no range.
        ("", last) => last.parse().ok().filter(|last| *last > 0).map(Part::Last),
        (start, "") => start.parse().ok().map(Part::From),
        (start, last) => {
            let (start, last): (u64, u64) = (start.parse().ok()?, last.parse().ok()?);
            (start <= last).then(|| Part::Between(start, last.saturating_add(1)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_or_ignored() {
        assert_eq!(parse_range("bytes=0-9"), Some(Part::Between(0, 10)));
        assert_eq!(parse_range("bytes=5-"), Some(Part::From(5)));
        assert_eq!(parse_range("bytes=-5"), Some(Part::Last(5)));
        for ignored in
            ["", "bytes=", "bytes=-", "bytes=-0", "bytes=9-0", "bytes=0-1,3-4", "lines=0-1", "bytes=a-b", "bytes=+1-2x"]
        {
            assert_eq!(parse_range(ignored), None, "{ignored}");
        }
    }

    #[test]
    fn a_file_name_cannot_break_out_of_its_header() {
        assert_eq!(disposition("o.txt"), "attachment; filename=\"o.txt\"");
        assert_eq!(
            disposition("a\"b\r\nX: 1"),
            "attachment; filename=\"a_b__X: 1\"; filename*=UTF-8''a%22b%0D%0AX%3A%201"
        );
        assert_eq!(disposition("é.txt"), "attachment; filename=\"_.txt\"; filename*=UTF-8''%C3%A9.txt");
    }
}
