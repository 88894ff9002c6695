//! `/f/:key`: blobs in and out.

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::app::AppState;
use super::error::ApiError;
use super::files::content_type;
use super::params::{self, Params};
use super::reply;
use super::room::{Room, Taken};
use crate::blobs::{Blob, BlobError, BlobKey, PART_BYTES, Part};

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
    let mut gathered = Gathered::new(&app.room);
    let stored = match key(&params) {
        Ok(_) if params::content_length(&head.headers).is_some_and(|length| length > bytes_max) => {
            Err(BlobError::TooLarge(bytes_max).into())
        }
        Ok(key) => {
            let pieces = stream::unfold((&mut body, &mut gathered), |(body, gathered)| async move {
                gathered.give_back();
                let piece = params::piece(body, idle).await.transpose()?;
                let piece = piece.and_then(|piece| gathered.add(&piece).map(|()| piece));
                Some((piece, (body, gathered)))
            });
            app.blobs.put(&key, pieces).await.map(|_| key).map_err(told)
        }
        Err(error) => Err(error),
    };
    match stored {
        Ok(key) => Ok(reply::text(StatusCode::OK, format!("file saved to f/{key}"))),
        Err(error) => {
            drop(gathered);
            // Of a sender that fell silent there is nothing to wait for.
            if error.status() != StatusCode::REQUEST_TIMEOUT {
                params::drain(body).await;
            }
            Err(error)
        }
    }
}

/// The room that an upload takes: for what the store has been given and has not written yet. It writes when it is given more
/// after the first [`PART_BYTES`], and then each time that as many are there.
struct Gathered<'a> {
    room: &'a Room,
    taken: Taken,
    bytes: u64,
    is_large: bool,
    is_written: bool,
}

impl<'a> Gathered<'a> {
    fn new(room: &'a Room) -> Self {
        Self { room, taken: Taken::default(), bytes: 0, is_large: false, is_written: false }
    }

    /// A piece that goes to the store next.
    fn add(&mut self, piece: &Bytes) -> Result<(), ApiError> {
        self.bytes += piece.len() as u64;
        self.room.hold(&mut self.taken, self.bytes)?;
        let is_part = self.bytes >= PART_BYTES as u64;
        self.is_written = is_part && self.is_large;
        self.is_large |= is_part;
        Ok(())
    }

    /// The store asks for more: it is done with what it was given.
    fn give_back(&mut self) {
        if std::mem::take(&mut self.is_written) {
            (self.bytes, self.taken) = (0, Taken::default());
        }
    }
}

/// A body that broke off, stalled or found no room says so itself.
fn told(error: BlobError) -> ApiError {
    let BlobError::BrokenOff(source) = error else { return error.into() };
    match source.downcast::<ApiError>() {
        Ok(own) => *own,
        Err(source) => BlobError::BrokenOff(source).into(),
    }
}

/// `GET /f/:key`
pub(super) async fn get(
    State(app): State<AppState>,
    params: Params,
    query: Result<Query<Asked>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let key = key(&params)?;
    // Other parameters, and ones that cannot be read, are whatever an address had on it: they change nothing.
    match query.ok().and_then(|Query(asked)| asked.filename) {
        Some(name) => send(&app, &key, &name, content_type(&name), &headers).await,
        None => send(&app, &key, key.as_str(), octets_or_json(key.as_str()), &headers).await,
    }
}

#[derive(Deserialize)]
pub(super) struct Asked {
    filename: Option<String>,
}

/// A blob's address, as a download of that name.
pub(super) fn address_of(base: &str, key: &BlobKey, name: &str) -> String {
    format!("{base}/f/{key}?filename={}", utf8_percent_encode(name, NOT_ATTR_CHAR))
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
    // What is stored under a key never changes, so the key names the bytes.
    let tag = ascii(&format!("\"{key}\""));
    let names_it = |name: &HeaderName| headers.get(name).map(|value| names(value, &tag));
    if names_it(&header::IF_NONE_MATCH) == Some(true) && app.blobs.exists(key).await? {
        let mut response = reply::text(StatusCode::NOT_MODIFIED, "");
        response.headers_mut().remove(header::CONTENT_TYPE);
        response.headers_mut().insert(header::ETAG, tag);
        return Ok(response);
    }
    let range = headers.get(header::RANGE).filter(|_| names_it(&header::IF_RANGE) != Some(false));
    let part = range.and_then(|range| range.to_str().ok()).and_then(parse_range);
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
    response.headers_mut().insert(header::ETAG, tag);
    if part.is_some() && length > 0 {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let said = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        response.headers_mut().insert(header::CONTENT_RANGE, ascii(&said));
    }
    Ok(response)
}

/// Whether a condition names the tag: among others, as a weak one, or with everything.
fn names(condition: &HeaderValue, tag: &HeaderValue) -> bool {
    let (Ok(condition), Ok(tag)) = (condition.to_str(), tag.to_str()) else { return false };
    let mut named = condition.split(',').map(str::trim);
    named.any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
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
    use futures_util::StreamExt;

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

    #[tokio::test]
    async fn an_upload_has_room_for_all_that_is_not_written_yet() {
        const PIECE: usize = 60_000;
        let folder = tempfile::TempDir::new().unwrap();
        let blobs =
            crate::blobs::Blobs::open(&crate::config::BlobsUrl::Folder(folder.path().into()), u64::MAX).unwrap();
        let written = || -> u64 {
            let files = std::fs::read_dir(folder.path().join("uploads")).unwrap();
            files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
        };
        let room = Room::new(u64::MAX);
        let mut gathered = Gathered::new(&room);
        let pieces = stream::iter(0..100_u64).map(|number| {
            gathered.give_back();
            assert_eq!(written() + gathered.bytes, number * PIECE as u64);
            let piece = Bytes::from_static(&[0; PIECE]);
            gathered.add(&piece).map(|()| piece)
        });
        blobs.put(&"key".parse().unwrap(), pieces).await.unwrap();
        assert!(gathered.is_large);
    }
}
