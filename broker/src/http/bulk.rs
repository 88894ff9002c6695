//! Many submissions in one request: a line of JSON in for each, a line out for each, both as they come.
//!
//! Lines go to the queue one after the other without waiting for each other's answers, so that they share its trips to the disk. How many
//! may be unanswered is bounded: a sender that does not take its answers, or a queue that is slow, stops the reading.

mod answers;
mod lines;
#[cfg(test)]
mod tests;

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use protocol::array::{Indices, Template};
use protocol::json;
use protocol::raw::RawJson;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::answers::{Answers, Begun};
use self::lines::{Line, Lines, TooLong};
use super::app::AppState;
use super::error::ApiError;
use super::params::{self, Params};
use super::reply;
use super::room::{Room, Taken};
use super::submit::{Asked, Unit, asks_for_retry, bad_array, read_submission};
use crate::config::Limits;
use crate::engine::{QueueHandle, ReplyTo, SubmitJob};
use crate::refusal::Refusal;

/// How many jobs of one request may be unanswered: enough to fill several trips to the disk, little enough to keep in memory.
const JOBS_UNANSWERED_MAX: usize = 512;

/// `POST /q/:queue/bulk`: lines as [`super::submit`] takes them as bodies, with arrays of jobs; answered line by line.
///
/// # Errors
///
/// 400 for a bad queue name, 415 for a body that is encoded. What is wrong with a line is said in its answer.
pub(super) async fn bulk(
    State(app): State<AppState>,
    params: Params,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let queue = app.engine.queue(&params.queue()?);
    let (mut head, body) = request.into_parts();
    if let Some(refused) = refuse_encoded(&head.headers) {
        params::drain(body).await;
        return Err(refused);
    }
    let stop = head.extensions.remove().unwrap_or_default();
    let retry = asks_for_retry(head.uri.query().unwrap_or_default());
    let answers = start(queue, &app.config.limits, app.room.clone(), stop, retry, body);
    Ok(reply::json_lines(Body::from_stream(answers.into_stream())))
}

/// Starts reading; goes on as far as the answers are taken.
fn start(queue: QueueHandle, limits: &Limits, room: Room, stop: CancellationToken, retry: bool, body: Body) -> Answers {
    let (begun, answers) = mpsc::channel(JOBS_UNANSWERED_MAX);
    let reader = Reader {
        queue: queue.clone(),
        lines: Lines::new(limits.body_bytes_max),
        room,
        taken: Taken::default(),
        line_bytes_max: limits.body_bytes_max,
        idle: limits.body_idle_timeout,
        stop,
        retry,
        begun,
    };
    tokio::spawn(reader.run(body));
    Answers::new(queue, answers)
}

fn refuse_encoded(headers: &HeaderMap) -> Option<ApiError> {
    let encoding = headers.get(header::CONTENT_ENCODING)?;
    if encoding.as_bytes().eq_ignore_ascii_case(b"identity") {
        return None;
    }
    let message = "lines are read as they come, so they must not be encoded; send them without content-encoding";
    Some(ApiError::request(StatusCode::UNSUPPORTED_MEDIA_TYPE, "encoded_body", message))
}

/// Reads lines and hands their jobs to the queue.
struct Reader {
    queue: QueueHandle,
    lines: Lines,
    /// Room for a line that comes in pieces.
    room: Room,
    taken: Taken,
    line_bytes_max: usize,
    idle: Duration,
    stop: CancellationToken,
    /// Whether jobs that have ended without success run again, whatever their lines say.
    retry: bool,
    begun: mpsc::Sender<Begun>,
}

/// Nobody waits for answers any more.
struct Gone;

impl Reader {
    async fn run(mut self, mut body: Body) {
        let is_read = match self.read(&mut body).await {
            Ok(Ok(lines)) => self.answer(Begun::End { lines }).await.is_ok(),
            Ok(Err(error)) => {
                let _ = self.answer(Begun::BrokenOff { line: self.lines.number(), error }).await;
                false
            }
            Err(Gone) => false,
        };
        if !is_read {
            // So that the sender, who may still be writing, gets to see why.
            params::drain(body).await;
        }
    }

    /// Reads to the end of the body; answers how many lines were submissions.
    async fn read(&mut self, body: &mut Body) -> Result<Result<u64, ApiError>, Gone> {
        let mut count = 0;
        loop {
            let piece = tokio::select! {
                piece = params::piece(body, self.idle) => piece,
                () = self.stop.cancelled() => Err(Refusal::stopping().into()),
                () = self.begun.closed() => return Err(Gone),
            };
            let is_end = match piece {
                Ok(Some(piece)) => {
                    self.lines.add(piece);
                    false
                }
                Ok(None) => true,
                Err(error) => return Ok(Err(error)),
            };
            while let Some(line) = self.lines.next() {
                count += u64::from(self.submit(line).await?);
            }
            if let Err(full) = self.room.hold(&mut self.taken, self.lines.begun_bytes() as u64) {
                return Ok(Err(full));
            }
            if is_end {
                if let Some(line) = self.lines.last() {
                    count += u64::from(self.submit(line).await?);
                }
                return Ok(Ok(count));
            }
        }
    }

    /// Submits what a line asks for; answers whether it was a submission at all.
    async fn submit(&mut self, Line { number: line, text }: Line) -> Result<bool, Gone> {
        let text = match text {
            Ok(text) => text,
            Err(TooLong) => {
                let message = format!(
                    "the line is longer than the limit of {} bytes; upload large inputs with PUT /f/<sha256> and refer to them",
                    self.line_bytes_max
                );
                let error = ApiError::request(StatusCode::PAYLOAD_TOO_LARGE, "line_too_long", message);
                self.answer(Begun::Refused { line, index: None, error }).await?;
                return Ok(true);
            }
        };
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(false);
        }
        let read = read(&text).map(|(mut job, template)| {
            job.retry |= self.retry;
            (job, template)
        });
        match read {
            Ok((job, None)) => self.begin(line, None, job).await?,
            Ok((job, Some(template))) => self.expand(line, &job, &template).await?,
            Err(error) => self.answer(Begun::Refused { line, index: None, error }).await?,
        }
        Ok(true)
    }

    async fn expand(&mut self, line: u64, job: &SubmitJob, template: &Template) -> Result<(), Gone> {
        for number in template.indices().iter() {
            let index = Some(number);
            match template.definition(number) {
                Ok(definition) => {
                    let definition = RawJson::new(json::to_json(&definition));
                    self.begin(line, index, SubmitJob { definition, ..job.clone() }).await?;
                }
                Err(error) => self.answer(Begun::Refused { line, index, error: bad_array(&error) }).await?,
            }
        }
        Ok(())
    }

    /// Hands a job to the queue, without waiting until it is on disk.
    async fn begin(&mut self, line: u64, index: Option<u64>, job: SubmitJob) -> Result<(), Gone> {
        // First the room for the answer: what is not going to be answered is not begun.
        let room = self.begun.reserve().await.map_err(|_| Gone)?;
        let (reply, done) = oneshot::channel();
        room.send(match self.queue.begin_submit(job, ReplyTo::Caller(reply)).await {
            Ok(()) => Begun::Job { line, index, done },
            Err(refusal) => Begun::Refused { line, index, error: refusal.into() },
        });
        Ok(())
    }

    async fn answer(&self, begun: Begun) -> Result<(), Gone> {
        self.begun.send(begun).await.map_err(|_| Gone)
    }
}

fn read(line: &Bytes) -> Result<(SubmitJob, Option<Template>), ApiError> {
    let Asked { job, array } = read_submission(line, Unit::Line)?;
    let template = array.map(|indices| template(indices, &job)).transpose()?;
    Ok((job, template))
}

fn template(indices: Indices, job: &SubmitJob) -> Result<Template, ApiError> {
    let definition = json::parse(job.definition.as_str().as_bytes())
        .map_err(|error| ApiError::bad("bad_definition", format!("definition: {error}")))?;
    Template::new(indices, definition).map_err(|error| bad_array(&error))
}
