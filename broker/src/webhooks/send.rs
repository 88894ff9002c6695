//! One try of one call, over HTTP.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use protocol::id::QueueName;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::redirect;
use reqwest::{Client, StatusCode};
use rustls::{ClientConfig, RootCertStore};

use super::address::{AddressError, Policy};
use super::call::CallId;
use super::sign::Secret;
use crate::clock;

/// How many redirects of one try are followed: to TLS, to another name, to a path; more is a circle.
const REDIRECTS_MAX: usize = 3;

/// The longest text that says why a try failed, in bytes: it is kept and shown.
const ERROR_BYTES_MAX: usize = 200;

/// How long a connection is kept for the next call to the same host.
const IDLE: Duration = Duration::from_secs(20);

/// Names of our own headers: `webhook-…` are those of Standard Webhooks.
const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const EVENT: HeaderName = HeaderName::from_static("gridsocket-event");

/// Makes calls.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    client: Client,
    policy: Policy,
    timeout: Duration,
}

/// Why a try failed. The texts are for whoever asked for the call.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the address {0}")]
    Address(#[from] AddressError),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("it redirected more than {REDIRECTS_MAX} times")]
    Redirects,
    #[error("no answer came within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    #[error("{0}")]
    Connection(String),
}

impl Sender {
    /// A sender that goes by these rules.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up, which a build of this workspace always can.
    pub(super) fn new(policy: Policy, timeout: Duration) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            // A proxy would connect to addresses that nobody judged.
            .no_proxy()
            .dns_resolver(Arc::new(policy.clone()))
            // Each hop is judged here.
            .redirect(redirect::Policy::none())
            .referer(false)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(1)
            .user_agent(concat!("gridsocket/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { client, policy, timeout })
    }

    /// Tries a call once; says what went wrong.
    pub(super) async fn send(&self, call: CallId, queue: &QueueName, url: &str, body: Bytes) -> Result<(), String> {
        let tried = tokio::time::timeout(self.timeout, self.post(call, queue, url, body)).await;
        let failure = match tried {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::TimedOut(self.timeout),
        };
        let mut text = failure.to_string();
        let cut = (0..=ERROR_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(cut.unwrap_or(0));
        Err(text)
    }

    async fn post(&self, call: CallId, queue: &QueueName, url: &str, body: Bytes) -> Result<(), Failure> {
        let headers = headers(call, queue, &body);
        let mut url = self.policy.read(url)?;
        for _ in 0..=REDIRECTS_MAX {
            let post = self.client.post(url.clone()).headers(headers.clone()).body(body.clone());
            // What the answer's body says is nobody's business: it is not read, however long it is.
            let answer = post.send().await.map_err(|error| connection(&error))?;
            let status = answer.status();
            if status.is_success() {
                return Ok(());
            }
            let is_redirect = matches!(status.as_u16(), 301 | 302 | 307 | 308);
            let location = answer.headers().get(LOCATION).filter(|_| is_redirect);
            let Some(location) = location else { return Err(Failure::Status(status)) };
            let location = location.to_str().map_err(|_| AddressError::NotAnAddress)?;
            url = self.policy.follow(&url, location)?;
        }
        Err(Failure::Redirects)
    }
}

/// What went wrong with a connection: the innermost reason, which is the one that says something.
fn connection(error: &reqwest::Error) -> Failure {
    let mut innermost: &(dyn std::error::Error + 'static) = error;
    while let Some(source) = innermost.source() {
        innermost = source;
        if let Some(address) = source.downcast_ref::<AddressError>() {
            return Failure::Address(address.clone());
        }
    }
    // Never the address: it may hold a secret, and is told beside this.
    Failure::Connection(match error.source() {
        Some(_) => innermost.to_string(),
        None => "the request could not be sent".to_owned(),
    })
}

fn headers(call: CallId, queue: &QueueName, body: &[u8]) -> HeaderMap {
    let (id, now) = (call.to_string(), clock::now());
    let signature = Secret::of(queue).sign(&id, now, body);
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(EVENT, HeaderValue::from_static(call.kind.name()));
    headers.insert(TIMESTAMP, HeaderValue::from(now.0 / 1000));
    // Hex, base64 and dashes: always fit for a header.
    for (name, text) in [(ID, id), (SIGNATURE, signature)] {
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(name, value);
        }
    }
    headers
}
