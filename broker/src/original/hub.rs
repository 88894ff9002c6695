//! The hub of one queue: the task that all original sockets of the queue hang on.

mod pace;
mod tell;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use protocol::PROTOCOL_VERSION;
use protocol::id::{Digest, JobId, QueueKey, Seq, WorkerId};
use protocol::native::{HeldRun, Hello};
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::debug;

use self::pace::Pace;
use super::definitions::{Definition, Definitions};
use super::line::{Item, Line, Newest};
use super::members::{Member, NewWorker, Workers};
use super::view::View;
use super::{Originals, Times, place};
use crate::clock;
use crate::engine::outbox::{Outbox, Outgoing};
use crate::engine::{Ask, Attach, QueueHandle, ReplyTo, SessionId};
use crate::rules::command::Command;
use crate::session::Role;

/// How often sockets that are behind, and whether anyone is left, are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Messages of the queue taken before anything else is looked at.
const MESSAGES_PER_TURN: usize = 256;

/// How long a status waits for workers that do not answer. The original's number.
const STATUS_WITHIN: Duration = Duration::from_secs(2);

/// What all workers' answers to one status may have together, in bytes; those that do not fit are shown as what is known of their
/// workers. Each is short but for the definitions of what its worker runs, and there may be as many workers as sockets.
const STATUSES_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a socket asks of its hub.
pub(super) enum HubAsk {
    /// It is there.
    Join {
        /// It.
        member: SessionId,
        /// Page or worker.
        role: Role,
        /// Where what it is told goes.
        line: Line,
    },
    /// It is gone.
    Leave {
        /// It.
        member: SessionId,
    },
    /// A worker says who it is; answered with what stands for it in the queue.
    Register {
        /// Its socket.
        member: SessionId,
        /// The worker.
        worker: Box<NewWorker>,
        /// Where the answer goes.
        reply: oneshot::Sender<SessionId>,
    },
    /// It wants the whole state.
    Everything {
        /// It.
        member: SessionId,
    },
    /// It waits to see a job, at the latest as it was at that position.
    Show {
        /// It.
        member: SessionId,
        /// The job.
        job: JobId,
        /// Where the queue stood.
        seq: Seq,
    },
    /// A job's definition would kill workers.
    Unfit {
        /// The job.
        job: JobId,
    },
    /// Someone wants to know what workers say of themselves.
    Status {
        /// Where what they say goes.
        reply: oneshot::Sender<Arc<Statuses>>,
    },
    /// A worker says what it does.
    StatusAnswer {
        /// Its socket.
        member: SessionId,
        /// What it says, verbatim.
        status: Box<RawValue>,
    },
}

/// What workers say of themselves.
pub(super) type Statuses = BTreeMap<WorkerId, Box<RawValue>>;

/// Something that was read from disk for the hub.
enum Loaded {
    /// The result of a job that has just ended.
    Result { job: JobId, digest: Digest, text: Option<Box<RawValue>> },
    /// The definition of a deleted job.
    Deleted { job: JobId, definition: Option<Definition> },
}

/// A socket that waits to see a job.
struct Wanted {
    member: SessionId,
    job: JobId,
    seq: Seq,
}

/// A status under way.
struct Asked {
    replies: Vec<oneshot::Sender<Arc<Statuses>>>,
    answers: Statuses,
    /// What the answers have together.
    bytes: usize,
    waits_for: BTreeSet<SessionId>,
    until: Instant,
}

struct Task {
    originals: Originals,
    times: Times,
    queue: QueueHandle,
    /// The hub's own place in the queue.
    session: SessionId,
    /// How many pages the queue knows of.
    pages: u32,
    /// What sockets are shown; absent until the queue has said how it stands.
    view: Option<View>,
    newest: [Newest; 2],
    definitions: Definitions,
    members: BTreeMap<SessionId, Member>,
    /// How many of each role there are.
    counts: [usize; 2],
    /// Whether some of them are behind.
    is_lagging: bool,
    workers: Workers,
    /// Changed jobs that each role has not been told of.
    news: [BTreeSet<JobId>; 2],
    /// Ended jobs whose results are being read: pages are told of them when that is done.
    loading: BTreeSet<JobId>,
    loads: FuturesUnordered<Pin<Box<dyn Future<Output = Loaded> + Send>>>,
    wanted: Vec<Wanted>,
    asked: Option<Asked>,
    /// When what was gathered goes out.
    news_at: Option<Instant>,
    /// When everyone of a role is sent a whole state.
    paces: [Pace; 2],
    /// When everyone is told who is there, and when that was last so.
    workers_at: Option<Instant>,
    workers_was: Option<Instant>,
    heartbeat_at: Instant,
    renew_at: Instant,
    /// When to look whether the queue has to be told how many pages there are.
    look_at: Option<Instant>,
}

/// Runs a hub until no socket holds it or the queue stops.
pub(super) async fn run(
    originals: Originals,
    key: QueueKey,
    mut asks: mpsc::Receiver<HubAsk>,
    newest: [Newest; 2],
    definitions: Definitions,
) {
    let engine = originals.0.engine.clone();
    let (queue, session, times) = (engine.queue_by_key(key), engine.new_session(), originals.0.times);
    let (outbox, mut line, broken) = Outbox::new();
    let hello = Hello { version: PROTOCOL_VERSION, version_min: None, watch: true, resume: None, worker: None };
    let attach = Attach { session, outbox, hello };
    if queue.send(Ask::Attach(Box::new(attach))).await.is_ok() {
        let mut task = Task {
            originals: originals.clone(),
            times,
            queue: queue.clone(),
            session,
            pages: 1,
            view: None,
            newest,
            definitions,
            members: BTreeMap::new(),
            counts: [0; 2],
            is_lagging: false,
            workers: Workers::default(),
            news: Default::default(),
            loading: BTreeSet::new(),
            loads: FuturesUnordered::new(),
            wanted: Vec::new(),
            asked: None,
            news_at: None,
            paces: Default::default(),
            workers_at: None,
            workers_was: None,
            heartbeat_at: Instant::now() + times.heartbeat,
            renew_at: Instant::now() + times.renew_every,
            look_at: None,
        };
        tokio::select! {
            () = task.serve(&mut asks, &mut line) => {}
            () = broken.cancelled() => {}
        }
        task.end().await;
        let _ = queue.send(Ask::Detach(session)).await;
    }
    asks.close();
    originals.leave(key);
    debug!(queue = %key.short(), "the hub of queue {} ends", key.short());
}

impl Task {
    async fn serve(&mut self, asks: &mut mpsc::Receiver<HubAsk>, line: &mut mpsc::Receiver<Outgoing>) {
        let mut tap = self.originals.0.engine.logs().tap(self.queue.key());
        loop {
            let wake_at = self.wake_at();
            tokio::select! {
                outgoing = line.recv() => {
                    let Some(outgoing) = outgoing else { return };
                    if self.hear(outgoing).is_break() {
                        return;
                    }
                    for _ in 1..MESSAGES_PER_TURN {
                        let Ok(outgoing) = line.try_recv() else { break };
                        if self.hear(outgoing).is_break() {
                            return;
                        }
                    }
                    self.show_wanted();
                }
                ask = asks.recv() => match ask {
                    Some(ask) => self.take(ask).await,
                    None => return,
                },
                Some(logged) = tap.recv() => self.tell_logs(&logged),
                Some(loaded) = self.loads.next(), if !self.loads.is_empty() => self.loaded(loaded),
                () = tokio::time::sleep_until(wake_at) => {
                    self.on_time().await;
                    if self.members.is_empty() && self.originals.put_away(self.queue.key(), asks) {
                        return;
                    }
                }
            }
        }
    }

    fn wake_at(&self) -> Instant {
        let look = (self.members.is_empty() || self.is_lagging).then(|| Instant::now() + LOOK_EVERY).or(self.look_at);
        let asked = self.asked.as_ref().map(|asked| asked.until);
        let [page_at, worker_at] = [&self.paces[0], &self.paces[1]].map(|pace| pace.at);
        let times = [self.news_at, page_at, worker_at, self.workers_at, look, asked];
        let always = self.heartbeat_at.min(self.renew_at);
        times.into_iter().flatten().min().map_or(always, |at| at.min(always))
    }

    async fn on_time(&mut self) {
        let now = Instant::now();
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        for role in [Role::Client, Role::Worker] {
            if is_due(self.paces[place(role)].at) {
                self.tell_whole(role);
            }
        }
        if is_due(self.news_at) {
            self.tell_news();
        }
        if is_due(self.workers_at) {
            self.tell_workers();
        }
        if self.heartbeat_at <= now {
            self.heartbeat_at = now + self.times.heartbeat;
            self.tell_heartbeat();
        }
        if self.renew_at <= now {
            self.renew_at = now + self.times.renew_every;
            self.renew().await;
        }
        if self.asked.as_ref().is_some_and(|asked| asked.until <= now) {
            self.answer_status();
        }
        self.catch_up();
        self.count_pages().await;
    }

    async fn take(&mut self, ask: HubAsk) {
        match ask {
            HubAsk::Join { member, role, line } => {
                if self.view.is_some() && role == Role::Client {
                    line.tell(self.workers.message(clock::now()));
                }
                self.members.insert(member, Member { role, line, behind: false, worker: None });
                self.counts[place(role)] += 1;
                self.give_whole(member);
                self.look_at.get_or_insert_with(|| Instant::now() + LOOK_EVERY);
            }
            HubAsk::Leave { member } => self.leave(member).await,
            HubAsk::Register { member, worker, reply } => self.register(member, *worker, reply).await,
            HubAsk::Everything { member } => self.give_whole(member),
            HubAsk::Show { member, job, seq } => {
                self.wanted.push(Wanted { member, job, seq });
                self.show_wanted();
            }
            HubAsk::Unfit { job } => {
                if self.view.as_mut().is_some_and(|view| view.hide(job)) {
                    self.withdrawn();
                }
            }
            HubAsk::Status { reply } => self.ask_status(reply),
            HubAsk::StatusAnswer { member, status } => self.status_answered(member, status),
        }
    }

    async fn register(&mut self, socket: SessionId, worker: NewWorker, reply: oneshot::Sender<SessionId>) {
        let id = worker.hello.id.clone();
        let Some(member) = self.members.get_mut(&socket) else { return };
        let is_first = member.worker.replace(id.clone()).is_none();
        let hello = worker.hello.clone();
        let placed = self.workers.register(socket, worker, || self.originals.0.engine.new_session());
        // Said each time: the queue may have been told otherwise meanwhile, by a worker of our own kind with the same id.
        let command = Command::Register { session: placed.session, hello };
        if self.queue.command(command, ReplyTo::Nobody).await.is_err() {
            return;
        }
        let _ = reply.send(placed.session);
        if placed.is_news {
            self.workers_changed();
        }
        if is_first {
            if let Some(view) = &mut self.view {
                view.add_registered(id);
            }
            self.give_whole(socket);
        }
    }

    async fn leave(&mut self, socket: SessionId) {
        let Some(left) = self.members.remove(&socket) else { return };
        self.counts[place(left.role)] -= 1;
        if let Some(worker) = left.worker {
            self.unregister(socket, &worker).await;
        }
        self.look_at.get_or_insert_with(|| Instant::now() + LOOK_EVERY);
        self.status_not_coming(socket);
        if !self.has(left.role) {
            self.news[place(left.role)].clear();
        }
    }

    async fn unregister(&mut self, socket: SessionId, worker: &WorkerId) {
        if let Some(session) = self.workers.leave(socket, worker) {
            let _ = self.queue.command(Command::Disconnect { session }, ReplyTo::Nobody).await;
            self.workers_changed();
        }
    }

    /// Workers whose sockets are open are there, and so their runs are alive.
    async fn renew(&mut self) {
        let Some(view) = &self.view else { return };
        let mut runs: BTreeMap<&WorkerId, Vec<HeldRun>> = BTreeMap::new();
        for (job, found) in view.state().running() {
            if let Some(worker) = &found.worker {
                runs.entry(worker).or_default().push(HeldRun { job, run: found.run });
            }
        }
        let renewals: Vec<_> = self
            .workers
            .sessions()
            .filter_map(|(id, session)| runs.remove(id).map(|runs| Command::Renew { session, runs }))
            .collect();
        for renewal in renewals {
            let _ = self.queue.command(renewal, ReplyTo::Nobody).await;
        }
    }

    /// Tells the queue how many pages the hub stands for, when that has changed.
    async fn count_pages(&mut self) {
        self.look_at = None;
        let pages = u32::try_from(self.counts[place(Role::Client)]).unwrap_or(u32::MAX);
        if std::mem::replace(&mut self.pages, pages) != pages {
            let _ = self.queue.send(Ask::StandsFor(self.session, pages)).await;
        }
    }

    const fn has(&self, role: Role) -> bool {
        self.counts[place(role)] > 0
    }

    /// Lets all sockets go.
    async fn end(&mut self) {
        for member in self.members.values() {
            member.line.put(Item::Close);
        }
        let sessions: Vec<_> = self.workers.sessions().map(|(_, session)| session).collect();
        for session in sessions {
            let _ = self.queue.command(Command::Disconnect { session }, ReplyTo::Nobody).await;
        }
    }
}
