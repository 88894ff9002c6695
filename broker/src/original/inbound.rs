//! The receiving half of a socket: frames become asks, in the order in which they came.
//!
//! What cannot be read, or is not this peer's to say, is passed over: the dialect has no word for a refusal. Only a refused
//! submission is told, to this socket alone, as a job that ended with an error, because its sender would try for ever.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use protocol::event::Via;
use protocol::id::{JobId, RunNumber, UnixMillis, WorkerId};
use protocol::native::{Capacity, HeldRun, LogLine, LogStep, WorkerHello};
use protocol::original::from_peer::{Ended, FromPeer, Queued, Registration};
use protocol::original::job::is_shown;
use protocol::original::{JobEntry, preferred, to_peer};
use protocol::queue::{Job, Status};
use protocol::raw::RawJson;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message, Utf8Bytes};
use tracing::debug;

use super::definitions::Definition;
use super::hub::HubAsk;
use super::line::Line;
use super::members::NewWorker;
use super::results::parse;
use super::{EARLY_PIECE_BYTES, Hub};
use crate::clock;
use crate::engine::{CancelScope, Engine, INLINE_BODY_BYTES_MAX, QueueHandle, ReplyTo, SessionId, SubmitJob};
use crate::refusal::{Refusal, RefusalKind};
use crate::rules::command::{Command, Finish};
use crate::session::Role;
use crate::submission;
use crate::webhooks::read_callbacks;

/// Submissions of one socket that may be under way: more are left in the socket.
const SUBMITS_MAX: usize = 64;

/// Frames of a worker that has not registered yet, which it sent while it was offline: kept until it says who it is.
const EARLY_FRAMES_MAX: usize = 256;

/// The most bytes of such frames.
const EARLY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Definitions that one request may ask for: the original's workers ask for one at a time.
const DEFINITIONS_ASKED_MAX: usize = 256;

/// The longest registration, in bytes: everyone is told of it.
const REGISTRATION_BYTES_MAX: usize = 4 * 1024;

/// The longest answer to a request for a worker's status, in bytes: it holds the definitions of what the worker runs.
const STATUS_BYTES_MAX: usize = 1024 * 1024;

/// The longest version that a worker may state, in bytes.
const VERSION_BYTES_MAX: usize = 256;

/// How long it is taken for granted that a run is this worker's, so that each piece of log need not ask.
const RUN_KNOWN_FOR: Duration = Duration::from_secs(1);

/// How many runs of a socket are taken for granted: more than workers have CPUs.
const RUNS_KNOWN_MAX: usize = 1024;

/// A frame that came before the worker said who it is.
struct Early {
    text: Utf8Bytes,
    _room: OwnedSemaphorePermit,
}

/// A worker that registered on this socket.
struct Registered {
    id: WorkerId,
    /// What stands for it in the queue.
    session: SessionId,
}

/// The receiving half of a socket.
pub(super) struct Inbound {
    engine: Engine,
    queue: QueueHandle,
    hub: Hub,
    member: SessionId,
    role: Role,
    line: Line,
    worker: Option<Registered>,
    early: VecDeque<Early>,
    early_bytes: usize,
    /// Room for such frames of all sockets.
    early_room: Arc<Semaphore>,
    submits: Arc<Semaphore>,
    runs: HashMap<JobId, (RunNumber, Instant)>,
}

impl Inbound {
    pub(super) fn new(
        engine: Engine,
        queue: QueueHandle,
        hub: Hub,
        member: SessionId,
        role: Role,
        line: Line,
        early_room: Arc<Semaphore>,
    ) -> Self {
        Self {
            engine,
            queue,
            hub,
            member,
            role,
            line,
            worker: None,
            early: VecDeque::new(),
            early_bytes: 0,
            early_room,
            submits: Arc::new(Semaphore::new(SUBMITS_MAX)),
            runs: HashMap::new(),
        }
    }

    /// Reads until the peer is gone or has to go; says why.
    pub(super) async fn run<R>(mut self, mut stream: R, silent_max: Duration) -> &'static str
    where
        R: Stream<Item = Result<Message, SocketError>> + Unpin,
    {
        let asks = self.hub.asks.clone();
        loop {
            let next = tokio::select! {
                next = tokio::time::timeout(silent_max, stream.next()) => next,
                () = asks.closed() => return "the queue stops",
            };
            match next {
                Err(_) => return "nothing was heard for too long, not even a pong",
                Ok(None | Some(Ok(Message::Close(_)))) => return "the peer closed it",
                Ok(Some(Err(_))) => return "the connection broke",
                Ok(Some(Ok(Message::Text(text)))) => self.frame(text).await,
                // The original ignores binary frames too.
                Ok(Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_)))) => {}
            }
        }
    }

    async fn frame(&mut self, text: Utf8Bytes) {
        match FromPeer::read(&text) {
            Ok(message) if self.is_early(&message) => self.keep_early(text.clone()),
            Ok(message) => self.message(message).await,
            Err(error) => debug!(queue = %self.queue.key().short(), "a frame is passed over: {error}"),
        }
    }

    async fn message(&mut self, message: FromPeer<'_>) {
        match message {
            FromPeer::Ping => self.pong(),
            FromPeer::Queued(queued) => self.submit(queued).await,
            FromPeer::Withdrawn { job, namespace, is_delete, message } => {
                self.withdraw(job, namespace, is_delete, message.map(Cow::into_owned)).await;
            }
            FromPeer::QueryJob { job } => self.query(job).await,
            FromPeer::QueryJobStates => self.ask_hub(HubAsk::Everything { member: self.member }).await,
            FromPeer::Registration(registration) => self.register(registration).await,
            FromPeer::Running { job, worker, at } => self.running(job, worker.as_deref(), at).await,
            FromPeer::Ended(ended) => self.ended(ended).await,
            FromPeer::Logs { job, step, lines } => self.logs(job, step, lines).await,
            FromPeer::RequestDefinitions { jobs } => self.definitions(&jobs).await,
            FromPeer::Status { status } if status.get().len() > STATUS_BYTES_MAX => {}
            FromPeer::Status { status } => {
                self.ask_hub(HubAsk::StatusAnswer { member: self.member, status: status.to_owned() }).await;
            }
        }
    }

    async fn ask_hub(&self, ask: HubAsk) {
        let _ = self.hub.asks.send(ask).await;
    }

    fn pong(&self) {
        match self.role {
            Role::Client => self.line.tell(Utf8Bytes::from_static(to_peer::PONG)),
            Role::Worker => self.line.tell(to_peer::worker_pong(self.worker.as_ref().map(|worker| &worker.id))),
        }
    }

    async fn submit(&self, queued: Queued<'_>) {
        let Queued { id, definition: Some(definition), namespace, debug, retry, callbacks } = queued else { return };
        let Ok(permit) = Arc::clone(&self.submits).acquire_owned().await else { return };
        let waits_for = id.as_deref().map(str::to_owned);
        let begun = async {
            let bad = |code, text: String| Refusal::new(RefusalKind::BadRequest, code, text);
            let id = id.map(|id| id.parse()).transpose();
            let id = id.map_err(|error: protocol::id::IdError| bad("bad_job_id", error.to_string()))?;
            let namespace = namespace.map(|name| name.parse()).transpose();
            let namespace =
                namespace.map_err(|error: protocol::id::IdError| bad("bad_namespace", error.to_string()))?;
            let definition = RawJson::new(definition.get());
            let callbacks = read_callbacks(callbacks)?;
            let via = Via::Socket;
            let submit = SubmitJob { id, definition, namespace, priority: 0, debug, retry, callbacks, via };
            let (reply, answer) = oneshot::channel();
            self.queue.begin_submit(submit, ReplyTo::Caller(reply)).await?;
            Ok(answer)
        };
        let answer = match begun.await {
            Ok(answer) => answer,
            Err(refusal) => return refuse(&self.line, waits_for.as_deref(), &refusal),
        };
        let (asks, member, line) = (self.hub.asks.clone(), self.member, self.line.clone());
        tokio::spawn(async move {
            match answer.await {
                Ok(Ok(done)) => {
                    let _ = asks.send(HubAsk::Show { member, job: done.job, seq: done.head.seq }).await;
                }
                Ok(Err(refusal)) => refuse(&line, waits_for.as_deref(), &refusal),
                Err(_) => {}
            }
            drop(permit);
        });
    }

    /// Withdraws a wish. Pages do not say whose: then it is the default namespace's, or the only one's.
    async fn withdraw(&self, job: JobId, namespace: Option<Cow<'_, str>>, is_delete: bool, message: Option<String>) {
        let scope = match namespace.as_deref() {
            Some("*") => CancelScope::All,
            Some(named) => match named.parse() {
                Ok(named) => CancelScope::One(named),
                Err(_) => return,
            },
            None => {
                let held = self.queue.read(move |core| core.state().job(job).map(|job| job.namespaces.clone())).await;
                let held = held.ok().flatten().unwrap_or_default();
                let mut names = held.into_keys();
                let only = names.next().filter(|_| names.len() == 0);
                CancelScope::One(only.unwrap_or_default())
            }
        };
        let command = if is_delete {
            Command::Delete { job, scope, archived: None }
        } else {
            Command::Cancel { job, scope, message }
        };
        self.command(command).await;
    }

    async fn command(&self, command: Command) {
        let _ = self.queue.command(command, ReplyTo::Nobody).await;
    }

    async fn query(&self, id: JobId) {
        let found = self.queue.job(id).await.ok().flatten().map(|found| found.job);
        let Some(job) = found.filter(|job| is_shown(&job.status)) else {
            return self.line.tell(Utf8Bytes::from_static(to_peer::HEARTBEAT));
        };
        let result = match job.status {
            Status::Finished { result, .. } => self.queue.body(result).await.ok().flatten(),
            Status::Queued { .. }
            | Status::Running {}
            | Status::Cancelled { .. }
            | Status::Replaced { .. }
            | Status::Deleted {} => None,
        };
        let finished = result.and_then(|text| parse(&text));
        let entry = JobEntry::new(&job);
        let entry = match &finished {
            Some(finished) => entry.with_finished(finished),
            None => entry,
        };
        self.line.tell(to_peer::job_state_updates(std::iter::once((id, entry))));
    }

    /// Whether a frame is a worker's that has not said who it is: it sends what it gathered offline first.
    fn is_early(&self, message: &FromPeer<'_>) -> bool {
        let needs_a_worker = match message {
            FromPeer::Running { .. } | FromPeer::Ended(_) | FromPeer::Logs { .. } => true,
            FromPeer::Ping
            | FromPeer::Queued(_)
            | FromPeer::Withdrawn { .. }
            | FromPeer::QueryJob { .. }
            | FromPeer::QueryJobStates
            | FromPeer::Registration(_)
            | FromPeer::RequestDefinitions { .. }
            | FromPeer::Status { .. } => false,
        };
        needs_a_worker && self.role == Role::Worker && self.worker.is_none()
    }

    fn keep_early(&mut self, text: Utf8Bytes) {
        if self.early.len() >= EARLY_FRAMES_MAX || self.early_bytes + text.len() > EARLY_BYTES_MAX {
            return;
        }
        let pieces = u32::try_from(text.len().div_ceil(EARLY_PIECE_BYTES)).unwrap_or(u32::MAX);
        if let Ok(room) = Arc::clone(&self.early_room).try_acquire_many_owned(pieces) {
            self.early_bytes += text.len();
            self.early.push_back(Early { text, _room: room });
        }
    }

    async fn register(&mut self, registration: Registration<'_>) {
        let Registration { id, version, cpus, gpus, max_job_duration, registration } = registration;
        let is_fit = preferred::may_register(id.as_str())
            && registration.get().len() <= REGISTRATION_BYTES_MAX
            // A socket is one worker's: what it may cost others is bounded by sockets.
            && self.worker.as_ref().is_none_or(|known| known.id == id)
            && version.len() <= VERSION_BYTES_MAX;
        if self.role != Role::Worker || !is_fit {
            return debug!(queue = %self.queue.key().short(), "a registration is passed over");
        }
        let total = Capacity { cpus_milli: cpus.saturating_mul(1000), memory_bytes: None, gpus };
        let max_duration_ms = max_job_duration.as_deref().and_then(protocol::duration::limit_ms);
        let (tags, holds) = (Vec::new(), Vec::new());
        let hello = WorkerHello { id: id.clone(), version, total, tags, max_duration_ms, holds };
        let (reply, answer) = oneshot::channel();
        let worker = Box::new(NewWorker { hello, registration: registration.to_owned() });
        self.ask_hub(HubAsk::Register { member: self.member, worker, reply }).await;
        let Ok(session) = answer.await else { return };
        self.worker = Some(Registered { id, session });
        self.early_bytes = 0;
        for Early { text, .. } in std::mem::take(&mut self.early) {
            if let Ok(message) = FromPeer::read(&text) {
                Box::pin(self.message(message)).await;
            }
        }
    }

    /// The worker of this socket, unless the message says that it is another's.
    fn worker(&self, said: Option<&str>) -> Option<&Registered> {
        self.worker.as_ref().filter(|worker| said.is_none_or(|said| said == worker.id.as_str()))
    }

    async fn running(&mut self, job: JobId, worker: Option<&str>, at: UnixMillis) {
        let Some(session) = self.worker(worker).map(|worker| worker.session) else { return };
        self.runs.remove(&job);
        self.command(Command::ClaimJob { session, job, at }).await;
    }

    /// The number of this worker's run of a job, if the newest is its own and not over.
    async fn run_of(&mut self, job: JobId) -> Option<RunNumber> {
        if let Some((run, known)) = self.runs.get(&job)
            && known.elapsed() < RUN_KNOWN_FOR
        {
            return Some(*run);
        }
        let worker = self.worker.as_ref()?.id.clone();
        let is_its = move |job: &&Job| job.is_live() && job.worker.as_ref() == Some(&worker);
        let read = self.queue.read(move |core| core.state().job(job).filter(is_its).map(|job| job.run));
        let run = read.await.ok().flatten()?;
        if self.runs.len() >= RUNS_KNOWN_MAX {
            self.runs.clear();
        }
        self.runs.insert(job, (run, Instant::now()));
        Some(run)
    }

    async fn ended(&mut self, ended: Ended<'_>) {
        let Ended { job, worker, outcome, exit_code, duration_ms, finished } = ended;
        let Some(session) = self.worker(worker.as_deref()).map(|worker| worker.session) else { return };
        self.runs.remove(&job);
        let Some(run) = self.run_of(job).await else { return };
        self.runs.remove(&job);
        let (result, text) = match submission::check_result(&RawJson::new(finished.get())) {
            Ok(checked) => checked,
            // It says so once and forgets; a job left running would be run for ever.
            Err(refusal) => {
                let (run, why) = (HeldRun { job, run }, refusal.message.into_owned());
                return self.command(Command::Abandon { run, why }).await;
            }
        };
        let held = HeldRun { job, run };
        if text.len() > INLINE_BODY_BYTES_MAX {
            let may = self.queue.read(move |core| core.may_finish(session, held)).await;
            if !matches!(may, Ok(Ok(()))) {
                return;
            }
        }
        match self.queue.store_body(result, text).await {
            Ok(text) => {
                let finish = Finish { run: held, outcome, result, text, exit_code, image: None, duration_ms };
                self.command(Command::Finish { session, finish }).await;
            }
            // It does not say so again: the job has to run again, or it would never end.
            Err(refusal) => {
                tracing::warn!(job = %job, "the result of job {job} is not stored, so it runs again: {refusal}");
                self.command(Command::HandBack { session, run: held, busy: false }).await;
            }
        }
    }

    async fn logs(&mut self, job: JobId, step: LogStep, lines: Vec<LogLine>) {
        let Some(run) = self.run_of(job).await else { return };
        let stored = self.engine.logs().append_next(self.queue.key(), job, run, step, lines).await;
        if let Err(error) = stored {
            tracing::warn!(job = %job, %error, "cannot store log lines of job {job}: {error}");
        }
    }

    async fn definitions(&self, jobs: &[JobId]) {
        for job in jobs.iter().take(DEFINITIONS_ASKED_MAX) {
            match self.hub.definitions.get(&self.queue, *job).await {
                Some(Definition::Frame(frame)) => self.line.tell_when_room(frame).await,
                Some(Definition::Unfit(unfit)) => {
                    debug!(job = %job, "job {job} is not for this worker: {unfit}");
                    self.ask_hub(HubAsk::Unfit { job: *job }).await;
                }
                None => {}
            }
        }
    }
}

/// Tells a submitter that its job is refused, under the id that it waits for. What may be over in a moment is not told: the
/// submitter tries again.
fn refuse(line: &Line, waits_for: Option<&str>, refusal: &Refusal) {
    if let Some(id) = waits_for.filter(|_| refusal.kind != RefusalKind::Unavailable) {
        line.tell(to_peer::refused(id, &refusal.message, clock::now()));
    }
}
