//! `/f/:key`: blobs in and out.

mod upload;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::app::AppState;
use super::error::ApiError;
use super::files::content_type;
use super::params::Params;
use super::reply;
use crate::blobs::{Blob, BlobError, BlobKey, Download, Part};
use crate::config::Flavour;

pub(super) use self::upload::{put, way_in};

/// What a page made of a stranger's bytes may do: nothing.
const USER_BYTES_POLICY: &str = "default-src 'none'; sandbox";

fn key(params: &Params) -> Result<BlobKey, ApiError> {
    Ok(params.get("key").unwrap_or_default().parse::<BlobKey>()?)
}

/// Sends a client to another address.
pub(super) fn send_on(address: &str) -> Result<Response, ApiError> {
    let location = HeaderValue::from_str(address)
        .map_err(|_| ApiError::bad("bad_address", "the file's address has characters that addresses don't have"))?;
    let mut response = reply::text(StatusCode::FOUND, "");
    response.headers_mut().insert(header::LOCATION, location);
    // Signed addresses are good for a while only.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// `GET /f/:key`
pub(super) async fn get(
    State(app): State<AppState>,
    method: Method,
    params: Params,
    query: Result<Query<Asked>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let key = key(&params)?;
    // Other parameters, and ones that cannot be read, are whatever an address had on it: they change nothing.
    let name = query.ok().and_then(|Query(asked)| asked.filename);
    let (name, content_type) = match &name {
        Some(name) => (name.as_str(), content_type(name)),
        None => (key.as_str(), octets_or_json(key.as_str())),
    };
    let asked = Wanted { key: &key, name, content_type, is_head: method == Method::HEAD };
    if is_known(&headers, &key) == Some(true) || !asked.redirects(&app) {
        return send(&app, &key, name, content_type, &headers).await;
    }
    match asked.way_out(&app).await? {
        Some(address) => send_on(&address),
        None => Err(ApiError::plain_not_found("File not found")),
    }
}

/// A blob, as somebody wants it.
pub(super) struct Wanted<'a> {
    pub(super) key: &'a BlobKey,
    pub(super) name: &'a str,
    pub(super) content_type: &'a str,
    pub(super) is_head: bool,
}

impl Wanted<'_> {
    /// Whether whoever wants it is sent to the store, if it is there.
    pub(super) fn redirects(&self, app: &AppState) -> bool {
        app.config.flavour == Flavour::Remote && app.blobs.redirects()
    }

    /// Where it can be had from the store; `None` when it is not there, or comes through us.
    pub(super) async fn way_out(&self, app: &AppState) -> Result<Option<String>, ApiError> {
        if !self.redirects(app) {
            return Ok(None);
        }
        let disposition = disposition(self.name);
        let download = Download { content_type: self.content_type, disposition: &disposition, is_head: self.is_head };
        Ok(app.blobs.way_out(self.key, download).await?)
    }
}

/// Whether the asker says that it has the blob; `None` when it says nothing. What is stored under a key never changes, so the
/// key names the bytes.
fn is_known(headers: &HeaderMap, key: &BlobKey) -> Option<bool> {
    headers.get(header::IF_NONE_MATCH).map(|value| names(value, &tag(key)))
}

fn tag(key: &BlobKey) -> HeaderValue {
    ascii(&format!("\"{key}\""))
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

pub(super) fn octets_or_json(name: &str) -> &'static str {
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
    let tag = tag(key);
    let names_it = |name: &HeaderName| headers.get(name).map(|value| names(value, &tag));
    if is_known(headers, key) == Some(true) && app.blobs.exists(key).await? {
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
    // Strangers made the bytes: should a browser ever show them as a page, it is one that can do and reach nothing.
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(USER_BYTES_POLICY));
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
