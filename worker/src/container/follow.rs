//! A container's output: frames from the engine into the run's log, every byte of both streams.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use protocol::id::UnixMillis;
use protocol::native::{LogLine, LogStep};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::clock::{parse_rfc3339, unix_now};
use crate::logs::{BATCH_BYTES, BATCH_WAIT_MS, RunLog, Splitter};

/// How often it is written down how far the log was sent, for a worker that is restarted while the container runs.
const SEEN_EVERY: Duration = Duration::from_secs(1);
const SEEN_FILE: &str = "seen.json";

/// Output of a container.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Bytes,
    pub(crate) stderr: bool,
    pub(crate) at_ms: UnixMillis,
}

/// A stream of it.
pub(crate) type Frames = Pin<Box<dyn Stream<Item = Result<Frame, Error>> + Send>>;

/// How much of a container's output was taken, in bytes, and in lines sent to the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) out_bytes: u64,
    pub(crate) err_bytes: u64,
    pub(crate) lines: u64,
}

/// What comes while we listen: the time is ours.
pub(super) fn live(output: impl Stream<Item = Result<LogOutput, Error>> + Send + 'static) -> Frames {
    Box::pin(output.map(|item| item.map(|output| frame(output, unix_now()))))
}

/// What the engine has kept: each frame starts with the engine's time and a blank.
pub(super) fn stamped(output: impl Stream<Item = Result<LogOutput, Error>> + Send + 'static) -> Frames {
    Box::pin(output.map(|item| {
        item.map(|output| {
            let mut frame = frame(output, unix_now());
            if let Some(blank) = frame.bytes.iter().position(|&byte| byte == b' ')
                && let Some(at_ms) = std::str::from_utf8(&frame.bytes[..blank]).ok().and_then(parse_rfc3339)
            {
                frame.at_ms = at_ms;
                frame.bytes = frame.bytes.slice(blank + 1..);
            }
            frame
        })
    }))
}

fn frame(output: LogOutput, at_ms: UnixMillis) -> Frame {
    let stderr = matches!(output, LogOutput::StdErr { .. });
    Frame { bytes: output.into_bytes(), stderr, at_ms }
}

/// Reads what an earlier process wrote down in the run's directory; nothing seen when there is nothing readable.
pub(crate) fn read_seen(directory: &Path) -> Seen {
    let text = std::fs::read(directory.join(SEEN_FILE)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Moves all of `frames` into `log` until they end. The first `skip` bytes of each stream were sent before: they are kept
/// for the result when `keep_skipped`, and not sent again. Tells how much was seen, also when the stream broke.
pub(crate) async fn pump(
    mut frames: Frames,
    log: RunLog,
    skip: Seen,
    keep_skipped: bool,
    directory: PathBuf,
) -> (Seen, Result<(), Error>) {
    let mut pump = Pump {
        log,
        streams: [OneStream::skipping(skip.out_bytes), OneStream::skipping(skip.err_bytes)],
        keep_skipped,
        lines: Vec::new(),
        bytes: 0,
        last_at_ms: UnixMillis(0),
        seen_written: Instant::now(),
        directory,
        is_over: false,
    };
    let mut flush_at: Option<Instant> = None;
    let ended = loop {
        let flush = async {
            match flush_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            frame = frames.next() => match frame {
                None => break Ok(()),
                Some(Err(error)) => break Err(error),
                Some(Ok(frame)) => {
                    pump.take(&frame);
                    if pump.bytes >= BATCH_BYTES {
                        pump.send().await;
                        flush_at = None;
                    }
                    if pump.has_waiting() {
                        flush_at.get_or_insert_with(wait_end);
                    }
                }
            },
            () = flush => {
                // The start of a line waits once more, for its end or until it alone is there.
                if pump.lines.is_empty() {
                    pump.flush_partials();
                }
                pump.send().await;
                flush_at = pump.has_waiting().then(wait_end);
            }
        }
    };
    pump.finish();
    pump.send().await;
    pump.is_over = true;
    (pump.seen(), ended)
}

fn wait_end() -> Instant {
    Instant::now() + Duration::from_millis(BATCH_WAIT_MS)
}

struct Pump {
    log: RunLog,
    /// Standard output and standard error.
    streams: [OneStream; 2],
    keep_skipped: bool,
    lines: Vec<LogLine>,
    bytes: usize,
    last_at_ms: UnixMillis,
    seen_written: Instant,
    directory: PathBuf,
    is_over: bool,
}

/// One of the two streams.
#[derive(Default)]
struct OneStream {
    splitter: Splitter,
    /// Bytes that were sent before and have not come by yet.
    skip: u64,
    skipped: Splitter,
    taken: u64,
}

impl OneStream {
    fn skipping(skip: u64) -> Self {
        Self { skip, ..Self::default() }
    }
}

impl Pump {
    fn take(&mut self, frame: &Frame) {
        self.last_at_ms = frame.at_ms;
        let stream = &mut self.streams[usize::from(frame.stderr)];
        stream.taken += frame.bytes.len() as u64;
        let old = usize::try_from(stream.skip).unwrap_or(usize::MAX).min(frame.bytes.len());
        let mut pieces = Vec::new();
        if old > 0 {
            stream.skip -= old as u64;
            stream.skipped.push(&frame.bytes[..old], &mut pieces);
            if stream.skip == 0 {
                stream.skipped.finish(&mut pieces);
            }
            let lines: Vec<LogLine> = pieces.drain(..).map(|text| line(text, frame.at_ms, frame.stderr)).collect();
            if self.keep_skipped {
                self.log.keep(&lines);
            }
        }
        stream.splitter.push(&frame.bytes[old..], &mut pieces);
        self.add(pieces, frame.at_ms, frame.stderr);
    }

    fn add(&mut self, pieces: Vec<String>, at_ms: UnixMillis, stderr: bool) {
        for text in pieces {
            self.bytes += text.len();
            self.lines.push(line(text, at_ms, stderr));
        }
    }

    fn has_waiting(&self) -> bool {
        !self.lines.is_empty() || self.streams.iter().any(|stream| stream.splitter.has_partial())
    }

    fn flush_partials(&mut self) {
        self.end_streams(Splitter::flush);
    }

    fn finish(&mut self) {
        self.end_streams(Splitter::finish);
    }

    fn end_streams(&mut self, give: fn(&mut Splitter, &mut Vec<String>)) {
        for stderr in [false, true] {
            let mut pieces = Vec::new();
            give(&mut self.streams[usize::from(stderr)].splitter, &mut pieces);
            self.add(pieces, self.last_at_ms, stderr);
        }
    }

    async fn send(&mut self) {
        self.bytes = 0;
        self.log.send(LogStep::Run, std::mem::take(&mut self.lines)).await;
        if self.seen_written.elapsed() >= SEEN_EVERY {
            self.seen_written = Instant::now();
            // Lost with a crash at worst: then some lines are sent again, and the broker knows them by their numbers.
            let _ = write_seen(&self.directory, self.seen());
        }
    }

    fn seen(&self) -> Seen {
        let [out, err] = &self.streams;
        let sent = |stream: &OneStream| stream.taken.saturating_sub(stream.splitter.unsent_bytes() as u64);
        Seen { out_bytes: sent(out), err_bytes: sent(err), lines: self.log.run_lines() }
    }
}

fn line(text: String, at_ms: UnixMillis, stderr: bool) -> LogLine {
    LogLine { text, at_ms, stderr }
}

/// A worker that leaves a running container drops its pump: whoever adopts the container goes on exactly here.
impl Drop for Pump {
    fn drop(&mut self) {
        if !self.is_over {
            let _ = write_seen(&self.directory, self.seen());
        }
    }
}

/// A hundred bytes into the page cache: a thread for it would cost more.
fn write_seen(directory: &Path, seen: Seen) -> std::io::Result<()> {
    let (new, name) = (directory.join("seen.new"), directory.join(SEEN_FILE));
    std::fs::write(&new, serde_json::to_vec(&seen)?)?;
    std::fs::rename(&new, &name)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use protocol::id::JobId;
    use protocol::native::HeldRun;

    use super::*;
    use crate::link::Outbox;

    fn frames(parts: &[(&'static str, bool)]) -> Frames {
        let frames: Vec<_> = parts
            .iter()
            .map(|&(text, stderr)| {
                Ok(Frame { bytes: Bytes::from_static(text.as_bytes()), stderr, at_ms: UnixMillis(1) })
            })
            .collect();
        Box::pin(futures_util::stream::iter(frames))
    }

    async fn pumped(parts: &[(&'static str, bool)], skip: Seen) -> (Vec<String>, Seen, u64) {
        let outbox = Arc::new(Outbox::default());
        let log = RunLog::new(HeldRun { job: JobId::from_bytes([1; 32]), run: 1 }, outbox, skip.lines);
        let (seen, ended) = pump(frames(parts), log.clone(), skip, true, PathBuf::from("/nowhere")).await;
        ended.unwrap();
        let sent = log.run_lines();
        (log.take_result().into_iter().map(|line| line.text).collect(), seen, sent)
    }

    #[tokio::test]
    async fn both_streams_are_whole_and_their_lines_do_not_mix() {
        let parts = [("one ", false), ("ERR\n", true), ("line\nrest", false)];
        let (lines, seen, sent) = pumped(&parts, Seen::default()).await;
        assert_eq!(lines, ["ERR\n", "one line\n", "rest"]);
        assert_eq!((seen, sent), (Seen { out_bytes: 13, err_bytes: 4, lines: 3 }, 3));
    }

    #[tokio::test]
    async fn what_was_sent_before_a_restart_counts_for_the_result_but_is_not_sent_again() {
        let parts = [("a\nb\nc\n", false), ("E\nF\n", true)];
        let (lines, _, sent) = pumped(&parts, Seen { out_bytes: 4, err_bytes: 2, lines: 3 }).await;
        assert_eq!(lines, ["a\n", "b\n", "E\n", "c\n", "F\n"]);
        assert_eq!(sent, 3 + 2);
    }
}
