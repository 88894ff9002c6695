//! Many submissions over one request: lines go out as they are read, answers are taken as they come.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::stream;
use protocol::id::{JobId, QueueName, Seq};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::api::{Api, ApiError, file_error};

/// How much is read at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// Pieces that are read ahead of the network.
const CHUNKS_AHEAD: usize = 4;
/// How often a source that is silent is covered for: well within the minute that a broker allows a body to pause.
const PAUSE_MAX: Duration = Duration::from_secs(20);
/// How long an answer that is owed may take: the broker acknowledges after a disk write, so a minute is a fault.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest answer to one line: an id and a few numbers, or a sentence with a name in it.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// What is said of a broker that owes an answer for too long.
const SILENT: &str = "the broker does not answer";

/// Where lines come from.
#[derive(Debug)]
pub(super) enum Lines {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
    /// This text.
    Text(String),
}

/// An answer of the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A job is queued, on disk.
    Queued { line: u64, job: JobId, seq: Seq },
    /// A line, or one job of its array, is refused.
    Refused { line: u64, index: Option<u64>, message: String },
    /// The broker has read to the end.
    Sum,
}

/// Any of the broker's answers, as they are written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    line: Option<u64>,
    index: Option<u64>,
    job_id: Option<JobId>,
    seq: Option<Seq>,
    error: Option<String>,
    queued: Option<u64>,
}

/// How much of the source has gone out.
#[derive(Debug, Default)]
pub(super) struct Sent {
    bytes: AtomicU64,
    lines: Mutex<LineCount>,
    is_over: AtomicBool,
}

impl Sent {
    /// In bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn count(&self, piece: &[u8]) {
        self.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).add(piece);
    }

    fn lines(&self) -> LineCount {
        *self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Whether the broker owes an answer after that to line `answered`.
    fn is_owed(&self, answered: u64) -> bool {
        self.is_over.load(Ordering::Relaxed) || self.lines().owed > answered
    }
}

/// Counts lines in a text that comes in pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct LineCount {
    ended: u64,
    /// The number of the last line that was ended and not empty: the broker owes it an answer.
    owed: u64,
    /// Whether something but white space stands in the line that is not ended.
    is_begun: bool,
    /// Whether anything stands in it.
    is_open: bool,
}

impl LineCount {
    fn add(&mut self, piece: &[u8]) {
        let mut parts = piece.split(|byte| *byte == b'\n').peekable();
        while let Some(part) = parts.next() {
            self.is_begun |= !part.iter().all(u8::is_ascii_whitespace);
            self.is_open |= !part.is_empty();
            if parts.peek().is_some() {
                self.ended += 1;
                if self.is_begun {
                    self.owed = self.ended;
                }
                (self.is_begun, self.is_open) = (false, false);
            }
        }
    }
}

/// Submits all lines, and gives each batch of answers to `each`, in order. Ends without an error when the broker has read to the end.
pub(super) async fn submit(
    api: &Api,
    queue: &QueueName,
    lines: Lines,
    retry: bool,
    sent: &Arc<Sent>,
    mut each: impl AsyncFnMut(Vec<Answer>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let body = body(lines, Arc::clone(sent))?;
    let mut answered = 0;
    let again = "submitting twice is the same as once, so the same command can be run again";
    let cut = |answered: u64| match answered {
        0 => format!("the connection ended before the first answer; {again}"),
        line => {
            format!("the connection ended after the answer to line {line}, what was acknowledged is queued; {again}")
        }
    };
    let Some(response) = owed(sent, 0, api.bulk(queue, body, retry)).await else { bail!("{SILENT}; {}", cut(0)) };
    let mut response = response?;
    let mut begun = Vec::new();
    loop {
        let piece = match owed(sent, answered, response.chunk()).await {
            Some(Ok(Some(piece))) => piece,
            Some(Ok(None)) => bail!(cut(answered)),
            Some(Err(error)) => return Err(api.unreachable(&error)).with_context(|| cut(answered)),
            None => bail!("{SILENT}; {}", cut(answered)),
        };
        begun.extend_from_slice(&piece);
        let whole = begun.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let answers: Result<Vec<_>, _> =
            begun[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(read_answer).collect();
        let answers = answers.map_err(|what| api.not_a_broker(what))?;
        begun.drain(..whole);
        if begun.len() > ANSWER_BYTES_MAX {
            return Err(api.not_a_broker("an answer has no end").into());
        }
        for answer in &answers {
            match answer {
                Answer::Queued { line, .. } | Answer::Refused { line, .. } => answered = *line,
                Answer::Sum => {}
            }
        }
        let is_over = answers.last() == Some(&Answer::Sum);
        each(answers).await?;
        if is_over {
            return Ok(());
        }
    }
}

/// Waits for what the broker says next; not for ever once it owes an answer. A source that is silent owes us nothing.
async fn owed<T>(sent: &Sent, answered: u64, next: impl Future<Output = T>) -> Option<T> {
    let mut next = pin!(next);
    let mut was_owed = false;
    loop {
        match timeout(ANSWER_TIMEOUT, &mut next).await {
            Ok(next) => return Some(next),
            Err(_) if was_owed => return None,
            // From now on at the latest: it has the whole time from here.
            Err(_) => was_owed = sent.is_owed(answered),
        }
    }
}

fn read_answer(line: &[u8]) -> Result<Answer, String> {
    let written: Written = serde_json::from_slice(line).map_err(|error| format!("its answer is not JSON ({error})"))?;
    match written {
        Written { line: Some(line), job_id: Some(job), seq: Some(seq), .. } => Ok(Answer::Queued { line, job, seq }),
        Written { line: Some(line), index, error: Some(message), .. } => Ok(Answer::Refused { line, index, message }),
        Written { queued: Some(_), .. } => Ok(Answer::Sum),
        Written { .. } => Err("its answer to a line says nothing".to_owned()),
    }
}

/// The source as a request's body.
fn body(lines: Lines, sent: Arc<Sent>) -> anyhow::Result<reqwest::Body> {
    let (reader, name): (Box<dyn Read + Send>, _) = match lines {
        Lines::Text(text) => {
            sent.count(text.as_bytes());
            sent.end();
            return Ok(text.into());
        }
        Lines::Stdin => (Box::new(std::io::stdin()), PathBuf::from("standard input")),
        Lines::File(path) => {
            let file = std::fs::File::open(&path).map_err(|error| file_error(&path, error))?;
            (Box::new(file), path)
        }
    };
    let pieces = read_ahead(reader, name);
    let pieces = stream::unfold((pieces, sent), |(mut pieces, sent)| async {
        let piece = next_piece(&mut pieces, &sent).await?;
        Some((piece, (pieces, sent)))
    });
    Ok(reqwest::Body::wrap_stream(pieces))
}

/// The next piece, or, when none comes for long, a space, which the broker skips: it shows that we are there.
async fn next_piece(
    pieces: &mut mpsc::Receiver<Result<Vec<u8>, ApiError>>,
    sent: &Sent,
) -> Option<Result<Vec<u8>, ApiError>> {
    loop {
        match timeout(PAUSE_MAX, pieces.recv()).await {
            Ok(piece) => {
                match &piece {
                    Some(Ok(piece)) => sent.count(piece),
                    Some(Err(_)) | None => sent.end(),
                }
                return piece;
            }
            // Within a line it could stand in the middle of a text.
            Err(_) if sent.lines().is_open => {}
            Err(_) => return Some(Ok(b" ".to_vec())),
        }
    }
}

/// Reads on a thread of its own: a read of standard input cannot be cancelled.
fn read_ahead(mut reader: Box<dyn Read + Send>, name: PathBuf) -> mpsc::Receiver<Result<Vec<u8>, ApiError>> {
    let (pieces, read) = mpsc::channel(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || {
        loop {
            let piece = next_chunk(&mut *reader, &name);
            let is_last = !matches!(piece, Some(Ok(_)));
            let is_taken = piece.is_none_or(|piece| pieces.blocking_send(piece).is_ok());
            if is_last || !is_taken {
                return;
            }
        }
    });
    read
}

fn next_chunk(reader: &mut dyn Read, name: &Path) -> Option<Result<Vec<u8>, ApiError>> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => return None,
            Ok(length) => {
                chunk.truncate(length);
                return Some(Ok(chunk));
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Some(Err(file_error(name, error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "84696046848ef38f50a2f6182fc7674eaee3d1fac23fe57466d6cb5f771794e4";

    #[test]
    fn answers_are_read_as_the_broker_writes_them() {
        let queued = format!(r#"{{"line":3,"index":7,"success":true,"jobId":"{ID}","seq":9}}"#);
        assert_eq!(read_answer(queued.as_bytes()), Ok(Answer::Queued { line: 3, job: ID.parse().unwrap(), seq: 9 }));
        assert_eq!(
            read_answer(br#"{"line":3,"index":7,"error":"no","code":"x"}"#),
            Ok(Answer::Refused { line: 3, index: Some(7), message: "no".into() })
        );
        let sum = r#"{"lines":1,"queued":1,"refused":0,"head":{"seq":1,"hash":"00"}}"#;
        assert_eq!(read_answer(sum.as_bytes()), Ok(Answer::Sum));
        assert!(read_answer(b"{}").is_err() && read_answer(b"<html>").is_err());
    }

    #[test]
    fn lines_are_counted_whatever_the_pieces() {
        let text = b"a\n\n  \nb\n \nc";
        let whole = LineCount { ended: 5, owed: 4, is_begun: true, is_open: true };
        for size in 1..=text.len() {
            let mut count = LineCount::default();
            text.chunks(size).for_each(|piece| count.add(piece));
            assert_eq!(count, whole, "in pieces of {size}");
        }
        let mut blank = LineCount::default();
        blank.add(b"a\n ");
        assert_eq!(blank, LineCount { ended: 1, owed: 1, is_begun: false, is_open: true });
    }
}
