//! The receiving half of a socket: frames become asks, in the order in which they came.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use protocol::codec::Encoding;
use protocol::event::Via;
use protocol::id::JobId;
use protocol::native::{
    DEFINITIONS_ASKED_MAX, FinishedRun, FromBroker, HeldRun, LogKind, LogLine, LogStep, RequestId, Submission, ToBroker,
};
use tokio::task::{JoinHandle, JoinSet};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

use super::NO_ROOM;
use super::definitions::send_definitions;
use super::logs::follow;
use super::outbound::Shared;
use crate::engine::outbox::{Outbox, Outgoing};
use crate::engine::{Engine, INLINE_BODY_BYTES_MAX, QueueHandle, ReplyTo, SessionId, SubmitJob, scope_of};
use crate::refusal::{Refusal, RefusalKind};
use crate::rules::command::{Command, Finish};
use crate::submission;

/// How many logs one socket may follow: a page shows a few, a program may watch a few dozen.
const FOLLOWED_MAX: usize = 64;

/// How many requests for definitions one socket has carried out at a time: what is read from disk waits in memory to be sent.
const READING_MAX: usize = 2;

/// How much of what a peer says goes into the broker's own log: whoever reads it needs a sentence, and disks fill.
const LOGGED_CHARS_MAX: usize = 300;

pub(super) struct Inbound {
    engine: Engine,
    queue: QueueHandle,
    session: SessionId,
    outbox: Outbox,
    shared: Shared,
    encoding: Encoding,
    followed: HashMap<(JobId, LogKind), Follower>,
    /// Tasks that read definitions; they end with the socket.
    reading: JoinSet<()>,
}

/// Why a socket ends.
pub(super) struct Goodbye {
    code: &'static str,
    pub(super) message: &'static str,
}

impl From<Goodbye> for Outgoing {
    fn from(Goodbye { code, message }: Goodbye) -> Self {
        Self::Close { code, message }
    }
}

/// A task that sends one log; ends with the socket.
struct Follower(JoinHandle<()>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Inbound {
    pub(super) fn new(
        engine: Engine,
        queue: QueueHandle,
        session: SessionId,
        outbox: Outbox,
        shared: Shared,
        encoding: Encoding,
    ) -> Self {
        Self { engine, queue, session, outbox, shared, encoding, followed: HashMap::new(), reading: JoinSet::new() }
    }

    /// Reads until the peer is gone or has to go; says why.
    pub(super) async fn run<R>(mut self, mut stream: R, silent_max: Duration) -> Goodbye
    where
        R: Stream<Item = Result<Message, SocketError>> + Unpin,
    {
        // What is carried out is boxed: most sockets are idle most of the time, and each is as large as its largest step.
        loop {
            match tokio::time::timeout(silent_max, stream.next()).await {
                Err(_) => {
                    return Goodbye { code: "silent", message: "nothing was heard for too long, not even a pong" };
                }
                Ok(None | Some(Ok(Message::Close(_)))) => {
                    return Goodbye { code: "closed", message: "the peer closed it" };
                }
                Ok(Some(Err(SocketError::Capacity(_)))) => {
                    return Goodbye {
                        code: "frame_too_large",
                        message: "a frame is larger than 16 MiB; upload large inputs as blobs",
                    };
                }
                Ok(Some(Err(SocketError::Io(error)))) if error.kind() == NO_ROOM => {
                    return Goodbye {
                        code: "bodies_full",
                        message: "the broker holds as much of messages under way as it allows; come back in a moment",
                    };
                }
                Ok(Some(Err(_))) => return Goodbye { code: "broken", message: "the connection broke" },
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)))) => {}
                Ok(Some(Ok(Message::Text(text)))) => Box::pin(self.frame(text.into())).await,
                Ok(Some(Ok(Message::Binary(bytes)))) => Box::pin(self.frame(bytes)).await,
            }
        }
    }

    async fn frame(&mut self, frame: Bytes) {
        match self.encoding.decode::<ToBroker>(&frame) {
            Ok(message) => self.message(message).await,
            Err(error) => self.refuse(None, &Refusal::new(RefusalKind::BadRequest, "bad_message", error.to_string())),
        }
    }

    async fn message(&mut self, message: ToBroker) {
        let request = request_of(&message);
        if request.is_some() {
            self.shared.begin().await;
        }
        if let Err(refusal) = self.carry_out(message).await {
            self.refuse(request, &refusal);
        }
    }

    async fn carry_out(&mut self, message: ToBroker) -> Result<(), Refusal> {
        let session = self.session;
        match message {
            ToBroker::Hello(_) => Err(bad("hello_again", "Hello is the first message of a socket and comes once")),
            ToBroker::Submit { req, job } => {
                let Submission { id, definition, namespace, priority, debug, retry, callbacks } = job;
                let via = Via::Socket;
                let submit = SubmitJob { id, definition, namespace, priority, debug, retry, callbacks, via };
                self.queue.begin_submit(submit, self.reply(req)).await
            }
            ToBroker::Cancel { req, job, namespace, message } => {
                self.command(Command::Cancel { job, scope: scope_of(namespace), message }, req).await
            }
            ToBroker::Delete { req, job, namespace } => {
                self.command(Command::Delete { job, scope: scope_of(namespace), archived: None }, req).await
            }
            ToBroker::FollowLogs { req, job, kind, since } => self.follow(req, job, kind, since).await,
            ToBroker::UnfollowLogs { req, job, kind } => {
                self.followed.remove(&(job, kind));
                self.acknowledge(req, job).await
            }
            ToBroker::Claim { free, grants_seen, req } => {
                let claim = Command::Claim { session, free, grants_seen };
                match req {
                    Some(req) => self.command(claim, req).await,
                    None => self.silently(claim).await,
                }
            }
            ToBroker::Renew { runs } => self.silently(Command::Renew { session, runs }).await,
            ToBroker::Finish { req, run } => self.finish(req, run).await,
            ToBroker::HandBack { req, run, why, busy } => {
                tracing::info!(job = %run.job, "run {} of job {} handed back: {:?}", run.run, run.job, shortened(&why));
                self.command(Command::HandBack { session, run, busy }, req).await
            }
            ToBroker::GetDefinitions { req, jobs } => self.definitions(req, jobs).await,
            ToBroker::Explain { req, job } => self.explain(req, job).await,
            ToBroker::RunLogs { run, step, first, lines } => self.run_logs(run, step, first, lines).await,
        }
    }

    fn reply(&self, req: RequestId) -> ReplyTo {
        ReplyTo::Socket(self.outbox.clone(), req)
    }

    async fn command(&self, command: Command, req: RequestId) -> Result<(), Refusal> {
        self.queue.command(command, self.reply(req)).await
    }

    /// A command that has no answer of its own.
    async fn silently(&self, command: Command) -> Result<(), Refusal> {
        self.queue.command(command, ReplyTo::SocketIfRefused(self.outbox.clone())).await
    }

    async fn finish(&self, req: RequestId, run: FinishedRun) -> Result<(), Refusal> {
        let FinishedRun { job, run, outcome, exit_code, image, duration_ms, finished } = run;
        let (result, text) = submission::check_result(&finished)?;
        let held = HeldRun { job, run };
        // A large result is on disk before the queue decides on it, so strangers' must not get that far.
        if text.len() > INLINE_BODY_BYTES_MAX {
            let session = self.session;
            self.queue.read(move |core| core.may_finish(session, held)).await??;
        }
        let text = self.queue.store_body(result, text).await?;
        self.shared.ended(held);
        let finish = Finish { run: held, outcome, result, text, exit_code, image, duration_ms };
        self.command(Command::Finish { session: self.session, finish }, req).await
    }

    async fn run_logs(&self, run: HeldRun, step: LogStep, first: u64, lines: Vec<LogLine>) -> Result<(), Refusal> {
        if !self.shared.is_worker() {
            return Err(bad("not_a_worker", "RunLogs come from workers, on /q/<queue>/worker"));
        }
        if !self.shared.holds(run).await {
            return Ok(()); // Lines under way when the run was stopped: nobody asks for them any more.
        }
        let stored = self.engine.logs().append(self.queue.key(), run.job, run.run, step, first, lines).await;
        stored.map_err(|error| {
            tracing::warn!(job = %run.job, %error, "cannot store log lines of job {}: {error}", run.job);
            Refusal::new(RefusalKind::Unavailable, "logs_not_stored", "log lines could not be stored; the run goes on")
        })
    }

    async fn follow(&mut self, req: RequestId, job: JobId, kind: LogKind, since: u64) -> Result<(), Refusal> {
        self.followed.retain(|_, follower| !follower.0.is_finished());
        if self.followed.len() >= FOLLOWED_MAX && !self.followed.contains_key(&(job, kind)) {
            let text = format!("a socket follows at most {FOLLOWED_MAX} logs; unfollow one or open another socket");
            return Err(Refusal::new(RefusalKind::TooLarge, "too_many_logs", text));
        }
        self.acknowledge(req, job).await?;
        let task = follow(self.engine.logs().clone(), self.queue.clone(), self.outbox.clone(), job, kind, since);
        self.followed.insert((job, kind), Follower(tokio::spawn(task)));
        Ok(())
    }

    async fn definitions(&mut self, req: RequestId, jobs: Vec<JobId>) -> Result<(), Refusal> {
        let text = |asked: usize| {
            format!("{asked} definitions are asked for, the limit is {DEFINITIONS_ASKED_MAX}; ask for those in view")
        };
        if jobs.len() > DEFINITIONS_ASKED_MAX {
            return Err(Refusal::new(RefusalKind::TooLarge, "too_many_definitions", text(jobs.len())));
        }
        let definitions = self.queue.definitions(jobs).await?;
        while self.reading.len() >= READING_MAX {
            self.reading.join_next().await;
        }
        self.reading.spawn(send_definitions(self.outbox.clone(), req, definitions));
        Ok(())
    }

    async fn explain(&self, req: RequestId, job: JobId) -> Result<(), Refusal> {
        let explanation = Box::new(self.queue.explain(job).await?);
        self.outbox.must(FromBroker::Explained { req, explanation });
        Ok(())
    }

    /// Answers what has no effect on the queue.
    async fn acknowledge(&self, req: RequestId, job: JobId) -> Result<(), Refusal> {
        let head = self.queue.head().await?;
        self.outbox.must(FromBroker::Ok { req, head, job: Some(job) });
        Ok(())
    }

    fn refuse(&self, req: Option<RequestId>, refusal: &Refusal) {
        let (code, message) = (refusal.code.to_owned(), refusal.message.clone().into_owned());
        self.outbox.must(FromBroker::Rejected { req, code, message });
    }
}

/// What a peer says, as far as a line of the log takes it.
fn shortened(text: &str) -> &str {
    text.char_indices().nth(LOGGED_CHARS_MAX).map_or(text, |(end, _)| &text[..end])
}

fn bad(code: &'static str, message: &'static str) -> Refusal {
    Refusal::new(RefusalKind::BadRequest, code, message)
}

const fn request_of(message: &ToBroker) -> Option<RequestId> {
    match message {
        ToBroker::Submit { req, .. }
        | ToBroker::Cancel { req, .. }
        | ToBroker::Delete { req, .. }
        | ToBroker::FollowLogs { req, .. }
        | ToBroker::UnfollowLogs { req, .. }
        | ToBroker::GetDefinitions { req, .. }
        | ToBroker::Explain { req, .. }
        | ToBroker::Finish { req, .. }
        | ToBroker::HandBack { req, .. } => Some(*req),
        ToBroker::Claim { req, .. } => *req,
        ToBroker::Hello(_) | ToBroker::Renew { .. } | ToBroker::RunLogs { .. } => None,
    }
}
