//! What the peers ask over HTTP, with redirects followed as they follow them.

use anyhow::{Context, bail, ensure};
use reqwest::header::LOCATION;
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// How often a request is sent on.
const REDIRECTS_MAX: usize = 5;

/// A client of the broker.
#[derive(Clone)]
pub(super) struct Http {
    client: Client,
    pub(super) base: String,
}

impl Http {
    pub(super) fn new(address: &str) -> anyhow::Result<Self> {
        let client = Client::builder().redirect(Policy::none()).build()?;
        Ok(Self { client, base: format!("http://{address}") })
    }

    /// Sends a request on for as long as it is told to, with the same method and body.
    async fn send(&self, method: Method, url: &str, body: Vec<u8>) -> anyhow::Result<Response> {
        let mut url = reqwest::Url::parse(url)?;
        for _ in 0..=REDIRECTS_MAX {
            let request = self.client.request(method.clone(), url.clone()).body(body.clone());
            let answer = request.send().await?;
            if !answer.status().is_redirection() {
                return Ok(answer);
            }
            let to = answer.headers().get(LOCATION).context("a redirect to nowhere")?.to_str()?;
            url = url.join(to)?;
        }
        bail!("{url} redirects without an end");
    }

    /// The JSON of an address, which must be there.
    pub(super) async fn json(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self.send(Method::GET, &format!("{}{path}", self.base), Vec::new()).await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "GET {path} answers {status}: {text:.200}");
        serde_json::from_str(&text).with_context(|| format!("GET {path} is not JSON: {text:.80}"))
    }

    pub(super) async fn text(&self, path: &str) -> anyhow::Result<String> {
        let answer = self.send(Method::GET, &format!("{}{path}", self.base), Vec::new()).await?;
        Ok(answer.error_for_status()?.text().await?)
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let answer = self.send(Method::POST, &format!("{}{path}", self.base), body.to_string().into_bytes()).await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "POST {path} answers {status}: {text:.200}");
        Ok(serde_json::from_str(&text)?)
    }

    /// Stores bytes under their digest unless they are there; gives their address.
    pub(super) async fn upload(&self, bytes: Vec<u8>, asks_first: bool) -> anyhow::Result<String> {
        let url = format!("{}/f/{}", self.base, sha256(&bytes));
        if asks_first {
            let answer = self.send(Method::GET, &format!("{url}/exists"), Vec::new()).await?;
            match answer.status() {
                StatusCode::OK => return Ok(url),
                StatusCode::NOT_FOUND => {}
                other => bail!("/exists answers {other}"),
            }
        }
        let answer = self.send(Method::PUT, &url, bytes).await?;
        ensure!(answer.status().as_u16() < 400, "PUT {url} answers {}", answer.status());
        Ok(url)
    }

    /// The bytes at an address, which must be those of the digest in it.
    pub(super) async fn download(&self, url: &str, digest: &str) -> anyhow::Result<usize> {
        let answer = self.send(Method::GET, url, Vec::new()).await?.error_for_status()?;
        let bytes = answer.bytes().await?;
        ensure!(sha256(&bytes) == digest, "{url} has other bytes");
        Ok(bytes.len())
    }
}

/// The digest by which blobs are called.
pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The digest in the address of a blob.
pub(super) fn digest_of(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or_default()
}
