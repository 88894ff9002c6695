//! Sending an asker on to an address that a stranger wrote into a job.
//!
//! Programs and pages that fetch a file follow a redirect, and they may: they asked for that file. A browser that is *opened* at
//! one of our addresses and lands somewhere else has been led there by our name, so it is shown where the link goes instead.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::reply;

/// The page holds an address that a stranger wrote, and nothing else that is not ours.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// A redirect, or a page that names the address when a person would be led there unasked.
pub(super) fn send_on(address: &str, headers: &HeaderMap) -> Result<Response, ApiError> {
    let location = HeaderValue::from_str(address)
        .map_err(|_| ApiError::bad("bad_address", "the file's address has characters that addresses don't have"))?;
    let is_opened = headers.get("sec-fetch-mode").is_some_and(|mode| mode == "navigate");
    let mut response = if is_opened { shown(address) } else { reply::text(StatusCode::FOUND, "") };
    if !is_opened {
        response.headers_mut().insert(header::LOCATION, location);
    }
    // What leads here holds a queue's name.
    response.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Sec-Fetch-Mode"));
    Ok(response)
}

fn shown(address: &str) -> Response {
    let address = escaped(address);
    let text = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>This file is elsewhere</title></head><body>\
         <p>The job says that this file is at another address. Whoever submitted the job wrote it; go there only if you trust them.</p>\
         <p><a rel=\"noreferrer noopener\" href=\"{address}\">{address}</a></p></body></html>"
    );
    let headers = [(header::CONTENT_TYPE, "text/html; charset=UTF-8"), (header::CONTENT_SECURITY_POLICY, POLICY)];
    (headers, text).into_response()
}

/// As text inside of HTML, attributes included.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}
