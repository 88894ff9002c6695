//! The page, at its own address and at each job's; and what pages that embed it ask for first.

use std::sync::LazyLock;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use protocol::link::OWN_PARAMS;
use serde_json::json;

use super::app::AppState;
use super::error::ApiError;
use super::params::Params;
use super::{jobs, reply};

/// Everything the page is, in one file: no build step and nothing fetched from elsewhere.
const PAGE: &str = include_str!("../page/index.html");

/// The page one folder down, with addresses that still start at the top.
static PAGE_OF_JOB: LazyLock<String> = LazyLock::new(|| at_the_top(PAGE));

/// The page shows text that strangers wrote; should any of it ever be taken for markup, it can load and reach nothing.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
                           connect-src 'self'; base-uri 'self'; form-action 'none'";

/// `GET /`
pub(super) async fn page() -> Response {
    html(PAGE)
}

/// `GET /j/:job`, the page that shows a job; with `.json` at the end, the job itself.
pub(super) async fn job_page(state: State<AppState>, params: Params) -> Result<Response, ApiError> {
    let name = params.get("job").unwrap_or_default();
    match name.strip_suffix(".json") {
        Some(id) => jobs::single_anywhere(state, id).await,
        None => Ok(html(&PAGE_OF_JOB)),
    }
}

fn html(text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=UTF-8"),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // The address's fragment holds a queue's name.
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, text).into_response()
}

/// Says in a page that its addresses start at the top: in the `base` that it has, or in one of its own.
fn at_the_top(page: &str) -> String {
    if page.contains("<base ") {
        return page.replacen("<base ", "<base href=\"/\" ", 1);
    }
    page.replacen("<head>", "<head><base href=\"/\">", 1)
}

/// `GET /metaframe.json` and `GET /j/:job/metaframe.json`: what the page is to a page that embeds it.
pub(super) async fn metaframe() -> Response {
    let title = "Run a docker container";
    let about = json!({
        "version": "2",
        "metadata": { "title": title, "name": title, "author": "Gridsocket", "authors": ["Gridsocket"] },
        "allow": "clipboard-write",
        "inputs": {},
        "outputs": {},
        "hashParams": OWN_PARAMS,
    });
    reply::json(StatusCode::OK, &about)
}

/// `GET /healthz` and `GET /health`
pub(super) async fn healthy() -> Response {
    reply::text(StatusCode::OK, "OK")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_one_folder_down_starts_its_addresses_at_the_top() {
        assert_eq!(at_the_top("<html><head><title>"), "<html><head><base href=\"/\"><title>");
        assert_eq!(at_the_top("<head><base target=\"_parent\">"), "<head><base href=\"/\" target=\"_parent\">");
        assert!(PAGE_OF_JOB.contains("href=\"/\""));
    }
}
