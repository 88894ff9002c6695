//! What a bulk is answered with: one line for each job, in the order of the lines that asked for them, each as soon as it is on disk.

use bytes::Bytes;
use futures_util::Stream;
use protocol::id::{Head, JobId, Seq};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::engine::{Done, QueueHandle};
use crate::http::error::ApiError;
use crate::refusal::{Refusal, RefusalKind};

/// Answers that are there already leave together, up to about this many bytes.
const TOGETHER_BYTES: usize = 32 * 1024;

/// What a line came to so far.
pub(super) enum Begun {
    /// A job that the queue has taken in; it is acknowledged once it is on disk.
    Job { line: u64, index: Option<u64>, done: oneshot::Receiver<Result<Done, Refusal>> },
    /// A line, or one job of its array, that is refused.
    Refused { line: u64, index: Option<u64>, error: ApiError },
    /// The body is over.
    End { lines: u64 },
    /// The body stopped before its end, in this line.
    BrokenOff { line: u64, error: ApiError },
}

/// The answers of one bulk.
pub(super) struct Answers {
    begun: mpsc::Receiver<Begun>,
    /// One that was taken out and is not on disk yet.
    next: Option<Begun>,
    queue: QueueHandle,
    queued: u64,
    refused: u64,
    head: Option<Head>,
    is_over: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Acknowledged {
    line: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    success: bool,
    job_id: JobId,
    /// Where the queue's chain stood then, for those who watch it too.
    seq: Seq,
}

#[derive(Serialize)]
struct Refused<'a> {
    line: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    error: &'a str,
    code: &'a str,
}

/// The last line of a bulk that was read to its end; one that is cut short has none.
#[derive(Serialize)]
struct Summary {
    lines: u64,
    queued: u64,
    refused: u64,
    head: Head,
}

impl Answers {
    pub(super) fn new(queue: QueueHandle, begun: mpsc::Receiver<Begun>) -> Self {
        Self { begun, next: None, queue, queued: 0, refused: 0, head: None, is_over: false }
    }

    /// The answers as pieces of a body. Whoever does not take them is waited for, and so is not read from.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
        futures_util::stream::unfold(self, |mut answers| async move {
            let piece = answers.piece().await?;
            Some((Ok(piece), answers))
        })
    }

    /// Waits for one answer, and takes along those after it that need no waiting.
    async fn piece(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while !self.is_over && out.len() < TOGETHER_BYTES {
            let begun = match self.next.take() {
                Some(begun) => begun,
                None if out.is_empty() => self.begun.recv().await?,
                None => match self.begun.try_recv() {
                    Ok(begun) => begun,
                    Err(_) => break,
                },
            };
            match begun {
                Begun::Job { line, index, mut done } => {
                    let result = match done.try_recv() {
                        Ok(result) => result,
                        Err(oneshot::error::TryRecvError::Empty) if !out.is_empty() => {
                            self.next = Some(Begun::Job { line, index, done });
                            break;
                        }
                        Err(oneshot::error::TryRecvError::Empty) => done.await.unwrap_or(Err(Refusal::stopping())),
                        Err(oneshot::error::TryRecvError::Closed) => Err(Refusal::stopping()),
                    };
                    match result {
                        Ok(done) => self.acknowledge(line, index, &done, &mut out),
                        Err(refusal) => self.refuse(line, index, &refusal.into(), &mut out),
                    }
                }
                Begun::Refused { line, index, error } => self.refuse(line, index, &error, &mut out),
                Begun::End { lines } => self.sum_up(lines, &mut out).await,
                Begun::BrokenOff { line, error } => {
                    self.refuse(line, None, &error, &mut out);
                    self.is_over = true;
                }
            }
        }
        (!out.is_empty()).then(|| out.into())
    }

    fn acknowledge(&mut self, line: u64, index: Option<u64>, done: &Done, out: &mut Vec<u8>) {
        self.queued += 1;
        self.head = Some(done.head);
        write(&Acknowledged { line, index, success: true, job_id: done.job, seq: done.head.seq }, out);
    }

    fn refuse(&mut self, line: u64, index: Option<u64>, error: &ApiError, out: &mut Vec<u8>) {
        error.note();
        self.refused += 1;
        write(&Refused { line, index, error: &error.to_string(), code: error.code().unwrap_or("refused") }, out);
        // No line after this one could be taken either: the sender comes back with them later.
        self.is_over |= matches!(error, ApiError::Refused(refusal) if refusal.kind == RefusalKind::Unavailable);
    }

    async fn sum_up(&mut self, lines: u64, out: &mut Vec<u8>) {
        self.is_over = true;
        let head = match self.head {
            Some(head) => Ok(head),
            None => self.queue.head().await,
        };
        match head {
            Ok(head) => write(&Summary { lines, queued: self.queued, refused: self.refused, head }, out),
            Err(refusal) => self.refuse(lines, None, &refusal.into(), out),
        }
    }
}

fn write<T: Serialize>(line: &T, out: &mut Vec<u8>) {
    // Numbers, texts and ids: writing them to memory cannot fail.
    if serde_json::to_writer(&mut *out, line).is_ok() {
        out.push(b'\n');
    }
}
