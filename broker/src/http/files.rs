//! The bytes of one input or output of a job, wherever its definition or result says that they are.

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::Response;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use protocol::json::{self, Value};

use super::app::AppState;
use super::blobs::{Wanted, address_of, send, send_bytes, send_on};
use super::client::Client;
use super::cors::is_this_machine;
use super::elsewhere;
use super::error::ApiError;
use super::find::Scope;
use super::params::Params;
use super::reply;
use crate::blobs::BlobKey;
use crate::config::Flavour;

/// Up to this many bytes of JSON are read at once, which takes about a millisecond; more is read on a thread of its own.
const PARSED_HERE_BYTES_MAX: usize = 128 * 1024;

/// Who asks for a file, and how.
#[derive(Clone, Copy)]
struct Asker<'a> {
    client: Client,
    is_head: bool,
    headers: &'a HeaderMap,
}

/// `GET …/inputs/` and `…/outputs/`
pub(super) async fn missing_name() -> ApiError {
    ApiError::Plain { status: StatusCode::BAD_REQUEST, message: "Missing filename".to_owned() }
}

/// `GET [/q/:queue]/j/:job/inputs/*`
pub(super) async fn input(
    State(app): State<AppState>,
    params: Params,
    Extension(client): Extension<Client>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let asker = Asker { client, is_head: method == Method::HEAD, headers: &headers };
    let (scope, job) = (app.scope(&params)?, params.job()?);
    let Some(definition) = app.definition(&scope, job).await? else {
        return Err(ApiError::plain_not_found("Job not found"));
    };
    serve_of(&app, definition, &["inputs"], "Input", &params, asker).await
}

/// `GET [/q/:queue]/j/:job/outputs/*`
pub(super) async fn output(
    State(app): State<AppState>,
    params: Params,
    Extension(client): Extension<Client>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let asker = Asker { client, is_head: method == Method::HEAD, headers: &headers };
    let (scope, job) = (app.scope(&params)?, params.job()?);
    let Some(finished) = app.finished(&scope, job).await? else {
        return Err(ApiError::plain_not_found(no_result(&app, &scope, job).await?));
    };
    serve_of(&app, finished.into_text(), &["result", "outputs"], "Output", &params, asker).await
}

async fn no_result(app: &AppState, scope: &Scope, job: protocol::id::JobId) -> Result<&'static str, ApiError> {
    Ok(match app.config.flavour {
        Flavour::Remote => "Finished job not found",
        Flavour::Local if app.definition(scope, job).await?.is_some() => "Job results not found",
        Flavour::Local => "Job not found",
    })
}

/// Sends the file that the route names, one of those at `path` inside of the JSON `text`.
async fn serve_of(
    app: &AppState,
    text: Bytes,
    path: &'static [&'static str],
    kind: &str,
    params: &Params,
    asker: Asker<'_>,
) -> Result<Response, ApiError> {
    let name = params.get("name").unwrap_or_default();
    let data_ref = if text.len() <= PARSED_HERE_BYTES_MAX {
        find(&text, path, name)?
    } else {
        let name = name.to_owned();
        let found = tokio::task::spawn_blocking(move || find(&text, path, &name));
        found.await.map_err(ApiError::internal)??
    };
    let not_found = || ApiError::plain_not_found(format!("{kind} file '{name}' not found"));
    serve(app, &data_ref.ok_or_else(not_found)?, name, asker).await
}

fn find(text: &[u8], path: &[&str], name: &str) -> Result<Option<Value>, ApiError> {
    let value = json::parse(text).map_err(ApiError::internal)?;
    let found = path.iter().copied().chain([name]).try_fold(&value, |value, key| value.get(key));
    Ok(found.filter(|data_ref| !data_ref.is_null()).cloned())
}

async fn serve(app: &AppState, data_ref: &Value, name: &str, asker: Asker<'_>) -> Result<Response, ApiError> {
    // A file that is given without wrapping is its own text.
    let (kind, value) = match data_ref {
        Value::String(_) => ("utf8", data_ref),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            let kind = data_ref.get("type").filter(|kind| !kind.is_null());
            (
                kind.map_or("utf8", |kind| kind.as_str().unwrap_or_default()),
                data_ref.get("value").unwrap_or(&Value::Null),
            )
        }
    };
    let text = || value.as_js_string().map(json::JsString::to_string_lossy);
    let bad_value = || ApiError::bad("bad_data", "the file's value is not text");
    match kind {
        "utf8" => {
            let text = text().ok_or_else(bad_value)?.into_owned();
            Ok(reply::text(StatusCode::OK, text))
        }
        "json" => Ok(reply::raw_json(StatusCode::OK, json::to_json(value))),
        "base64" => {
            let bytes = text().and_then(|text| decode_base64(&text));
            let bytes = bytes.ok_or_else(|| ApiError::bad("bad_base64", "Invalid base64 data"))?;
            let file = name.rsplit('/').next().unwrap_or(name);
            Ok(send_bytes(file, content_type(file), bytes))
        }
        "key" => {
            let key: BlobKey = text().ok_or_else(bad_value)?.parse()?;
            let wanted = Wanted { key: &key, name, content_type: content_type(name), is_head: asker.is_head };
            match wanted.way_out(app).await? {
                Some(address) => send_on(&address),
                None => send(app, &key, name, content_type(name), asker.headers).await,
            }
        }
        "url" => at_address(app, &text().ok_or_else(bad_value)?, name, asker).await,
        _ => Err(ApiError::bad("unknown_data_type", "Unknown data type")),
    }
}

/// Sends what is at `address`: from our own blobs when it is there, else by sending the asker there.
async fn at_address(app: &AppState, address: &str, name: &str, asker: Asker<'_>) -> Result<Response, ApiError> {
    let uri: Option<Uri> = address.split('#').next().unwrap_or_default().parse().ok();
    let is_web = uri.as_ref().and_then(Uri::scheme_str).is_some_and(|scheme| matches!(scheme, "http" | "https"));
    let Some(uri) = uri.filter(|_| is_web) else {
        return Err(ApiError::bad("bad_address", "the file's address is not an http or https address"));
    };
    let key = uri.path().strip_prefix("/f/").and_then(|key| key.parse::<BlobKey>().ok());
    if let Some(key) = key
        // A digest names the same bytes at every host; other keys are only ours.
        && (key.is_digest() || is_own(app, &uri, asker.headers))
        && app.blobs.exists(&key).await?
    {
        return match app.config.flavour {
            Flavour::Local => send(app, &key, name, content_type(name), asker.headers).await,
            // Its clients expect to be sent on.
            Flavour::Remote => {
                let wanted = Wanted { key: &key, name, content_type: content_type(name), is_head: asker.is_head };
                if let Some(address) = wanted.way_out(app).await? {
                    return send_on(&address);
                }
                let base = asker.client.base_url(asker.headers, &app.config);
                send_on(&address_of(&base, &key, name))
            }
        };
    }
    match app.config.flavour {
        Flavour::Remote => elsewhere::send_on(address, asker.headers),
        Flavour::Local => Err(ApiError::plain_not_found("File not found")),
    }
}

fn is_own(app: &AppState, uri: &Uri, headers: &HeaderMap) -> bool {
    let Some(authority) = uri.authority().map(axum::http::uri::Authority::as_str) else { return false };
    let asked = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let public = app.config.public_url.as_deref().and_then(|url| url.parse::<Uri>().ok());
    asked.is_some_and(|host| host.eq_ignore_ascii_case(authority))
        || public.and_then(|url| url.authority().map(|own| own.as_str() == authority)).unwrap_or(false)
        || (app.config.flavour == Flavour::Local && is_this_machine(authority))
}

/// As a browser's `atob`: white space and missing padding do not matter.
fn decode_base64(text: &str) -> Option<Bytes> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    let is_space = |byte: &u8| byte.is_ascii_whitespace();
    if text.bytes().any(|byte| is_space(&byte)) {
        let packed: Vec<u8> = text.bytes().filter(|byte| !is_space(byte)).collect();
        return LENIENT.decode(packed).ok().map(Bytes::from);
    }
    LENIENT.decode(text).ok().map(Bytes::from)
}

/// What files that jobs make are usually called.
pub(super) fn content_type(name: &str) -> &'static str {
    let file = name.rsplit('/').next().unwrap_or(name);
    let ending = file.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    match ending.as_deref().unwrap_or_default() {
        "txt" | "log" | "md" => "text/plain; charset=UTF-8",
        "csv" => "text/csv; charset=UTF-8",
        "html" | "htm" => "text/html; charset=UTF-8",
        "css" => "text/css; charset=UTF-8",
        "js" | "mjs" => "text/javascript; charset=UTF-8",
        "json" => "application/json; charset=UTF-8",
        "xml" => "application/xml",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        "tar" => "application/x-tar",
        "wasm" => "application/wasm",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "svg" => "image/svg+xml",
        "mp3" => "audio/mpeg",
        "wav" => "audio/wav",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_as_browsers_read_it() {
        assert_eq!(decode_base64("aGVsbG8K").as_deref(), Some(&b"hello\n"[..]));
        assert_eq!(decode_base64("aGVs\nbG8").as_deref(), Some(&b"hello"[..]));
        assert_eq!(decode_base64("aGVsbG8=").as_deref(), Some(&b"hello"[..]));
        assert_eq!(decode_base64("###"), None);
    }

    #[test]
    fn a_content_type_follows_the_last_ending() {
        assert_eq!(content_type("a/b.tar.gz"), "application/gzip");
        assert_eq!(content_type("A.PNG"), "image/png");
        assert_eq!(content_type("dir.png/file"), "application/octet-stream");
    }
}
