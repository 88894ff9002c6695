//! `GET /upload/:key` and `GET /download/:key`: where to put or get a blob, for old clients that ask first.

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Serialize;

use super::app::AppState;
use super::blobs::{Wanted, octets_or_json, way_in};
use super::client::Client;
use super::error::ApiError;
use super::params::Params;
use super::reply;
use crate::blobs::{BlobKey, WayIn};

#[derive(Serialize)]
struct Transfer<'a> {
    url: &'a str,
    #[serde(rename = "ref")]
    data_ref: DataRef<'a>,
}

#[derive(Serialize)]
struct DataRef<'a> {
    value: &'a str,
    r#type: &'static str,
}

pub(super) async fn upload(
    State(app): State<AppState>,
    Extension(client): Extension<Client>,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (key, own) = address(&app, client, &params, &headers)?;
    let url = match way_in(&app, &key, &headers).await? {
        WayIn::At(address) => address,
        WayIn::Here | WayIn::Stored => own,
    };
    let data_ref = DataRef { value: key.as_str(), r#type: "key" };
    Ok(reply::json(StatusCode::OK, &Transfer { url: &url, data_ref }))
}

pub(super) async fn download(
    State(app): State<AppState>,
    Extension(client): Extension<Client>,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (key, own) = address(&app, client, &params, &headers)?;
    let wanted = Wanted { key: &key, name: key.as_str(), content_type: octets_or_json(key.as_str()), is_head: false };
    let url = wanted.way_out(&app).await?.unwrap_or_else(|| own.clone());
    // What goes into definitions must be good for longer than a signed address is.
    Ok(reply::json(StatusCode::OK, &Transfer { url: &url, data_ref: DataRef { value: &own, r#type: "url" } }))
}

fn address(
    app: &AppState,
    client: Client,
    params: &Params,
    headers: &HeaderMap,
) -> Result<(BlobKey, String), ApiError> {
    let key: BlobKey = params.get("key").unwrap_or_default().parse()?;
    let url = format!("{}/f/{key}", client.base_url(headers, &app.config));
    Ok((key, url))
}
