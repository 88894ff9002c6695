//! Documents for people and for programs that read them: `/docs/…` and `/llms.txt`, all of them part of the binary.

mod markdown;

use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use protocol::link::OWN_PARAMS;

use super::params::Params;
use super::reply;
use super::routes::ROUTES;

/// A page of the documentation.
struct Document {
    /// Its address is `/docs/<name>`.
    name: &'static str,
    title: &'static str,
    markdown: &'static str,
}

macro_rules! document {
    ($name:literal, $title:literal) => {
        Document { name: $name, title: $title, markdown: include_str!(concat!("../../../docs/", $name, ".md")) }
    };
}

/// Everything in `docs/`.
const DOCUMENTS: &[Document] = &[
    document!("websocket", "The websocket"),
    document!("many-jobs", "Many jobs"),
    document!("webhooks", "Webhooks"),
    document!("operating", "Running a broker"),
    document!("workers", "Running a worker"),
    document!("blobs", "Where inputs and outputs are kept"),
    document!("security", "Security"),
    document!("compatibility", "Compatibility"),
    document!("performance", "How fast it is"),
    document!("changelog", "Changelog"),
];

/// Documents hold no scripts; should anything in one be taken for markup, it can load and reach nothing.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

const STYLE: &str = "body{margin:2rem auto;padding:0 1rem;max-width:60rem;font:1rem/1.6 system-ui,sans-serif;color-scheme:light dark}\
pre{overflow-x:auto;padding:.75rem;border:1px solid #8886;border-radius:.375rem}code,pre{font-family:ui-monospace,monospace;font-size:.875em}\
td code{overflow-wrap:anywhere}table{border-collapse:collapse;display:block;overflow-x:auto}th,td{text-align:left;vertical-align:top;padding:.25rem .75rem .25rem 0;\
border-bottom:1px solid #8884}";

/// `GET /docs`
pub(super) async fn to_index() -> Response {
    let mut response = reply::text(StatusCode::MOVED_PERMANENTLY, "");
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/docs/"));
    response
}

/// `GET /docs/`
pub(super) async fn index() -> Response {
    let mut list = String::from("<h1>Gridsocket</h1><ul>");
    for Document { name, title, .. } in DOCUMENTS {
        // Writing to a String cannot fail.
        let _ = write!(list, "<li><a href=\"/docs/{name}\">{title}</a></li>");
    }
    list.push_str("<li><a href=\"/openapi.json\">The REST API (OpenAPI 3.1)</a></li><li><a href=\"/llms.txt\">For language models</a></li></ul>");
    html(StatusCode::OK, "Gridsocket", &list)
}

/// `GET /docs/*`: a document as a page, or with `.md` as it was written.
pub(super) async fn document(params: Params) -> Response {
    let page = params.get("page").unwrap_or_default();
    let name = page.strip_suffix(".md").or_else(|| page.strip_suffix(".html")).unwrap_or(page);
    let Some(document) = DOCUMENTS.iter().find(|document| document.name == name) else {
        return html(
            StatusCode::NOT_FOUND,
            "Not found",
            "<h1>Not found</h1><p><a href=\"/docs/\">All documents</a></p>",
        );
    };
    if page.ends_with(".md") {
        let headers =
            [(header::CONTENT_TYPE, "text/markdown; charset=UTF-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
        return (headers, document.markdown).into_response();
    }
    html(StatusCode::OK, document.title, &markdown::to_html(document.markdown))
}

fn html(status: StatusCode, title: &str, body: &str) -> Response {
    let text = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, \
         initial-scale=1\"><title>{title}</title><style>{STYLE}</style></head><body>{body}</body></html>"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=UTF-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, text).into_response()
}

/// `GET /llms.txt`
pub(super) async fn for_models() -> Response {
    static TEXT: LazyLock<String> = LazyLock::new(write_for_models);
    reply::text(StatusCode::OK, TEXT.as_str())
}

const FOR_MODELS: &str = "\
# Gridsocket

> Container jobs for anyone, on machines that anyone can plug in. A job is a container definition in a queue; workers on
> people's machines take jobs from the queue, run them, and stream logs and outputs back.

A queue is a name in an address. Whoever knows the name can submit to the queue, read it and work for it: treat it like a
password. A job's id is the SHA-256 of its definition, so the same definition is the same job, and a second submission is
answered with the result that is there.

## A job

POST /q/<queue> with a definition, then read its result when it is there:

    {\"definition\": {\"image\": \"alpine:3.20\", \"command\": \"sh -c 'wc -c /inputs/text.txt > /outputs/count.txt'\",
                    \"inputs\": {\"text.txt\": {\"type\": \"utf8\", \"value\": \"hello\"}}}}

Fields: image or build, command, entrypoint, workdir, env, inputs, configFiles, requirements {cpus, memory, gpus},
maxDuration, shmSize, tags. Inputs are {type, value} with type utf8, base64, json or url; larger ones are uploaded with
PUT /f/<sha256> first and named by url. In the container:

- JOB_INPUTS (/inputs): the inputs, read-only
- JOB_OUTPUTS (/outputs): what is written here becomes the outputs
- JOB_CACHE: a folder shared by the jobs of one queue on one worker
- JOB_ID: the job's id
- CUDA_VISIBLE_DEVICES: the GPUs that the job was given

Page -> POST /q/<queue> -> the queue -> a worker's websocket -> container -> logs and outputs -> result.json, outputs/<name>

## Workers

    gridsocket run <queue> --api-address <this address>     work for a queue of this broker
    gridsocket local                                          broker, worker and page on one machine; its queue is `local`

## Links to show a job

- <address>/j/<id>#?queue=<queue>: the page of a job
- <address>/#?queue=<queue>&job=<JSON, base64 and percent-encoded>: a page that holds the whole job
- <address>/j/<id>.json: the job as data

";

fn write_for_models() -> String {
    let mut text = String::from(FOR_MODELS);
    text.push_str("Parameters after `#?`: ");
    text.push_str(&OWN_PARAMS.join(", "));
    text.push_str(
        "\n\n## REST\n\nThe whole of it is in /openapi.json; an error is {\"error\": text, \"code\": word}.\n\n",
    );
    for route in ROUTES.iter().filter(|route| !route.is_deprecated) {
        let _ = writeln!(text, "- {} {}: {}", route.verb.name(), route.shown_path(), route.summary);
    }
    text.push_str("\n## Websockets\n\n- /q/<queue>/client and /q/<queue>/worker: see /docs/websocket\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_is_in_the_binary() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let Some(name) = name.strip_suffix(".md") else { continue };
            assert!(DOCUMENTS.iter().any(|document| document.name == name), "docs/{name}.md is not in DOCUMENTS");
        }
    }
}
