//! The broker's REST interface, as the job commands use it. Every failure comes out as a sentence that says what to do.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use protocol::explain::Explanation;
use protocol::id::{JobId, Namespace, QueueName};
use protocol::json::{self, Value};
use reqwest::{Body, Client, Method, RequestBuilder, Response, StatusCode, header, redirect};

use crate::args::job::Target;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may be silent: the broker acknowledges after a disk write, so a minute is a fault.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest JSON answer that is read: a result with all its log lines, or a long list, fits.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;
/// The longest part of an answer that is quoted in an error.
const QUOTE_CHARS_MAX: usize = 500;
/// How often an upload is sent on to another address.
const REDIRECTS_MAX: usize = 5;
/// The header with which an upload says its sha256, so that storage behind a redirect can be told to take no other bytes.
const CHECKSUM: &str = "x-amz-checksum-sha256";
/// What may stand unescaped in a path's segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why the broker did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Nobody listens there.
    #[error("no broker answers at {base}: start one with `gridsocket local`, or give the address of yours with --api")]
    NoBroker {
        /// The address.
        base: String,
    },
    /// The address cannot be reached, or the connection broke.
    #[error("cannot reach the broker at {base}: {cause}")]
    Unreachable {
        /// The address.
        base: String,
        /// The innermost cause.
        cause: String,
    },
    /// The broker said no.
    #[error("the broker refuses: {message} (status {status})")]
    Refused {
        /// Its status code.
        status: StatusCode,
        /// Its words.
        message: String,
    },
    /// Something answers that does not speak as a broker does.
    #[error("{base} answers, but not as a broker does: {what}; is --api the address of a broker?")]
    NotABroker {
        /// The address.
        base: String,
        /// What was wrong.
        what: String,
    },
    /// A file of ours cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

impl ApiError {
    /// Whether it may go better in a moment: the broker is away, or says that it is.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::NoBroker { .. } | Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => status.is_server_error(),
            Self::NotABroker { .. } | Self::File { .. } => false,
        }
    }
}

/// What came of a wish to cancel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cancelled {
    /// The wish is withdrawn.
    Done,
    /// The broker says why there was nothing to do.
    Nothing(String),
}

/// A page of a job's log.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LogPage {
    /// The lines: text, and whether from standard error.
    pub(crate) lines: Vec<(String, bool)>,
    /// Where the next page starts.
    pub(crate) next: u64,
}

/// A broker, and how to talk to it.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    base: String,
    client: Client,
    /// Does not follow redirects: an upload has to be sent again with its body, which only we can do.
    uploader: Client,
    /// Waits for answers as long as its user does: where lines are slow to come, so are answers.
    streamer: Client,
}

impl Api {
    /// Talks to the broker at `base`; connects when first used.
    pub(crate) fn new(base: &str) -> anyhow::Result<Self> {
        let builder = || {
            Client::builder()
                .user_agent(concat!("gridsocket/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_TIMEOUT)
        };
        Ok(Self {
            base: base.to_owned(),
            client: builder().read_timeout(READ_TIMEOUT).build()?,
            uploader: builder().read_timeout(READ_TIMEOUT).redirect(redirect::Policy::none()).build()?,
            streamer: builder().redirect(redirect::Policy::none()).build()?,
        })
    }

    /// The broker's address.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// Where the blob of that digest is, as it stands in definitions.
    pub(crate) fn blob_url(&self, sha256: &str) -> String {
        format!("{}/f/{sha256}", self.base)
    }

    /// Puts a job into the queue; answers the id that the broker gives it.
    pub(crate) async fn submit(&self, queue: &QueueName, body: String) -> Result<JobId, ApiError> {
        let request =
            self.client.post(self.queue_url(queue)).header(header::CONTENT_TYPE, "application/json").body(body);
        let answer = self.json(request).await?;
        let id = answer.get("jobId").and_then(Value::as_str).and_then(|id| id.parse().ok());
        id.ok_or_else(|| self.not_a_broker("its answer to a submission names no job"))
    }

    /// Opens a request that submits lines as they come; the answer has a line for each of their jobs.
    /// `retry`: those of all lines that have ended without success run again.
    pub(crate) async fn bulk(&self, queue: &QueueName, lines: Body, retry: bool) -> Result<Response, ApiError> {
        let retry = if retry { "?retry=1" } else { "" };
        let request = self.streamer.post(format!("{}/bulk{retry}", self.queue_url(queue)));
        let answer = self.send(request.header(header::CONTENT_TYPE, "application/x-ndjson").body(lines)).await?;
        if answer.status().is_success() { Ok(answer) } else { Err(self.refused(answer).await) }
    }

    /// Why the job stands where it stands; `None` when the queue does not know it. With the answer as the broker wrote it.
    pub(crate) async fn explain(&self, target: &Target, job: JobId) -> Result<Option<(Explanation, String)>, ApiError> {
        let answer = self.send(self.client.get(self.job_url(target, job, "/explain"))).await?;
        let status = answer.status();
        if !status.is_success() {
            let body = self.read(answer).await?;
            let is_unknown = status == StatusCode::NOT_FOUND && code_in(&body).as_deref() == Some("no_such_job");
            return if is_unknown { Ok(None) } else { Err(ApiError::Refused { status, message: message_in(&body) }) };
        }
        let body = self.read(answer).await?;
        let explanation = serde_json::from_slice(&body)
            .map_err(|error| self.not_a_broker(format!("its explanation cannot be read ({error})")))?;
        Ok(Some((explanation, String::from_utf8_lossy(&body).into_owned())))
    }

    /// Whether the broker has the blob.
    pub(crate) async fn has_blob(&self, sha256: &str) -> Result<bool, ApiError> {
        let request = self.client.get(format!("{}/exists", self.blob_url(sha256)));
        let answer = self.send(request).await?;
        match answer.status() {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refused(answer).await),
        }
    }

    /// Stores a file as a blob; `body` makes the body, anew for each redirect.
    pub(crate) async fn put_blob<B>(&self, sha256: &str, size: u64, mut body: B) -> Result<(), ApiError>
    where
        B: AsyncFnMut() -> Result<reqwest::Body, ApiError>,
    {
        let mut url = self.blob_url(sha256);
        for _ in 0..=REDIRECTS_MAX {
            let mut request = self
                .uploader
                .request(Method::PUT, &url)
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .header(header::CONTENT_LENGTH, size)
                .body(body().await?);
            if takes_checksum(&url)
                && let Some(checksum) = checksum(sha256)
            {
                request = request.header(CHECKSUM, checksum);
            }
            let answer = self.send(request).await?;
            if answer.status().is_success() {
                return Ok(());
            }
            let next = answer.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
            let next = next.filter(|_| answer.status().is_redirection()).and_then(|to| answer.url().join(to).ok());
            match next {
                Some(next) => url = next.into(),
                None => return Err(self.refused(answer).await),
            }
        }
        Err(self.not_a_broker("an upload is redirected without end"))
    }

    /// The job's result document; `None` while there is none.
    pub(crate) async fn result(&self, target: &Target, job: JobId) -> Result<Option<Value>, ApiError> {
        let answer = self.json(self.client.get(self.job_url(target, job, "/result.json"))).await?;
        Ok(answer.get("data").filter(|data| !data.is_null()).cloned())
    }

    /// Whether the broker knows the job at all.
    pub(crate) async fn knows(&self, target: &Target, job: JobId) -> Result<bool, ApiError> {
        match self.json(self.client.get(self.job_url(target, job, "/definition.json"))).await {
            Ok(answer) => Ok(answer.get("data").is_some_and(|data| !data.is_null())),
            Err(ApiError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(false),
            Err(other) => Err(other),
        }
    }

    /// The queue's jobs, by id.
    pub(crate) async fn list(&self, queue: &QueueName) -> Result<Vec<(String, Value)>, ApiError> {
        let answer = self.json(self.client.get(self.queue_url(queue))).await?;
        let jobs = answer.get("data").and_then(Value::as_object);
        let jobs = jobs.ok_or_else(|| self.not_a_broker("its answer is no list of jobs"))?;
        Ok(jobs.iter().map(|(id, job)| (id.to_string_lossy().into_owned(), job.clone())).collect())
    }

    /// The log lines from `since` on, or a first part of them. `kind` is `build` or `run`.
    pub(crate) async fn logs(&self, target: &Target, job: JobId, kind: &str, since: u64) -> Result<LogPage, ApiError> {
        let url = self.job_url(target, job, &format!("/{kind}-logs.json"));
        let answer = self.json(self.client.get(url).query(&[("since", since)])).await?;
        let lines =
            answer.get("data").and_then(Value::as_array).ok_or_else(|| self.not_a_broker("its answer is no log"))?;
        let line = |entry: &Value| {
            let parts = entry.as_array()?;
            let text = parts.first()?.as_js_string()?.to_string_lossy().into_owned();
            Some((text, parts.get(2).and_then(Value::as_bool).unwrap_or(false)))
        };
        let lines: Vec<_> = lines.iter().filter_map(line).collect();
        let start = answer.get("sliceStart").and_then(whole).unwrap_or(since);
        let next = answer.get("nextCursor").and_then(whole).unwrap_or(start + lines.len() as u64);
        Ok(LogPage { lines, next })
    }

    /// Withdraws a wish for the job.
    pub(crate) async fn cancel(
        &self,
        target: &Target,
        job: JobId,
        namespace: Option<&Namespace>,
        message: Option<&str>,
    ) -> Result<Cancelled, ApiError> {
        let mut query = Vec::new();
        query.extend(namespace.map(|namespace| ("namespace", namespace.as_str())));
        query.extend(message.map(|message| ("message", message)));
        let answer = self.json(self.client.post(self.job_url(target, job, "/cancel")).query(&query)).await?;
        Ok(match answer.get("message").and_then(Value::as_str) {
            Some(message) => Cancelled::Nothing(message.to_owned()),
            None => Cancelled::Done,
        })
    }

    /// One result file's bytes, as they come.
    pub(crate) async fn output(&self, target: &Target, job: JobId, name: &str) -> Result<Response, ApiError> {
        let name: Vec<String> = name.split('/').map(segment).collect();
        let answer =
            self.send(self.client.get(self.job_url(target, job, &format!("/outputs/{}", name.join("/"))))).await?;
        if answer.status().is_success() { Ok(answer) } else { Err(self.refused(answer).await) }
    }

    /// The address of the queue's socket for programs and pages.
    pub(crate) fn socket_url(&self, queue: &QueueName) -> String {
        // `http` and `https` become `ws` and `wss`.
        format!("ws{}/q/{}/client", &self.base["http".len()..], segment(queue.as_str()))
    }

    fn queue_url(&self, queue: &QueueName) -> String {
        format!("{}/q/{}", self.base, segment(queue.as_str()))
    }

    fn job_url(&self, target: &Target, job: JobId, rest: &str) -> String {
        format!("{}/j/{job}{rest}", self.queue_url(&target.queue))
    }

    async fn json(&self, request: RequestBuilder) -> Result<Value, ApiError> {
        let answer = self.send(request).await?;
        if !answer.status().is_success() {
            return Err(self.refused(answer).await);
        }
        let body = self.read(answer).await?;
        json::parse(&body).map_err(|error| self.not_a_broker(format!("its answer is not JSON ({error})")))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, ApiError> {
        request.send().await.map_err(|error| self.unreachable(&error))
    }

    async fn read(&self, mut answer: Response) -> Result<Vec<u8>, ApiError> {
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.unreachable(&error))? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(self.not_a_broker(format!("its answer is larger than {ANSWER_BYTES_MAX} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    async fn refused(&self, answer: Response) -> ApiError {
        let status = answer.status();
        match self.read(answer).await {
            Ok(body) => ApiError::Refused { status, message: message_in(&body) },
            Err(error) => error,
        }
    }

    /// Turns a failed exchange into words.
    pub(crate) fn unreachable(&self, error: &reqwest::Error) -> ApiError {
        let mut cause: &(dyn std::error::Error + 'static) = error;
        // A file of ours that fails while it is sent comes out through the client.
        while let Some(deeper) = cause.source() {
            if let Some(ApiError::File { path, source }) = deeper.downcast_ref() {
                return ApiError::File { path: path.clone(), source: source.kind().into() };
            }
            cause = deeper;
        }
        self.no_connection(cause, error.is_connect())
    }

    /// As [`Api::unreachable`], for the cause of a failed connection of any kind.
    pub(crate) fn no_connection(&self, cause: &(dyn std::error::Error + 'static), connecting: bool) -> ApiError {
        let refused = cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
        let base = self.base.clone();
        if connecting && refused {
            ApiError::NoBroker { base }
        } else {
            ApiError::Unreachable { base, cause: cause.to_string() }
        }
    }

    /// Says that something else than a broker answers.
    pub(crate) fn not_a_broker(&self, what: impl Into<String>) -> ApiError {
        ApiError::NotABroker { base: self.base.clone(), what: what.into() }
    }
}

/// Makes the error of a file that cannot be read.
pub(crate) fn file_error(path: &Path, source: std::io::Error) -> ApiError {
    ApiError::File { path: path.display().to_string(), source }
}

/// A sha256 as S3 has it in its headers.
fn checksum(sha256: &str) -> Option<String> {
    let digit = |at: usize| u8::from_str_radix(sha256.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..sha256.len()).step_by(2).map(digit).collect();
    bytes.map(|bytes| STANDARD.encode(bytes))
}

/// Whether an upload there may say its checksum: where an address is signed for some headers, others of this kind are refused.
fn takes_checksum(url: &str) -> bool {
    let query = url.split_once('?').map_or("", |(_, query)| query).to_ascii_lowercase();
    let signed = query.split('&').find_map(|pair| pair.strip_prefix("x-amz-signedheaders="));
    signed.is_none_or(|headers| headers.contains(CHECKSUM))
}

fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be a whole number in range")]
fn whole(value: &Value) -> Option<u64> {
    let number = value.as_f64()?;
    ((0.0..=9e15).contains(&number) && number.fract() == 0.0).then_some(number as u64)
}

/// The word for programs in a refusal.
fn code_in(body: &[u8]) -> Option<String> {
    json::parse(body).ok()?.get("code").and_then(Value::as_str).map(str::to_owned)
}

/// The words in a refusal: `{"error": …}`, `{"message": …}`, or plain text.
pub(crate) fn message_in(body: &[u8]) -> String {
    let parsed = json::parse(body).ok();
    let field = |name| parsed.as_ref().and_then(|value| value.get(name));
    let words = [field("error"), field("message"), field("error").and_then(|error| error.get("message"))];
    let words = words.into_iter().flatten().find_map(Value::as_str).map(str::to_owned);
    let words = words.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
    if words.is_empty() { "no reason given".to_owned() } else { words.chars().take(QUOTE_CHARS_MAX).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(base: &str) -> Api {
        crate::init_tls();
        Api::new(base).unwrap()
    }

    #[test]
    fn names_are_escaped_and_the_socket_is_beside_the_queue() {
        let queue: QueueName = "a b?é".parse().unwrap();
        assert_eq!(api("http://h:1").socket_url(&queue), "ws://h:1/q/a%20b%3F%C3%A9/client");
        assert_eq!(api("https://h/grid").socket_url(&queue), "wss://h/grid/q/a%20b%3F%C3%A9/client");
        assert_eq!(api("https://h").queue_url(&queue), "https://h/q/a%20b%3F%C3%A9");
    }

    #[test]
    fn an_upload_says_its_checksum_where_it_may() {
        let sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(checksum(sha256).as_deref(), Some("47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="));
        assert!(takes_checksum("http://h/f/x"));
        assert!(takes_checksum("http://h/x?X-Amz-SignedHeaders=host%3Bx-amz-checksum-sha256&X-Amz-Signature=s"));
        assert!(!takes_checksum("http://h/x?X-Amz-SignedHeaders=host&X-Amz-Signature=s"));
    }

    #[test]
    fn a_refusals_words_are_found_in_any_shape() {
        assert_eq!(message_in(br#"{"error":"too big"}"#), "too big");
        assert_eq!(message_in(br#"{"code":"x","message":"too big"}"#), "too big");
        assert_eq!(message_in(br#"{"error":{"message":"too big"}}"#), "too big");
        assert_eq!(message_in(b"too big\n"), "too big");
        assert_eq!(message_in(b""), "no reason given");
        assert_eq!(message_in("é".repeat(9000).as_bytes()).chars().count(), QUOTE_CHARS_MAX);
    }
}
